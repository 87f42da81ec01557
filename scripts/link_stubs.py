"""Writes libraries to link with, so that what is built runs on systems as old as manylinux_2_28.

    python scripts/link_stubs.py FOLDER && LDFLAGS=-LFOLDER python -m build --wheel

They have the names of libc, libm and libstdc++ and offer their symbols in the newest version that
manylinux_2_28 allows, but have no code: at run time, the libraries of the system are loaded. A
symbol that is younger is not found by the linker, or, in the case of libstdc++, taken from its
static library.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

LIMITS = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}
LIBRARIES = ("libc.so.6", "libm.so.6", "libstdc++.so.6")
# glibc 2.29 to 2.34 moved symbols into libc.so.6, with a new version; before, they were here.
FORMER = {
    "libdl.so.2": re.compile("dl"),
    "librt.so.1": re.compile("shm_|timer_|(__)?mq_|aio_|lio_"),
    "libpthread.so.0": re.compile("_*pthread_|sem_|call_once|cnd_|mtx_|thrd_|tss_"),
}
# Younger symbols that libstdc++ uses if the headers of the system have them: name and value.
# __libc_single_threaded: whether reference counts may be changed without atomic operations.
SUBSTITUTES = {"__libc_single_threaded": "char __libc_single_threaded = 0;"}

_SYMBOL = re.compile(
    r"\d+: [0-9a-f]+ +(?P<size>\w+) (?P<kind>\w+) +(?:GLOBAL|WEAK|UNIQUE) +\w+ +"
    r"(?P<section>\w+) (?P<name>[^\s@]+)@@?(?P<version>\w+?)_(?P<number>[\d.]+)(?: \(\d+\))?$"
)


class Symbol(NamedTuple):
    """A symbol with a version in the dynamic symbol table of a library."""

    name: str
    library: str  # the series of its version, as "GLIBC"
    number: tuple[int, ...]
    kind: str  # FUNC, IFUNC, OBJECT, TLS
    size: int
    is_defined: bool

    @property
    def version(self) -> str:
        return f"{self.library}_{'.'.join(map(str, self.number))}"

    def is_allowed(self) -> bool:
        """Whether its version is as old as manylinux_2_28 asks for."""
        return self.library not in LIMITS or self.number <= LIMITS[self.library]


def symbols_of(library: Path) -> list[Symbol]:
    """The symbols with a numbered version that a library defines or needs."""
    command = ["readelf", "--wide", "--dyn-syms", str(library)]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [
        Symbol(
            found["name"],
            found["version"],
            tuple(int(part) for part in found["number"].split(".")),
            found["kind"],
            int(found["size"], 0),
            found["section"] != "UND",
        )
        for line in table.splitlines()
        if (found := _SYMBOL.search(line)) and found["section"] != "ABS"
    ]


def offered(library: Path) -> dict[str, Symbol]:
    """Each symbol of a library in the newest version that is old enough."""
    newest: dict[str, Symbol] = {}
    for symbol in symbols_of(library):
        if not symbol.is_defined or symbol.library not in LIMITS or not symbol.is_allowed():
            continue
        if symbol.name not in newest or newest[symbol.name].number < symbol.number:
            newest[symbol.name] = symbol
    return newest


def find(name: str) -> Path:
    """A file that the compiler links with."""
    printed = _run(*_compiler(), f"-print-file-name={name}")
    if not Path(printed).is_absolute():
        raise SystemExit(f"error: {_compiler()[0]} has no {name}: install its package")
    return Path(printed).resolve()


def split() -> dict[str, list[Symbol]]:
    """The symbols that are offered, by the library that had them in glibc 2.28."""
    libraries: dict[str, list[Symbol]] = {name: [] for name in (*LIBRARIES, *FORMER)}
    for name in LIBRARIES:
        found = find(name)
        moved = {symbol.name for symbol in symbols_of(found) if not symbol.is_allowed()}
        for symbol in offered(found).values():
            formerly = [
                former
                for former, pattern in FORMER.items()
                if name == "libc.so.6" and symbol.name in moved and pattern.match(symbol.name)
            ]
            libraries[formerly[0] if formerly else name].append(symbol)
    return {name: symbols for name, symbols in libraries.items() if symbols}


def write(folder: Path) -> None:
    """Writes the libraries, by the names under which the linker looks for them."""
    folder.mkdir(parents=True, exist_ok=True)
    stubs = split()
    for name, symbols in stubs.items():
        _write_stub(folder / name, symbols)
    substitutes = folder / "substitutes.c"
    hidden = '__attribute__((visibility("hidden"))) '
    substitutes.write_text("".join(f"{hidden}{text}\n" for text in SUBSTITUTES.values()))
    _run(*_compiler(), "-c", "-fPIC", "-o", str(folder / "substitutes.o"), str(substitutes))
    archive = folder / "libsubstitutes.a"
    archive.unlink(missing_ok=True)
    _run("ar", "rc", str(archive), str(folder / "substitutes.o"))
    # The system's libc.so is such a script as well; its other members stay.
    script = find("libc.so").read_text()
    former = [f'AS_NEEDED ( "{folder / name}" )' for name in FORMER if name in stubs]
    members = " ".join([f'"{folder / "libc.so.6"}"', *former, f'"{archive}"'])
    script, count = re.subn(r"\S+/libc\.so\.6", lambda _: members, script)
    if count != 1:
        raise SystemExit("error: libc.so is not the linker script of glibc that is expected")
    (folder / "libc.so").write_text(script)
    (folder / "libm.so").write_text(f'INPUT ( "{folder / "libm.so.6"}" )\n')
    (folder / "libstdc++.so").write_text(
        f'INPUT ( "{folder / "libstdc++.so.6"}" "{find("libstdc++.a")}" "{archive}" )\n'
    )


def _write_stub(path: Path, symbols) -> None:
    """A shared library that defines the symbols, each in its version, without content."""
    sections = {"OBJECT": ".data", "TLS": '.section .tbss,"awT",@nobits'}
    types = {"OBJECT": "object", "TLS": "tls_object"}
    lines, versions = [], {}
    for symbol in symbols:
        lines += [
            sections.get(symbol.kind, ".text"),
            f".globl {symbol.name}",
            f".type {symbol.name}, %{types.get(symbol.kind, 'function')}",
            f".size {symbol.name}, {symbol.size}",
            f"{symbol.name}: .zero 8",
        ]
        versions.setdefault(symbol.version, []).append(symbol.name)
    lines.append('.section .note.GNU-stack,"",%progbits')
    code, script = path.with_suffix(".s"), path.with_suffix(".map")
    code.write_text("\n".join(lines) + "\n")
    script.write_text(
        "".join(f"{name} {{ {'; '.join(names)}; }};\n" for name, names in versions.items())
    )
    options = ["-shared", "-nostdlib", f"-Wl,-soname,{path.name},--version-script={script}"]
    _run(*_compiler(), *options, "-o", str(path), str(code))


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++"))


def _run(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    write(Path(sys.argv[1]).resolve())
