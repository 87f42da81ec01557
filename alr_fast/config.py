"""Typed configuration of a training run: the dataclasses are the documentation of every option.

Values come from four places, later ones win: the defaults below, the recipe (``recipes/NAME.yaml``
in this package), ``--config FILE``, and single options on the command line.

The options of a method are the arguments of its loss (`alr_fast.methods`).
"""

import math
import os
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from typing import Any, Literal

from alr_fast.data.label_table import PROBABILITIES, is_label_table
from alr_fast.errors import UserError
from alr_fast.methods import (
    METHODS,
    checked_options,
    default_options,
    takes_transition,
    teacher_of,
)

DEFAULT_RECIPE = "digits"
FOLDER_RECIPE = "folder"  # what a bare --data-root means

# The dtype options hold torch's own names, so that getattr(torch, name) is the whole conversion.
FloatName = Literal["float32", "bfloat16", "float16"]


DatasetName = Literal[
    "auto",
    "digits",
    "cifar10",
    "cifar100",
    "animal10n",
    "clothing1m",
    "food101n",
    "webvision",
    "webvision-mini",
    "packed",
    "folder",
    "table",
]


@dataclass
class DataConfig:
    """The images, how they are read and how training images are varied.

    Args:
        name: Data set: digits (ships with scikit-learn), a download as it is, folder
            (root/{train,test|val}/<class>/*), table (a CSV or Parquet list), packed (what python -m
            alr_fast.data pack wrote); auto recognises which one data_root holds.
        train_split: Split that is trained on; clothing1m has clean_train, too, webvision has google
            and flickr.
        test_split: Split that is tested on.
        ilsvrc12: Folder with the validation images of ILSVRC12, a second test set for webvision.
        label_file: Labels to train on instead of the given ones: an .npz file of python -m
            alr_fast.noise, the human labels of CIFAR-N (CIFAR-10_human.pt), or a .parquet or .csv
            table of python -m alr_fast.export or of marks in a report. --labels for short.
        label_key: Which labels: of CIFAR-N aggre, worse, random1, random2, random3 or noisy; of a
            table a column, null for label (a person's) or refined_label, probabilities for soft
            labels, which the label banks of alr, selc and sat then start from.
        loader: What turns the images into batches: memory (all images decoded once, at the
            training device), dali (NVIDIA DALI), torch (torchvision in worker processes); auto
            takes the first of them that can.
        exclude: Samples that are left out: the CSV list that python -m alr_fast.data verify writes,
            or a table of python -m alr_fast.export or of marks in a report; auto takes the list
            that verify wrote for this data set, none takes no list.
        exclude_above: Of a table of python -m alr_fast.export, leave out the samples with a score
            of suspicion above this, 0 to 1. (Of marks, all but those marked keep are left out.)
        max_broken: Share of the files that are used of a split that may turn out broken before the
            run stops.
        limit: Train on this many images at most, the same number from every class; null for all.
        test_limit: Test on this many images at most, the same number from every class; null for
            all.
        validation: Put this share of the training samples aside, with their given labels, and
            report the accuracy on them: for choosing between methods and options where no clean
            labels can be had.
        epoch_samples: Train each epoch on a new random subset of this many images, the same number
            from every class; null for all.
        image_size: Side in pixels; null takes the shorter side of the first training image, 224 at
            most. Has no effect on images that come as arrays.
        resize: The shorter side is brought to this many pixels before a square is cut out; null for
            256/224 of image_size with the crops random and resized, image_size with the others.
        crop: Training images: center (the middle), pad (the middle, padded and cropped back at
            random), random (a random part as large as the middle), resized (a random part of
            random area and aspect ratio). Test images: the middle.
        crop_padding: Pixels of padding on each side; has no effect on other crops than pad.
        flip: Mirror half of the training images left to right, chosen at random.
        randaugment_ops: Operations of RandAugment on each training image; 0 for none.
        randaugment_magnitude: Magnitude of these operations, 0 to 30.
        mean: Mean of each colour channel, 0 to 1, subtracted from the images; null for 0.5.
        std: Standard deviation of each colour channel, 0 to 1; null for 0.5.
        cache_mb: Keep decoded images in memory where the whole split fits in this many MiB and the
            crop is center or pad; 0 for never.
        workers: Processes or threads that read and decode, for each process of the run; null for
            one on each core that it may use, 16 at most.
    """

    name: DatasetName = "digits"
    train_split: str = "train"
    test_split: str = "test"
    ilsvrc12: str | None = None
    label_file: str | None = None
    label_key: str | None = None
    loader: Literal["auto", "memory", "dali", "torch"] = "auto"
    exclude: str = "auto"
    exclude_above: float = 0.5
    max_broken: float = 0.001
    limit: int | None = None
    test_limit: int | None = None
    validation: float = 0.0
    epoch_samples: int | None = None
    image_size: int | None = None
    resize: int | None = None
    crop: Literal["center", "pad", "random", "resized"] = "pad"
    crop_padding: int = 0
    flip: bool = False
    randaugment_ops: int = 0
    randaugment_magnitude: int = 9
    mean: list[float] | None = None
    std: list[float] | None = None
    cache_mb: int = 1024
    workers: int | None = None


