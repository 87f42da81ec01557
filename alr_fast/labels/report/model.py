"""The values that a report shows, without any layout."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Suspect:
    """A training sample whose label is doubted.

    Attributes:
        id: Stable sample id, unique among the suspects.
        path: Where the image comes from; any text.
        given: Class number of the given label.
        refined: Class number of the refined label.
        given_probability: Probability of the given label in the sample's target, 0 to 1.
        refined_probability: Probability of the refined label in it ("confidence"), 0 to 1.
        score: Suspicion, 0 to 1; higher is more suspicious.
        changes: How often the refined class changed lately.
        image: Thumbnail, encoded as PNG, JPEG or WebP; None where there is none.
        image_problem: Why there is none; shown in its place.
    """

    id: int
    path: str
    given: int
    refined: int
    given_probability: float
    refined_probability: float
    score: float
    changes: int
    image: bytes | None
    image_problem: str = ""


@dataclass(frozen=True)
class Panel:
    """One plot of curves over epochs.

    Attributes:
        title: What is plotted, e.g. "test accuracy".
        unit: "%" or "", written behind the values, which are in this unit (97.8 for 97.8 %).
        series: Epochs and values of each curve, by its name; None (or NaN) leaves a gap.
    """

    title: str
    unit: str
    series: dict[str, tuple[list[int], list[float | None]]]


@dataclass(frozen=True)
class ClassNoise:
    """Noise of one class.

    Attributes:
        name: Its name.
        samples: Training samples with this given label.
        changed: How many of them have another refined label.
        wrong: How many of them are truly of another class; None where nobody knows.
    """

    name: str
    samples: int
    changed: int
    wrong: int | None


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
        title: Heading of the page.
        facts: Summary, in order: what, value.
        notes: Remarks, a sentence each.
        class_names: Name of each class; any text.
        panels: Plots of curves.
        confusion: (given, refined, count) of the whole training set, counts above zero.
        classes: Noise per class.
        suspects: The most suspicious samples, most suspicious first.
        samples: Size of the whole training set.
        key: Under which the browser keeps the marks; names run and method.
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
