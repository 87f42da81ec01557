"""Draws figures from folders of finished runs of `python -m alr_fast.train`.

    python -m benchmarks.figures memorisation RUN --method ce --output memorisation.png
    python -m benchmarks.figures shares RUN --methods ce alr --output shares.png
    python -m benchmarks.figures tsne RUN [RUN ...] --methods ce alr --output tsne.png

`memorisation` shows how the accuracy on the given labels goes on rising while test accuracy falls;
`shares` what becomes of training samples with a right and with a wrong label; `tsne` how the
features before the last layer of a trained net lie, for images of the test set. A line with the
figures' numbers is printed as well. Nothing is trained.

Exit status: 0, 2 for a wrong input, 130 when interrupted.
"""

import argparse
import csv
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alr_fast.command import CommandParser, exit_status
from alr_fast.errors import UserError
from alr_fast.runs import is_finished, replacing
from alr_fast.teacher import WEIGHTS, load_net
from alr_fast.train import TRAIN_EXTRA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from alr_fast.data.loader import Loader

WIDTH, DPI = 1000, 120  # of a figure in pixels: text stays readable at its own size
MOST_COLUMNS = 4
FEWEST_SAMPLES = 5
# Told apart with every kind of colour vision: of Okabe and Ito, https://jfly.uni-koeln.de/color,
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#bbbbbb"
COLORS = {"correct": BLUE, "memorised": ORANGE, "incorrect": GREY}
# and ten for classes, of Petroff, arXiv 2107.02270; two shapes tell the closest of them apart.
CLASS_COLORS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
CLASS_MARKERS = "oooos" + "ssoso"
GROUPS = {
    "samples with a right label": ("correct", "incorrect"),
    "mislabelled samples": ("correct", "memorised", "incorrect"),
}
WHILE_TRAINING = "predictions while training, with the crops and flips of the recipe"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, see above."""

    def action() -> None:
        missing = [name for name in TRAIN_EXTRA if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"figures need {', '.join(missing)}, not installed: pip install 'alr_fast[train]'"
            )
        arguments = _parser().parse_args(argv)
        check_output(arguments.output)
        figure, text = arguments.make(arguments)
        save(figure, arguments.output)
        print(f"{text}; {arguments.output}")

    return exit_status(action)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m benchmarks.figures", allow_abbrev=False, description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(metavar="FIGURE", required=True, parser_class=CommandParser)

    def add(name: str, make, text: str, **runs: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, allow_abbrev=False, help=text, description=text)
        command.add_argument("run", type=Path, metavar="RUN", help="folder of a run", **runs)
        command.add_argument(
            "--output", type=Path, required=True, metavar="FILE", help="the PNG to write"
        )
        command.set_defaults(make=make)
        return command

    command = add(
        "memorisation", memorisation, "training and test accuracy of a method over the epochs"
    )
    command.add_argument("--method", default="ce", help="which method (default ce)")
    command = add("shares", shares, "correct, memorised and incorrect predictions over the epochs")
    command.add_argument(
        "--methods", nargs="+", metavar="METHOD", default=["ce", "alr"],
        help="which methods (default ce alr)",
    )  # fmt: skip
    command = add("tsne", tsne, "t-SNE of the penultimate features of test images", nargs="+")
    command.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="which methods (default: all of a run)"
    )
    command.add_argument(
        "--samples", type=int, default=1000, metavar="N",
        help="test images, drawn at random; all where there are fewer (default 1000)",
    )  # fmt: skip
    command.add_argument(
        "--perplexity", type=float, default=30.0, metavar="P",
        help="neighbours that t-SNE looks at, below the number of samples (default 30)",
    )  # fmt: skip
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the choice and of t-SNE (default 0)"
    )
    command.add_argument(
        "--data-root", metavar="DIR", help="where the data lies now, if not where the run found it"
    )
    command.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    return parser


# Runs.


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end.

    Attributes:
        path: Its folder.
        summary: What its ``summary.json`` says.
    """

    path: Path
    summary: dict[str, Any]

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """The methods it trained, with the results of each."""
        return self.summary["methods"]

    @property
    def noise(self) -> str:
        """``symmetric 20 %``, for example."""
        noise = self.summary["noise"]
        if noise["kind"] == "none":
            return "no noise added"
        return f"{noise['kind']} {100 * noise['requested_rate']:.3g} %"


