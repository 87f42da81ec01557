"""Sharded parameters (FSDP2) and a sharded label bank, in any number of processes.

    torchrun --nproc-per-node 2 examples/fsdp.py

The lines of label refinement end with `# alr`.
"""

import torch
import torch.distributed as dist
from digits import label_accuracy, noisy_digits, small_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from alr_fast import ALRLoss, LabelBank  # alr
from alr_fast.data import OwnedRowsSampler  # alr
from alr_fast.integrations import IndexedDataset  # alr


def main(epochs: int = 30) -> tuple[float, float]:
    """Trains in a process group that is initialised; returns the share of right labels."""
    torch.manual_seed(0)
    images, labels, clean = noisy_digits()
    dataset = IndexedDataset(TensorDataset(images, labels))  # alr
    sampler = OwnedRowsSampler(dataset)  # alr
    loader = DataLoader(dataset, batch_size=128, sampler=sampler)
    model = small_model()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    bank = LabelBank.from_labels(dataset.given_labels(), num_classes=10)  # alr
    criterion = ALRLoss(bank.shard(sampler.rows), warmup_epochs=5)  # alr
    for epoch in range(epochs):
        criterion.set_epoch(epoch)  # alr
        for inputs, targets in loader:  # targets: [B, 2] of label and index
            optimizer.zero_grad()
            criterion(model(inputs), targets).backward()
            optimizer.step()
        criterion.bank.check()  # alr
    return label_accuracy(labels, criterion.bank.gather().refined_labels(), clean)  # alr


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
