"""The cases and variants of the kernel benchmark: what is timed, and the check that it is right."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from alr_fast._C import build_info
from torch import Tensor

import alr_fast
from alr_fast import functional, reference

BANK_ROWS = 20_000
OPTIONS = {"momentum": 0.9, "entropy_weight": 0.1, "unique_index": True}

# Inputs rotate over more memory than the caches hold, as in training, where the forward pass of the
# net lies between two calls.
_ROTATE_BYTES = 96 << 20
_MAX_ROTATION = 64


@dataclass(frozen=True)
class Case:
    """One shape: B rows, K classes; logits and bank in `dtype`."""

    batch: int
    classes: int
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"{self.batch}x{self.classes}-{str(self.dtype).removeprefix('torch.')}"


CASES = tuple(
    Case(batch, classes)
    for batch, classes in ((256, 16), (256, 1000), (4096, 16), (1024, 1000), (4096, 1000))
)
TINY_CASES = (Case(8, 3), Case(4, 40))


@dataclass
class Problem:
    """Inputs of one case, and a step of every variant: a fresh forward and backward pass.

    The copy moves as many bytes as one fused forward and backward pass: per element it reads logits
    and bank row, and writes bank row and gradient.
    """

    case: Case
    device: str = "cpu"
    bank_rows: int = BANK_ROWS
    calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        batch, classes, dtype = self.case.batch, self.case.classes, self.case.dtype
        made = {"dtype": dtype, "device": self.device}
        count = _ROTATE_BYTES // (batch * classes * dtype.itemsize)
        count = min(max(count, 2), _MAX_ROTATION)
        self.logits = [torch.randn(batch, classes, **made) * 3 for _ in range(count)]
        self.index = [
            torch.randperm(self.bank_rows, device=self.device)[:batch] for _ in range(count)
        ]
        self.bank = torch.rand(self.bank_rows, classes, device=self.device)
        self.bank = (self.bank / self.bank.sum(-1, keepdim=True)).to(dtype)
        # z and T read, T and dz written: half of it is read by the copy, half written.
        size = 2 * batch * classes
        self.sources = [torch.zeros(size, **made) for _ in range(max(2, count // 2))]
        self.copies = [torch.zeros(size, **made) for _ in range(max(2, count // 2))]

    @cached_property
    def compiled(self) -> Callable:
        # Masks of valid rows have a size known only at run time: without this the graph would
        # break.
        torch._dynamo.config.capture_dynamic_output_shape_ops = True
        return torch.compile(reference.alr_loss, dynamic=False)

    def step(self, variant: str) -> None:
        """Runs a variant once: fused, fused_and_grad, eager, compiled or copy."""
        n = self.calls
        self.calls += 1
        if variant == "copy":
            self.copies[n % len(self.copies)].copy_(self.sources[n % len(self.sources)])
            return
        logits, index = self.logits[n % len(self.logits)], self.index[n % len(self.index)]
        if variant == "fused_and_grad":
            functional.alr_loss_and_grad(logits, self.bank, index, **OPTIONS)
        else:
            self.loss_and_grad(self._function(variant), logits, self.bank, index)

    def check(self) -> None:
        """Compares loss, gradient and bank of every variant with the reference in float64."""
        logits, index = self.logits[0], self.index[0]
        expected_bank = self.bank.clone()
        expected = self.loss_and_grad(reference.alr_loss, logits.double(), expected_bank, index)
        tolerance = {"rtol": 1e-4, "atol": 1e-6}
        if self.case.dtype != torch.float32:
            tolerance = {"rtol": 1e-2, "atol": 1e-4}
        for variant in ("fused", "eager", "compiled"):
            bank = self.bank.clone()
            found = self.loss_and_grad(self._function(variant), logits, bank, index)
            for a, b in zip((*found, bank), (*expected, expected_bank), strict=True):
                torch.testing.assert_close(a.double(), b.double(), **tolerance)

    def _function(self, variant: str) -> Callable:
        if variant == "compiled":
            return self.compiled
        return {"fused": functional.alr_loss, "eager": reference.alr_loss}[variant]

    @staticmethod
    def loss_and_grad(
        function: Callable, logits: Tensor, bank: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient, through autograd."""
        leaf = logits.detach().requires_grad_()
        loss = function(leaf, bank, index, **OPTIONS)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def environment(device: str = "cpu") -> dict[str, object]:
    """What the figures depend on besides the code."""
    info = build_info()
    return {
        "alr_fast": alr_fast.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "cpu_isa": info["cpu_isa_in_use"],
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }
