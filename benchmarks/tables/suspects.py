"""Tables of `benchmarks.suspects`."""

from collections.abc import Sequence

from alr_fast.training.output.averages import mean_and_deviation
from benchmarks.harness.averages import grouped
from benchmarks.tables.accuracy import seeds_of
from benchmarks.tables.markdown import Cells, deviation, markdown
from benchmarks.tables.section import Section

OWN = "alr_fast"
SCORE = "score"  # of alr_fast; its other scores are the components of this one


def mean(group: Sequence[dict], figure: str) -> float:
    return mean_and_deviation([row[figure] for row in group])[0]


def _shown(group: Sequence[dict], figure: str) -> str:
    return deviation(*mean_and_deviation([row[figure] for row in group]), 3)


def best(rows: Sequence[dict]) -> list[dict]:
    """The rows of the score with the highest mean average precision."""
    groups = grouped(rows, "score").values()
    return max(groups, key=lambda group: mean(group, "average_precision"))


def suspects_cells(rows: Sequence[dict]) -> Cells:
    """Table with one line for each noise and source of a ranking, with its best score.

    Of alr_fast the line shows its one score.
    """
    shown = [row for row in rows if row["source"] != OWN or row["score"] == SCORE]
    lines = []
    for (noise,), of_noise in grouped(shown, "noise").items():
        by_source = {
            source: best(group) for (source,), group in grouped(of_noise, "source").items()
        }
        highest = max(mean(group, "average_precision") for group in by_source.values())
        for source, group in by_source.items():
            precision = _shown(group, "average_precision")
            if mean(group, "average_precision") == highest:
                precision = f"**{precision}**"
            figures = {"training_seconds": 1, "scoring_seconds": 2, "noise_rate": 3,
                       "noise_rate_estimate": 3, "transition_error": 3}  # fmt: skip
            means = (f"{mean(group, name):.{digits}f}" for name, digits in figures.items())
            lines.append((noise, source, precision, _shown(group, "auroc"), *means))
    names = ("noise", "ranking", "average precision", "AUROC", "training, s", "scoring, s",
             "wrong labels", "estimated", "transition error")  # fmt: skip
    return names, lines


def parts_cells(rows: Sequence[dict]) -> Cells:
    """Table of the average precisions of all scores, one column for each noise."""
    noises = list(dict.fromkeys(row["noise"] for row in rows))
    lines = []
    for (source, score), group in grouped(rows, "source", "score").items():
        by_noise = grouped(group, "noise")
        means = (mean(by_noise[noise,], "average_precision") for noise in noises)
        lines.append((source, score, *(f"{mean:.4f}" for mean in means)))
    return ("ranking", "score", *noises), lines


def _text(rows: list[dict]) -> str:
    return (
        f"{rows[0]['samples']:,} training images; {seeds_of(rows)}; {rows[0]['jobs']} parallel "
        f"trainings.\n\n{markdown(*suspects_cells(rows))}\n"
        f"Average precision of each score:\n\n{markdown(*parts_cells(rows))}"
    )


_NOTE = (
    "Samples ranked by the suspicion that their given label is wrong; average precision and AUROC "
    "of finding those that were changed. cleanlab gets the rows of the label bank that alr_fast "
    "trained, or predictions of five models trained with cross entropy on four fifths each; the "
    "table shows the best of its five rankings in each line. Training seconds are the sum over the "
    "five models; those of alr_fast alone include evaluation on the test set after each epoch. "
    "The share of wrong labels and the error of the transition matrix (0 to 2) are estimated from "
    "the same input."
)

SECTIONS = {
    "suspects_digits": Section(
        "Finding wrong labels: digits", _NOTE, "suspects --suite digits", _text
    ),
    "suspects_cifar10-small": Section(
        "Finding wrong labels: CIFAR-10 (JPEG), a subset and a small model",
        "For a CPU: 5,000 images and 12 epochs; ALR begins to refine after 6 of them. That is too "
        "short for the label bank to change a label, so no label is estimated to be wrong, and the "
        f"rankings come from poorly trained models. {_NOTE}",
        "suspects --suite cifar10-small --data-root DIR",
        _text,
    ),
    "suspects_cifar10": Section(
        "Finding wrong labels: CIFAR-10 (JPEG), 20,000 images and a small model on a GPU",
        "Trained on the GPU, scored on a CPU afterwards. The weights of the score were chosen on "
        f"this seed, and on another seed of the digits. {_NOTE}",
        "suspects --suite cifar10 --data-root DIR",
        _text,
    ),
}
