"""The training loop: set-up of the methods, and each method from epoch to epoch."""

import math
import time
from collections.abc import Sequence

import torch
from torch import nn

from alr_fast.data.datasets import Split
from alr_fast.data.loaders.choose import choose_loader
from alr_fast.data.loaders.transform import Transform, for_evaluation
from alr_fast.errors import SharedError, UserError, naming_options
from alr_fast.training.checkpointer import Checkpointer
from alr_fast.training.config.schema import Config
from alr_fast.training.criterion import check_methods, make_loss
from alr_fast.training.description import Description
from alr_fast.training.distributed import World
from alr_fast.training.dry_pass import SAMPLES, dry_pass
from alr_fast.training.estimate import estimate_time
from alr_fast.training.evaluation import evaluate
from alr_fast.training.loaders import Loaders, make_loaders, make_transform
from alr_fast.training.models import FeatureModel, build_model
from alr_fast.training.output.display import RunDisplay
from alr_fast.training.output.records import EpochRecord, class_table
from alr_fast.training.output.run_folder import RunFolder
from alr_fast.training.profiling import Profile
from alr_fast.training.room import check_room
from alr_fast.training.run import Run
from alr_fast.training.run_data import RunData
from alr_fast.training.run_paths import BANK
from alr_fast.training.sharded_bank import export_bank, label_statistics
from alr_fast.training.trainer import Trainer
from alr_fast.training.warm_start import warm_bank, warm_weights
from alr_fast.utils.random import stream


def set_up(
    config: Config,
    data: RunData,
    world: World,
    console: RunDisplay,
    *,
    finished: Sequence[str] = (),
) -> Loaders:
    """Makes the loaders of a run, and checks all that the methods need.

    Args:
        config: Resolved configuration.
        data: Samples and labels to train on.
        world: The processes; this waits for none of them.
        console: Shows progress.
        finished: Methods that a resumed run has trained.

    Raises:
        UserError: The configuration does not fit the data or this machine.
    """
    log, track = console.log, console.track
    transform = make_transform(config.data, data.train, config.model.name, log=log)
    # All before images are decoded, which may take long.
    _check_before(config, data, transform, world, console, finished)
    return make_loaders(config, data, transform, world=world, log=log, track=track)


def _check_before(
    config: Config,
    data: RunData,
    transform: Transform,
    world: World,
    console: RunDisplay,
    finished: Sequence[str],
) -> None:
    """Checks model, losses, saving and room; says how long the run will take."""
    index, input_shape = data.train.index, data.train.input_shape(transform.size)
    model = _local_model(config, data.train, transform.size, world)
    losses = check_methods(config, index, input_shape=input_shape, samples=SAMPLES)
    dry_pass(
        model,
        {name: loss.to(world.device) for name, loss in losses.items()},
        config,
        world,
        input_shape=input_shape,
        num_classes=index.num_classes,
    )
    remaining = [method for method in config.methods if method not in finished]
    if not remaining:
        return
    check_room(config, remaining, index, model, world, warn=console.warn)
    with naming_options(loader="data.loader", batch_size="optim.batch_size"):
        loader = choose_loader(config.data.loader, data.train, transform, config.data.cache_mb)
        expected = estimate_time(model, config, remaining, data, transform, loader.name, world)
    if expected is not None:
        console.log(f"time: {expected}")


def _new_model(config: Config, split: Split, image_size: int, world: World) -> nn.Module:
    """The model of a configuration with initial weights, on the training device."""
    model = _local_model(config, split, image_size, world)
    if config.model.sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model).to(world.device)
    return model


def _local_model(config: Config, split: Split, image_size: int, world: World) -> nn.Module:
    """`_new_model` that never waits for other processes."""
    torch.manual_seed(config.seed)
    options = {"name": "model.name", "pretrained": "model.pretrained"}
    with naming_options(**options, image_size="data.image_size"):
        model = build_model(
            config.model.name,
            num_classes=split.index.num_classes,
            input_shape=split.input_shape(image_size),
            pretrained=config.model.pretrained,
        )
    if isinstance(model, FeatureModel) and split.values is not None:
        model.standardise(split.values)
    # The weights are the same in all processes, but each has its own dropout masks.
    torch.manual_seed(int(stream("model", config.seed, world.rank).integers(1 << 63)))
    if config.model.sync_batchnorm and world.device.type != "cuda":
        raise UserError(
            "--model.sync_batchnorm true: PyTorch synchronises batch statistics between GPUs "
            "only; leave it out on the CPU"
        )
    # Convolutions are faster in this layout, on GPUs and on CPUs.
    return model.to(world.device).to(memory_format=torch.channels_last)


