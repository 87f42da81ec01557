"""Lightning, in any number of processes.

    python examples/lightning_module.py
    python examples/lightning_module.py 2     # processes

The lines of label refinement end with `# alr`.
"""

import sys
import tempfile

import torch
from digits import label_accuracy, noisy_digits, small_model
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from alr_fast import ALRLoss, LabelBank  # alr
from alr_fast.data import OwnedRowsSampler  # alr
from alr_fast.integrations import IndexedDataset  # alr
from alr_fast.integrations.lightning import ALRCallback  # alr


class Classifier(LightningModule):
    """An MLP on noisy labels."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        super().__init__()
        self.dataset = IndexedDataset(TensorDataset(images, labels))  # alr
        self.model = small_model()
        bank = LabelBank.from_labels(self.dataset.given_labels(), num_classes=10)  # alr
        self.criterion = ALRLoss(bank, warmup_epochs=5)  # alr

    def training_step(self, batch: list, batch_idx: int) -> torch.Tensor:
        inputs, targets = batch  # targets: [B, 2] of label and index
        return self.criterion(self.model(inputs), targets)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(
            self.dataset, batch_size=128, sampler=OwnedRowsSampler(self.dataset)
        )  # alr

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=2e-3)


def main(epochs: int = 30, devices: int = 1) -> tuple[float, float]:
    """Trains; returns the share of right labels before and after."""
    torch.manual_seed(0)
    images, labels, clean = noisy_digits()
    module = Classifier(images, labels)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            devices=devices,
            max_epochs=epochs,
            callbacks=[ALRCallback()],  # alr
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module)
        refined = module.criterion.bank.gather().refined_labels()  # alr
    return label_accuracy(labels, refined, clean)


if __name__ == "__main__":
    main(devices=int(sys.argv[1]) if len(sys.argv) > 1 else 1)
