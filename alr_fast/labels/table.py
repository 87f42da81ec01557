"""The labels with their scores as a table: CSV, or Parquet with pyarrow."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.tables.writing import save_table
from alr_fast.errors import UserError
from alr_fast.labels.remarks import estimate, truth, unseen
from alr_fast.labels.scored import ScoredLabels
from alr_fast.utils.command import need
from alr_fast.utils.files import replacing
from alr_fast.utils.text import is_utf8


def export(
    labels: ScoredLabels, path: Path, *, soft: bool = False, most_suspicious_first: bool = False
) -> None:
    """Writes the table, atomically.

    Args:
        labels: The samples with their class probabilities.
        path: File to write, .csv or .parquet; an existing file is replaced.
        soft: Whether to add the probabilities of all classes.
        most_suspicious_first: Order by suspicion, ties by id; else the rows keep their order.

    Raises:
        UserError: The file cannot be written, or Parquet needs a package that is not installed.
    """
    parquet = path.suffix != ".csv"
    if parquet:
        need(("pyarrow",), "train", what="Parquet")
    rows = labels.ranked_pieces() if most_suspicious_first else labels.slices()
    pieces = (labels.columns(some, soft=soft) for some in rows)
    # Training compares the class names; the method is for the reader.
    facts = {"method": labels.method, "class_names": json.dumps(labels.class_names)}
    save_table(path, pieces, not_utf8=_columns_not_utf8(labels), metadata=facts)


def _columns_not_utf8(labels: ScoredLabels) -> set[str]:
    """Columns of texts that contain non-UTF-8 bytes."""
    columns = set() if _are_utf8(labels.paths or ()) else {"path"}
    if not _are_utf8(labels.class_names):
        columns |= {"given_name", "refined_name", "label_name"}
    return columns


def _are_utf8(texts: Iterable[str]) -> bool:
    return all(map(is_utf8, texts))


def write_marks(
    labels: ScoredLabels, path: Path, sample_ids: NDArray[np.int64], chosen: NDArray[np.int64]
) -> None:
    """Writes labels that people chose, as `alr-fast train --labels` reads them.

    Args:
        labels: The samples.
        path: CSV file; an existing one is replaced.
        sample_ids: Ids of some samples, int64 [M].
        chosen: The class chosen for each, int64 [M].

    Raises:
        UserError: An id is unknown, a class has no name, the lengths differ, or the file cannot be
            written.
    """
    if len(sample_ids) != len(chosen):
        raise UserError(
            f"has {len(chosen):,} entries for {len(sample_ids):,} ids", argument="labels"
        )
    unknown = np.setdiff1d(sample_ids, labels.sample_ids)
    if len(unknown):
        raise UserError(f"there is no sample {unknown[0]}", argument="sample_ids")
    outside = chosen[(chosen < 0) | (chosen >= labels.num_classes)]
    if len(outside):
        raise UserError(f"there is no class {outside[0]}", argument="labels")
    by_id = np.argsort(labels.sample_ids, kind="stable")
    rows = by_id[np.searchsorted(labels.sample_ids[by_id], sample_ids)]
    columns: dict[str, Any] = {"id": sample_ids}
    if labels.paths is not None:
        columns["path"] = [labels.paths[row] for row in rows.tolist()]
    columns |= {"given_label": labels.labels[rows], "label": chosen}
    for name in ("given", "label"):
        numbers = columns["given_label" if name == "given" else name]
        columns[f"{name}_name"] = [labels.class_names[k] for k in numbers]
    save_table(path, [columns], not_utf8=_columns_not_utf8(labels))


def save_transition(labels: ScoredLabels, path: Path) -> None:
    """Writes the transition matrix of the refined labels, K rows of K probabilities, as CSV.

    Raises:
        UserError: There are too many classes, the noise cannot be estimated, or the file cannot be
            written.
    """
    if labels.transition is None:
        raise UserError(
            "no matrix is estimated"
            + (
                f": {labels.estimate_problem}; train for more epochs"
                if labels.estimate_problem
                else f" for {labels.num_classes:,} classes; leave it out"
            ),
            argument="path",
            value=path,
        )
    with replacing(path) as fresh:
        np.savetxt(fresh, labels.transition, delimiter=",", fmt="%.9g")


def summary_lines(labels: ScoredLabels) -> list[str]:
    """Estimated noise rate; true rate and error of the transition matrix if truth is known."""
    lines = [
        f"{labels.method}: {labels.refined_share:.1%} of {len(labels):,} labels refined to another "
        f"class{'' if labels.complete else ', in a run that was not finished'}",
        f"{labels.method}: {estimate(labels)}",
        *unseen(labels),
    ]
    if labels.clean_labels is not None:
        lines += truth(labels)
        if labels.transition_error is not None:
            lines[-1] += (
                f"; error of the estimated transition matrix {labels.transition_error:.3f} (0 to 2)"
            )
    return lines
