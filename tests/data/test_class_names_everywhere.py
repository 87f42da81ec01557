"""Every layout and every table reads the same classes: names in, the same names out."""

import csv
import json
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alr_fast.data.classes import is_missing, sort_names
from alr_fast.data.datasets import open_dataset
from alr_fast.data.index import SampleIndex
from alr_fast.data.label_files.label_table import read_labels
from alr_fast.data.tables.cells import harmless
from alr_fast.errors import UserError
from alr_fast.labels import find_issues

NUMBERS = st.integers(0, 40).map(str)
TEXTS = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\"), min_size=1, max_size=6
)
BLANKS = st.tuples(TEXTS, TEXTS).map(" ".join)


def usable(name: str) -> bool:
    """Whether a folder, and a cell that a person writes, can hold a name."""
    number = name.lstrip("+-").removesuffix(".").replace(".", "", 1)
    return (
        not name.startswith((".", "$", "@", "'"))
        and len(name.encode()) < 60
        and not is_missing(name)
        and ((name.isascii() and name.isdigit()) or not number.isdigit())
    )


@st.composite
def classes(draw) -> list[str]:
    kind = draw(st.sampled_from([NUMBERS, TEXTS, BLANKS, st.one_of(NUMBERS, TEXTS)]))

    def key(name):
        return unicodedata.normalize("NFKC", name).casefold()

    return draw(st.lists(kind.filter(usable), min_size=2, max_size=6, unique_by=key))


def rows_of(names: list[str]) -> list[tuple[str, str]]:
    """Path and class of two samples for each class."""
    return [(f"images/{k}-{n}.jpg", name) for k, name in enumerate(names) for n in range(2)]


def write_images(root: Path, names: list[str]) -> None:
    (root / "images").mkdir()
    for path, _ in rows_of(names):
        (root / path).write_bytes(b"")


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([harmless(cell) for cell in row] for row in rows)


def folder(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / "train" / name).mkdir(parents=True)
        for k in range(2):
            (root / "train" / name / f"{k}.jpg").write_bytes(b"")
    return root


def list_csv(root: Path, names: list[str]) -> Path:
    write_images(root, names)
    write_csv(root / "list.csv", ("path", "label"), rows_of(names))
    return root / "list.csv"


def list_parquet(root: Path, names: list[str]) -> Path:
    write_images(root, names)
    paths, labels = zip(*rows_of(names), strict=True)
    pq.write_table(pa.table({"path": paths, "label": labels}), root / "list.parquet")
    return root / "list.parquet"


