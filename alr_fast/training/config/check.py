"""Checks of a configuration that involve methods, and values that follow from other values.

`alr_fast.training.config.schema` checks the values of the fields themselves.
"""

import os
from dataclasses import replace
from pathlib import Path

from alr_fast.data.label_table import is_label_table
from alr_fast.errors import UserError
from alr_fast.training.config.schema import ESTIMATES, WEIGHTS, Config, TransitionConfig, words
from alr_fast.training.methods import METHODS, checked_options, options_of


def with_default_options(config: Config) -> Config:
    """The configuration with default options for the methods that it has no options for."""
    defaults = {name: options_of(name)() for name in METHODS}
    return replace(config, options={**defaults, **config.options})


def resolve(config: Config) -> Config:
    """Checks methods and their options, and fills in values that follow from others.

    Returns:
        A configuration with ``methods``, ``plugins`` and ``log.to`` as lists, with values for
        ``noise.seed`` and the length of each method's warm-up, and with paths without links.

    Raises:
        UserError: A value cannot work; the message names it and how to fix it.
    """
    data, noise, transition = config.data, config.noise, config.transition
    methods = words(config.methods)
    for name in methods:
        if name not in METHODS:
            raise UserError(f"--methods {name}: no such method; choose from {', '.join(METHODS)}")
    if not methods or len(set(methods)) < len(methods):
        raise UserError(f"--methods {config.methods}: name one or more methods, each once")
    options = with_default_options(config).options
    for position, name in enumerate(methods):
        options[name] = checked_options(name, options[name], epochs=config.optim.epochs)
        needs, earlier = METHODS[name].needs, methods[:position]
        if "teacher" in needs:
            teacher = options[name].teacher
            _check_model(f"{name}.teacher", teacher, earlier, tables=True)
            options[name] = replace(options[name], teacher=_without_links(teacher))
        if "transition" in needs:
            _check_transition(transition, earlier)
    rate = 0.0 if noise.kind in ("none", "matrix") else noise.rate
    seed = config.seed if noise.seed is None else noise.seed
    label_file = data.label_file and _without_links(data.label_file)
    net, source = _without_links(transition.net), _without_links(transition.source)
    return replace(
        config,
        methods=methods,
        plugins=words(config.plugins),
        data=replace(data, label_file=label_file, exclude=_without_links(data.exclude)),
        transition=replace(transition, net=net, source=source),
        log=replace(config.log, to=words(config.log.to)),
        noise=replace(noise, rate=rate, seed=seed),
        options=options,
    )


def _without_links(path: str) -> str:
    """The real path of a file that is reached through a link, else the path as it is.

    The link runs/latest points to another folder once the run that uses the file has finished.
    """
    if not os.path.isfile(path):
        return path
    real = os.path.realpath(path)
    return path if real == os.path.abspath(path) else real


def _check_transition(transition: TransitionConfig, earlier: list[str]) -> None:
    source = transition.source
    if source in ESTIMATES:
        _check_model("transition.net", transition.net, earlier)
    elif source != "known" and not source.endswith((".npy", ".csv")):
        raise UserError(
            f"--transition.source {source}: must be known, anchor, confident, or a .npy or .csv "
            "file with the matrix"
        )


def _check_model(option: str, model: str, earlier: list[str], *, tables: bool = False) -> None:
    """Checks that a method, a file of weights or, with `tables`, of soft labels will be there."""
    if model in METHODS:
        usable = model in earlier
        problem = (
            f"is not trained earlier by this run; put {model} first in --methods, or pass the "
            f"weights of a finished run, RUN/{model}{WEIGHTS}"
        )
    else:
        is_table = tables and is_label_table(model)
        usable = Path(model).is_file() and (model.endswith(WEIGHTS) or is_table)
        problem = (
            f"neither a method ({', '.join(METHODS)}) nor a file of weights of a run, "
            f"RUN/METHOD{WEIGHTS}" + (", nor a table of soft labels" if tables else "")
        )
    if not usable:
        raise UserError(f"--{option} {model}: {problem}")
