"""The help of training: the options that people need first, or all of them."""

import argparse
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from types import NoneType
from typing import Any, get_args

from alr_fast.noise.injection import NOISE_MODELS
from alr_fast.training.config import schema
from alr_fast.training.methods import METHODS
from alr_fast.utils.text import nearest

# Short forms of options.
SHORT = {
    "data": "data.name",
    "labels": "data.label_file",
    "log_every": "log.every",
    "profile": "log.profile",
}
_DESCRIPTION = (
    "Trains a classifier on noisy labels, once with each method, and compares the methods. Without "
    "options it runs the recipe digits: about a minute. Options override --config, which overrides "
    "the recipe."
)
# Name, placeholder and text. The whole text of an option stands below its field in the schema.
_FIRST = (
    ("data_root", "DIR", "Your data: a folder of images, a list of images and labels (CSV, "
     "Parquet), a file of features, or a data set as it was downloaded. Its form is recognised."),
    ("data.name", "NAME", "Data set, if it is not to be recognised: {data}."),
    ("data.label_file", "FILE", "Labels to train on instead of the given ones: a table of alr-fast "
     "export, marks of a review, or a file of alr-fast noise."),
    ("recipe", "NAME", "Settings to start from: {recipes}."),
    ("methods", "A,B", "Methods to train and compare: {methods}."),
    ("noise.kind", "KIND", "Label noise to inject: {noise}."),
    ("noise.rate", "X", "Its rate, 0 to 1."),
    ("model.name", "NAME", "Model: one of this package, or any model of timm."),
    ("optim.epochs", "N", "Passes over the training set."),
    ("optim.batch_size", "N", "Samples in one step."),
    ("optim.lr", "X", "Highest learning rate."),
    ("seed", "N", "Seed; several, such as 0,1,2, train once with each."),
    ("device", "NAME", "auto (CUDA if available), cpu, cuda, cuda:1, ..."),
    ("runs", "DIR", "Folder in which the run gets a folder of its own."),
    ("resume", "RUN", "Folder of a stopped run to resume with its own options; auto finds it."),
    ("config", "FILE", "YAML file of options, for example config.yaml of a run."),
)  # fmt: skip
_WIDEST = 120  # columns; longer lines are hard to read
_PLACEHOLDERS = {int: "N", float: "X", bool: "true|false"}
# What people call an option.
_SYNONYMS = {
    "arch": "model.name",
    "cuda": "device",
    "dataset": "data",
    "epoch": "epochs",
    "gpu": "device",
    "learning_rate": "lr",
    "model": "model.name",
    "out": "runs",
    "output": "runs",
    "wd": "weight_decay",
}


def help_text(parser: argparse.ArgumentParser, *, everything: bool) -> str:
    """The help, wrapped to the width of the terminal (or COLUMNS).

    Args:
        parser: The parser, with the defaults of the recipe.
        everything: All options with their whole text, instead of the first ones.
    """
    width = max(40, min(_WIDEST, shutil.get_terminal_size((100, 24)).columns))
    parts = [
        _wrapped(
            f"usage: {parser.prog} [--data-root DIR] [--OPTION VALUE ...]",
            width,
            hanging=7,
        ),
        _wrapped(_DESCRIPTION, width),
        *(_all_options(parser, width) if everything else _first_options(parser, width)),
    ]
    return "\n\n".join(parts)


def known_options(parser: argparse.ArgumentParser) -> list[str]:
    """The names of all options that a user may pass, without dashes, short forms first."""
    return [*SHORT, *(action.dest for action in option_actions(parser)), "help_all"]


def needed_options(parser: argparse.ArgumentParser) -> set[str]:
    """The names of the options that must have a value other than null."""
    types = {action.dest: getattr(action, "_typehint", None) for action in option_actions(parser)}
    return {name for name, type_ in types.items() if NoneType not in get_args(type_)}


def similar_options(
    option: str, parser: argparse.ArgumentParser, methods: Sequence[str]
) -> list[str]:
    """The options that an unknown one may stand for, as they are written.

    Args:
        option: The unknown one, without dashes.
        parser: The parser.
        methods: The methods of the run, whose options are meant rather than those of others.
    """
    name = _SYNONYMS.get(option, option)
    inside = [other for other in known_options(parser) if other.startswith(f"{name}.")]
    if inside and name not in SHORT:  # a group: its options
        return [written(other) for other in inside[:3]]
    known = [other for other in known_options(parser) if other not in SHORT.values()]
    group = {other: other.partition(".")[0] for other in known}
    general = [other for other in known if group[other] not in METHODS]
    own = [other for other in known if group[other] in methods]
    found = nearest(name, general, typo=False)
    found += [other for other in own if other.endswith(f".{name}")]
    found = found[:3] or nearest(name, [*general, *own]) or nearest(name, known)
    return [written(other) for other in found]


