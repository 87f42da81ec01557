"""Training methods by name. A method is a loss: the loop is the same for all of them.

The options of a method are the keyword arguments of its loss: `ELRLoss(bank, *, momentum=0.7,
weight=3.0, ...)` gives ``--elr.momentum`` and ``--elr.weight``, explained by its docstring. What a
loss asks for under one of these names, the run provides:

- ``bank``: a `LabelBank` of the samples of this process, of which it makes none otherwise;
- ``transition``: the matrix [K, K] that ``--transition.source`` tells;
- ``teacher``: probabilities [N, K] of another net for the samples of this process; the option
  ``--METHOD.teacher`` names a method that this run trains before, or a file of weights;
- ``all_sum``: `World.sum`;
- ``reduction`` is "sum", ``unique_index`` is True.

Any other argument of type Tensor is an option that names a file of numbers (.npy or .csv). A
``warmup_epochs`` of None becomes a sixth of all epochs.

docs/adding-a-method.md shows how a file of your own adds one.
"""

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, field, make_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alr_fast.bank import LabelBank
from alr_fast.errors import UserError
from alr_fast.losses import (
    ALRLoss,
    BackwardCorrectionLoss,
    CrossEntropyLoss,
    DistillationLoss,
    ELRLoss,
    ForwardCorrectionLoss,
    LabelSmoothingLoss,
    Loss,
    SATLoss,
    SELCLoss,
    SmearingLoss,
)

if TYPE_CHECKING:
    from alr_fast.run import Run

METHODS: dict[str, type[Loss]] = {
    "ce": CrossEntropyLoss,
    "label_smoothing": LabelSmoothingLoss,
    "smearing": SmearingLoss,
    "backward_correction": BackwardCorrectionLoss,
    "forward_correction": ForwardCorrectionLoss,
    "distillation": DistillationLoss,
    "selc": SELCLoss,
    "alr": ALRLoss,
    "sat": SATLoss,
    "elr": ELRLoss,
}

# What the run provides without an option of the method.
_FROM_RUN = frozenset({"bank", "transition", "all_sum", "reduction", "unique_index"})
_LEFT_OUT = frozenset({"self", "warmup_steps"})
_DEFAULT_TEACHER = "label_smoothing"
# What an argument means as an option, in front of what it means to the loss.
_NOTES = {
    "teacher": "a method that this run trains before, or RUN/METHOD.safetensors of a finished one;",
    "warmup_epochs": "(null in the trainer: a sixth of optim.epochs)",
}
_FILE_NOTE = "file of numbers, .npy or .csv:"


def method(name: str) -> Callable[[type[Loss]], type[Loss]]:
    """Enters a loss of a file that ``--plugins`` names under the name of its method.

    Raises:
        UserError: The name is taken, or is none that an option could have.
    """

    def register(loss: type[Loss]) -> type[Loss]:
        # The same file may be read again, in one process by two runs.
        known = METHODS.get(name)
        if not name.isidentifier() or (known is not None and known.__module__ != loss.__module__):
            raise UserError(f"method {name!r}: the name is taken or no name; choose another one")
        METHODS[name] = loss
        return loss

    return register


def load_plugins(names: list[str]) -> None:
    """Imports modules, or files ending in .py, that register methods.

    Raises:
        UserError: One cannot be imported.
    """
    for name in names:
        try:
            if name.endswith(".py"):
                path = Path(name).resolve()
                spec = importlib.util.spec_from_file_location(path.stem, path)
                module = importlib.util.module_from_spec(spec)
                sys.modules[path.stem] = module
                spec.loader.exec_module(module)
            else:
                importlib.import_module(name)
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--plugins {name}: cannot be imported ({type(error).__name__}: {reason}); name a "
                ".py file, or a module that Python finds"
            ) from error


def keeps_bank(name: str) -> bool:
    """Whether a method keeps a label bank."""
    return "bank" in _parameters(METHODS[name])


def teacher_of(name: str, options: Any) -> str | None:
    """The teacher that a method is to learn from, None for a method that has none."""
    return options.teacher if "teacher" in _parameters(METHODS[name]) else None


def takes_transition(name: str) -> bool:
    """Whether a method asks for a transition matrix."""
    return "transition" in _parameters(METHODS[name])


def options_of(name: str) -> type:
    """A dataclass of a method's options, with the documentation of its loss."""
    return _options_of(name, METHODS[name])


@cache
def _options_of(name: str, loss: type[Loss]) -> type:
    columns = []
    for parameter in _parameters(loss).values():
        if parameter.name in _FROM_RUN:
            continue
        kind, default = parameter.annotation, parameter.default
        if kind is Tensor:
            kind = str | None
            default = _DEFAULT_TEACHER if parameter.name == "teacher" else None
        if default is parameter.empty:
            raise UserError(
                f"method {name}: give argument {parameter.name} of {loss.__name__} a default value"
            )
        columns.append((parameter.name, kind, field(default=default)))
    made = make_dataclass(f"{loss.__name__}Options", columns)
    made.__module__ = __name__
    made.__doc__ = _documentation(loss)
    return made


