"""t-SNE of the penultimate features of runs."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.errors import UserError, naming_options
from benchmarks.figures.features import image_loader, load_for, penultimate, weights_of
from benchmarks.figures.runs import FinishedRun, check_methods, check_tested, open_run
from benchmarks.figures.style import CLASS_COLORS, CLASS_MARKERS, WIDTH, new_figure, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST_SAMPLES = 5
MOST_COLUMNS = 4  # of panels


@dataclass(frozen=True)
class Embedding:
    """The points of one panel."""

    method: str
    noise: str  # that the model was trained with
    test_accuracy: float  # of the model on the whole test set
    points: NDArray[np.float64]  # [n, 2], in the plane
    labels: NDArray[np.int64]  # [n], true classes

    @property
    def agreement(self) -> float:
        """Share of the points whose nearest neighbour has the same class."""
        from sklearn.neighbors import NearestNeighbors

        nearest = NearestNeighbors(n_neighbors=1).fit(self.points).kneighbors(return_distance=False)
        return float((self.labels[nearest[:, 0]] == self.labels).mean())


def tsne(arguments: argparse.Namespace) -> tuple["Figure", str]:
    """Figure and line of text of the subcommand."""
    from alr_fast.training.distributed import choose_device

    _check_numbers(arguments.samples, arguments.perplexity, arguments.seed)
    with naming_options(device="device"):
        device = choose_device(arguments.device)
    runs = [open_run(path) for path in dict.fromkeys(arguments.run)]
    wanted = [check_methods(run, arguments.methods or list(run.methods)) for run in runs]
    classes = runs[0].summary["data"]["classes"]
    _check_runs(runs, wanted)
    embeddings = []
    for run, methods in zip(runs, wanted, strict=True):
        seed = arguments.seed
        loader = image_loader(
            run, samples=arguments.samples, seed=seed, data_root=arguments.data_root, device=device
        )
        for method in methods:
            features, _, labels = penultimate(load_for(run, method, loader), loader)
            points = embed(features, perplexity=arguments.perplexity, seed=seed, source=run.path)
            accuracy = run.methods[method]["test_accuracy_last"]
            embeddings.append(Embedding(method, run.noise, accuracy, points, labels.numpy()))
    text = ", ".join(f"{e.method} ({e.noise}) {percent(e.agreement)}" for e in embeddings)
    counts = " or ".join(dict.fromkeys(str(len(e.labels)) for e in embeddings))
    # One column for each run if that fills the grid, otherwise one panel after the other.
    if 1 < len(runs) <= MOST_COLUMNS and all(methods == wanted[0] for methods in wanted):
        embeddings = [e for n in range(len(wanted[0])) for e in embeddings[n :: len(wanted[0])]]
        columns = len(runs)
    else:
        columns = min(len(embeddings), MOST_COLUMNS)
    figure = draw_tsne(embeddings, classes, columns=columns, title=f"t-SNE of {counts} test images")
    return figure, f"t-SNE of {counts} test images, nearest point of the same class: {text}"


def _check_numbers(samples: int, perplexity: float, seed: int) -> None:
    if samples < FEWEST_SAMPLES:
        raise UserError(f"must be {FEWEST_SAMPLES} or more", argument="samples", value=samples)
    if not 1 <= perplexity < samples:
        raise UserError(
            f"must be 1 or more and below the number of samples, {samples}; lower it, or raise "
            "--samples",
            argument="perplexity",
            value=f"{perplexity:g}",
        )
    if not 0 <= seed < 1 << 32:
        raise UserError("must be 0 or more and below 2^32", argument="seed", value=seed)


def _check_runs(runs: Sequence[FinishedRun], wanted: Sequence[Sequence[str]]) -> None:
    for run, methods in zip(runs, wanted, strict=True):
        check_tested(run)
        if run.summary["data"]["classes"] != runs[0].summary["data"]["classes"]:
            raise UserError(
                f"{run.path}: has other classes than {runs[0].path}; draw them into two figures"
            )
        for method in methods:
            weights_of(run, method)


def embed(features: Tensor, *, perplexity: float, seed: int, source: object) -> NDArray[np.float64]:
    """t-SNE of the features [n, F] of images: points in the plane, [n, 2].

    Args:
        features: One row for each image.
        perplexity: See `sklearn.manifold.TSNE`.
        seed: Seed of t-SNE.
        source: The run of the features, for messages.

    Raises:
        UserError: The features are too few, not finite or all the same.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # which scikit-learn needs, too

    if perplexity >= len(features):
        raise UserError(
            f"too large for the {len(features)} test images of {source}; lower it below their "
            "number",
            argument="perplexity",
            value=f"{perplexity:g}",
        )
    if not features.isfinite().all() or (features == features[0]).all():
        raise UserError(
            f"{source}: the features of the model are not finite or all the same, so there is "
            "nothing to show; train the run again with a lower --optim.lr"
        )
    reducer = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed)
    # One thread: on a busy machine its many short steps take minutes if threads wait for each
    # other, and the result does not depend on the number of threads.
    with threadpool_limits(1):
        return reducer.fit_transform(features.numpy()).astype(np.float64)


def draw_tsne(
    embeddings: Sequence[Embedding], classes: Sequence[str], *, columns: int, title: str
) -> "Figure":
    """A panel of points for each embedding, coloured by true class.

    Args:
        embeddings: The panels, row by row.
        classes: Names of the classes.
        columns: Panels in a row.
        title: Description of the points.
    """
    rows = -(-len(embeddings) // columns)
    side = min(WIDTH // columns, 600)
    figure = new_figure(rows * (side + 45) + 120)
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
        else:  # more classes than distinguishable colours
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
            f"{shown.method}{between}{shown.noise}\ntest accuracy {percent(shown.test_accuracy)}",
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
