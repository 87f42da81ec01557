"""Hugging Face's Trainer, here with a small vision transformer made from its configuration.

    python examples/hugging_face.py

The lines of label refinement end with `# alr`.
"""

import tempfile

import torch
from digits import label_accuracy, noisy_digits
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from alr_fast import ALRLoss, LabelBank  # alr
from alr_fast.integrations.transformers import ALRTrainerMixin  # alr


class Digits(Dataset):
    """Items as the Trainer takes them: mappings with the label under `label`."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": self.images[index], "label": self.labels[index]}


class ALRTrainer(ALRTrainerMixin, Trainer):  # alr
    """The Trainer with label refinement."""


def main(epochs: int = 20) -> tuple[float, float]:
    """Trains; returns the share of right labels before and after."""
    torch.manual_seed(0)
    images, labels, clean = noisy_digits()
    config = ViTConfig(
        image_size=8,
        patch_size=8,
        num_channels=1,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=10,
    )
    bank = LabelBank.from_labels(labels, num_classes=10)  # alr
    criterion = ALRLoss(bank, warmup_epochs=5)  # alr
    with tempfile.TemporaryDirectory() as folder:
        trainer = ALRTrainer(
            ViTForImageClassification(config),
            TrainingArguments(
                folder,
                num_train_epochs=epochs,
                per_device_train_batch_size=128,
                learning_rate=2e-3,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=Digits(images, labels),
            criterion=criterion,  # alr
        )
        trainer.train()
    refined = trainer.criterion.bank.gather().refined_labels()  # alr
    return label_accuracy(labels, refined, clean)


if __name__ == "__main__":
    main()
