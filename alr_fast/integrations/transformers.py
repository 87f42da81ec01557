"""Hugging Face Transformers: a Trainer that trains with a loss of `alr_fast.losses`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from alr_fast.utils.requirements import install_command

try:
    from transformers import TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise ImportError(
        "alr_fast.integrations.transformers needs Transformers and Accelerate: "
        f"{install_command(['transformers', 'accelerate'])}"
    ) from error

from alr_fast.data import OwnedRowsSampler
from alr_fast.errors import UserError
from alr_fast.integrations.indexed import IndexedDataset
from alr_fast.integrations.progress import (
    check_criterion,
    end_epoch,
    shard_bank,
    start_step,
    start_training,
    whole_state,
)
from alr_fast.losses import Loss
from alr_fast.utils.files import own_folder, replacing

if TYPE_CHECKING:  # the mix-in calls methods of the Trainer that it is combined with
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

FILE_NAME = "label_bank.pt"  # in every checkpoint


class ALRTrainerMixin(_Trainer):
    """Put before Transformers' Trainer, it trains with a loss of `alr_fast.losses`:

        class ALRTrainer(ALRTrainerMixin, Trainer):
            pass

        trainer = ALRTrainer(model, args, train_dataset=dataset, criterion=ALRLoss(bank, ...))
        trainer.train()
        refined = trainer.criterion.bank.gather().refined_labels()

    The training set is wrapped in `IndexedDataset` unless it is already, so that the index of a
    sample reaches the loss whatever ``remove_unused_columns`` and the collate function are. The
    loss follows the epochs, is plain cross entropy in evaluation, and is saved and restored with
    the checkpoints in ``label_bank.pt``. With several processes the rows are divided among them and
    the bank is sharded.

    Attributes:
        criterion: The loss.
    """

    # Of the Trainer that this class is combined with.
    args: Any
    model: Any
    train_dataset: Any
    label_smoother: Any
    compute_loss_func: Any
    label_names: list[str]
    loss_is_scaled_for_ga: bool | None = False  # a mean over one batch

    def __init__(self, *args: Any, criterion: Loss, **kwargs: Any) -> None:
        """Sets up the trainer.

        Args:
            criterion: The loss, with a whole bank. It is moved to the device of the trainer.
            *args: Positional arguments of the Trainer.
            **kwargs: Keyword arguments of the Trainer.

        Raises:
            UserError: The criterion is not a loss of `alr_fast.losses`, or the Trainer has another
                loss as well.
        """
        self.criterion = check_criterion(criterion)
        super().__init__(*args, **kwargs)
        if self.label_smoother is not None:
            raise UserError(
                "the loss is that of criterion: leave it at 0",
                argument="label_smoothing_factor",
                value=self.args.label_smoothing_factor,
            )
        if self.compute_loss_func is not None:
            raise UserError("the loss is that of criterion: drop it", argument="compute_loss_func")
        if "labels" not in self.label_names:  # a model without that argument: its column stays
            self.label_names = [*self.label_names, "labels"]
        # The model does not compute the loss, so labels are not counted for it.
        self.model_accepts_loss_kwargs = False
        self.criterion.to(self.args.device)
        self._sampler: OwnedRowsSampler | None = None
        self.add_callback(_Progress(self))

    def get_train_dataloader(self) -> DataLoader[Any]:
        dataset: Any = getattr(self, "train_dataset", None)
        if dataset is not None and not isinstance(dataset, IndexedDataset):
            self.train_dataset = IndexedDataset(dataset)
        loader: DataLoader[Any] = super().get_train_dataloader()
        if self._sampler is not None:
            # Accelerate deals the batches of any sampler out to the processes. These are those of
            # one process already.
            shard: Any = loader.batch_sampler
            if not hasattr(shard, "num_processes") or not hasattr(shard, "process_index"):
                raise RuntimeError(
                    f"Accelerate wrapped the batches in {type(shard).__name__}, which this version "
                    "of alr_fast does not know: leave split_batches and dispatch_batches at False"
                )
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        if self.args.world_size == 1 or self.criterion.bank is None:
            return super()._get_train_sampler(*args, **kwargs)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._sampler = OwnedRowsSampler(
            self.train_dataset,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            seed=seed,
        )
        shard_bank(self.criterion, self._sampler)
        return self._sampler

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Loss of a batch, whose `labels` are [B, 2] in training, and [B] or [B, 2] otherwise.

        The arguments are those of the Trainer.
        """
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        loss = self.criterion.train(model.training)(logits, labels)
        if not isinstance(outputs, dict):
            outputs = (loss, *outputs)  # where the Trainer expects it
        return (loss, outputs) if return_outputs else loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, and the state of the loss beside it.

        With several processes the bank is saved with the checkpoints only, because all processes
        have to take part. The arguments are those of the Trainer.
        """
        super().save_model(output_dir, _internal_call)
        bank = self.criterion.bank
        if bank is not None and bank.shard_rows is not None and not _internal_call:
            return
        state = whole_state(self.criterion)
        if self.args.should_save:
            folder = Path(self.args.output_dir if output_dir is None else output_dir)
            own_folder(folder)
            with replacing(folder / FILE_NAME) as part:
                torch.save(state, part)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Trains; from a checkpoint, with the bank that was saved with it.

        The arguments are those of the Trainer.

        Raises:
            UserError: The checkpoint has no bank.
        """
        folder: Any = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        if folder:
            path = os.path.join(folder, FILE_NAME)
            if not os.path.isfile(path):
                raise UserError(
                    f"has no {FILE_NAME}: resume from a checkpoint that ALRTrainerMixin saved",
                    argument="resume_from_checkpoint",
                    value=folder,
                )
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.criterion.load_state_dict(state)
        return super().train(resume_from_checkpoint, *args, **kwargs)


class _Progress(TrainerCallback):
    """Announces epochs and steps to the loss of a trainer."""

    def __init__(self, trainer: ALRTrainerMixin) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epochs = args.num_train_epochs if args.max_steps <= 0 else None
        start_training(self._trainer.criterion, epochs, name="num_train_epochs")

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch = int((state.epoch or 0) + 1e-6)  # a sum of fractions at the end of an epoch
        self._trainer.criterion.set_epoch(epoch)
        if self._trainer._sampler is not None:
            self._trainer._sampler.set_epoch(epoch)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        start_step(self._trainer.criterion, state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        end_epoch(self._trainer.criterion)
