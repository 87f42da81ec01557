"""Unreadable images: named once, counted, limited to a share of a split, and listed in files."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from alr_fast.data.cache import cache_folder
from alr_fast.data.datasets import Split
from alr_fast.data.index import SampleIndex
from alr_fast.data.label_files.matching import match_table
from alr_fast.data.tables import TableError, as_text, open_table
from alr_fast.data.tables.cells import CsvWriter
from alr_fast.errors import UserError
from alr_fast.utils.files import replacing, writing
from alr_fast.utils.shell import python_command
from alr_fast.utils.text import is_utf8

EXCLUSION_COLUMNS = ("id", "path", "reason")
_BATCH_ROWS = 1 << 16


class BrokenSamples:
    """Samples of a split whose images turned out to be unreadable.

    Args:
        split: The samples.
        max_broken: Largest share of them that may be broken before the run stops.
        log: Takes a line of text for each broken sample, once.
        alone: Whether `report` may stop the run; with several processes only `merge` does, in all.

    Attributes:
        reasons: sample_id -> (path, reason).
        log: As the argument.
    """

    def __init__(
        self,
        split: Split,
        max_broken: float = 0.001,
        log: Callable[[str], None] = lambda text: None,
        *,
        alone: bool = True,
    ) -> None:
        self._split = split
        self._max_broken = max_broken
        self.log = log
        self._alone = alone
        self.reasons: dict[int, tuple[str, str]] = {}

    def report(self, row: int, reason: str) -> None:
        """Records that the image of a row is unreadable.

        Raises:
            UserError: More than the accepted share of the split is broken, and this is the only
                process.
        """
        sample_id = int(self._split.index.sample_ids[row])
        if sample_id in self.reasons:
            return
        self.reasons[sample_id] = (self._split.index.paths[row], reason)
        name = self._split.images.name(row)
        self._log_broken(sample_id, name, reason)
        if self._alone:
            self._check_share(name, reason)

    @property
    def too_many(self) -> bool:
        """Whether more than the accepted share is broken."""
        return len(self.reasons) > self._max_broken * len(self._split)

    def merge(self, reasons: dict[int, tuple[str, str]]) -> None:
        """Adds the broken samples of other processes or of an earlier part of the run.

        Args:
            reasons: See the attribute.

        Raises:
            UserError: More than the accepted share of the split is broken.
        """
        for sample_id in sorted(reasons.keys() - self.reasons.keys()):
            self.reasons[sample_id] = reasons[sample_id]
            self._log_broken(sample_id, *reasons[sample_id])
        if self.reasons:
            self._check_share(*next(iter(self.reasons.values())))

    def _log_broken(self, sample_id: int, name: str, reason: str) -> None:
        self.log(f"broken: {name} (id {sample_id}): {reason}; left out")

    def _check_share(self, name: str, reason: str) -> None:
        if self.too_many:
            raise UserError(
                f"{len(self.reasons):,} of {len(self._split):,} files are broken, more than this "
                f"share; {name} cannot be read as an image ({reason}); find them all with "
                f"`{verify_command(self._split)}`, or accept a larger share",
                argument="max_broken",
                value=self._max_broken,
            )


def verify_command(split: Split) -> str:
    """The command that finds the broken files of a split, from any folder."""
    arguments = split.arguments or (os.path.abspath(split.images.root),)
    return python_command("alr_fast.data", "verify", *arguments)


def default_exclusion_file(split: Split) -> Path:
    """The file to which `verify` writes the exclusion list of a split, and where training finds it.

    Its name depends on the samples and on the folder: another copy has other broken files.
    """
    root = os.fsencode(Path(split.images.root).absolute())
    name = f"{split.index.sample_fingerprint()[:32]}-{hashlib.sha256(root).hexdigest()[:16]}.csv"
    return cache_folder() / "excluded" / name


def find_exclusions(split: Split, exclude: str) -> Path | None:
    """The file that lists the samples of a split to leave out; None if there is none.

    Args:
        split: The samples.
        exclude: Name of the file; ``auto`` for the list that `verify` wrote, if it did; or
            ``none``.

    Raises:
        UserError: There is no file of this name.
    """
    if exclude == "none":
        return None
    if exclude == "auto":
        if split.values is not None:  # `verify` writes no list for images in memory
            return None
        try:
            path = default_exclusion_file(split)
        except UserError:  # without a cache folder there is no list
            return None
        return path if os.path.exists(path) else None  # also where the cache is closed
    if not os.path.exists(exclude):
        raise UserError(
            f"no such file; pass a table of `{python_command('alr_fast.export', 'RUN')}`, a list "
            f"that `--output` of `{verify_command(split)}` names, or auto",
            argument="exclude",
            value=exclude,
        )
    return Path(exclude)


def write_exclusions(path: Path, samples: Iterable[tuple[int, str, str]]) -> None:
    """Writes an exclusion list, replacing the file in one step.

    Args:
        path: File to write; its folder is made.
        samples: sample_id, path and reason of each sample.

    Raises:
        UserError: The file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(samples)
    all_utf8 = all(map(is_utf8, (text for _, *texts in rows for text in texts)))
    with (
        replacing(path) as fresh,
        fresh.open("wb") as file,
        CsvWriter(file, all_utf8=all_utf8) as writer,
    ):
        writer.write_row(EXCLUSION_COLUMNS)
        for row in rows:
            writer.write_row(row)


def read_exclusions(
    table: Path, index: SampleIndex, log: Callable[[str], None] = lambda text: None
) -> dict[int, str]:
    """Reads an exclusion list: row -> reason, rows ascending.

    Args:
        table: Table with a column path, and usually id and reason.
        index: The whole split.
        log: Takes a line about samples that are unknown.

    Raises:
        UserError: The file cannot be read, or most of its samples are not in the split.
    """
    try:
        with open_table(table) as listed:
            if listed.find("path") is None:
                raise TableError(
                    table, "is no exclusion list, it has no column path; name another, or pass none"
                )
            matched = match_table(listed, index)
            reasons = [""] * len(matched.rows)
            if "reason" in listed.columns:
                batches = listed.batches(["reason"], _BATCH_ROWS)
                reasons = [
                    text for batch in batches for text in as_text(batch.columns["reason"]).tolist()
                ]
    except TableError as error:
        raise UserError(str(error), argument="table", value=error.where) from error
    for remark in (*listed.remarks, *matched.remarks):
        log(remark)
    rows = zip(matched.rows.tolist(), reasons, strict=True)
    return dict(sorted((row, reason) for row, reason in rows if row >= 0))
