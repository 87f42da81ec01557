"""The choice of the CUDA kernel for a batch."""

import re

import pytest

from alr_fast import _C

DTYPES = ("float32", "float16", "bfloat16")

PLANS = [
    # classes, regime, threads per row, rows per block, threads per block, blocks per row
    pytest.param(1, "sub_warp", 8, 16, 128, 1, id="smallest"),
    pytest.param(31, "sub_warp", 8, 16, 128, 1, id="largest of a shared warp"),
    pytest.param(33, "warp", 32, 4, 128, 1, id="smallest of a warp"),
    pytest.param(256, "warp", 32, 4, 128, 1, id="largest of a warp"),
    pytest.param(257, "block", 64, 1, 64, 1, id="smallest of 64 threads"),
    pytest.param(1024, "block", 64, 1, 64, 1, id="largest of 64 threads"),
    pytest.param(1025, "block", 128, 1, 128, 1, id="smallest of 128 threads"),
    pytest.param(2048, "block", 128, 1, 128, 1, id="largest held in registers"),
    pytest.param(2049, "shared", 256, 1, 256, 1, id="smallest in shared memory"),
    pytest.param(8192, "shared", 256, 1, 256, 1, id="largest of one block"),
    pytest.param(8193, "shared", 512, 1, 256, 2, id="smallest of two blocks"),
    pytest.param(21841, "shared", 1024, 1, 256, 4, id="of four blocks"),
    pytest.param(65536, "shared", 2048, 1, 256, 8, id="largest of eight blocks"),
    pytest.param(262144, "shared", 4096, 1, 256, 16, id="largest"),
]


@pytest.mark.parametrize(("classes", "regime", "per_row", "rows", "threads", "cluster"), PLANS)
def test_launch_plan(classes, regime, per_row, rows, threads, cluster):
    for logits in DTYPES:
        for bank in DTYPES:
            plan = _C.launch_plan(1000, classes, logits, bank)
            assert plan["regime"] == regime
            assert plan["threads_per_row"] == per_row
            assert plan["rows_per_block"] == rows
            assert plan["threads_per_block"] == threads
            assert plan["blocks_per_row"] == cluster
            assert plan["blocks"] == -(-1000 // rows) * cluster
            full = 4 if logits == bank == "float32" else 8
            if regime == "shared":  # a part of logits and bank row, each with a head
                assert plan["vector_width"] == full
                size = (4 if logits == "float32" else 2) + (4 if bank == "float32" else 2)
                assert classes // cluster * size < plan["shared_memory"] <= 227 * 1024
            else:
                # Two buffers of 16 bytes for each warp, for reductions over a block.
                assert plan["shared_memory"] == 2 * 16 * threads // 32
                assert plan["elements_per_thread"] * per_row >= classes
                assert plan["vector_width"] == (full if classes % full == 0 else 1)


def test_accesses_are_as_wide_as_classes_and_addresses_allow():
    def width(classes, bank="float32", logits="float32", **options):
        return _C.launch_plan(64, classes, logits, bank, **options)["vector_width"]

    assert [width(classes) for classes in (10, 11, 12, 14, 50, 100, 1000)] == [2, 1, 4, 2, 2, 4, 4]
    assert width(100, "bfloat16") == 2 and width(104, "bfloat16") == 8
    assert [width(100, aligned=a) for a in (1, 2, 4, 8)] == [1, 2, 4, 4]
    assert width(1002) == 1 and width(1000, aligned=2) == 1
    assert width(2049, aligned=1) == 4  # through shared memory, with a scalar head and tail
    plan = _C.launch_plan(64, 32, "float16", "float32")  # 16 bytes of float16 are 8 elements
    assert (plan["vector_width"], plan["threads_per_row"], plan["rows_per_block"]) == (8, 4, 32)


def test_launch_plan_of_labels_leaves_out_the_bank():
    plan = _C.launch_plan(64, 21841, "float32", None)
    bank = _C.launch_plan(64, 21841, "float32", "float32")
    assert plan["vector_width"] == bank["vector_width"] == 4
    assert plan["shared_memory"] < 0.6 * bank["shared_memory"]
    ampere = {"cluster_size": 1, "shared_memory": 163 * 1024}
    assert _C.launch_plan(1, 40000, "float32", None, **ampere)["regime"] == "shared"
    assert _C.launch_plan(1, 40000, "float32", "float32", **ampere)["regime"] == "loop"


def test_launch_plan_of_other_devices():
    ampere = {"cluster_size": 1, "shared_memory": 163 * 1024}
    assert _C.launch_plan(1, 16384, **ampere)["blocks_per_row"] == 1
    assert _C.launch_plan(1, 16384, **ampere)["regime"] == "shared"
    loop = _C.launch_plan(1, 65536, **ampere)
    assert (loop["regime"], loop["threads_per_row"], loop["blocks"]) == ("loop", 512, 1)
    portable = _C.launch_plan(1, 131072, cluster_size=8)
    assert (portable["regime"], portable["blocks_per_row"]) == ("shared", 8)


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
        ((10, 9000, "float32", "float32", 16, 0), "cluster_size is 0: it must be a power of two"),
        ((10, 9000, "float32", "float32", 16, 32), "from 1 to 16"),
    ],
)
def test_launch_plan_refuses(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _C.launch_plan(*arguments)
