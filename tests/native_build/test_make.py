"""The Makefile, and its check of machine and environment."""

import os
import shutil
import subprocess
import sys
import venv

import pytest

from helpers.source_tree import ROOT, environment


def planned(*arguments):
    """The commands that make would run, in a folder where nothing is installed."""
    command = ("make", "-n", "VENV=no-such-folder", *arguments)
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", ["test", "test-all"])
def test_make_test_runs_only_what_it_is_asked_for(target):
    asked = planned(target, "ARGS=tests/losses -x")
    assert "pytest tests/losses -x" in asked.replace('-m "slow or not slow" ', "")
    assert "ctest" not in asked and "loadfile" not in asked
    assert "scripts/ctest.sh" in planned(target)
    assert " -n 2 --dist loadfile" in planned(target)
    assert " -n 8 --dist loadfile" in planned(target, "WORKERS=8")


def test_arguments_override_the_choice_of_all_tests():
    assert 'pytest -m "slow or not slow" -m faults' in planned("test-all", "ARGS=-m faults")


def test_make_test_says_how_long_it_takes():
    assert "a quarter of an hour" in planned("test")
    assert "a quarter of an hour" not in planned("test", "ARGS=tests/losses")


# A fake environment, whose Python writes down what it is asked for.

FAKE_PYTHON = """#!/bin/sh
case "$*" in *"-m pip install"*) echo "$PIP_TARGET|$ALR_FAST_NATIVE|$*" >> "$LOG" ;; esac
"""


@pytest.fixture
def make(tmp_path):
    """Runs make with a fake environment; returns what was installed by pip, call by call."""
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    log = tmp_path / "log"

    def run(*arguments, **variables):
        log.write_text("")
        done = subprocess.run(
            ("make", f"VENV={tmp_path / 'env'}", *arguments),
            cwd=ROOT,
            env=environment(LOG=str(log), **variables),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return log.read_text().splitlines()

    return run


def test_the_package_is_built_once_for_each_choice(make):
    packages, package = make("build")
    assert "--requirement" in packages and package.endswith("--no-deps --editable .")
    assert make("build") == []
    (again,) = make("build", "ALR_FAST_CUDA=0")
    assert again.endswith("--editable .")
    assert make("build", "ALR_FAST_CUDA=0") == []
    assert len(make("build")) == 1  # the first choice, whose build was replaced
    assert len(make("build", CXXFLAGS="-O1 '-DX=\"a b\"'")) == 1


def test_a_failed_build_is_an_error_unless_the_user_decides(make):
    assert make("build")[-1].split("|")[1] == "1"
    assert make("build", "ALR_FAST_NATIVE=0")[-1].split("|")[1] == "0"


def test_where_the_user_lets_pip_install_does_not_matter(make):
    assert [line.split("|")[0] for line in make("build", PIP_TARGET="/elsewhere")] == ["", ""]


def test_without_a_native_library_there_are_no_tests_in_cpp():
    assert "ctest.sh" not in planned("test", "ALR_FAST_NATIVE=0")


# scripts/check_tools.sh


def check_tools(folder, *, path=None, **variables):
    """Runs the check in a folder; returns the finished process."""
    path = os.environ["PATH"] if path is None else path
    return subprocess.run(
        ["/bin/sh", ROOT / "scripts" / "check_tools.sh", sys.executable, ".venv"],
        cwd=folder,
        env=environment(PATH=str(path), **variables),
        capture_output=True,
        text=True,
    )


def test_an_environment_without_pip_gets_one(tmp_path):
    venv.create(tmp_path / ".venv", with_pip=False)
    done = check_tools(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    python = tmp_path / ".venv" / "bin" / "python"
    assert subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0


def test_an_environment_that_has_moved(tmp_path):
    before = tmp_path / "before"
    venv.create(before / ".venv", with_pip=True)
    assert check_tools(before).returncode == 0
    before.rename(tmp_path / "now")
    done = check_tools(tmp_path / "now")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert ".venv was created in another folder" in line and "make distclean removes it" in line


@pytest.mark.parametrize(
    "shebang", ["#!/else/bin/python\n", """#!/bin/sh\n'''exec' "/e l/bin/python3" "$0" "$@"\n"""]
)
def test_an_environment_that_has_moved_and_has_no_program_pip(tmp_path, shebang):
    venv.create(tmp_path / ".venv", with_pip=False)
    (tmp_path / ".venv" / "bin" / "alr-fast").write_text(shebang)
    (line,) = check_tools(tmp_path).stderr.splitlines()
    assert ".venv was created in another folder" in line


def test_an_environment_that_may_be_moved(tmp_path):
    venv.create(tmp_path / ".venv", with_pip=False)
    relocatable = """#!/bin/sh\n'''exec' "$(dirname -- "$(realpath -- "$0")")"/'python' "$0"\n"""
    (tmp_path / ".venv" / "bin" / "alr-fast").write_text(relocatable)
    done = check_tools(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_environment_whose_python_is_gone(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(tmp_path / "gone")
    (line,) = check_tools(tmp_path).stderr.splitlines()
    assert ".venv/bin/python does not run" in line and "make distclean removes it" in line


def test_distclean_removes_the_environment(tmp_path):
    plan = planned("distclean")
    assert "rm -rf no-such-folder" in plan and "alr_fast/_not_compiled.txt" in plan


def test_no_compiler(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "head", "grep"):
        (programs / name).symlink_to(shutil.which(name))
    (line,) = check_tools(tmp_path, path=programs).stderr.splitlines()
    assert "no C++ compiler (c++)" in line and "make ALR_FAST_NATIVE=0" in line
    done = check_tools(tmp_path, path=programs, ALR_FAST_NATIVE="0")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_compiler_with_arguments(tmp_path):
    assert check_tools(tmp_path, CXX="c++ -g0").returncode == 0
    (line,) = check_tools(tmp_path, CXX="c++ -no-such-option").stderr.splitlines()
    assert "does not compile C++17" in line


@pytest.mark.parametrize("name", ["a;b", "a:b", "a$b", 'a"b', "a'b", "a`b", "a\\b"])
def test_names_of_folders_that_tools_do_not_stand(tmp_path, name):
    (tmp_path / name).mkdir()
    (line,) = check_tools(tmp_path / name).stderr.splitlines()
    assert "rename it" in line


def test_other_names_of_folders(tmp_path):
    (tmp_path / "ein Ordner (é)").mkdir()
    assert check_tools(tmp_path / "ein Ordner (é)").returncode == 0
