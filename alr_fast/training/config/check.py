"""Checks of a configuration that involve methods, and values that follow from other values.

`alr_fast.training.config.schema` checks the values of the fields themselves.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from alr_fast.data.label_files.label_table import is_label_table
from alr_fast.errors import UserError
from alr_fast.training.config.ranges import NamesPath, expanded_path, marks_of
from alr_fast.training.config.schema import (
    ESTIMATES,
    WEIGHTS,
    BankConfig,
    Config,
    DataConfig,
    NoiseConfig,
    TransitionConfig,
    flat,
    words,
)
from alr_fast.training.methods import METHODS, checked_options, options_of, path_options
from alr_fast.training.run_paths import actual_path
from alr_fast.utils.text import did_you_mean

WORDS = ("auto", "none", "known", *ESTIMATES)  # values of options that also take paths


def with_default_options(config: Config) -> Config:
    """The configuration with default options for the methods that it has no options for."""
    defaults = {name: options_of(name)() for name in METHODS}
    return replace(config, options={**defaults, **config.options})


def resolve(config: Config) -> Config:
    """Checks methods and their options, and fills in values that follow from others.

    Returns:
        A configuration with ``methods``, ``plugins`` and ``log.to`` as lists, with values for
        ``noise.seed`` and the length of each method's warm-up (and in ``asked`` what was asked for
        there), and with absolute paths to the files and folders that it reads, so that it means the
        same anywhere.

    Raises:
        UserError: A value cannot work; the message names it and how to fix it.
    """
    data, noise, transition = config.data, config.noise, config.transition
    methods = words(config.methods)
    for name in methods:
        if name not in METHODS:
            raise UserError(
                f"--methods {name}: no such method; choose from {', '.join(METHODS)}"
                f"{did_you_mean(name, list(METHODS))}"
            )
    if not methods or len(set(methods)) < len(methods):
        raise UserError(f"--methods {config.methods}: name one or more methods, each once")
    options = with_default_options(config).options
    asked = {"noise.rate": noise.rate, "noise.seed": noise.seed}
    for position, name in enumerate(methods):
        asked |= {f"{name}.{key}": value for key, value in asdict(options[name]).items()}
        options[name] = _with_paths(options[name], path_options(name), group=name)
        options[name] = checked_options(name, options[name], epochs=config.optim.epochs)
        needs, earlier = METHODS[name].needs, methods[:position]
        if "teacher" in needs:
            teacher = options[name].teacher
            _check_model(f"{name}.teacher", teacher, earlier, tables=True)
        if "transition" in needs:
            _check_transition(transition, earlier)
    rate = 0.0 if noise.kind in ("none", "matrix") else noise.rate
    seed = config.seed if noise.seed is None else noise.seed
    resolved = replace(
        config,
        methods=methods,
        data_root=lasting_path(config.data_root, links=True),
        runs=os.path.abspath(config.runs),
        warm_start=_lasting_run(config.warm_start),
        data=_with_paths(data, _paths_of(DataConfig)),
        transition=_with_paths(transition, _paths_of(TransitionConfig)),
        bank=_with_paths(config.bank, _paths_of(BankConfig)),
        log=replace(config.log, to=words(config.log.to)),
        noise=replace(_with_paths(noise, _paths_of(NoiseConfig)), rate=rate, seed=seed),
        options=options,
    )
    values = flat(resolved.as_dict())
    paths = path_names(resolved)
    changed = {name for name, value in asked.items() if value != values[name]} - set(paths)
    return replace(resolved, asked={name: asked[name] for name in sorted(changed)})


def _with_paths(options: Any, names: Iterable[str], group: str = "") -> Any:
    """The same dataclass with `lasting_path` of these options."""
    paths = {name: expanded_path(getattr(options, name), f"{group}.{name}") for name in names}
    return replace(options, **{name: lasting_path(path) for name, path in paths.items()})


def _paths_of(config: type) -> list[str]:
    """The fields of a dataclass that name paths."""
    marked = marks_of(config).items()
    return [name for name, marks in marked if any(isinstance(mark, NamesPath) for mark in marks)]


def path_names(config: Config) -> list[str]:
    """The full names of the options that name paths, except those of which several are named."""
    names = [f"{name}.{option}" for name in METHODS for option in path_options(name)]
    for field in fields(config):
        if is_dataclass(group := getattr(config, field.name)):
            names += [f"{field.name}.{option}" for option in _paths_of(type(group))]
    return names + [name for name in _paths_of(Config) if name != "plugins"]


def lasting_path(path: str | None, *, links: bool = False) -> str | None:
    """The absolute path of a file or folder that exists; another text as it is.

    Without ``links``, that of the file that a link points to: the link runs/latest points to
    another folder once the run that uses the file has finished.
    """
    if path is None or path in WORDS or path in METHODS or not os.path.exists(path):
        return path
    resolve_links = os.path.isfile(path) and not links
    return os.path.realpath(path) if resolve_links else os.path.abspath(path)


def _lasting_run(path: str | None) -> str | None:
    """The absolute path of the folder of a run, see `lasting_path`: not that of a link to it."""
    return None if path is None else os.path.realpath(actual_path(Path(path)))


def _check_transition(transition: TransitionConfig, earlier: list[str]) -> None:
    source = transition.source
    if source in ESTIMATES:
        _check_model("transition.net", transition.net, earlier)
    elif source != "known" and not source.endswith((".npy", ".csv")):
        raise UserError(
            f"--transition.source {source}: must be known, anchor, confident, or a .npy or .csv "
            "file with the matrix"
        )


def is_soft_labels(teacher: str) -> bool:
    """Whether a teacher is a table, and neither a method nor a file of weights."""
    return teacher not in METHODS and not teacher.endswith(WEIGHTS) and is_label_table(teacher)


def _check_model(option: str, model: str, earlier: list[str], *, tables: bool = False) -> None:
    """Checks that a method, a file of weights or, with `tables`, of soft labels will be there."""
    if model in METHODS:
        usable = model in earlier
        problem = (
            f"is not trained earlier by this run; put {model} first in --methods, or pass the "
            f"weights of a finished run, RUN/{model}{WEIGHTS}"
        )
    else:
        is_table = tables and is_soft_labels(model)
        usable = Path(model).is_file() and (model.endswith(WEIGHTS) or is_table)
        problem = (
            f"neither a method ({', '.join(METHODS)}) nor a file of weights of a run, "
            f"RUN/METHOD{WEIGHTS}" + (", nor a table of soft labels" if tables else "")
        )
    if not usable:
        raise UserError(f"--{option} {model}: {problem}")
