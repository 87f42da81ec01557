"""The file of marks: what it contains, what is read from it."""

import os

import numpy as np
import pytest

from alr_fast.data.index import SampleIndex
from alr_fast.data.label_files.label_table import read_labels, read_left_out
from alr_fast.errors import UserError
from alr_fast.labels import read_marks
from alr_fast.labels.report.marks_file import MarksFile
from helpers.report_pages import NAMES
from helpers.review import labels_of_page, lines_of

HEADER = "id,path,given,refined,score,mark,label,given_name,refined_name,label_name\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "marks.csv"


@pytest.fixture
def marks(path):
    return MarksFile(path, labels_of_page())


@pytest.fixture(scope="module")
def index():
    labels = labels_of_page()
    return SampleIndex(labels.sample_ids, labels.paths, labels.labels, None, labels.class_names)


def test_training_reads_what_is_written(marks, path, index):
    """Keep, fix, another class and unsure, with names and paths that need quotes."""
    marks.update({4: "fix 2", 5: "fix 1", 6: "keep", 7: "unsure", 8: "fix 3", 9: "fix 4"})
    labels = index.labels.copy()
    labels[[4, 5, 8, 9]] = 2, 1, 3, 4
    assert read_labels(path, index, None).labels.tolist() == labels.tolist()
    assert read_left_out(path, index, 0.5).tolist() == [4, 5, 7, 8, 9]
    ids, chosen = read_marks(path, NAMES)
    assert dict(zip(ids.tolist(), chosen.tolist(), strict=True)) == {
        4: 2, 5: 1, 6: 0, 8: 3, 9: 4,
    }  # fmt: skip
    assert lines_of(path)[7]["path"].startswith("'=HYPERLINK(")  # harmless in a spreadsheet


def test_the_columns_are_those_of_the_page(marks, path):
    marks.update({4: "keep"})
    assert path.read_text().splitlines()[0] == HEADER.strip()
    row = lines_of(path)[4]
    score = labels_of_page().scores[4]
    assert float(row["score"]) == pytest.approx(score) and row["given_name"] == "dog"
    assert row["refined_name"] == "frog"


def test_most_suspicious_first(marks, path):
    ids = list(range(60))
    marks.update(dict.fromkeys(ids, "keep"))
    scores = [float(row["score"]) for row in lines_of(path).values()]
    assert scores == sorted(scores, reverse=True)


def test_a_restart_keeps_marks(marks, path):
    kept = {4: "fix 2", 7: "unsure", 6: "keep"}
    marks.update(kept)
    again = MarksFile(path, labels_of_page())
    assert again.marks() == kept and len(again) == 3
    again.update({6: None, 9: "fix 3"})
    assert MarksFile(path, labels_of_page()).marks() == {4: "fix 2", 7: "unsure", 9: "fix 3"}


def test_classes_are_found_by_name(marks, path):
    """The data set has its classes in another order now."""
    marks.update({4: "fix 2", 5: "fix 0"})
    order = [2, 0, 1, 3, 4]
    labels = labels_of_page()
    new = np.argsort(order)
    other = labels_of_page(
        labels=new[labels.labels].tolist(), class_names=[NAMES[k] for k in order]
    )
    assert MarksFile(path, other).marks() == {4: f"fix {new[2]}", 5: f"fix {new[0]}"}


def test_a_fix_to_the_label_that_is_given_now_is_kept(marks, path):
    marks.update({4: "fix 2", 6: "keep"})
    labels = labels_of_page().labels.copy()
    labels[[4, 6]] = 2, 1
    again = MarksFile(path, labels_of_page(labels=labels.tolist()))
    assert again.marks() == {4: "keep", 6: "fix 0"}


def test_a_table_without_marks(path):
    """As `LabelIssues.write_marks` writes labels that people chose elsewhere."""
    labels_of_page().write_marks(path, [4, 6], [2, 0])
    assert MarksFile(path, labels_of_page()).marks() == {4: "fix 2", 6: "keep"}


def test_a_spreadsheet_may_change_the_file(marks, path):
    marks.update({4: "fix 2", 6: "keep"})
    text = path.read_text().replace("fix,2", "unsure,").replace(",frog\n", ",\n")
    path.write_text(text)
    os.utime(path, ns=(1, 1))
    assert marks.marks()[4] == "unsure"
    marks.update({7: "keep"})
    assert MarksFile(path, labels_of_page()).marks() == {4: "unsure", 6: "keep", 7: "keep"}
    path.write_text("no table\n")
    with pytest.raises(UserError, match=r"marks\.csv"):
        marks.update({8: "keep"})
    assert path.read_text() == "no table\n"
    path.unlink()  # what is known is written again
    marks.update({8: "keep"})
    assert set(lines_of(path)) == {4, 6, 7, 8}


OTHERS = {
    "other samples": ("0,elsewhere/1.jpg,0,1,0.9,keep,0,cat,dog,cat\n", "not in this data set"),
    "one other sample": (
        "4,train/dog/0004.jpg,1,2,0.9,keep,1,dog,frog,dog\n"
        "90,train/dog/0090.jpg,1,2,0.9,keep,1,dog,frog,dog\n",
        "line 3: is a sample that the run does not have; move the file away",
    ),
    "another class": ("4,train/dog/0004.jpg,1,2,0.9,fix,7,dog,frog,horse\n", "horse"),
    "another mark": ("4,train/dog/0004.jpg,1,2,0.9,wrong,1,dog,frog,dog\n", "the mark wrong is"),
    "no label": ("4,train/dog/0004.jpg,1,2,0.9,fix,,dog,frog,\n", "line 2: has no label"),
    "twice": (
        "4,train/dog/0004.jpg,1,2,0.9,fix,2,dog,frog,frog\n"
        "4,train/dog/0004.jpg,1,2,0.9,fix,0,dog,frog,cat\n",
        "has another label",
    ),
}


@pytest.mark.parametrize(("lines", "reason"), OTHERS.values(), ids=OTHERS)
def test_marks_of_other_data_are_refused(path, lines, reason):
    path.write_text(HEADER + lines)
    with pytest.raises(UserError, match=reason) as error:
        MarksFile(path, labels_of_page())
    assert str(path) in str(error.value)
    assert path.read_text() == HEADER + lines


def test_marks_of_an_earlier_run_are_taken_over(marks, path, tmp_path):
    marks.update({4: "fix 2", 6: "keep", 7: "unsure"})
    labels = labels_of_page().labels.copy()
    labels[4] = 2  # as the run was trained
    later = MarksFile(tmp_path / "later.csv", labels_of_page(labels=labels.tolist()))
    later.take_over(path)
    assert later.marks() == {4: "keep", 6: "keep", 7: "unsure"}
    assert not later.path.exists()
    later.update({8: "unsure"})
    assert set(lines_of(later.path)) == {4, 6, 7, 8}
    assert lines_of(later.path)[4]["label_name"] == "frog"
