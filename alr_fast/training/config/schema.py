"""Typed configuration of a training run. The text below a field is the help of its option.

Values come from four places, later ones win: the defaults below, the recipe (``recipes/NAME.yaml``
in this package), ``--config FILE``, and single options on the command line.

The options of a method are the arguments of its loss (`alr_fast.training.methods`).
"""

# Evaluated later, annotations reach the parser without their bounds: its help and its messages
# show "int", not "Annotated[int, Bounds(...)]".
from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from alr_fast.data.datasets import DatasetName
from alr_fast.data.label_files.label_table import is_label_table
from alr_fast.data.label_files.table_samples import PROBABILITIES
from alr_fast.errors import UserError, naming_options
from alr_fast.noise.injection import check_noise
from alr_fast.training.config.ranges import (
    Bounded,
    Fraction,
    FractionBelowOne,
    Magnitude,
    NonNegativeFloat,
    NonNegativeInt,
    PathText,
    Percentile,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
)
from alr_fast.utils.text import did_you_mean

_RECIPES = Path(__file__).with_name("recipes")
DEFAULT_RECIPE = "digits"
FOLDER_RECIPE = "folder"  # selected by --data-root without --recipe
FEATURES_RECIPE = "features"  # selected by it if data_root is a file of features
WEIGHTS = ".safetensors"  # suffix of the weights of a method in the folder of a run
_MOST_SEEDS = 1000
ESTIMATES = ("anchor", "confident")  # sources of a transition matrix that need a trained model

# Names of torch dtypes: getattr(torch, name) is the whole conversion.
FloatName = Literal["float32", "bfloat16", "float16"]


