"""Checks of the machine code of the CUDA kernels in the built library; needs no GPU."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

import alr_fast
from alr_fast import _C
from benchmarks.kernels.machine_code import REGIMES as ELEMENTS
from benchmarks.kernels.machine_code import cuobjdump, find_tool, instructions_of_row, main, parse

LIBRARY = Path(alr_fast.__file__).with_name("_cuda.so")
REGIMES = tuple(ELEMENTS)
# csrc/cuda/kernels.h: banks of the logits' type; of float32; float32 with banks of 16 bits; labels;
# any target.
ROW_KERNELS = (
    3 * (7 * 2 + 1 + 2 * 2 + 7)
    + 2 * (7 * 2 + 1 + 2 + 7)
    + 2 * (7 * 2 + 1 + 2)
    + 3 * (7 + 1 + 2)
    + 3 * 8
)

if _C.build_info()["cuda_version"] is None:
    pytest.skip("this build has no CUDA kernels", allow_module_level=True)


if find_tool("cuobjdump") is None:
    pytest.skip("cuobjdump is in no CUDA toolkit or Triton here", allow_module_level=True)


def architectures() -> list[str]:
    named = re.findall(r"(\d+)\.(\d+[af]?)", _C.build_info()["cuda_architectures"])
    return [f"sm_{major}{minor}" for major, minor in named]


@pytest.fixture(scope="module")
def resources() -> dict[tuple[str, str], dict[str, int]]:
    """(architecture, kernel) -> registers, bytes of stack and of local memory."""
    found = {}
    architecture = kernel = ""
    for line in cuobjdump(LIBRARY, "--dump-resource-usage").splitlines():
        if named := re.match(r"arch = (\w+)", line):
            architecture = named[1]
        elif named := re.match(r"\s*Function (\S+):", line):
            kernel = named[1]
        elif "REG:" in line:
            numbers = {name: int(n) for name, n in re.findall(r"(\w+):(\d+)", line)}
            found[architecture, kernel] = numbers
    return found


@pytest.fixture(scope="module")
def code() -> dict[str, str]:
    """Kernel -> its instructions, for one architecture."""
    architecture = "sm_90" if "sm_90" in architectures() else architectures()[-1]
    parts = re.split(
        r"\n\s*Function : (\S+)\n",
        cuobjdump(LIBRARY, "--dump-sass", "--gpu-architecture", architecture),
    )
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def row_kernels(names: Iterable[str], regime: str = "", extras: bool | None = None) -> list[str]:
    """Row kernels, of one regime, with extras or without."""
    number = str(REGIMES.index(regime)) if regime else r"\d+"
    flag = "[01]" if extras is None else str(int(extras))
    wanted = rf"row_loss_kernel.*RegimeE{number}ELi\dELb{flag}E"
    return [name for name in names if re.search(wanted, name)]


def width_of(kernel: str) -> int:
    """Elements of an access."""
    return int(re.search(r"RegimeE\d+ELi(\d)", kernel)[1])


def full_width(kernel: str) -> int:
    """Elements of an access of 16 bytes to the narrower of logits and table."""
    types = re.search(r"RowTraitsI(.*)LNS_6Regime", kernel)[1]
    return 8 if "half" in types or "bfloat16" in types else 4


def test_every_kernel_is_there_for_every_architecture(resources):
    for architecture in architectures():
        names = [kernel for arch, kernel in resources if arch == architecture]
        assert len(row_kernels(names)) == ROW_KERNELS
        assert sum("scale_grad_kernel" in name for name in names) == 6
        assert sum("prepare_rows_kernel" in name for name in names) == 1
        assert sum("share_class_after_kernel" in name for name in names) == 1


def test_no_kernel_spills_or_uses_local_memory(resources):
    used = {key: use for key, use in resources.items() if use["STACK"] or use["LOCAL"]}
    assert not used
    assert len(resources) == len(architectures()) * (ROW_KERNELS + 8)


def test_no_kernel_has_instructions_for_local_memory(code):
    assert len(row_kernels(code)) == ROW_KERNELS
    assert not [name for name, text in code.items() if re.search(r"\b(LDL|STL)\b", text)]


def test_wide_kernels_access_device_memory_16_bytes_at_a_time(code):
    wide = [name for name in row_kernels(code) if width_of(name) == full_width(name)]
    assert len(wide) == 7 * (7 * 2 + 1) + 3 * (7 + 1)
    for name in wide:
        assert re.search(r"\bLDG\S*\.128\b", code[name]), name
        assert re.search(r"\bSTG\S*\.128\b", code[name]), name


def test_nothing_is_read_from_other_blocks_byte_by_byte(code):
    assert not [name for name, text in code.items() if re.search(r"\bLD(\.\w+)*\.[US]8\b", text)]


def test_narrow_kernels_have_narrow_accesses(code):
    """The search finds nothing in code without such instructions; EF: a row, evicted first."""
    narrow = [name for name in row_kernels(code, "sub_warp") if width_of(name) == 1]
    assert len(narrow) == 5 + 3
    for name in narrow:
        assert not re.search(r"\b(LDG|STG)\S*\.EF\S*\.128\b", code[name]), name


def registers(text: str) -> set[int]:
    """Registers of an operand that is 32 bits wide."""
    return {int(n) for n in re.findall(r"\bR(\d+)\b", text)}


def first_use_and_requests(text: str, count: int) -> tuple[int, list[int]]:
    """Instruction that first reads what the first `count` streamed loads wrote; those loads."""
    lines = [re.sub(r"^@!?U?P\w+ ", "", instruction.text) for instruction in parse(text)]
    requests = [n for n, line in enumerate(lines) if re.match(r"LDG\S*\.EF\S*", line)][:count]
    loaded = set()
    for n, line in enumerate(lines):
        target, _, sources = line.partition(",")
        if loaded & registers(sources) and not line.startswith("LDG"):
            return n, requests
        if n in requests:
            first = int(re.search(r"\bR(\d+)$", target)[1])
            width = line.split()[0]
            words = 4 if ".128" in width else 2 if ".64" in width else 1
            loaded |= set(range(first, first + words))
    raise AssertionError("what is loaded is never read")


@pytest.mark.parametrize("regime", REGIMES[:-1])
def test_a_row_is_requested_before_any_of_it_is_used(code, regime):
    """Loads of logits and bank row are in flight together, whatever their types and widths."""
    kernels = [name for name in row_kernels(code, regime, extras=False) if "TableTarget" in name]
    pairs = 3 if regime in ("sub_warp", "half_warp") else 0
    assert len(kernels) == 7 + pairs + 5
    for name in kernels:
        logits = 2 if re.search(r"RowTraitsI(6__half|13__nv_bf)", name) else 4
        # Repeated types are abbreviated.
        table = 4 if "TableTargetIfE" in name else 2
        width = width_of(name)
        elements = max(width, ELEMENTS[regime])
        per_row = sum(elements // width * max(1, width * size // 16) for size in (logits, table))
        use, requests = first_use_and_requests(code[name], per_row)
        assert len(requests) == per_row
        assert requests[-1] < use, name


def test_the_backward_pass_requests_four_words_before_it_stores_one(code):
    wide = [name for name in code if re.search(r"scale_grad_kernel\w*Li[48]E", name)]
    assert len(wide) == 3
    for name in wide:
        requests, _ = re.split(r"\bSTG", code[name], maxsplit=1)
        assert len(re.findall(r"\bLDG\S*\.128\b", requests)) == 4, name
        assert len(re.findall(r"\bSTG\S*\.128\b", code[name])) == 5, name  # four, and the rest


# Measured for sm_90 with nvcc 13.0 plus a tenth, so that nothing is added to every row unnoticed.
MOST_INSTRUCTIONS = {
    "sub_warp": 370,
    "half_warp": 482,
    "warp": 470,
    "two_warps": 651,
    "four_warps": 662,
    "eight_warps": 721,
    "sixteen_warps": 712,
}


@pytest.mark.parametrize("regime", REGIMES[:-1])
def test_instructions_of_a_row(code, regime):
    kernels = [
        name
        for name in row_kernels(code, regime, extras=False)
        if "TableTargetIfE" in name and "RowTraitsIf" in name and width_of(name) == 4
    ]
    assert len(kernels) == 1
    assert 100 < instructions_of_row(parse(code[kernels[0]])) <= MOST_INSTRUCTIONS[regime]


def test_the_machine_code_is_shown(capsys):
    main([str(LIBRARY), "--architecture", "sm_90"])
    shown = capsys.readouterr().out
    assert len(re.findall(r"\b(sub_warp|eight_warps)\b", shown)) == 2 * 7
