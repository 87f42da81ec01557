"""Penultimate features of a run, embedded in the plane."""

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alr_fast.errors import UserError, naming_options
from alr_fast.training.config.schema import WEIGHTS
from alr_fast.training.teacher import load_model
from benchmarks.figures.runs import FinishedRun, check_methods, open_run
from benchmarks.figures.style import (
    CLASS_COLORS,
    CLASS_MARKERS,
    MOST_COLUMNS,
    WIDTH,
    _new_figure,
    _percent,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from alr_fast.data.loaders.base import Loader


FEWEST_SAMPLES = 5


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
    from alr_fast.training.distributed import choose_device

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
    with naming_options(device="device"):
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
    from alr_fast.data.loaders.choose import choose_loader, make_loader
    from alr_fast.data.loaders.memory import decode_all
    from alr_fast.data.sampler import SequentialSampler
    from alr_fast.data.transform import for_evaluation
    from alr_fast.training.config.command_line import parse
    from alr_fast.training.loaders import evaluation_batch_size, make_transform
    from alr_fast.training.run_data import hold_out, leave_out, load_data
    from alr_fast.utils.machine import usable_cores

    path = run.path / "config.yaml"
    try:
        moved = [] if data_root is None else ["--data-root", data_root]
        config = parse(["--config", str(path), *moved])
        options = replace(config.data, ilsvrc12=None)
        if options.limit is None:  # else they decide which training images there are
            options = replace(options, label_file=None, label_key=None)
        data = load_data(options, config.data_root, log=lambda text: None)
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
    sampler = SequentialSampler(len(split), evaluation_batch_size(transform.size))
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
    with naming_options(weights="methods"):
        net = load_model(
            _weights(run, method),
            num_classes=loader.split.index.num_classes,
            channels=loader.split.channels,
            image_size=loader.transform.size,
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
