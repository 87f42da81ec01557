"""The checks of csrc/ops.h and csrc/cpu/launch.cpp in Python, for operators without the library.

Order, messages and types of the errors are the same, so that the same tests hold for both.
"""

import math
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
STATUS_SIZE = 3  # csrc/alr_params.h


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _check_float(tensor: Tensor, name: str, *, allow_double: bool) -> None:
    allowed = (*_FLOATS, torch.float64) if allow_double else _FLOATS
    also = " (float64 too on the CPU)" if allow_double else ""
    _check(
        tensor.dtype in allowed,
        f"{name} must be float32, float16 or bfloat16{also}: convert it with .to(dtype)",
    )


def _check_matrix(tensor: Tensor, name: str) -> None:
    _check(
        tensor.dim() == 2,
        f"{name} must have two dimensions [rows, classes], got {_shape(tensor)}",
    )
    _check(tensor.shape[1] >= 1, f"{name} must have at least one class, got {_shape(tensor)}")
    _check(
        tensor.shape[1] == 1 or tensor.stride(1) == 1 or tensor.shape[0] == 0,
        f"{name} must be contiguous in its last dimension: pass {name}.contiguous()",
    )


def check_logits(logits: Tensor) -> None:
    """Logits [B, K]."""
    _check_matrix(logits, "logits")
    _check_float(logits, "logits", allow_double=logits.is_cpu)


def check_table(logits: Tensor, table: Tensor, name: str) -> None:
    """Target rows [M, K] of any float type but float64, where the logits are."""
    _check_matrix(table, name)
    _check(
        table.shape[1] == logits.shape[1],
        f"{name} has {table.shape[1]} classes, the logits have {logits.shape[1]}: both must be of "
        "the same classes",
    )
    if logits.is_cpu:
        _check(table.is_cpu, f"{name} is not on the CPU, where the logits are: move one of them")
    elif table.device != logits.device:
        _check(
            table.is_cpu and table.is_pinned(),
            f"{name} is on another device than the logits: move it there, or into pinned host "
            "memory with .pin_memory()",
        )
    _check_float(table, name, allow_double=False)


def check_bank(logits: Tensor, bank: Tensor) -> None:
    """A table that is written: its rows overlap neither each other nor the logits."""
    check_table(logits, bank, "bank")
    _check(
        bank.shape[0] <= 1 or bank.stride(0) >= bank.shape[1],
        "bank rows overlap in memory: pass a bank that is not expanded",
    )
    _check(
        not _overlap(logits, bank),
        "logits and bank share memory, and the bank is written while the logits are read: pass "
        "logits.clone()",
    )


class _Extent(NamedTuple):
    """Bytes of a matrix: the first, the first after it, those of a row, and from row to row."""

    begin: int
    end: int
    row: int
    stride: int


def _extent(matrix: Tensor) -> _Extent:
    (rows, classes), item = matrix.shape, matrix.element_size()
    begin, stride = matrix.data_ptr(), matrix.stride(0)
    return _Extent(
        begin, begin + ((rows - 1) * stride + classes) * item, classes * item, stride * item
    )


def _overlap(logits: Tensor, bank: Tensor) -> bool:
    """Whether both share memory; not if they are different columns of one matrix."""
    if len(logits) == 0 or len(bank) == 0:
        return False
    z, t = _extent(logits), _extent(bank)
    if z.end <= t.begin or t.end <= z.begin:
        return False
    if z.stride != t.stride or z.stride == 0:
        return True
    apart = (t.begin - z.begin) % z.stride
    return apart < z.row or apart + t.row > z.stride


def _check_batch_vector(tensor: Tensor, logits: Tensor, name: str) -> None:
    _check(
        tensor.dim() == 1 and len(tensor) == len(logits),
        f"{name} must have shape [{len(logits)}], one entry for each row of the logits, got "
        f"{_shape(tensor)}",
    )
    _check(
        tensor.device == logits.device,
        f"{name} is on another device than the logits: pass {name}.to(logits.device)",
    )


def check_integers(logits: Tensor, tensor: Tensor | None, name: str) -> None:
    """An index or a label of each row [B], or None."""
    if tensor is None:
        return
    _check_batch_vector(tensor, logits, name)
    _check(
        tensor.dtype in (torch.int64, torch.int32),
        f"{name} must be int64 or int32: convert it with .long()",
    )


def check_row_for_each(logits: Tensor, table: Tensor) -> None:
    """Target rows [B, K] that belong to the rows of the logits."""
    _check(
        len(table) == len(logits),
        f"without an index the table must have one row for each of the {len(logits)} rows of the "
        f"logits, got {_shape(table)}",
    )


def check_labels_of_table(
    logits: Tensor, table: Tensor, labels: Tensor | None, given_labels: Tensor | None
) -> None:
    """Labels [B] and given labels [M] that belong to a table [M, K]."""
    check_integers(logits, labels, "labels")
    if given_labels is None:
        return
    _check(labels is not None, "given_labels are compared with labels: pass labels as well")
    check_given_labels(logits, given_labels)
    _check(
        len(given_labels) == len(table),
        f"given_labels has {len(given_labels)} entries, the table {len(table)} rows: both must be "
        "of the same samples",
    )


