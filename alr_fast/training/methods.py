"""Training methods by name. A method is a loss; the training loop is the same for all methods.

The options of a method are the keyword arguments of its loss: `ELRLoss(bank, *, momentum=0.7,
weight=3.0, ...)` has the options ``--elr.momentum`` and ``--elr.weight``, described by its
docstring. The run provides the arguments that a loss class lists in `Loss.needs`:

- ``bank``: a `LabelBank` of the samples of this process; the run creates one only then;
- ``transition``: the matrix [K, K] that ``--transition.source`` selects;
- ``teacher``: probabilities [N, K] of another model for the samples of this process; the option
  ``--METHOD.teacher`` names a method that this run trains earlier, or a file of weights;
- ``all_sum``: `World.sum`.

It also sets ``reduction`` to "sum", and ``unique_index`` to True unless classes are balanced. Any
other argument of type Tensor is an option that names a file of numbers (.npy or .csv). A
``warmup_epochs`` of None becomes a sixth of all epochs.

docs/adding-a-method.md shows how to add a method in a file of your own.
"""

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, field, make_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alr_fast.bank import LabelBank
from alr_fast.errors import UserError, naming_options
from alr_fast.losses import SHIPPED, Loss

METHODS = dict(SHIPPED)  # plugins add theirs

_PROVIDED = frozenset({"bank", "transition", "teacher", "all_sum"})
_FIXED = {"reduction": "sum", "unique_index": True}
_LEFT_OUT = frozenset({"self", "warmup_steps"})
_DEFAULT_TEACHER = "label_smoothing"
# The meaning of an argument as an option, in front of its meaning for the loss.
_NOTES = {
    "teacher": "a method that this run trains earlier, RUN/METHOD.safetensors of a finished run, "
    "or a table of soft labels of alr-fast export --soft;",
    "warmup_epochs": "(null in the trainer: a sixth of optim.epochs)",
}
_FILE_NOTE = "a file of numbers, .npy or .csv"
_option_types: dict[type[Loss], type] = {}


def method(name: str) -> Callable[[type[Loss]], type[Loss]]:
    """Registers the loss of a plugin under the name of its method.

    A class that does not define `Loss.needs` itself needs the arguments of its constructor that
    have these names.

    Raises:
        UserError: The name is taken, or cannot be the name of an option.
    """

    def register(loss: type[Loss]) -> type[Loss]:
        # Two runs in one process may load the same file twice.
        known = METHODS.get(name)
        if not name.isidentifier() or (known is not None and known.__module__ != loss.__module__):
            raise UserError(
                f"method {name!r}: the name is taken or not an identifier; choose another one"
            )
        if "needs" not in vars(loss):
            loss.needs = _PROVIDED & _parameters(loss).keys()
        METHODS[name] = loss
        return loss

    return register


def load_plugins(plugins: list[str]) -> None:
    """Imports modules, or files ending in .py, that register methods.

    Raises:
        UserError: A module or file cannot be imported.
    """
    for plugin in plugins:
        try:
            if plugin.endswith(".py"):
                _import_file(Path(plugin).resolve())
            else:
                importlib.import_module(plugin)
        except UserError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            problem = (
                f"cannot be imported ({reason}); pass a .py file, or a module that Python finds"
            )
            raise UserError(problem, argument="plugins", value=plugin) from error


def _import_file(path: Path) -> None:
    name = f"alr_fast_plugin_{path.stem}"  # the file may have the name of an installed module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def keeps_bank(name: str) -> bool:
    """Whether a method keeps a label bank."""
    return "bank" in METHODS[name].needs


def options_of(name: str) -> type:
    """A dataclass of a method's options, with the documentation of its loss.

    Raises:
        UserError: An option has no default value.
    """
    loss = METHODS[name]
    if loss not in _option_types:  # options are equal only if they have the same type
        _option_types[loss] = _option_type(name, loss)
    return _option_types[loss]