def train_method(method: str, run: Run) -> Checkpointer:
    """Trains one method to its end, from the start or from the checkpoint of the run.

    Args:
        method: Key of `alr_fast.training.methods.METHODS`.
        run: The run.

    Returns:
        Its checkpointer, for its last state.
    """
    config, loader, clean = run.config, run.loaders.train, run.index.clean_labels
    model = _new_model(config, loader.split, loader.transform.size, run.world)
    warm_weights(model, method, run)
    true_labels = None if clean is None else torch.from_numpy(clean[run.rows])
    criterion = make_loss(method, run)
    trainer = Trainer(model, criterion, config, loader, run.world, true_labels=true_labels)
    warm_bank(trainer, method, run)
    checkpointer = Checkpointer(run, trainer, method)
    seconds = checkpointer.restore()
    profile = Profile(trainer, wanted=config.log.profile and method == config.methods[-1])
    with run.console.training(
        method,
        epochs=config.optim.epochs,
        steps=len(loader),
        start_epoch=trainer.epoch,
        start_step=trainer.step,
    ) as display:
        while trainer.epoch < config.optim.epochs:
            began = time.perf_counter() - seconds
            trainer.begin_epoch()
            for batch in profile.steps(loader):
                trainer.train_step(batch)
                if checkpointer.look_now:
                    result = trainer.progress()
                    seconds = time.perf_counter() - began
                    rate = result.samples * run.world.size / seconds
                    display.step(trainer.epoch, trainer.step, result.loss, result.accuracy, rate)
                    trainer.check_skipped()
                    checkpointer.save_if_due(seconds)
            display.epoch(_close_epoch(method, run, trainer, began))
            trainer.end_epoch()
            seconds = 0.0
            checkpointer.save_if_due(seconds)
    profile.show(run)
    checkpointer.complete(written=_save_results(method, run, trainer))
    run.finished.append(method)
    return checkpointer


def _save_results(method: str, run: Run, trainer: Trainer) -> bool:
    """Writes weights and label bank after the last epoch; returns whether both are written."""
    metadata = _description(method, run, trainer).metadata()
    written = run.in_folder(
        *(RunFolder.save_weights, method, trainer.evaluated, metadata),
        without="the run continues without them",
    )
    table = class_table(run.index, run.class_counts.get(method, {}))
    run.in_folder(
        RunFolder.save_classes, method, table, without="the run has no table of the classes"
    )
    bank, history = trainer.criterion.bank, trainer.history
    if bank is not None and history is not None:
        path, split = run.path / f"{method}{BANK}", run.loaders.train.split
        written &= run.attempt(
            lambda: export_bank(path, bank, history, split, run.rows, run.world),
            without="the run continues without it",
        )
    return written


def _description(method: str, run: Run, trainer: Trainer) -> Description:
    """What the file of the weights says about the model."""
    config, loaders = run.config, run.loaders
    return Description(
        model=config.model.name,
        input_shape=loaders.train.input_shape,
        class_names=run.index.class_names,
        transform=for_evaluation(loaders.train.transform),
        method=method,
        epoch=trainer.epoch,
        precision=config.precision,
        loader=loaders.choice.name,
    )


def _close_epoch(method: str, run: Run, trainer: Trainer, began: float) -> EpochRecord:
    """Evaluates the model after the last step of an epoch, and logs the epoch.

    ``began`` is the `time.perf_counter` of its start, without the time that the run was stopped.

    Raises:
        SharedError: The training loss is not finite.
    """
    result = trainer.progress(everywhere=True)
    train_seconds = time.perf_counter() - began
    skipped = trainer.check_skipped()
    if not math.isfinite(result.loss):
        raise SharedError(
            f"{method}: the training loss of epoch {trainer.epoch + 1} is not finite; "
            + trainer.nan_advice
        )
    trainer.share_statistics()
    loaders, model, autocast = run.loaders, trainer.evaluated, trainer.autocast
    measured = {
        name: evaluate(model, loader, autocast) for name, loader in loaders.for_evaluation.items()
    }
    run.class_counts[method] = {name: result.classes for name, result in measured.items()}
    loaders.share_broken(run.world)
    labels = label_statistics(trainer.criterion.bank, run.index, run.rows, run.world)
    if trainer.history is not None:
        trainer.history.end_epoch(labels.refined)
    test, second, validation = (
        measured.get(name) for name in ("test", "second_test", "validation")
    )
    record = EpochRecord(
        method=method,
        epoch=trainer.epoch + 1,
        learning_rate=trainer.optimizer.param_groups[0]["lr"],
        train_loss=result.loss,
        train_accuracy=result.accuracy,
        test_loss=None if test is None else test.loss,
        test_accuracy=None if test is None else test.accuracy,
        second_test_accuracy=None if second is None else second.accuracy,
        label_accuracy=labels.accuracy,
        labels_changed=labels.changed,
        nonfinite_rows=labels.nonfinite_rows,
        skipped_steps=skipped,
        broken_samples=len(loaders.train.broken.reasons),
        samples_per_second=result.samples / train_seconds,
        seconds=time.perf_counter() - began,
        validation_accuracy=None if validation is None else validation.accuracy,
        clean_correct=result.clean_correct,
        mislabelled_correct=result.mislabelled_correct,
        mislabelled_memorised=result.mislabelled_memorised,
        warming_up=getattr(trainer.criterion, "warming_up", None),
        test_balanced_accuracy=None if test is None else test.balanced_accuracy,
        test_top5_accuracy=None if test is None else test.top5_accuracy,
        second_test_top5_accuracy=None if second is None else second.top5_accuracy,
        validation_balanced_accuracy=None if validation is None else validation.balanced_accuracy,
    )
    run.records.append(record)
    run.in_folder(
        RunFolder.log_epoch, record, labels.histograms, without="training continues without it"
    )
    return record
