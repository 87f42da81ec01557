"""Tables of labels by sample id: how they are read, and every error message."""

import csv
import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from alr_fast.data.broken import read_exclusions
from alr_fast.data.index import SampleIndex
from alr_fast.data.label_files.label_table import (
    is_label_table,
    read_labels,
    read_left_out,
    read_probabilities,
)
from alr_fast.errors import UserError
from alr_fast.noise import inject, save_labels
from alr_fast.training.sharded_bank import fill_rows
from training.test_distributed import in_processes

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_missing_table(tmp_path):
    with pytest.raises(UserError, match=f"table {tmp_path}/none.parquet: .*; name a readable file"):
        read_labels(str(tmp_path / "none.parquet"), small_index(), None)


def test_tables_of_other_formats(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"path": "p2", "label": "c"}\n{"path": "p0", "label": 1}\n')
    (tmp_path / "a.tsv").write_text("file\tclass\np2\tc\np0\tb\n")
    np.savez(tmp_path / "a.npz", path=np.array(["p2", "p0"]), label=np.array(["c", "b"]))
    for name in ("a.jsonl", "a.tsv", "a.npz"):
        assert is_label_table(str(tmp_path / name))
        assert labels_of(tmp_path / name) == ([1, 2, 2, 0], 2)
    np.save(tmp_path / "a.npy", np.arange(8) % 3)  # in the order of the data set
    assert is_label_table(str(tmp_path / "a.npy"))
    assert labels_of(tmp_path / "a.npy") == ([0, 2, 0, 1], 4)
    np.save(tmp_path / "a.npy", np.arange(7) % 3)
    with pytest.raises(UserError, match=r"a\.npy: has 7 labels without paths, and the data set 8"):
        labels_of(tmp_path / "a.npy")
    index = small_index()
    noise = inject(index.labels, num_classes=3, kind="pair", rate=1.0, seed=0)
    save_labels(tmp_path / "b.npz", noise, index)
    assert not is_label_table(str(tmp_path / "b.npz"))


def small_index(classes=3, names=None):
    ids = np.array([0, 2, 3, 7])  # a split without some of its samples
    return SampleIndex(
        sample_ids=ids,
        paths=[f"p{i}" for i in ids] if names is None else names,
        labels=np.array([0, 1, 2, 0]),
        clean_labels=None,
        class_names=tuple("abcdef"[:classes]),
    )


@pytest.fixture(params=["csv", "parquet"])
def write(request, tmp_path):
    """Writes columns as a CSV or Parquet table."""

    def write(columns):
        path = tmp_path / f"table.{request.param}"
        if request.param == "csv":
            with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                writer = csv.writer(file)
                flat = {}
                for name, column in columns.items():
                    if name == "probabilities":
                        rows = list(zip(*column, strict=True))
                        flat |= {f"p{k}": values for k, values in enumerate(rows)}
                    else:
                        flat[name] = column
                writer.writerow(flat)
                writer.writerows(zip(*flat.values(), strict=True))
        else:
            pq.write_table(pa.table(columns), path)
        return path

    write.kind = request.param
    return write


def labels_of(path, index=None, key=None):
    read = read_labels(str(path), index or small_index(), key)
    return read.labels.tolist(), read.listed


def remarks_of(path, index=None, key=None):
    return read_labels(str(path), index or small_index(), key).remarks


def probabilities_of(path, index=None):
    parts = list(read_probabilities(str(path), index or small_index()))
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([p for _, p in parts])


def test_labels_in_any_order_and_of_some_samples(write):
    path = write({"id": [7, 2], "path": ["p7", "p2"], "refined_label": [2, 0]})
    assert labels_of(path) == ([0, 0, 2, 2], 2)


def test_a_label_set_by_a_person_overrides_the_refined_one(write):
    path = write(
        {
            "id": [0, 2, 3],
            "path": ["p0", "p2", "p3"],
            "refined_label": [2, 2, 1],
            "label": ["1", "", "0"],
        }
    )
    assert labels_of(path) == ([1, 1, 0, 0], 2)
    assert labels_of(path, key="refined_label") == ([2, 2, 1, 0], 3)
    with pytest.raises(UserError, match="has no column mine; it has id, path, refined_label, lab"):
        labels_of(path, key="mine")


def test_names_beside_numbers_count(write):
    lines = {"id": [0, 2], "path": ["p0", "p2"], "refined_label": ["", "1"]}
    assert labels_of(write(lines | {"refined_name": ["", "b"]})) == ([0, 1, 2, 0], 1)
    path = write(lines | {"refined_name": ["", "c"]})  # the classes had another order
    assert labels_of(path) == ([0, 2, 2, 0], 1)
    assert remarks_of(path) == ("its classes have other numbers in the data set; the names count",)
    with pytest.raises(UserError, match=r"(line 3|row 2): label 'd' is not one of the 3 classes"):
        labels_of(write(lines | {"refined_name": ["", "d"]}))


def test_a_name_that_does_not_belong_to_its_number_is_refused(write):
    """As when a person changes only one of the two."""
    lines = {"path": ["p0", "p2"], "given": [0, 1], "given_name": ["a", "b"]}
    remedy = "write the same class in both columns, or empty one of them"
    for label, name, message in (
        (["", "0"], ["", "b"], "calls class 0 'b', .*(line 2|row 1) 'a'; "),
        (["", "2"], ["", "b"], "gives 'b' the number 2, .*(line 3|row 2) the number 1; "),
        (["", "c"], ["", "b"], "has the label 'c' with the name 'b'; "),
    ):
        path = write(lines | {"label": label, "label_name": name})
        with pytest.raises(UserError, match=rf"^table {path}, (line 3|row 2): {message}{remedy}"):
            labels_of(path)
    for label, name in (("2", "c"), ("c", ""), ("", "c"), ("c", "c")):
        path = write(lines | {"label": ["", label], "label_name": ["", name]})
        assert labels_of(path) == ([0, 2, 2, 0], 1)


def test_a_number_without_a_name_beside_numbers_of_other_classes_is_refused(write):
    lines = {"path": ["p0", "p2"], "given": ["0", "0"], "given_name": ["c", "c"]}
    path = write(lines | {"label": ["", "1"], "label_name": ["", ""]})
    with pytest.raises(UserError, match=r"(line 3|row 2): class 1 has no name in the table, whose"):
        labels_of(path)


def numeric_index():
    return SampleIndex(np.arange(3), ["1/x", "2/x", "3/x"], np.arange(3), None, ("1", "2", "3"))


def test_a_number_is_a_name_first(write):
    """Folders 1, 2, 3: the label 2 is the class 2, which stands at 1."""
    index = numeric_index()
    path = write({"path": ["1/x", "3/x"], "label": [2, 3]})
    assert labels_of(path, index) == ([1, 1, 2], 2)
    assert remarks_of(path, index) == ()
    path = write({"path": ["1/x", "2/x"], "label": [0, 1]})
    with pytest.raises(UserError) as error:
        labels_of(path, index)
    assert "label '0' is no class name, so labels would be numbers from 0; but 1 is class '1' " in (
        str(error.value)
    )
    assert "by name and class '2' by number; write class names" in str(error.value)
    assert labels_of(write({"path": ["2/x"], "label": [0]}), index) == ([0, 0, 2], 1)


def test_twelve_folders(write):
    names = tuple(map(str, range(12)))
    index = SampleIndex(np.arange(12), [f"{k}/x" for k in names], np.arange(12), None, names)
    assert labels_of(write({"path": ["0/x"], "label": [10]}), index)[0][0] == 10


def test_exported_numbers_of_numeric_names(write):
    """The table of a run on folders 1, 2, 3 has the number 1 for the class 2."""
    numbers = {"path": ["1/x", "2/x"], "refined_label": [1, 2]}
    names = {"refined_name": ["2", "3"]}
    assert labels_of(write(numbers | names), numeric_index()) == ([1, 2, 2], 2)
    with pytest.raises(UserError, match="label '2' is a class by name, and the table calls class"):
        labels_of(write(numbers | names | {"label": ["", "2"]}), numeric_index())


