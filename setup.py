"""Runs the CMake build of the native parts; everything else is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Builds alr_fast/{_C,_ops,_cuda}: see CMakeLists.txt, the one description of the build."""

    def run(self) -> None:
        try:
            import torch  # noqa: F401
        except ImportError:
            raise SystemExit(
                "error: building alr_fast needs the torch that it will run with: run `pip install "
                "torch`, then `pip install --no-build-isolation .` (with setuptools, ninja, cmake "
                "and pybind11 installed)"
            ) from None
        in_place = self.inplace or getattr(self, "editable_mode", False)
        package = (ROOT if in_place else Path(self.build_lib).resolve()) / "alr_fast"
        tag = f"{sys.implementation.cache_tag}-{os.uname().machine}"
        build = ROOT / "build" / f"cmake-{tag}"
        configure = [
            "cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DALR_FAST_OUTPUT_DIR={package}",
            "-DALR_FAST_PYTHON=ON",
            f"-DALR_FAST_CUDA={os.environ.get('ALR_FAST_CUDA', 'auto')}",
            f"-DALR_FAST_CUDA_ARCH_LIST={os.environ.get('TORCH_CUDA_ARCH_LIST', '')}",
            f"-DALR_FAST_TESTS={os.environ.get('ALR_FAST_TESTS', 'OFF')}",
        ]  # fmt: skip
        # cmake and ninja may be installed beside this interpreter without being on PATH.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        try:
            for command in (configure, ["cmake", "--build", str(build)]):
                subprocess.run(command, check=True, env={**os.environ, "PATH": path})
        except FileNotFoundError:
            raise SystemExit("error: cmake was not found: `pip install cmake ninja`") from None
        except subprocess.CalledProcessError:
            raise SystemExit(
                "error: the native build failed; see its first message above"
            ) from None


# One entry for all native files, so that the wheel is tagged with platform and interpreter.
setup(ext_modules=[Extension("alr_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