def open_run(path: Path) -> FinishedRun:
    """Reads the summary of a run.

    Raises:
        UserError: There is no run in that folder, or it has not finished.
    """
    # Of os.path: the methods of Path raise where a folder on the way may not be read.
    if not os.path.isfile(path / "config.yaml"):
        raise UserError(
            f"{path}: not the folder of a run, it has no config.yaml; pass one that "
            "`python -m alr_fast.train` left, such as runs/latest"
        )
    if not is_finished(path):
        raise UserError(
            f"{path}: the run has not finished, it has no summary.json; finish it with --resume, "
            "or pass another run"
        )
    try:
        run = FinishedRun(path, json.loads((path / "summary.json").read_text(encoding="utf-8")))
        # All that is looked at later.
        _ = run.noise, run.summary["data"]["classes"]
        _ = [float(result["test_accuracy_last"]) for result in run.methods.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path / 'summary.json'}: cannot be read ({type(error).__name__}: {error}); train the "
            "run again"
        ) from error
    return run


def check_methods(run: FinishedRun, methods: Sequence[str], *, option: str) -> list[str]:
    """The methods, each once.

    Args:
        run: A run.
        methods: What the user asked for.
        option: The option that names them.

    Raises:
        UserError: The run did not train one of them.
    """
    for method in methods:
        if method not in run.methods:
            raise UserError(
                f"--{option} {method}: {run.path} did not train it; it has {', '.join(run.methods)}"
            )
    return list(dict.fromkeys(methods))


def read_metrics(
    run: FinishedRun, method: str, columns: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Columns of ``metrics.csv``, epoch by epoch; NaN where a field is empty.

    Args:
        run: A run.
        method: A method that it trained.
        columns: Names of the columns.

    Raises:
        UserError: The file is missing, or has no such lines or columns.
    """
    path = run.path / "metrics.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["method"] == method]
        found = {name: np.array([float(row[name] or "nan") for row in rows]) for name in columns}
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}; train the run again with csv among --log.to, as "
            "it is by default"
        ) from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path}: not the metrics of a run of this version ({reason}); train the run again"
        ) from error
    if not rows:
        raise UserError(f"{path}: no line of method {method}; train the run again")
    return found


# Output.


def check_output(path: Path) -> None:
    """Finds out before any work whether a file can be written there.

    Raises:
        UserError: It cannot.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--output {path}: a PNG is written; pass a name that ends in .png")
    if os.path.isdir(path):
        raise UserError(f"--output {path}: is a folder; pass the name of a file")
    if not os.path.isdir(path.parent):
        raise UserError(f"--output {path}: there is no folder {path.parent}; make it first")


def save(figure: "Figure", path: Path) -> None:
    """Writes a figure as a PNG; the file is complete or what it was before.

    Raises:
        UserError: It cannot be written.
    """
    with replacing(path) as fresh:
        # Without the name of the software: the same figure is the same file.
        figure.savefig(fresh, dpi=DPI, format="png", metadata={"Software": None})


def _new_figure(height: int) -> "Figure":
    from matplotlib.figure import Figure  # without pyplot: needs no display and keeps no state

    return Figure(figsize=(WIDTH / DPI, height / DPI), layout="constrained")


def _whole_epochs(axes: "Axes") -> None:
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# Memorisation.


def memorisation(arguments: argparse.Namespace) -> tuple["Figure", str]:
    """Figure and line of text of the subcommand."""
    run = open_run(arguments.run)
    (method,) = check_methods(run, [arguments.method], option="method")
    series = memorisation_series(run, method)
    right = run.methods[method].get("label_accuracy_before")
    known = "" if right is None else f" ({_percent(right)} of them right)"
    best = int(series["test_accuracy"].argmax())
    text = (
        f"{method}, {run.noise}: after epoch {series['epoch'][-1]:.0f} training accuracy "
        f"{_percent(series['train_accuracy'][-1])} on the given labels{known}, test accuracy "
        f"{_percent(series['test_accuracy'][-1])}; best {_percent(series['test_accuracy'][best])} "
        f"in epoch {series['epoch'][best]:.0f}"
    )
    return draw_memorisation(series, right, title=f"{method}, {run.noise}"), text


def memorisation_series(run: FinishedRun, method: str) -> dict[str, NDArray[np.float64]]:
    """``epoch``, ``train_accuracy`` and ``test_accuracy`` of a method; fractions of 1.

    Raises:
        UserError: The run has no such metrics.
    """
    return read_metrics(run, method, ("epoch", "train_accuracy", "test_accuracy"))


def draw_memorisation(
    series: Mapping[str, NDArray[np.float64]], right: float | None, *, title: str
) -> "Figure":
    """Training and test accuracy over the epochs.

    Args:
        series: What `memorisation_series` gave.
        right: Share of the given labels that are right: above it training accuracy can only come
            from wrong labels. None where nobody knows.
        title: What is shown.
    """
    figure = _new_figure(540)
    axes = figure.subplots()
    marker = "o" if len(series["epoch"]) == 1 else None  # a line needs two points
    for name, label, color, style in (
        ("train_accuracy", "training, on the given labels", ORANGE, "--"),
        ("test_accuracy", "test", BLUE, "-"),
    ):
        shown = 100 * series[name]
        axes.plot(series["epoch"], shown, style, color=color, marker=marker, lw=2, label=label)
    if right is not None:
        axes.axhline(
            100 * right, color="#555555", ls=":", lw=1.2, label="share of right given labels"
        )
    axes.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 102))
    axes.set_title(f"{title}\ntraining: {WHILE_TRAINING}", fontsize=10)
    axes.margins(x=0.02)
    _whole_epochs(axes)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    return figure


