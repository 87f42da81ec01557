"""Which folders are runs, and the names of their files."""

import os
import re
from pathlib import Path

from alr_fast.utils.files import reading

CONFIG = "config.yaml"
RESOLVED = "resolved.yaml"
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"
LOCK = ".lock"
BANK = "_bank.safetensors"  # follows the name of the method
LATEST = "latest"


def is_finished(path: Path) -> bool:
    """Whether the run in a folder is finished."""
    return (path / SUMMARY).is_file()


def run_of(path: Path) -> Path | None:
    """The folder of the run that a path names: its folder, or that of one of its checkpoints.

    None if it is neither. Links like "latest", which moves when another run has finished, are
    resolved.
    """
    path = Path(os.path.realpath(actual_path(path)))
    # Not Path.is_file, which raises for a folder without permission.
    return next((p for p in (path, path.parent.parent) if os.path.isfile(p / CONFIG)), None)


def actual_path(path: Path) -> Path:
    """A path in which "latest" is the newest finished run where there is no such link.

    File systems without symbolic links have none.
    """
    for folder in (path, *path.parents):
        if folder.name == LATEST and not os.path.lexists(folder):
            finished = [run for run in find_runs(folder.parent) if is_finished(run)]
            return finished[0] / path.relative_to(folder) if finished else path
    return path


def find_runs(runs: Path) -> list[Path]:
    """Returns the folders of runs in a folder, newest first by the time in their names.

    Renamed folders, whose time is unknown, come last. Links are left out.

    Raises:
        UserError: The folder cannot be read.
    """
    with reading(runs):
        if not runs.is_dir():
            return []
        # Not Path.is_file, which raises for a folder without permission.
        found = (p for p in runs.iterdir() if not p.is_symlink() and os.path.isfile(p / CONFIG))
        return sorted(found, key=_age_key, reverse=True)


def _age_key(path: Path) -> tuple[str, int, str]:
    # As `RunFolder.create` names them: "-2" follows the name without a number, "-10" follows "-9".
    match = re.fullmatch(r"(\d{8}-\d{6})-.*?(?:-(\d+))?", path.name)
    if match is None:
        return "", 0, path.name
    return match[1], int(match[2] or 1), path.name
