"""The folder that a run leaves behind.

runs/20260131-235959-digits/
    config.yaml              every option, as resolved: --config takes it
    metrics.csv              a line for each method and epoch
    metrics.png              accuracy and share of right labels per epoch
    METHOD.safetensors       weights of the last epoch
    METHOD_bank.safetensors  label bank of the last epoch, with the sample ids of its rows
    METHOD_transition.csv    transition matrix that the method corrects with
    tensorboard/METHOD/      events
    wandb/, wandb.id         what Weights & Biases keeps here, and the run's id there
    checkpoints/NUMBER/      what `--resume` goes on from (`alr_fast.training.checkpoint.store`)
    trace.json.gz            where the time of a step goes, with --profile
    .lock                    held by the process that trains
    broken.csv               training samples whose files gave no image, if there were any
    summary.json             the results, fractions of 1, and where they come from
runs/latest                  link to the last run that finished

Process 0 alone writes here. Everything but the logs gets a temporary name first and its own one
when it is complete, and ``summary.json`` comes last: where it lies, the run is finished.
"""

import contextlib
import fcntl
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml
from torch import nn

from alr_fast.data.broken import BrokenSamples, write_exclusions
from alr_fast.errors import UserError
from alr_fast.training.config.schema import Config
from alr_fast.training.output.records import EpochRecord, plot_records
from alr_fast.utils.files import replacing, writing

if TYPE_CHECKING:
    from alr_fast.training.output.loggers import Logger
    from alr_fast.training.output.records import Histogram


LOCK = ".lock"
BANK = "_bank.safetensors"  # what the file of a method's label bank ends with


class RunFolder:
    """Writes into the folder of a run while it goes on; `create` or `open` makes one.

    Whatever cannot be written raises `UserError` with the name of the file.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loggers: list[Logger] = []
        self._lock = _locked(path)

    @classmethod
    def create(cls, config: Config) -> "RunFolder":
        """Makes the folder of a new run, which did not exist before, and writes its configuration.

        Args:
            config: Resolved configuration of the run; `check_runs` has accepted its ``runs``.
        """
        folder = cls(_new_folder(Path(config.runs), config.recipe))
        _write_yaml(folder.path / "config.yaml", config.as_dict())
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Opens the folder of a run that goes on; writes nothing.

        Raises:
            UserError: ``path`` is no folder of a run, or another process is writing into it.
        """
        if not (path / "config.yaml").is_file():
            raise UserError(
                f"{path}: not the folder of a run, it has no config.yaml; --resume auto finds the "
                "newest one"
            )
        return cls(path)

    def log_to(self, loggers: "list[Logger]") -> None:
        """Sends the epochs from now on to these; `close` closes them."""
        self._loggers = list(loggers)

    def log_epoch(
        self, record: EpochRecord, histograms: "dict[str, Histogram] | None" = None
    ) -> None:
        """Passes an epoch on to every logger.

        Args:
            record: The epoch.
            histograms: Distributions after it, each under its name.
        """
        for logger in self._loggers:
            logger.epoch(record, histograms or {})

    def save_weights(self, method: str, model: nn.Module) -> None:
        """Writes the weights under the model's own names."""
        from safetensors.torch import save

        weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
        with replacing(self.path / f"{method}.safetensors") as fresh:
            # Not save_file: its error for a full disk is no OSError.
            fresh.write_bytes(save(weights))

    def save_broken(self, broken: BrokenSamples) -> None:
        """Writes the list of the training samples that gave no image, if there are any."""
        if broken.reasons:
            rows = [(sample, *broken.reasons[sample]) for sample in sorted(broken.reasons)]
            path = self.path / "broken.csv"
            with writing(path):
                write_exclusions(path, rows)

    def finish(self, summary: dict[str, Any], records: list[EpochRecord]) -> None:
        """Writes plot and summary, then moves ``latest`` to this folder."""
        self.close()
        plot_records(records, self.path / "metrics.png")
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        with replacing(self.path / "summary.json") as fresh:
            fresh.write_text(text, encoding="utf-8")
        _move_link(self.path.parent / "latest", self.path.name)

    def close(self) -> None:
        """Closes the loggers and lets go of the folder; a second time it does nothing."""
        self._lock.close()
        loggers, self._loggers = self._loggers, []
        with contextlib.ExitStack() as stack:  # closes the others also where one fails
            for logger in loggers:
                stack.callback(logger.close)


def is_finished(path: Path) -> bool:
    """Whether the run of that folder came to its end."""
    return (path / "summary.json").is_file()


def find_runs(runs: Path) -> list[Path]:
    """Folders of the runs in a folder, the newest first by the time in their names.

    Folders that were renamed, so that nobody knows their time, come last. Links are left out.
    """
    if not runs.is_dir():
        return []
    # Not Path.is_file, which raises for a folder of somebody else.
    found = (p for p in runs.iterdir() if not p.is_symlink() and os.path.isfile(p / "config.yaml"))
    return sorted(found, key=_age_key, reverse=True)


def _age_key(path: Path) -> tuple[str, int, str]:
    # As `_new_folder` names them: "-2" follows the one without a number, "-10" follows "-9".
    match = re.fullmatch(r"(\d{8}-\d{6})-.*?(?:-(\d+))?", path.name)
    if match is None:
        return "", 0, path.name
    return match[1], int(match[2] or 1), path.name


def check_runs(runs: str) -> None:
    """Raises `UserError` where run folders cannot be made, before any time is spent on training.

    Nothing is left behind, not even ``runs`` itself.
    """
    path = Path(runs)
    # Of os.path: the methods of Path raise where a folder on the way may not be read.
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UserError(f"--runs {runs}: is not a folder; pass another one")
    latest = path / "latest"
    if os.path.exists(latest) and not os.path.islink(latest):
        raise UserError(f"{latest}: must be free for the link to the last run; move it away")
    parent = next(p for p in (path, *path.absolute().parents) if os.path.exists(p))
    try:
        # Tried out: a read-only disk or /proc tells of it only then.
        os.rmdir(tempfile.mkdtemp(prefix=".alr_fast-", dir=parent))
    except OSError as error:
        raise UserError(
            f"--runs {runs}: cannot be written ({error.strerror or error}); pass another folder"
        ) from error


def _new_folder(runs: Path, recipe: str) -> Path:
    stem = time.strftime("%Y%m%d-%H%M%S") + f"-{recipe}"
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--runs {runs}: {error.strerror or error}; pass another folder") from error
    number = 1
    while True:
        path = runs / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()  # fails where it exists: a run never writes into another one's folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(
                f"--runs {runs}: {error.strerror or error}; pass another folder"
            ) from error
        else:
            return path


def _locked(path: Path) -> IO:
    # Of this process alone: workers forked from it do not keep the lock when it is killed.
    with writing(path / LOCK):
        file = (path / LOCK).open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(
            f"{path}: another process is still training there; stop it first, or leave --resume "
            "out to start a new run"
        ) from error
    except OSError:
        pass  # a file system without locks
    return file


def _move_link(link: Path, target: str) -> None:
    # A rename replaces the old link in one step: at no moment is there none.
    fresh = link.with_name(f".{link.name}-{os.getpid()}")
    with writing(link):
        fresh.symlink_to(target)
        os.replace(fresh, link)


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    import yaml

    with replacing(path) as fresh:
        fresh.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


CHECKPOINTS = "checkpoints"  # folder in the folder of a run

CONFIG = "config.yaml"


def read_config(run: Path) -> dict[str, Any]:
    """The options of a run; a `UserError` without a way out where they cannot be read."""
    path = run / CONFIG
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: cannot be read (no options in it)")
    return content