# Shares.


def shares(arguments: argparse.Namespace) -> tuple["Figure", str]:
    """Figure and line of text of the subcommand."""
    run = open_run(arguments.run)
    methods = check_methods(run, arguments.methods, option="methods")
    series = {method: share_series(run, method) for method in methods}
    texts = []
    for method, (_, groups) in series.items():
        parts = [
            f"{group} "
            + ", ".join(f"{_percent(values[-1])} {name}" for name, values in lines.items())
            for group, lines in groups.items()
        ]
        texts.append(f"{method}: {', '.join(parts)}")
    return draw_shares(series, title=run.noise), f"{run.noise}, last epoch: {'; '.join(texts)}"


Shares = dict[str, dict[str, NDArray[np.float64]]]


def share_series(run: FinishedRun, method: str) -> tuple[NDArray[np.float64], Shares]:
    """What a method predicted for training samples.

    Args:
        run: A run.
        method: A method that it trained.

    Returns:
        Numbers of the epochs, and for each of `GROUPS` its shares, which sum to 1 in every epoch.

    Raises:
        UserError: The run has no such metrics; true labels are not known; no label is wrong.
    """
    columns = ("epoch", "clean_correct", "mislabelled_correct", "mislabelled_memorised")
    epochs, right, corrected, memorised = read_metrics(run, method, columns).values()
    if np.isnan(right).any():
        raise UserError(
            f"{run.path}: which given labels are right is not known, so metrics.csv has no shares; "
            "pass a run with known true labels, for example one with --noise.kind symmetric"
        )
    if np.isnan(corrected).any() or np.isnan(memorised).any():
        raise UserError(
            f"{run.path}: no given label is wrong, so none can be memorised; pass a run with "
            "noise, for example one with --noise.kind symmetric"
        )
    # Not below 0, which rounding could make of it.
    rest = np.maximum(1 - corrected - memorised, 0)
    values = ((right, 1 - right), (corrected, memorised, rest))
    return epochs, {
        group: dict(zip(names, lines, strict=True))
        for (group, names), lines in zip(GROUPS.items(), values, strict=True)
    }