def test_names_that_are_only_numbers_are_ambiguous(write):
    """As find_issues writes them without class_names: is 1 the class 1 or the second class?"""
    lines = {"path": ["1/x", "2/x"], "given_label": [0, 1], "given_name": ["0", "1"]}
    message = (
        "calls its classes by their numbers: 1 is class '1' of the data set by name and class '2' "
        r"by number; write the names of the classes \(find_issues takes class_names=\)"
    )
    path = write(lines)
    with pytest.raises(UserError, match=f"^table {path}: {message}"):
        labels_of(path, numeric_index(), "given_label")
    path = write(lines | {"label": ["2", "3"]})  # a person wrote names
    assert labels_of(path, numeric_index()) == ([1, 2, 2], 2)
    path = write(lines | {"probabilities": [[0.5, 0.25, 0.25]] * 2})
    with pytest.raises(UserError, match=f"^table {path}: {message}"):
        probabilities_of(path, numeric_index())


def test_classes_by_name(write):
    path = write({"path": ["p0", "p2", "p3"], "label": ["c", " a", ""]})
    assert labels_of(path) == ([2, 0, 2, 0], 2)
    path = write({"path": ["p0", "p2"], "label": ["C", "b"]})
    with pytest.raises(UserError, match=r"'C' is not one of the 3 classes \(a, b, c\); 'c' is one"):
        labels_of(path)


def test_numbers_that_are_no_names_are_read_as_positions_and_this_is_said(write):
    path = write({"path": ["p0"], "label": [2]})
    assert labels_of(path) == ([2, 1, 2, 0], 1)
    assert remarks_of(path) == ("its labels are read as class numbers: 0 is a, 1 is b, ...",)


@pytest.mark.parametrize("word", ["nan", "None", "NA", "N/A", "null", "NaN"])
def test_words_for_missing_values_are_no_labels(write, word):
    path = write({"path": ["p0", "p2"], "label": ["1", word]})
    message = f"^table {path}, (line 3|row 2): label '{word}' is a missing value; fill it in"
    with pytest.raises(UserError, match=message):
        labels_of(path)


def test_empty_cells_of_a_column_of_numbers(tmp_path):
    path = tmp_path / "a.parquet"
    for column in (pa.array([1.0, np.nan]), pa.array([1.0, None]), pa.array([1, None])):
        pq.write_table(pa.table({"path": ["p0", "p2"], "label": column}), path)
        assert labels_of(path) == ([1, 1, 2, 0], 1)


def test_integers_written_with_a_decimal_point(write):
    path = write({"id": ["0.0", "2"], "path": ["p0", "p2"], "label": ["1.0", "2.0"]})
    assert labels_of(path) == ([1, 2, 2, 0], 2)
    with pytest.raises(UserError, match=r"label '1\.5' is not one of the 3 classes"):
        labels_of(write(GOOD | {"label": ["1.5", "2"]}))


def test_probabilities_are_scaled_to_a_sum_of_one(write):
    lines = {"id": [0, 2], "path": ["p0", "p2"]}
    _, p = probabilities_of(write(lines | {"probabilities": [[0.5, 0.25, 0.26], [0, 0.99, 0]]}))
    assert p == pytest.approx(np.array([[50 / 101, 25 / 101, 26 / 101], [0, 1, 0]]), abs=1e-6)


def test_a_browser_replaces_non_utf_8_bytes(write):
    index = small_index(names=[os.fsdecode(b"=\xff0"), "p2", "p3", "p7"])
    path = write({"id": [0], "path": ["'=\ufffd0"], "label": [2]})
    assert labels_of(path, index) == ([2, 1, 2, 0], 1)


