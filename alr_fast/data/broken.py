"""Files that give no image: said once, counted, and a limit to how many a run accepts."""

import csv
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from alr_fast.data.datasets import Split, cache_folder
from alr_fast.data.index import SampleIndex
from alr_fast.errors import UserError


class BrokenSamples:
    """Samples of a split that turned out to give no image.

    Args:
        split: The samples.
        max_share: Largest share of them that may be broken before the run stops.
        alone: Whether `report` may stop it; with several processes only `merge` does, in all.
        log: Takes a line of text for each broken sample, once.

    Attributes:
        reasons: id -> (path, reason).
    """

    def __init__(
        self,
        split: Split,
        max_share: float = 0.001,
        log: Callable[[str], None] = lambda text: None,
        *,
        alone: bool = True,
    ) -> None:
        self._split = split
        self._max_share = max_share
        self._say = log
        self._alone = alone
        self.reasons: dict[int, tuple[str, str]] = {}

    def report(self, row: int, reason: str) -> None:
        """Notes that a row gave no image.

        Raises:
            UserError: More than the accepted share of the split is broken, and this is the only
                process.
        """
        sample = int(self._split.index.sample_ids[row])
        if sample in self.reasons:
            return
        name = self._split.images.name(row)
        self.reasons[sample] = (self._split.index.paths[row], reason)
        self._say(f"broken: {name} (id {sample}): {reason}; left out")
        if self._alone:
            self._check_share(name, reason)

    @property
    def too_many(self) -> bool:
        """Whether more than the accepted share is broken."""
        return len(self.reasons) > self._max_share * len(self._split)

    def merge(self, reasons: dict[int, tuple[str, str]]) -> None:
        """Takes over what other processes or an earlier part of the run noted.

        Args:
            reasons: See the attribute.

        Raises:
            UserError: More than the accepted share of the split is broken.
        """
        for sample in sorted(reasons.keys() - self.reasons.keys()):
            path, reason = self.reasons[sample] = reasons[sample]
            self._say(f"broken: {path} (id {sample}): {reason}; left out")
        if self.too_many:
            path, reason = next(iter(self.reasons.values()))
            self._check_share(path, reason)

    def _check_share(self, name: str, reason: str) -> None:
        if self.too_many:
            raise UserError(
                f"{name}: cannot be read as an image ({reason}); with it {len(self.reasons):,} of "
                f"{len(self._split):,} files are broken, more than --data.max_broken "
                f"{self._max_share:g}; find them all with `python -m alr_fast.data verify "
                f"{self._split.images.root}`"
            )


EXCLUSION_COLUMNS = ("id", "path", "reason")


def default_exclusion_file(split: Split) -> Path:
    """Where `verify` writes the list of a split's broken files, and training looks for it.

    Bound to the samples and to the folder that they were verified in: a copy has faults of its own.
    """
    root = os.fsencode(Path(split.images.root).absolute())
    name = f"{split.index.sample_fingerprint()[:32]}-{hashlib.sha256(root).hexdigest()[:16]}.csv"
    return cache_folder() / "excluded" / name


def write_exclusions(path: Path, rows: Iterable[tuple[int, str, str]]) -> None:
    """Writes (id, path, reason) lines, replacing the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(dir=path.parent, suffix=".csv")
    try:
        with open(handle, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(EXCLUSION_COLUMNS)
            writer.writerows(rows)
        os.replace(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise


def read_exclusions(path: Path, index: SampleIndex) -> np.ndarray:
    """Rows, int64 ascending, that a list excludes.

    Args:
        path: CSV file with the columns id, path and reason.
        index: The whole split.

    Raises:
        UserError: The file cannot be read, or names a sample that the split does not have.
    """
    rows: set[int] = set()
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            if not {"id", "path"} <= set(reader.fieldnames or ()):
                raise UserError(
                    f"--data.exclude {path}: is no exclusion list, it lacks the columns id and path"
                )
            for line in reader:
                try:
                    row = int(index.rows_of([int(line["id"])])[0])
                    known = index.paths[row] == line["path"]
                except (KeyError, TypeError, ValueError):
                    known = False
                if not known:
                    raise UserError(
                        f"{path}: its sample {line.get('id')} ({line.get('path')}) is not in this "
                        "data set; write the list anew with `python -m alr_fast.data verify`"
                    )
                rows.add(row)
    except OSError as error:
        raise UserError(
            f"--data.exclude {path}: {error.strerror or error}; pass a list that "
            "`python -m alr_fast.data verify` wrote, or auto"
        ) from error
    except csv.Error as error:
        raise UserError(f"--data.exclude {path}: is not a CSV list: {error}") from error
    return np.array(sorted(rows), dtype=np.int64)
