"""A training run: its configuration, data, folder and progress, shared by its methods."""

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
from alr_fast.training.checkpoint.manifest import Checkpoint, check_files, last_number
from alr_fast.training.checkpoint.store import CheckpointStore
from alr_fast.training.config.schema import Config
from alr_fast.training.distributed import World
from alr_fast.training.evaluation import ClassCounts
from alr_fast.training.loaders import Loaders
from alr_fast.training.output.display import RunDisplay
from alr_fast.training.output.loggers import make_loggers
from alr_fast.training.output.records import EpochRecord
from alr_fast.training.output.run_folder import CHECKPOINTS, RunFolder
from alr_fast.training.progress import class_counts_from_json
from alr_fast.training.resume import Start
from alr_fast.training.samples import save_samples
from alr_fast.training.signals import StopSignals


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
        self.last_checkpoint = 0
        self.saved_at = time.monotonic()
        self._folder: RunFolder | None = None  # in process 0
        if checkpoint is not None:
            self._load_progress(checkpoint)
        # Closed in reverse order: checkpoints being written, list of unreadable images, folder.
        with ExitStack() as closing:
            self.path: Path = self.world.from_main(self._open_folder)
            if self._folder is not None:
                closing.callback(self._folder.close)
                closing.callback(self._folder.save_broken, self.loaders.train.broken)
            self.store = CheckpointStore(
                self.path / CHECKPOINTS,
                keep=options.keep,
                log=self.console.warn,
                background=options.background,
                resumed_from=None if checkpoint is None else checkpoint.number,
            )
            closing.callback(self.store.close)
            self._closing = closing.pop_all()

    def _load_progress(self, checkpoint: Checkpoint) -> None:
        check_files(checkpoint)
        # Newer checkpoints may have been passed over, because they are damaged, for example.
        self.last_checkpoint = last_number(checkpoint.path.parent)
        progress = checkpoint.progress
        self.records = [EpochRecord.from_json(plain) for plain in progress["records"]]
        self.finished = progress["finished"]
        self.class_counts = class_counts_from_json(progress)
        broken = {int(sample): tuple(entry) for sample, entry in progress["broken"].items()}
        if self.start.change is not None:
            ids = self.start.change.ids_now(self.index)
            broken = {ids[sample]: entry for sample, entry in broken.items() if sample in ids}
        self.loaders.train.broken.reasons.update(broken)

    def _open_folder(self) -> Path:
        folder = self.start.folder
        self._folder = RunFolder.create(self.config) if folder is None else RunFolder.open(folder)
        save_samples(self._folder.path, self.loaders.train.split)
        self._folder.log_to(make_loggers(self.config, self._folder.path, self.records))
        return self._folder.path

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

    def in_folder(self, write: Callable[..., None], *arguments: Any) -> None:
        """Calls ``write(folder, *arguments)`` in process 0.

        Raises:
            SharedError: It cannot be written.
        """

        def action() -> None:
            self._check_in_place()
            try:
                write(self._folder, *arguments)
            except UserError as error:
                raise UserError(f"{error} with --resume auto, which resumes this run") from error

        self.world.from_main(action)

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

    def _check_in_place(self) -> None:
        if self.folder_is_gone:
            raise UserError(
                f"{self.path}: the folder of this run was removed, moved or replaced while it "
                "trained, so the run has stopped; put it back to resume it with --resume auto"
            )