def test_the_most_probable_class_is_the_label(write):
    rows = [[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]]
    path = write({"id": [2, 7], "path": ["p2", "p7"], "probabilities": rows})
    assert labels_of(path, key="probabilities") == ([0, 2, 2, 0], 2)
    rows_found, p = probabilities_of(path)
    assert rows_found.tolist() == [1, 3] and p.dtype == np.float32
    assert p.tolist() == rows


def test_soft_labels_of_excluded_samples_are_ignored(write):
    path = write({"id": [1, 2, 9], "path": ["p1", "p2", "p9"], "probabilities": [[1, 0, 0]] * 3})
    rows, p = probabilities_of(path)
    assert (rows.tolist(), p.tolist()) == ([1], [[1, 0, 0]])


def test_long_tables_are_read_in_batches(write, monkeypatch):
    monkeypatch.setattr("alr_fast.data.label_files.table_samples._BATCH_VALUES", 10)
    ids = np.arange(20)
    index = SampleIndex(ids, [f"p{i}" for i in ids], ids % 3, None, ("a", "b", "c"))
    rows = np.eye(3)[(ids + 1) % 3].tolist()
    lines = {"id": ids.tolist(), "path": list(index.paths), "probabilities": rows}
    path = write(lines | {"label": ((ids + 1) % 3).tolist(), "score": (ids / 20).tolist()})
    batches = list(read_probabilities(str(path), index))
    assert [len(found) for found, _ in batches] == [3] * 6 + [2]
    assert np.concatenate([p for _, p in batches]).tolist() == rows
    assert labels_of(path, index) == (((ids + 1) % 3).tolist(), 20)
    assert read_left_out(path, index, 0.74).tolist() == [15, 16, 17, 18, 19]
    again = [*lines["id"][:-1], 0], [*lines["path"][:-1], "p0"]  # in another batch
    path = write({"id": again[0], "path": again[1], "label": [0] * 19 + [1]})
    with pytest.raises(UserError, match=r"(line 21|row 20): has another label for the sample of"):
        labels_of(path, index)


def test_paths_that_are_not_utf_8(write):
    names = [os.fsdecode(name) for name in (b"p\xff0", b"p2", b"p\xe9", b"p7")]
    index = small_index(names=names)
    listed = [names[2], names[0]]
    if write.kind == "parquet":
        listed = [os.fsencode(name) for name in listed]
    path = write({"id": [3, 0], "path": listed, "label": [0, 1]})
    assert labels_of(path, index) == ([1, 1, 0, 0], 2)


def test_an_apostrophe_of_the_report_before_a_path_is_ignored(write):
    index = small_index(names=["=1+1", "'quoted", "p3", "p7"])
    lines = {"id": [0, 2], "path": ["'=1+1", "'quoted"], "label": [1, 2]}
    assert labels_of(write(lines), index) == ([1, 2, 2, 0], 2)


def test_samples_are_left_out_by_mark_or_by_score(write):
    lines = {"id": [0, 2, 3, 7], "path": ["p0", "p2", "p3", "p7"]}
    by_score = write(lines | {"score": [0.9, 0.5, 0.51, 0.0]})
    assert read_left_out(by_score, small_index(), 0.5).tolist() == [0, 2]
    assert read_left_out(by_score, small_index(), 0.9).tolist() == []
    by_mark = write(lines | {"score": [0.9] * 4, "mark": ["Keep", "fix", "", " unsure "]})
    assert read_left_out(by_mark, small_index(), 0.0).tolist() == [1, 3]
    if write.kind == "csv":  # it may be a list of broken files
        assert read_left_out(write(lines), small_index(), 0.5) is None
    else:
        with pytest.raises(UserError, match="has neither a column score nor a column mark"):
            read_left_out(write(lines), small_index(), 0.5)


def test_a_null_mark_is_an_empty_mark(tmp_path):
    path = tmp_path / "marks.parquet"
    lines = {"id": [0, 2], "path": ["p0", "p2"], "mark": pa.array([None, "fix"])}
    pq.write_table(pa.table(lines), path)
    assert read_left_out(path, small_index(), 0.5).tolist() == [1]