@dataclass
class NoiseConfig:
    """Label noise injected into the training labels; test labels are never touched.

    Args:
        kind: none (keep the labels as they are), symmetric (exactly int(rate * N) samples get a
            label drawn from all K classes, the true one included, so that about rate * (K-1)/K are
            wrong), symmetric-exclusive (drawn from the other K-1 classes, so that exactly
            int(rate * N) are wrong), asymmetric (look-alikes among the classes of CIFAR-10 or of
            digits), asymmetric-blocks5, asymmetric-superclass (CIFAR-100), pair (each class to the
            next), instance (by the pixels), or matrix (any transition matrix).
        rate: Requested rate, 0 to 1; the share that really became wrong is reported.
        seed: Seed of the noise; null takes the seed of the run.
        matrix: File with the transition matrix, K rows of K probabilities, .npy or .csv.
    """

    kind: str = "none"
    rate: float = 0.0
    seed: int | None = None
    matrix: str | None = None


@dataclass
class ModelConfig:
    """The net.

    Args:
        name: conv-mini and conv-tiny (for 8x8 digits), conv-small (for 32x32 photographs),
            resnet18-cifar and resnet34-cifar (timm's, with a stem for 32x32 photographs), or any
            timm name.
        pretrained: Start from timm's pretrained weights, which timm downloads (timm names only).
        ema_decay: Keep an exponential moving average of the weights with this decay, test it and
            save it instead of the weights; null for none.
        sync_batchnorm: Batch statistics over all processes instead of over the batch of each (GPUs
            only).
        compile: Mode of torch.compile for the net, none to leave it as it is; reduce-overhead
            replays CUDA graphs.
    """

    name: str = "conv-tiny"
    pretrained: bool = False
    ema_decay: float | None = None
    sync_batchnorm: bool = False
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = "none"


