"""The source package holds what it takes to build and test the package, and nothing else."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Tracked files that stay out: they serve who changes the package, not who builds it.
LEFT_OUT = (
    ".ci/", ".clang-format", ".github/", ".gitignore", ".pre-commit-config.yaml", "Makefile",
    "benchmarks/", "docs/api/", "docs/assets/", "docs/overrides/", "examples/", "mkdocs.yml",
    "scripts/", "tests/",
)  # fmt: skip
EXCEPT = (
    "scripts/ctest.sh", "tests/conftest.py", "tests/cpp/", "tests/helpers/__init__.py",
    "tests/helpers/compare.py", "tests/helpers/problems.py", "tests/operators/",
)  # fmt: skip
GENERATED = {"PKG-INFO", "setup.cfg"}

# What lies about in a folder that has been worked in.
LITTER = (
    "alr_fast/_ops.so", "alr_fast/_C.cpython-311-x86_64-linux-gnu.so", "alr_fast/_not_compiled.txt",
    "alr_fast/__pycache__/bank.cpython-311.pyc", "build/cmake/build.ninja", "csrc/ops.so",
    "dist/alr_fast-0.1.0-py3-none-any.whl", "docs/.cache/page.pyc", "runs/2026/config.yaml",
    "tests/operators/__pycache__/test_isa.cpython-311.pyc", "tests/test_something.py",
    "wheelhouse/alr_fast.whl",
)  # fmt: skip


def tracked():
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """Names of the files of the source package, built in a folder with litter."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    for name in LITTER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    # Of an earlier build: setuptools takes files from this list as well.
    (folder / "alr_fast.egg-info").mkdir()
    (folder / "alr_fast.egg-info/SOURCES.txt").write_text("\n".join(LITTER))
    done = subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", "out", "."],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    (archive,) = (folder / "out").iterdir()
    with tarfile.open(archive) as files:
        return {member.name.split("/", 1)[1] for member in files if member.isfile()}


def test_the_source_package_holds_the_tracked_files_and_no_others(contents):
    expected = {
        name for name in tracked() if not name.startswith(LEFT_OUT) or name.startswith(EXCEPT)
    }
    own = {name for name in contents if name not in GENERATED and ".egg-info/" not in name}
    assert own - expected == set()
    assert expected - own == set()


@pytest.mark.parametrize(
    "name",
    ["CMakeLists.txt", "cmake/cuda.cmake", "csrc/ops.cpp", "csrc/cuda/row_loss.cuh", "LICENSE",
     "README.md", "CHANGELOG.md", "docs/build.md", "tests/operators/test_contract.py",
     "alr_fast/training/config/recipes/digits.yaml", "alr_fast/labels/report/templates/page.html"],
)  # fmt: skip
def test_what_a_build_and_its_tests_need_is_there(contents, name):
    assert name in contents
