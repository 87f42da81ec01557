"""Parses the command line into a checked `Config`; every mistake becomes one line."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml

from alr_fast.data.layouts.features import is_file_of_features
from alr_fast.errors import UserError, naming_options
from alr_fast.training.config import schema
from alr_fast.training.config.check import resolve
from alr_fast.training.config.help import (
    SHORT,
    help_text,
    known_options,
    needed_options,
    similar_options,
)
from alr_fast.training.config.ranges import expanded_path
from alr_fast.training.config.yaml_file import read_options
from alr_fast.training.methods import METHODS, load_plugins, options_of
from alr_fast.training.run_paths import CONFIG, actual_path, run_of
from alr_fast.utils.command import (
    CommandParser,
    check_values,
    data_hint,
    is_option,
    program,
    readable_error,
    show,
)
from alr_fast.utils.shell import quoted
from alr_fast.utils.text import did_you_mean, error_text, or_similar

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

_SCANNED = ("recipe", "data_root", "methods", "plugins", "resume")
_SEVERAL = ("methods", "plugins")  # those of which there may be a list
_MAY_BE_EMPTY = ("--plugins", "--log.to")  # no plugins, no logs
_NO_OPTIONS = ("options", "asked")  # fields of the configuration


def parse(argv: Sequence[str]) -> schema.Config:
    """Configuration of a run, checked and complete.

    Args:
        argv: Words of the command line, without the name of the program.

    Raises:
        UserError: Unknown or wrong option, recipe or value.
        SystemExit: Status 0 after ``--help`` or ``--print_config``.
    """
    check_values(argv, lists=_MAY_BE_EMPTY)
    given, left = _scan(_spelled_out(argv))
    given.config = [str(actual_path(Path(path))) for path in expanded_path(given.config, "config")]
    given.resume = expanded_path(given.resume, "resume")
    own = _config_of_run(given.resume)
    files = [_read_config_file(path) for path in given.config]
    if own is not None:  # first: all others override it
        files = [_read_run_config(own), *files]
        given.config = [str(own), *given.config]
    _check_scanned(given.config, files)
    in_files = {name: value for file in files for name, value in file.items()}
    _check_plugins(given, in_files, own)
    with naming_options(plugins="plugins"):
        plugins = schema.words(given.plugins or in_files.get("plugins") or "")
        load_plugins(expanded_path(plugins, "plugins"))
    root = expanded_path(given.data_root or in_files.get("data_root"), "data_root")
    recipe = str(given.recipe or in_files.get("recipe") or _default_recipe(root))
    # A single ~ would be null in YAML.
    given.data_root = expanded_path(given.data_root, "data_root")
    scanned = vars(given) | {"recipe": recipe}
    del scanned["config"]
    left = [
        # Files first: the parser lets the later word win, but an option wins wherever it stands.
        *(f"--config={path}" for path in given.config),
        *(f"--{name}={value}" for name, value in scanned.items() if value is not None),
        *left,
    ]
    parser = options_parser(recipe)
    if helping := {"-h", "--help", "--help_all"}.intersection(left):
        show(help_text(parser, everything="--help_all" in helping))
        raise SystemExit(0)
    methods = given.methods or in_files.get("methods") or parser.get_default("methods")
    _check_names(parser, argv, files[own is not None :], schema.words(methods))
    if own is not None:
        _check_run_config(parser, files[0], own)
    _check_nulls(parser, given.config, files)
    parsed = parser.instantiate(parser.parse_args(left))
    names = [f.name for f in fields(schema.Config) if f.name not in _NO_OPTIONS]
    values = {name: getattr(parsed, name) for name in names}
    options = {name: getattr(parsed, name) for name in METHODS}
    config = schema.Config(**values, options=options)
    asked = any(word.partition("=")[0] == "--noise.rate" for word in left)
    if asked and config.noise.kind == "none" and config.noise.rate:
        raise UserError(
            f"--noise.rate {config.noise.rate}: no noise is injected by recipe {recipe}; "
            "add --noise.kind symmetric"
        )
    return resolve(config)


def _config_of_run(resume: str | None) -> Path | None:
    """The options of the run that ``--resume`` names; None if it names none."""
    run = run_of(Path(resume)) if resume not in (None, "none", "auto") else None
    return None if run is None else run / CONFIG


def _check_scanned(paths: Sequence[str], files: Sequence[dict[str, Any]]) -> None:
    """Checks, before a parser can, the types of the options that decide about the parser."""
    for path, file in zip(paths, files, strict=True):
        for name in _SCANNED:
            value = file.get(name, "")
            words = value if isinstance(value, list) and name in _SEVERAL else [value or ""]
            if not all(isinstance(word, str) for word in words):
                raise UserError(
                    f"{path}: {name} must be text, got {value!r}; write text that looks like a "
                    "number in quotes"
                )


def _check_plugins(given: argparse.Namespace, in_files: dict[str, Any], own: Path | None) -> None:
    """Checks that the plugins of a resumed run, which are programs, are named by the user.

    A run and its config.yaml may come from somebody else.
    """
    plugins = in_files.get("plugins") or ""
    resume = given.resume or in_files.get("resume") or "none"
    if resume != "none" and given.plugins is None and schema.words(plugins):
        names = ",".join(schema.words(plugins))
        raise UserError(
            f"--resume {resume}: {own or '--config'} names plugins, which are programs that would "
            f"run; name them yourself if you trust them: --plugins {quoted(names)}"
        )


def _default_recipe(root: str | None) -> str:
    if not root:
        return schema.DEFAULT_RECIPE
    return schema.FEATURES_RECIPE if is_file_of_features(Path(root)) else schema.FOLDER_RECIPE


# Text of the parser's messages, and its replacement in the words of the command line.
_REWRITES = (
    (r"\s+", " "),
    (r"typing\.|\.$", ""),
    (r"<class '(\w+)'>", r"\1"),
    (r"NoneType", "null"),
    (r'^Parser key "(.+?)": ', r"--\1: "),
    (
        r"Does not validate .*? Subtypes: \[(.+)\] Errors: .* Given value: (.*)",
        r"Expected one of \1. Got value: \2",
    ),
)


class _Scan(CommandParser):
    """Reads some options and leaves the others."""

    parse_known_args = argparse.ArgumentParser.parse_known_args

    def error(self, message: str) -> NoReturn:
        message = readable_error(message).replace("--data_root", "--data-root")
        raise UserError(f"{message}; --help-all lists every option")


class _Parser(jsonargparse.ArgumentParser):
    """A parser that raises a `UserError` of one line instead of printing its usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        for pattern, replacement in _REWRITES:
            message = re.sub(pattern, replacement, message)
        choice = re.fullmatch(r"--(\S+): Expected a Literal\[(.*)\]\. Got value: (.*)", message)
        if choice:
            option, names, value = choice[1], re.findall(r"'([^']*)'", choice[2]), choice[3]
            message = f"--{option} {value}: must be one of {', '.join(names)}"
            raise UserError(message + did_you_mean(value, names))
        hint = data_hint(message)
        raise UserError(f"{readable_error(message)}{hint}; --help-all lists every option")


