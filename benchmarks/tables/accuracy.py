"""Sections of `benchmarks.report` on the accuracy of the methods and on ALR's settings."""

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.harness.results import mean_and_deviation, mean_rows
from benchmarks.tables.markdown import markdown

Cells = tuple[Sequence[str], list[Sequence[str]]]


def percent(row: dict, figure: str) -> str:
    """Mean and sample standard deviation in percent; empty where the row has no such figure."""
    if figure not in row:
        return ""
    deviation = row.get(f"{figure}_std")
    shown = f"{100 * row[figure]:.1f}"
    return shown if deviation is None else f"{shown} ± {100 * deviation:.1f}"


def accuracy_cells(rows: list[dict]) -> Cells:
    """Names and lines of the table of accuracies, a line for each method and noise."""
    names = ("noise", "method", "last", "best", "labels right before", "after", "seeds")
    figures = ("test_accuracy_last", "test_accuracy_best", "label_accuracy_before",
               "label_accuracy_after")  # fmt: skip
    lines = [
        (
            row["noise"],
            f"`{row['method']}`",
            *(percent(row, figure) for figure in figures),
            str(row["seeds"]),
        )
        for row in mean_rows(rows)
    ]
    return names, lines


def by_method(rows: list[dict], figure: str) -> Cells:
    """Names and lines of a table with a line for each method and a column for each noise.

    The highest mean of a column is bold.
    """
    means = {(row["method"], row["noise"]): row for row in mean_rows(rows)}
    methods = list(dict.fromkeys(method for method, _ in means))
    noises = list(dict.fromkeys(noise for _, noise in means))
    highest = {
        noise: max(row[figure] for (_, n), row in means.items() if n == noise and row.get(figure))
        for noise in noises
    }
    lines = []
    for method in methods:
        line = [f"`{method}`"]
        for noise in noises:
            row = means.get((method, noise), {})
            cell = percent(row, figure)
            line.append(f"**{cell}**" if cell and row[figure] == highest[noise] else cell)
        lines.append(line)
    return ("method", *noises), lines


def _accuracy(rows: list[dict]) -> str:
    first = rows[0]
    facts = f"{first['train_samples']:,} training images, {first['epochs']} epochs, "
    seeds = sorted({row["seed"] for row in rows})
    facts += f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}."
    parts = [f"{facts} Test accuracy after the last epoch, in percent:\n"]
    parts.append(markdown(*by_method(rows, "test_accuracy_last")))
    parts.append("Of the best epoch, which test labels tell:\n")
    parts.append(markdown(*by_method(rows, "test_accuracy_best")))
    kept = [row for row in rows if row["label_accuracy_after"] is not None]
    changed = {row["method"] for row in kept
               if row["label_accuracy_after"] != row["label_accuracy_before"]}  # fmt: skip
    if changed:
        before = {row["noise"]: percent(row, "label_accuracy_before") for row in mean_rows(rows)}
        names, lines = by_method([r for r in kept if r["method"] in changed],
                                 "label_accuracy_after")  # fmt: skip
        lines = [("(as given)", *(before[noise] for noise in names[1:])), *lines]
        parts.append("Right training labels, of the methods that keep a label bank:\n")
        parts.append(markdown(names, lines))
    return "\n".join(parts)


def study_cells(rows: Sequence[dict]) -> Cells:
    """Names and lines of the table of ALR's settings, the best one by validation first."""
    found = ranked(rows)
    noises = list(found[0][1])
    names = ["setting", "validation, mean"]
    names += [f"{noise}: {what}" for noise in noises for what in ("val.", "test")]
    lines = []
    for name, of, mean in found:
        line = [name, f"{100 * mean:.2f}"]
        for noise in noises:
            for figure in ("validation_accuracy_last", "test_accuracy_last"):
                line.append(percent(of[noise], figure))
        lines.append(line)
    return names, lines


def ranked(rows: Sequence[dict]) -> list[tuple[str, dict[str, dict], float]]:
    """Settings by their mean validation accuracy over all noises, the best first.

    Returns:
        Name, mean rows by noise, mean validation accuracy.
    """
    by_name: dict[str, dict[str, dict]] = {}
    for row in mean_rows(rows):
        by_name.setdefault(row["method"], {})[row["noise"]] = row
    found = [
        (name, of, sum(row["validation_accuracy_last"] for row in of.values()) / len(of))
        for name, of in by_name.items()
    ]
    return sorted(found, key=lambda item: -item[2])


def _study(rows: list[dict]) -> str:
    return markdown(*study_cells(rows))


