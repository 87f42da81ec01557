"""Typed configuration of a training run: the dataclasses are the documentation of every option.

Values come from four places, later ones win: the defaults below, the recipe (``recipes/NAME.yaml``
in this package), ``--config FILE``, and single options on the command line.

The options of a method are the arguments of its loss (`alr_fast.training.methods`).
"""

from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any, Literal

from alr_fast.data.label_table import PROBABILITIES
from alr_fast.errors import UserError
from alr_fast.training.methods import default_options

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
            alr_fast.noise.transition), or a file with K rows of K probabilities, .npy or .csv.
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


WEIGHTS = ".safetensors"
ESTIMATES = ("anchor", "confident")  # sources of a transition matrix that ask a net
