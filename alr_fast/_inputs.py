"""Converters at the public doors: lists, arrays and tensors of any integer type become tensors.

A tensor that already has the right form is returned as it is.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from alr_fast.errors import UserError

_INDEX_DTYPES = (torch.int64, torch.int32)


def as_labels(value: Any, name: str, *, device: torch.device | str | None = None) -> Tensor:
    """Class labels or indices as a tensor [n].

    Args:
        value: [n] or [n, 1] integers of any type: a tensor, an array, a list.
        name: Name of the argument, for errors.
        device: Device for values that are not tensors, by default the CPU. Tensors stay where they
            are.

    Returns:
        [n] int64, or int32 if `value` is an int32 tensor.

    Raises:
        UserError: The value is missing, not integers, or of another shape.
    """
    if isinstance(value, Tensor) and value.ndim == 1 and value.dtype in _INDEX_DTYPES:
        return value
    value = as_integers(value, name, device=device)
    if value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    if value.ndim != 1:
        raise UserError(
            f"must have shape [n], one integer for each sample{_hint(value)}",
            argument=name,
            value=f"of shape {tuple(value.shape)}",
        )
    return value


def as_integers(value: Any, name: str, *, device: torch.device | str | None = None) -> Tensor:
    """Integers of any shape as a tensor of int64 or int32; arguments and errors of `as_labels`."""
    if value is None:
        raise UserError("missing; pass one integer for each sample", argument=name)
    tensor = as_tensor(value, name, device=device)
    if tensor.dtype in _INDEX_DTYPES:
        return tensor
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        if tensor.numel() == 0 and not isinstance(value, Tensor):
            return tensor.long()  # an empty list has no type
        convert = ".long()" if isinstance(value, Tensor) else f"numpy.asarray({name}, dtype=int)"
        raise UserError(
            f"must be integers; convert them with {convert} if they are{_hint(tensor)}",
            argument=name,
            value=f"of type {tensor.dtype}",
        )
    return tensor.long()


def as_weights(value: Any, name: str, length: int, *, like: Tensor) -> Tensor:
    """Constant factors as a tensor [length] on the device of the logits.

    Args:
        value: [length] or [length, 1] numbers: a tensor, an array, a list.
        name: Name of the argument, for errors.
        length: Required number of entries.
        like: The logits; float64 for float64 logits, else float32.

    Raises:
        UserError: The value has another shape, is not real, requires a gradient, or is on another
            device.
    """
    tensor = as_tensor(value, name, device=like.device)
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.shape != (length,):
        raise UserError(
            f"must have shape [{length}]", argument=name, value=f"of shape {tuple(tensor.shape)}"
        )
    if tensor.is_complex():
        raise UserError("must be real numbers", argument=name, value=f"of type {tensor.dtype}")
    if tensor.requires_grad:
        raise UserError(f"is a constant: pass {name}.detach()", argument=name)
    check_device(tensor, name, like)
    return tensor.to(torch.float64 if like.dtype == torch.float64 else torch.float32)


def check_logits(logits: Any) -> None:
    """Refuses what cannot be logits of a loss.

    Raises:
        UserError: They are not a tensor [B, K], or a DTensor.
    """
    if not isinstance(logits, Tensor):
        raise UserError(
            "must be a tensor, the output of the model",
            argument="logits",
            value=f"of type {type(logits).__name__}",
        )
    check_local(logits)
    if not logits.is_floating_point():
        raise UserError(
            "must be float32, float16 or bfloat16 (float64 too on the CPU): pass the output of the "
            "model, before any argmax",
            argument="logits",
            value=f"of type {logits.dtype}",
        )
    if logits.ndim != 2:
        raise UserError(
            "must have shape [B, K], one row for each sample",
            argument="logits",
            value=f"of shape {tuple(logits.shape)}",
        )


def check_local(logits: Tensor) -> None:
    """Refuses a DTensor with a `UserError`."""
    if type(logits) is not Tensor and type(logits).__name__ == "DTensor":
        raise UserError(
            "a DTensor's rows may be on other ranks: pass logits.full_tensor(), or "
            "logits.to_local() and the index of these rows if it is sharded by rows",
            argument="logits",
        )


def check_device(value: Tensor, name: str, logits: Tensor) -> None:
    """Refuses a tensor on another device than the logits with a `UserError`."""
    if value.device != logits.device:
        raise UserError(
            f"must be on {logits.device}, where the logits are: pass {name}.to(logits.device)",
            argument=name,
            value=f"on {value.device}",
        )


def as_tensor(value: Any, name: str, *, device: torch.device | str | None = None) -> Tensor:
    """Numbers of any shape and type as a tensor; arguments as in `as_labels`.

    Raises:
        UserError: The value is not made of numbers.
    """
    if isinstance(value, Tensor):
        return value
    if torch.compiler.is_compiling():  # which follows torch, but not the array type below
        return torch.as_tensor(value, device=device)
    try:
        array = np.asarray(value)
        if array.dtype.kind == "u":
            array = array.astype(np.int64)  # torch supports few operations on unsigned integers
        elif array.dtype.kind not in "biufc":
            raise TypeError(f"holds {array.dtype}")
        # A copy where torch cannot share the memory: negative strides, read-only or swapped bytes.
        array = np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
        return torch.as_tensor(array, device=device)
    except (TypeError, ValueError) as error:
        remedy = "; map class names to integers 0 to K - 1 first" if "label" in name else ""
        raise UserError(
            f"must be numbers: a tensor, an array or a list of equal rows ({error}){remedy}",
            argument=name,
            value=f"of type {type(value).__name__}",
        ) from error


def _hint(value: Tensor) -> str:
    if value.is_floating_point() and value.ndim == 2:
        return (
            ". Soft labels (of mixup, or one-hot) have no given class that could be refined: mix "
            "the losses of two hard labels, or use alr_fast.functional.soft_target_cross_entropy"
        )
    return ""