def _note(parameter: inspect.Parameter) -> str:
    if parameter.name in _NOTES and parameter.default in (None, parameter.empty):
        return _NOTES[parameter.name]
    return _FILE_NOTE if parameter.annotation is Tensor else ""


def default_options() -> dict[str, Any]:
    """The options of every method, at the defaults of its loss."""
    return {name: options_of(name)() for name in METHODS}


def checked_options(name: str, options: Any, *, epochs: int) -> Any:
    """Options with a value for the warm-up, tried out on a loss for two samples.

    Args:
        name: The method.
        options: Its options.
        epochs: Epochs of the run.

    Raises:
        UserError: The loss does not take them.
    """
    values = asdict(options)
    if "warmup_epochs" in values:
        warmup = values["warmup_epochs"]
        if warmup is None:
            warmup = min(max(epochs // 6, 1), epochs - 1)
        if not 0 <= warmup < epochs:
            raise UserError(
                f"--{name}.warmup_epochs {warmup} (of the recipe, if you did not pass it): must be "
                f"0 or more and below --optim.epochs {epochs}, or the method is cross entropy to "
                "the end; pass another one"
            )
        values["warmup_epochs"] = warmup
    stand_ins: dict[str, Any] = {
        "bank": LabelBank.from_labels(torch.tensor([0, 1]), 2),
        "transition": torch.eye(2),
    }
    arguments = _common(METHODS[name]) | {
        key: value for key, value in stand_ins.items() if key in _parameters(METHODS[name])
    }
    for key, value in values.items():
        if _parameters(METHODS[name])[key].annotation is Tensor:
            if value is None:
                raise UserError(f"--{name}.{key}: missing; pass a file of numbers, .npy or .csv")
            value = torch.eye(2)
        arguments[key] = value
    try:
        METHODS[name](**arguments)
    except (ValueError, TypeError) as error:
        # Most messages begin with the name of the argument.
        option = f"{name}." if str(error).split(" ")[0] in values else f"{name}: "
        raise UserError(f"--{option}{error}") from error
    return type(options)(**values)


def make_loss(name: str, run: "Run") -> Loss:
    """The loss of a method, for the samples of this process. All processes make theirs.

    Args:
        name: Key of `METHODS`.
        run: The run, which has trained the methods before this one.

    Raises:
        SharedError: A file, net or bank that it needs cannot be had, or does not fit.
    """
    from alr_fast.sharded_bank import new_bank
    from alr_fast.teacher import find_transition, read_square, teacher_probabilities

    loss, world, index = METHODS[name], run.world, run.index
    arguments = _common(loss)
    for parameter in _parameters(loss).values():
        option = getattr(run.config.options[name], parameter.name, None)
        if parameter.name == "bank":
            arguments["bank"] = new_bank(
                run.config.bank,
                index,
                run.loaders.train.sampler.rows,
                world,
                folder=run.path,
                say=run.console.say,
                one_hot=not loss.bank_at_zero,
            )
        elif parameter.name == "all_sum":
            arguments["all_sum"] = world.sum if world.size > 1 else None
        elif parameter.name == "transition":
            arguments["transition"] = torch.from_numpy(find_transition(run, name))
        elif parameter.name == "teacher":
            arguments["teacher"] = teacher_probabilities(option, run, option=f"{name}.teacher")
        elif parameter.annotation is Tensor:
            table = world.together(
                lambda key=parameter.name, file=option: read_square(
                    file, index.num_classes, option=f"{name}.{key}"
                )
            )
            arguments[parameter.name] = torch.from_numpy(table)
        elif parameter.name not in _FROM_RUN:
            arguments[parameter.name] = option

    def build() -> Loss:
        try:
            return loss(**arguments)
        except ValueError as error:
            raise UserError(f"--methods {name}: {error}") from error

    return world.together(build).to(world.device)


def _common(loss: type[Loss]) -> dict[str, Any]:
    # A loader gives every sample once an epoch.
    fixed = {"reduction": "sum", "unique_index": True}
    return {key: value for key, value in fixed.items() if key in _parameters(loss)}


@cache
def _parameters(loss: type[Loss]) -> Mapping[str, inspect.Parameter]:
    found = inspect.signature(loss.__init__, eval_str=True).parameters
    return {name: parameter for name, parameter in found.items() if name not in _LEFT_OUT}


def _documentation(loss: type[Loss]) -> str:
    """What the loss is, from its class, and its arguments, from `__init__` or the class."""
    title = inspect.cleandoc(loss.__doc__ or loss.__name__).split("\n\n")[0]
    for text in (loss.__init__.__doc__, loss.__doc__):
        _, found, arguments = inspect.cleandoc(text or "").partition("Args:\n")
        if found:
            for name, parameter in _parameters(loss).items():
                arguments = re.sub(
                    rf"^( +{name}:)", rf"\1 {_note(parameter)}", arguments, flags=re.M
                )
            return f"{title}\n\n{found}{arguments}"
    return title
