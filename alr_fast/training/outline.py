"""The options of training as argparse knows them, for completion by a shell."""

import argparse
from dataclasses import is_dataclass
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from alr_fast.noise.injection import NOISE_MODELS
from alr_fast.training.config import schema
from alr_fast.training.config.command_line import options_parser
from alr_fast.training.config.help import names_of, option_actions, placeholder_of
from alr_fast.training.config.ranges import NamesPath, marks_of
from alr_fast.training.methods import METHODS, path_options
from alr_fast.training.output.loggers import LOGGER_NAMES
from alr_fast.utils.command import DEVICES, CommandParser, Offer, offer

# What is offered for options whose types do not tell.
OFFERS = {
    "config": Offer(paths="files"),
    "data.exclude": Offer(("auto", "none"), "files"),
    "data_root": Offer(paths="files"),
    "device": Offer(DEVICES),
    "log.to": Offer(LOGGER_NAMES, several=True),
    "methods": Offer(tuple(METHODS), several=True),
    "noise.kind": Offer(tuple(NOISE_MODELS)),
    "recipe": Offer(tuple(schema.recipe_names())),
    "resume": Offer(("auto", "none"), "folders"),
    "runs": Offer(paths="folders"),
    "transition.source": Offer(("known", *schema.ESTIMATES), "files"),
    "warm_start": Offer(paths="folders"),
}
_FLAGS = ("print_config", "help_all", "version")  # that take no value


def outline() -> CommandParser:
    """A parser with the options of training, their help and their values; it parses nothing."""
    parser = CommandParser(module="alr_fast.train", add_help=False)
    full = options_parser(schema.DEFAULT_RECIPE)
    paths = _paths()
    for action in option_actions(full):
        flag = action.nargs == 0 or action.dest in _FLAGS
        settings: dict[str, Any] = {"action": "store_true"} if flag else {}
        text = " ".join((action.help or "").split()).replace("%", "%%")
        added = parser.add_argument(*names_of(action), dest=action.dest, help=text, **settings)
        if not flag:
            added.metavar = placeholder_of(action)
            offer(added, OFFERS.get(action.dest) or _by_type(action, paths))
    parser.add_argument("--help-all", action="store_true", help="Show all options and exit.")
    return parser


def _by_type(action: argparse.Action, paths: set[str]) -> Offer:
    """The values of a choice; files for an option that names one."""
    words: list[str] = []
    hint = getattr(action, "_typehint", None)
    for part in (hint, *get_args(hint)):
        if get_origin(part) is Literal:
            words += get_args(part)
        elif part is bool:
            words += ["true", "false"]
    return Offer(tuple(words), "files" if action.dest in paths else None)


def _paths() -> set[str]:
    """The options that name a file or folder, or may name one."""
    named = {f"{name}.{option}" for name in METHODS for option in path_options(name)}
    groups = {f"{name}.": hint for name, hint in get_type_hints(schema.Config).items()}
    for prefix, group in {"": schema.Config, **groups}.items():
        if not is_dataclass(group):
            continue
        for name, marks in marks_of(cast(type, group)).items():
            if any(isinstance(mark, NamesPath) for mark in marks):
                named.add(f"{prefix}{name}")
    return named
