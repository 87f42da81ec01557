"""Stochastic rounding to 16 bits: the random bits of csrc/alr_math.h in int64 arithmetic."""

import torch
from torch import Tensor


def rounded_stochastically(
    x: Tensor,  # [B, K] float32
    row: Tensor,  # [B] row of the batch that the random bits belong to
    dtype: torch.dtype,
    rounding_state: Tensor,  # [2] seed, calls so far
) -> Tensor:
    """Values of a 16-bit type next to x, at random such that the mean is x."""
    if dtype == torch.float32:
        return x
    column = torch.arange(x.shape[1], device=x.device)
    random = _rounding_bits(
        _rounding_key(rounding_state[0], rounding_state[1], row)[:, None], column
    )
    if dtype == torch.bfloat16:
        return ((x.view(torch.int32) + (random >> 16).int()) & -0x10000).view(torch.float32)
    # Below the smallest normal number the unit is 2^-24: adding 2^-14 lines the bits up.
    shift = (x.abs() < 2.0**-14).to(x.dtype) * 2.0**-14
    bits = (x.abs() + shift).view(torch.int32) + (random >> 19).int()
    return ((bits & -0x2000).view(torch.float32) - shift).copysign(x)


def _rounding_key(seed: Tensor, call: Tensor, row: Tensor) -> Tensor:
    """A number below 2^32 for each row: the finaliser of SplitMix64, in int64 that wraps."""
    golden = 0x9E3779B97F4A7C15 - 2**64
    x = seed + golden * (call + 1)
    for step in range(2):
        x = (x ^ _shifted_right(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
        x = (x ^ _shifted_right(x, 27)) * (0x94D049BB133111EB - 2**64)
        x = x ^ _shifted_right(x, 31)
        if step == 0:
            x = x + golden * (row + 1)
    return _shifted_right(x, 32)


def _shifted_right(x: Tensor, count: int) -> Tensor:
    """x >> count of int64 as if it had no sign."""
    return (x >> count) & ((1 << (64 - count)) - 1)


def _rounding_bits(key: Tensor, column: Tensor) -> Tensor:
    """32 random bits for each element, as int64."""
    low = 0xFFFFFFFF
    x = (column * 0x9E3779B9 + key) & low
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & low
    x = ((x ^ (x >> 15)) * 0x735A2D97) & low
    return x ^ (x >> 15)
