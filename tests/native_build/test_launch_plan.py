"""The choice of the CUDA kernel for a batch."""

import re

import pytest

from alr_fast import _C

DTYPES = ("float32", "float16", "bfloat16")

PLANS = [
    # classes, regime, threads per row, rows per block, threads per block, blocks per row
    pytest.param(1, "sub_warp", 8, 16, 128, 1, id="smallest"),
    pytest.param(32, "sub_warp", 8, 16, 128, 1, id="largest of 8 lanes"),
    pytest.param(33, "half_warp", 16, 8, 128, 1, id="smallest of 16 lanes"),
    pytest.param(128, "half_warp", 16, 8, 128, 1, id="largest of 16 lanes"),
    pytest.param(129, "warp", 32, 4, 128, 1, id="smallest of a warp"),
    pytest.param(256, "warp", 32, 4, 128, 1, id="largest of a warp"),
    pytest.param(257, "two_warps", 64, 1, 64, 1, id="smallest of two warps"),
    pytest.param(1024, "two_warps", 64, 1, 64, 1, id="largest of two warps"),
    pytest.param(1025, "four_warps", 128, 1, 128, 1, id="smallest of four warps"),
    pytest.param(2048, "four_warps", 128, 1, 128, 1, id="largest of four warps"),
    pytest.param(2049, "eight_warps", 256, 1, 256, 1, id="smallest of eight warps"),
    pytest.param(4096, "eight_warps", 256, 1, 256, 1, id="largest of eight warps"),
    pytest.param(8192, "sixteen_warps", 512, 1, 512, 1, id="largest of one block"),
    pytest.param(8193, "sixteen_warps", 1024, 1, 512, 2, id="smallest of two blocks"),
    pytest.param(21841, "sixteen_warps", 2048, 1, 512, 4, id="of four blocks"),
    pytest.param(65536, "sixteen_warps", 4096, 1, 512, 8, id="largest of eight blocks"),
    pytest.param(131072, "sixteen_warps", 8192, 1, 512, 16, id="largest of sixteen blocks"),
    pytest.param(131073, "loop", 512, 1, 512, 1, id="smallest that is read twice"),
    pytest.param(262144, "loop", 512, 1, 512, 1, id="largest"),
]