@dataclass
class OptimConfig:
    """Optimizer and its schedule, the same for every method.

    Args:
        optimizer: sgd, adam or adamw.
        epochs: Passes over the training set.
        batch_size: Samples that one step of the optimizer sees, over all processes: the schedule of
            a recipe stays what it is on any number of them.
        accumulate: Pieces that the batch of a process goes through the net in, one after the other,
            where it does not fit into memory at once; gradients add up.
        clip_norm: Scale gradients down to this norm where theirs is larger; null for never.
        lr: Highest learning rate.
        schedule: cosine falls from lr to 0 over the run, step multiplies lr by gamma after each of
            the milestones, constant stays at lr.
        milestones: Epochs after which the schedule step lowers the learning rate, ascending.
        gamma: Factor of the schedule step.
        warmup_steps: Steps over which the learning rate rises from 0 at the start.
        sgd_momentum: Momentum of SGD (not the momentum of ALR).
        nesterov: Nesterov's form of the momentum.
        weight_decay: L2 penalty on the weights; with adamw the decoupled one.
        max_skipped: Stop the run after so many steps in a row whose gradients were not finite; each
            of them is left out.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    epochs: int = 60
    batch_size: int = 128
    accumulate: int = 1
    clip_norm: float | None = None
    lr: float = 0.05
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: list[int] = field(default_factory=list)
    gamma: float = 0.1
    warmup_steps: int = 0
    sgd_momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    max_skipped: int = 30


@dataclass
class TransitionConfig:
    """The transition matrix of the label noise, for backward_correction and forward_correction.

    Args:
        source: known (counted, where noise was injected or true labels are known), anchor or
            confident (estimated from what a net that was trained before predicts, see
            alr_fast.transition), or a file with K rows of K probabilities, .npy or .csv.
        net: That net: a method that this run trains before, or the weights of a finished run,
            RUN/METHOD.safetensors. Best one that has not learnt its wrong labels by heart: train it
            for few epochs.
        percentile: Which sample stands for a class in anchor, 0 to 100.
    """

    source: str = "known"
    net: str = "ce"
    percentile: float = 97.0


@dataclass
class BankConfig:
    """The label bank, one row of class probabilities for each training sample.

    Args:
        dtype: What the rows are stored in; arithmetic is in float32 whatever it is.
        placement: device (with the net), pinned (host memory that the GPU reads and writes), file
            (memory-mapped, for training on CPUs with a bank larger than the memory); auto chooses
            by size.
        folder: Where the placement file puts its working file, on a fast local disk with room for
            the bank; null for the folder of the run. The file has no name and is gone with the
            process; checkpoints keep the bank.
    """

    dtype: FloatName = "float32"
    placement: Literal["auto", "device", "pinned", "file"] = "auto"
    folder: str | None = None


@dataclass
class CheckpointConfig:
    """What a stopped run goes on from; see docs/scaling.md.

    Args:
        minutes: Write a checkpoint when so many minutes have passed since the last one; null for
            never.
        steps: Write one after each so many steps, counted from the start of the method; null for
            never.
        keep: How many of the newest are kept.
        background: Go on training while a checkpoint is written, from a copy in host memory. A bank
            in a file is never copied: training waits for it.
        other_labels: Go on from a checkpoint although the given labels of the samples have changed
            since, because they were corrected, say; data.label_file, data.label_key and noise may
            then differ, too. The label bank keeps its rows.
    """

    minutes: float | None = 10.0
    steps: int | None = None
    keep: int = 2
    background: bool = True
    other_labels: bool = False


@dataclass
class LogConfig:
    """What a run shows and notes down; process 0 alone does.

    Args:
        every: Steps between two readings of loss and accuracy. Signals and the time for a
            checkpoint are looked at in the same rhythm. --log-every for short.
        show: What is printed: auto (a progress bar on a terminal, lines elsewhere), lines, quiet
            (warnings and the final tables), json (a JSON object a line, for programs).
        to: Where each epoch goes besides: csv, tensorboard, wandb (pip install 'alr_fast[wandb]'),
            separated by commas.
        wandb_project: Project at Weights & Biases.
        profile: Trace a few steps after the first with torch.profiler, write the trace into the
            folder of the run, and print where the time goes. --profile for short.
    """

    every: int = 20
    show: Literal["auto", "lines", "quiet", "json"] = "auto"
    to: list[str] | str = "csv,tensorboard"
    wandb_project: str = "alr_fast"
    profile: bool = False


@dataclass
class Config:
    """A whole run.

    Args:
        recipe: Shipped recipe that the other options start from.
        data_root: Folder with the data as it was downloaded, or a CSV or Parquet list. Without
            --recipe it selects the recipe folder.
        methods: Methods trained in turn with the same seed, net, schedule and batches: ce (cross
            entropy on the given labels), label_smoothing, smearing, backward_correction,
            forward_correction, distillation, selc, alr (Adaptive Label Refinement), sat, elr, and
            those of plugins. Written ce,alr or [ce, alr].
        plugins: Modules, or .py files, that add methods: see docs/adding-a-method.md.
        seed: Seed of the weights, the batch order, the augmentation and the noise.
        device: Where to train: auto (CUDA where there is one), cpu, cuda, cuda:1, ...
        precision: float32, or the type that autocast computes the net in (float16 with a gradient
            scaler).
        runs: Folder that gets a new folder for each run, and the link "latest" to the last finished
            one.
        resume: none (a new run), auto (go on with the newest run of this configuration that was not
            finished, or start one), or the folder of a run or of one of its checkpoints.
        data: Images and augmentation.
        noise: Injected label noise.
        model: Net.
        optim: Optimizer and schedule.
        transition: Transition matrix of the label noise.
        bank: Label bank.
        checkpoint: Checkpoints.
        log: Display and logs.
        options: For each method its options, the arguments of its loss; on the command line and in
            files these are groups named after the methods.
    """

    recipe: str = DEFAULT_RECIPE
    data_root: str | None = None
    methods: list[str] | str = "ce,alr"
    plugins: list[str] | str = ""
    seed: int = 0
    device: str = "auto"
    precision: FloatName = "float32"
    runs: str = "runs"
    resume: str = "none"
    data: DataConfig = field(default_factory=DataConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    transition: TransitionConfig = field(default_factory=TransitionConfig)
    bank: BankConfig = field(default_factory=BankConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    options: dict[str, Any] = field(default_factory=default_options)

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, as written to ``config.yaml``.

        Of the options of methods, those of the methods that are trained.
        """
        plain = asdict(self)
        options = plain.pop("options")
        return plain | {name: options[name] for name in words(self.methods)}


def soft_labels(config: Config) -> str | None:
    """The table whose soft labels a run trains on, None where it has hard ones."""
    return config.data.label_file if config.data.label_key == PROBABILITIES else None


def recipe_names() -> list[str]:
    """Names of the recipes in this package, sorted."""
    folder = resources.files(__package__) / "recipes"
    return sorted(p.name[: -len(".yaml")] for p in folder.iterdir() if p.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """YAML text of a shipped recipe.

    Raises:
        UserError: No recipe has that name; the message lists those that are shipped.
    """
    if name not in recipe_names():
        shipped = ", ".join(recipe_names())
        raise UserError(f"--recipe {name}: no such recipe; shipped are {shipped}")
    return (resources.files(__package__) / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def words(value: list[str] | str) -> list[str]:
    """The words of a list, or of a text with commas between them."""
    words = value.split(",") if isinstance(value, str) else value
    return [word.strip() for word in words if word.strip()]


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
    from alr_fast.teacher import ESTIMATES, check_teacher

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
