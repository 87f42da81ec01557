"""A straightforward implementation in Triton, the baseline for the fused kernels on a GPU.

The forward pass writes the loss of each row and the gradient of the logits; a second kernel then
updates the bank rows and recomputes the prediction from the logits and the saved logsumexp; the
backward pass scales the gradient. fp32 arithmetic, one rounding at the end, 64-bit row offsets.
The indices of a batch must be distinct and within the bank, the logits finite: nothing is checked.

This file also contains the copy with two reads and two writes, the upper limit of the bandwidth
figures. The number of warps depends on the row length; autotuning on a bank is not possible, as
every trial would apply the update.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Longest row that one program holds at once, in elements. Longer rows are read twice.
ROW_LIMIT = 65536
# Elements of a row that a program of the other kernels holds.
_CHUNK = 8192


@triton.jit
def _row_kernel(
    logits,  # [B, K]
    bank,  # [N, K]
    index,  # [B]
    loss,  # [B] float32
    log_sum,  # [B] float32
    grad,  # [B, K]
    logits_stride,  # in units of DIVISOR
    classes,  # in units of DIVISOR
    momentum,
    entropy_weight,
    grad_factor,
    DIVISOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Loss, logsumexp and gradient of a row that fits into a block."""
    logits_stride *= DIVISOR
    classes *= DIVISOR
    row = tl.program_id(0).to(tl.int64)
    bank_row = tl.load(index + row).to(tl.int64)
    k = tl.arange(0, BLOCK)
    mask = k < classes
    z = tl.load(logits + row * logits_stride + k, mask=mask, other=-float("inf")).to(tl.float32)
    old = tl.load(bank + bank_row * classes + k, mask=mask, other=0.0).to(tl.float32)
    highest = tl.max(z, 0)
    e = tl.exp(z - highest)
    total = tl.sum(e, 0)
    p = e / total
    # 0 beyond the row, where -inf times the probability 0 would be NaN.
    log_p = tl.where(mask, z - highest - tl.log(total), 0.0)
    target = momentum * old + (1 - momentum) * p
    entropy = -tl.sum(p * log_p, 0)
    mass = tl.sum(target, 0)
    tl.store(loss + row, -tl.sum(target * log_p, 0) + entropy_weight * entropy)
    tl.store(log_sum + row, highest + tl.log(total))
    g = p * mass - target - entropy_weight * p * (log_p + entropy)
    tl.store(grad + row * classes + k, (g * grad_factor).to(grad.dtype.element_ty), mask=mask)