def draw_shares(
    series: Mapping[str, tuple[NDArray[np.float64], Shares]], *, title: str
) -> "Figure":
    """Stacked areas, a row for each of `GROUPS`, a column for each method.

    Args:
        series: What `share_series` gave for each method.
        title: What is shown.
    """
    figure = _new_figure(700)
    panels = figure.subplots(len(GROUPS), len(series), sharex="col", sharey=True, squeeze=False)
    for column, (method, (epochs, groups)) in enumerate(series.items()):
        # A step for each epoch: so that a run of one epoch shows, too.
        edges = np.append(epochs - 0.5, epochs[-1] + 0.5)
        for axes, (group, lines) in zip(panels[:, column], groups.items(), strict=True):
            axes.stackplot(
                edges,
                [100 * np.append(values, values[-1]) for values in lines.values()],
                colors=[COLORS[name] for name in lines],
                step="post",
            )
            axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 100))
            _whole_epochs(axes)
            if column == 0:
                axes.set_ylabel(f"{group} (%)")
        panels[0, column].set_title(method, fontsize=10)
        panels[-1, column].set_xlabel("epoch")
    from matplotlib.patches import Patch

    names = {
        "correct": "correct: the true class",
        "memorised": "memorised: the wrong given label",
        "incorrect": "incorrect: any other class",
    }
    handles = [Patch(color=COLORS[name], label=text) for name, text in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    figure.suptitle(f"{title}: {WHILE_TRAINING}", fontsize=10)
    return figure


# t-SNE.


@dataclass(frozen=True)
class Embedding:
    """Where the test images of one panel lie.

    Attributes:
        method: Method of the net.
        noise: Noise that it was trained with.
        test_accuracy: Of the net, on the whole test set.
        points: Places in the plane, [n, 2].
        labels: True classes, int64 [n].
    """

    method: str
    noise: str
    test_accuracy: float
    points: NDArray[np.float64]
    labels: NDArray[np.int64]

    @property
    def agreement(self) -> float:
        """Share of the points whose nearest other one has the same class."""
        from sklearn.neighbors import NearestNeighbors

        nearest = NearestNeighbors(n_neighbors=1).fit(self.points).kneighbors(return_distance=False)
        return float((self.labels[nearest[:, 0]] == self.labels).mean())


def tsne(arguments: argparse.Namespace) -> tuple["Figure", str]:
    """Figure and line of text of the subcommand."""
    from alr_fast.distributed import choose_device

    samples, perplexity = arguments.samples, arguments.perplexity
    if samples < FEWEST_SAMPLES:
        raise UserError(f"--samples {samples}: must be {FEWEST_SAMPLES} or more")
    if not 1 <= perplexity < samples:
        raise UserError(
            f"--perplexity {perplexity:g}: must be 1 or more and below the number of samples, "
            f"{samples}; lower it, or raise --samples"
        )
    if not 0 <= arguments.seed < 1 << 32:
        raise UserError(f"--seed {arguments.seed}: must be 0 or more and below 2^32")
    device = choose_device(arguments.device)
    runs = [open_run(path) for path in dict.fromkeys(arguments.run)]
    wanted = [
        check_methods(run, arguments.methods or list(run.methods), option="methods") for run in runs
    ]
    classes = runs[0].summary["data"]["classes"]
    for run, methods in zip(runs, wanted, strict=True):
        if run.summary["data"]["classes"] != classes:
            raise UserError(
                f"{run.path}: has other classes than {runs[0].path}; draw them into two figures"
            )
        for method in methods:
            _weights(run, method)
    embeddings = []
    for run, methods in zip(runs, wanted, strict=True):
        loader = image_loader(
            run, samples=samples, seed=arguments.seed, data_root=arguments.data_root, device=device
        )
        for method in methods:
            features, _, labels = penultimate(load_for(run, method, loader), loader)
            points = embed(features, perplexity=perplexity, seed=arguments.seed, what=run.path)
            accuracy = run.methods[method]["test_accuracy_last"]
            embeddings.append(Embedding(method, run.noise, accuracy, points, labels.numpy()))
    text = ", ".join(f"{e.method} ({e.noise}) {_percent(e.agreement)}" for e in embeddings)
    counts = " or ".join(dict.fromkeys(str(len(e.labels)) for e in embeddings))
    # Runs side by side where that makes a full grid, else one panel after the other.
    if 1 < len(runs) <= MOST_COLUMNS and all(methods == wanted[0] for methods in wanted):
        embeddings = [e for n in range(len(wanted[0])) for e in embeddings[n :: len(wanted[0])]]
        columns = len(runs)
    else:
        columns = min(len(embeddings), MOST_COLUMNS)
    figure = draw_tsne(embeddings, classes, columns=columns, title=f"t-SNE of {counts} test images")
    return figure, f"t-SNE of {counts} test images, nearest point of the same class: {text}"


def _weights(run: FinishedRun, method: str) -> Path:
    path = run.path / f"{method}{WEIGHTS}"
    if not os.path.isfile(path):
        raise UserError(f"{path}: the weights are missing; train the run again")
    return path


def image_loader(
    run: FinishedRun, *, samples: int, seed: int, data_root: str | None, device: torch.device
) -> "Loader":
    """Batches of some of a run's test images, each once, in the order of the test set.

    Args:
        run: A run, which says with its options what data it had.
        samples: How many images; all where there are fewer.
        seed: Of the choice.
        data_root: Where the data is now, None for where the run had it.
        device: Where the batches are wanted.

    Raises:
        UserError: The data is not there, or has other classes.
    """
    from alr_fast.cli import parse
    from alr_fast.data.loader import choose_loader, for_evaluation, make_loader
    from alr_fast.data.memory import decode_all
    from alr_fast.data.sampler import Sampler
    from alr_fast.data.setup import (
        evaluation_batch_size,
        hold_out,
        leave_out,
        load_data,
        make_transform,
        usable_cores,
    )

    path = run.path / "config.yaml"
    try:
        moved = [] if data_root is None else ["--data-root", data_root]
        config = parse(["--config", str(path), *moved])
        options = replace(config.data, ilsvrc12=None)
        if options.limit is None:  # else they decide which training images there are
            options = replace(options, label_file=None, label_key=None)
        data = load_data(options, config.data_root, say=lambda text: None)
        # As in training: the first training image may decide about the size of all.
        data = hold_out(leave_out(data), options.validation, seed=config.seed)
        transform = for_evaluation(make_transform(options, data.train))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    names = list(data.test.index.class_names)
    if names != run.summary["data"]["classes"]:
        raise UserError(
            f"{data.dataset.found.root if config.data_root else options.name}: has other classes "
            f"than {run.path} was trained on; pass the folder of its data as --data-root DIR"
        )
    order = np.random.default_rng(seed).permutation(len(data.test))
    split = data.test.take(np.sort(order[:samples]))
    choice = choose_loader("auto", split, transform, options.cache_mb)
    sampler = Sampler(len(split), evaluation_batch_size(transform.size))
    workers = usable_cores() if options.workers is None else options.workers
    decoded = None
    if choice.name == "memory" and split.images.array is None:
        decoded = decode_all(split, transform.size, resize=transform.resize, workers=workers)
    return make_loader(
        choice, split, sampler, transform, decoded=decoded, device=device, workers=workers
    )


def load_for(run: FinishedRun, method: str, loader: "Loader") -> nn.Module:
    """The net of a method on the device of a loader, ready for evaluation.

    Args:
        run: A run.
        method: A method that it trained.
        loader: Batches for the net.

    Raises:
        UserError: The weights are missing, or do not fit.
    """
    net = load_net(
        _weights(run, method),
        num_classes=loader.split.index.num_classes,
        channels=loader.split.channels,
        image_size=loader.transform.size,
        option="methods",
    )
    return net.to(loader.device, memory_format=torch.channels_last)


@torch.no_grad()
def penultimate(
    net: nn.Module, batches: Iterable[Mapping[str, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """What goes into the last linear layer of a net, and what comes out of it.

    Args:
        net: Net in evaluation mode.
        batches: ``image`` and ``label`` of batches; samples with the label -1, whose files gave no
            image, are left out.

    Returns:
        Features [n, F], logits [n, K] and labels [n], on the CPU.

    Raises:
        UserError: The logits are not what the last linear layer gives.
    """
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        for layer in layers[-1:]
    ]
    parts = []
    try:
        for batch in batches:
            seen.clear()
            logits = net(batch["image"])
            # Some nets average two heads, or end in a convolution.
            if not (
                seen
                and seen[-1][1].shape == logits.shape
                and torch.allclose(seen[-1][1], logits, equal_nan=True)
            ):
                raise UserError(
                    f"{type(net).__name__}: this net does not end in one linear layer, so there "
                    "are no features to show; pass runs with another --model.name"
                )
            keep = batch["label"] >= 0
            parts.append([t[keep].float().cpu() for t in (seen[-1][0], logits)])
            parts[-1].append(batch["label"][keep].cpu())
    finally:
        for hook in hooks:
            hook.remove()
    features, logits, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, logits, labels


def embed(features: Tensor, *, perplexity: float, seed: int, what: object) -> NDArray[np.float64]:
    """t-SNE of features [n, F]: places in the plane, [n, 2].

    Args:
        features: A row for each image.
        perplexity: See `sklearn.manifold.TSNE`.
        seed: Seed of t-SNE.
        what: Whose features these are, for the error.

    Raises:
        UserError: They are too few, not finite or all the same.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # which scikit-learn needs, too

    if perplexity >= len(features):
        raise UserError(
            f"--perplexity {perplexity:g}: too large for the {len(features)} test images of "
            f"{what}; lower it below their number"
        )
    if not features.isfinite().all() or (features == features[0]).all():
        raise UserError(
            f"{what}: the net's features are not finite or all the same, so there is nothing to "
            "show; train the run again with a lower --optim.lr"
        )
    reducer = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed)
    # In one thread: its many short steps take minutes where threads have to wait for each other
    # on a busy machine, and the same points come out on every machine of a kind.
    with threadpool_limits(1):
        return reducer.fit_transform(features.numpy()).astype(np.float64)


def draw_tsne(
    embeddings: Sequence[Embedding], classes: Sequence[str], *, columns: int, title: str
) -> "Figure":
    """A panel of points for each embedding, coloured by true class.

    Args:
        embeddings: What to draw, row by row.
        classes: Names of the classes.
        columns: Panels in a row.
        title: What is shown.
    """
    rows = -(-len(embeddings) // columns)
    side = min(WIDTH // columns, 600)
    figure = _new_figure(rows * (side + 45) + 120)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    few = len(classes) <= len(CLASS_COLORS)
    for axes in panels[len(embeddings) :]:
        axes.set_axis_off()
    for number, (axes, shown) in enumerate(zip(panels, embeddings, strict=False)):
        size = 60 / columns / max(len(shown.labels) / 300, 1) ** 0.5
        if few:
            for k, name in enumerate(classes):
                own = shown.points[shown.labels == k]
                axes.scatter(
                    *own.T, s=size, color=CLASS_COLORS[k], marker=CLASS_MARKERS[k], lw=0, label=name
                )
        else:  # more classes than colours that can be told apart
            points = axes.scatter(
                *shown.points.T, s=size, c=shown.labels, cmap="viridis", lw=0,
                vmin=0, vmax=len(classes) - 1,
            )  # fmt: skip
        axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
        if number + columns >= len(embeddings):
            axes.set_xlabel("t-SNE 1 (no unit)", fontsize=8)
        if number % columns == 0:
            axes.set_ylabel("t-SNE 2 (no unit)", fontsize=8)
        between = ", " if columns <= 2 else "\n"  # narrow panels have no room for both
        axes.set_title(
            f"{shown.method}{between}{shown.noise}\ntest accuracy {_percent(shown.test_accuracy)}",
            fontsize=9,
        )
    if few:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside lower center", ncols=5 if len(classes) > 5 else 10,
            fontsize=9, markerscale=(40 / handles[0].get_sizes()[0]) ** 0.5, title="true class",
        )  # fmt: skip
    else:
        figure.colorbar(points, ax=panels, label="number of the true class", shrink=0.6)
    figure.suptitle(f"{title}: features before the last layer", fontsize=10)
    return figure


if __name__ == "__main__":
    sys.exit(main())