def transition_cells(rows: Sequence[dict]) -> Cells:
    """Names and lines of the table of estimated transition matrices."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["noise"], row["source"], row["net_epochs"]), []).append(row)
    lines = []
    for (noise, source, net_epochs), group in groups.items():
        error, spread = mean_and_deviation([row["error"] for row in group])
        accuracy = mean_and_deviation([row["test_accuracy_last"] for row in group])
        figures = dict(zip(("accuracy", "accuracy_std"), accuracy, strict=True))
        if figures["accuracy_std"] is None:
            del figures["accuracy_std"]
        shown = f"{error:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
        lines.append(
            (
                noise,
                source,
                "" if net_epochs is None else str(net_epochs),
                shown,
                percent(figures, "accuracy"),
                str(len(group)),
            )
        )
    names = ("noise", "source", "epochs of the net", "error", "forward correction, %", "seeds")
    return names, lines


def _transitions(rows: list[dict]) -> str:
    return markdown(*transition_cells(rows))


def plot_accuracy(path: Path, found: list[tuple[str, list[dict]]]) -> bool:
    """Bars of the last epoch for each noise and method; whether there is anything to draw."""
    from matplotlib.figure import Figure  # without pyplot: needs no display and keeps no state

    if not found:
        return False
    figure = Figure(figsize=(10, 3.6 * len(found)), layout="constrained")
    for axes, (device, rows) in zip(
        figure.subplots(len(found), squeeze=False)[:, 0], found, strict=True
    ):
        means = {(row["method"], row["noise"]): row for row in mean_rows(rows)}
        methods = list(dict.fromkeys(method for method, _ in means))
        noises = list(dict.fromkeys(noise for _, noise in means))
        width = 0.85 / len(methods)
        for place, method in enumerate(methods):
            known = [n for n in noises if (method, n) in means]
            axes.bar(
                [noises.index(n) + (place - len(methods) / 2 + 0.5) * width for n in known],
                [100 * means[method, n]["test_accuracy_last"] for n in known],
                width,
                yerr=[100 * means[method, n].get("test_accuracy_last_std", 0) for n in known],
                label=method,
                color=f"C{place}" if place < 10 else "black",
                error_kw={"elinewidth": 0.8},
            )
        axes.set_xticks(range(len(noises)), noises)
        axes.set(title=device, ylabel="test accuracy, last epoch, %", ylim=(0, 100))
        axes.grid(axis="y", alpha=0.3)
        axes.legend(ncols=4, fontsize="small", loc="lower left")
    figure.savefig(path, dpi=100, format="png", metadata={"Software": None})
    return True


_ACCURACY_NOTE = (
    "One recipe for all methods, net, schedule and batches the same. `smearing`, "
    "`backward_correction` and `forward_correction` are told the noise that was injected, which "
    "nobody knows in practice. `selc`, `sat` and `elr` have momentum and weights of their public "
    "code; ALR's come from the study below. Mean ± sample standard deviation over the seeds; bold: "
    "the highest mean of a column."
)

# Suite -> title, note, and what makes its text; as `benchmarks.report` wants them.
SECTIONS: dict[str, tuple[str, str, Callable[[list[dict]], str]]] = {
    "accuracy_digits": (
        "Accuracy under label noise: digits",
        f"The handwritten digits of scikit-learn, a small net. {_ACCURACY_NOTE}",
        _accuracy,
    ),
    "accuracy_cifar10": (
        "Accuracy under label noise: CIFAR-10 (JPEG), ResNet-34 on a GPU",
        f"The photographs of CIFAR-10, compressed as JPEG. {_ACCURACY_NOTE}",
        _accuracy,
    ),
    "accuracy_cifar10-small": (
        "Accuracy under label noise: CIFAR-10 (JPEG), a part of it and a small net",
        "For a CPU: 10,000 training and 2,000 test images, a small convolutional net, few epochs. "
        f"It says little about the whole data set. {_ACCURACY_NOTE}",
        _accuracy,
    ),
    "study_digits": (
        "Settings of ALR: digits",
        "a: momentum, lam: entropy weight, warm-up in epochs. Chosen by the accuracy on a tenth of "
        "the training samples with their noisy labels, mean over the noises; test accuracy stands "
        "beside it. Seeds other than those of the accuracy tables.",
        _study,
    ),
    "study_cifar10": (
        "Settings of ALR: CIFAR-10 (JPEG), ResNet-34 on a GPU",
        "As for the digits.",
        _study,
    ),
    "transitions": (
        "Estimated transition matrices: digits",
        "Error: mean over the classes of the summed absolute differences to the matrix that the "
        "injected noise has, 0 to 2. Beside it the test accuracy of forward correction with that "
        "matrix after its last epoch.",
        _transitions,
    ),
}