def option_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options, without those that the parser adds for whole groups."""
    return [action for action in parser._actions if action.help != argparse.SUPPRESS]


def _first_options(parser: argparse.ArgumentParser, width: int) -> list[str]:
    actions = {action.dest: action for action in option_actions(parser)}
    choices = {
        "data": ", ".join(get_args(getattr(actions["data.name"], "_typehint", None))),
        "recipes": ", ".join(schema.recipe_names()),
        "methods": ", ".join(METHODS),
        "noise": ", ".join(NOISE_MODELS),
    }
    first = [
        _entry(actions[name], text.format_map(choices), width, placeholder=placeholder)
        for name, placeholder, text in _FIRST
    ]
    shown = {name for name, _, _ in _FIRST} | {"help", "print_config"}
    others: dict[str, list[str]] = {}
    for title, group in _groups(parser):
        names = [written(action.dest) for action in group if action.dest not in shown]
        of_method = any(action.dest.partition(".")[0] in METHODS for action in group)
        others.setdefault("Methods" if of_method else title, []).extend(names)
    more = [
        _wrapped(f"{title}: {' '.join(names)}", width, indent=2, hanging=6)
        for title, names in others.items()
        if names
    ]
    end = (
        f"{parser.prog} --help-all describes all options, --print_config prints them with their "
        "values as YAML."
    )
    return [
        "\n".join(["first options:", *first]),
        "\n".join(["more options:", *more]),
        _wrapped(end, width),
    ]


def _all_options(parser: argparse.ArgumentParser, width: int) -> list[str]:
    return [
        "\n".join(
            [
                _wrapped(f"{title}:", width),
                *(_entry(action, action.help or "", width) for action in group),
            ]
        )
        for title, group in _groups(parser)
    ]


def _groups(parser: argparse.ArgumentParser) -> Iterable[tuple[str, list[argparse.Action]]]:
    """Title and options of each group that has any."""
    public = option_actions(parser)
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action in public]
        if actions:
            yield group.title or "", actions


def _entry(
    action: argparse.Action, text: str, width: int, *, placeholder: str | None = None
) -> str:
    """The lines about an option."""
    column = min(28, width // 3)
    if placeholder is None:
        placeholder = placeholder_of(action)
    head = f"{', '.join(names_of(action))} {placeholder}"
    text = " ".join(text.split())
    if action.default not in (argparse.SUPPRESS, None, "", "none") and action.dest != "config":
        text += f" (default {_value(action.default)})"
    lines = _wrapped(text, width, indent=column).splitlines() or [""]
    head = f"  {head.rstrip()}"
    if len(head) + 2 > column:
        return "\n".join([head, *lines])
    return "\n".join([head.ljust(column) + lines[0].strip(), *lines[1:]])


def names_of(action: argparse.Action) -> list[str]:
    """The names of an option as they are written, the short form first."""
    if action.dest == "help":
        return ["-h", "--help"]
    names = [*(name for name, full in SHORT.items() if full == action.dest), action.dest]
    return [written(name) for name in names]


def written(name: str) -> str:
    """An option as help and messages write it: --data-root, --optim.batch_size."""
    return f"--{name if '.' in name else name.replace('_', '-')}"


def placeholder_of(action: argparse.Action) -> str:
    """What stands for the value of an option in the help; empty if it takes none."""
    if action.nargs == 0 or action.dest == "print_config":
        return ""
    if isinstance(action.metavar, str):
        return action.metavar if len(action.metavar) <= 40 else "NAME"
    hint: Any = getattr(action, "_typehint", None)
    for part in get_args(hint) or (hint,):
        if part in _PLACEHOLDERS:
            return _PLACEHOLDERS[part]
    return action.dest.rpartition(".")[2].upper()


def _value(value: Any) -> str:
    """A default as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(str, value)) if value else "[]"
    return str(value) if value != "" else "none"


def _wrapped(text: str, width: int, indent: int = 0, hanging: int | None = None) -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent if hanging is None else hanging),
        break_long_words=False,
        break_on_hyphens=False,
    )