@triton.jit
def _long_row_kernel(
    logits,  # [B, K]
    bank,  # [N, K]
    index,  # [B]
    loss,  # [B] float32
    log_sum,  # [B] float32
    grad,  # [B, K]
    logits_stride,  # in units of DIVISOR
    classes,  # in units of DIVISOR
    momentum,
    entropy_weight,
    grad_factor,
    DIVISOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The same for longer rows: a pass for the sums (online softmax) and one for the gradient."""
    logits_stride *= DIVISOR
    classes *= DIVISOR
    row = tl.program_id(0).to(tl.int64)
    bank_row = tl.load(index + row).to(tl.int64)
    logits += row * logits_stride
    bank += bank_row * classes
    grad += row * classes
    highest = -float("inf")
    total = 0.0  # sum of exp(z - highest)
    weighted = 0.0  # sum of exp(z - highest) * z
    old_mass = 0.0  # sum of T
    old_dot = 0.0  # sum of T * z
    for start in range(0, classes, BLOCK):
        k = start + tl.arange(0, BLOCK)
        mask = k < classes
        z = tl.load(logits + k, mask=mask, other=-float("inf")).to(tl.float32)
        old = tl.load(bank + k, mask=mask, other=0.0).to(tl.float32)
        higher = tl.maximum(highest, tl.max(z, 0))
        shrink = tl.exp(highest - higher)
        e = tl.exp(z - higher)
        finite_z = tl.where(mask, z, 0.0)
        total = total * shrink + tl.sum(e, 0)
        weighted = weighted * shrink + tl.sum(e * finite_z, 0)
        old_mass += tl.sum(old, 0)
        old_dot += tl.sum(old * finite_z, 0)
        highest = higher
    lse = highest + tl.log(total)
    entropy = lse - weighted / total
    cross_entropy = momentum * (lse * old_mass - old_dot) + (1 - momentum) * entropy
    mass = momentum * old_mass + (1 - momentum)
    tl.store(loss + row, cross_entropy + entropy_weight * entropy)
    tl.store(log_sum + row, lse)
    for start in range(0, classes, BLOCK):
        k = start + tl.arange(0, BLOCK)
        mask = k < classes
        log_p = tl.load(logits + k, mask=mask, other=0.0).to(tl.float32) - lse
        old = tl.load(bank + k, mask=mask, other=0.0).to(tl.float32)
        p = tl.exp(log_p)
        target = momentum * old + (1 - momentum) * p
        g = p * mass - target - entropy_weight * p * (log_p + entropy)
        tl.store(grad + k, (g * grad_factor).to(grad.dtype.element_ty), mask=mask)


@triton.jit
def _bank_kernel(
    logits,  # [B, K]
    bank,  # [N, K], updated
    index,  # [B]
    log_sum,  # [B] float32
    logits_stride,  # in units of DIVISOR
    classes,  # in units of DIVISOR
    momentum,
    DIVISOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """T = momentum * T + (1 - momentum) * p in a chunk of a row."""
    logits_stride *= DIVISOR
    classes *= DIVISOR
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = k < classes
    z = tl.load(logits + row * logits_stride + k, mask=mask, other=0.0).to(tl.float32)
    entries = bank + tl.load(index + row).to(tl.int64) * classes + k
    old = tl.load(entries, mask=mask, other=0.0).to(tl.float32)
    new = momentum * old + (1 - momentum) * tl.exp(z - tl.load(log_sum + row))
    tl.store(entries, new.to(bank.dtype.element_ty), mask=mask)


@triton.jit
def _scale_kernel(grad, factor, scaled, elements, BLOCK: tl.constexpr):
    """scaled = grad * factor, the factor a scalar in device memory."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < elements
    g = tl.load(grad + i, mask=mask).to(tl.float32) * tl.load(factor)
    tl.store(scaled + i, g.to(scaled.dtype.element_ty), mask=mask)


@triton.jit
def _copy_kernel(first, second, first_copy, second_copy, elements, BLOCK: tl.constexpr):
    """Two reads and two writes an element."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < elements
    a = tl.load(first + i, mask=mask)
    b = tl.load(second + i, mask=mask)
    tl.store(first_copy + i, a, mask=mask)
    tl.store(second_copy + i, b, mask=mask)


def _warps(block: int) -> int:
    """Warps of a program: about 16 elements of a row to a thread, at most 32 warps."""
    return min(max(block // 512, 1), 32)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, bank, index, momentum, entropy_weight, row_limit):
        batch, classes = logits.shape
        loss = torch.empty(batch, dtype=torch.float32, device=logits.device)
        log_sum = torch.empty_like(loss)
        grad = torch.empty((batch, classes), dtype=logits.dtype, device=logits.device)
        block = triton.next_power_of_2(classes)
        # Rows of 1000 begin at multiples of 8: with this hint a kernel reads four elements at once.
        divisor = math.gcd(classes, logits.stride(0), 16)
        sizes = (logits.stride(0) // divisor, classes // divisor)
        kernel = _row_kernel
        if block > row_limit:
            kernel, block = _long_row_kernel, min(_CHUNK, block)
        kernel[(batch,)](
            logits, bank, index, loss, log_sum, grad, *sizes, momentum, entropy_weight, 1 / batch,
            DIVISOR=divisor, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
        block = min(block, _CHUNK)
        _bank_kernel[(batch, triton.cdiv(classes, block))](
            logits, bank, index, log_sum, *sizes, momentum,
            DIVISOR=divisor, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
        ctx.save_for_backward(grad)
        return loss.mean()

    @staticmethod
    def backward(ctx, grad_loss):
        (grad,) = ctx.saved_tensors
        scaled = torch.empty_like(grad)
        block = 4096
        _scale_kernel[(triton.cdiv(grad.numel(), block),)](
            grad, grad_loss, scaled, grad.numel(), BLOCK=block, num_warps=8
        )
        return scaled, None, None, None, None, None


def alr_loss(
    logits: Tensor,  # [B, K]
    bank: Tensor,  # [N, K], updated in place
    index: Tensor,  # [B]
    *,
    momentum: float = 0.9,
    entropy_weight: float = 0.1,
    unique_index: bool = True,
    row_limit: int = ROW_LIMIT,
) -> Tensor:
    """The mean loss like `alr_fast.functional.alr_loss`, for contiguous rows.

    Args:
        row_limit: Longest row that one program holds at once, in elements, at most 65536.

    Raises:
        ValueError: ``unique_index`` is False, or the rows are not contiguous.
    """
    if not unique_index:
        raise ValueError("the Triton baseline needs distinct indices: pass unique_index=True")
    if logits.stride(-1) != 1 or not bank.is_contiguous() or not index.is_contiguous():
        raise ValueError("the Triton baseline reads contiguous rows")
    return _Loss.apply(logits, bank, index, momentum, entropy_weight, row_limit)


def copy(
    first: Tensor, second: Tensor, first_copy: Tensor, second_copy: Tensor, *, block: int = 4096
) -> None:
    """Copies two contiguous tensors with the same number of elements in one launch.

    Args:
        block: Elements of each tensor that a program moves.
    """
    elements = first.numel()
    _copy_kernel[(triton.cdiv(elements, block),)](
        first, second, first_copy, second_copy, elements,
        BLOCK=block, num_warps=min(max(block // 256, 4), 16),
    )  # fmt: skip
