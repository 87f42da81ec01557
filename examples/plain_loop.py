"""A plain training loop with a compiled step.

    python examples/plain_loop.py

The lines of label refinement end with `# alr`.
"""

import torch
from digits import label_accuracy, noisy_digits, small_model
from torch.utils.data import DataLoader, TensorDataset

from alr_fast import ALRLoss, LabelBank  # alr
from alr_fast.integrations import IndexedDataset  # alr


def main(epochs: int = 30) -> tuple[float, float]:
    """Trains; returns the share of right labels before and after."""
    torch.manual_seed(0)
    images, labels, clean = noisy_digits()
    dataset = IndexedDataset(TensorDataset(images, labels))  # alr
    loader = DataLoader(dataset, batch_size=128, shuffle=True)
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    bank = LabelBank.from_labels(dataset.given_labels(), num_classes=10)  # alr
    criterion = ALRLoss(bank, warmup_epochs=5)  # alr

    @torch.compile(fullgraph=True, dynamic=True)
    def loss_of(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return criterion(model(inputs), targets)  # targets: [B, 2] of label and index

    for epoch in range(epochs):
        criterion.set_epoch(epoch)  # alr
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss_of(inputs, targets).backward()
            optimizer.step()
        bank.check()  # alr
    return label_accuracy(labels, bank.refined_labels(), clean)  # alr


if __name__ == "__main__":
    main()
