"""setup.py: the choice by ALR_FAST_NATIVE, builds that fail, builds that have moved."""

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from alr_fast import _installed
from helpers.source_tree import copy_source, python

NO_TORCH = "raise ImportError('none here')\n"


@pytest.fixture
def source(tmp_path):
    """A copy of the source, which has never been built."""
    return copy_source(tmp_path / "user's source")


@pytest.fixture
def no_torch(tmp_path):
    """The variables of an environment without torch, such as that of pip's build isolation."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "torch.py").write_text(NO_TORCH)
    return {"PYTHONPATH": str(tmp_path / "without")}


@pytest.fixture
def broken_compiler(tmp_path):
    """The variables for a compiler that fails."""
    compiler = tmp_path / "broken-c++"
    compiler.write_text("#!/bin/sh\necho 'broken-c++: fatal error: out of order' >&2\nexit 1\n")
    compiler.chmod(0o755)
    return {"CXX": str(compiler), "ALR_FAST_CUDA": "0"}


def build_wheel(source, **variables):
    """Builds a wheel; returns the finished process, its name and its files (None if it failed)."""
    done = python("setup.py", "-q", "bdist_wheel", cwd=source, **variables)
    wheels = list((source / "dist").glob("*.whl")) if (source / "dist").exists() else []
    if not wheels:
        return done, None, None
    with zipfile.ZipFile(wheels[0]) as archive:
        return done, wheels[0].name, {name: archive.read(name) for name in archive.namelist()}


def one_message(done, kind):
    assert "Traceback" not in done.stderr
    begin = {"error": "error: ", "warning": "warning: alr_fast"}[kind]  # others are of setuptools
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(begin)]
    return line


def test_without_a_native_library_on_request(source):
    done, name, files = build_wheel(source, ALR_FAST_NATIVE="0")
    assert done.returncode == 0, done.stderr
    assert name.endswith("-py3-none-any.whl")
    assert files["alr_fast/_not_compiled.txt"] == b"ALR_FAST_NATIVE was 0\n"
    assert not [file for file in files if file.endswith((".so", ".pyd"))]
    assert {"alr_fast/__init__.py", "alr_fast/py.typed"} <= set(files)


def test_a_build_that_fails_leaves_a_package_that_says_why(source, broken_compiler):
    done, name, files = build_wheel(source, **broken_compiler)
    assert done.returncode == 0, done.stderr
    warning = one_message(done, "warning")
    reason = files["alr_fast/_not_compiled.txt"].decode().strip()
    assert name.endswith("-py3-none-any.whl")
    assert reason.startswith("the native build failed: ") and "C++ compiler" in reason
    assert reason in warning
    remedy = "ALR_FAST_NATIVE=1 pip install --no-build-isolation --no-deps --force-reinstall"
    assert f"`{remedy} {shlex.quote(str(source))}`" in warning


def test_a_source_package_is_not_taken_from_the_cache_of_pip(source, broken_compiler):
    (source / "PKG-INFO").write_text("")
    done = python("setup.py", "-q", "build", cwd=source, **broken_compiler)
    remedy = r"--force-reinstall --no-cache-dir alr_fast-[\d.]+\.tar\.gz`"
    assert re.search(remedy, one_message(done, "warning"))


def test_a_build_that_fails_is_an_error_on_request(source, broken_compiler):
    done, name, _ = build_wheel(source, ALR_FAST_NATIVE="1", **broken_compiler)
    assert done.returncode != 0 and name is None
    assert one_message(done, "error").startswith("error: the native build failed: ")
    assert not (source / "alr_fast" / "_not_compiled.txt").exists()


def test_build_isolation_hides_torch(source, no_torch):
    done, name, files = build_wheel(source, **no_torch)
    assert done.returncode == 0 and name.endswith("-py3-none-any.whl")
    reason = files["alr_fast/_not_compiled.txt"].decode().strip()
    assert reason == (
        "the build finds no torch (none here; pip's build isolation hides an installed one)"
    )
    assert reason in one_message(done, "warning")


def test_build_isolation_is_an_error_on_request(source, no_torch):
    done, _, _ = build_wheel(source, ALR_FAST_NATIVE="1", **no_torch)
    assert done.returncode != 0
    error = one_message(done, "error")
    assert "pip's build isolation hides an installed one" in error
    assert "pip install --no-build-isolation" in error


def test_another_choice_is_refused(source):
    done, name, _ = build_wheel(source, ALR_FAST_NATIVE="yes")
    assert done.returncode != 0 and name is None
    assert one_message(done, "error") == "error: ALR_FAST_NATIVE=yes: it is 0, 1 or unset"


def test_a_build_in_place_replaces_the_earlier_one(source):
    package = source / "alr_fast"
    for name in ("_ops.so", "_cuda.so", "_C.cpython-311-x86_64-linux-gnu.so"):
        (package / name).write_bytes(b"of an earlier build")
    done = python("setup.py", "-q", "build_ext", "--inplace", cwd=source, ALR_FAST_NATIVE="0")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in package.glob("_*.so")] == []
    assert (package / "_not_compiled.txt").exists()


BUILD_THAT_SUCCEEDS = """
import setuptools
setuptools.setup = lambda **options: None
names = {"__file__": "setup.py", "__name__": "setup"}
exec(open("setup.py", encoding="utf-8").read(), names)
names["build_native"] = lambda output: (output / "_ops.so").touch()
command = names["CMakeBuild"](setuptools.Distribution({"ext_modules": []}))
command.ensure_finalized()
command.inplace = True
command.run()
"""


NODE = """
import setuptools
from pathlib import Path
setuptools.setup = lambda **options: None
names = {"__file__": "setup.py", "__name__": "setup"}
exec(open("setup.py", encoding="utf-8").read(), names)
def run(*command):
    print("built:", command[-1])
    if command[-1] == "_autograd":
        raise names["BuildError"]("no such header")
