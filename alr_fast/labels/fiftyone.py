"""FiftyOne: refined labels as a `fiftyone.types.FiftyOneImageClassificationDataset` to import.

    fiftyone datasets create --name suspects --dataset-dir FOLDER \\
        --type fiftyone.types.FiftyOneImageClassificationDataset

Format: https://docs.voxel51.com/user_guide/import_datasets.html. ``labels.json`` has the classes
and, for each sample, the number of a class, its confidence and attributes; ``data.json`` the file
of each sample.
"""

import itertools
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alr_fast.errors import UserError
from alr_fast.labels.proposals import Choice, predictions
from alr_fast.labels.scored import ScoredLabels
from alr_fast.labels.sources import by_row
from alr_fast.utils.files import own_folder, replacing, write_json
from alr_fast.utils.text import distinct_names, encodable

_ATTRIBUTES = ("score", "given_probability", "margin", "entropy", "changes", "given_loss")


def write_dataset(labels: ScoredLabels, folder: Path, *, images: object, most: int | None) -> None:
    """Writes the folder, most suspicious samples first; see
    `alr_fast.labels.LabelIssues.to_fiftyone`.

    Raises:
        UserError: No images, another number of samples, or the folder cannot be written.
    """
    source = labels.paths if images is None else images
    if source is None:
        raise UserError(
            "there are no files to show; pass the file of each image", argument="images"
        )
    of_row = by_row(source, labels, "images")
    names = distinct_names(labels.class_names)
    shown = labels.order[:most]
    files = {}
    for row in shown.tolist():
        file = of_row(row)
        if not isinstance(file, (str, os.PathLike)):
            raise UserError(
                f"entry {row} is a {type(file).__name__}; pass the path of each image's file, "
                "FiftyOne reads them itself",
                argument="images",
            )
        files[str(labels.sample_ids[row])] = encodable(os.path.abspath(file))
    own_folder(folder)
    samples = itertools.chain.from_iterable(
        zip(labels.samples(rows), predictions(labels, rows), strict=True)
        for rows in labels.ranked_pieces()
    )
    write_json(folder / "data.json", files)
    _write_labels(folder / "labels.json", names, itertools.islice(samples, most))


def _write_labels(
    path: Path, names: list[str], samples: Iterable[tuple[dict[str, Any], Choice | None]]
) -> None:
    with replacing(path) as fresh, fresh.open("w", encoding="utf-8") as file:
        file.write(f'{{"classes": {json.dumps(names)},\n"labels": {{')
        for number, (sample, predicted) in enumerate(samples):
            file.write(",\n" if number else "\n")
            entry = json.dumps(_entry(sample, predicted, names), allow_nan=False)
            file.write(f'"{int(sample["id"])}": {entry}')
        file.write("\n}}\n")


def _entry(sample: dict[str, Any], predicted: Choice | None, names: list[str]) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "sample_id": int(sample["id"]),
        "given_label": names[sample["given_label"]],
    }
    for name in _ATTRIBUTES:
        value = float(sample[name])
        if math.isfinite(value):  # JSON has no NaN
            attributes[name] = int(value) if name == "changes" else value
    if "clean_label" in sample:
        attributes["clean_label"] = names[sample["clean_label"]]
    # Without another class, the attributes still need a label.
    label, confidence = predicted or (sample["given_label"], sample["given_probability"])
    return {"label": int(label), "confidence": float(confidence), "attributes": attributes}
