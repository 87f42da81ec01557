"""Whether CUDA kernels are built, with toolkits of all kinds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.source_tree import ROOT, environment


def configure(tmp_path, *options, nvcc=None, compiles=False, torch_cuda="'13.2'", **variables):
    """Configures the project with a fake torch, and with a fake nvcc.

    Args:
        nvcc: What it prints as its version.
        compiles: Whether it compiles; otherwise it says that it does not know an architecture.
    """
    tools = {name: shutil.which(name, path=tool_path()) for name in ("cmake", "ninja", "c++")}
    stub = tmp_path / "stub"
    (stub / "torch").mkdir(parents=True)
    (stub / "torch" / "__init__.py").write_text(
        f"__version__ = '2.15.0'\nclass version:\n    cuda = {torch_cuda}\n"
    )
    (stub / "pybind11.py").write_text("def get_cmake_dir():\n    return 'nowhere'\n")
    (tmp_path / "bin").mkdir()
    if nvcc is not None:
        script = tmp_path / "bin" / "nvcc"
        script.write_text(
            f"#!/bin/sh\n[ \"$1\" = --version ] && echo '{nvcc}' && exit\n"
            "echo \"nvcc fatal   : Unsupported gpu architecture 'compute_100'\" >&2\n"
            f"exit {0 if compiles else 1}\n"
        )
        script.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{tool_path()}"
    return subprocess.run(
        [
            tools["cmake"],
            *("-G", "Ninja", "-S", ROOT, "-B", tmp_path / "build"),
            f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}",
            f"-DCMAKE_CXX_COMPILER={tools['c++']}",
            f"-DPython_EXECUTABLE={sys.executable}",
            # PATH is tmp_path alone, so that no toolkit of this machine is found.
            f"-DCMAKE_FIND_ROOT_PATH={tmp_path}",
            "-DCMAKE_FIND_ROOT_PATH_MODE_PROGRAM=ONLY",
            "-DCMAKE_CXX_COMPILER_WORKS=1",
            "-DALR_FAST_TESTS=OFF",
            *options,
        ],
        env=environment(PYTHONPATH=str(stub), PATH=path, **variables),
        capture_output=True,
        text=True,
    )


def tool_path():
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


NVCC_11 = "Cuda compilation tools, release 11.8, V11.8.89"

NVCC_13 = NVCC_11.replace("11.8", "13.2")
OTHER_MAJOR = "nvcc is of CUDA 11.8, torch of 13.2"
TOO_OLD = "nvcc of CUDA 13.2 does not compile: nvcc fatal : Unsupported gpu architecture"

# Machine, option, what an error says.
FAULTS = {
    "no nvcc": (
        dict(nvcc=None),
        "-DALR_FAST_CUDA=1",
        "ALR_FAST_CUDA=1, but there is no nvcc: install the CUDA toolkit 13 and put nvcc on PATH",
    ),
    "another major version": (
        dict(nvcc=NVCC_11),
        "-DALR_FAST_CUDA=1",
        f"ALR_FAST_CUDA=1, but {OTHER_MAJOR}: install the CUDA toolkit 13 and set CUDA_HOME to it",
    ),
    "broken nvcc": (
        dict(nvcc="not found: libcuda"),
        "-DALR_FAST_CUDA=1",
        "nvcc does not run: install the CUDA toolkit 13",
    ),
    "nvcc too old for an architecture": (
        dict(nvcc=NVCC_13),
        "-DALR_FAST_CUDA=1",
        f"ALR_FAST_CUDA=1, but {TOO_OLD}",
    ),
    "torch without CUDA": (
        dict(nvcc=NVCC_11, torch_cuda=None),
        "-DALR_FAST_CUDA=1",
        "ALR_FAST_CUDA=1, but torch 2.15.0 has no CUDA: install a CUDA build of torch",
    ),
    "not a choice": (dict(), "-DALR_FAST_CUDA=maybe", "ALR_FAST_CUDA=maybe: it is auto, 1 or 0"),
    "not an architecture": (
        dict(nvcc=NVCC_13),
        "-DALR_FAST_CUDA_ARCH_LIST=9.0;hopper",
        "TORCH_CUDA_ARCH_LIST has 'hopper': give numbers such as 9.0 or 10.0+PTX",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_clear_error(tmp_path, fault):
    machine, option, message = FAULTS[fault]
    done = configure(tmp_path, option, **machine)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())  # cmake wraps lines
    assert done.stderr.count("CMake Error") == 1
    assert "CMake Warning" not in done.stderr


# Machine, why there are no CUDA kernels.
LEFT_OUT = {
    "no nvcc": (dict(nvcc=None), "there is no nvcc"),
    "another major version": (dict(nvcc=NVCC_11), OTHER_MAJOR),
    "broken nvcc": (dict(nvcc="not found: libcuda"), "nvcc does not run"),
    "nvcc too old for an architecture": (dict(nvcc=NVCC_13), TOO_OLD),
    "torch without CUDA": (dict(nvcc=NVCC_13, torch_cuda=None), "torch 2.15.0 has no CUDA"),
}


@pytest.mark.parametrize("machine", LEFT_OUT)
def test_without_being_asked_for_they_are_left_out_and_that_is_said_once(tmp_path, machine):
    facts, reason = LEFT_OUT[machine]
    done = configure(tmp_path, "-DALR_FAST_CUDA=auto", "-DALR_FAST_PYTHON=OFF", **facts)
    said = [line for line in done.stdout.splitlines() if "CUDA kernels not built" in line]
    assert len(said) == 1 and reason in " ".join(said[0].split())
    # What follows fails with this torch, of which there is nothing but a version.
    assert "CUDA" not in done.stderr
    flags = "".join(path.read_text() for path in tmp_path.glob("build/build.ninja"))
    assert not flags or "ALR_FAST_CUDA_REASON" in flags