GOOD = {"id": [0, 2], "path": ["p0", "p2"], "label": [1, 2]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"where": ["p0"], "label": [1]}, "has no column path; it has where, label; name a"),
        ({"id": [0], "label": [1]}, "has no paths, and its ids are not exactly those of the 4 sam"),
        ({"id": [0], "path": ["p0"]}, "has no column label; it has id, path"),
        (
            GOOD | {"path": ["q0", "q2"]},
            r"2 of its 2 samples are not in this data set \(first: q0; the data set has p0, ...\); "
            "pass the data that it was made from, or write paths relative to the folder of the",
        ),
        (
            {"path": ["p2", "p0", "p2"], "label": [1, 1, 2]},
            "(line 4|row 3): has another label for the sample of (line 2|row 1); remove one of the",
        ),
        (GOOD | {"label": [1, 3]}, "(line 3|row 2): label '3' is not one of the 3 classes"),
        (GOOD | {"label": [-1, 2]}, "(line 2|row 1): label '-1' is not one of the 3 classes"),
        (GOOD | {"label": ["cat", "2"]}, "(line 2|row 1): label 'cat' is not one of the 3 classes"),
        (GOOD | {"label": ["1" + 20 * "0", "2"]}, "(line 2|row 1): label '10+' is not one of the"),
    ],
)
def test_labels_that_do_not_fit_are_refused(write, lines, message):
    path = write(lines)
    with pytest.raises(UserError, match=f"^table {path}(: |, ){message}"):
        labels_of(path)


def test_a_sample_is_its_path(write):
    # An image was added in front of the others, one was removed, one is new in the table.
    path = write({"id": [1, 3, 4], "path": ["p0", "p2", "p5"], "label": [1, 2, 1]})
    assert labels_of(path) == ([1, 2, 2, 0], 2)
    assert re.fullmatch(
        r"2 of 4 samples; 1 in the table is unknown \(first: (line 4|row 3), p5\), 2 of the data "
        "set are not listed",
        remarks_of(path)[0],
    )


def test_a_table_without_ids_or_with_other_ids(write):
    lines = {"path": ["p7", "p2"], "label": [2, 0]}
    assert labels_of(write(lines)) == ([0, 0, 2, 2], 2)
    assert labels_of(write(lines | {"id": ["x", ""]})) == ([0, 0, 2, 2], 2)


def test_a_table_without_paths_of_exactly_the_samples(write):
    path = write({"id": [7, 0, 2, 3], "label": [1, 1, 1, 2]})
    assert labels_of(path) == ([1, 1, 2, 1], 4)
    assert remarks_of(path)[0] == "samples are found by id alone"
    path = write({"id": [7, 0, 2, 3], "path": ["", "p0", "p2", "p3"], "label": [1, 1, 1, 2]})
    with pytest.raises(UserError, match=r"(line 2|row 1): has no path; fill it in or remove"):
        labels_of(path)


def test_the_id_breaks_ties_of_paths(write):
    index = small_index(names=["p", "p", "q", "p"])
    path = write({"id": [7, 0], "path": ["p", "p"], "label": [1, 2]})
    assert labels_of(path, index) == ([2, 1, 2, 1], 2)


def test_a_sample_listed_twice_with_the_same_label(write):
    path = write({"path": ["p0", "p2", "p0"], "label": [2, 0, 2]})
    assert labels_of(path) == ([2, 0, 2, 0], 2)


@pytest.mark.parametrize(
    ("own", "written", "remark"),
    [
        ("train/{}.jpg", "/home/x/data/train/{}.jpg", "without '/home/x/data/' before them"),
        ("{}.jpg", "data/{}.jpg", "without 'data/' before them"),
        ("train/a/{}.jpg", "a/{}.jpg", "with 'train/' before them"),
    ],
)
def test_paths_below_another_folder(write, own, written, remark):
    index = small_index(names=[own.format(k) for k in range(4)])
    path = write({"path": [written.format(k) for k in (0, 2, 9)], "label": [1, 1, 1]})
    assert labels_of(path, index) == ([1, 1, 1, 0], 2)
    assert remarks_of(path, index)[0] == f"its paths are read {remark}"


