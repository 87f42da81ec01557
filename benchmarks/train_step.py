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

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from benchmarks.harness.command import new_parser, parse
from benchmarks.harness.environment import environment
from benchmarks.harness.results import FOLDER, ResultFile
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
# The variant that a step must agree with.
REFERENCE = {"ce": "plain", "ce_again": "plain", "alr_eager": "alr"}
BASES = ("ce", "plain")

_OPTIONS = {"momentum": 0.9, "entropy_weight": 0.1, "reduction": "sum", "unique_index": True}
_LEAST_ROUNDS = 3
_GPU_TURN = 10  # steps of a turn on a GPU, in which the host may run ahead
_DRAWS = 1000  # of the bootstrap


@dataclass(frozen=True)
class Case:
    """A model and its batches."""

    name: str  # in the rows
    model: str  # see `alr_fast.training.models`
    shape: tuple[int, int]  # channels and side of the images
    batch: int  # B
    classes: int  # K
    samples: int  # N, rows of the bank
    precision: str = "float32"  # of autocast
    turn: int = 1  # steps of a turn on the CPU
    gpu: bool = False  # whether it needs a GPU


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
            logits, self.bank.rows, index, row_weight=row_weight, **_OPTIONS
        )


@dataclass(frozen=True)
class Stepper:
    """A variant in training."""

    step: Callable[[dict[str, Tensor]], object]  # makes a step on a batch
    loss: Callable[[], float]  # returns the mean loss so far; waits for the device
    bank: LabelBank | None


class Contest:
    """The variants of a case, with the same model."""

    def __init__(self, case: Case, device: str) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        channels, side = case.shape
        model = build_model(
            case.model, num_classes=case.classes, input_shape=(channels, side, side)
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
        world = World(0, 1, 1, torch.device(self.device))
        criterion: nn.Module = CrossEntropyLoss(reduction="sum")
        if variant.startswith("alr"):
            bank = LabelBank.from_labels(
                self.batches.labels, self.case.classes, device=world.device
            )
            criterion = ALRLoss(bank, warmup_epochs=0, **_OPTIONS)
            if variant == "alr_eager":
                criterion = EagerALRLoss(bank)
        trainer = Trainer(self.model, criterion, self._config, self.batches, world)
        trainer.begin_epoch()
        return Stepper(trainer.train_step, lambda: trainer.progress().loss, criterion.bank)

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
            weights = self.model.named_parameters()
            change = torch.cat(
                [(w.detach() - start[name]).flatten().double() for name, w in weights]
            )
            assert change.isfinite().all(), f"{variant}: weights are not finite"
            rows = None if stepper.bank is None else stepper.bank.rows
            found[variant] = change, stepper.loss(), rows
            self.model.load_state_dict(start)
        # Relative; convolutions on a GPU add in a different order each time.
        bound = 1e-4 if self.device == "cpu" else 1e-3
        if self.case.precision != "float32":
            bound = 3e-2
        for variant, right in REFERENCE.items():
            (change, loss, rows), (expected, right_loss, right_rows) = found[variant], found[right]
            loss_error = abs(loss - right_loss) / abs(right_loss)
            off = {"weights": _distance(change, expected), "loss": loss_error}
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
        if _distance(found["alr"][0], found["ce"][0]) <= bound:
            raise AssertionError("alr makes the same step as ce: it does not refine")

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
    """One row for each variant of a case; one with the reason if it cannot be measured here."""
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
        skipped = {"variant": "all", "skipped": "needs a GPU", "wrong": False}
        return [{**facts, **skipped, "environment": where}]
    contest = Contest(case, device)
    contest.check()
    times, steps = contest.measure(seconds)
    facts["weights"] = sum(weight.numel() for weight in contest.model.parameters())
    rows = []
    for variant, measured in times.items():
        named = {"variant": variant, "what": VARIANTS[variant]}
        row = {**facts, **named, **percentiles(measured, "ms")}
        for base in BASES:
            if base != variant:
                row[f"over_{base}_percent"] = paired_percent(measured, times[base])
        row |= {"rounds": len(measured), "steps_per_turn": steps}
        rows.append({**row, "environment": where})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = new_parser(__doc__, device="cpu", threads="threads of the CPU",
                        seconds=(60, "time for each model"), tiny="small models")  # fmt: skip
    parser.add_argument("--only", nargs="+", metavar="CASE", choices=CASES,
                        help=f"only these, of {', '.join(CASES)}")  # fmt: skip
    arguments = parse(parser, argv)
    file = ResultFile(None if arguments.tiny or arguments.only else FOLDER, arguments.json)
    rows: list[dict[str, object]] = []
    for name, case in (TINY_CASES if arguments.tiny else CASES).items():
        if not arguments.only or name in arguments.only:
            rows += measure(case, arguments.device, arguments.seconds)
            file.write(rows)
    show("milliseconds of a training step", *train_step_cells(rows), leave_out=("description",))
    file.finish(rows)


if __name__ == "__main__":
    main()
