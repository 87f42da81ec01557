"""The content of a report, without layout."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Suspect:
    """A training sample with a suspicious label.

    Attributes:
        id: Stable sample id, unique among the suspects.
        path: Path of the sample; any text, empty if there is none.
        given: Class number of the given label.
        refined: Class number of the refined label.
        given_probability: Probability of the given label in the label bank, 0 to 1.
        refined_probability: Probability of the refined label in the bank ("confidence"), 0 to 1.
        score: Suspicion, 0 to 1; higher is more suspicious.
        changes: Number of recent changes of the refined label; None if unknown.
        image: Thumbnail, encoded as PNG, JPEG or WebP; None if there is no image.
        image_problem: Reason for the missing image, shown in its place; empty if none is expected.
        text: Text of the sample; None without one.
        cells: Name and value of each column of its row in a table.
        others: Most probable classes other than the given one, most probable first, and their
            probabilities.
        proposal: Class number that the mark "fix" selects, never the given label: the refined
            label, or the most probable other class; None if no other class has a probability.
        address: Address of the whole image, ``file:`` or relative to the page: a link, and what
            the enlarged view shows. Empty if there is none.
    """

    id: int
    path: str
    given: int
    refined: int
    given_probability: float
    refined_probability: float
    score: float
    changes: int | None
    image: bytes | None = None
    image_problem: str = ""
    text: str | None = None
    cells: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[int, float], ...] = ()
    proposal: int | None = None
    address: str = ""


@dataclass(frozen=True)
class Panel:
    """One plot of curves over epochs.

    Attributes:
        title: Title, for example "test accuracy".
        unit: Unit of the values and suffix of their text, "%" or "" (97.8 for 97.8 %).
        series: Name of each curve -> its epochs and values; None (or NaN) leaves a gap.
        warmup: Name of a curve -> number of its first epochs that were a warm-up, at whose end
            curves may jump.
    """

    title: str
    unit: str
    series: dict[str, tuple[list[int], list[float | None]]]
    warmup: Mapping[str, int] = field(default_factory=dict)

    def warmup_ends(self) -> list[tuple[int, str]]:
        """The last epoch of each warm-up, ascending, and a text with the curves that it is of."""
        by_epoch: dict[int, list[str]] = {}
        for name, epoch in self.warmup.items():
            by_epoch.setdefault(epoch, []).append(name)
        by_epoch.pop(0, None)
        return [
            (e, f"end of warm-up ({', '.join(names)})") for e, names in sorted(by_epoch.items())
        ]


@dataclass(frozen=True)
class ClassNoise:
    """Noise of one class.

    Attributes:
        name: Name of the class.
        samples: Number of training samples with this given label.
        changed: Number of those with another refined label.
        wrong: Number of those whose true class is another; None if unknown.
    """

    name: str
    samples: int
    changed: int
    wrong: int | None


@dataclass(frozen=True)
class Report:
    """The content of the page.

    Attributes:
        title: Heading of the page: the name of the data.
        facts: Summary, in order: name, value.
        notes: Remarks, a sentence each.
        class_names: Name of each class; any text.
        panels: Plots of curves.
        confusion: (given, refined, count) over the whole training set, counts above zero.
        classes: Noise per class.
        suspects: The most suspicious samples, most suspicious first.
        samples: Size of the whole training set.
        key: Key of the marks in the storage of the browser; identifies the samples and the source
            of their probabilities.
        noun: Plural of what is listed: images, texts or samples.
        change_epochs: Number of last epochs that `Suspect.changes` counts.
    """

    title: str
    facts: list[tuple[str, str]]
    notes: list[str]
    class_names: tuple[str, ...]
    panels: list[Panel]
    confusion: list[tuple[int, int, int]]
    classes: list[ClassNoise]
    suspects: list[Suspect]
    samples: int
    key: str
    noun: str = "samples"
    change_epochs: int = 10
