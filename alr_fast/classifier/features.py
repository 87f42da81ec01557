"""Inputs of the classifier: batches of features of a dense matrix in memory or in a file, or of a
sparse matrix; checks of labels and sample weights."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from alr_fast.errors import UserError

# A dense matrix up to this size as float32 is copied to memory, scaled once; of a larger one that
# stays on the CPU each batch is copied.
COPY_BYTES = 1 << 30
_BLOCK_BYTES = 32 << 20  # of float32 features converted at a time

# [N, D] real numbers: an array, also in a file, or a SciPy matrix in CSR format.
Matrix = Any


@dataclass(frozen=True, eq=False)
class Scaling:
    """Affine map of each feature, `(x - mean) / scale`.

    Attributes:
        mean: float64 [D].
        scale: float64 [D]; 1 for a constant feature.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, matrix: Matrix) -> "Scaling":
        """The map to zero mean and unit variance of a dense matrix, which is read once."""
        scaler = StandardScaler()
        for rows in blocks(matrix):
            scaler.partial_fit(matrix[rows])
        return cls(scaler.mean_, scaler.scale_)

    def __call__(self, part: NDArray[Any]) -> NDArray[Any]:
        """The scaled features, in place of ``part`` [M, D], float32 or float64."""
        # Two numbers of the same precision as the features: float64 would double the work.
        part -= self.mean.astype(part.dtype)
        part /= self.scale.astype(part.dtype)
        return part


class Features(Protocol):
    """The features of a training set on one device."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor) -> Tensor:
        """Features [B, D] float32 of these rows, int64 [B] on the device."""
        ...


def make_features(
    matrix: Matrix, scaling: Scaling | None, device: torch.device, *, keep_sparse: bool
) -> Features:
    """Chooses how batches are made.

    Args:
        matrix: [N, D].
        scaling: Map of dense features.
        device: Device of the batches.
        keep_sparse: Whether batches of a sparse matrix stay sparse (CSR) on the CPU.
    """
    if sparse.issparse(matrix):
        return SparseFeatures(matrix, device, dense=device.type != "cpu" or not keep_sparse)
    if device.type == "cpu" and 4 * matrix.size > COPY_BYTES:
        return LargeFeatures(matrix, scaling)
    return DenseFeatures(matrix, scaling, device)


class DenseFeatures:
    """A scaled float32 copy of a dense matrix on the device."""

    def __init__(self, matrix: Matrix, scaling: Scaling | None, device: torch.device) -> None:
        self._copy = torch.empty(matrix.shape, device=device)
        for rows in blocks(matrix):
            self._copy[rows] = as_tensor(matrix[rows], scaling).to(device)

    def __len__(self) -> int:
        return len(self._copy)

    def batch(self, rows: Tensor) -> Tensor:
        return self._copy.index_select(0, rows)


class LargeFeatures:
    """A dense matrix that stays where it is, for example in a memory-mapped file."""

    def __init__(self, matrix: Matrix, scaling: Scaling | None) -> None:
        self._matrix, self._scaling = matrix, scaling

    def __len__(self) -> int:
        return len(self._matrix)

    def batch(self, rows: Tensor) -> Tensor:
        numbers = rows.numpy()
        ascending = np.argsort(numbers)  # a disk reads faster in order
        part = np.empty((len(numbers), self._matrix.shape[1]), self._matrix.dtype)
        part[ascending] = self._matrix[numbers[ascending]]
        return as_tensor(part, self._scaling)


class SparseFeatures:
    """A sparse matrix in CSR format; it is not scaled, since centring would fill it."""

    def __init__(self, matrix: Matrix, device: torch.device, *, dense: bool) -> None:
        self._matrix, self._device, self._dense = matrix, device, dense
        if not dense:
            with warnings.catch_warnings():
                # torch warns once that CSR tensors are in beta.
                warnings.simplefilter("ignore", UserWarning)
                as_csr_tensor(matrix[:1])

    def __len__(self) -> int:
        return int(self._matrix.shape[0])

    def batch(self, rows: Tensor) -> Tensor:
        part = self._matrix[rows.cpu().numpy()]
        return as_tensor(part, None).to(self._device) if self._dense else as_csr_tensor(part)


def as_tensor(part: Any, scaling: Scaling | None) -> Tensor:
    """A scaled copy of some rows, dense or sparse: float32 [M, D] on the CPU."""
    if sparse.issparse(part):
        part = part.toarray()
    # Large numbers of 64 bits are centred before they are rounded.
    part = part.astype(np.result_type(part.dtype, np.float32))
    if scaling is not None:
        part = scaling(part)
    return torch.from_numpy(part.astype(np.float32, copy=False))


def as_csr_tensor(part: Any) -> Tensor:
    """Some rows of a CSR matrix, float32 [M, D] in CSR layout."""
    indptr, indices = torch.from_numpy(part.indptr), torch.from_numpy(part.indices)
    values = torch.from_numpy(part.data.astype(np.float32))
    return torch.sparse_csr_tensor(indptr, indices, values, part.shape, check_invariants=False)


def blocks(matrix: Matrix) -> Iterator[slice]:
    """Consecutive rows that fit into memory as dense float32."""
    n, width = matrix.shape
    step = max(1, _BLOCK_BYTES // (4 * max(width, 1)))
    for first in range(0, n, step):
        yield slice(first, min(first + step, n))


def mean_squared_norm(matrix: Matrix, scaling: Scaling | None) -> float:
    """Mean of the squared Euclidean norms of the rows after scaling; 1 if all are zero."""
    if sparse.issparse(matrix):
        total = float(np.square(matrix.data, dtype=np.float64).sum())
    else:
        total = sum(
            float(as_tensor(matrix[rows], scaling).square().sum(dtype=torch.float64))
            for rows in blocks(matrix)
        )
    return total / max(matrix.shape[0], 1) or 1.0


def on_host(value: Any, name: str) -> Any:
    """A tensor as an array, everything else as it is.

    Raises:
        UserError: The tensor, the argument ``name``, is sparse.
    """
    if not isinstance(value, Tensor):
        return value
    if value.layout != torch.strided:
        raise UserError(
            "is a sparse tensor; pass a SciPy matrix, or tensor.to_dense()", argument=name
        )
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def check_none_missing(labels: Any) -> None:
    """Refuses labels of pandas with a missing one, which scikit-learn cannot compare.

    Raises:
        UserError: One is missing.
    """
    if not hasattr(labels, "isna"):
        return
    rows = np.flatnonzero(np.asarray(labels.isna()))
    if len(rows):
        raise UserError(
            f"has no label in row {rows[0]} and {len(rows) - 1} more; drop samples without a label",
            argument="y",
        )


def checked_weights(weights: ArrayLike | None, n: int) -> NDArray[np.float32] | None:
    """Weights float32 [N] with a mean of 1; None if all are equal.

    Raises:
        UserError: Not ``n`` finite numbers of 0 or more, or all are zero.
    """
    if weights is None:
        return None
    host = on_host(weights, "sample_weight")
    try:
        found = np.asarray(host, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"no numbers ({error})", argument="sample_weight") from error
    if found.shape != (n,):
        raise UserError(
            f"shape {found.shape}; pass one number for each of the {n} samples",
            argument="sample_weight",
        )
    if not (np.isfinite(found).all() and (found >= 0).all() and found.sum() > 0):
        raise UserError(
            "must be finite numbers, 0 or more, and not all zero", argument="sample_weight"
        )
    if (found == found[0]).all():
        return None
    scaled: NDArray[np.float32] = (found / found.mean()).astype(np.float32)
    return scaled