@dataclass
class DataConfig(Bounded):
    """Images or features: where they are, how they are read and how training images are
    augmented."""

    name: DatasetName = "digits"
    """Data set: digits (part of scikit-learn), a download as it is, folder
    (<class>/* in root, or in root/train and root/test), table (a list of images and labels),
    packed (written by alr-fast data pack), huggingface (Parquet files with images, or a folder of
    save_to_disk), webdataset (tar files), idx (MNIST and the like), or features (an .npz file with
    arrays X and y, or a Parquet file with a column of vectors); auto detects the layout of
    data_root."""
    column: str | None = None
    """Of a file of features, the array or column that contains them; null for X, features,
    embeddings or embedding, or the only column of vectors."""
    columns: str | None = None
    """Of a list or a Parquet file with images, the names of its columns: path=NAME,label=NAME, also
    clean_label and split; null to recognise them."""
    images: PathText | None = None
    """Of a list, the folder of its images; null to look for it."""
    train_split: str = "train"
    """Split to train on; clothing1m also has clean_train, webvision also has google and flickr."""
    test_split: str = "test"
    """Split to test on."""
    ilsvrc12: PathText | None = None
    """Folder with the validation images of ILSVRC12, a second test set for webvision."""
    label_file: PathText | None = None
    """Labels to train on instead of the given ones: an .npz file of alr-fast noise, the human
    labels of CIFAR-N (CIFAR-10_human.pt), or a .parquet or .csv table of alr-fast export or of
    marks in a report."""
    label_key: str | None = None
    """Which labels of label_file: of CIFAR-N aggre, worse, random1, random2, random3 or noisy; of a
    table a column, null for label (set by a person) or else refined_label, probabilities for soft
    labels, with which the label banks of alr, selc and sat are then initialised."""
    marks: PathText | None = None
    """Labels that a person chose, of alr-fast review (RUN/marks.csv) or exported by a
    report: they replace those of the marked samples, wherever these come from: the data set,
    label_file or noise."""
    loader: Literal["auto", "memory", "dali", "torch"] = "auto"
    """Data loader: memory (all images decoded once, on the training device), dali (NVIDIA DALI) or
    torch (torchvision in worker processes); auto takes the first of them that can be used."""
    exclude: PathText = "auto"
    """Samples to leave out: a CSV list of alr-fast data verify, or a table of alr-fast export or of
    marks in a report; auto takes the list that verify wrote for this data set, none uses no
    list."""
    exclude_above: Fraction = 0.5
    """With a table of alr-fast export, leave out samples with a suspicion score above this, 0 to 1.
    (With marks, all marked samples are left out except those marked keep.)"""
    max_broken: Fraction = 0.001
    """Share of unreadable images in a split above which the run stops."""
    limit: PositiveInt | None = None
    """Train on at most this many images, the same number from every class; null for all."""
    test_limit: PositiveInt | None = None
    """Test on at most this many images, the same number from every class; null for all."""
    validation: FractionBelowOne = 0.0
    """Hold out this share of the training samples for validation, with their given labels, and
    report the accuracy on them: to choose between methods and options without clean labels."""
    epoch_samples: PositiveInt | None = None
    """Train each epoch on a new random subset of this many images, the same number from every
    class; null for all."""
    balance: Literal["none", "sqrt", "classes"] = "none"
    """Class-balanced sampling, by the given labels: classes (all classes equally often), sqrt (in
    proportion to the square root of their sizes) or none (each sample once in an epoch). Samples of
    rare classes are then seen several times in an epoch, those of frequent ones not in every one,
    and their rows of the label bank are refined as often as they are seen. With epoch_samples an
    epoch has this many samples, else as many as the training set."""
    image_size: PositiveInt | None = None
    """Side of the images in pixels; null takes the median of the shorter side over 64 training
    images, at most 224, or 64 with the small models of this package; with a transformer of timm its
    own size. Has no effect on data sets that come as arrays."""
    resize: PositiveInt | None = None
    """Length of the shorter side in pixels before a square is cut out; null for 256/224 of
    image_size with the crops random and resized, for image_size with the others."""
    crop: Literal["center", "pad", "random", "resized"] = "pad"
    """Crop of training images: center, pad (the center, padded and cropped at a random position),
    random (at a random position, as large as the center crop), or resized (random area, aspect
    ratio and position). Test images always get the center crop."""
    crop_padding: NonNegativeInt = 0
    """Pixels of padding on each side; only used by the crop pad."""
    flip: bool = False
    """Mirror training images left to right with probability 0.5."""
    randaugment_ops: NonNegativeInt = 0
    """Number of RandAugment operations on each training image; 0 for none."""
    randaugment_magnitude: Magnitude = 9
    """Magnitude of these operations, 0 to 30."""
    mean: list[float] | None = None
    """Mean of each colour channel, 0 to 1, subtracted from the images; null for 0.5."""
    std: list[float] | None = None
    """Standard deviation of each colour channel, 0 to 1; null for 0.5."""
    cache_mb: NonNegativeInt = 1024
    """Cache decoded images in memory if the whole split fits into this many MiB and the crop is
    center or pad; 0 for never."""
    workers: NonNegativeInt | None = None
    """Worker processes or threads that read and decode, for each process of the run; null for one
    for each available core, at most 16."""

    @property
    def reading(self) -> dict[str, str | None]:
        """The options of `open_dataset`."""
        return {"column": self.column, "columns": self.columns, "images": self.images}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_key is not None and self.label_file is None:
            raise UserError(
                f"--data.label_key {self.label_key}: selects labels of --data.label_file; pass "
                "that, too"
            )
        channels = 1 if self.name == "digits" else 3
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, channels):
                raise UserError(
                    f"--data.{name} {values}: pass one value, or one for each of {channels} "
                    "channels"
                )
        if self.std is not None and not all(0 < value < math.inf for value in self.std):
            raise UserError(f"--data.std {self.std}: must be above 0")


@dataclass
class NoiseConfig(Bounded):
    """Label noise injected into the training labels; test labels are never changed."""

    kind: str = "none"
    """none (keep the labels as they are), symmetric (exactly int(rate * N) samples get a label
    drawn from all K classes, the true one included, so that about rate * (K-1)/K are wrong),
    symmetric-exclusive (drawn from the other K-1 classes, so that exactly int(rate * N) are wrong),
    asymmetric (to similar classes of CIFAR-10 or of digits), asymmetric-blocks5,
    asymmetric-superclass (CIFAR-100), pair (each class to the next), instance (depends on pixels
    or features), or matrix (any transition matrix)."""
    rate: float = 0.0
    """Requested rate, 0 to 1; the share of labels that actually changed is reported."""
    seed: NonNegativeInt | None = None
    """Seed of the noise; null takes the seed of the run."""
    matrix: PathText | None = None
    """File with the transition matrix, K rows of K probabilities, .npy or .csv."""

    def __post_init__(self) -> None:
        super().__post_init__()
        with naming_options(kind="noise.kind", rate="noise.rate"):
            check_noise(self.kind, self.rate)
        if (self.kind == "matrix") != (self.matrix is not None):
            raise UserError("--noise.kind matrix and --noise.matrix FILE: pass both or neither")


