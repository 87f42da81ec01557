"""Trainings in separate processes, for the tests of faults.

Starting Python with all imports of a training takes seconds. One process, which runs this file as a
script, imports them once, and each training is a fork of it.
"""

import contextlib
import csv
import ctypes
import errno
import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

_SECONDS = 120  # time limit of a training
_PR_SET_PDEATHSIG = 1


class Server:
    """The process that forks trainings; `close` ends it and all of them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # One thread is enough for tiny models, and a fork has no threads to lose.
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            text=True,
        )
        self._started: list[Training] = []

    def start(
        self,
        *argv: object,
        log: Path,
        faults: dict[str, dict] | None = None,
        processes: int | None = None,
        restarts: int = 0,
    ) -> "Training":
        """Starts a training.

        Args:
            argv: Options of ``python -m alr_fast.train``.
            log: File for stdout and stderr.
            faults: Functions of this module to call first, with their arguments.
            processes: Number of processes of torchrun; None for a single one without torchrun.
            restarts: Number of restarts by torchrun.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        request = {
            "argv": [str(word) for word in argv],
            "log": str(log),
            "faults": faults or {},
            "processes": processes,
            "restarts": restarts,
        }
        self._started.append(Training(self, self._ask(**request), log))
        return self._started[-1]

    def status(self, pid: int) -> int | None:
        """Exit status of a training, -9 after SIGKILL; None while it runs."""
        return self._ask(wait=pid)

    def close(self) -> None:
        """Ends the server and all trainings."""
        for training in self._started:
            training.end()
        self._process.communicate()

    def _ask(self, **request) -> int | None:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class Training:
    """A started training; its pid is valid until `status` is known."""

    def __init__(self, server: Server, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self._server = server
        self._status: int | None = None

    @property
    def status(self) -> int | None:
        """Exit status, -9 after SIGKILL; None while it runs."""
        if self._status is None:
            self._status = self._server.status(self.pid)
        return self._status

    @property
    def output(self) -> str:
        """Its output so far."""
        return self.log.read_text()

    def wait(self) -> int:
        """Waits for the end of the training and returns its exit status."""
        self.until(lambda: self.status is not None)
        return self.status

    def until(self, condition: Callable[[], object]) -> bool:
        """Waits until a condition holds or the training has ended; returns whether it holds."""
        end = time.monotonic() + _SECONDS
        while not condition():
            if self.status is not None:
                return bool(condition())
            if time.monotonic() > end:
                self.end()
                raise TimeoutError(f"a training hangs: {self.output}")
            time.sleep(0.001)
        return True

    def send(self, number: int) -> bool:
        """Sends a signal; returns whether the training was still running."""
        if self.status is not None:
            return False
        os.kill(self.pid, number)
        return True

    def end(self) -> None:
        """Kills the training and its child processes."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            while self.status is None:
                time.sleep(0.001)


def _serve() -> None:
    import torch
    import torch._dynamo
    import torch.distributed.run

    import alr_fast.data.loaders.torch
    import alr_fast.noise
    import alr_fast.train
    import alr_fast.training.checkpoint.store
    import alr_fast.training.config.command_line
    import alr_fast.training.loop
    import alr_fast.training.output.display
    import alr_fast.training.output.loggers
    import alr_fast.training.output.run_folder
    import alr_fast.training.run_data
    from alr_fast.training.config.schema import Config

    for module in ("docstring_parser", "safetensors.torch", "torchmetrics.classification"):
        __import__(module)
    torch.compiler.cudagraph_mark_step_begin()  # imports torch._inductor
    alr_fast.training.output.run_folder.plot_records = lambda records, path: None  # takes a second
    alr_fast.training.run_data.load_data(Config().data, None, log=lambda line: None)
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                status = _train(request)
                sys.stdout.flush()
                os._exit(status)  # a normal exit would take a second
        print(json.dumps(answer), flush=True)


def _train(request: dict) -> int:
    import numpy as np
    import torch

    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        handle = os.open(path, flags, 0o644)
        os.dup2(handle, number)
        os.close(handle)
    os.dup2(1, 2)
    # Every process starts with its own random numbers; a fork has those of the server.
    torch.seed()
    np.random.seed(int.from_bytes(os.urandom(4), "little"))
    random.seed()
    add_models()
    for name, arguments in request["faults"].items():
        globals()[name](**arguments)
    if request["processes"] is None:
        from alr_fast.train import main

        return main(request["argv"])
    return _torchrun(request)


def _torchrun(request: dict) -> int:
    """Does the same as the command torchrun, but with forks of this process."""
    import alr_fast.train

    words = ["--standalone", "--run-path", "--start-method", "fork"]
    words += ["--nproc-per-node", str(request["processes"])]
    words += ["--max-restarts", str(request["restarts"]), "--monitor-interval", "0.02"]
    try:
        torch_run = sys.modules["torch.distributed.run"]
        torch_run.main([*words, alr_fast.train.__file__, *request["argv"]])
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def add_models() -> None:
    """Adds "dropout", a small model that uses random numbers of PyTorch, NumPy and Python."""
    from alr_fast.training.models import MODELS

    MODELS["dropout"] = _dropout_model


def _dropout_model(num_classes: int, in_channels: int):
    import numpy as np
    from torch import nn

    # Only the model uses the generators of NumPy and Python: a new training seeds them here, and a
    # resumed one has to restore their states.
    random.seed(1)
    np.random.seed(1)

    class Noise(nn.Module):
        def forward(self, images):
            if not self.training:
                return images
            return images * (1 + 0.1 * random.gauss(0, 1) + 0.1 * np.random.normal())

    return nn.Sequential(
        nn.Conv2d(in_channels, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        Noise(),
        nn.Dropout(0.2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * 16, num_classes),
    )


def _around_steps(before=None, after=None) -> None:
    """Calls functions before and after each training step, with its number in this process."""
    from alr_fast.training.trainer import Trainer

    genuine, made = Trainer.train_step, [0]

    def train_step(self, batch):
        number, made[0] = made[0], made[0] + 1
        if before is not None:
            batch = before(self, number, batch)
        genuine(self, batch)
        if after is not None:
            after(number + 1)

    Trainer.train_step = train_step


def slow_steps(seconds: float) -> None:
    """Each step takes this much longer, so that kills hit the same steps on any machine."""
    _around_steps(after=lambda made: time.sleep(seconds))


def signal_after(number: int, steps: int) -> None:
    """The process gets a signal after a number of steps."""
    _around_steps(after=lambda made: made == steps and os.kill(os.getpid(), number))


def wait_for_signal(steps: int) -> None:
    """After a number of steps the process waits for a signal, so that it stops at that step."""
    from alr_fast.training.signals import StopSignals

    genuine, received = StopSignals._record, []

    def record(self, number, frame):
        received.append(number)
        genuine(self, number, frame)

    def after(made: int) -> None:
        while made == steps and not received:
            time.sleep(0.001)

    StopSignals._record = record
    _around_steps(after=after)


def signal_group_after(number: int, steps: int) -> None:
    """All processes of the training get a signal from outside, as from Slurm or a shell."""

    def after(made: int) -> None:
        if made != steps:
            return
        sender = os.fork()
        if sender == 0:
            try:
                os.killpg(os.getpgrp(), number)
            finally:
                os._exit(0)
        os.waitpid(sender, 0)
        time.sleep(0.3)  # time for a process to die of it

    _around_steps(after=after)


def signal_in_evaluation(number: int, calls: int) -> None:
    """The process gets a signal in its evaluation number ``calls``."""
    from alr_fast.training import loop

    genuine, made = loop.evaluate, [0]

    def evaluate(*arguments):
        made[0] += 1
        if made[0] == calls:
            os.kill(os.getpid(), number)
        return genuine(*arguments)

    loop.evaluate = evaluate


def kill_rank(rank: int, steps: int) -> None:
    """One rank is killed after a number of steps, but not again after a restart."""

    def after(made: int) -> None:
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first and made == steps and int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), signal.SIGKILL)

    _around_steps(after=after)


def nan_images(first: int, last: int) -> None:
    """The images of these steps are NaN."""

    def before(trainer, number: int, batch: dict) -> dict:
        if first <= number <= last:
            batch = {**batch, "image": batch["image"] * float("nan")}
        return batch

    _around_steps(before=before)


def limit_files(num_bytes: int, after_steps: int) -> None:
    """After a number of steps the kernel refuses to write files beyond a size."""

    def limit(made: int) -> None:
        if made == after_steps:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))

    _around_steps(after=limit)


def full_disk(name: str, at: int) -> None:
    """The disk is full when a file is opened for appending for the ``at``-th time."""
    genuine, tried = os.open, [0]

    def open_file(path, flags, *arguments, **options):
        if flags & os.O_APPEND and os.path.basename(os.fspath(path)) == name:
            tried[0] += 1
            if tried[0] == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return genuine(path, flags, *arguments, **options)

    os.open = open_file


def move_run(runs: str, to: str, steps: int) -> None:
    """Process 0 finds, after a number of steps, that somebody has moved the folder of the run."""

    def after(made: int) -> None:
        if made == steps and os.environ.get("RANK", "0") == "0":
            run_folder(Path(runs)).rename(to)

    _around_steps(after=after)


def options_of(command: str) -> list[str]:
    """The options of a command in a message, without the program and its module."""
    words = shlex.split(command)
    return words[[word.startswith("--") for word in words].index(True) :]


def run_folder(runs: Path) -> Path:
    """The only run folder."""
    (folder,) = [p for p in runs.iterdir() if not p.is_symlink()]
    return folder


def metrics(runs: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without the columns of measured times."""
    with (run_folder(runs) / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    timing = ("seconds", "samples_per_second")
    return [{k: v for k, v in row.items() if k not in timing} for row in rows]


def outcome(runs: Path) -> dict:
    """All results of a run, with weights and bank as bytes."""
    folder = run_folder(runs)
    found = {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}
    return {**found, "metrics": metrics(runs)}


if __name__ == "__main__":
    _serve()
