"""Tables of `benchmarks.classifier`."""

from collections.abc import Sequence

from alr_fast.training.output.averages import mean_and_deviation
from benchmarks.harness.averages import grouped
from benchmarks.tables.accuracy import seeds_of
from benchmarks.tables.markdown import Cells, deviation, markdown, spread
from benchmarks.tables.section import Section


def _shown(rows: Sequence[dict], figure: str, digits: int = 1, factor: float = 100) -> str:
    return deviation(*mean_and_deviation([factor * row[figure] for row in rows]), digits)


def _mean(rows: Sequence[dict], figure: str) -> float:
    return mean_and_deviation([row[figure] for row in rows])[0]


def digits_cells(rows: Sequence[dict]) -> Cells:
    """One line for each noise and variant."""
    lines = []
    for (noise,), of_noise in grouped(rows, "noise").items():
        before = _shown(of_noise, "label_accuracy_before").split(" ")[0]
        for (variant,), group in grouped(of_noise, "variant").items():
            lines.append(
                (
                    noise,
                    f"`{variant}`" if variant.startswith("ALRC") else variant,
                    _shown(group, "test_accuracy"),
                    before,
                    _shown(group, "label_accuracy_after"),
                    _shown(group, "average_precision", 3, 1),
                    f"{_mean(group, 'seconds'):.2f}",
                )
            )
    names = ("noise", "classifier", "test, %", "labels right before, %", "after, %",
             "average precision of wrong labels", "seconds")  # fmt: skip
    return names, lines


def study_cells(rows: Sequence[dict]) -> Cells:
    """One line for each setting, by mean accuracy on held-out noisy labels, the best first."""
    groups = grouped(rows, "variant")
    ranked = sorted(groups.items(), key=lambda item: -_mean(item[1], "held_out_accuracy"))
    noises = list(dict.fromkeys(row["noise"] for row in rows))
    lines = []
    for (variant,), group in ranked:
        by_noise = grouped(group, "noise")
        tests = [f"{100 * _mean(by_noise[noise,], 'test_accuracy'):.1f}" for noise in noises]
        held_out = f"{100 * _mean(group, 'held_out_accuracy'):.2f}"
        lines.append((variant, held_out, *tests, f"{_mean(group, 'seconds'):.2f}"))
    return ("setting", "held out, mean", *(f"{n}: test" for n in noises), "seconds"), lines


def speed_cells(rows: Sequence[dict]) -> Cells:
    """One line for each batch size, and for each fit of the digits."""
    lines = []
    for row in rows:
        line = [row["variant"], f"{row['samples']:,} x {row.get('features', 64):,}"]
        line += [str(row.get("batch_size", "")), spread(row, "seconds", 3)]
        if "bare_seconds" in row:
            line += [spread(row, "bare_seconds", 3), spread(row, "relative_speed")]
            line.append(f"{100 * row['loss_share']:.0f} %")
        lines.append([*line, *[""] * (7 - len(line))])
    names = ("what", "data", "batch", "seconds", "bare loop, s", "relative speed", "in the loss")
    return names, lines


def _digits(rows: list[dict]) -> str:
    return f"{rows[0]['train_samples']:,} training samples, {seeds_of(rows)}.\n\n" + markdown(
        *digits_cells(rows)
    )


SECTIONS = {
    "classifier_speed": Section(
        "Speed of ALRClassifier",
        "An epoch of the linear model with ALR, and of the bare loop of gathering, two matrix "
        "products and SGD (no loss, no history) in turns; and whole fits of the digits.",
        "classifier --suite speed",
        lambda rows: markdown(*speed_cells(rows)),
    ),
    "classifier_digits": Section(
        "ALRClassifier under label noise: digits",
        "64 pixels as features, a fifth of the samples for testing. `CleanLearning` of cleanlab "
        "trains five cross-validated models and one on the labels that it keeps. Mean ± sample "
        "standard deviation.",
        "classifier --suite digits",
        _digits,
    ),
    "classifier_study": Section(
        "Settings of ALRClassifier: digits",
        "Chosen by the accuracy on a fifth of the training samples with their noisy labels, mean "
        "over the noises; test accuracy is shown for comparison. The seeds differ from those of "
        "the other table.",
        "classifier --suite study",
        lambda rows: markdown(*study_cells(rows)),
    ),
}
