"""Curves over the epochs: memorisation, and shares of predictions."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alr_fast.errors import UserError, naming_options
from benchmarks.figures.runs import (
    FinishedRun,
    check_methods,
    check_tested,
    open_run,
    read_metrics,
)
from benchmarks.figures.style import BLUE, COLORS, ORANGE, new_figure, percent, whole_epochs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUPS = {
    "samples with a right label": ("correct", "incorrect"),
    "mislabelled samples": ("correct", "memorised", "incorrect"),
}
MEMORISATION = ("epoch", "train_accuracy", "test_accuracy")  # columns of metrics.csv
WHILE_TRAINING = "predictions while training, with the crops and flips of the recipe"


def memorisation(arguments: argparse.Namespace) -> tuple["Figure", str]:
    """Figure and line of text of the subcommand."""
    run = open_run(arguments.run)
    check_tested(run)
    with naming_options(methods="method"):
        (method,) = check_methods(run, [arguments.method])
    series = read_metrics(run, method, MEMORISATION)
    right = run.methods[method].get("label_accuracy_before")
    known = "" if right is None else f" ({percent(right)} of them right)"
    best = int(series["test_accuracy"].argmax())
    text = (
        f"{method}, {run.noise}: after epoch {series['epoch'][-1]:.0f} training accuracy "
        f"{percent(series['train_accuracy'][-1])} on the given labels{known}, test accuracy "
        f"{percent(series['test_accuracy'][-1])}; best {percent(series['test_accuracy'][best])} "
        f"in epoch {series['epoch'][best]:.0f}"
    )
    return draw_memorisation(series, right, title=f"{method}, {run.noise}"), text


def draw_memorisation(
    series: Mapping[str, NDArray[np.float64]], right: float | None, *, title: str
) -> "Figure":
    """Training and test accuracy over the epochs.

    Args:
        series: The columns `MEMORISATION` of a method.
        right: Share of the given labels that are right; a higher training accuracy can only come
            from wrong labels. None if unknown.
        title: Method and noise.
    """
    figure = new_figure(540)
    axes = figure.subplots()
    marker = "o" if len(series["epoch"]) == 1 else None  # a line needs two points
    for name, label, color, style in (
        ("train_accuracy", "training, on the given labels", ORANGE, "--"),
        ("test_accuracy", "test", BLUE, "-"),
    ):
        shown = 100 * series[name]
        axes.plot(series["epoch"], shown, style, color=color, marker=marker, lw=2, label=label)
    if right is not None:
        label = "share of right given labels"
        axes.axhline(100 * right, color="#555555", ls=":", lw=1.2, label=label)
    axes.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 102))
    axes.set_title(f"{title}\ntraining: {WHILE_TRAINING}", fontsize=10)
    axes.margins(x=0.02)
    whole_epochs(axes)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    return figure


def shares(arguments: argparse.Namespace) -> tuple["Figure", str]:
    """Figure and line of text of the subcommand."""
    run = open_run(arguments.run)
    methods = check_methods(run, arguments.methods)
    series = {method: share_series(run, method) for method in methods}
    texts = []
    for method, (_, groups) in series.items():
        parts = []
        for group, lines in groups.items():
            last = ", ".join(f"{percent(values[-1])} {name}" for name, values in lines.items())
            parts.append(f"{group} {last}")
        texts.append(f"{method}: {', '.join(parts)}")
    return draw_shares(series, title=run.noise), f"{run.noise}, last epoch: {'; '.join(texts)}"


Shares = dict[str, dict[str, NDArray[np.float64]]]


def share_series(run: FinishedRun, method: str) -> tuple[NDArray[np.float64], Shares]:
    """Shares of the predictions of a method for training samples.

    Returns:
        Numbers of the epochs, and for each of `GROUPS` its shares, which sum to 1 in every epoch.

    Raises:
        UserError: The run has no such metrics, true labels are unknown, or no label is wrong.
    """
    columns = ("epoch", "clean_correct", "mislabelled_correct", "mislabelled_memorised")
    epochs, right, corrected, memorised = read_metrics(run, method, columns).values()
    if np.isnan(right).any():
        raise UserError(
            f"{run.path}: the true labels are not known, so metrics.csv has no shares; pass a run "
            "with known true labels, for example one with --noise.kind symmetric"
        )
    if np.isnan(corrected).any() or np.isnan(memorised).any():
        raise UserError(
            f"{run.path}: no given label is wrong, so none can be memorised; pass a run with "
            "noise, for example one with --noise.kind symmetric"
        )
    # Rounding could make it negative.
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
        series: The result of `share_series` for each method.
        title: The noise.
    """
    figure = new_figure(700)
    panels = figure.subplots(len(GROUPS), len(series), sharex="col", sharey=True, squeeze=False)
    for column, (method, (epochs, groups)) in enumerate(series.items()):
        # Steps, so that a single epoch is visible, too.
        edges = np.append(epochs - 0.5, epochs[-1] + 0.5)
        for axes, (group, lines) in zip(panels[:, column], groups.items(), strict=True):
            axes.stackplot(
                edges,
                [100 * np.append(values, values[-1]) for values in lines.values()],
                colors=[COLORS[name] for name in lines],
                step="post",
            )
            axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 100))
            whole_epochs(axes)
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
