"""Groups of gloo processes for tests of code that users run under torchrun.

A fork server imports torch once, so that a group starts in a fraction of a second.
"""

import multiprocessing
import os
import pickle
import tempfile
import traceback

import torch
import torch.distributed as dist

_SECONDS = 120  # a group that takes longer is taken to hang
_context = multiprocessing.get_context("forkserver")


def run_group(world_size: int, function, *arguments, preload: tuple[str, ...] = ()) -> list:
    """Calls a function on each rank of a new process group; returns the results by rank."""
    _context.set_forkserver_preload(["alr_fast.integrations", "alr_fast.data", *preload])
    with tempfile.NamedTemporaryFile() as file:
        started = []
        for rank in range(world_size):
            pipe, theirs = _context.Pipe()
            process = _context.Process(
                target=_rank,
                args=(function, arguments, rank, world_size, f"{file.name}.group", theirs),
                daemon=True,
            )
            process.start()
            theirs.close()
            started.append((process, pipe))
        try:
            outcomes = [
                pickle.loads(pipe.recv_bytes()) if pipe.poll(_SECONDS) else (False, "no answer")
                for _, pipe in started
            ]
        finally:
            for process, _ in started:
                process.join(0.5)
                process.kill()
                process.join()
    for rank, (succeeded, value) in enumerate(outcomes):
        assert succeeded, f"rank {rank}: {value}"
    return [value for _, value in outcomes]


def _rank(function, arguments, rank, world_size, file, pipe) -> None:
    try:
        own, size = str(rank), str(world_size)
        os.environ |= {"RANK": own, "LOCAL_RANK": own, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}  # asked for, not used
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", init_method=f"file://{file}", rank=rank, world_size=world_size
        )
        result = function(*arguments)
        dist.barrier()
        # Pickled here: pipe.send would share the memory of tensors, which ends with this process.
        pipe.send_bytes(pickle.dumps((True, result)))
    except BaseException:
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
