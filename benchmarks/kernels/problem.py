"""The cases and variants of the kernel benchmarks: inputs, steps, and a check of their results."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from alr_fast import functional, reference
from benchmarks.harness.compare import check_step
from benchmarks.harness.timing import event_time

BANK_ROWS = 20_000
OPTIONS = {"momentum": 0.9, "entropy_weight": 0.1, "unique_index": True}

# The operation of one step of each variant. `plain` is the operation without masks, see
# `plain_alr_loss`; `any_index` does not set `unique_index`.
WHAT = {
    "fused": "forward+backward",
    "fused_and_grad": "forward+gradient",
    "fused_forward": "forward",
    "fused_forward_any_index": "forward",
    "eager": "forward+backward",
    "plain": "forward+backward",
    "compiled": "forward+backward",
    "compiled_max-autotune-no-cudagraphs": "forward+backward",
    "compiled_reduce-overhead": "forward+backward",
    "compiled_plain": "forward+backward",
    "triton": "forward+backward",
    "triton_loop": "forward+backward",
    "native_one_op": "(x * 2).sum().backward()",
    "copy": "two reads, two writes",
    "copy_in_turn": "host to device, then device to host",
    "copy_at_once": "host to device and device to host, on two streams",
}
# Longest row that a program of `triton_loop` holds at once; `triton` holds up to 64K elements.
LOOP_ROW_LIMIT = 8192

# Inputs rotate over more memory than the caches hold, as in training, where the forward pass of the
# model separates two calls.
_ROTATE_BYTES = 96 << 20
_MAX_ROTATION = {"cpu": 64, "cuda": 256}


@dataclass(frozen=True)
class Case:
    """A shape: B rows, K classes; logits in `dtype`, the bank in `bank_dtype` or the same type."""

    batch: int
    classes: int
    dtype: torch.dtype = torch.float32
    bank_dtype: torch.dtype | None = None

    def __str__(self) -> str:
        dtypes = {dtype_name(self.dtype): None, dtype_name(self.stored): None}
        return f"{self.batch}x{self.classes}-{'-'.join(dtypes)}"

    @property
    def stored(self) -> torch.dtype:
        """The dtype of the bank."""
        return self.bank_dtype or self.dtype

    @property
    def ideal_bytes(self) -> int:
        """Least number of bytes moved: logits and bank rows read, gradient and rows written."""
        return 2 * self.batch * self.classes * (self.dtype.itemsize + self.stored.itemsize)


_SHAPES = ((256, 16), (256, 1000), (4096, 16), (1024, 1000), (4096, 1000))
CASES = tuple(Case(*shape) for shape in _SHAPES)
# Numbers of classes of small data sets: no multiples of a vector.
DAILY_CASES = tuple(Case(batch, classes) for batch in (256, 4096) for classes in (10, 14, 50, 100))
TINY_CASES = (Case(8, 3), Case(4, 40))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def plain_alr_loss(
    logits: Tensor,  # [B, K]
    bank: Tensor,  # [N, K], updated in place
    index: Tensor,  # [B]
    *,
    momentum: float,
    entropy_weight: float,
    unique_index: bool,
) -> Tensor:
    """The mean loss written by hand: no ignored rows, distinct indices, finite logits.

    The host has to wait for the size of the masks of `reference`; a comparison with `reference`
    only would be unfair to eager and compiled code.

    Raises:
        ValueError: ``unique_index`` is False.
    """
    if not unique_index:
        raise ValueError("the plain variant needs distinct indices: pass unique_index=True")
    log_p = logits.float().log_softmax(-1)
    p = log_p.exp()
    target = momentum * bank[index].float() + (1 - momentum) * p.detach()
    bank[index] = target.to(bank.dtype)
    cross_entropy = -(target * log_p).sum(-1)
    return (cross_entropy - entropy_weight * (p * log_p).sum(-1)).mean()


def _any_index(*tensors: Tensor, unique_index: bool, **options: float) -> Tensor:
    return functional.alr_loss(*tensors, unique_index=False, **options)


def _function_of(variant: str) -> Callable:
    """The loss function of a variant that is not compiled."""
    if variant.startswith("triton"):
        from benchmarks.kernels import triton_baseline

        if variant == "triton_loop":
            return partial(triton_baseline.alr_loss, row_limit=LOOP_ROW_LIMIT)
        return triton_baseline.alr_loss
    return {
        "fused": functional.alr_loss,
        "fused_forward": functional.alr_loss,
        "fused_forward_any_index": _any_index,
        "eager": reference.alr_loss,
        "plain": plain_alr_loss,
    }[variant]


@dataclass
class Problem:
    """Inputs of one case, and a step of every variant: a fresh forward and backward pass.

    The copy moves as many bytes as one fused forward and backward pass: per element it reads logits
    and bank row, and writes bank row and gradient. On a GPU it is a Triton kernel.
    """

    case: Case
    device: str = "cpu"
    bank_rows: int = BANK_ROWS  # N
    pinned: bool = False  # whether the bank is in pinned host memory, with the logits on a GPU
    calls: int = field(default=0, init=False)  # steps so far

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        batch, classes, dtype = self.case.batch, self.case.classes, self.case.dtype
        self._rotate_bytes = _ROTATE_BYTES
        if self.device == "cuda":
            self._rotate_bytes = 3 * torch.cuda.get_device_properties(0).L2_cache_size
        count = -(-self._rotate_bytes // (batch * classes * dtype.itemsize))
        count = min(max(count, 2), _MAX_ROTATION[self.device])
        self.logits = [
            torch.randn(batch, classes, dtype=dtype, device=self.device) * 3 for _ in range(count)
        ]
        # Parts of one permutation: a row repeats only after many others.
        count = min(max(self.bank_rows // batch, 1), _MAX_ROTATION[self.device])
        order = torch.randperm(self.bank_rows, device=self.device)[: count * batch]
        self.index = list(order.view(count, batch))
        bank = torch.rand(self.bank_rows, classes, device=self.device)
        self.bank = bank.div_(bank.sum(-1, keepdim=True)).to(self.case.stored)
        self._compiled: dict[str, Callable] = {}
        if self.pinned:
            self.bank = self.bank.cpu().pin_memory()

    @property
    def index_pattern(self) -> str:
        """Description of the indices, for the rows."""
        where = ", in pinned host memory" if self.pinned else ""
        batches = f"{len(self.index)} batches in rotation"
        return f"random, unique, fresh each call ({batches}), bank of {self.bank_rows} rows{where}"

    @cached_property
    def _copies(self) -> list[tuple[Tensor, ...]]:
        """Sources and destinations of the copy, in rotation."""
        size = self.case.batch * self.case.classes
        count = max(2, -(-self._rotate_bytes // self.case.ideal_bytes))
        count = min(count, _MAX_ROTATION[self.device])
        # On the CPU one call copies both halves, which have the same dtype there.
        shapes = [(size, self.case.dtype), (size, self.case.stored)]
        if self.device == "cpu":
            shapes = [(2 * size, self.case.dtype)]
        return [
            tuple(torch.rand(n, device=self.device).to(t) for n, t in shapes + shapes)
            for _ in range(count)
        ]

    @cached_property
    def copy_block(self) -> int:
        """Elements moved by a program of the copy kernel: the fastest of a few block sizes."""
        from benchmarks.kernels import triton_baseline

        def microseconds(block: int) -> float:
            buffers = itertools.cycle(self._copies)

            def step() -> None:
                triton_baseline.copy(*next(buffers), block=block)

            event_time(step, 2)  # compiles
            return event_time(step, 20)

        return min((1024, 2048, 4096, 8192), key=microseconds)

    @cached_property
    def _transfers(self) -> tuple[Tensor, Tensor, Tensor, Tensor, torch.cuda.Stream]:
        """Two pinned buffers and two on the device, each as large as a batch of rows; a stream."""
        made = {"size": (self.case.batch, self.case.classes), "dtype": self.case.stored}
        host = [torch.ones(**made).pin_memory() for _ in range(2)]
        return *host, *(t.to(self.device) for t in host), torch.cuda.Stream()

    def step(self, variant: str) -> None:
        """Runs a variant of `WHAT` once."""
        n = self.calls
        self.calls += 1
        if variant == "copy":
            self._copy(n)
        elif variant in ("copy_in_turn", "copy_at_once"):
            self._transfer(at_once=variant == "copy_at_once")
        else:
            logits, index = self.logits[n % len(self.logits)], self.index[n % len(self.index)]
            self._call(variant, logits, index)

    def check(self, variants: Sequence[str] = ("fused", "fused_and_grad", "eager", "compiled")):
        """Compares loss, gradient and the whole bank with the reference in float64.

        Restores the bank.

        Raises:
            AssertionError: A variant is wrong.
        """
        logits, index = self.logits[0], self.index[0]
        rows = index.to(self.bank.device)
        before, old = self.bank.clone(), self.bank[rows]
        # Only the rows of the batch: the whole bank in float64 would be too large.
        expected_rows = old.to(logits.device).double()
        order = torch.arange(len(index), device=index.device)
        expected = self.loss_and_grad(reference.alr_loss, logits.double(), expected_rows, order)
        for variant in variants:
            if WHAT[variant] == "forward":  # backward only returns the gradient
                found = self.loss_and_grad(self._function(variant), logits, self.bank, index)
            else:
                found = self._call(variant, logits, index)
            if self.device == "cuda":
                torch.cuda.synchronize()  # a bank in host memory is read without waiting
            found = (*found, self.bank[rows].to(logits.device))
            self.bank[rows] = old
            if not torch.equal(self.bank, before):
                raise AssertionError(f"{variant} changes rows of the bank outside the batch")
            check_step(variant, found, (*expected, expected_rows))

    def _call(self, variant: str, logits: Tensor, index: Tensor) -> tuple[Tensor, ...] | None:
        if variant == "native_one_op":
            leaf = logits.detach().requires_grad_()
            (leaf * 2).sum().backward()
            return None
        if variant == "fused_and_grad":
            return functional.alr_loss_and_grad(logits, self.bank, index, **OPTIONS)
        function = self._function(variant)
        if WHAT[variant] == "forward":
            return (function(logits.detach().requires_grad_(), self.bank, index, **OPTIONS),)
        if variant.endswith("reduce-overhead"):
            torch.compiler.cudagraph_mark_step_begin()  # previous results are not needed
        return self.loss_and_grad(function, logits, self.bank, index)

    def _function(self, variant: str) -> Callable:
        """The loss function of a variant; one that is compiled is compiled once for a problem."""
        if not variant.startswith("compiled"):
            return _function_of(variant)
        if variant not in self._compiled:
            mode = variant.removeprefix("compiled").removeprefix("_") or "default"
            function = reference.alr_loss
            if mode == "plain":
                function, mode = plain_alr_loss, "default"
            self._compiled[variant] = self._compile(function, mode)
        return self._compiled[variant]

    @staticmethod
    def _compile(function: Callable, mode: str) -> Callable:
        # The size of masks of valid rows is known at run time only: this avoids graph breaks.
        torch._dynamo.config.capture_dynamic_output_shape_ops = True
        # Each case compiles the functions for its own shape; past the limit they would run eagerly.
        torch._dynamo.config.recompile_limit = 1000
        return torch.compile(function, dynamic=False, mode=mode)

    def _copy(self, n: int) -> None:
        buffers = self._copies[n % len(self._copies)]
        if self.device == "cpu":
            source, destination = buffers
            destination.copy_(source)
            return
        from benchmarks.kernels import triton_baseline

        triton_baseline.copy(*buffers, block=self.copy_block)

    def _transfer(self, *, at_once: bool) -> None:
        """Moves as many bytes as the bank rows of a step over the host's link, each way."""
        host_source, host_destination, source, destination, stream = self._transfers
        current = torch.cuda.current_stream()
        stream = stream if at_once else current
        stream.wait_stream(current)
        destination.copy_(host_source, non_blocking=True)
        with torch.cuda.stream(stream):
            host_destination.copy_(source, non_blocking=True)
        current.wait_stream(stream)

    @staticmethod
    def loss_and_grad(
        function: Callable, logits: Tensor, bank: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient, through autograd."""
        leaf = logits.detach().requires_grad_()
        loss = function(leaf, bank, index, **OPTIONS)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]
