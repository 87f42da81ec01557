"""Label Studio: tasks with predictions to import.

Format: https://labelstud.io/guide/predictions ("Import pre-annotated data into Label Studio").
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from alr_fast.errors import UserError
from alr_fast.labels.proposals import Choice, predictions
from alr_fast.labels.scored import ScoredLabels
from alr_fast.labels.sources import by_row
from alr_fast.utils.files import replacing
from alr_fast.utils.text import distinct_names, encodable

CHOICE, SAMPLE = "label", "sample"  # names of the tags of the interface
ID = "sample_id"  # field of a task


def interface(class_names: Sequence[str], kind: str = "image") -> str:
    """The labelling interface of the tasks of `write_tasks`, XML for the settings of a project.

    Args:
        class_names: Names of the classes.
        kind: ``image`` or ``text``.

    Raises:
        UserError: Another kind.
    """
    if kind not in ("image", "text"):
        raise UserError("must be image or text", argument="kind", value=kind)
    choices = "".join(
        f"    <Choice value={quoteattr(name)}/>\n" for name in distinct_names(class_names)
    )
    return (
        f'<View>\n  <{kind.title()} name="{SAMPLE}" value="${kind}"/>\n'
        f'  <Choices name="{CHOICE}" toName="{SAMPLE}" choice="single">\n{choices}'
        "  </Choices>\n</View>\n"
    )


def write_tasks(
    labels: ScoredLabels, path: Path, *, images: object, text: object, most: int | None
) -> None:
    """Writes the tasks, most suspicious first; see `alr_fast.labels.LabelIssues.to_label_studio`.

    Raises:
        UserError: No or two sources, another number of samples, or the file cannot be written.
    """
    if images is not None and text is not None:
        raise UserError("pass either images or text", argument="text")
    kind = "image" if text is None else "text"
    source = images if text is None else text
    if source is None:
        source = labels.paths
    if source is None:
        raise UserError(
            "there is nothing to show; pass the addresses of the images, or text=",
            argument="images",
        )
    of_row = by_row(source, labels, "images" if kind == "image" else "text")
    names = distinct_names(labels.class_names)

    def tasks() -> Iterator[dict[str, Any]]:
        for rows in labels.ranked_pieces():
            predicted = predictions(labels, rows)
            samples = labels.samples(rows)
            for row, sample, choice in zip(rows.tolist(), samples, predicted, strict=True):
                yield _task(sample, choice, kind, str(of_row(row)), names, labels.method)

    write_json_list(path, itertools.islice(tasks(), most))


def _task(
    sample: dict[str, Any],
    predicted: Choice | None,
    kind: str,
    shown: str,
    names: Sequence[str],
    method: str,
) -> dict[str, Any]:
    data = {
        kind: encodable(shown),
        ID: int(sample["id"]),
        "given_label": names[sample["given_label"]],
        "suspicion": float(sample["score"]),
    }
    if "path" in sample:
        data["path"] = encodable(sample["path"])
    if predicted is None:
        return {"data": data, "predictions": []}
    choice = {
        "from_name": CHOICE,
        "to_name": SAMPLE,
        "type": "choices",
        "value": {"choices": [names[predicted[0]]]},
    }
    prediction = {
        "model_version": f"alr_fast {method}".strip(),
        "score": predicted[1],
        "result": [choice],
    }
    return {"data": data, "predictions": [prediction]}


def write_json_list(path: Path, values: Iterator[Any]) -> None:
    """Replaces a file with a JSON list, a value a line, without all of them in memory.

    Raises:
        UserError: The file cannot be written.
    """
    with replacing(path) as fresh, fresh.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, value in enumerate(values):
            file.write(",\n" if number else "\n")
            file.write(json.dumps(value, allow_nan=False))
        file.write("\n]\n")
