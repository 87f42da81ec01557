"""Tests of the build: facts, choice of the kernel, light imports, errors of the CUDA set-up."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import alr_fast
from alr_fast import _C
from alr_fast._operators import HAS_CUDA

ROOT = Path(__file__).resolve().parents[1]
DTYPES = ("float32", "float16", "bfloat16")


def python(*arguments, **environment):
    """Runs this Python in the source tree; returns the finished process."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


# Facts.


def test_build_info():
    info = _C.build_info()
    assert set(info) == {
        "version",
        "compiler",
        "torch_built_with",
        "cuda_version",
        "cuda_architectures",
        "cpu_isas_compiled",
        "cpu_isas_supported",
        "cpu_isa_in_use",
    }
    assert info["version"] == alr_fast.__version__
    assert re.match(r"\w+ \d+\.", info["compiler"])
    assert (info["cuda_version"] is None) == (info["cuda_architectures"] is None)
    if HAS_CUDA:
        assert re.fullmatch(r"\d+\.\d+", info["cuda_version"])
    assert info["cpu_isas_compiled"][-1] == "baseline"
    assert set(info["cpu_isas_supported"]) <= set(info["cpu_isas_compiled"])
    assert info["cpu_isas_supported"][-1] == "baseline"


def test_the_most_capable_instruction_set_is_used_unless_told(monkeypatch):
    monkeypatch.delenv("ALR_FAST_CPU_ISA", raising=False)
    info = _C.build_info()
    assert info["cpu_isa_in_use"] == info["cpu_isas_supported"][0]
    monkeypatch.setenv("ALR_FAST_CPU_ISA", "baseline")
    assert _C.build_info()["cpu_isa_in_use"] == "baseline"


def test_info_prints_the_facts():
    done = python("-m", "alr_fast", "info", ALR_FAST_CPU_ISA="baseline")
    assert done.returncode == 0, done.stderr
    facts = dict(line.split(":", 1) for line in done.stdout.splitlines())
    info = _C.build_info()
    assert info["version"] in facts["alr_fast"]
    assert info["compiler"] in facts["alr_fast"]
    assert info["torch_built_with"] in facts["alr_fast"]
    assert (info["cuda_version"] or "not built") in facts["CUDA kernels"]
    assert facts["CUDA loaded"].split()[0] == ("yes" if HAS_CUDA else "no")
    assert facts["compiled library"].strip() == "loaded"
    assert torch.__version__ in facts["torch"]
    assert "baseline (in use)" in facts["CPU kernels"]
    for isa in info["cpu_isas_compiled"]:
        assert isa in facts["CPU kernels"]
    assert {"GPU", "Python", "processor"} <= set(facts)


