"""Section of `benchmarks.report` on finding wrong labels."""

from collections.abc import Callable, Sequence

from benchmarks.harness.results import mean_and_deviation
from benchmarks.tables.markdown import markdown

Cells = tuple[Sequence[str], list[Sequence[str]]]
OWN = "alr_fast"
SCORE = "score"  # of alr_fast; its other ones are what it is made of


def _groups(rows: Sequence[dict]) -> dict[tuple[str, str, str], list[dict]]:
    """The rows of each noise, source and score: one for each seed."""
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["noise"], row["source"], row["score"]), []).append(row)
    return groups


def _mean(group: Sequence[dict], figure: str) -> float:
    return mean_and_deviation([row[figure] for row in group])[0]


def _shown(group: Sequence[dict], figure: str, digits: int = 3) -> str:
    mean, deviation = mean_and_deviation([row[figure] for row in group])
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _best(rows: Sequence[dict], noise: str, source: str) -> list[dict]:
    """The score of a source with the highest mean average precision; of alr_fast the one it has."""
    groups = [
        group
        for (of_noise, of_source, score), group in _groups(rows).items()
        if (of_noise, of_source) == (noise, source) and (source != OWN or score == SCORE)
    ]
    return max(groups, key=lambda group: _mean(group, "average_precision"))


def suspects_cells(rows: Sequence[dict]) -> Cells:
    """Names and lines of the table: a line for each noise and source of a ranking."""
    sources = list(dict.fromkeys(row["source"] for row in rows))
    lines = []
    for noise in dict.fromkeys(row["noise"] for row in rows):
        best = {source: _best(rows, noise, source) for source in sources}
        highest = max(_mean(group, "average_precision") for group in best.values())
        for source, group in best.items():
            precision = _shown(group, "average_precision")
            if _mean(group, "average_precision") == highest:
                precision = f"**{precision}**"
            lines.append(
                (
                    noise,
                    source,
                    precision,
                    _shown(group, "auroc"),
                    f"{_mean(group, 'training_seconds'):.1f}",
                    f"{_mean(group, 'scoring_seconds'):.2f}",
                    f"{_mean(group, 'noise_rate'):.3f}",
                    f"{_mean(group, 'noise_rate_estimate'):.3f}",
                    f"{_mean(group, 'transition_error'):.3f}",
                )
            )
    names = ("noise", "ranking", "average precision", "AUROC", "training, s", "scoring, s",
             "labels wrong", "estimated", "transition error")  # fmt: skip
    return names, lines


def parts_cells(rows: Sequence[dict]) -> Cells:
    """Names and lines of the table of average precisions of all scores, by noise."""
    groups = _groups(rows)
    noises = list(dict.fromkeys(noise for noise, _, _ in groups))
    lines = []
    for source, score in dict.fromkeys((source, score) for _, source, score in groups):
        means = [_mean(groups[noise, source, score], "average_precision") for noise in noises]
        lines.append((source, score, *(f"{mean:.4f}" for mean in means)))
    return ("ranking", "score", *noises), lines


def _suspects(rows: list[dict]) -> str:
    seeds = sorted({row["seed"] for row in rows})
    facts = (
        f"{rows[0]['samples']:,} training images; {'seeds' if len(seeds) > 1 else 'seed'} "
        f"{', '.join(map(str, seeds))}; {rows[0]['jobs']} trainings at a time.\n"
    )
    parts = [facts, markdown(*suspects_cells(rows))]
    parts += ["Average precision of each score:\n", markdown(*parts_cells(rows))]
    return "\n".join(parts)


_NOTE = (
    "Samples ranked by how suspicious their given label is; average precision and AUROC of finding "
    "those that were changed. cleanlab gets the rows of the label bank that alr_fast trained, or "
    "predictions of five nets trained with cross entropy on four fifths each; of its five rankings "
    "the best in each line counts. Training seconds of five nets are added up; evaluation on the "
    "test set after each epoch is in those of alr_fast alone. The share of wrong labels and the "
    "error of the transition matrix (0 to 2) are estimated from the same."
)

SECTIONS: dict[str, tuple[str, str, Callable[[list[dict]], str]]] = {
    "suspects_digits": ("Finding wrong labels: digits", _NOTE, _suspects),
    "suspects_cifar10-small": (
        "Finding wrong labels: CIFAR-10 (JPEG), a part of it and a small net",
        "For a CPU: 5,000 images and 12 epochs, after 6 of which ALR begins to refine. That is too "
        "little for the label bank to change a label, so nothing is estimated to be wrong, and the "
        f"rankings are those of nets that know little. {_NOTE}",
        _suspects,
    ),
    "suspects_cifar10": (
        "Finding wrong labels: CIFAR-10 (JPEG), 20,000 images and a small net on a GPU",
        "Trained on the GPU, scored on a CPU afterwards. The weights of the score were chosen on "
        "this seed, and on another one of the digits. "
        f"{_NOTE}",
        _suspects,
    ),
}