def list_json(root: Path, names: list[str]) -> Path:
    write_images(root, names)
    lines = (json.dumps({"path": path, "label": label}) for path, label in rows_of(names))
    (root / "list.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root / "list.jsonl"


def features(root: Path, names: list[str]) -> Path:
    paths, labels = zip(*rows_of(names), strict=True)
    part = {"X": np.zeros((len(paths), 2)), "y": np.array(labels), "paths": np.array(paths)}
    np.savez(root / "set.npz", **part, X_test=part["X"], y_test=part["y"])
    return root / "set.npz"


def features_by_number(root: Path, names: list[str]) -> Path:
    paths, labels = zip(*rows_of(names), strict=True)
    y = np.array([sort_names(names).index(label) for label in labels])
    part = {"X": np.zeros((len(paths), 2)), "y": y, "paths": np.array(paths)}
    np.savez(root / "set.npz", **part, X_test=part["X"], y_test=y, class_names=sort_names(names))
    return root / "set.npz"


@pytest.mark.parametrize("write", [folder, list_csv, list_parquet, list_json, features])
@given(names=classes())
@settings(max_examples=25, deadline=None)
def test_layouts_read_the_same_classes(write, names):
    with tempfile.TemporaryDirectory() as root:
        index = open_dataset("auto", write(Path(root), names)).split("train").index
        assert index.class_names == sort_names(names)
        read = [index.class_names[label] for label in index.labels]
        if write is folder:
            assert read == [path.split("/")[1] for path in index.paths]
        else:
            assert list(zip(index.paths, read, strict=True)) == rows_of(names)


@given(names=classes())
@settings(max_examples=25, deadline=None)
def test_numbers_beside_a_list_of_names_are_positions_unless_they_are_names(names):
    """They are refused only if a name says otherwise."""
    numeric = [k for k, name in enumerate(sort_names(names)) if name.isdigit() and int(name) != k]
    assume(not numeric)
    with tempfile.TemporaryDirectory() as root:
        index = open_dataset("auto", features_by_number(Path(root), names)).split("train").index
        read = [index.class_names[label] for label in index.labels]
        assert list(zip(index.paths, read, strict=True)) == rows_of(names)


def index_of(names: tuple[str, ...]) -> SampleIndex:
    rows = rows_of(list(names))
    labels = np.zeros(len(rows), np.int64)
    return SampleIndex(np.arange(len(rows)), [path for path, _ in rows], labels, None, names)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@given(names=classes())
@settings(max_examples=40, deadline=None)
def test_tables_of_labels_by_name(suffix, names):
    index = index_of(tuple(names))
    rows = rows_of(names)
    with tempfile.TemporaryDirectory() as root:
        table = Path(root) / f"labels.{suffix}"
        if suffix == "csv":
            write_csv(table, ("path", "label"), rows)
        else:
            paths, labels = zip(*rows, strict=True)
            pq.write_table(pa.table({"path": paths, "label": labels}), table)
        read = read_labels(table, index, None)
    assert [names[label] for label in read.labels] == [name for _, name in rows]
    assert read.listed == len(rows)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@given(names=classes(), shuffled=st.randoms(), extra=st.booleans())
@settings(max_examples=40, deadline=None)
def test_exported_tables_after_the_classes_changed(suffix, names, shuffled, extra):
    """The data set has its classes in another order, and perhaps one more."""
    assume(names != [str(k) for k in range(len(names))])  # these are ambiguous
    rows = rows_of(names)
    labels = np.array([names.index(name) for _, name in rows])
    issues = find_issues(
        labels, np.eye(len(names))[labels], class_names=names, paths=[path for path, _ in rows]
    )
    now = [*names, *(["one more"] if extra and "one more" not in names else [])]
    shuffled.shuffle(now)
    index = index_of(tuple(names))
    index = SampleIndex(index.sample_ids, index.paths, index.labels, None, tuple(now))
    with tempfile.TemporaryDirectory() as root:
        table = Path(root) / f"labels.{suffix}"
        (issues.to_csv if suffix == "csv" else issues.to_parquet)(table)
        read = read_labels(table, index, "given_label")
        assert [now[label] for label in read.labels] == [name for _, name in rows]
        marks = Path(root) / "marks.csv"
        issues.write_marks(marks, issues.sample_ids, labels[issues.sample_ids])
        read = read_labels(marks, index, None)
    assert [now[label] for label in read.labels] == [name for _, name in rows]


@pytest.mark.parametrize("write", [folder, list_csv, list_parquet, list_json, features])
def test_names_that_look_alike_are_remarked(tmp_path, write):
    split = open_dataset("auto", write(tmp_path, ["Cat", "cat", "dog"])).split("train")
    assert any(line.startswith("classes 'Cat' and 'cat' differ in case") for line in split.remarks)


@pytest.mark.parametrize("write", [list_csv, list_parquet, list_json, features])
@pytest.mark.parametrize("word", ["nan", "None", "NA", "N/A", "null", ""])
def test_missing_values_are_refused_with_their_row(tmp_path, write, word):
    dataset = open_dataset("auto", write(tmp_path, ["cat", word, "dog"]))
    with pytest.raises(UserError, match=r", (row|line) \d+: label.* (is empty|missing value)"):
        dataset.split("train")


def test_a_folder_may_be_called_like_a_missing_value(tmp_path):
    split = open_dataset("auto", folder(tmp_path, ["cat", "nan"])).split("train")
    assert split.index.class_names == ("cat", "nan")
    assert any(line.startswith("class 'nan' has a name that tables") for line in split.remarks)
    table = tmp_path / "labels.csv"
    write_csv(table, ("path", "label"), [("train/cat/0.jpg", "nan")])
    assert read_labels(table, split.index, None).labels.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("write", [folder, list_csv, list_parquet, list_json, features])
def test_numbers_are_ordered_by_value(tmp_path, write):
    names = [str(k) for k in (10, 2, 11, 1, 3)]
    index = open_dataset("auto", write(tmp_path, names)).split("train").index
    assert index.class_names == ("1", "2", "3", "10", "11")