@pytest.mark.parametrize(("classes", "regime", "per_row", "rows", "threads", "cluster"), PLANS)
def test_launch_plan(classes, regime, per_row, rows, threads, cluster):
    for logits in DTYPES:
        for bank in DTYPES:
            for has_extras in (False, True):
                plan = _C.launch_plan(1000, classes, logits, bank, has_extras=has_extras)
                assert plan["regime"] == regime
                assert plan["threads_per_block"] == threads
                assert plan["blocks_per_row"] == cluster
                full = 4 if logits == bank == "float32" else 8
                is_wide = classes % full == 0 and {logits, bank} != {"float16", "bfloat16"}
                assert plan["vector_width"] == (full if is_wide else 1)
                assert plan["elements_per_thread"] * plan["threads_per_row"] == per_row * (
                    4 if classes <= 32 else 8 if classes <= 256 or regime == "loop" else 16
                )
                # Two buffers of 32 bytes for each warp, and one more for the cluster.
                can_be_cluster = regime in ("eight_warps", "sixteen_warps")
                assert plan["shared_memory"] == 2 * 32 * (threads // 32 + can_be_cluster)
                if classes > 32 or plan["vector_width"] < 8:
                    assert plan["threads_per_row"] == per_row
                    assert plan["rows_per_block"] == rows
                    assert plan["blocks"] == -(-1000 // rows) * cluster


def test_accesses_are_as_wide_as_classes_and_addresses_allow():
    def width(classes, bank="float32", logits="float32", **options):
        return _C.launch_plan(64, classes, logits, bank, **options)["vector_width"]

    assert [width(classes) for classes in (10, 11, 12, 14, 50, 100, 1000)] == [2, 1, 4, 2, 2, 4, 4]
    assert width(100, "bfloat16") == 2 and width(104, "bfloat16") == 8
    assert [width(100, aligned=a) for a in (1, 2, 4, 8)] == [1, 2, 4, 4]
    assert width(1002) == 1 and width(1000, aligned=2) == 1
    plan = _C.launch_plan(64, 32, "float16", "float32")  # 16 bytes of float16 are 8 elements
    assert (plan["vector_width"], plan["threads_per_row"], plan["rows_per_block"]) == (8, 4, 32)


@pytest.mark.parametrize(
    ("logits", "bank", "wide", "pairs", "narrow"),
    [
        # What each kernel has, plain and with extras wanted: P nothing, E extras, A any type too.
        *[(dtype, dtype, "PE", "PE", "PA") for dtype in DTYPES],
        ("float16", "float32", "PE", "EE", "PA"),
        ("bfloat16", "float32", "PE", "EE", "PA"),
        ("float32", "float16", "PE", "EE", "AA"),
        ("float32", "bfloat16", "PE", "EE", "AA"),
        ("float16", "bfloat16", "AA", "AA", "AA"),
        ("bfloat16", "float16", "AA", "AA", "AA"),
        *[(dtype, None, "PA", "PA", "AA") for dtype in DTYPES],
    ],
)
def test_kernels_of_types(logits, bank, wide, pairs, narrow):
    """The kernels of csrc/cuda/kernels.h, by the widest access that K = 64, 10 and 11 allow."""
    for classes, expected, width in ((64, wide, None), (10, pairs, 2), (11, narrow, 1)):
        for has_extras, kind in zip((False, True), expected, strict=True):
            plan = _C.launch_plan(100, classes, logits, bank, has_extras=has_extras)
            assert plan["has_extras"] == (kind != "P")
            assert plan["any_target"] == (kind == "A")
            full = 4 if {logits, bank} <= {"float32", None} else 8
            assert plan["vector_width"] == (1 if kind == "A" else width or full)


def test_long_rows_have_one_kernel_for_everything():
    for classes, width in ((200_000, 4), (200_001, 1)):
        plan = _C.launch_plan(1, classes)
        assert (plan["regime"], plan["has_extras"]) == ("loop", True)
        assert (plan["any_target"], plan["vector_width"]) == (width == 1, width)
    labels = _C.launch_plan(1, 200_000, bank_dtype=None)
    assert (labels["any_target"], labels["vector_width"]) == (False, 4)


def test_launch_plan_of_other_devices():
    assert _C.launch_plan(1, 8192, cluster_size=1)["regime"] == "sixteen_warps"
    loop = _C.launch_plan(1, 8193, cluster_size=1)
    assert (loop["regime"], loop["threads_per_row"], loop["blocks"]) == ("loop", 512, 1)
    portable = _C.launch_plan(1, 65536, cluster_size=8)
    assert (portable["regime"], portable["blocks_per_row"]) == ("sixteen_warps", 8)
    assert _C.launch_plan(1, 65537, cluster_size=8)["regime"] == "loop"
    assert _C.launch_plan(64, 1000, "float32", None)["vector_width"] == 4


def test_launch_plan_over_rows():
    assert _C.launch_plan(0, 10)["blocks"] == 0
    assert _C.launch_plan(1, 10)["blocks"] == 1
    assert _C.launch_plan(17, 10)["blocks"] == 2
    assert _C.launch_plan(2**31 - 1, 1000)["blocks"] == 2**31 - 1
    assert _C.launch_plan(2**33, 10)["blocks"] == 2**29
    assert _C.launch_plan(10, 21841)["blocks"] == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0), "classes is 0: CUDA kernels exist for 1 to 262144"),
        ((10, -3), "classes is -3: CUDA kernels exist for 1 to 262144"),
        ((10, 262145), "classes is 262145: CUDA kernels exist for 1 to 262144"),
        ((-1, 10), "rows is -1: it must be >= 0"),
        ((2**31, 1000), "rows is 2147483648: one launch takes up to 2147483647"),
        ((10, 10, "float64"), "unknown dtype float64: the CUDA kernels take float32"),
        ((10, 10, "float32", "int8"), "unknown dtype int8"),
        ((10, 10, "float32", "float32", 3), "aligned is 3: it must be a power of two"),
        (
            (10, 9000, "float32", "float32", 16, False, 0),
            "cluster_size is 0: it must be a power of two",
        ),
        ((10, 9000, "float32", "float32", 16, False, 32), "from 1 to 16"),
    ],
)
def test_launch_plan_refuses(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _C.launch_plan(*arguments)