def _check_names(
    parser: jsonargparse.ArgumentParser,
    line: Sequence[str],
    files: Sequence[dict[str, Any]],
    methods: Sequence[str],
) -> None:
    """Raises `UserError` for an option that does not exist, with the names of similar options."""
    known = known_options(parser)
    words = [word.partition("=")[0] for word in line if is_option(word) and word != "-h"]
    names = {word: word.lstrip("-").replace("-", "_") for word in words}
    wrong = {w: name for w, name in names.items() if name not in known or not w.startswith("--")}
    in_files = [name for file in files for name in schema.flat(file)]
    wrong |= {f"--{name}": name for name in in_files if name not in known or name in SHORT}
    for word, name in wrong.items():
        similar = or_similar(similar_options(name, parser, methods))
        raise UserError(f"{word}: no such option{similar}; --help-all lists every option")


def _check_run_config(
    parser: jsonargparse.ArgumentParser, options: dict[str, Any], path: Path
) -> None:
    """Raises `UserError` for an option of a run that this version does not have."""
    known = known_options(parser)
    for name in schema.flat(options):
        if name not in known:
            raise UserError(
                f"{path}: has the option {name}, which this version of alr_fast does not have; "
                "resume with the version that wrote it, or leave --resume out to start a new run"
            )


def _check_nulls(
    parser: jsonargparse.ArgumentParser, paths: Sequence[str], files: Sequence[dict[str, Any]]
) -> None:
    """Raises `UserError` for null where a value is needed: the parser takes it everywhere."""
    needed = needed_options(parser)
    for path, file in zip(paths, files, strict=True):
        for name, value in schema.flat(file).items():
            if value is None and name in needed:
                raise UserError(f"{path}: {name} must not be null; leave it out for its default")