names["run"] = run
names["build_native"](Path("alr_fast"))
"""


@pytest.mark.parametrize("wanted", ["", "0"])
def test_a_node_that_cannot_be_built_is_left_out(source, wanted):
    package = source / "alr_fast"
    old = package / f"_autograd{sysconfig.get_config_var('EXT_SUFFIX')}"
    of_another_python = package / "_autograd.cpython-399-x86_64-linux-gnu.so"
    for file in (old, of_another_python):
        file.write_bytes(b"of an earlier build")
    done = python("-c", NODE, cwd=source, ALR_FAST_AUTOGRAD=wanted)
    assert done.returncode == 0, done.stderr
    assert not old.exists() and of_another_python.exists()
    tried = "built: _autograd" in done.stdout
    assert tried == (wanted != "0")
    if not tried:
        assert done.stderr == ""
        return
    warning = one_message(done, "warning")
    assert "without its autograd node in C++ (no such header)" in warning
    assert "ALR_FAST_AUTOGRAD=0" in warning


def test_setuptools_that_is_too_old(source):
    code = "import setuptools\nsetuptools.__version__ = '65.5.0'\n"
    code += "exec(open('setup.py', encoding='utf-8').read())"
    done = python("-c", code, cwd=source, ALR_FAST_NATIVE="0")
    assert done.returncode == 1
    assert done.stderr == (
        "error: setuptools 65.5.0 is too old to build alr_fast: `pip install 'setuptools>=77'`\n"
    )
    requirement = f'"setuptools>={_installed._BUILD_PACKAGES["setuptools"]}"'
    assert requirement == '"setuptools>=77"'
    assert requirement in (source / "pyproject.toml").read_text(encoding="utf-8")


def test_a_build_that_succeeds_removes_the_reason_of_one_that_failed(source):
    record = source / "alr_fast" / "_not_compiled.txt"
    record.write_text("ALR_FAST_NATIVE was 0\n")  # a wheel with this file is one without a library
    done = python("-c", BUILD_THAT_SUCCEEDS, cwd=source)
    assert done.returncode == 0, done.stderr
    assert (source / "alr_fast" / "_ops.so").exists() and not record.exists()


def test_the_package_gives_the_reason_of_its_build(source, monkeypatch):
    python("setup.py", "-q", "build_ext", "--inplace", cwd=source, ALR_FAST_NATIVE="0")
    monkeypatch.setattr(_installed, "OPERATORS", source / "alr_fast" / "_ops.so")
    monkeypatch.setattr(_installed, "NOT_COMPILED", source / "alr_fast" / "_not_compiled.txt")
    assert "(ALR_FAST_NATIVE was 0)" in _installed.why_missing()


def test_a_build_folder_of_another_place_is_not_used(tmp_path, source, broken_compiler):
    python("setup.py", "-q", "build_ext", "--inplace", cwd=source, **broken_compiler)
    assert list(source.glob("build/cmake-*/CMakeCache.txt"))
    moved = source.rename(tmp_path / "moved to (é)")
    done = python("setup.py", "-q", "build_ext", "--inplace", cwd=moved, **broken_compiler)
    reason = (moved / "alr_fast" / "_not_compiled.txt").read_text()
    assert "C++ compiler" in reason  # the same failure, not one about the cache
    assert "different" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "variables",
    [{"CMAKE_GENERATOR": "Unix Makefiles"}, {"CMAKE_BUILD_TYPE": "Debug"}],
    ids=lambda variables: next(iter(variables)),
)
def test_choices_of_the_user_for_other_builds(source, broken_compiler, variables):
    python("setup.py", "-q", "build_ext", "--inplace", cwd=source, **broken_compiler, **variables)
    (cache,) = source.glob("build/cmake-*/CMakeCache.txt")
    text = cache.read_text()
    assert "CMAKE_GENERATOR:INTERNAL=Ninja" in text
    assert "CMAKE_BUILD_TYPE:STRING=Release" in text


@pytest.mark.slow
def test_builds_that_move_and_environments_side_by_side(tmp_path, source):
    """Real builds of the CPU kernels: in a folder with blanks, moved, and with another compiler."""
    source = source.rename(tmp_path / "mein Ordner (é)")

    def build(place, **variables):
        done = python(
            "setup.py", "-q", "build_ext", "--inplace", cwd=place,
            ALR_FAST_CUDA="0", ALR_FAST_NATIVE="1", **variables,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        info = python("-m", "alr_fast", "info", cwd=place, ALR_FAST_NATIVE="1")
        facts = dict(re.findall(r"^([\w ]+): +(.*)$", info.stdout, re.MULTILINE))
        assert info.returncode == 0 and facts["installed in"] == str(place / "alr_fast")
        assert facts["compiled library"] == "loaded"
        assert facts["CUDA kernels"] == "not built (ALR_FAST_CUDA was 0)"
        return facts

    build(source)
    moved = source.rename(tmp_path / "moved")
    build(moved, CXXFLAGS="-O2 -ffast-math")
    if shutil.which("clang++"):
        assert "Clang" in build(moved, CXX="clang++")["alr_fast"]
    # Another environment: its build has a folder of its own.
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", tmp_path / "env"],
        check=True,
    )
    own = [path.name for path in (moved / "build").glob("cmake-*")]
    packages = next(path for path in map(str, sys.path) if path.endswith("site-packages"))
    done = subprocess.run(
        [tmp_path / "env" / "bin" / "python", "setup.py", "-q", "build_ext", "--inplace"],
        cwd=moved,
        env={"PATH": "/usr/bin:/bin", "ALR_FAST_CUDA": "0", "PYTHONPATH": packages},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(list((moved / "build").glob("cmake-*"))) == len(own) + 1