@pytest.mark.parametrize("names", [("a/0", "a/1", "b/0", "b/1"), ("b/0", "b/1", "a/0", "a/1")])
def test_names_that_several_folders_have_are_nobodys(write, names):
    path = write({"path": ["0", "1"], "label": [1, 1]})
    with pytest.raises(UserError, match="2 of its 2 samples are not in this data set"):
        labels_of(path, small_index(names=names))


@pytest.mark.parametrize("column", ["path", "id", "image_id"])
@pytest.mark.parametrize("written", ["{}.jpg", "{}"])
def test_names_of_files_instead_of_paths(write, column, written):
    names = ["train/a/x0.jpg", "train/b/x1.jpg", "train/b/x2.jpg", "train/b/same.jpg"]
    index = small_index(names=names)
    path = write({column: [written.format(f"x{k}") for k in (0, 2, 9)], "label": [1, 1, 1]})
    assert labels_of(path, index) == ([1, 1, 1, 0], 2)
    assert remarks_of(path, index)[0] == "samples are found by the names of their files"
    index = small_index(names=[*names[:3], "train/a/x2.jpg"])  # two x2
    path = write({column: [written.format(f"x{k}") for k in (0, 2)], "label": [1, 1]})
    assert labels_of(path, index) == ([1, 1, 2, 0], 1)


def test_columns_of_lists_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    for name in ("label", "path"):
        pq.write_table(pa.table(GOOD | {name: [[1, 2], [3, 4]]}), path)
        with pytest.raises(UserError, match=rf"^table {path}: .*{name}.* list"):
            labels_of(path)


def test_paths_in_another_spelling(write):
    index = small_index(names=["a/\u00e91.jpg", "a/2.jpg", "a/3.jpg", "b"])
    path = write({"path": ["a\\e\u03011.jpg", "./a/2.jpg", "a\\3.jpg"], "label": [1, 2, 1]})
    assert labels_of(path, index) == ([1, 2, 1, 0], 3)


SURE = [[1.0, 0, 0], [0, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 0, 0], [0.5, 0.5, 0.1]], "the probabilities of (line 3|row 2) are not a dis"),
        ([[0.0, 0, 0], [1, 0, 0]], "the probabilities of (line 2|row 1) are not a dis"),
        ([[1.2, -0.2, 0], [1, 0, 0]], "the probabilities of (line 2|row 1) are not a dis"),
        ([[np.nan, 0.5, 0.5], [1, 0, 0]], "the probabilities of (line 2|row 1) are not a dis"),
        ([[1.0, 0], [0, 1]], "has 2 probabilities a row, the data set 3 classes"),
        ([[1.0, 0, 0, 0]] * 2, "has 4 probabilities a row, the data set 3 classes"),
    ],
)
def test_probabilities_that_do_not_fit_are_refused(write, rows, message):
    path = write({"id": [0, 2], "path": ["p0", "p2"], "probabilities": rows})
    for read in (probabilities_of, lambda path: labels_of(path, key="probabilities")):
        with pytest.raises(UserError, match=f"^table {path}: {message}"):
            read(path)


def test_a_table_without_probabilities(write):
    path = write(GOOD)
    with pytest.raises(UserError, match=f"{path}: has no probabilities; export it with --soft"):
        probabilities_of(path)
    assert probabilities_of(write({"id": [0, 2], "path": ["p0", "p2"], "probabilities": SURE}))


@pytest.mark.parametrize("column", ["score", "mark"])
def test_a_list_of_samples_to_leave_out_that_does_not_fit(write, column):
    lines = {"id": [5, 6], "path": ["p5", "p6"], column: ["0.7", "0.8"]}
    path = write(lines)
    with pytest.raises(UserError, match=f"table {path}: 2 of its 2 samples are not in this data"):
        read_left_out(path, small_index(), 0.5)
    path = write({"path": ["p0", "p0"], column: ["0.7", "keep" if column == "mark" else "0.1"]})
    with pytest.raises(UserError, match=f"(line 3|row 2): has another {column} for the sample of"):
        read_left_out(path, small_index(), 0.5)