def check_samples_of_labels(
    logits: Tensor, index: Tensor | None, given_labels: Tensor | None
) -> None:
    """Sample indices [B] and given labels [N] without a table."""
    check_integers(logits, index, "index")
    _check(
        index is not None or given_labels is None,
        "given_labels are compared with the labels by sample: pass index as well",
    )
    if given_labels is not None:
        check_given_labels(logits, given_labels)


def check_given_labels(logits: Tensor, given_labels: Tensor) -> None:
    """The label of each sample."""
    _check(
        given_labels.dtype == torch.int32
        and given_labels.dim() == 1
        and given_labels.is_contiguous()
        and given_labels.device == logits.device,
        "given_labels must be a contiguous int32 tensor [samples] on the device of the logits, got "
        f"shape {_shape(given_labels)}",
    )


def check_row_weight(logits: Tensor, row_weight: Tensor | None) -> None:
    """Factors [B], float64 for float64 logits, else float32."""
    if row_weight is None:
        return
    _check_batch_vector(row_weight, logits, "row_weight")
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    _check(
        row_weight.dtype == dtype and row_weight.is_contiguous(),
        f"row_weight must be contiguous {str(dtype).removeprefix('torch.')} for these logits",
    )


def check_int64(logits: Tensor, tensor: Tensor | None, count: int, name: str) -> None:
    """A tensor that the operators write, or None."""
    if tensor is None:
        return
    _check(
        tensor.dtype == torch.int64
        and tensor.numel() == count
        and tensor.is_contiguous()
        and tensor.device == logits.device,
        f"{name} must be a contiguous int64 tensor of {count} elements on the device of the logits",
    )


def check_options(
    logits: Tensor,
    row_weight: Tensor | None,
    status: Tensor | None,
    momentum: float,
    entropy_weight: float,
    reduction: int,
    grad_mode: int,
) -> None:
    """Numbers, weights and counters."""
    _check(0 <= momentum <= 1, f"momentum must lie in [0, 1], got {momentum:g}")
    _check(math.isfinite(entropy_weight), f"entropy_weight must be finite, got {entropy_weight:g}")
    _check(reduction in (0, 1, 2), f"unknown reduction {reduction}")
    _check(grad_mode in (0, 1, 2), f"unknown grad_mode {grad_mode}")
    check_row_weight(logits, row_weight)
    check_int64(logits, status, STATUS_SIZE, "status")


def check_smoothing(smoothing: float) -> None:
    """The rate of label smoothing."""
    _check(math.isfinite(smoothing), f"smoothing must be finite, got {smoothing:g}")


def check_stats(logits: Tensor, stats_class: Tensor | None, stats_value: Tensor | None) -> None:
    """The two tensors of the statistics, [3, B] and [2, B]."""
    rows = len(logits)
    check_int64(logits, stats_class, 3 * rows, "stats_class")
    if stats_class is None:
        return
    _check(
        stats_value is not None
        and stats_value.dtype == torch.float32
        and stats_value.numel() == 2 * rows
        and stats_value.is_contiguous()
        and stats_value.device == logits.device,
        f"stats_value must be a contiguous float32 tensor [2, {rows}]",
    )


def check_scale_grad(
    grad_rows: Tensor,
    grad_scale: Tensor | None,
    grad_output: Tensor,
    row_weight: Tensor | None,
) -> None:
    """The arguments of `scale_grad`."""
    _check_matrix(grad_rows, "grad_rows")
    _check_float(grad_rows, "grad_rows", allow_double=True)
    rows = len(grad_rows)
    acc = torch.float64 if grad_rows.dtype == torch.float64 else torch.float32
    _check(grad_output.dtype == acc, "grad_output must have the dtype of the loss")
    _check(
        grad_scale is None or (grad_scale.dtype == acc and grad_scale.device == grad_rows.device),
        "grad_scale must be what the forward operator returned",
    )
    _check(
        grad_output.dim() == 0 or (grad_output.dim() == 1 and len(grad_output) == rows),
        f"grad_output must be a scalar or have shape [{rows}], got {_shape(grad_output)}",
    )
    _check(
        grad_rows.is_contiguous() and grad_rows.device == grad_output.device,
        "grad_rows must be contiguous and lie on the device of grad_output",
    )
    check_row_weight(grad_rows, row_weight)


# Values, which only the CPU may look at: elsewhere that would mean waiting for the device.


def raise_beyond_targets(b: int, i: int, size: int, *, has_table: bool) -> NoReturn:
    """An index beyond the table, or a label beyond the classes."""
    if has_table:
        raise IndexError(
            f"index[{b}] is {i}, but the table has {size} rows: index must be the position of the "
            "sample in the training set that the table was made for, or negative to ignore the row"
        )
    raise IndexError(
        f"labels[{b}] is {i}, but the logits have {size} classes: a label must lie in [0, "
        "classes), or be negative to ignore the row"
    )


def raise_for_label(b: int, sample: int, label: int, given_labels: Tensor) -> NoReturn:
    """A sample beyond the given labels, or another label than the given one."""
    if sample >= len(given_labels):
        raise IndexError(
            f"index[{b}] is {sample}, but there are {len(given_labels)} given labels: index must "
            "be the position of the sample in the training set, or negative to ignore the row"
        )
    raise ValueError(
        f"labels[{b}] is {label}, but sample {sample} (index[{b}]) has the given label "
        f"{int(given_labels[sample])}: is index shifted? Pass each sample's own index. If the "
        "label was corrected, call LabelBank.correct_labels(index, labels) first; "
        "check_labels=False turns this check off"
    )
