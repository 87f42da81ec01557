"""Checks of a configuration across its fields, and the values that follow from others."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from alr_fast.data.label_table import is_label_table
from alr_fast.errors import UserError, naming_options
from alr_fast.training.config.schema import FOLDER_RECIPE, WEIGHTS, Config, words
from alr_fast.training.methods import METHODS, checked_options, takes_transition, teacher_of


def resolve(config: Config) -> Config:
    """Checks every value that can be checked without data, and fills in what follows from others.

    Returns:
        A configuration with ``methods`` as a list, and with values for ``noise.seed`` and the
        length of each method's warm-up.

    Raises:
        UserError: A value that cannot work; the message names it and the way out.
    """
    from alr_fast.noise import check_noise

    methods = words(config.methods)
    for name in methods:
        if name not in METHODS:
            raise UserError(f"--methods {name}: no such method; there is {', '.join(METHODS)}")
    if not methods or len(set(methods)) < len(methods):
        raise UserError(f"--methods {config.methods}: name one or more methods, each once")

    data, optim = config.data, config.optim
    if data.name != "digits" and not config.data_root:
        raise UserError(
            f"recipe {config.recipe} needs data set {data.name}: pass --data-root DIR, the folder "
            "that holds it"
        )
    if data.name == "digits" and config.data_root:
        raise UserError(
            f"--data-root {config.data_root}: recipe {config.recipe} brings its own images; leave "
            f"--data-root out, or pass --recipe {FOLDER_RECIPE}"
        )
    at_least = {
        "seed": (config.seed, 0),
        "log.every": (config.log.every, 1),
        "checkpoint.minutes": (config.checkpoint.minutes, 0),
        "checkpoint.steps": (config.checkpoint.steps, 1),
        "checkpoint.keep": (config.checkpoint.keep, 1),
        "data.limit": (data.limit, 1),
        "data.test_limit": (data.test_limit, 1),
        "data.epoch_samples": (data.epoch_samples, 1),
        "data.image_size": (data.image_size, 1),
        "data.resize": (data.resize, 1),
        "data.randaugment_ops": (data.randaugment_ops, 0),
        "data.randaugment_magnitude": (data.randaugment_magnitude, 0),
        "data.crop_padding": (data.crop_padding, 0),
        "data.cache_mb": (data.cache_mb, 0),
        "data.workers": (data.workers, 0),
        "noise.seed": (config.noise.seed, 0),
        "optim.epochs": (optim.epochs, 1),
        "optim.batch_size": (optim.batch_size, 1),
        "optim.accumulate": (optim.accumulate, 1),
        "optim.max_skipped": (optim.max_skipped, 1),
        "optim.warmup_steps": (optim.warmup_steps, 0),
        "optim.sgd_momentum": (optim.sgd_momentum, 0),
        "optim.weight_decay": (optim.weight_decay, 0),
    }
    for name, (value, lowest) in at_least.items():
        if value is not None and not lowest <= value < math.inf:
            raise UserError(f"--{name} {value}: must be {lowest} or more")
    if not 0 < optim.lr < math.inf:
        raise UserError(f"--optim.lr {optim.lr}: must be above 0")
    if optim.clip_norm is not None and not 0 < optim.clip_norm < math.inf:
        raise UserError(f"--optim.clip_norm {optim.clip_norm}: must be above 0")
    if config.model.ema_decay is not None and not 0 <= config.model.ema_decay < 1:
        raise UserError(
            f"--model.ema_decay {config.model.ema_decay}: must be at least 0 and below 1"
        )
    if not 0 < optim.gamma <= 1:
        raise UserError(f"--optim.gamma {optim.gamma}: must be above 0 and at most 1")
    if (
        list(optim.milestones) != sorted(set(optim.milestones))
        or min(optim.milestones, default=1) < 1
    ):
        raise UserError(
            f"--optim.milestones {optim.milestones}: must be ascending epochs from 1 on"
        )
    if data.label_key is not None and data.label_file is None:
        raise UserError(
            f"--data.label_key {data.label_key}: needs --data.label_file, whose labels it names"
        )
    if optim.milestones and optim.schedule != "step":
        raise UserError(f"--optim.milestones {optim.milestones}: need --optim.schedule step")
    if optim.accumulate > 1 and config.model.compile in ("reduce-overhead", "max-autotune"):
        raise UserError(
            f"--optim.accumulate {optim.accumulate}: does not go with --model.compile "
            f"{config.model.compile}, whose CUDA graphs overwrite the gradients that add up; pass "
            "--model.compile default"
        )
    if data.randaugment_magnitude > 30:
        raise UserError(
            f"--data.randaugment_magnitude {data.randaugment_magnitude}: must lie between 0 and 30"
        )
    if not 0 <= data.max_broken <= 1:
        raise UserError(f"--data.max_broken {data.max_broken}: must lie between 0 and 1")
    if not 0 <= data.exclude_above <= 1:
        raise UserError(f"--data.exclude_above {data.exclude_above}: must lie between 0 and 1")
    table = data.label_file is not None and is_label_table(data.label_file)
    if table and config.noise.kind != "none":
        raise UserError(
            f"--data.label_file {data.label_file}: noise would be injected into these labels (by "
            f"recipe {config.recipe}, if you did not ask for it); pass --noise.kind none"
        )
    if not 0 <= data.validation < 1:
        raise UserError(f"--data.validation {data.validation}: must be 0 or more and below 1")
    channels = 1 if data.name == "digits" else 3
    for name, values in (("mean", data.mean), ("std", data.std)):
        if values is not None and len(values) not in (1, channels):
            raise UserError(
                f"--data.{name} {values}: give one value or one for each of {channels} channels"
            )
    if data.std is not None and not all(0 < value < math.inf for value in data.std):
        raise UserError(f"--data.std {data.std}: must be above 0")
    with naming_options(kind="noise.kind", rate="noise.rate"):
        check_noise(config.noise.kind, config.noise.rate)
    if (config.noise.kind == "matrix") != (config.noise.matrix is not None):
        raise UserError("--noise.kind matrix and --noise.matrix FILE: give both or neither")

    options = dict(config.options)
    for name in methods:
        options[name] = checked_options(name, options[name], epochs=optim.epochs)
        if teacher_of(name, options[name]) is not None:
            options[name] = replace(options[name], teacher=_without_links(options[name].teacher))
    _check_nets(config, methods, options)
    return replace(
        config,
        methods=methods,
        plugins=words(config.plugins),
        data=replace(
            data, label_file=_without_links(data.label_file), exclude=_without_links(data.exclude)
        ),
        transition=replace(
            config.transition,
            net=_without_links(config.transition.net),
            source=_without_links(config.transition.source),
        ),
        log=replace(config.log, to=words(config.log.to)),
        noise=replace(
            config.noise,
            rate=0.0 if config.noise.kind in ("none", "matrix") else config.noise.rate,
            seed=config.seed if config.noise.seed is None else config.noise.seed,
        ),
        options=options,
    )


def _without_links(path: str | None) -> str | None:
    """The path of a file as it is if no link leads to it, else where it is now.

    The link runs/latest leads elsewhere when the run is finished that a file was named for by it.
    """
    if path is None or not os.path.isfile(path):
        return path
    real = os.path.realpath(path)
    return path if real == os.path.abspath(path) else real


def _check_nets(config: Config, methods: list[str], options: dict[str, Any]) -> None:
    """What methods want of other nets, as far as it can be known without data."""
    from alr_fast.training.config.schema import ESTIMATES

    for position, name in enumerate(methods):
        teacher = teacher_of(name, options[name])
        if teacher is not None:
            check_teacher(teacher, methods[:position], option=f"{name}.teacher", tables=True)
        if not takes_transition(name):
            continue
        source = config.transition.source
        if source in ESTIMATES:
            check_teacher(config.transition.net, methods[:position], option="transition.net")
        elif source != "known" and not source.endswith((".npy", ".csv")):
            raise UserError(
                f"--transition.source {source}: must be known, anchor, confident, or a .npy or "
                ".csv file with the matrix"
            )


def check_teacher(net: str, earlier: list[str], *, option: str, tables: bool = False) -> None:
    """Finds out before training whether a net will be there.

    Args:
        net: A method, or a file of weights.
        earlier: Methods that the run trains before.
        option: The option that names the net.
        tables: Whether a table of soft labels will do, too.

    Raises:
        UserError: It will not.
    """
    if net in METHODS:
        if net not in earlier:
            raise UserError(
                f"--{option} {net}: is not trained by this run before; put {net} first in "
                f"--methods, or pass the weights of a finished run, RUN/{net}{WEIGHTS}"
            )
    elif not Path(net).is_file() or not (net.endswith(WEIGHTS) or (tables and is_label_table(net))):
        raise UserError(
            f"--{option} {net}: neither a method ({', '.join(METHODS)}) nor a file of weights that "
            f"a run left, RUN/METHOD{WEIGHTS}" + (", nor a table of soft labels" if tables else "")
        )