def test_samples_to_leave_out_are_found_by_path(write):
    lines = {"id": [5, 1, 0], "path": ["p2", "p5", "p7"], "mark": ["fix", "fix", "fix"]}
    log = []
    path = write(lines)
    assert read_left_out(path, small_index(), 0.5, log.append).tolist() == [1, 3]
    assert len(log) == 1 and log[0].startswith("2 of 4 samples; 1 in the table is unknown")
    path = write({"path": ["p5", "p7", "p0"], "reason": ["x", "y", "z"]})
    assert read_exclusions(path, small_index(), log.append) == {0: "z", 3: "y"}
    assert len(log) == 2 and log[1].startswith("2 of 4 samples; 1 in the table is unknown")


def test_scores_that_are_not_numbers(write):
    path = write({"id": [0], "path": ["p0"], "score": ["high"]})
    with pytest.raises(UserError, match=f"{path}: column score does not contain numbers"):
        read_left_out(path, small_index(), 0.5)


def test_probabilities_that_are_not_numbers(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,path,p0,p1,p2\n0,p0,1,0,none\n")
    with pytest.raises(UserError, match=f"^table {path}: its probabilities are not numbers"):
        probabilities_of(str(path))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1.0, 0, 0], None], pa.list_(pa.float32())),
        pa.array([[1.0, 0, 0], [1.0]]),
        pa.array(["1", "2"]),
    ],
)
def test_probabilities_that_are_not_lists_of_one_length(tmp_path, column):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [0, 2], "path": ["p0", "p2"], "probabilities": column}), path)
    with pytest.raises(
        UserError, match=f"^table {path}: column probabilities does not contain list"
    ):
        probabilities_of(path)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([None, "p2"], ", row 1: has no path"),
        ([0, 2], ": 2 of its 2 samples are not in this data set"),
    ],
)
def test_paths_that_are_not_text(tmp_path, paths, message):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(GOOD | {"path": paths}), path)
    with pytest.raises(UserError, match=f"{path}{message}"):
        labels_of(path)


def write_with_names(path, names, **columns):
    table = pa.table({"id": [0, 2], "path": ["p0", "p2"]} | columns)
    pq.write_table(table.replace_schema_metadata({"class_names": json.dumps(names)}), path)
    return path


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["a", "b", "c"], [1, 2]),
        (["c", "a", "b"], [0, 1]),  # in another order
        (["x", "b", "c"], [1, 2]),  # x, which no label uses, is gone
        (["b", "c"], [2]),  # the data set has more classes now
    ],
)
def test_numbers_of_a_table_that_lists_its_classes(tmp_path, names, labels):
    path = write_with_names(tmp_path / "a.parquet", names, refined_label=[1, len(names) - 1])
    wanted = [small_index().class_names.index(names[k]) for k in (1, len(names) - 1)]
    assert labels_of(path)[0] == [*wanted, 2, 0]


@pytest.mark.parametrize("stored", ["[1, 2]", "{", '"abc"', "[" * 100_000])
def test_metadata_that_are_no_names(tmp_path, stored):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(GOOD).replace_schema_metadata({"class_names": stored}), path)
    with pytest.raises(UserError, match=f"^table {path}: its metadata class_names are no list"):
        labels_of(path)


def test_a_class_that_is_gone_with_its_samples(tmp_path, write):
    path = write({"path": ["p0", "p2", "p5"], "label": ["b", "c", "gone"]})
    assert labels_of(path) == ([1, 2, 2, 0], 2)
    table = pa.table({"path": ["p0", "p2", "p5"], "label": [0, 1, 2]})
    names = {"class_names": '["b", "c", "gone"]'}
    pq.write_table(table.replace_schema_metadata(names), tmp_path / "a.parquet")
    assert labels_of(tmp_path / "a.parquet") == ([1, 2, 2, 0], 2)