def test_importing_the_library_brings_in_no_training_package():
    heavy = (
        "timm torchvision sklearn matplotlib jsonargparse nvidia.dali pandas scipy PIL yaml rich"
    )
    own = "data noise labels training train export report"
    done = python(
        "-c",
        "import sys, torch; before = set(sys.modules)\n"
        "import alr_fast, alr_fast.functional, alr_fast.reference, alr_fast.losses\n"
        f"heavy = {heavy.split()} + ['alr_fast.' + name for name in {own.split()}]\n"
        "print(*(set(heavy) & (set(sys.modules) - before)), sep='\\n')",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_library_works_without_the_extras():
    extras = {
        "PIL", "itables", "jinja2", "jsonargparse", "matplotlib", "nvidia.dali", "pandas", "plotly",
        "pyarrow", "rich", "safetensors", "simplejpeg", "sklearn", "tensorboard", "timm",
        "torchmetrics", "torchvision", "wandb", "yaml",
    }  # fmt: skip
    done = python(
        "-c",
        "import sys\n"
        f"for name in {sorted(extras)}: sys.modules[name] = None  # importing it fails\n"
        "import torch, alr_fast, alr_fast.functional, alr_fast.reference, alr_fast.losses\n"
        "import alr_fast.bank, alr_fast.noise, alr_fast.labels, alr_fast.labels.suspicion\n"
        "import alr_fast.labels.table\n"
        "bank = alr_fast.LabelBank.from_labels(torch.tensor([0, 1, 2]), num_classes=3)\n"
        "criterion = alr_fast.ALRLoss(bank, warmup_epochs=0)\n"
        "issues = alr_fast.labels.find_issues([0, 1, 2], bank.rows)\n"
        "assert issues.estimate_problem and len(list(issues)) == 3 and repr(issues)\n"
        "logits, index = torch.randn(3, 3, requires_grad=True), torch.arange(3)\n"
        "criterion(logits, bank.given_labels, index).backward()\n"
        "print(bank.refined_labels().tolist(), logits.grad.isfinite().all().item())",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[0, 1, 2] True\n"


# The choice of the CUDA kernel.

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


# Errors of the set-up.


def configure(tmp_path, *options, nvcc=None, torch_cuda="'13.2'"):
    """Configures the project with a fake torch, and with a fake nvcc that prints `nvcc`."""
    tools = {name: shutil.which(name, path=tool_path()) for name in ("cmake", "ninja", "c++")}
    missing = [name for name, found in tools.items() if found is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found")
    stub = tmp_path / "stub"
    (stub / "torch").mkdir(parents=True)
    (stub / "torch" / "__init__.py").write_text(
        f"__version__ = '2.15.0'\nclass version:\n    cuda = {torch_cuda}\n"
    )
    (stub / "pybind11.py").write_text("def get_cmake_dir():\n    return 'nowhere'\n")
    (tmp_path / "bin").mkdir()
    if nvcc is not None:
        script = tmp_path / "bin" / "nvcc"
        script.write_text(f"#!/bin/sh\necho '{nvcc}'\n")
        script.chmod(0o755)
    names = ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST")
    environment = {k: v for k, v in os.environ.items() if k not in names}
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
        env={**environment, "PYTHONPATH": str(stub), "PATH": f"{tmp_path / 'bin'}:{tool_path()}"},
        capture_output=True,
        text=True,
    )


def tool_path():
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


NVCC_11 = "Cuda compilation tools, release 11.8, V11.8.89"

FAULTS = {
    "no nvcc": (
        dict(nvcc=None),
        "-DALR_FAST_CUDA=1",
        "ALR_FAST_CUDA=1, but there is no nvcc: install the CUDA toolkit 13 and put nvcc on PATH",
    ),
    "another major version": (
        dict(nvcc=NVCC_11),
        "-DALR_FAST_CUDA=1",
        "is of CUDA 11.8, torch 2.15.0 of CUDA 13: install the CUDA toolkit 13",
    ),
    "another major version, not asked for": (
        dict(nvcc=NVCC_11),
        "-DALR_FAST_CUDA=auto",
        "or build without CUDA kernels by ALR_FAST_CUDA=0",
    ),
    "torch without CUDA": (
        dict(nvcc=NVCC_11, torch_cuda=None),
        "-DALR_FAST_CUDA=1",
        "ALR_FAST_CUDA=1, but torch 2.15.0 has no CUDA: install a CUDA build of torch",
    ),
    "not a choice": (dict(), "-DALR_FAST_CUDA=maybe", "ALR_FAST_CUDA=maybe: it is auto, 1 or 0"),
    "not an architecture": (
        dict(nvcc=NVCC_11.replace("11.8", "13.2")),
        "-DALR_FAST_CUDA_ARCH_LIST=9.0;hopper",
        "TORCH_CUDA_ARCH_LIST has 'hopper': give numbers such as 9.0 or 10.0+PTX",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_clear_error_of_the_cuda_set_up(tmp_path, fault):
    machine, option, message = FAULTS[fault]
    done = configure(tmp_path, option, **machine)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())  # cmake wraps lines
    assert done.stderr.count("CMake Error") == 1
    assert "CMake Warning" not in done.stderr


def test_building_without_torch_says_so_in_one_line(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('none here')\n")
    done = python("setup.py", "-q", "build_ext", f"-b{tmp_path}", PYTHONPATH=str(tmp_path))
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "needs the torch that it will run with: run `pip install torch`" in line
    assert "--no-build-isolation" in line
    assert "Traceback" not in done.stderr


# make.


def planned(*arguments):
    """The commands that make would run, in a folder where nothing is installed."""
    own = re.compile("MAKE|^(ARGS|WORKERS)$")  # of the make that may run the tests
    environment = {name: value for name, value in os.environ.items() if not own.search(name)}
    command = ("make", "-n", "VENV=no-such-folder", *arguments)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", ["test", "test-all"])
def test_make_test_runs_only_what_it_is_asked_for(target):
    asked = planned(target, "ARGS=tests/losses -x")
    assert "pytest tests/losses -x" in asked.replace('-m "slow or not slow" ', "")
    assert "ctest" not in asked and "loadfile" not in asked
    assert "scripts/ctest.sh" in planned(target)
    assert " -n 2 --dist loadfile" in planned(target)
    assert " -n 8 --dist loadfile" in planned(target, "WORKERS=8")


def test_arguments_override_the_choice_of_all_tests():
    assert 'pytest -m "slow or not slow" -m faults' in planned("test-all", "ARGS=-m faults")


def test_make_test_says_how_long_it_takes():
    assert "about ten minutes" in planned("test")
    assert "about ten minutes" not in planned("test", "ARGS=tests/losses")
