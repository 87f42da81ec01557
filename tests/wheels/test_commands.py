"""The commands around wheels: make, cibuildwheel, lending packages to another environment."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = pytest.importorskip("tomli")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CIBUILDWHEEL = PROJECT["tool"]["cibuildwheel"]


def planned(*arguments):
    own = re.compile("MAKE|^(ARGS|TORCH)$")  # of the make that may run the tests
    environment = {name: value for name, value in os.environ.items() if not own.search(name)}
    command = ("make", "-n", "VENV=no-such-folder", *arguments)
    return subprocess.check_output(command, cwd=ROOT, env=environment, text=True)


def test_make_checks_the_wheel_that_it_builds():
    commands = planned("wheel-check", "TORCH=2.13.0")
    build = commands.index("scripts/build_wheel.sh no-such-folder/bin")
    check = commands.index("scripts/check_wheel.sh no-such-folder/bin 2.13.0")
    assert build < check
    assert "check_wheel" not in planned("wheel")


def test_ci_checks_a_wheel_without_cuda_kernels():
    assert "ALR_FAST_CUDA=0 make wheel-check" in (ROOT / ".ci/run").read_text().splitlines()


def test_both_ways_to_a_wheel_leave_the_same_libraries_outside():
    def excluded(text):
        return re.findall(r"--exclude '(.*?)'", text)

    here = excluded((ROOT / "scripts/build_wheel.sh").read_text())
    assert here == excluded(CIBUILDWHEEL["repair-wheel-command"])
    assert "libtorch*" in here


def test_wheels_are_built_from_the_oldest_python_on():
    versions = [
        int(name.removeprefix("cp3").removesuffix("-*")) for name in CIBUILDWHEEL["build"].split()
    ]
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=3.")
    assert versions == list(range(int(oldest), 14 + 1))
    oldest_torch = next(d for d in PROJECT["project"]["dependencies"] if d.startswith("torch"))
    script = (ROOT / CIBUILDWHEEL["before-build"]).read_text()
    assert oldest_torch.replace(">=", "==") + ".*" in script


def lend(environment, *names):
    return subprocess.run(
        [sys.executable, ROOT / "scripts/lend_packages.py", environment, *names],
        capture_output=True,
        text=True,
    )


def test_an_environment_gets_the_packages_that_it_is_lent_and_no_others(tmp_path):
    create = [sys.executable, "-m", "venv", "--without-pip", tmp_path]
    subprocess.run(create, check=True)
    done = lend(tmp_path, "numpy", "hypothesis")  # which needs sortedcontainers
    assert done.returncode == 0, done.stderr
    code = (
        "import hypothesis, numpy, sortedcontainers, sys\n"
        "from importlib.metadata import version\n"
        "from importlib.util import find_spec\n"
        "print(numpy.__version__ == version('numpy'), hypothesis.__file__.startswith(sys.prefix))\n"
        "print(find_spec('torch'), find_spec('alr_fast'))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [tmp_path / "bin/python", "-c", code]
    printed = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    assert printed == "True True\nNone None\n"


def test_a_package_that_is_not_here_cannot_be_lent(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    done = lend(tmp_path, "no-such-package>=2")
    assert done.returncode == 1
    message = "error: no-such-package is not installed: pip install no-such-package>=2\n"
    assert done.stderr == message
