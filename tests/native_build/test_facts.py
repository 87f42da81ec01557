"""Facts about the build, and what an import of the package brings in."""

import os
import re

import pytest
import torch

import alr_fast
from alr_fast import _C
from alr_fast._loading import HAS_CUDA
from helpers.source_tree import python


def test_build_info():
    info = _C.build_info()
    assert set(info) == {
        "version",
        "compiler",
        "torch_built_with",
        "cuda_version",
        "cuda_architectures",
        "cuda_reason",
        "cpu_isas_compiled",
        "cpu_isas_supported",
        "cpu_isa_in_use",
    }
    assert info["version"] == alr_fast.__version__
    assert re.match(r"\w+ \d+\.", info["compiler"])
    assert (info["cuda_version"] is None) == (info["cuda_architectures"] is None)
    assert (info["cuda_version"] is None) == (info["cuda_reason"] is not None)
    if HAS_CUDA:
        assert re.fullmatch(r"\d+\.\d+", info["cuda_version"])
    assert info["cpu_isas_compiled"][-1] == "baseline"
    assert set(info["cpu_isas_supported"]) <= set(info["cpu_isas_compiled"])
    assert info["cpu_isas_supported"][-1] == "baseline"


@pytest.mark.skipif(os.environ.get("ALR_FAST_AUTOGRAD") == "0", reason="left out on request")
def test_the_autograd_node_is_built_with_the_library():
    done = python("-m", "alr_fast", "info")
    assert re.search(r"^autograd node: +C\+\+$", done.stdout, re.MULTILINE), done.stdout


OTHER_TORCH = """
import sys
import torch
torch.__version__ = "99.0"
import alr_fast.functional
from alr_fast._loading import LOADED
logits = torch.randn(4, 3, requires_grad=True)
alr_fast.functional.label_smoothing_cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
print(LOADED.node, "alr_fast._autograd" in sys.modules, logits.grad.isfinite().all().item())
"""


def test_the_node_of_another_torch_is_not_loaded():
    done = python("-c", OTHER_TORCH)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"it was built for torch {torch.__version__} False True\n"


def test_the_most_capable_instruction_set_is_used_unless_told():
    supported = _C.build_info()["cpu_isas_supported"]
    for told, used in ("", supported[0]), ("baseline", "baseline"):
        done = python(
            "-c", "from alr_fast import _C; print(_C.build_info()['cpu_isa_in_use'])",
            ALR_FAST_CPU_ISA=told,
        )  # fmt: skip
        assert done.stdout.strip() == used, done.stderr


def test_info_prints_the_facts():
    done = python("-m", "alr_fast", "info", ALR_FAST_CPU_ISA="baseline")
    assert done.returncode == 0, done.stderr
    facts = dict(line.split(":", 1) for line in done.stdout.splitlines())
    info = _C.build_info()
    assert info["version"] in facts["alr_fast"]
    assert info["compiler"] in facts["alr_fast"]
    assert info["torch_built_with"] in facts["alr_fast"]
    assert (info["cuda_version"] or "not built") in facts["CUDA kernels"]
    assert (info["cuda_reason"] or "") in facts["CUDA kernels"]
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
