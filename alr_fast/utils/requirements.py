"""Packages that are not installed, and the command that installs them.

The extras of this package are of no use in a message: it may have been installed from a file, and
is on no index.
"""

import importlib.util
import re
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version

from alr_fast.utils.shell import python_command, quoted

# The package of a module, where its name is another one.
_PACKAGES = {
    "PIL": "pillow",
    "docstring_parser": "jsonargparse",  # by its extra
    "markupsafe": "jinja2",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def missing_modules(modules: Iterable[str]) -> list[str]:
    """Those of the modules that are not installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def install_command(
    modules: Iterable[str], extra: str | None = None, *, complete: bool = False
) -> str:
    """The command that installs what provides modules, in the versions that this package needs.

    Args:
        modules: Their names.
        extra: Extra of this package whose versions are meant; None for any.
        complete: Install all other missing packages of the extra, too.
    """
    required = {package: text for package, text, of in _requirements() if extra in (None, of)}
    packages = dict.fromkeys(_PACKAGES.get(name, name) for name in modules)
    if complete:
        packages |= {package: None for package in required if not is_installed(package)}
    return pip_install(*(required.get(package, package) for package in packages))


def pip_install(*words: str) -> str:
    """The command that installs into this environment, with uv where there is no pip."""
    if not is_installed("pip") and shutil.which("uv"):  # environments of uv
        program = ("uv", "pip", "install", "--python", sys.executable)
        return " ".join(map(quoted, (*program, *words)))
    return python_command("pip", "install", *words)


def extra_of(module: str) -> str | None:
    """The first extra of this package with a module; None if no extra has it."""
    package = _PACKAGES.get(module, module)
    return next((extra for name, _, extra in _requirements() if name == package and extra), None)


def _requirements() -> list[tuple[str, str, str]]:
    """For each requirement of this package: name, text without its condition, and extra."""
    found = []
    try:
        lines = requires("alr_fast") or []
    except PackageNotFoundError:  # a source folder that is not installed
        lines = []
    for line in lines:
        text, _, condition = line.partition(";")
        name = re.split(r"[^\w.-]", text, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", condition)
        if name.lower().replace("-", "_") != "alr_fast":  # extras of which an extra consists
            found.append((name.lower(), text.strip(), extra[1] if extra else ""))
    return found


def is_installed(package: str) -> bool:
    """Whether a package is installed. Not by `find_spec`: for pip, setuptools takes it as the sign
    of an installation, and torch.compile fails afterwards."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def installed_packages() -> str:
    """Names and versions of the installed packages that this one uses, but torch."""
    used = {name for name, _, extra in _requirements() if extra not in ("bench", "test")}
    found = {name: version(name) for name in sorted(used - {"torch"}) if is_installed(name)}
    return ", ".join(f"{name} {number}" for name, number in found.items())
