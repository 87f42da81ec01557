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

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, field, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any

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
_FROM_RUN = frozenset({"bank", "transition", "all_sum"})
_FIXED = {"reduction": "sum", "unique_index": True}  # a loader gives every sample once an epoch
_LEFT_OUT = frozenset({"self", "warmup_steps"})
_DEFAULT_TEACHER = "label_smoothing"
# What an argument means as an option, in front of what it means to the loss.
_NOTES = {
    "teacher": "a method that this run trains before, RUN/METHOD.safetensors of a finished one, or "
    "a table of soft labels of python -m alr_fast.export --soft;",
    "warmup_epochs": "(null in the trainer: a sixth of optim.epochs)",
}
_FILE_NOTE = "a file of numbers, .npy or .csv:"


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
                # Under a name of its own: the file may be called like a module of somebody else.
                own = f"alr_fast_plugin_{path.stem}"
                spec = importlib.util.spec_from_file_location(own, path)
                module = importlib.util.module_from_spec(spec)
                sys.modules[own] = module
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
        if parameter.name in _FROM_RUN or parameter.name in _FIXED:
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
    """Options with a value for the warm-up, tried out on a loss for two classes.

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
    made = type(options)(**values)

    def provide(parameter: inspect.Parameter, option: str | None) -> Any:
        if parameter.annotation is Tensor and parameter.name not in _FROM_RUN and option is None:
            raise UserError(f"--{name}.{parameter.name}: missing; pass {_FILE_NOTE[:-1]}")
        return _stand_in(parameter, 2)

    _made(name, _arguments(name, made, provide))
    return made


def _arguments(
    name: str, options: Any, provide: Callable[[inspect.Parameter, Any], Any]
) -> dict[str, Any]:
    """The arguments of a loss: options, and what ``provide(parameter, option)`` gives."""
    arguments = {}
    for key, parameter in _parameters(METHODS[name]).items():
        option = getattr(options, key, None)
        if key in _FIXED:
            arguments[key] = _FIXED[key]
        elif key in _FROM_RUN or parameter.annotation is Tensor:
            arguments[key] = provide(parameter, option)
        else:
            arguments[key] = option
    return arguments


def _made(name: str, arguments: dict[str, Any]) -> Loss:
    try:
        return METHODS[name](**arguments)
    except (ValueError, TypeError) as error:
        # Most messages begin with the name of the argument.
        key = str(error).split(" ")[0]
        is_option = key in arguments and key not in _FROM_RUN
        raise UserError(
            f"--{name}.{error}" if is_option else f"--methods {name}: {error}"
        ) from error


def _stand_in(parameter: inspect.Parameter, num_classes: int) -> Any:
    """What a loss takes in place of what only a run can give."""
    if parameter.name == "bank":
        return LabelBank.from_labels(torch.tensor([0]), num_classes)
    return None if parameter.name == "all_sum" else torch.eye(num_classes)


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
