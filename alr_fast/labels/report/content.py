"""From the refined labels of a run to the content of its report."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.datasets import Split
from alr_fast.data.decode import decode_rgb, prepare
from alr_fast.data.images import NO_IMAGE, BrokenImage
from alr_fast.labels.refined import RefinedLabels
from alr_fast.labels.report.model import ClassNoise, Panel, Report, Suspect
from alr_fast.labels.suspicion import SUSPICIOUS
from alr_fast.utils.text import duration, percent

# Bytes of the page, of everything but the suspects (mostly plotly.js), and of a suspect without its
# path and image.
_PAGE_BYTES, _OTHER_BYTES, _SUSPECT_BYTES = 14_500_000, 6_200_000, 160
_SIZES = ((128, 80), (96, 75), (64, 70), (48, 50))  # of thumbnails: longest side in pixels, quality
_NO_ROOM = "left out, the page would be too large"

# Panels of curves: title, unit, name in the records. The share of changed labels is shown only if
# the label accuracy is unknown.
_PANELS = (
    ("test accuracy", "%", "test_accuracy"),
    ("label accuracy", "%", "label_accuracy"),
    ("changed labels", "%", "labels_changed"),
    ("wrong labels memorised", "%", "mislabelled_memorised"),
    ("training loss", "", "train_loss"),
)


def make_report(
    labels: RefinedLabels,
    *,
    run: str,
    summary: Mapping[str, Any],
    records: Sequence[Mapping[str, str]],
    most: int,
) -> Report:
    """Makes the content of a report; reads the images of the suspects.

    Args:
        labels: Refined labels of a run.
        run: Name of the run.
        summary: Results of the run (``methods``, ``epochs``, ``seconds``, ``data``, ``noise``);
            empty if it was not finished.
        records: Metrics of each method and epoch, by name.
        most: Largest number of suspects.
    """
    index = labels.index
    by_class = np.bincount(index.labels, minlength=index.num_classes)
    suspects, image_notes = _suspects(labels, labels.most_suspicious(most, above=SUSPICIOUS))
    suspicious = int((labels.scores > SUSPICIOUS).sum())
    notes = []
    if not labels.complete:
        notes.append("The run was not finished: the labels are those of its last checkpoint.")
    if suspicious > len(suspects):
        notes.append(
            f"The first {len(suspects):,} of {suspicious:,} suspicious samples are here; --most "
            "shows more, python -m alr_fast.export lists all."
        )
    notes += image_notes
    if not records:
        notes.append("No curves: the run has no metrics.csv (--log.to csv).")
    empty = int((by_class == 0).sum())
    if empty:
        notes.append(f"{empty:,} of {index.num_classes:,} classes have no samples.")
    return Report(
        title=f"Suspicious labels: {summary.get('data', {}).get('name', run)}",
        facts=_facts(labels, run, summary, suspicious),
        notes=notes,
        class_names=index.class_names,
        panels=_panels(records),
        confusion=_confusion(labels),
        classes=_classes(labels, by_class),
        suspects=suspects,
        samples=len(index),
        key=f"{index.sample_fingerprint()[:16]}-{run}-{labels.method}",
    )


def _confusion(labels: RefinedLabels) -> list[tuple[int, int, int]]:
    """Given label, refined label and number of samples of each pair that occurs."""
    k = labels.index.num_classes
    cells, counts = np.unique(labels.index.labels * k + labels.refined, return_counts=True)
    return list(zip((cells // k).tolist(), (cells % k).tolist(), counts.tolist(), strict=True))


def _classes(labels: RefinedLabels, by_class: NDArray[np.int64]) -> list[ClassNoise]:
    index = labels.index

    def differing(others: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(index.labels[index.labels != others], minlength=index.num_classes)

    changed = differing(labels.refined)
    wrong = None if index.clean_labels is None else differing(index.clean_labels)
    return [
        ClassNoise(
            name=name,
            samples=int(by_class[k]),
            changed=int(changed[k]),
            wrong=None if wrong is None else int(wrong[k]),
        )
        for k, name in enumerate(index.class_names)
    ]


def _facts(
    labels: RefinedLabels, run: str, summary: Mapping[str, Any], suspicious: int
) -> list[tuple[str, str]]:
    index = labels.index
    facts = [
        ("run", run),
        ("training images", f"{len(index):,} of {index.num_classes:,} classes"),
        ("method", labels.method),
    ]
    for method, result in summary.get("methods", {}).items():
        facts.append((f"test accuracy, {method}", percent(result["test_accuracy_last"])))
    facts.append(("labels refined to another class", percent(labels.noise.rate)))
    facts.append(("suspicious samples", f"{suspicious:,}"))
    if index.clean_labels is not None:
        right = float((index.labels == index.clean_labels).mean())
        refined = float((labels.refined == index.clean_labels).mean())
        facts += [
            ("wrong labels", percent(1 - right)),
            ("label accuracy, given and refined", f"{percent(right)} and {percent(refined)}"),
        ]
        error = labels.transition_error
        if error is not None:
            facts.append(("error of the estimated transition matrix, 0 to 2", f"{error:.3f}"))
    noise = summary.get("noise", {})
    if noise.get("kind", "none") != "none":
        facts.append(("injected noise", f"{noise['kind']} {percent(noise['requested_rate'])}"))
    if summary:
        facts.append(("training", f"{summary['epochs']} epochs, {duration(summary['seconds'])}"))
    return facts


def _suspects(labels: RefinedLabels, rows: NDArray[np.int64]) -> tuple[list[Suspect], list[str]]:
    """The samples of these rows with their thumbnails, and notes on missing thumbnails."""
    images, problems = _thumbnails(labels.split, rows)
    suspects = [
        Suspect(
            id=int(sample["id"]),
            path=sample["path"],
            given=int(sample["given_label"]),
            refined=int(sample["refined_label"]),
            given_probability=float(sample["given_probability"]),
            refined_probability=float(sample["refined_probability"]),
            score=float(sample["score"]),
            changes=int(sample["changes"]),
            image=image,
            image_problem=problem,
        )
        for sample, image, problem in zip(labels.samples(rows), images, problems, strict=True)
    ]
    missing = [problem for problem in problems if problem not in ("", _NO_ROOM, NO_IMAGE)]
    notes = []
    if _NO_ROOM in problems:
        notes.append(
            f"{problems.count(_NO_ROOM):,} images have no room on the page; a lower --most leaves "
            "more room for each."
        )
    if missing:
        notes.append(
            f"{len(missing):,} of {len(suspects):,} images cannot be shown (first: {missing[0]}). "
            "If the data was moved, pass --data-root DIR."
        )
    return suspects, notes


def _thumbnails(split: Split, rows: NDArray[np.int64]) -> tuple[list[bytes | None], list[str]]:
    """Thumbnails, as small as necessary, or None; and for each None the reason, otherwise ""."""
    # JSON needs up to six bytes for a character, base64 a third more bytes than the image.
    texts = sum(_SUSPECT_BYTES + 6 * len(split.index.paths[int(row)]) for row in rows)
    room = (_PAGE_BYTES - _OTHER_BYTES - texts) * 3 // 4
    for side, quality in _SIZES:
        images: list[bytes | None] = []
        problems, total = [], 0
        for row in rows:
            try:
                images.append(_thumbnail(split, int(row), side, quality))
                problems.append("")
            except BrokenImage as error:
                images.append(None)
                problems.append(str(error))
            total += len(images[-1] or b"")
            if total > room:
                break
        else:
            return images, problems
    # Even the smallest thumbnails are too large together: the remaining samples have none.
    left = len(rows) - len(images)
    return images + [None] * left, problems + [_NO_ROOM] * left


def _thumbnail(split: Split, row: int, side: int, quality: int) -> bytes:
    """An image of at most ``side`` pixels a side, as PNG up to 32 pixels, else as WebP."""
    from PIL import Image

    if split.images.array is not None:
        pixels = split.images.array[row].transpose(1, 2, 0)
    else:
        pixels = decode_rgb(prepare(split.images.read(row))).permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((side, side))
    file = io.BytesIO()
    if max(image.size) <= 32:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "WebP", quality=quality)
    return file.getvalue()


def _panels(records: Sequence[Mapping[str, str]]) -> list[Panel]:
    panels: dict[str, Panel] = {}
    for title, unit, name in _PANELS:
        factor = 100 if unit == "%" else 1
        series: dict[str, tuple[list[int], list[float | None]]] = {}
        for record in records:
            value = record.get(name)
            if value:
                epochs, values = series.setdefault(record["method"], ([], []))
                epochs.append(int(record["epoch"]))
                values.append(factor * float(value))
        if series and not (name == "labels_changed" and "label_accuracy" in panels):
            panels[name] = Panel(title, unit, series)
    return list(panels.values())
