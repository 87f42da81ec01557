"""The training loop of one method, from epoch to epoch."""

import math
import time

import torch
from torch import nn

from alr_fast.errors import SharedError, UserError


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


def train_method(method: str, this, model: nn.Module) -> None:
    """Trains one method to its end, from the start or from the checkpoint of the run.

    Args:
        method: Key of `alr_fast.training.methods.METHODS`.
        this: `alr_fast.training.run.Run`.
        model: Fresh net on the training device.
    """
    from alr_fast.bank.history import SampleHistory
    from alr_fast.training.checkpointer import steps_due
    from alr_fast.training.criterion import make_loss
    from alr_fast.training.output.records import EpochRecord
    from alr_fast.training.output.run_folder import BANK, RunFolder
    from alr_fast.training.profiling import Profile
    from alr_fast.training.sharded_bank import export_bank, label_statistics
    from alr_fast.training.trainer import Trainer

    config, world, loader = this.config, this.world, this.loaders.train
    bank_of = this.index, loader.sampler.rows, world
    criterion = make_loss(method, this)
    clean = this.index.clean_labels
    true = None if clean is None else torch.from_numpy(clean[loader.sampler.rows])
    history = None
    if criterion.bank is not None:
        history = SampleHistory(criterion.bank.given_labels, world.device)
    trainer = Trainer(model, criterion, config, loader, world, true_labels=true, history=history)
    before = this.restore(trainer, method)
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
            begin = time.perf_counter() - before
            trainer.begin_epoch()
            for batch in profile.steps(loader):
                trainer.train_step(batch)
                if trainer.steps_made % every == 0 or steps_due(trainer, config):
                    loss, accuracy, samples = trainer.progress()
                    seconds = time.perf_counter() - begin
                    rate = samples * world.size / seconds
                    display.step(trainer.epoch, trainer.step, loss, accuracy, rate)
                    trainer.check_skipped()
                    this.save_if_due(trainer, method, seconds)

            loss, accuracy, samples = trainer.progress(everywhere=True)
            seconds = time.perf_counter() - begin
            skipped = trainer.check_skipped()
            if not math.isfinite(loss):
                raise SharedError(
                    f"{method}: the training loss of epoch {trainer.epoch + 1} is not finite; "
                    + trainer.nan_advice
                )
            trainer.share_statistics()
            tests = [
                evaluate(trainer.evaluated, other, trainer.autocast)
                for other in this.loaders.evaluated
            ]
            this.loaders.share_broken(world)
            labels = label_statistics(criterion.bank, *bank_of)
            if history is not None:
                history.end_epoch(labels.refined)
            record = EpochRecord(
                method=method,
                epoch=trainer.epoch + 1,
                learning_rate=trainer.optimizer.param_groups[0]["lr"],
                train_loss=loss,
                train_accuracy=accuracy,
                test_loss=tests[0][0],
                test_accuracy=tests[0][1],
                second_test_accuracy=tests[1][1] if len(this.loaders.tests) > 1 else None,
                label_accuracy=labels.right,
                labels_changed=labels.changed,
                nonfinite_rows=labels.nonfinite_rows,
                skipped_steps=skipped,
                broken_samples=len(loader.broken.reasons),
                samples_per_second=samples / seconds,
                seconds=time.perf_counter() - begin,
                validation_accuracy=tests[-1][1] if this.loaders.validation else None,
                **trainer.prediction_shares(),
            )
            this.records.append(record)
            this.in_folder(RunFolder.log_epoch, record, labels.histograms)
            display.epoch(record)
            trainer.end_epoch()
            before = 0.0
            this.save_if_due(trainer, method, before)
    this.in_folder(RunFolder.save_weights, method, trainer.evaluated)
    if criterion.bank is not None:
        export_bank(this.path / f"{method}{BANK}", criterion.bank, history, *bank_of)
    profile.show(this)
    this.finished.append(method)


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
