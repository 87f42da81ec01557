"""From the folder of a run to what its report shows."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.datasets import Split
from alr_fast.data.decode import decode_rgb, prepare
from alr_fast.data.images import BrokenImage
from alr_fast.labels.refined import RefinedLabels
from alr_fast.labels.report.model import ClassNoise, Panel, Report, Suspect
from alr_fast.labels.suspicion import SUSPICIOUS
from alr_fast.utils.text import duration, percent

# Of the page; what stands in it beside the suspects, plotly.js most of all; of a suspect without
# its path and image. All in bytes.
_PAGE_BYTES, _OTHER_BYTES, _SUSPECT_BYTES = 14_500_000, 6_200_000, 160
# Thumbnails: longest side in pixels, and quality.
_TOO_MUCH = "left out, the page would be too large"
_SIZES = ((128, 80), (96, 75), (64, 70), (48, 50))

_RIGHT = "right training labels"
# Panels of curves: title, unit, column of metrics.csv. Where it is known which labels are right, it
# says little how many have changed.
_PANELS = (
    ("test accuracy", "%", "test_accuracy"),
    (_RIGHT, "%", "label_accuracy"),
    ("changed training labels", "%", "labels_changed"),
    ("wrong labels learnt by heart", "%", "mislabelled_memorised"),
    ("training loss", "", "train_loss"),
)


def make_report(run: Path, labels: RefinedLabels, *, most: int) -> Report:
    """Reads a run and its images.

    Args:
        run: Its folder.
        labels: Its refined labels.
        most: At most so many suspects.
    """
    index = labels.index
    confusion = _confusion(labels)
    by_class = np.bincount(index.labels, minlength=index.num_classes)
    chosen = labels.most_suspicious(most, above=SUSPICIOUS)
    suspects, notes = _suspects(labels, chosen)
    all_of_them = int((labels.scores > SUSPICIOUS).sum())
    if all_of_them > len(suspects):
        notes.insert(
            0,
            f"Of {all_of_them:,} suspicious samples the first {len(suspects):,} are here; --most "
            "shows more, python -m alr_fast.export lists all.",
        )
    summary = _summary(run)
    if not labels.complete:
        notes.insert(0, "The run has not been finished: labels are those of its last checkpoint.")
    records = _records(run)
    if not records:
        notes.append("No curves: the run has left no metrics.csv (--log.to csv).")
    empty = np.flatnonzero(by_class == 0)
    if len(empty):
        notes.append(f"{len(empty):,} of {index.num_classes:,} classes have no sample.")
    return Report(
        title=f"Suspicious labels: {summary.get('data', {}).get('name', run.resolve().name)}",
        facts=_facts(run, labels, summary, all_of_them),
        notes=notes,
        class_names=index.class_names,
        panels=_panels(records),
        confusion=confusion,
        classes=_classes(labels, by_class),
        suspects=suspects,
        samples=len(index),
        key=f"{index.sample_fingerprint()[:16]}-{run.resolve().name}-{labels.method}",
    )


def _confusion(labels: RefinedLabels) -> list[tuple[int, int, int]]:
    """Given and refined label of each pair that there is, and how many samples it has."""
    k = labels.index.num_classes
    cells, counts = np.unique(labels.index.labels * k + labels.refined, return_counts=True)
    return list(zip((cells // k).tolist(), (cells % k).tolist(), counts.tolist(), strict=True))


def _classes(labels: RefinedLabels, by_class: NDArray[np.int64]) -> list[ClassNoise]:
    index = labels.index

    def differing(better: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(index.labels[index.labels != better], minlength=index.num_classes)

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
    run: Path, labels: RefinedLabels, summary: dict[str, Any], suspicious: int
) -> list[tuple[str, str]]:
    index, noise = labels.index, labels.noise
    facts = [
        ("run", run.resolve().name),
        ("training images", f"{len(index):,} of {index.num_classes:,} classes"),
        ("method", labels.method),
    ]
    for method, result in summary.get("methods", {}).items():
        facts.append((f"test accuracy, {method}", percent(result["test_accuracy_last"])))
    facts.append(("labels refined to another class", percent(noise.rate)))
    facts.append(("suspicious samples", f"{suspicious:,}"))
    if index.clean_labels is not None:
        right = float((index.labels == index.clean_labels).mean())
        refined = float((labels.refined == index.clean_labels).mean())
        facts += [
            ("labels wrong", percent(1 - right)),
            ("labels right, given and refined", f"{percent(right)} and {percent(refined)}"),
        ]
        if labels.transition_error is not None:
            facts.append(
                (
                    "error of the estimated transition matrix, 0 to 2",
                    f"{labels.transition_error:.3f}",
                )
            )
    injected = summary.get("noise", {})
    if injected.get("kind", "none") != "none":
        facts.append(
            ("noise injected", f"{injected['kind']} {percent(injected['requested_rate'])}")
        )
    if summary:
        facts.append(("training", f"{summary['epochs']} epochs, {duration(summary['seconds'])}"))
    return facts


def _suspects(labels: RefinedLabels, rows: NDArray[np.int64]) -> tuple[list[Suspect], list[str]]:
    """The samples of these rows with their thumbnails, and a note on those that have none."""
    images, problems = _thumbnails(labels.split, rows)
    suspects = [
        Suspect(
            id=int(one["id"]),
            path=one["path"],
            given=int(one["given_label"]),
            refined=int(one["refined_label"]),
            given_probability=float(one["given_probability"]),
            refined_probability=float(one["refined_probability"]),
            score=float(one["score"]),
            changes=int(one["changes"]),
            image=image,
            image_problem=problem,
        )
        for one, image, problem in zip(labels.samples(rows), images, problems, strict=True)
    ]
    missing = [problem for problem in problems if problem not in ("", _TOO_MUCH)]
    notes = []
    if _TOO_MUCH in problems:
        notes.append(
            f"{problems.count(_TOO_MUCH):,} images have no room on the page; a lower --most "
            "leaves more to each."
        )
    if missing:
        notes.append(
            f"{len(missing):,} of {len(suspects):,} images cannot be shown, the first because: "
            f"{missing[0]}. If the data was moved, pass --data-root DIR."
        )
    return suspects, notes


def _thumbnails(split: Split, rows: NDArray[np.int64]) -> tuple[list[bytes | None], list[str]]:
    """Thumbnails as small as they must be, None where there is no image; and why there is none."""
    # Characters beyond ASCII take six bytes each, images a third more than here.
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
    # Too many for the smallest, too: those behind go without.
    left = len(rows) - len(images)
    return images + [None] * left, problems + [_TOO_MUCH] * left


def _thumbnail(split: Split, row: int, side: int, quality: int) -> bytes:
    """An image of at most ``side`` pixels, as PNG where it is small, else as WebP."""
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


def _summary(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # not finished


def _records(run: Path) -> list[dict[str, str]]:
    try:
        with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


def _panels(records: list[dict[str, str]]) -> list[Panel]:
    panels = []
    for title, unit, column in _PANELS:
        factor = 100 if unit == "%" else 1
        series: dict[str, tuple[list[int], list[float | None]]] = {}
        for record in records:
            value = record.get(column)
            if value:
                epochs, values = series.setdefault(record["method"], ([], []))
                epochs.append(int(record["epoch"]))
                values.append(factor * float(value))
        known = any(panel.title == _RIGHT for panel in panels)
        if series and not (known and column == "labels_changed"):
            panels.append(Panel(title, unit, series))
    return panels
