"""What can be said about the number of wrong labels, in words: the same everywhere."""

from alr_fast.labels.scored import ScoredLabels
from alr_fast.utils.text import percent


def estimate(labels: ScoredLabels) -> str:
    """The estimated share of wrong labels, or why there is none, a clause."""
    if labels.estimate_problem:
        return f"how many labels are wrong cannot be estimated: {labels.estimate_problem}"
    found = (
        f"{percent(labels.noise_rate)} of the labels are estimated to be wrong, "
        f"{labels.suspicious:,} are suspicious"
    )
    if labels.noise.given_share >= 0.5:
        found += " (by predictions alone: too few epochs to refine)"
    return found


def truth(labels: ScoredLabels) -> list[str]:
    """The share of wrong labels, if the true labels are known."""
    if labels.clean_labels is None:
        return []
    wrong = float((labels.labels != labels.clean_labels).mean())
    return [f"{percent(wrong)} of the given labels are wrong"]


def unseen(labels: ScoredLabels) -> list[str]:
    """A sentence about samples of whose labels nothing is known, if there are any."""
    if not labels.never_seen:
        return []
    count = f"{labels.never_seen:,} of {len(labels):,} samples"
    return [f"{count} were never trained on: nothing is known about their labels."]


def below_the_limit(labels: ScoredLabels, shown: int) -> list[str]:
    """A sentence about the samples in a list that are not suspicious, if there are any.

    Args:
        labels: All samples.
        shown: Number of samples in the list, the most suspicious ones.
    """
    if labels.suspicious >= shown:
        return []
    if labels.suspicious == 0:
        return [
            "None of these samples counts as suspicious: they have the highest scores, no more."
        ]
    return [
        f"The first {labels.suspicious:,} of these {shown:,} samples count as suspicious; the "
        "others have the next highest scores."
    ]
