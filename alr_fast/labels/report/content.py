"""From scored labels to the content of their report."""

import hashlib
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alr_fast.labels.proposals import other_classes
from alr_fast.labels.remarks import below_the_limit, estimate, unseen
from alr_fast.labels.report.model import ClassNoise, Panel, Report, Suspect
from alr_fast.labels.report.views import NO_ROOM, Views
from alr_fast.labels.scored import ScoredLabels
from alr_fast.labels.suspicion import LAST_EPOCHS, SUSPICIOUS
from alr_fast.utils.text import percent

# Bytes of the page, of everything but the suspects (mostly plotly.js), and of a suspect without its
# texts and image.
_PAGE_BYTES, _OTHER_BYTES, _SUSPECT_BYTES = 14_500_000, 6_200_000, 300
_CHARACTER_BYTES = 6  # of a character in JSON, at most
LEAST_SHOWN = 10  # samples that are shown whatever their scores


def make_report(
    labels: ScoredLabels,
    views: Views,
    *,
    title: str,
    most: int,
    facts: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
    panels: Sequence[Panel] = (),
    more: str = "most= shows more, to_csv lists all",
    missing_images: str = "",
    key: str = "",
    epochs: int | None = None,
) -> Report:
    """Makes the content of a report; reads the images and texts of the suspects.

    Args:
        labels: The samples.
        views: What is shown of a sample.
        title: Heading of the page: the name of the data.
        most: Largest number of suspects.
        facts: Name and value of more facts, before those of the labels.
        notes: More remarks.
        panels: Curves.
        more: How to list more suspects, a clause.
        missing_images: What to do if images cannot be shown, a sentence.
        key: Tells the marks of this page from those of other pages about the same samples.
        epochs: Epochs that the changes of refined labels were recorded in; None if unknown.
    """
    rows = labels.most_suspicious(most, above=SUSPICIOUS, least=LEAST_SHOWN)
    suspects = _suspects(labels, views, rows)
    suspicious = labels.suspicious
    by_class = np.bincount(labels.labels, minlength=labels.num_classes)
    remarks = []
    if not labels.complete:
        remarks.append("The run was not finished: the labels are those of its last checkpoint.")
    if suspicious > len(suspects):
        remarks.append(
            f"The first {len(suspects):,} of {suspicious:,} suspicious samples are here; {more}."
        )
    if labels.estimate_problem:
        clause = estimate(labels)
        remarks.append(f"{clause[0].upper()}{clause[1:]}.")
    remarks += [*below_the_limit(labels, len(suspects)), *unseen(labels)]
    missing = [s.image_problem for s in suspects if s.image_problem not in ("", NO_ROOM)]
    if missing:
        remarks.append(
            f"{len(missing):,} of {len(suspects):,} images cannot be shown (first: {missing[0]}). "
            f"{missing_images}".rstrip()
        )
    left_out = sum(suspect.image_problem == NO_ROOM for suspect in suspects)
    if left_out:
        remarks.append(
            f"{left_out:,} images have no room on the page; with fewer samples there is more room "
            "for each."
        )
    remarks += notes
    empty = int((by_class == 0).sum())
    if empty:
        remarks.append(f"{empty:,} of {labels.num_classes:,} classes have no samples.")
    return Report(
        title=title,
        facts=[*facts, *_facts(labels, suspicious)],
        notes=remarks,
        class_names=labels.class_names,
        panels=list(panels),
        confusion=_confusion(labels),
        classes=_classes(labels, by_class),
        suspects=suspects,
        samples=len(labels),
        key=f"{_fingerprint(labels)[:16]}-{key or title}-{labels.method}",
        noun=views.noun,
        change_epochs=min(LAST_EPOCHS, epochs or LAST_EPOCHS),
    )