def test_a_class_that_is_gone_is_refused_by_name(tmp_path):
    path = write_with_names(tmp_path / "a.parquet", ["a", "b", "x"], label=[1, 2])
    with pytest.raises(UserError, match=rf"{path}, row 2: label 'x' is not one of the 3 classes"):
        labels_of(path)


def test_probabilities_by_name(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]
    write_with_names(path, ["c", "a", "b"], probabilities=rows)
    assert probabilities_of(path)[1].tolist() == [[0.25, 0.25, 0.5], [0.125, 0.75, 0.125]]
    assert labels_of(path, key="probabilities") == ([2, 1, 2, 0], 2)
    write_with_names(path, ["c", "a"], probabilities=[[0.25, 0.75], [0, 1]])
    assert probabilities_of(path)[1].tolist() == [[0.75, 0, 0.25], [1, 0, 0]]
    write_with_names(path, ["a", "b", "x"], probabilities=rows)
    with pytest.raises(UserError, match=f"^table {path}: has probabilities of the class x, which"):
        probabilities_of(path)


def test_probabilities_of_a_csv_file_by_the_names_in_it(tmp_path):
    path = tmp_path / "a.csv"
    text = "path,given_label,given_name,refined_label,refined_name,p0,p1,p2\n"
    path.write_text(f"{text}p0,0,c,1,a,0.5,0.25,0.25\np2,2,b,2,b,0.125,0.125,0.75\n")
    assert probabilities_of(path)[1].tolist() == [[0.25, 0.25, 0.5], [0.125, 0.75, 0.125]]
    path.write_text(f"{text}p0,0,c,1,a,0.5,0.25,0.25\n")
    with pytest.raises(UserError, match="column 2 of its probabilities has no class name"):
        probabilities_of(path)


def test_scores_need_no_classes(tmp_path):
    path = write_with_names(tmp_path / "a.parquet", ["x", "y"], score=[0.7, 0.2])
    assert read_left_out(path, small_index(), 0.5).tolist() == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,path,label\n0,p0,1\n2,p2\n", ", line 3: 2 fields, the header has 3; correct the line"),
        ("id,path,label\n0,p0,1,4\n", ", line 2: 4 fields, the header has 3"),
        ("", ": no header; the first line must name the columns"),
        ('id,path,label\n0,p0,1\n2,"p2,0\n', ", line 3: a quote is opened and never closed"),
    ],
)
def test_wrong_lines_of_a_csv_file(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=f"^table {path}{message}"):
        labels_of(str(path))


def test_a_csv_file_of_a_spreadsheet(tmp_path):
    path = tmp_path / "A.CSV"
    path.write_bytes('\ufeffid,path,label\r\n"0",p0,1\r\n2,p2,\r\n'.encode())
    assert labels_of(str(path)) == ([1, 1, 2, 0], 1)


@pytest.mark.parametrize("keep", [4, 20, -10])
def test_a_broken_parquet_file(tmp_path, keep):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(GOOD), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"^table {path}: cannot be read as Parquet .*; write it"):
        labels_of(str(path))


def fill_shard(world, path):
    index = small_index()
    rows = np.array([[3, 0], [1, 2]][world.rank])
    target = torch.full((2, 3), -1.0)
    fill_rows(target, path, index, rows)
    return target.tolist()


def test_every_process_fills_its_own_rows(write):
    soft = {0: [0.5, 0.25, 0.25], 2: [0, 1, 0], 7: [0.125, 0.25, 0.625]}
    path = write({"id": list(soft), "path": ["p0", "p2", "p7"], "probabilities": [*soft.values()]})
    parts = in_processes(2, fill_shard, str(path))
    assert parts == [
        [soft[7], soft[0]],
        [soft[2], [-1, -1, -1]],
    ]  # the table lacks sample 3
