"""Lightning: a callback that looks after a loss of `alr_fast.losses`."""

from typing import Any

from torch.utils.data import DataLoader

from alr_fast.utils.requirements import install_command

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as error:
        raise ImportError(
            f"alr_fast.integrations.lightning needs Lightning: {install_command(['lightning'])}"
        ) from error

from alr_fast.data import OwnedRowsSampler
from alr_fast.errors import UserError
from alr_fast.integrations.progress import (
    check_criterion,
    end_epoch,
    shard_bank,
    start_step,
    start_training,
    whole_state,
)
from alr_fast.losses import Loss


class ALRCallback(Callback):
    """Announces epochs to the loss, saves and restores its bank, and shards it.

        Trainer(callbacks=[ALRCallback()])           # the loss is an attribute of the module
        Trainer(callbacks=[ALRCallback(criterion)])  # it is not

    A loss that is an attribute of the module is saved with the module, any other in the state of
    this callback. With several processes the loader of training needs an `OwnedRowsSampler`, and
    the callback shards the bank by it; ``callback.criterion.bank.gather()``, called in all
    processes, is the whole bank again.
    """

    def __init__(self, criterion: Loss | None = None) -> None:
        """Sets up the callback.

        Args:
            criterion: The loss; None for the one that is an attribute of the module.

        Raises:
            UserError: It is not a loss of `alr_fast.losses`.
        """
        super().__init__()
        self._given = None if criterion is None else check_criterion(criterion)
        self._name: str | None = None  # of the loss in the module, if it is part of it

    @property
    def criterion(self) -> Loss:
        """The loss.

        Raises:
            RuntimeError: Before `Trainer.fit`, if the callback has to find it in the module.
        """
        if self._given is None:
            raise RuntimeError("the loss is found in the module when Trainer.fit begins")
        return self._given

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        found = {name: m for name, m in pl_module.named_modules() if isinstance(m, Loss)}
        if self._given is None:
            if len(found) != 1:
                raise UserError(
                    f"missing; the module {type(pl_module).__name__} has {len(found)} losses of "
                    "alr_fast.losses, not one: pass the loss to ALRCallback(criterion)",
                    argument="criterion",
                )
            self._given = next(iter(found.values()))
        self._name = next((name for name, m in found.items() if m is self._given), None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.criterion.to(pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.criterion.train()
        start_training(self.criterion, trainer.max_epochs, name="max_epochs")
        if trainer.world_size == 1 or self.criterion.bank is None:
            return
        sampler = getattr(trainer.train_dataloader, "sampler", None)
        if not isinstance(sampler, OwnedRowsSampler):
            given = (
                type(sampler).__name__
                if isinstance(trainer.train_dataloader, DataLoader)
                else type(trainer.train_dataloader).__name__
            )
            raise UserError(
                "with several processes each of them has to draw rows of its own in every epoch: "
                "return DataLoader(dataset, sampler=alr_fast.data.OwnedRowsSampler(dataset), ...) "
                "from train_dataloader()",
                argument="sampler",
                value=given,
            )
        shard_bank(self.criterion, sampler)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.criterion.set_epoch(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        start_step(self.criterion, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        end_epoch(self.criterion)

    # The sanity check calls these two as well.
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.criterion.eval()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.criterion.train()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.criterion.eval()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        bank = self.criterion.bank
        if self._name is not None and bank is not None and bank.shard_rows is not None:
            # The module of one process has only the rows of that process.
            state, prefix = checkpoint["state_dict"], f"{self._name}."
            for name in [name for name in state if name.startswith(prefix)]:
                del state[name]
            state.update({prefix + name: t for name, t in whole_state(self.criterion).items()})

    def state_dict(self) -> dict[str, Any]:
        return {} if self._name is not None else {"criterion": whole_state(self.criterion)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "criterion" in state_dict:
            self.criterion.load_state_dict(state_dict["criterion"])
