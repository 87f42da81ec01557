"""What the ranks of the tests of the adapters do."""

import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from alr_fast import ALRLoss, LabelBank
from alr_fast.data import OwnedRowsSampler
from alr_fast.integrations import IndexedDataset

N, K = 26, 3


def new_dataset() -> TensorDataset:
    """Inputs [N, 4] and labels [N], the same in every process."""
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, torch.arange(N) % K)


def new_criterion(**options) -> ALRLoss:
    """With a whole bank."""
    options = {"warmup_epochs": 1} | options
    return ALRLoss(LabelBank.from_labels(torch.arange(N) % K, K), **options)


class Recorder(nn.Module):
    """A linear model that records the rows that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, K)
        self.batches: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.batches.append(x.detach().clone())
        return self.layer(x)

    def rows(self) -> list[int]:
        """The samples of all batches."""
        x = new_dataset().tensors[0]
        return [int((x == row).all(1).nonzero()) for batch in self.batches for row in batch]


def accelerate_epoch() -> dict:
    """One epoch with Accelerate, its loader not dealt out; and one that is, to compare."""
    from accelerate import Accelerator
    from accelerate.data_loader import prepare_data_loader

    accelerator = Accelerator(cpu=True)
    data = IndexedDataset(new_dataset())
    sampler = OwnedRowsSampler(data)
    plain = DataLoader(data, batch_size=4, sampler=sampler)
    loader = prepare_data_loader(
        plain, accelerator.device, num_processes=1, process_index=0, put_on_device=True
    )
    drawn = [[int(i) for _, targets in loader for i in targets[:, 1]] for _ in range(2)]
    dealt = [int(i) for _, targets in accelerator.prepare(plain) for i in targets[:, 1]]
    return {"drawn": drawn, "dealt": dealt, "rows": sampler.rows.tolist()}


def lightning_run(folder: str, part_of_module: bool) -> dict:
    """Trains with Lightning in the group's processes, saves, and resumes in a new trainer."""
    from lightning.pytorch import LightningModule, Trainer

    from alr_fast.integrations.lightning import ALRCallback

    warnings.simplefilter("ignore")

    class Module(LightningModule):
        def __init__(self, criterion, sampler=True):
            super().__init__()
            self.model = Recorder()
            self.sampler = sampler
            if part_of_module:
                self.criterion = criterion
            else:
                self.outside = [criterion]

        def loss(self):
            return self.criterion if part_of_module else self.outside[0]

        def training_step(self, batch, _):
            return self.loss()(self.model(batch[0]), batch[1])

        def validation_step(self, batch, _):
            return self.loss()(self.model(batch[0]), batch[1])

        def train_dataloader(self):
            data = IndexedDataset(new_dataset())
            return DataLoader(
                data, batch_size=4, sampler=OwnedRowsSampler(data) if self.sampler else None
            )

        def val_dataloader(self):
            return DataLoader(new_dataset(), batch_size=4)  # plain labels

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def trainer(epochs, callback):
        return Trainer(
            accelerator="cpu",
            devices=dist.get_world_size(),
            strategy="ddp",
            max_epochs=epochs,
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )

    def given(criterion):
        return ALRCallback() if part_of_module else ALRCallback(criterion)

    torch.manual_seed(0)
    module = Module(new_criterion())
    run = trainer(3, given(module.loss()))
    run.fit(module)
    bank = module.loss().bank
    run.save_checkpoint(f"{folder}/{part_of_module}.ckpt")
    result = {
        "rows": bank.shard_rows.tolist(),
        "drawn": module.model.rows(),
        "bank": bank.gather().rows,
    }
    again = Module(new_criterion())
    run = trainer(3, given(again.loss()))  # it has no epoch left
    run.fit(again, ckpt_path=f"{folder}/{part_of_module}.ckpt")
    loaded = again.loss().bank
    result["loaded"] = (loaded.gather() if loaded.shard_rows is not None else loaded).rows
    more = Module(new_criterion())
    run = trainer(4, given(more.loss()))
    run.fit(more, ckpt_path=f"{folder}/{part_of_module}.ckpt")
    result["resumed"] = more.loss().bank.gather().rows
    result["drawn later"] = more.model.rows()
    try:
        dealt = Module(new_criterion(), sampler=False)
        trainer(1, given(dealt.loss())).fit(dealt)
    except ValueError as error:
        result["error"] = str(error)
    return result


def transformers_run(folder: str) -> dict:
    """Trains with the Trainer in the group's processes, and resumes in a new one."""
    from transformers import Trainer, TrainingArguments

    from alr_fast.integrations.transformers import ALRTrainerMixin

    class ALRTrainer(ALRTrainerMixin, Trainer):
        pass

    class Model(Recorder):
        def forward(self, x, labels=None):
            return {"logits": super().forward(x)}

    def trainer(epochs):
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=4,
            save_strategy="epoch",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            logging_strategy="no",
        )
        data = [{"x": x, "label": int(y)} for x, y in zip(*new_dataset().tensors, strict=True)]
        return ALRTrainer(Model(), arguments, train_dataset=data, criterion=new_criterion())

    torch.manual_seed(0)
    first = trainer(3)
    first.train()
    bank = first.criterion.bank
    result = {
        "rows": bank.shard_rows.tolist(),
        "drawn": first.model.rows(),
        "bank": bank.gather().rows,
    }
    second = trainer(4)
    second.train(resume_from_checkpoint=True)
    result["resumed"] = second.criterion.bank.gather().rows
    result["drawn later"] = second.model.rows()
    result["saved"] = torch.load(f"{folder}/checkpoint-12/label_bank.pt")["bank.rows"]
    return result
