"""Images that occur several times in a data set, byte for byte.

An image in two classes has a wrong label in one of them, and an image in train and in test makes
the test too easy. Neither is left out by itself: which of them is right, only a person can tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.broken import default_exclusion_file
from alr_fast.data.cache import cache_folder
from alr_fast.data.checks.verify import VerifyReport
from alr_fast.data.datasets import Split
from alr_fast.data.tables.cells import CsvWriter
from alr_fast.utils.files import replacing, writing
from alr_fast.utils.text import is_utf8

TWO_LABELS = "same image under two labels"
TRAIN_AND_TEST = "in train and in test"
SAME_LABEL = "same image, same label"
KINDS = (TWO_LABELS, TRAIN_AND_TEST, SAME_LABEL)
COLUMNS = ("id", "path", "label", "reason", "group", "same_as")
_TESTS = ("test", "val")


@dataclass(frozen=True)
class Duplicates:
    """Groups of equal images.

    Attributes:
        reports: The scanned splits by name.
        split: Position in ``reports`` of each image, int64 [M], group after group.
        row: Its row in that split, int64 [M].
        group: Its group, int64 [M], counted from 0.
        kinds: Kinds of each group, of `KINDS`.
    """

    reports: Mapping[str, VerifyReport]
    split: NDArray[np.int64]
    row: NDArray[np.int64]
    group: NDArray[np.int64]
    kinds: list[tuple[str, ...]]

    def counts(self) -> dict[str, int]:
        """Number of images in the groups of each kind that was found, in the order of `KINDS`."""
        sizes = np.bincount(self.group, minlength=len(self.kinds)).tolist()
        found = dict.fromkeys(KINDS, 0)
        for size, kinds in zip(sizes, self.kinds, strict=True):
            for kind in kinds:
                found[kind] += size
        return {kind: count for kind, count in found.items() if count}

    def examples(self, kind: str, most: int | None) -> list[str]:
        """The paths and labels of the first ``most`` groups of a kind, one text for each group."""
        groups = [number for number, kinds in enumerate(self.kinds) if kind in kinds]
        return [
            " = ".join(member.shown for member in self.members(number)) for number in groups[:most]
        ]

    def members(self, group: int) -> list["Member"]:
        """The images of a group."""
        names = list(self.reports)
        first, end = np.searchsorted(self.group, [group, group + 1]).tolist()
        members = []
        for split, row in zip(
            self.split[first:end].tolist(), self.row[first:end].tolist(), strict=True
        ):
            index = self.reports[names[split]].index
            label = index.class_names[index.labels[row]]
            sample_id = int(index.sample_ids[row])
            members.append(Member(names[split], sample_id, index.paths[row], label))
        return members

    def write(self, path: Path, split: str) -> int:
        """Writes the images of one split that occur several times as a CSV file with the columns
        `COLUMNS`, which training can leave out like those of any exclusion list.

        Returns:
            Their number; if there are none, no file is left.

        Raises:
            UserError: It cannot be written.
        """
        rows = [
            (*own[1:], ", ".join(kinds), group, " = ".join(m.shown for m in members if m != own))
            for group, kinds in enumerate(self.kinds)
            for members in [self.members(group)]
            for own in members
            if own.split == split
        ]
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not rows:
                path.unlink(missing_ok=True)
                return 0
        all_utf8 = all(is_utf8(text) for row in rows for text in row if isinstance(text, str))
        with (
            replacing(path) as fresh,
            fresh.open("wb") as file,
            CsvWriter(file, all_utf8=all_utf8) as writer,
        ):
            writer.write_row(COLUMNS)
            for row in rows:
                writer.write_row(row)
        return len(rows)


class Member(NamedTuple):
    """One of several equal images."""

    split: str
    sample_id: int
    path: str
    label: str

    @property
    def shown(self) -> str:
        """Path and label, for messages."""
        return f"{self.path} ({self.label})"


def find_duplicates(reports: Mapping[str, VerifyReport]) -> Duplicates:
    """Groups the readable images of scanned splits by their content.

    Args:
        reports: By name of the split. A file that several training splits list counts once; a file
            that train and test list is a duplicate.
    """
    digests = np.concatenate([report.digests for report in reports.values()])
    lengths = [len(report.index) for report in reports.values()]
    split = np.repeat(np.arange(len(lengths)), lengths)
    row = np.concatenate([np.arange(length) for length in lengths])
    label = np.concatenate([report.index.labels for report in reports.values()])
    places = np.flatnonzero(digests.any(axis=1) & ~_listed_before(reports))
    places = places[np.argsort(digests[places, 0], kind="stable")]
    same = (digests[places[1:]] == digests[places[:-1]]).all(axis=1)
    again = np.concatenate([[False], same])[: len(places)]  # the same as the one before
    inside = again | np.concatenate([same, [False]])[: len(places)]
    group = np.cumsum(~again[inside]) - 1
    places = places[inside]
    # In the order of their first images, like every list of a data set.
    order = np.lexsort((places, places[np.searchsorted(group, group)]))
    places = places[order]
    group = np.cumsum(np.diff(group[order], prepend=-1) != 0) - 1
    tests = np.array([name in _TESTS for name in reports])
    count = int(group[-1]) + 1 if len(group) else 0
    low, high = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    np.minimum.at(low, group, label[places])
    np.maximum.at(high, group, label[places])
    in_test = np.bincount(group, tests[split[places]], minlength=count)
    members = np.bincount(group, minlength=count)
    two_labels, both = low != high, (in_test > 0) & (in_test < members)
    kinds = [
        (*((TWO_LABELS,) if two else ()), *((TRAIN_AND_TEST,) if leaked else ())) or (SAME_LABEL,)
        for two, leaked in zip(two_labels.tolist(), both.tolist(), strict=True)
    ]
    return Duplicates(reports, split[places], row[places], group, kinds)


def _listed_before(reports: Mapping[str, VerifyReport]) -> NDArray[np.bool_]:
    """Whether an earlier split of the same role lists the file of each row, of all splits."""
    seen = {role: np.empty(0, dtype=np.int64) for role in (False, True)}
    parts = []
    for name, report in reports.items():
        hashes, role = report.index.paths.hashes(), name in _TESTS
        parts.append(np.isin(hashes, seen[role]))
        seen[role] = np.concatenate([seen[role], hashes])
    return np.concatenate(parts)


def duplicates_file(split: Split) -> Path:
    """The file to which `verify` writes the images of a split that occur several times."""
    return cache_folder() / "duplicates" / default_exclusion_file(split).name