def options_parser(recipe: str) -> jsonargparse.ArgumentParser:
    """The parser of all options, with the defaults of a recipe."""
    parser = _Parser(prog=program("alr_fast.train"))
    recipes = ", ".join(schema.recipe_names())
    parser.add_argument(
        "--recipe",
        type=str,
        default=schema.DEFAULT_RECIPE,
        help=f"Shipped recipe that the other options start from: {recipes}.",
    )
    parser.add_argument(
        "--config",
        action="config",
        metavar="FILE",
        help="YAML file of options, for example config.yaml in the folder of a run.",
    )
    parser.add_argument(
        "--data-root",
        "--data_root",
        dest="data_root",
        type=str | None,
        default=None,
        metavar="DIR",
        help="Folder with the data as it was downloaded, a CSV or Parquet list, or a file of "
        f"features. Without --recipe it selects the recipe {schema.FOLDER_RECIPE}, of features the "
        f"recipe {schema.FEATURES_RECIPE}.",
    )
    parser.add_class_arguments(schema.Config, skip={"recipe", "data_root", *_NO_OPTIONS})
    for name in METHODS:
        parser.add_class_arguments(options_of(name), name)
    parser.set_defaults(schema.flat(yaml.safe_load(schema.recipe_text(recipe))))
    texts = {
        "help": "Show the first options and exit; --help-all shows all of them.",
        "print_config": "Print the configuration as YAML, with all other arguments, and exit.",
    }
    for action in parser._actions:
        if action.help == "Path to a configuration file.":
            action.help = argparse.SUPPRESS  # of one group, like "--optim FILE": --config covers it
        action.help = texts.get(action.dest, action.help)
    return parser


def _spelled_out(argv: Sequence[str]) -> list[str]:
    """Expands short forms, and spells --data.crop-padding as --data.crop_padding."""
    words = []
    for word, following in zip(argv, [*argv[1:], "--"], strict=False):
        if word == "--profile" and following.startswith("-"):
            word = "--profile=true"
        if word.startswith("--"):
            option, equals, value = word.removeprefix("--").partition("=")
            option = option.replace("-", "_")
            option = SHORT.get(option, option)
            if option == "seed" and "," in (value if equals else following):
                option = "seeds"
            word = f"--{option}{equals}{value}"
        words.append(word)
    return words


def _scan(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options that decide about the parser, and the other words."""
    scan = _Scan(add_help=False)
    scan.add_argument("--config", action="append", default=[])
    for name in _SCANNED:
        scan.add_argument(f"--{name}")
    return scan.parse_known_args(argv)


def _read_file(path: Path) -> dict[str, Any]:
    """The options in a file, which name no further file: the parser would read whatever it is."""
    options = read_options(path)
    if "config" in options:
        raise ValueError("it names another file of options, config: name that by --config instead")
    return options


def _read_run_config(path: Path) -> dict[str, Any]:
    try:
        return _read_file(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error_text(error)}); pass another --resume"
        ) from error


def _read_config_file(path: str) -> dict[str, Any]:
    try:
        return _read_file(Path(path))
    except (OSError, ValueError) as error:
        raise UserError(f"--config {path}: {error_text(error)}") from error
