"""One wheel with every torch: another CUDA major, or none, in a process of its own."""

import os
import subprocess
import sys

import pytest
import torch

_C = pytest.importorskip("alr_fast._C")  # missing in a package without the native library

# Prints whether the CUDA library is mapped and whether it counts as loaded, and a loss.
CODE = """
import pathlib
import torch
torch.version.cuda = {cuda!r}
import alr_fast
from alr_fast._loading import HAS_CUDA
from alr_fast.functional import alr_loss
bank = alr_fast.LabelBank.from_labels(torch.tensor([0, 1, 2]), num_classes=3)
logits = torch.zeros(3, 3, requires_grad=True)
alr_loss(logits, bank.rows, torch.arange(3)).backward()
mapped = pathlib.Path('/proc/self/maps').read_text()
print('/_ops.so' in mapped, '/_cuda.so' in mapped, HAS_CUDA, logits.grad.isfinite().all().item())
"""

if sys.platform != "linux":
    pytest.skip("reads /proc", allow_module_level=True)


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "ALR_FAST_NATIVE"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def of_another_major():
    major = int((_C.build_info()["cuda_version"] or "13.0").split(".")[0])
    return f"{major - 1}.8"


@pytest.mark.parametrize("cuda", [of_another_major(), None])
def test_the_cuda_library_is_not_opened_with_another_cuda(cuda):
    done = run("-W", "error", "-c", CODE.format(cuda=cuda))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "False", "False", "True"]
    assert done.stderr == ""  # without a GPU in use there is nothing to say


def test_the_cuda_library_is_opened_with_its_own_cuda():
    built = _C.build_info()["cuda_version"]
    if built is None or torch.version.cuda is None:
        pytest.skip("this build or this torch has no CUDA")
    done = run("-W", "error", "-c", CODE.format(cuda=built))
    assert done.stdout.split() == ["True", "True", "True", "True"], done.stderr
