"""timm's way to train: its loader, model, optimizer, schedule and average of the weights.

    python examples/timm_train.py

The lines of label refinement end with `# alr`. Mixup stays off: it makes soft labels of two
samples, and a row of the bank belongs to one.
"""

import torch
from digits import label_accuracy, noisy_digits
from PIL import Image
from timm.data import create_loader
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3

from alr_fast import ALRLoss, LabelBank  # alr
from alr_fast.integrations import IndexedDataset  # alr


class Digits(torch.utils.data.Dataset):
    """Pictures and labels, as timm's `ImageDataset` has them."""

    transform = None

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images = [Image.fromarray((x[0] * 255).byte().numpy()) for x in images]
        self.targets = labels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple:
        return self.transform(self.images[index].convert("RGB")), int(self.targets[index])


def main(epochs: int = 20) -> tuple[float, float]:
    """Trains; returns the share of right labels before and after."""
    torch.manual_seed(0)
    images, labels, clean = noisy_digits()
    dataset = IndexedDataset(Digits(images, labels))  # alr
    loader = create_loader(
        dataset,
        input_size=(3, 8, 8),
        batch_size=128,
        is_training=True,
        no_aug=True,
        use_prefetcher=False,
        num_workers=0,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    model = create_model(
        "vit_tiny_patch16_224",
        img_size=8,
        patch_size=8,
        embed_dim=128,
        depth=1,
        num_heads=2,
        num_classes=10,
    )
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.01)
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=epochs)
    average = ModelEmaV3(model, decay=0.99)
    bank = LabelBank.from_labels(dataset.given_labels(), num_classes=10)  # alr
    criterion = ALRLoss(bank, warmup_epochs=5)  # alr
    for epoch in range(epochs):
        model.train()
        criterion.set_epoch(epoch)  # alr
        for inputs, targets in loader:  # targets: [B, 2] of label and index
            optimizer.zero_grad()
            criterion(model(inputs), targets).backward()
            optimizer.step()
            average.update(model)
        bank.check()  # alr
        scheduler.step(epoch + 1)
    return label_accuracy(labels, bank.refined_labels(), clean)  # alr


if __name__ == "__main__":
    main()
