"""Optimizer and learning-rate schedule of a configuration."""

import math
from collections.abc import Callable

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from alr_fast.training.config.schema import OptimConfig


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of a configuration, with initialised state."""
    name: str = optim.optimizer
    options = {}
    if name == "sgd":
        # timm's "sgd" uses Nesterov momentum, its "momentum" does not.
        name = "sgd" if optim.nesterov and optim.sgd_momentum > 0 else "momentum"
        options["momentum"] = optim.sgd_momentum
    optimizer = create_optimizer_v2(
        model,
        opt=name,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        filter_bias_and_bn=False,  # the published recipes decay all weights
        fused=True,  # skips a step itself if the scaler sets found_inf
        **options,
    )
    # Not at the first step: if that were skipped, SGD would continue with uninitialised momentum.
    # And a checkpoint is loaded into existing tensors.
    for group in optimizer.param_groups:
        for weight in group["params"]:
            state = optimizer.state[weight]
            if optim.optimizer != "sgd":
                state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
                state["exp_avg"] = torch.zeros_like(weight)
                state["exp_avg_sq"] = torch.zeros_like(weight)
            elif optim.sgd_momentum > 0:
                state["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def learning_rate_factor(optim: OptimConfig, *, steps_per_epoch: int) -> Callable[[int], float]:
    """Factor on ``optim.lr`` at each step: linear warm-up, then the schedule."""
    steps = optim.epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < optim.warmup_steps:
            return (step + 1) / optim.warmup_steps
        if optim.schedule == "step":
            return optim.gamma ** sum(step >= m * steps_per_epoch for m in optim.milestones)
        if optim.schedule == "constant":
            return 1.0
        done = (step - optim.warmup_steps) / max(steps - optim.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return factor
