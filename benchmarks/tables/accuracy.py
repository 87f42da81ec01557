"""Tables and plot of `benchmarks.accuracy`, `benchmarks.study` and `benchmarks.transitions`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from alr_fast.training.output.averages import mean_and_deviation
from benchmarks.harness.averages import grouped, mean_rows
from benchmarks.tables.markdown import Cells, deviation, markdown
from benchmarks.tables.plots import draw_panels
from benchmarks.tables.section import Plot, Section


def percent(row: dict, figure: str) -> str:
    """Mean and sample standard deviation in percent; empty if the row has no such figure."""
    if figure not in row:
        return ""
    std = row.get(f"{figure}_std")
    return deviation(100 * row[figure], None if std is None else 100 * std, 1)


def seeds_of(rows: Iterable[dict]) -> str:
    """The seeds of the rows in words."""
    seeds = sorted({row["seed"] for row in rows})
    return f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"


def accuracy_cells(rows: list[dict]) -> Cells:
    """Table of accuracies, one line for each method and noise."""
    names = ("noise", "method", "last", "best", "label accuracy before", "after", "seeds")
    figures = ("test_accuracy_last", "test_accuracy_best", "label_accuracy_before",
               "label_accuracy_after")  # fmt: skip
    lines = []
    for row in mean_rows(rows):
        cells = (percent(row, figure) for figure in figures)
        lines.append((row["noise"], f"`{row['method']}`", *cells, str(row["seeds"])))
    return names, lines


def _means(rows: list[dict]) -> tuple[dict[tuple[str, str], dict], list[str], list[str]]:
    """Mean rows by method and noise, the methods, the noises."""
    means = {(row["method"], row["noise"]): row for row in mean_rows(rows)}
    methods, noises = (list(dict.fromkeys(names)) for names in zip(*means, strict=True))
    return means, methods, noises


def by_method(rows: list[dict], figure: str) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Methods by noises; the highest mean of a column is bold."""
    means, methods, noises = _means(rows)
    highest = {
        noise: max((row.get(figure, 0) for (_, n), row in means.items() if n == noise), default=0)
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
    parts = [
        f"{first['train_samples']:,} training images, {first['epochs']} epochs, {seeds_of(rows)}. "
        "Test accuracy after the last epoch, in percent:\n",
        markdown(*by_method(rows, "test_accuracy_last")),
        "After the best epoch, which is selected on test labels:\n",
        markdown(*by_method(rows, "test_accuracy_best")),
    ]
    kept = [row for row in rows if row["label_accuracy_after"] is not None]
    changed = {row["method"] for row in kept
               if row["label_accuracy_after"] != row["label_accuracy_before"]}  # fmt: skip
    if changed:
        before = {row["noise"]: percent(row, "label_accuracy_before") for row in mean_rows(rows)}
        kept = [row for row in kept if row["method"] in changed]
        names, lines = by_method(kept, "label_accuracy_after")
        lines.insert(0, ("(as given)", *(before[noise] for noise in names[1:])))
        parts.append("Accuracy of the training labels, for methods with a label bank:\n")
        parts.append(markdown(names, lines))
    return "\n".join(parts)


def validation_mean(means: dict[str, dict]) -> float:
    """Mean validation accuracy of a setting over the noises: noise -> mean row."""
    return sum(row["validation_accuracy_last"] for row in means.values()) / len(means)


def study_cells(rows: Sequence[dict]) -> Cells:
    """Table of ALR's settings, by mean validation accuracy over all noises, the best first."""
    by_name = {
        name: {row["noise"]: row for row in group}
        for (name,), group in grouped(mean_rows(rows), "method").items()
    }
    ranked = sorted(by_name.items(), key=lambda item: -validation_mean(item[1]))
    noises = list(ranked[0][1])
    names = ["setting", "validation, mean"]
    names += [f"{noise}: {what}" for noise in noises for what in ("val.", "test")]
    figures = ("validation_accuracy_last", "test_accuracy_last")
    lines = []
    for name, means in ranked:
        cells = (percent(means[noise], figure) for noise in noises for figure in figures)
        lines.append([name, f"{100 * validation_mean(means):.2f}", *cells])
    return names, lines


def transition_cells(rows: Sequence[dict]) -> Cells:
    """Table of estimated transition matrices."""
    lines = []
    for (noise, source, epochs), group in grouped(rows, "noise", "source", "net_epochs").items():
        error = deviation(*mean_and_deviation([row["error"] for row in group]), 3)
        percents = [100 * row["test_accuracy_last"] for row in group]
        accuracy = deviation(*mean_and_deviation(percents), 1)
        lines.append((noise, source, str(epochs or ""), error, accuracy, str(len(group))))
    names = ("noise", "source", "epochs of the model", "error", "forward correction, %", "seeds")
    return names, lines


def plot_accuracy(path: Path, found: list[tuple[str, list[dict]]]) -> bool:
    """Draws bars of the last epoch for each noise and method, one panel for each device."""

    def draw(axes, rows: list[dict]) -> None:
        means, methods, noises = _means(rows)
        width = 0.85 / len(methods)
        for place, method in enumerate(methods):
            known = [n for n in noises if "test_accuracy_last" in means.get((method, n), {})]
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
        axes.set(ylabel="test accuracy, last epoch, %", ylim=(0, 100))
        axes.grid(axis="y", alpha=0.3)
        axes.legend(ncols=4, fontsize="small", loc="lower left")

    return draw_panels(path, found, draw, size=(10, 3.6), dpi=100, stacked=True)


_NOTE = (
    "One recipe for all methods, with the same model, schedule and batches. `smearing`, "
    "`backward_correction` and `forward_correction` use the noise that was injected, which is "
    "unknown in practice. `selc`, `sat` and `elr` have the momentum and weights of their public "
    "code; ALR's were chosen in the study below. Mean ± sample standard deviation over the seeds; "
    "bold: the highest mean of a column."
)


def _accuracy_section(suite: str, data: str, note: str, *, root: bool = True) -> Section:
    title = f"Accuracy under label noise: {data}"
    return Section(
        title,
        f"{note} {_NOTE}",
        f"accuracy --suite {suite}" + (" --data-root DIR" if root else ""),
        _accuracy,
        plot=Plot(f"accuracy-{suite}.png", f"{title}: last epoch", plot_accuracy),
    )


SECTIONS = {
    "accuracy_digits": _accuracy_section(
        "digits", "digits", "The handwritten digits of scikit-learn, a small model.", root=False
    ),
    "accuracy_cifar10": _accuracy_section(
        "cifar10",
        "CIFAR-10 (JPEG), ResNet-34 on a GPU",
        "The photographs of CIFAR-10, compressed as JPEG.",
    ),
    "accuracy_cifar10-small": _accuracy_section(
        "cifar10-small",
        "CIFAR-10 (JPEG), a subset and a small model",
        "For a CPU: 10,000 training and 2,000 test images, a small convolutional network, few "
        "epochs. The results hardly apply to the whole data set.",
    ),
    "study_digits": Section(
        "Settings of ALR: digits",
        "a: momentum, lam: entropy weight, warm-up in epochs. Chosen by the accuracy on a tenth of "
        "the training samples with their noisy labels, mean over the noises; test accuracy is "
        "shown for comparison. The seeds differ from those of the accuracy tables.",
        "study --suite digits",
        lambda rows: markdown(*study_cells(rows)),
    ),
    "study_cifar10": Section(
        "Settings of ALR: CIFAR-10 (JPEG), ResNet-34 on a GPU",
        "As for the digits.",
        "study --suite cifar10 --data-root DIR",
        lambda rows: markdown(*study_cells(rows)),
    ),
    "transitions": Section(
        "Estimated transition matrices: digits",
        "Error: mean over the classes of the summed absolute differences from the matrix of the "
        "injected noise, 0 to 2. Next to it the test accuracy of forward correction with the "
        "estimated matrix after its last epoch.",
        "transitions",
        lambda rows: markdown(*transition_cells(rows)),
    ),
}
