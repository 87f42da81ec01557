"""Trains an image classifier on noisy labels, once with each method, and compares them.

    python -m alr_fast.train                                   # digits, 40 % noise: about a minute
    python -m alr_fast.train --noise.rate 0.6 --methods alr --alr.momentum 0.9
    python -m alr_fast.train --recipe cifar10 --data-root DIR
    python -m alr_fast.train --data-root DIR                   # recognises what lies there
    python -m alr_fast.train --config runs/latest/config.yaml  # the same run again
    torchrun --nproc-per-node 8 -m alr_fast.train --recipe webvision --data-root DIR --resume auto
    python -m alr_fast.train --help

Every method sees the same initial weights, batches, crops and schedule; only the loss differs. The
last epoch is the result. `alr_fast.runs` says what a run leaves behind, docs/scaling.md how it uses
several GPUs and goes on after it was stopped.

Exit status: 0, 2 for a wrong input, 75 when it was stopped by SIGTERM or SIGUSR1 and wrote a
checkpoint (`--resume auto` goes on), 130 when interrupted.
"""

import importlib.util
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alr_fast.command import exit_status
from alr_fast.errors import SharedError, UserError
from alr_fast.stopping import EXIT_STOPPED, StopSignals

# What `pip install 'alr_fast[train]'` adds: all are looked for at the start, so that none is missed
# only when a finished run is about to be written.
TRAIN_EXTRA = (
    "jsonargparse",
    "docstring_parser",
    "yaml",
    "rich",
    "PIL",
    "simplejpeg",
    "sklearn",
    "torchvision",
    "timm",
    "torchmetrics",
    "matplotlib",
    "tensorboard",
    "safetensors",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, see above."""

    def action() -> int:
        missing = [name for name in TRAIN_EXTRA if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"training needs {', '.join(missing)}, not installed: pip install 'alr_fast[train]'"
            )
        from alr_fast.cli import parse
        from alr_fast.distributed import process_group

        config = parse(sys.argv[1:] if argv is None else argv)
        with StopSignals() as stop, process_group(config.device) as world:
            try:
                run(config, world, stop)
            except Stopped as stopped:
                if world.main:
                    print(stopped, file=sys.stderr)
                return EXIT_STOPPED
        return 0

    return exit_status(action)


class Stopped(Exception):
    """A signal came, and a checkpoint was written."""


def run(config, world, stop) -> None:
    """Trains every method of a resolved `Config` and writes one run folder.

    Args:
        config: What to do.
        world: `alr_fast.distributed.World`, the processes that do it.
        stop: `StopSignals` that are looked at in the rhythm of ``log.every``.

    Raises:
        UserError: Something that the user can put right; nothing is written before the first epoch.
        Stopped: A signal came.
    """
    from alr_fast.config import FOLDER_RECIPE, recipe_names
    from alr_fast.console import RunConsole, percent
    from alr_fast.data.setup import leave_out, load_data, make_loaders, make_transform, with_labels
    from alr_fast.loggers import check_loggers
    from alr_fast.models import build_model
    from alr_fast.resume import check_data, find_checkpoint
    from alr_fast.runs import RunFolder, check_runs, environment, method_summary

    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    console = RunConsole(config.log.show, main=world.main)

    def check_and_find():
        check_runs(config.runs)
        check_loggers(config.log.to)
        return find_checkpoint(config)

    found = world.from_main(check_and_find)
    if found is not None and found[1] is None:
        console.say(f"{found[0]}: has finished already; leave --resume out to train again")
        return

    # Data and noise. Everything that can be wrong with them comes to light here.
    data = world.main_first(lambda: load_data(config.data, config.data_root, say=console.say))
    layout = data.dataset.layout.name
    if config.recipe == FOLDER_RECIPE != layout and layout in recipe_names():
        console.say(f"recipe {layout} has a schedule for this data set: --recipe {layout}")
    noise = world.from_main(lambda: inject_noise(config, data, console))
    if noise.kind != "none":
        data = with_labels(data, noise.labels)
    # After the noise, so that a list of broken files changes nobody else's label.
    data = leave_out(data)
    index = data.train.index
    before = None
    if index.clean_labels is not None:
        before = float((index.labels == index.clean_labels).mean())
    if found is not None:
        world.together(
            lambda: check_data(found[1], index, other_labels=config.checkpoint.other_labels)
        )

    def set_up():
        transform = make_transform(config.data, data.train)

        def new_model() -> nn.Module:
            torch.manual_seed(config.seed)
            model = build_model(
                config.model.name,
                num_classes=index.num_classes,
                in_channels=data.train.channels,
                image_size=transform.size,
                pretrained=config.model.pretrained,
            )
            if config.model.sync_batchnorm:
                model = synchronised(model, world)
            # Convolutions are faster in this layout, on GPUs and on CPUs.
            return model.to(world.device, memory_format=torch.channels_last)

        new_model()  # an unknown or unsuitable net is known before images are decoded
        loaders = make_loaders(
            config, data, transform, world=world, say=console.say, track=console.track
        )
        return new_model, loaders

    new_model, loaders = world.together(set_up)
    console.say(
        f"{config.recipe}: {len(data.train):,} training and {len(data.test):,} test images, "
        f"{index.num_classes} classes; noise: {noise.kind}"
        + (f" {percent(noise.requested_rate)}" if noise.kind != "none" else "")
        + f", labels right: {percent(before)}; on {world.device.type}"
        + (f" in {world.size} processes" if world.size > 1 else "")
    )

    # One run folder, the methods in turn.
    this = Run(config, world, loaders, console, stop)
    try:
        this.open(found)
        for method in config.methods:
            if method in this.finished:
                continue
            train_method(method, this, new_model())
    finally:
        this.close()
    results = {
        method: method_summary([r for r in this.records if r.method == method], before)
        for method in config.methods
    }
    broken_tests = [sum(len(loader.broken.reasons) for loader in loaders.tests)]
    summary = {
        "methods": results,
        "recipe": config.recipe,
        "seed": config.seed,
        "epochs": config.optim.epochs,
        "seconds": sum(result["seconds"] for result in results.values()),
        "started": started,
        "noise": {
            "kind": noise.kind,
            "requested_rate": noise.requested_rate,
            "realised_rate": noise.realised_rate,
            "seed": noise.seed,
        },
        "data": {
            "name": data.dataset.layout.name,
            "root": config.data_root,
            "train_samples": len(data.train),
            "test_samples": len(data.test),
            "loader": loaders.choice.name,
            "excluded_samples": len(data.excluded),
            "broken_samples": len(loaders.train.broken.reasons),
            "broken_test_samples": sum(map(sum, world.gather(broken_tests))),
            "classes": list(index.class_names),
            "sample_fingerprint": index.sample_fingerprint(),
            "label_fingerprint": index.label_fingerprint(),
        },
        "environment": {**environment(world.device, config.precision), "processes": world.size},
    }
    this.in_folder(RunFolder.finish, summary, this.records)
    console.table(results, epochs=config.optim.epochs, folder=this.path)
    console.say(f"{this.path} (also {this.path.parent / 'latest'})")


def inject_noise(config, data, console):
    """The labels to train on, as `alr_fast.noise.inject` gives them."""
    from alr_fast.data.setup import noise_features
    from alr_fast.noise import inject, needs_features, read_matrix

    features = None
    if needs_features(config.noise.kind):
        features = noise_features(config.data, data.train, console.track)
    return inject(
        data.train.index.labels,
        num_classes=data.train.index.num_classes,
        kind=config.noise.kind,
        rate=config.noise.rate,
        seed=config.noise.seed,
        class_names=data.train.index.class_names,
        features=features,
        matrix=None if config.noise.matrix is None else read_matrix(config.noise.matrix),
    )


def synchronised(model: nn.Module, world) -> nn.Module:
    """The net with batch statistics over all processes.

    Raises:
        UserError: Not on GPUs.
    """
    if world.device.type != "cuda":
        raise UserError(
            "--model.sync_batchnorm true: PyTorch synchronises batch statistics between GPUs only; "
            "leave it out on the CPU"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


@dataclass
class Run:
    """What the methods of a run share.

    Attributes:
        config: Resolved configuration.
        world: The processes.
        loaders: `alr_fast.data.setup.Loaders`, with the labels to train on.
        console: Where progress is shown.
        stop: Signals.
        folder: Folder of the run, in process 0 only.
        records: Every `EpochRecord` so far, of all methods.
        finished: Methods that are trained.
        path: Folder of the run.
        store: Where checkpoints go.
        number: Number of the last checkpoint.
        restored: Checkpoint that the next method goes on from.
        saved_at: When the last one was written, in seconds of `time.monotonic`.
    """

    config: Any
    world: Any
    loaders: Any
    console: Any
    stop: StopSignals
    folder: Any = None
    records: list = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    path: Path | None = None
    store: Any = None
    number: int = 0
    restored: Any = None
    saved_at: float = field(default_factory=time.monotonic)

    def open(self, found) -> None:
        """Makes the folder of a new run, or goes on in that of a checkpoint."""
        from alr_fast.checkpoint import CheckpointStore, check_files, last_number
        from alr_fast.loggers import make_loggers
        from alr_fast.resume import CHECKPOINTS
        from alr_fast.runs import EpochRecord, RunFolder

        if found is not None:
            _, self.restored = found
            check_files(self.restored)
            progress = self.restored.progress
            # Above a newer one that was passed over, too, because it is damaged.
            self.number = last_number(self.restored.path.parent)
            self.records = [EpochRecord(**record) for record in progress["records"]]
            self.finished = progress["finished"]
            self.loaders.train.broken.reasons.update(
                {int(sample): tuple(what) for sample, what in progress["broken"].items()}
            )

        def open_folder() -> None:
            if not self.world.main:
                return
            if found is None:
                self.folder = RunFolder.create(self.config)
            else:
                self.folder = RunFolder.open(found[0])
            self.folder.log_to(make_loggers(self.config, self.folder.path, self.records))

        self.world.together(open_folder)
        self.path = self.world.broadcast(self.folder.path if self.world.main else None)
        options = self.config.checkpoint
        self.store = CheckpointStore(
            self.path / CHECKPOINTS,
            keep=options.keep,
            say=self.console.warn,
            background=options.background,
        )

    def in_folder(self, write, *what) -> None:
        """Calls ``write(folder, *what)`` in process 0; if it cannot be written, all end."""
        self.world.together(lambda: write(self.folder, *what) if self.world.main else None)

    def close(self) -> None:
        """Ends what is being written, also where an error ended the run."""
        if self.store is not None:
            self.store.close()
        if self.folder is not None:
            self.folder.save_broken(self.loaders.train.broken)
            self.folder.close()

    @property
    def index(self):
        """The training samples."""
        return self.loaders.train.split.index

    @cached_property
    def ids(self) -> Tensor:
        """Ids of the samples that this process owns, int64, in the order of its bank's rows."""
        return torch.from_numpy(self.index.ids[self.loaders.train.sampler.rows])

    def shard(self, rows: Tensor) -> Tensor:
        """Rows of this process's samples, as a part of the table of all, for a checkpoint."""
        from alr_fast.checkpoint import shard

        sampler = self.loaders.train.sampler
        mesh = self.world.mesh(rows.device.type)
        return shard(rows, sampler.offset, sampler.num_samples, mesh)

    @cached_property
    def description(self) -> dict:
        """What a checkpoint says about the data."""
        from alr_fast.resume import describe_data

        return describe_data(self.index)


def train_method(method: str, this: Run, model: nn.Module) -> None:
    """Trains one method to its end, from the start or from the checkpoint of the run."""
    from alr_fast.methods import METHODS
    from alr_fast.profiling import Profile
    from alr_fast.runs import EpochRecord, RunFolder
    from alr_fast.trainer import Trainer

    config, world, loader = this.config, this.world, this.loaders.train
    criterion = METHODS[method](config, lambda: new_bank(this))
    trainer = Trainer(model, criterion, config, loader, world)
    before = restore(trainer, method, this)
    profile = Profile(trainer, wanted=config.log.profile and method == config.methods[-1])
    steps, every = len(loader), config.log.every
    with this.console.training(
        method,
        epochs=config.optim.epochs,
        steps=steps,
        start_epoch=trainer.epoch,
        start_step=trainer.step,
    ) as display:
        while trainer.epoch < config.optim.epochs:
            begin, first = time.perf_counter(), trainer.progress()[2]
            trainer.begin_epoch()
            for batch in profile.steps(loader):
                trainer.train_step(batch)
                due = steps_due(trainer, config)
                if trainer.steps_made % every == 0 or due:
                    loss, accuracy, samples = trainer.progress()
                    rate = (samples - first) * world.size / (time.perf_counter() - begin)
                    display.step(trainer.epoch, trainer.step, loss, accuracy, rate)
                    trainer.check_skipped()
                    seconds = before + time.perf_counter() - begin
                    save_if_due(trainer, method, this, seconds, due=due)

            loss, accuracy, samples = trainer.progress(everywhere=True)
            seconds = time.perf_counter() - begin
            skipped = trainer.check_skipped()
            if not math.isfinite(loss):
                raise SharedError(
                    f"{method}: the training loss of epoch {trainer.epoch + 1} is not finite; "
                    + trainer.cure_for_nan
                )
            broken = merged(world.gather(loader.broken.reasons))
            world.together(partial(loader.broken.merge, broken))
            trainer.share_statistics()
            tests = [
                evaluate(trainer.evaluated, test, trainer.autocast) for test in this.loaders.tests
            ]
            labels = label_statistics(criterion.bank, this)
            record = EpochRecord(
                method=method,
                epoch=trainer.epoch + 1,
                learning_rate=trainer.optimizer.param_groups[0]["lr"],
                train_loss=loss,
                train_accuracy=accuracy,
                test_loss=tests[0][0],
                test_accuracy=tests[0][1],
                second_test_accuracy=tests[1][1] if len(tests) > 1 else None,
                label_accuracy=labels.right,
                labels_changed=labels.changed,
                nonfinite_rows=labels.nonfinite_rows,
                skipped_steps=skipped,
                broken_samples=len(loader.broken.reasons),
                samples_per_second=(samples - first * world.size) / max(seconds, 1e-9),
                seconds=before + time.perf_counter() - begin,
            )
            this.records.append(record)
            this.in_folder(RunFolder.log_epoch, record, labels.histograms)
            display.epoch(record)
            trainer.end_epoch()
            before = 0.0
            if trainer.epoch < config.optim.epochs:
                save_if_due(trainer, method, this, before)
    profile.show(this.console, this.folder)
    export(trainer, method, this)
    this.finished.append(method)


def steps_due(trainer, config) -> bool:
    """Whether a checkpoint is due by the number of steps."""
    every = config.checkpoint.steps
    return every is not None and trainer.steps_made % every == 0


def save_if_due(trainer, method: str, this: Run, seconds: float, *, due: bool = False) -> None:
    """Writes a checkpoint where steps, time or a signal ask for one.

    Args:
        trainer: The method under way.
        method: Its name.
        this: The run.
        seconds: What the epoch under way has taken so far.
        due: Whether it is due by the number of steps.

    Raises:
        Stopped: A signal came; the checkpoint is complete.
        SharedError: A signal came, and the checkpoint could not be written.
    """
    minutes = this.config.checkpoint.minutes
    late = minutes is not None and time.monotonic() - this.saved_at >= 60 * minutes
    signal = this.stop.received
    due_in_time, stopping = this.world.any(late and this.world.main, signal is not None)
    if not (due or due_in_time or stopping):
        return
    trainer.share_statistics()
    broken = merged(this.world.gather(this.loaders.train.broken.reasons))
    progress = {
        "method": method,
        "position": trainer.position(),
        "seconds": seconds,
        "records": [asdict(record) for record in this.records],
        "finished": this.finished,
        "broken": broken,
        "data": this.description,
    }
    # Also after another number of processes began an epoch anew, the newest has the highest number.
    earlier = len(this.finished) * this.config.optim.epochs * len(this.loaders.train)
    this.number = max(earlier + trainer.steps_made, this.number + 1)
    tensors, bank = trainer.tensors(), trainer.criterion.bank
    if bank is None:
        this.store.save(this.number, tensors, progress, wait=stopping)
    else:
        tensors |= {"bank.rows": this.shard(bank.rows), "bank.ids": this.shard(this.ids)}
        # A bank in a file may be larger than the memory: no copy to write from in the background.
        with bank.host_access():
            wait = stopping or bank.placement == "file"
            this.store.save(this.number, tensors, progress, wait=wait)
    this.saved_at = time.monotonic()
    if stopping:
        where = f"epoch {trainer.epoch + 1}, step {trainer.step}"
        if this.store.last_error is not None:
            raise SharedError(f"stopped in {where}, but {this.store.last_error}")
        raise Stopped(f"stopped by {signal or 'a signal'} in {where}; --resume auto goes on there")


def restore(trainer, method: str, this: Run) -> float:
    """Puts the checkpoint of the run, if there is one, into a fresh trainer.

    Returns:
        Seconds that the epoch under way has taken before.
    """
    from alr_fast.checkpoint import load

    if this.restored is None:
        return 0.0
    checkpoint, this.restored = this.restored, None
    position, rank = checkpoint.progress["position"], f"rank{this.world.rank}."
    same = checkpoint.world_size == this.world.size
    tensors, bank = trainer.tensors(), trainer.criterion.bank
    if not same:
        tensors = {name: t for name, t in tensors.items() if not name.startswith(rank)}
    if bank is None:
        load(checkpoint, tensors)
    else:
        check_order(checkpoint, this)
        with bank.host_access():
            load(checkpoint, {**tensors, "bank.rows": this.shard(bank.rows)})
    own = {n.removeprefix(rank): t for n, t in tensors.items() if n.startswith(rank)}
    trainer.restore(position, own if same else None)
    this.console.say(
        f"{method}: goes on in epoch {trainer.epoch + 1} after step {trainer.step}, from "
        f"{checkpoint.path}"
    )
    if not same and position["step"]:
        this.console.warn(
            f"the checkpoint is from the middle of an epoch with {checkpoint.world_size} as the "
            f"number of processes; it is {this.world.size} now, and that epoch is begun anew"
        )
    return checkpoint.progress["seconds"] if same else 0.0


def check_order(checkpoint, this: Run) -> None:
    """Compares the ids of the rows of a checkpoint's bank with those of this run.

    Raises:
        SharedError: They are not in the same order.
    """
    from alr_fast.checkpoint import load

    ids = torch.empty_like(this.ids)
    load(checkpoint, {"bank.ids": this.shard(ids)})
    if not all(this.world.gather(torch.equal(ids, this.ids))):
        raise SharedError(
            f"{checkpoint.path}: its label bank has its rows in another order than this run; "
            "leave --resume out to start a new run"
        )


def new_bank(this: Run):
    """The label bank of the samples that this process owns.

    Raises:
        SharedError: It finds no room.
    """
    from alr_fast.bank import LabelBank
    from alr_fast.placement import choose_placement, readable

    config, world, rows = this.config, this.world, this.loaders.train.sampler.rows
    dtype = getattr(torch, config.bank.dtype)
    placement, why = config.bank.placement, "asked for"
    num_bytes = len(rows) * this.index.num_classes * dtype.itemsize
    if placement == "auto":
        choice = world.from_main(
            lambda: choose_placement(num_bytes, world.device, processes=world.local_size)
        )
        placement, why = choice.placement, choice.why
    bank = world.together(
        lambda: LabelBank.from_labels(
            torch.from_numpy(this.index.labels[rows]),
            this.index.num_classes,
            dtype=dtype,
            device=world.device,
            sample_fingerprint=this.index.sample_fingerprint(),
            placement=placement,
            folder=config.bank.folder or this.path,
        )
    )
    each = " in each process" if world.size > 1 else ""
    this.console.say(f"label bank: {readable(num_bytes)}{each}, {placement} ({why})")
    return bank


@dataclass
class LabelStatistics:
    """The training labels after an epoch, over all processes.

    Attributes:
        right: Share that is right, None where nobody knows.
        changed: Share that differs from the given one.
        nonfinite_rows: Samples whose logits were not finite since the last time.
        histograms: Of the confidence, where there is a bank.
    """

    right: float | None
    changed: float
    nonfinite_rows: int
    histograms: dict


def label_statistics(bank, this: Run) -> LabelStatistics:
    """Looks at all rows of the bank; the given labels stand for it where there is none."""
    from alr_fast.loggers import Histogram

    rows, index = this.loaders.train.sampler.rows, this.index
    given = torch.from_numpy(index.labels[rows])
    labels, nonfinite, histograms = given, 0, {}
    if bank is not None:
        labels, nonfinite = bank.refined_labels().cpu(), bank.check()
        histograms["confidence"] = Histogram.of_probabilities(bank.confidence())
    right = None
    if index.clean_labels is not None:
        right = (labels == torch.from_numpy(index.clean_labels[rows])).sum().item()
    changed = (labels != given).sum().item()
    parts = this.world.gather((right, changed, nonfinite, histograms))
    rights, changes, counts, drawn = zip(*parts, strict=True)
    first, *others = drawn
    return LabelStatistics(
        None if right is None else sum(rights) / len(index),
        sum(changes) / len(index),
        sum(counts),
        {name: sum((other[name] for other in others), start) for name, start in first.items()},
    )


def export(trainer, method: str, this: Run) -> None:
    """Writes weights and bank of a trained method."""
    from alr_fast.runs import RunFolder

    this.in_folder(RunFolder.save_weights, method, trainer.evaluated)
    bank = trainer.criterion.bank
    if bank is None:
        return
    # The rows are brought here and put in the order of the ids, a few at a time.
    positions = torch.from_numpy(this.loaders.train.sampler.rows)
    with bank.host_access():
        pieces = this.world.collect_rows(positions, bank.rows)
        if this.world.main:
            write_bank(pieces, method, bank, this)
        else:
            for _ in pieces:  # sends them
                pass


def write_bank(pieces, method: str, bank, this: Run) -> None:
    """Writes the rows of all samples, ascending by id."""
    from alr_fast.bank_file import BankFileWriter

    index = this.index
    tensors = {"ids": torch.from_numpy(index.ids), "given_labels": torch.from_numpy(index.labels)}
    if index.clean_labels is not None:
        tensors["clean_labels"] = torch.from_numpy(index.clean_labels)
    with BankFileWriter(
        this.folder.path / f"{method}_bank.safetensors",
        num_samples=len(index),
        num_classes=index.num_classes,
        dtype=bank.rows.dtype,
        tensors=tensors,
        metadata={
            "sample_fingerprint": index.sample_fingerprint(),
            "label_fingerprint": index.label_fingerprint(),
            "class_names": json.dumps(index.class_names),
        },
    ) as file:
        for positions, rows in pieces:
            file.write(positions, rows)


@torch.no_grad()
def evaluate(model: nn.Module, loader, autocast) -> tuple[float, float]:
    """Mean cross entropy and accuracy over a loader, in all processes, each sample once."""
    from torchmetrics import MeanMetric

    def new_mean() -> MeanMetric:
        return MeanMetric(nan_strategy="disable").set_dtype(torch.float64).to(loader.device)

    model.eval()
    mean_loss, accuracy = new_mean(), new_mean()
    for batch in loader:
        with autocast:
            logits = model(batch["image"])
        labels = batch["label"]
        counted = (labels >= 0).double()  # -1 where a file gave no image
        losses = nn.functional.cross_entropy(
            logits.float(), labels, ignore_index=-1, reduction="none"
        )
        mean_loss.update(losses.double(), counted)
        accuracy.update((logits.argmax(1) == labels).double(), counted)
    return mean_loss.compute().item(), accuracy.compute().item()


def merged(parts: list[dict]) -> dict:
    """One dictionary of several."""
    return {key: value for part in parts for key, value in part.items()}


if __name__ == "__main__":
    sys.exit(main())
