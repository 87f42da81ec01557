"""Rows that are sharded by rank, as DTensors of bounded chunks."""

from itertools import pairwise

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._shards_wrapper import LocalShardsWrapper

CHUNK_BYTES = 32 << 20  # how much of a shard DCP takes into memory at once


def shard(rows: Tensor, offset: int, total: int, mesh: DeviceMesh) -> DTensor:
    """Names a process's rows as a part of a tensor that all processes hold together.

    Nothing is copied and nothing is sent: what `load` reads lands in `rows`. The result is for
    `CheckpointStore.save` and `load`, not for computing.

    Args:
        rows: [n, K] or [n], any dtype, the rows offset..offset+n; n may differ between the
            processes and be 0. It may be a memory-mapped file that is larger than the memory.
        offset: Number of the first row.
        total: Rows of the whole tensor.
        mesh: 1-D mesh of all processes, on the kind of device where the rows are.

    Returns:
        A DTensor of shape [total, K] or [total], cut into views of at most CHUNK_BYTES bytes, or
        one row. The cuts are at the same rows whoever holds them, so that another number of
        processes reads most chunks once.

    Raises:
        ValueError: the rows have another number of dimensions, do not lie within the tensor, are
            not all of it where there is one process, or are on another device than the mesh.
    """
    end = offset + len(rows) if rows.ndim else offset
    if rows.ndim not in (1, 2):
        raise ValueError(
            f"rows must have shape [n] or [n, K], got {tuple(rows.shape)}: flatten them to [n, K]"
        )
    if not 0 <= offset <= end <= total or (mesh.size() == 1 and len(rows) != total):
        raise ValueError(
            f"rows {offset} to {end} are not this process's part of {total} rows held by "
            f"{mesh.size()} processes: offset and total count rows of the whole tensor"
        )
    if rows.device.type != mesh.device_type:  # DTensor would copy them all over
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
    # DTensor itself knows only shards of ceil(total / processes) rows; shape and stride tell it
    # not to compute them from that, and DCP asks the wrapper for what is where.
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


def _dtype(tensor: Tensor) -> torch.dtype:
    # A LocalShardsWrapper, and so the DTensor around it, claims to be float32 whatever it holds.
    return _chunks(tensor).local_shards()[0].dtype if isinstance(tensor, DTensor) else tensor.dtype


def _without_empty_shards(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What this process has to write or read.

    An empty shard begins where the next process's begins: DCP takes the two for copies of the same
    chunk and may keep the empty one.
    """
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not isinstance(tensor, DTensor) or any(len(c) for c in _chunks(tensor).local_shards())
    }


def _host_copy(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """A copy in memory of its own, strides kept; of a DTensor chunk by chunk, onto a CPU mesh."""
    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True)
    local = _chunks(tensor)
    copies = [chunk.to("cpu", copy=True) for chunk in local.local_shards()]
    return _dtensor(copies, local.local_offsets(), tensor.shape, mesh)