@dataclass
class ModelConfig(Bounded):
    """The model."""

    name: str = "conv-tiny"
    """conv-mini and conv-tiny (for digits of 8x8 pixels), conv-small (for photographs of 32x32),
    resnet18-cifar and resnet34-cifar (from timm, with a stem for photographs of 32x32), or any
    model of timm. Of features: linear, mlp (of 512 hidden units) or mlp-UNITS (mlp-1024 for
    instance); both standardise the features as in the training samples."""
    pretrained: bool = False
    """Start from pretrained weights, which timm downloads (models of timm only)."""
    ema_decay: FractionBelowOne | None = None
    """Decay of an EMA of the weights, which is tested and saved instead of the weights; null for no
    EMA."""
    sync_batchnorm: bool = False
    """Compute batch statistics over all processes instead of over the batch of each (GPUs only)."""
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = "none"
    """Mode of torch.compile for the model, none for eager mode; reduce-overhead replays CUDA
    graphs."""


@dataclass
class OptimConfig(Bounded):
    """Optimizer and learning-rate schedule, the same for every method."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """sgd, adam or adamw."""
    epochs: PositiveInt = 60
    """Passes over the training set."""
    batch_size: PositiveInt = 128
    """Samples in one optimizer step, over all processes: the schedule of a recipe does not depend
    on their number."""
    accumulate: PositiveInt = 1
    """Micro-batches (gradient accumulation) into which the batch of each process is split if it
    does not fit into memory at once."""
    clip_norm: PositiveFloat | None = None
    """Clip the norm of the gradients to this; null for no clipping."""
    lr: PositiveFloat = 0.05
    """Highest learning rate."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """cosine falls from lr to 0 over the run, step multiplies lr by gamma after each of the
    milestones, constant stays at lr."""
    milestones: list[int] = field(default_factory=list)
    """Epochs after which the schedule step lowers the learning rate, ascending."""
    gamma: PositiveFraction = 0.1
    """Factor of the schedule step."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises linearly from 0 at the start."""
    sgd_momentum: NonNegativeFloat = 0.9
    """Momentum of SGD (not the momentum of ALR)."""
    nesterov: bool = True
    """Use Nesterov momentum."""
    weight_decay: NonNegativeFloat = 5e-4
    """L2 penalty on the weights; decoupled with adamw."""
    max_skipped: PositiveInt = 30
    """Stop the run after this many consecutive skipped steps. A step is skipped if its gradients
    are not finite."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ascending = self.milestones == sorted(set(self.milestones))
        if not ascending or min(self.milestones, default=1) < 1:
            raise UserError(
                f"--optim.milestones {self.milestones}: must be ascending epochs from 1 on"
            )
        if self.milestones and self.schedule != "step":
            raise UserError(f"--optim.milestones {self.milestones}: need --optim.schedule step")


@dataclass
class TransitionConfig(Bounded):
    """The transition matrix of the label noise, for backward_correction and forward_correction."""

    source: PathText = "known"
    """known (counted, if noise was injected or true labels are known), anchor or confident
    (estimated from the predictions of a trained model, see alr_fast.noise.transition), or a file
    with K rows of K probabilities, .npy or .csv."""
    net: PathText = "ce"
    """The trained model: a method that this run trains earlier, or the weights of a finished run,
    RUN/METHOD.safetensors. It should not have memorised its wrong labels: train it for few
    epochs."""
    percentile: Percentile = 97.0
    """Percentile, 0 to 100, of the sample that represents a class in anchor."""


@dataclass
class BankConfig(Bounded):
    """The label bank, one row of class probabilities for each training sample."""

    dtype: FloatName = "float32"
    """Storage type of the rows; arithmetic is always in float32."""
    placement: Literal["auto", "device", "pinned", "file"] = "auto"
    """device (on the device of the model), pinned (host memory that the GPU reads and writes), file
    (memory-mapped, for training on CPUs with a bank larger than the memory); auto chooses by
    size."""
    folder: PathText | None = None
    """Folder for the working file of the placement file, on a fast local disk with room for the
    bank; null for the folder of the run. The file is unlinked and disappears with the process;
    checkpoints contain the bank."""


@dataclass
class CheckpointConfig(Bounded):
    """The checkpoints from which a stopped run resumes; see docs/scaling.md."""

    minutes: NonNegativeFloat | None = 10.0
    """Write a checkpoint when this many minutes have passed since the last one; null for never."""
    steps: PositiveInt | None = None
    """Write a checkpoint after every this many steps, counted from the start of the method; null
    for never."""
    keep: PositiveInt = 2
    """Number of checkpoints to keep, the newest ones."""
    background: bool = True
    """Continue training while a checkpoint is written, from a copy in host memory. A bank in a file
    is never copied: training waits for it."""
    other_labels: bool = False
    """Resume from a checkpoint even if the given labels of the samples have changed since, because
    they were corrected, for example; data.label_file, data.label_key, data.marks and noise may
    then differ, too. The label bank keeps its rows."""


@dataclass
class LogConfig(Bounded):
    """Display and logs of a run, written by process 0."""

    every: PositiveInt = 20
    """Steps between two readings of loss and accuracy. Signals and the time of the next checkpoint
    are checked at the same interval."""
    show: Literal["auto", "lines", "quiet", "json"] = "auto"
    """Output: auto (a progress bar on a terminal, lines elsewhere), lines, quiet (warnings and the
    final tables), json (one JSON object per line, for programs)."""
    to: list[str] | str = "csv,tensorboard"
    """Loggers that record each epoch: csv, tensorboard, wandb (Weights & Biases; its package is
    not in the extra train), separated by commas."""
    wandb_project: str = "alr_fast"
    """Project at Weights & Biases."""
    profile: bool = False
    """Profile a few steps after the first with torch.profiler, write the trace into the folder of
    the run, and print the time of each part of a step."""


@dataclass
class Config(Bounded):
    """A whole run."""

    recipe: str = DEFAULT_RECIPE
    """Shipped recipe that the other options start from."""
    data_root: PathText | None = None
    """Folder with the data as it was downloaded, a CSV or Parquet list, or a file of features.
    Without --recipe it selects the recipe folder, of features the recipe features."""
    methods: list[str] | str = "ce,alr"
    """Methods to train in turn with the same seed, model, schedule and batches: ce (cross entropy
    on the given labels), label_smoothing, smearing, backward_correction, forward_correction,
    distillation, selc, alr (Adaptive Label Refinement), sat, elr, and those of plugins. Written
    ce,alr or [ce, alr]."""
    plugins: list[PathText] | PathText = ""
    """Modules, or .py files, that add methods: see docs/adding-a-method.md."""
    seed: NonNegativeInt = 0
    """Seed of the weights, the batch order, the augmentation and the noise."""
    seeds: list[int] | int | str | None = None
    """Train once with each of several seeds, and show means and deviations: a list, 0,1,2 or
    [0, 1, 2], or the number of seeds, from seed on; null trains once. Short form: --seed 0,1,2."""
    device: str = "auto"
    """Training device: auto (CUDA if available), cpu, cuda, cuda:1, ..."""
    precision: FloatName = "float32"
    """float32, or the type that autocast computes the model in (float16 with a gradient scaler)."""
    runs: PathText = "runs"
    """Parent folder of the run folders; its link "latest" points to the run finished last."""
    resume: PathText = "none"
    """none (a new run), auto (resume the newest unfinished run of this configuration, or start a
    new one), or the folder of a run or of one of its checkpoints, whose options are then those of
    its config.yaml."""
    warm_start: PathText | None = None
    """A finished run: each method starts from its weights and its label bank there. Samples that
    are new, or have another given label now, start from their label."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images and augmentation."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """Injected label noise."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Model."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    transition: TransitionConfig = field(default_factory=TransitionConfig)
    """Transition matrix of the label noise."""
    bank: BankConfig = field(default_factory=BankConfig)
    """Label bank."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    log: LogConfig = field(default_factory=LogConfig)
    """Display and logs."""
    options: dict[str, Any] = field(default_factory=dict)
    """For each method its options, the arguments of its loss; on the command line and in files
    these are groups named after the methods. `alr_fast.training.config.check.with_default_options`
    adds those of methods that are missing."""
    asked: dict[str, Any] = field(default_factory=dict)
    """What was asked for, by full name, where another value follows from it: null for the length of
    a warm-up, for example."""

    def __post_init__(self) -> None:
        self.plugins = words(self.plugins)  # each of them may be a path
        self.seeds = _seeds(self.seeds, self.seed)
        super().__post_init__()
        data, model = self.data, self.model
        if self.seeds is not None and self.resume not in ("none", "auto"):
            raise UserError(
                f"--resume {self.resume}: names one run; with several seeds pass --resume auto, "
                "which finds the run of each seed"
            )
        if data.name != "digits" and not self.data_root:
            raise UserError(
                f"recipe {self.recipe} needs data set {data.name}: pass --data-root DIR, its "
                "folder or file"
            )
        if data.name == "digits" and self.data_root:
            raise UserError(
                f"--data-root {self.data_root}: recipe {self.recipe} brings its own images; leave "
                f"--data-root out, or pass --recipe {FOLDER_RECIPE}"
            )
        if self.optim.accumulate > 1 and model.compile in ("reduce-overhead", "max-autotune"):
            raise UserError(
                f"--optim.accumulate {self.optim.accumulate}: does not go with "
                f"--model.compile {model.compile}, whose CUDA graphs overwrite the accumulated "
                "gradients; pass --model.compile default"
            )
        if data.label_file and is_label_table(data.label_file) and self.noise.kind != "none":
            raise UserError(
                f"--data.label_file {data.label_file}: noise would be injected into these labels "
                f"(by recipe {self.recipe}, if you did not ask for it); pass --noise.kind none"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, with the values that the run uses.

        Contains only the options of the methods that are trained.
        """
        plain = asdict(self)
        options = plain.pop("options")
        del plain["asked"]
        return plain | {name: options[name] for name in words(self.methods) if name in options}

    def as_asked(self) -> dict[str, Any]:
        """`as_dict` with the values that were asked for, as written to ``config.yaml``."""
        return overlaid(self.as_dict(), self.asked)

    def resolved(self) -> dict[str, Any]:
        """The values that follow from others, where `as_asked` has what was asked for, by full
        name."""
        values = flat(self.as_dict())
        return {name: values[name] for name in self.asked}

    def with_value(self, name: str, value: Any) -> Config:
        """The same configuration with a value that follows from others.

        Args:
            name: Full name of the option, in a group.
            value: Its value.
        """
        group, option = name.split(".")
        own = self.options[group] if group in self.options else getattr(self, group)
        asked = self.asked | {name: self.asked.get(name, getattr(own, option))}
        changed = replace(own, **{option: value})
        if group in self.options:
            return replace(self, options={**self.options, group: changed}, asked=asked)
        return replace(self, asked=asked, **{group: changed})

    def with_seed(self, seed: int) -> Config:
        """The same configuration with one seed, which the noise follows unless it has its own."""
        follows = "noise.seed" in self.asked and self.asked["noise.seed"] is None
        noise = replace(self.noise, seed=seed) if follows else self.noise
        return replace(self, seed=seed, seeds=None, noise=noise)


def _seeds(seeds: list[int] | int | str | None, first: int) -> list[int] | None:
    """The list that ``seeds`` stands for.

    Raises:
        UserError: It is no list of different seeds.
    """
    if seeds is None:
        return None
    if isinstance(seeds, int):
        if not 1 <= seeds <= _MOST_SEEDS:
            raise UserError(f"--seeds {seeds}: must lie between 1 and {_MOST_SEEDS:,}")
        found = list(range(first, first + seeds))
    else:
        texts = words([str(seed) for seed in seeds] if isinstance(seeds, list) else seeds)
        if not all(re.fullmatch("[0-9]{1,18}", text) for text in texts):
            raise UserError(f"--seeds {seeds}: must be whole numbers of 0 or more, such as 0,1,2")
        found = [int(text) for text in texts]
    if not found or len(set(found)) < len(found):
        raise UserError(f"--seeds {seeds}: name one or more seeds, each once, or their number")
    return found


def soft_labels(config: Config) -> str | None:
    """The table whose soft labels a run trains on, None if it trains on hard labels."""
    return config.data.label_file if config.data.label_key == PROBABILITIES else None


def starts_from_given(config: Config) -> bool:
    """Whether label banks start from the given labels, not from soft labels or an earlier run."""
    return soft_labels(config) is None and config.warm_start is None


def recipe_names() -> list[str]:
    """Names of the recipes in this package, sorted."""
    return sorted(path.stem for path in _RECIPES.glob("*.yaml"))


def recipe_text(name: str) -> str:
    """YAML text of a shipped recipe.

    Raises:
        UserError: No recipe has that name; the message lists the shipped ones.
    """
    names = recipe_names()
    if name not in names:
        raise UserError(
            f"--recipe {name}: no such recipe; shipped are {', '.join(names)}"
            f"{did_you_mean(name, names)}"
        )
    return (_RECIPES / f"{name}.yaml").read_text(encoding="utf-8")


def words(value: list[str] | str) -> list[str]:
    """The words of a list, or of a text with commas between them."""
    words = value.split(",") if isinstance(value, str) else value
    return [word.strip() for word in words if word.strip()]


def overlaid(options: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Nested options with other values, which have full names."""
    result = {key: dict(v) if isinstance(v, dict) else v for key, v in options.items()}
    for name, value in values.items():
        group, _, option = name.rpartition(".")
        (result.setdefault(group, {}) if group else result)[option] = value
    return result


def flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by their full names, ``group.option``, of nested dictionaries."""
    named: dict[str, Any] = {}
    for key, value in options.items():
        name = f"{prefix}{key}"
        named |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return named
