"""Runs the CMake build of the native parts; everything else is in pyproject.toml.

ALR_FAST_NATIVE=1 makes a failed build an error, 0 compiles nothing. Without it, a package whose
build fails is installed without the native library, and says why in `_not_compiled.txt`.
ALR_FAST_AUTOGRAD=0 leaves out the autograd node in C++, as wheels for every torch have to.
"""

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools

SETUPTOOLS = 77  # reads the licence of pyproject.toml; without build isolation nothing else checks
if int(setuptools.__version__.split(".")[0]) < SETUPTOOLS:
    raise SystemExit(
        f"error: setuptools {setuptools.__version__} is too old to build alr_fast: "
        f"`pip install 'setuptools>={SETUPTOOLS}'`"
    )

from setuptools import Extension, setup  # noqa: E402
from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402

ROOT = Path(__file__).parent.resolve()
RECORD = "_not_compiled.txt"


class BuildError(Exception):
    """Why there is no native library, in one line."""


def program(name: str, found_in: list[str]) -> str:
    """The path of cmake or ninja, which may be installed beside this interpreter only."""
    found = shutil.which(name, path=os.pathsep.join([*found_in, os.environ.get("PATH", "")]))
    if found is None:
        raise BuildError(f"{name} was not found: `pip install cmake ninja`")
    return found


def first_error(output: str) -> str:
    """The first message of cmake, a compiler or a linker that says what is wrong."""
    # CMake wraps its messages and ends them with an empty line.
    found = re.search(r"CMake Error(?: at .*:\n|: *)((?:.+\n?)+)", output) or re.search(
        r"^(.*(?:\b(?:error|fatal)\b\s*:|cannot find).*)$", output, re.MULTILINE
    )
    return " ".join(found[1].split()) if found else "see the output above"


def run(*command: str) -> None:
    """Runs a command and shows what it prints."""
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
            lines.append(line.decode(errors="replace"))
    if process.returncode:
        raise BuildError(f"the native build failed: {first_error(''.join(lines))}")


def build_native(output: Path) -> None:
    """Builds {_C,_ops,_cuda} in a folder: see CMakeLists.txt, the one description of the build."""
    try:
        import torch
    except ImportError as error:
        raise BuildError(
            f"the build finds no torch ({error}; pip's build isolation hides an installed one)"
        ) from None
    beside = str(Path(sys.executable).parent)
    # The program itself: the script of the package names an interpreter, which may have moved.
    package_of_cmake = importlib.util.find_spec("cmake")
    in_package = (
        [str(Path(package_of_cmake.origin).parent / "data/bin")] if package_of_cmake else []
    )
    cmake, ninja = program("cmake", [*in_package, beside]), program("ninja", [beside])
    # Environments side by side do not disturb each other.
    facts = f"{sys.prefix} {sys.version} {torch.__file__} {torch.__version__}"
    key = f"{sys.implementation.cache_tag}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
    folder = ROOT / "build" / f"cmake-{key}"
    run(
        # Afresh: a cache of another folder, compiler or flags is not used. What ninja has built by
        # the same commands stays.
        cmake, "--fresh", "-G", "Ninja", "-S", str(ROOT), "-B", str(folder),
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DALR_FAST_OUTPUT_DIR={output}",
        "-DALR_FAST_PYTHON=ON",
        f"-DALR_FAST_CUDA={os.environ.get('ALR_FAST_CUDA') or 'auto'}",
        f"-DALR_FAST_CUDA_ARCH_LIST={os.environ.get('TORCH_CUDA_ARCH_LIST', '')}",
        f"-DALR_FAST_TESTS={os.environ.get('ALR_FAST_TESTS', 'OFF')}",
    )  # fmt: skip
    # That of an earlier build, perhaps with another torch. Other Pythons have their own.
    (output / f"_autograd{sysconfig.get_config_var('EXT_SUFFIX')}").unlink(missing_ok=True)
    run(cmake, "--build", str(folder))
    build_node(cmake, folder)


def build_node(cmake: str, folder: Path) -> None:
    """Builds {_autograd} if that is possible; the package works without it.

    It uses the C++ interface of torch, which may change in its next version.
    """
    if os.environ.get("ALR_FAST_AUTOGRAD") == "0":
        return
    try:
        run(cmake, "--build", str(folder), "--target", "_autograd")
    except BuildError as error:
        print(
            f"warning: alr_fast is installed without its autograd node in C++ ({error}): small "
            "batches are slower; ALR_FAST_AUTOGRAD=0 leaves it out without this warning",
            file=sys.stderr,
        )


class CMakeBuild(build_ext):
    """The native library, or the record of why there is none."""

    def run(self) -> None:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        package = (ROOT if in_place else Path(self.build_lib).resolve()) / "alr_fast"
        choice = os.environ.get("ALR_FAST_NATIVE", "")
        if choice not in ("", "0", "1"):
            raise SystemExit(f"error: ALR_FAST_NATIVE={choice}: it is 0, 1 or unset")
        reason = "ALR_FAST_NATIVE was 0"
        if choice != "0":
            try:
                build_native(package)
                (package / RECORD).unlink(missing_ok=True)
                return
            except BuildError as error:
                reason = str(error)
        if choice == "1":
            raise SystemExit(f"error: {reason}; {self.remedy()}")
        for pattern in ("*.so", "*.pyd"):  # of an earlier build
            for file in package.glob(pattern):
                file.unlink()
        package.mkdir(parents=True, exist_ok=True)
        (package / RECORD).write_text(reason + "\n", encoding="utf-8")
        print(
            f"warning: alr_fast is installed without its native library: {reason}; {self.remedy()}",
            file=sys.stderr,
        )

    def remedy(self) -> str:
        """How to install the package with the native library."""
        source = shlex.quote(str(ROOT))
        if (ROOT / "PKG-INFO").exists():  # a source package, unpacked in a temporary folder
            # pip keeps the wheel that it builds of one; it would be installed again.
            source = f"--no-cache-dir {self.distribution.get_fullname()}.tar.gz"
        return (
            f"to compile it: `pip install torch 'setuptools>={SETUPTOOLS}' ninja cmake pybind11`, "
            "then `ALR_FAST_NATIVE=1 pip install --no-build-isolation --no-deps --force-reinstall "
            f"{source}`"
        )


class Wheel(bdist_wheel):
    """Tags a wheel without the native library for every platform."""

    def run(self) -> None:
        self.run_command("build")
        built = Path(self.get_finalized_command("build").build_lib) / "alr_fast"
        if (built / RECORD).exists():
            self.root_is_pure = True
            self.distribution.ext_modules = []  # with them, its files would be of a platform
        super().run()


# One entry for all native files, so that the wheel is tagged with platform and interpreter.
setup(
    ext_modules=[Extension("alr_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
)
