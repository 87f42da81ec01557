"""A loop with Hugging Face's Accelerate, in any number of processes.

    python examples/accelerate_loop.py
    accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py

The lines of label refinement end with `# alr`.
"""

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader  # alr
from digits import label_accuracy, noisy_digits, small_model
from torch.utils.data import DataLoader, TensorDataset

from alr_fast import ALRLoss, LabelBank  # alr
from alr_fast.data import OwnedRowsSampler  # alr
from alr_fast.integrations import IndexedDataset  # alr


def main(epochs: int = 30) -> tuple[float, float]:
    """Trains; returns the share of right labels before and after."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    images, labels, clean = noisy_digits()
    dataset = IndexedDataset(TensorDataset(images, labels))  # alr
    sampler = OwnedRowsSampler(dataset)  # alr
    loader = DataLoader(dataset, batch_size=128, sampler=sampler)
    # accelerator.prepare would deal these batches out to all processes, as it does with those of
    # any sampler. Process 0 of 1 keeps them.
    loader = prepare_data_loader(loader, accelerator.device, 1, 0, put_on_device=True)  # alr
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    bank = LabelBank.from_labels(dataset.given_labels(), 10, device=accelerator.device)  # alr
    criterion = ALRLoss(bank.shard(sampler.rows), warmup_epochs=5)  # alr
    for epoch in range(epochs):
        criterion.set_epoch(epoch)  # alr
        for inputs, targets in loader:  # targets: [B, 2] of label and index
            optimizer.zero_grad()
            accelerator.backward(criterion(model(inputs), targets))
            optimizer.step()
        criterion.bank.check()  # alr
    return label_accuracy(labels, criterion.bank.gather().refined_labels(), clean)  # alr


if __name__ == "__main__":
    main()
