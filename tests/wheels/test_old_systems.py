"""The libraries run with the C and C++ runtime of manylinux_2_28 if linked with the stubs."""

import ctypes
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import alr_fast

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = sorted(Path(alr_fast.__file__).parent.glob("*.so"))

if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
    pytest.skip("wheels of manylinux are for systems with glibc", allow_module_level=True)
for tool in ("c++", "readelf", "nm", "ar"):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} not found", allow_module_level=True)

_SPEC = importlib.util.spec_from_file_location("link_stubs", ROOT / "scripts/link_stubs.py")
link_stubs = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = link_stubs
_SPEC.loader.exec_module(link_stubs)

# Each line uses a symbol that this system may have in a younger version.
PROGRAM = r"""
#include <dlfcn.h>
#include <semaphore.h>

#include <cmath>
#include <cstring>
#include <exception>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <thread>

extern "C" double use_all(double value, char* text) {
  auto shared = std::make_shared<double>(value);       // __libc_single_threaded
  std::exception_ptr error;
  std::thread([&, shared] {                            // std::thread
    std::stringstream stream;                          // its default constructor
    stream << std::exp(*shared) << ' ' << std::log(*shared) << ' ' << std::pow(*shared, 3);
    try {
      throw std::runtime_error(stream.str());
    } catch (...) {
      error = std::current_exception();                // exception_ptr
    }
  }).join();
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& caught) {
    std::strcpy(text, caught.what());
  }
  sem_t semaphore;
  sem_init(&semaphore, 0, 1);
  return std::uncaught_exceptions() + (dlsym(RTLD_DEFAULT, "malloc") == nullptr);
}
"""


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """The folder of the stubs."""
    folder = tmp_path_factory.mktemp("folder of stubs")
    link_stubs.write(folder)
    return folder


def compiled(folder, code, *options):
    source, library = folder / "code.cpp", folder / "code.so"
    source.write_text(code)
    command = ["c++", "-O2", "-std=c++17", "-shared", "-fPIC", "-pthread", "-o", library, source]
    subprocess.run([*command, *options], check=True)
    return library


def too_young(library):
    return {
        f"{symbol.name}@{symbol.version}"
        for symbol in link_stubs.symbols_of(library)
        if not symbol.is_defined and not symbol.is_allowed()
    }


def test_a_library_linked_with_the_stubs_needs_only_old_symbols_and_works(stubs, tmp_path):
    library = compiled(tmp_path, PROGRAM, f"-L{stubs}", "-Wl,--no-undefined,--exclude-libs,ALL")
    assert too_young(library) == set()
    text = ctypes.create_string_buffer(100)
    run = ctypes.CDLL(str(library)).use_all
    run.argtypes, run.restype = [ctypes.c_double, ctypes.c_char_p], ctypes.c_double
    assert run(2.0, text) == 0  # no exception counts as uncaught, dlsym finds
    assert text.value.split() == [b"7.38906", b"0.693147", b"8"]


def test_symbols_that_moved_are_looked_for_where_they_were(stubs, tmp_path):
    library = compiled(tmp_path, PROGRAM, f"-L{stubs}", "-Wl,--no-undefined")
    dynamic = subprocess.check_output(["readelf", "--wide", "--dynamic", library], text=True)
    assert "[libdl.so.2]" in dynamic and "[libpthread.so.0]" in dynamic
    assert "[librt.so.1]" not in dynamic


def test_systems_on_which_nothing_has_moved_get_no_stubs_of_other_libraries(tmp_path, monkeypatch):
    """As with glibc 2.28 itself."""
    monkeypatch.setattr(link_stubs, "FORMER", {"libdl.so.2": re.compile("no such symbol")})
    link_stubs.write(tmp_path)
    assert not (tmp_path / "libdl.so.2").exists()
    library = compiled(tmp_path, PROGRAM, f"-L{tmp_path}", "-Wl,--no-undefined")
    assert too_young(library) == set()


def test_a_symbol_that_is_too_young_is_an_error(stubs, tmp_path):
    code = 'extern "C" unsigned arc4random(); extern "C" unsigned f() { return arc4random(); }'
    with pytest.raises(subprocess.CalledProcessError):
        compiled(tmp_path, code, f"-L{stubs}", "-Wl,--no-undefined")


def obtainable():
    """Names that a library can be linked with so that it runs on an old system."""
    archive = link_stubs.find("libstdc++.a")
    command = ["nm", "--defined-only", "--format=just-symbols", str(archive)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    old = {symbol.name for symbols in link_stubs.split().values() for symbol in symbols}
    return old | set(listed.split()) | set(link_stubs.SUBSTITUTES)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name.split(".")[0])
def test_the_built_libraries_can_be_linked_for_old_systems(library):
    """What they need in a version that is too young is offered in an old one, or statically."""
    needed = {name.split("@")[0] for name in too_young(library)}
    assert needed - obtainable() == set()


def test_a_symbol_without_an_old_version_would_be_found(tmp_path):
    code = 'extern "C" unsigned arc4random(); extern "C" unsigned f() { return arc4random(); }'
    names = {name.split("@")[0] for name in too_young(compiled(tmp_path, code))}
    if names:  # a system as old as manylinux_2_28 has none
        assert names - obtainable() == {"arc4random"}


def test_the_limits_are_those_of_auditwheel():
    from auditwheel.policy import WheelPolicies

    (policy,) = (p for p in WheelPolicies(libc=_glibc(), arch=_architecture())
                 if p.name.startswith("manylinux_2_28_"))  # fmt: skip
    for series, limit in link_stubs.LIMITS.items():
        numbers = [
            tuple(int(part) for part in number.split("."))
            for number in policy.symbol_versions[series]
            if number.replace(".", "").isdigit()
        ]
        assert max(numbers) == limit


def _glibc():
    from auditwheel.libc import Libc

    return Libc.GLIBC


def _architecture():
    from auditwheel.architecture import Architecture

    return Architecture(platform.machine())
