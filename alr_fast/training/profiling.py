"""Where the time of a step goes: a trace of torch.profiler, and the share of each phase."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from alr_fast.utils.files import writing

# In the order of a step. "data" waits for the next batch, "wait" for processes that reach the
# backward pass later; sending the gradients is part of "backward".
PHASES = ("data", "forward", "loss", "wait", "backward", "optimizer")
SKIPPED, WARM_UP, TRACED = 5, 3, 10  # steps
TRACE = "trace.json.gz"
_STEP = "step"


class Profile:
    """Traces a few steps of training, after the first ones.

    While it does, each phase waits for the GPU at its end: shares are those of the work, not of its
    launch.

    Args:
        trainer: `alr_fast.training.trainer.Trainer`, whose ``phase`` is replaced meanwhile.
        wanted: Whether to trace at all.
    """

    def __init__(self, trainer, *, wanted: bool) -> None:
        self._trainer = trainer
        self._left = SKIPPED + WARM_UP + TRACED if wanted else 0
        self._wanted = wanted
        self._profiler = None

    def steps(self, batches: Iterable) -> Iterator:
        """Passes the batches of an epoch on; may go on with the next epoch."""
        iterator = iter(batches)
        while self._left:
            if self._profiler is None:
                self._begin()
            with record_function(_STEP):
                with self._phase("data"):
                    batch = next(iterator, None)
                if batch is None:
                    return
                yield batch
            self._profiler.step()
            self._left -= 1
            if not self._left:
                self._end()
        yield from iterator

    def show(self, this) -> None:
        """Writes the trace into the folder of a run and prints the shares, in process 0.

        Args:
            this: `alr_fast.training.run.Run`.

        Raises:
            SharedError: It cannot be written.
        """
        if not self._wanted:
            return
        if self._left:
            if self._profiler is not None:
                self._end()
            this.console.warn(
                f"--profile: the run has fewer than {SKIPPED + WARM_UP + TRACED} steps, there is "
                "nothing to show"
            )
            return
        path = this.path / TRACE
        this.in_folder(lambda folder: self._write(path))
        this.console.shares(f"One step of {TRACED}, traced in {path}", self.shares())

    def _write(self, path: Path) -> None:
        with writing(path):
            self._profiler.export_chrome_trace(str(path))

    def shares(self) -> dict[str, tuple[float, float]]:
        """Seconds of each phase in a step, and its share of the step; ``other`` is what is left."""
        seconds = {event.key: event.cpu_time_total / 1e6 for event in self._profiler.key_averages()}
        whole = seconds[_STEP]
        parts = {name: seconds.get(_key(name), 0.0) for name in PHASES}
        parts["other"] = max(whole - sum(parts.values()), 0.0)
        return {name: (part / TRACED, part / whole) for name, part in parts.items()}

    def _begin(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._trainer.world.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=SKIPPED, warmup=WARM_UP, active=TRACED, repeat=1),
        )
        self._profiler.start()
        self._trainer.phase = self._phase

    def _end(self) -> None:
        self._profiler.stop()
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


def _key(phase: str) -> str:
    return f"phase {phase}"
