"""A whole training step with each loss: the cost of ALR over cross entropy, and of the trainer.

    python -m benchmarks.train_step

A step consists of zero_grad, forward, loss, backward, optimizer, scheduler and the sums of an
epoch, through `alr_fast.training.trainer.Trainer.train_step`, with images of random pixels in
memory. For comparison there is a loop written by hand with torch's cross entropy, without sums. All
variants train the same model, so that the addresses of its weights favour none; each has its own
optimizer.

Before any timing each variant makes a step from the same weights and bank. Its weights, loss and
bank must agree with those of its variant in `REFERENCE`.

Then the variants take turns of a few steps, in another order each round. Percentages are medians
over the rounds and compare two variants in the same round, with a bootstrap interval that contains
the true median in 95 of 100 runs. `ce_again` repeats the trainer with cross entropy: its
percentage, ideally 0, is the error of the comparison.

Rows are written to benchmarks/results, from which `python -m benchmarks.report` generates tables.
With --tiny or --only they are written to the file of --json only.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alr_fast import reference
from alr_fast.bank import LabelBank
from alr_fast.losses import ALRLoss, CrossEntropyLoss
from alr_fast.training.distributed import World
from alr_fast.training.models import build_model
from alr_fast.training.optim import make_optimizer
from alr_fast.training.trainer import Trainer
from benchmarks.harness.averages import percentiles
from benchmarks.harness.command import Output, add_json_argument, check_arguments
from benchmarks.harness.environment import environment
from benchmarks.harness.results import FOLDER
from benchmarks.harness.synthetic import Batches, training_config
from benchmarks.harness.timing import host_turn, take_turns
from benchmarks.tables.markdown import show
from benchmarks.tables.training import train_step_cells

VARIANTS = {
    "plain": "a loop by hand with `F.cross_entropy`, without sums",
    "ce": "the trainer with cross entropy",
    "ce_again": "the same again: the error of the comparison",
    "alr": "the trainer with ALR, refining, fused",
    "alr_eager": "the trainer with ALR of `alr_fast.reference` through autograd",
}
# The variant that a step must agree with, and the one from which it must differ.
REFERENCE = {"ce": "plain", "ce_again": "plain", "alr_eager": "alr"}
_OTHER = {"alr": "ce"}
BASES = ("ce", "plain")

_MOMENTUM, _ENTROPY_WEIGHT = 0.9, 0.1
_LEAST_ROUNDS = 3
_GPU_TURN = 10  # steps of a turn on a GPU, in which the host may run ahead
_DRAWS = 1000  # of the bootstrap
_NEEDS_GPU = "needs a GPU"


@dataclass(frozen=True)
class Case:
    """A model and its batches.

    Attributes:
        name: Name in the rows.
        model: See `alr_fast.training.models`.
        shape: Channels and side of the images.
        batch: B.
        classes: K.
        samples: N, rows of the bank.
        precision: Type of autocast.
        turn: Steps of a turn on the CPU.
        gpu: Whether it needs a GPU.
    """

    name: str
    model: str
    shape: tuple[int, int]
    batch: int
    classes: int
    samples: int
    precision: str = "float32"
    turn: int = 1
    gpu: bool = False


CASES = {
    case.name: case
    for case in (
        Case("digits", "conv-tiny", (1, 8), 128, 10, 1437, turn=4),
        Case("conv-small", "conv-small", (3, 32), 128, 10, 50_000),
        Case("resnet18-cifar", "resnet18-cifar", (3, 32), 128, 100, 50_000),
        Case("resnet50", "resnet50", (3, 224), 256, 1000, 1_281_167, "bfloat16", gpu=True),
        Case("vit-s", "vit_small_patch16_224", (3, 224), 256, 1000, 1_281_167, "bfloat16",
             gpu=True),
    )
}  # fmt: skip
TINY_CASES = {
    case.name: case
    for case in (
        Case("digits", "conv-tiny", (1, 8), 8, 3, 64, turn=2),
        Case("resnet50", "resnet50", (3, 32), 8, 3, 64, "bfloat16", gpu=True),
    )
}


class EagerALRLoss(nn.Module):
    """`alr_fast.reference` with the interface that the trainer uses, without a warm-up."""

    def __init__(self, bank: LabelBank) -> None:
        super().__init__()
        self.bank = bank

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: there is no warm-up."""

    def loss_and_grad(
        self, logits: Tensor, labels: Tensor, index: Tensor, *, row_weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sum of the losses and its gradient through autograd; updates the bank."""
        return reference.alr_loss_and_grad(
            logits,
            self.bank.rows,
            index,
            momentum=_MOMENTUM,
            entropy_weight=_ENTROPY_WEIGHT,
            reduction="sum",
            row_weight=row_weight,
            unique_index=True,
        )


@dataclass(frozen=True)
class Stepper:
    """A variant in training.

    Attributes:
        step: Makes a step on a batch.
        loss: Returns the mean loss so far; waits for the device.
        bank: Its bank; None if there is none.
    """

    step: Callable[[dict[str, Tensor]], object]
    loss: Callable[[], float]
    bank: LabelBank | None


class Contest:
    """The variants of a case, with the same model.

    Args:
        case: The case.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, case: Case, device: str) -> None:
        torch.manual_seed(0)
        self.case = case
        self.device = device
        channels, side = case.shape
        model = build_model(
            case.model, num_classes=case.classes, in_channels=channels, image_size=side
        )
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.batches = Batches(
            samples=case.samples,
            batch=case.batch,
            classes=case.classes,
            shape=case.shape,
            device=device,
            dtype=getattr(torch, case.precision),
        )
        self._config = training_config(case.batch, case.precision)

    def stepper(self, variant: str) -> Stepper:
        """A variant at its start, except for the weights of the model."""
        if variant == "plain":
            return self._plain()
        make: Callable[[], nn.Module] = {
            "ce": partial(CrossEntropyLoss, reduction="sum"),
            "ce_again": partial(CrossEntropyLoss, reduction="sum"),
            "alr": self._fused,
            "alr_eager": lambda: EagerALRLoss(self._bank()),
        }[variant]
        criterion = make()
        world = World(0, 1, 1, torch.device(self.device))
        trainer = Trainer(self.model, criterion, self._config, self.batches, world)
        trainer.begin_epoch()
        return Stepper(trainer.train_step, lambda: trainer.progress().loss, criterion.bank)

    def _bank(self) -> LabelBank:
        return LabelBank.from_labels(
            self.batches.labels, self.case.classes, device=torch.device(self.device)
        )

    def _fused(self) -> ALRLoss:
        return ALRLoss(
            self._bank(),
            warmup_epochs=0,
            momentum=_MOMENTUM,
            entropy_weight=_ENTROPY_WEIGHT,
            reduction="sum",
            unique_index=True,
        )

    def _plain(self) -> Stepper:
        model, precision = self.model, self.case.precision
        optimizer = make_optimizer(model, self._config.optim)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        losses: list[Tensor] = [torch.zeros(())]

        def step(batch: dict[str, Tensor]) -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(
                self.device, getattr(torch, precision), enabled=precision != "float32"
            ):
                loss = F.cross_entropy(model(batch["image"]), batch["label"])
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses[0] = loss.detach()

        return Stepper(step, lambda: losses[0].item(), None)

    def check(self) -> None:
        """Makes a step with each variant from the same start, and compares the results.

        The weights are restored.

        Raises:
            AssertionError: A variant is wrong.
        """
        start = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        batch = self.batches.batch(0)
        found = {}
        for variant in VARIANTS:
            stepper = self.stepper(variant)
            stepper.step(batch)
            change = torch.cat(
                [
                    (weight.detach() - start[name]).flatten().double()
                    for name, weight in self.model.named_parameters()
                ]
            )
            assert change.isfinite().all(), f"{variant}: weights are not finite"
            rows = None if stepper.bank is None else stepper.bank.rows
            found[variant] = change, stepper.loss(), rows
            self.model.load_state_dict(start)
        bound = self._tolerance
        for variant, right in REFERENCE.items():
            (change, loss, rows), (expected, right_loss, right_rows) = found[variant], found[right]
            off = {
                "weights": _distance(change, expected),
                "loss": abs(loss - right_loss) / abs(right_loss),
            }
            if rows is not None:
                index = batch["index"]
                off["bank"] = _distance(rows[index].double(), right_rows[index].double())
                rows[index] = right_rows[index]
                assert torch.equal(rows, right_rows), f"{variant}: rows outside the batch differ"
            for name, error in off.items():
                if not error <= bound:  # NaN too
                    raise AssertionError(
                        f"{variant} and {right}: {name} after a step differ by {error:.1e} of "
                        f"their norm, over {bound:.0e}"
                    )
        for variant, other in _OTHER.items():
            if _distance(found[variant][0], found[other][0]) <= bound:
                raise AssertionError(
                    f"{variant} makes the same step as {other}: it does not refine"
                )

    @property
    def _tolerance(self) -> float:
        """Relative; convolutions on a GPU add in a different order each time."""
        if self.case.precision != "float32":
            return 3e-2
        return 1e-4 if self.device == "cpu" else 1e-3

    def measure(self, seconds: float) -> tuple[dict[str, list[float]], int]:
        """Times the variants in turn.

        Returns:
            Milliseconds a step of each variant in each round, and steps of a turn.
        """
        steps = self.case.turn if self.device == "cpu" else _GPU_TURN

        def turn_of(variant: str) -> Callable[[], float]:
            step, numbers = self.stepper(variant).step, itertools.count()

            def next_step() -> None:
                step(self.batches.batch(next(numbers)))

            return lambda: host_turn(next_step, steps, self.device)[0] / 1e3

        turns = {variant: turn_of(variant) for variant in VARIANTS}
        for turn in turns.values():
            turn()
        return take_turns(turns, seconds, _LEAST_ROUNDS, shuffle=True), steps


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def paired_percent(times: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Excess over the base in the same round, in percent: median, and its interval."""
    ratios = np.divide(times, base)
    draws = np.random.default_rng(0).choice(ratios, (_DRAWS, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return tuple(float(100 * (ratio - 1)) for ratio in (np.median(ratios), low, high))


def measure(case: Case, device: str, seconds: float) -> list[dict[str, object]]:
    """Checks the variants of a case, then times them.

    Returns:
        One row for each variant; one with the reason if the case cannot be measured here.
    """
    where = environment(device)
    facts = {
        "suite": "train_step",
        "case": case.name,
        "model": case.model,
        "image": [case.shape[0], case.shape[1], case.shape[1]],
        "batch": case.batch,
        "classes": case.classes,
        "bank_rows": case.samples,
        "precision": case.precision,
    }
    if case.gpu and device != "cuda":
        skipped = {"variant": "all", "skipped": _NEEDS_GPU, "wrong": False}
        return [{**facts, **skipped, "environment": where}]
    contest = Contest(case, device)
    contest.check()
    times, steps = contest.measure(seconds)
    facts["weights"] = sum(weight.numel() for weight in contest.model.parameters())
    rows = []
    for variant, measured in times.items():
        row = {
            **facts,
            "variant": variant,
            "what": VARIANTS[variant],
            **percentiles(measured, "ms"),
        }
        for base in BASES:
            if base != variant:
                row[f"over_{base}_percent"] = paired_percent(measured, times[base])
        row |= {"rounds": len(measured), "steps_per_turn": steps}
        rows.append({**row, "environment": where})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_json_argument(parser)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU (default 2)")
    parser.add_argument("--seconds", type=float, default=60, metavar="S",
                        help="time for each model (default 60)")  # fmt: skip
    parser.add_argument("--only", nargs="+", metavar="CASE", choices=CASES,
                        help=f"only these, of {', '.join(CASES)}")  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="small models, to try the command")
    arguments = parser.parse_args(argv)
    check_arguments(parser, arguments)
    torch.set_num_threads(arguments.threads)
    output = Output(arguments.json, None if arguments.tiny or arguments.only else FOLDER)
    rows: list[dict[str, object]] = []
    for name, case in (TINY_CASES if arguments.tiny else CASES).items():
        if not arguments.only or name in arguments.only:
            rows += measure(case, arguments.device, arguments.seconds)
            output.write(rows)
    show("milliseconds of a training step", *train_step_cells(rows), leave_out=("description",))
    output.print_path()


if __name__ == "__main__":
    main()
