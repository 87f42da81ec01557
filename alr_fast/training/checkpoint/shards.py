"""Rows sharded by rank, as DTensors of bounded chunks."""

from itertools import pairwise

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._shards_wrapper import LocalShardsWrapper

CHUNK_BYTES = 32 << 20  # the most that DCP copies into memory at once


def shard(
    rows: Tensor, offset: int, total: int, mesh: DeviceMesh, *, whole: bool = True
) -> DTensor:
    """Declares rows of this process to be a part of a tensor that all processes hold together.

    Nothing is copied or sent: `load` reads into `rows` itself. The result is for
    `CheckpointStore.save` and `load`, not for computation.

    Args:
        rows: [n, K] or [n], any dtype, the rows offset..offset+n of the whole tensor. n may differ
            between processes and be 0. A memory-mapped file may be larger than the memory.
        offset: Number of the first row.
        total: Number of rows of the whole tensor.
        mesh: 1-D mesh of all processes, on the device type of the rows.
        whole: Whether the processes hold all rows together. False for a part to `load`, which may
            be a part of other processes, too.

    Returns:
        A DTensor of shape [total, K] or [total], cut into views of at most CHUNK_BYTES bytes, or of
        one row. The cuts do not depend on the distribution of the rows, so that another number of
        processes reads most chunks once.

    Raises:
        ValueError: The rows have another number of dimensions, lie outside of the whole tensor, are
            incomplete with a single process, or are on another device type than the mesh.
    """
    end = offset + len(rows) if rows.ndim else offset
    if rows.ndim not in (1, 2):
        raise ValueError(
            f"rows must have shape [n] or [n, K], got {tuple(rows.shape)}: flatten them to [n, K]"
        )
    if not 0 <= offset <= end <= total or (whole and mesh.size() == 1 and len(rows) != total):
        raise ValueError(
            f"rows {offset} to {end} are not this process's part of {total} rows held by "
            f"{mesh.size()} processes: offset and total count rows of the whole tensor"
        )
    if rows.device.type != mesh.device_type:  # DTensor would copy all of them
        raise ValueError(
            f"rows are on {rows.device}, the mesh is for {mesh.device_type}: make the mesh with "
            f'device_type="{rows.device.type}"'
        )
    row_bytes = rows[0].nbytes if len(rows) else 0
    step = max(1, CHUNK_BYTES // max(1, row_bytes))
    cuts = [offset, *range((offset // step + 1) * step, end, step), end]
    chunks = [rows.detach()[a - offset : b - offset] for a, b in pairwise(cuts)]
    starts = [(cut, *[0] * (rows.ndim - 1)) for cut in cuts[:-1]]
    return _dtensor(chunks, starts, torch.Size((total, *rows.shape[1:])), mesh)


def _dtensor(
    chunks: list[Tensor], starts: list[tuple[int, ...]], shape: torch.Size, mesh: DeviceMesh
) -> DTensor:
    # DTensor alone supports only shards of ceil(total / processes) rows. Shape and stride are
    # passed so that it does not derive them from that; DCP asks the wrapper for the chunks.
    stride = torch.empty(shape, device="meta").stride()
    wrapper = LocalShardsWrapper(chunks, starts)
    with torch.no_grad():
        return DTensor.from_local(wrapper, mesh, [Shard(0)], shape=shape, stride=stride)


def _chunks(tensor: DTensor) -> LocalShardsWrapper:
    with torch.no_grad():
        local = tensor.to_local()
    if not isinstance(local, LocalShardsWrapper):
        raise TypeError(
            "a DTensor in a checkpoint must come from alr_fast.training.checkpoint.shards.shard"
        )
    return local


def dtype_of(tensor: Tensor) -> torch.dtype:
    """Returns the dtype of the rows: a DTensor of `shard` itself always reports float32."""
    return _chunks(tensor).local_shards()[0].dtype if isinstance(tensor, DTensor) else tensor.dtype


def without_empty_shards(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors that this process has to write or read.

    An empty shard starts where the next process's shard starts: DCP takes the two for copies of the
    same chunk and may keep the empty one.
    """
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not isinstance(tensor, DTensor) or any(len(c) for c in _chunks(tensor).local_shards())
    }


def host_copy(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """Copies a tensor into CPU memory of its own, with its strides; `mesh` is a CPU mesh."""
    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True)
    local = _chunks(tensor)
    copies = [chunk.to("cpu", copy=True) for chunk in local.local_shards()]
    starts = [tuple(start) for start in local.local_offsets()]
    return _dtensor(copies, starts, tensor.shape, mesh)
