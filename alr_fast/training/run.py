"""A training run: its configuration, data, folder and progress, shared by its methods."""

import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.index import SampleIndex
from alr_fast.errors import UserError
from alr_fast.training.checkpoint.manifest import (
    Checkpoint,
    check_files,
    last_number,
    list_checkpoints,
)
from alr_fast.training.checkpoint.store import CheckpointStore
from alr_fast.training.class_counts import ClassCounts
from alr_fast.training.config.schema import Config
from alr_fast.training.distributed import World
from alr_fast.training.loaders import Loaders
from alr_fast.training.output.display import RunDisplay
from alr_fast.training.output.loggers import make_loggers
from alr_fast.training.output.records import EpochRecord
from alr_fast.training.output.run_folder import RunFolder
from alr_fast.training.progress import class_counts_from_json
from alr_fast.training.resume import Start
from alr_fast.training.run_paths import CHECKPOINTS, LATEST
from alr_fast.training.samples import save_samples
from alr_fast.training.signals import StopSignals
from alr_fast.utils.shell import python_command
from alr_fast.utils.text import error_text


@dataclass(eq=False)
class Run:
    """State that the methods of a run share. A context manager; each process makes one.

    Attributes:
        config: Resolved configuration.
        world: The processes.
        loaders: Loaders with the labels to train on.
        console: Shows progress.
        stop: Signals that stop the run.
        start: Whether this is a new run, or the run and checkpoint to resume.
        path: Folder of the run.
        records: All epochs so far, of all methods.
        finished: Methods that are completely trained.
        incomplete: Those of them whose weights or label bank are missing, and for each a line that
            says how to get them.
        class_counts: Of each method and each of its test and validation sets, correct predictions
            by class after its last epoch so far.
        store: Checkpoints of the run.
        last_checkpoint: Number of the last checkpoint, 0 before the first.
        saved_at: Time of the last checkpoint, or of the start (`time.monotonic`).

    Raises:
        SharedError: The folder cannot be written, or the checkpoint is damaged.
    """

    config: Config
    world: World
    loaders: Loaders
    console: RunDisplay
    stop: StopSignals
    start: Start

    def __post_init__(self) -> None:
        checkpoint, options = self.start.checkpoint, self.config.checkpoint
        self.records: list[EpochRecord] = []
        self.finished: list[str] = []
        self.class_counts: dict[str, dict[str, ClassCounts]] = {}
        self.incomplete: dict[str, str] = {}
        self._warned: set[str] = set()
        self.last_checkpoint = 0
        self.saved_at = time.monotonic()
        self._folder: RunFolder | None = None  # in process 0
        if checkpoint is not None:
            self._load_progress(checkpoint)
        # Closed in reverse order: checkpoints being written, list of unreadable images, folder.
        with ExitStack() as closing:
            self.path: Path = self.world.from_main(lambda: self._open_folder(closing))
            self.store = CheckpointStore(
                self.path / CHECKPOINTS,
                keep=options.keep,
                log=self.console.warn,
                background=options.background,
                resumed_from=None if checkpoint is None else checkpoint.number,
            )
            self.store.pinned |= {c.number for c in self.start.incomplete.values()}
            closing.callback(self.store.close)
            self._closing = closing.pop_all()

    def _load_progress(self, checkpoint: Checkpoint) -> None:
        for used in (checkpoint, *self.start.incomplete.values()):
            check_files(used)
        # Newer checkpoints may have been passed over, because they are damaged, for example.
        self.last_checkpoint = last_number(checkpoint.path.parent)
        progress = checkpoint.progress
        again = {m: c.progress["position"]["epoch"] for m, c in self.start.incomplete.items()}
        records = [EpochRecord.from_json(plain) for plain in progress["records"]]
        self.records = [r for r in records if r.epoch <= again.get(r.method, r.epoch)]
        self.finished = [method for method in progress["finished"] if method not in again]
        self.class_counts = class_counts_from_json(progress)
        for method in progress.get("incomplete", []):
            if method in self.finished:
                self.incomplete[method] = f"{method}: its weights or its label bank are missing"
        broken = {int(sample): tuple(entry) for sample, entry in progress["broken"].items()}
        if self.start.change is not None:
            ids = self.start.change.ids_now(self.index)
            broken = {ids[sample]: entry for sample, entry in broken.items() if sample in ids}
        self.loaders.train.broken.reasons.update(broken)

    def _open_folder(self, closing: ExitStack) -> Path:
        path = self.start.folder
        folder = RunFolder.create(self.config) if path is None else RunFolder.open(path)
        self._folder = folder
        closing.callback(folder.close)
        save_samples(folder.path, self.loaders.train.split)
        folder.log_to(make_loggers(self.config, folder.path, self.records))
        closing.callback(self._save_broken, folder)
        return folder.path

    def _save_broken(self, folder: RunFolder) -> None:
        try:
            folder.save_broken(self.loaders.train.broken)
        except UserError as error:
            self.console.warn(f"{error}; the run is complete without this list")

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    @property
    def index(self) -> SampleIndex:
        """All training samples."""
        return self.loaders.train.split.index

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows of ``index`` that this process owns, int64 [n], in the order of its label bank."""
        return self.loaders.train.sampler.rows

    def in_folder(self, write: Callable[..., None], *arguments: Any, without: str) -> bool:
        """Calls ``write(folder, *arguments)`` in process 0; see `attempt`."""
        return self.attempt(
            lambda: self.world.from_main(lambda: write(self._folder, *arguments)), without=without
        )

    def attempt(self, action: Callable[[], None], *, without: str) -> bool:
        """Writes a file that a run can do without for now; all processes call this.

        A failure, whatever it is, is a warning: hours of training do not end with a file.

        Args:
            action: Writes it; an error in one process is raised in all.
            without: What is lost, or how to make it again; ends the warning.

        Returns:
            Whether it is written.

        Raises:
            SharedError: The folder of the run was removed, moved or replaced.
        """
        self.check_folder()
        failure: Exception | None = None
        try:
            action()
        except Exception as error:
            failure = error
        if not self.world.any(failure is not None)[0]:
            return True
        text = "another process failed" if failure is None else error_text(failure)
        self._warn_once(f"{text}; {without}")
        return False

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self.console.warn(text)

    def checkpoint_of(self, method: str) -> Checkpoint | None:
        """The checkpoint that a method resumes from, None if it starts at its beginning."""
        newest = self.start.checkpoint
        if newest is not None and newest.progress["method"] == method:
            return newest
        return self.start.incomplete.get(method)

    @property
    def resume_command(self) -> str:
        """The command that resumes this run, for a shell; in words for several machines."""
        words = ["--resume", str(self.path.absolute())]
        if self.config.plugins:  # not taken from the run
            words += ["--plugins", ",".join(self.config.plugins)]
        if self.world.size == 1:
            return python_command("alr_fast.train", *words)
        if self.world.size > self.world.local_size:
            return f"the torchrun command of this run, with {shlex.join(words)}"
        processes = ["--nproc-per-node", str(self.world.local_size), "-m", "alr_fast.train"]
        return python_command("torch.distributed.run", *processes, *words)

    def check_folder(self) -> None:
        """Checks that the folder of the run is still there, before something is written into it.

        Raises:
            SharedError: It was removed, moved or replaced.
        """
        self.world.from_main(self._check_in_place)

    @property
    def folder_is_gone(self) -> bool:
        """Whether the folder was removed, moved or replaced; known to process 0."""
        return self._folder is not None and not self._folder.in_place

    @property
    def kept(self) -> str:
        """Which checkpoint there is, and how to resume."""
        try:
            found = list_checkpoints(self.path / CHECKPOINTS)
        except UserError as error:
            return f"{error}"
        if not found:
            return f"{self.path} has no checkpoint, from which it could be resumed"
        position, method = found[-1].progress["position"], found[-1].progress["method"]
        where = f"{method}, epoch {position['epoch'] + 1} after step {position['step']}"
        if position["epoch"] == self.config.optim.epochs:
            where = f"{method} after its last epoch"
        return (
            f"{self.path} keeps checkpoint {found[-1].number} ({where}), which resumes there: "
            f"{self.resume_command}"
        )

    @property
    def also(self) -> str:
        """The other name of the folder, if it has one, in words."""
        latest = self._folder is not None and self._folder.is_latest
        return f" (also {self.path.parent / LATEST})" if latest else ""

    def _check_in_place(self) -> None:
        if self.folder_is_gone:
            raise UserError(
                f"{self.path}: the folder of this run was removed, moved or replaced while it "
                "trained, so the run has stopped; put it back to resume it with --resume auto"
            )