def _option_type(name: str, loss: type[Loss]) -> type:
    columns = []
    for option, parameter in _parameters(loss).items():
        kind, default = parameter.annotation, parameter.default
        if option in _FIXED or option in (loss.needs - {"teacher"}) | loss.own_loop_only:
            continue
        if kind is Tensor:
            is_teacher = option in loss.needs
            kind, default = (str, _DEFAULT_TEACHER) if is_teacher else (str | None, None)
        if default is parameter.empty:
            raise UserError(
                f"method {name}: give argument {option} of {loss.__name__} a default value"
            )
        columns.append((option, kind, field(default=default)))
    made = make_dataclass(f"{loss.__name__}Options", columns)
    made.__module__ = __name__
    made.__doc__ = _documentation(loss)
    return made


def file_options(name: str) -> list[str]:
    """The options of a method that name a file of numbers."""
    loss = METHODS[name]
    parameters = _parameters(loss).items()
    return [name for name, p in parameters if p.annotation is Tensor and name not in loss.needs]


def path_options(name: str) -> list[str]:
    """The options of a method that name a file, or may name one."""
    return file_options(name) + (["teacher"] if "teacher" in METHODS[name].needs else [])


def checked_options(name: str, options: Any, *, epochs: int) -> Any:
    """The options of a method with a length of the warm-up, after a trial on two classes.

    Args:
        name: The method.
        options: Its options.
        epochs: Epochs of the run.

    Raises:
        UserError: A value is missing, or the loss does not accept it.
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
                "the end; pass another value"
            )
        values["warmup_epochs"] = warmup
    for option in file_options(name):
        if values[option] is None:
            raise UserError(f"--{name}.{option}: missing; pass {_FILE_NOTE}")
    checked = type(options)(**values)
    build_loss(name, checked, stand_ins(name, 2))
    return checked


def stand_ins(name: str, num_classes: int, samples: int = 1) -> dict[str, Any]:
    """Placeholders for all arguments of a loss that are not plain options, for a trial.

    Bank and teacher have a row for each of this many samples.
    """
    square = torch.eye(num_classes)
    labels = torch.arange(samples) % num_classes
    values = {
        "bank": LabelBank.from_labels(labels, num_classes),
        "transition": square,
        "teacher": square[labels],
        "all_sum": None,
    }
    needed = {need: value for need, value in values.items() if need in METHODS[name].needs}
    return needed | dict.fromkeys(file_options(name), square)


def build_loss(
    name: str, options: Any, provided: Mapping[str, Any], *, unique_index: bool = True
) -> Loss:
    """The loss of a method.

    Args:
        name: The method.
        options: Its options.
        provided: The arguments that the loss needs, and the tensors that replace `file_options`.
        unique_index: Whether no sample comes twice in a batch.

    Raises:
        UserError: The loss does not accept an argument.
    """
    loss = METHODS[name]
    values = _FIXED | {"unique_index": unique_index}
    fixed = {key: value for key, value in values.items() if key in _parameters(loss)}
    try:
        with naming_options(**{option: f"{name}.{option}" for option in vars(options)}):
            return loss(**{**vars(options), **fixed, **provided})
    except (ValueError, TypeError) as error:
        if isinstance(error, UserError) and error.option is not None:
            raise
        raise UserError(f"--methods {name}: {error}") from error


def _parameters(loss: type[Loss]) -> dict[str, inspect.Parameter]:
    found = inspect.signature(loss.__init__, eval_str=True).parameters
    return {name: parameter for name, parameter in found.items() if name not in _LEFT_OUT}


def _documentation(loss: type[Loss]) -> str:
    """The description of a loss, and of its arguments: those of its bases, then its own."""
    title = inspect.cleandoc(loss.__doc__ or loss.__name__).split("\n\n")[0]
    sections = []
    for part in reversed(loss.__mro__):
        for text in (part.__doc__, getattr(vars(part).get("__init__"), "__doc__", None)):
            _, _, arguments = inspect.cleandoc(text or "").partition("Args:\n")
            sections.append(arguments.partition("\n\n")[0])
    described = "\n".join(filter(None, sections))
    for name, parameter in _parameters(loss).items():
        described = re.sub(rf"^( +{name}:)", rf"\1 {_note(parameter)}", described, flags=re.M)
    return f"{title}\n\nArgs:\n{described}" if described else title


def _note(parameter: inspect.Parameter) -> str:
    if parameter.name in _NOTES and parameter.default in (None, parameter.empty):
        return _NOTES[parameter.name]
    return f"{_FILE_NOTE}:" if parameter.annotation is Tensor else ""
