"""Links packages of this environment, with all that they need, into another one of the same Python.

    python scripts/lend_packages.py ENVIRONMENT torch pytest

The other environment then has these packages and no others, and nothing is copied or downloaded.
"""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def with_dependencies(names: list[str]) -> set[str]:
    """The installed distributions of these names, and those that they require."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in found:
            continue
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            raise SystemExit(f"error: {name} is not installed: pip install {wanted}") from None
        found.add(name)
        for requirement in map(Requirement, needs):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in ("", *wanted.extras)):
                waiting.append(requirement)
    return found


def lend(name: str, target: Path) -> None:
    """Links the files and folders of a distribution into the folder `target`."""
    installed = distribution(name)
    for top in {file.parts[0] for file in installed.files or []}:
        link = target / top
        if top not in ("..", "__pycache__") and not link.exists():
            link.symlink_to(Path(str(installed.locate_file(top))))


if __name__ == "__main__":
    interpreter = Path(sys.argv[1], "bin/python")
    command = [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.check_output(command, text=True).strip())
    for needed in sorted(with_dependencies(sys.argv[2:])):
        lend(needed, packages)
