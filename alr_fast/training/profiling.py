"""Profile of the training step: a trace of torch.profiler, and the share of each phase."""

import gzip
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from alr_fast.training.run import Run
from alr_fast.training.trainer import Trainer
from alr_fast.utils.files import replacing

# In the order of a step. "data" waits for the next batch, "wait" for processes that reach the
# backward pass later; "backward" includes the communication of the gradients.
PHASES = ("data", "forward", "loss", "wait", "backward", "optimizer")
SKIPPED, WARM_UP, TRACED = 5, 3, 10  # steps
TRACE = "trace.json.gz"
_STEP = "step"


class Profile:
    """Traces a few steps of training, after the first ones.

    While tracing, each phase waits for the GPU at its end: the shares measure the work, not the
    kernel launches.

    Args:
        trainer: The trainer. Its ``phase`` is replaced while tracing.
        wanted: Whether to trace at all.
    """

    def __init__(self, trainer: Trainer, *, wanted: bool) -> None:
        self._trainer, self._wanted = trainer, wanted
        self._left = SKIPPED + WARM_UP + TRACED if wanted else 0
        self._profiler: profile | None = None

    def steps(self, batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """Yields the batches of an epoch; tracing may continue in the next epoch."""
        iterator = iter(batches)
        while self._left:
            profiler = self._profiler
            if profiler is None:
                profiler = self._profiler = self._begin()
            with record_function(_STEP):
                with self._phase("data"):
                    batch = next(iterator, None)
                if batch is None:
                    return
                yield batch
            profiler.step()
            self._left -= 1
            if not self._left:
                self._end(profiler)
        yield from iterator

    def show(self, run: Run) -> None:
        """Writes the trace into the folder of a run and prints the shares, in process 0."""
        if not self._wanted:
            return
        profiler = self._profiler
        if profiler is None or self._left:
            if profiler is not None:
                self._end(profiler)
            run.console.warn(
                f"--profile: the run has fewer than {SKIPPED + WARM_UP + TRACED} steps, there is "
                "nothing to show"
            )
            return
        path = run.path / TRACE

        def write(folder: object) -> None:
            with replacing(path) as fresh, tempfile.NamedTemporaryFile(suffix=".json") as plain:
                profiler.export_chrome_trace(plain.name)
                # Not through ``plain``: the export makes a file of its own there.
                with open(plain.name, "rb") as trace, gzip.open(fresh, "wb") as packed:
                    shutil.copyfileobj(trace, packed)

        written = run.in_folder(write, without="the shares of the phases follow")
        traced = f"traced in {path}" if written else "not written"
        run.console.shares(f"One step of {TRACED}, {traced}", _shares(profiler))

    def _begin(self) -> profile:
        activities = [ProfilerActivity.CPU]
        if self._trainer.world.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        profiler = profile(
            activities=activities,
            schedule=schedule(wait=SKIPPED, warmup=WARM_UP, active=TRACED, repeat=1),
        )
        profiler.start()
        self._trainer.phase = self._phase
        return profiler

    def _end(self, profiler: profile) -> None:
        profiler.stop()
        self._trainer.phase = lambda name: nullcontext()

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        if name == "backward" and self._trainer.world.size > 1:
            with record_function(_key("wait")):
                dist.barrier()
        with record_function(_key(name)):
            yield
            if self._trainer.world.device.type == "cuda":
                torch.cuda.synchronize()


def _shares(profiler: profile) -> dict[str, tuple[float, float]]:
    """Seconds of each phase in a step, and its share of the step; ``other`` is the rest."""
    seconds = {event.key: event.cpu_time_total / 1e6 for event in profiler.key_averages()}
    whole = seconds[_STEP]
    parts = {name: seconds.get(_key(name), 0.0) for name in PHASES}
    parts["other"] = max(whole - sum(parts.values()), 0.0)
    return {name: (part / TRACED, part / whole) for name, part in parts.items()}


def _key(phase: str) -> str:
    return f"phase {phase}"
