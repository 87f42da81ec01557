"""Reads the machine code of the CUDA row kernels: instructions of a row, size, registers.

    python -m benchmarks.kernels.machine_code [LIBRARY]

Needs no GPU, but cuobjdump of a CUDA toolkit or of the wheel of Triton. LIBRARY is a library, also
of another version of alr_fast, or a .cubin; default: the one in use. Printed are the kernels for
banks without statistics or stochastic rounding whose accesses move 16 bytes; writes no rows.

The instructions are those of one warp on the shortest way through the loop over rows that passes
all requests and all stores of a row (of several short rows, where a warp has several); an element
is one that each thread holds. What happens rarely is not on that way: masked classes, ignored rows,
the requests for the indices of the next 32 rows.
"""

import argparse
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple

import alr_fast
from benchmarks.tables.markdown import show

_HEADERS = ("regime", "logits", "bank", "registers", "kilobytes of code", "instructions of a row",
            "of an element")  # fmt: skip
# Elements that a thread holds, in the order of csrc/cuda/regimes.h.
REGIMES = {
    "sub_warp": 4,
    "half_warp": 8,
    "warp": 8,
    "two_warps": 16,
    "four_warps": 16,
    "eight_warps": 16,
    "sixteen_warps": 16,
    "loop": 8,
}


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        address: Of its first byte, from the start of the kernel.
        text: Its predicate, name and operands.
    """

    address: int
    text: str


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit, which the wheel of Triton contains as well."""
    triton = Path(sysconfig.get_path("purelib")) / "triton/backends/nvidia/bin"
    nvcc = shutil.which("nvcc")
    beside = [str(Path(nvcc).resolve().parent)] if nvcc else []
    for folder in (None, *beside, "/usr/local/cuda/bin", str(triton)):
        if found := shutil.which(name, path=folder):
            return found
    return None


def cuobjdump(library: Path, *options: str) -> str:
    """What cuobjdump prints about a library."""
    tool = find_tool("cuobjdump")
    if tool is None:
        raise SystemExit("error: there is no cuobjdump: install the CUDA toolkit or triton")
    return subprocess.run(
        [tool, *options, str(library)], capture_output=True, text=True, check=True
    ).stdout


def kernels(library: Path, architecture: str) -> dict[str, list[Instruction]]:
    """The instructions of each kernel."""
    text = cuobjdump(library, "--dump-sass", "--gpu-architecture", architecture)
    parts = re.split(r"\n\s*Function : (\S+)\n", text)
    return {name: parse(code) for name, code in zip(parts[1::2], parts[2::2], strict=True)}


def parse(code: str) -> list[Instruction]:
    """The instructions in a text of cuobjdump."""
    found = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;]*);", code)
    return [Instruction(int(address, 16), text.strip()) for address, text in found]


def is_streamed(instruction: Instruction) -> bool:
    """Whether it loads or stores part of a row: evicted first (EF), unlike everything else."""
    return re.search(r"\b(LDG|STG)\S*\.EF\b", instruction.text) is not None


def instructions_of_row(code: Sequence[Instruction]) -> int | None:
    """The shortest way through the loop over rows; None if there is no such loop."""
    followers = _followers(code)
    marks = [n for n, instruction in enumerate(code) if is_streamed(instruction)]
    if not any("STG" in code[n].text for n in marks):
        return None
    steps = [_steps(followers, a, b) for a, b in zip(marks, marks[1:] + marks[:1], strict=True)]
    return None if None in steps else sum(step for step in steps if step is not None)


def _followers(code: Sequence[Instruction]) -> list[list[int]]:
    """The instructions that may come after each one, by their position."""
    at = {instruction.address: n for n, instruction in enumerate(code)}
    followers = []
    for n, (_, text) in enumerate(code):
        operation = re.sub(r"^@!?U?P\w+\s+", "", text)
        is_conditional = operation != text or re.match(r"BRA\s+!?U?P\d", operation) is not None
        target = re.search(r"^BRA\b.*\b0x([0-9a-f]+)", operation)
        after = [n + 1] if n + 1 < len(code) else []
        if target and not operation.startswith("BRA.DIV"):  # taken where threads have diverged
            jump = at.get(int(target[1], 16), n)
            after = [jump, *after] if is_conditional else [jump]
        elif operation.startswith(("EXIT", "RET")) and not is_conditional:
            after = []
        followers.append(after)
    return followers


def _steps(followers: Sequence[Sequence[int]], start: int, end: int) -> int | None:
    """The fewest instructions from `start` to `end`, which may be the same."""
    heap, seen = [(1, n) for n in followers[start]], set()
    while heap:
        steps, n = heappop(heap)
        if n == end:
            return steps
        if n not in seen:
            seen.add(n)
            for after in followers[n]:
                heappush(heap, (steps + 1, after))
    return None


def _registers(library: Path) -> dict[str, int]:
    found, kernel = {}, ""
    for line in cuobjdump(library, "--dump-resource-usage").splitlines():
        if named := re.match(r"\s*Function (\S+):", line):
            kernel = named[1]
        elif used := re.search(r"\bREG:(\d+)", line):
            found[kernel] = int(used[1])
    return found


def _rows(library: Path, architecture: str) -> list[list[str]]:
    registers = _registers(library)
    rows = []
    for name, code in kernels(library, architecture).items():
        facts = re.search(
            r"RowTraitsI(\S+?)NS_11TableTargetI(\S+?)EELNS_6RegimeE(\d+)ELi(\d)", name
        )
        if not facts or "ELb1" in name:
            continue
        logits = _dtype(facts[1])
        bank = logits if facts[2].startswith("S") else _dtype(facts[2])  # repeated: abbreviated
        if int(facts[4]) != (4 if logits == bank == "float32" else 8):
            continue
        regime, elements = list(REGIMES.items())[int(facts[3])]
        steps = instructions_of_row(code)
        if steps is None:
            continue
        held = max(elements, int(facts[4]))
        size = f"{16 * len(code) / 1000:.1f}"
        rows.append([regime, logits, bank, str(registers[name]), size, str(steps),
                     f"{steps / held:.1f}"])  # fmt: skip
    return sorted(rows, key=lambda row: (row[1:3], list(REGIMES).index(row[0])))


def _dtype(mangled: str) -> str:
    return {"f": "float32", "6__half": "float16"}.get(mangled, "bfloat16")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(alr_fast.__file__).with_name("_cuda.so")
    parser.add_argument("library", type=Path, nargs="?", default=default)
    parser.add_argument("--architecture", default="sm_90", help="default: sm_90")
    arguments = parser.parse_args(argv)
    if not arguments.library.is_file():
        parser.error(f"{arguments.library} is not there: build with nvcc, or name a library")
    rows = _rows(arguments.library, arguments.architecture)
    show(f"machine code for {arguments.architecture}", _HEADERS, rows, text_columns=3)


if __name__ == "__main__":
    main()