def _fingerprint(labels: ScoredLabels) -> str:
    """SHA-256 of the samples, by which a browser finds their marks again: of ids and paths, as
    `alr_fast.data.index.SampleIndex.sample_fingerprint`, or of ids and labels without paths."""
    digest = hashlib.sha256(labels.sample_ids.astype("<i8").tobytes())
    if labels.paths is None:
        digest.update(labels.labels.astype("<i8").tobytes())
    for path in labels.paths or ():
        digest.update(os.fsencode(path) + b"\0")
    return digest.hexdigest()


def _confusion(labels: ScoredLabels) -> list[tuple[int, int, int]]:
    """Given label, refined label and number of samples of each pair that occurs."""
    k = labels.num_classes
    cells, counts = np.unique(labels.labels * k + labels.refined, return_counts=True)
    return list(zip((cells // k).tolist(), (cells % k).tolist(), counts.tolist(), strict=True))


def _classes(labels: ScoredLabels, by_class: NDArray[np.int64]) -> list[ClassNoise]:
    def differing(others: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(labels.labels[labels.labels != others], minlength=labels.num_classes)

    changed = differing(labels.refined)
    wrong = None if labels.clean_labels is None else differing(labels.clean_labels)
    return [
        ClassNoise(
            name=name,
            samples=int(by_class[k]),
            changed=int(changed[k]),
            wrong=None if wrong is None else int(wrong[k]),
        )
        for k, name in enumerate(labels.class_names)
    ]


def _facts(labels: ScoredLabels, suspicious: int) -> list[tuple[str, str]]:
    unknown = "cannot be estimated" if labels.estimate_problem else ""
    facts = [
        ("labels refined to another class", percent(labels.refined_share)),
        ("estimated wrong labels", unknown or percent(labels.noise_rate)),
        ("suspicious samples", unknown or f"{suspicious:,}"),
    ]
    if labels.clean_labels is not None:
        right = float((labels.labels == labels.clean_labels).mean())
        refined = float((labels.refined == labels.clean_labels).mean())
        facts += [
            ("wrong labels", percent(1 - right)),
            ("label accuracy, given and refined", f"{percent(right)} and {percent(refined)}"),
        ]
        error = labels.transition_error
        if error is not None:
            facts.append(("error of the estimated transition matrix, 0 to 2", f"{error:.3f}"))
    return facts


def _suspects(labels: ScoredLabels, views: Views, rows: NDArray[np.int64]) -> list[Suspect]:
    """The samples of these rows with their views."""
    samples = labels.samples(rows)
    room = _PAGE_BYTES - _OTHER_BYTES - _SUSPECT_BYTES * len(rows)
    addresses = ["" if views.address is None else views.address(row) for row in rows.tolist()]
    names = [*addresses, *(sample.get("path", "") for sample in samples)]
    room -= _CHARACTER_BYTES * sum(map(len, names))
    # Texts get at most half of what is left.
    longest = max(room // 2 // _CHARACTER_BYTES // max(len(rows), 1), 200)
    texts = [views.short_text(row, longest) for row in rows.tolist()]
    cells = [tuple(views.cells(row)) if views.cells else () for row in rows.tolist()]
    room -= _CHARACTER_BYTES * sum(len(text or "") for text in texts)
    room -= sum(len(name) + len(value) + 10 for row in cells for name, value in row)
    # Base64 needs a third more bytes than the image.
    images, problems = views.thumbnails(rows, max(room, 0) * 3 // 4)
    others = other_classes(labels, rows)
    return [
        Suspect(
            id=int(sample["id"]),
            path=sample.get("path", ""),
            given=int(sample["given_label"]),
            refined=int(sample["refined_label"]),
            given_probability=float(sample["given_probability"]),
            refined_probability=float(sample["refined_probability"]),
            score=float(sample["score"]),
            changes=None if np.isnan(sample["given_loss"]) else int(sample["changes"]),
            image=images[number],
            image_problem=problems[number],
            text=texts[number],
            cells=cells[number],
            others=others[number],
            # With a probability, the refined label comes first unless it is the given one.
            proposal=others[number][0][0] if others[number] else None,
            address=addresses[number],
        )
        for number, sample in enumerate(samples)
    ]
