"""Label Studio and FiftyOne: what they import, and marks of people that come back."""

import csv
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from alr_fast.data.index import SampleIndex
from alr_fast.data.label_files.label_table import read_labels, read_left_out
from alr_fast.errors import UserError
from alr_fast.labels import find_issues, read_label_studio, read_marks
from alr_fast.labels.label_studio import interface
from alr_fast.labels.proposals import other_classes, predictions

NAMES = ("cat", "dog", 'a "b" & <c>', "cat")
SHOWN = ["cat (class 0)", "dog", 'a "b" & <c>', "cat (class 3)"]


@pytest.fixture
def issues():
    p = np.array([[0.1, 0.9, 0, 0], [0.7, 0.1, 0.1, 0.1], [0, 0, 0.4, 0.6], [0, 0, 1, 0]])
    return find_issues(
        [0, 0, 2, 1],
        p,
        class_names=NAMES,
        paths=["a.png", "b.png", "c/d.png", "e.png"],
        sample_ids=[10, 20, 30, 40],
        clean_labels=[1, 0, 2, 2],
    )


def test_tasks_of_label_studio(tmp_path, issues):
    path = tmp_path / "tasks.json"
    issues.to_label_studio(path, images=lambda id: f"/data/local-files/?d=images/{id}.png")
    tasks = json.loads(path.read_text())
    assert [task["data"]["sample_id"] for task in tasks] == [
        [10, 20, 30, 40][row] for row in issues.order
    ]
    (task,) = [task for task in tasks if task["data"]["sample_id"] == 30]
    assert task["data"] == {
        "image": "/data/local-files/?d=images/30.png",
        "sample_id": 30,
        "given_label": SHOWN[2],
        "suspicion": pytest.approx(float(issues.scores[2])),
        "path": "c/d.png",
    }
    (prediction,) = task["predictions"]
    assert prediction["score"] == pytest.approx(0.6)
    assert prediction["result"] == [
        {
            "from_name": "label",
            "to_name": "sample",
            "type": "choices",
            "value": {"choices": ["cat (class 3)"]},
        }
    ]
    # The names of the tags are those of the interface, the choices its choices.
    view = ElementTree.fromstring(interface(NAMES))
    assert view.find("Image").attrib == {"name": "sample", "value": "$image"}
    assert view.find("Choices").attrib["toName"] == "sample"
    assert view.find("Choices").attrib["name"] == "label"
    assert [choice.attrib["value"] for choice in view.iter("Choice")] == SHOWN


@pytest.fixture
def doubtful():
    """Five samples with the class 0; the first two are suspicious, also the second one, whose
    refined label is the given one: its loss is high. The third has no other class."""
    p = np.array([[0.2, 0.1, 0.7], [0.5, 0.1, 0.4], [1, 0, 0], [0.9, 0.1, 0], [0.9, 0, 0.1]])
    history = {"given_loss": np.array([3, 3, 0.1, 0.1, 0.1]), "changes": np.zeros(5, np.int64)}
    found = find_issues([0] * 5, p, history, class_names=[*"abc"], paths=[*"vwxyz"])
    object.__setattr__(found, "scores", np.array([0.9, 0.8, 0.7, 0.2, 0.1], np.float32))
    return found


def test_predictions_of_suspicious_samples_are_never_the_given_label(tmp_path, doubtful):
    """The next most probable class, where the refined label is the given one."""
    assert doubtful.refined.tolist() == [2, 0, 0, 0, 0]
    assert predictions(doubtful, np.arange(5)[::-1]) == [
        *((0, pytest.approx(0.9)), (0, pytest.approx(0.9)), None),
        *((2, pytest.approx(0.4)), (2, pytest.approx(0.7))),
    ]
    doubtful.to_label_studio(tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    shown = [
        [result["value"]["choices"] for p in task["predictions"] for result in p["result"]]
        for task in tasks
    ]
    assert shown == [[["c"]], [["c"]], [], [["a"]], [["a"]]]
    doubtful.to_fiftyone(tmp_path / "folder")
    labels = json.loads((tmp_path / "folder/labels.json").read_text())["labels"]
    # The attributes need a label: the third keeps its own.
    assert [labels[str(id)]["label"] for id in range(5)] == [2, 2, 0, 0, 0]
    assert labels["1"]["confidence"] == pytest.approx(0.4)


def test_other_classes_are_never_the_given_label(doubtful):
    p = pytest.approx
    assert other_classes(doubtful, np.array([1, 2, 4])) == [
        ((2, p(0.4)), (1, p(0.1))), (), ((2, p(0.1)),)
    ]  # fmt: skip


def test_texts_paths_and_a_limit(tmp_path, issues):
    path = tmp_path / "tasks.json"
    issues.to_label_studio(path, text=["w", "x", "y", "z"], most=2)
    tasks = json.loads(path.read_text())
    assert [task["data"]["text"] for task in tasks] == ["wxyz"[row] for row in issues.order[:2]]
    assert ElementTree.fromstring(interface(NAMES, "text")).find("Text").attrib["value"] == "$text"
    issues.to_label_studio(path)
    assert {task["data"]["image"] for task in json.loads(path.read_text())} == set(issues.paths)


def test_texts_of_pandas_are_read_by_position(tmp_path, issues):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "tasks.json"
    for index in ([3, 2, 1, 0], list("dcba")):
        issues.to_label_studio(path, text=pandas.Series(list("wxyz"), index=index))
        texts = [task["data"]["text"] for task in json.loads(path.read_text())]
        assert texts == ["wxyz"[row] for row in issues.order]


def test_texts_that_are_not_unicode_are_written(tmp_path, issues):
    texts = ["half \ud83d", "x", "y", "z"]
    issues.to_label_studio(tmp_path / "tasks.json", text=texts)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert "half \\ud83d" in [task["data"]["text"] for task in tasks]


@pytest.mark.parametrize("most", [-1, 1.5, True, "2"])
def test_numbers_of_samples_that_are_none(tmp_path, issues, most):
    for call, name in ((issues.to_label_studio, "tasks.json"), (issues.to_fiftyone, "folder")):
        with pytest.raises(UserError, match=f"most {most}: must be 0 or more, or None"):
            call(tmp_path / name, most=most)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": ["a"] * 4, "text": ["a"] * 4}, "text: pass either images or text"),
        ({"images": ["a"]}, "images: has 1 entries for 4 samples; pass one for each"),
        ({"text": 3}, "text: is a int; pass a list"),
        ({"text": "abcd"}, "text: is a str; pass a list"),
        ({"text": {10: "a"}}, "text: is a dict, which has no order; pass its get method"),
    ],
)
def test_wrong_sources(tmp_path, issues, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        issues.to_label_studio(tmp_path / "a.json", **arguments)
    bare = find_issues([0], [[1.0]])
    with pytest.raises(UserError, match="images: there is nothing to show"):
        bare.to_label_studio(tmp_path / "a.json")
    with pytest.raises(UserError, match="images: there are no files to show"):
        bare.to_fiftyone(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_of_fiftyone(tmp_path, issues):
    folder = tmp_path / "suspects"
    issues.to_fiftyone(folder, images=[tmp_path / f"{k}.png" for k in range(4)])
    labels = json.loads((folder / "labels.json").read_text())
    files = json.loads((folder / "data.json").read_text())
    assert labels["classes"] == SHOWN
    assert list(labels["labels"]) == list(files) == [str([10, 20, 30, 40][k]) for k in issues.order]
    assert files["30"] == str(tmp_path / "2.png")
    entry = labels["labels"]["30"]
    assert (entry["label"], entry["confidence"]) == (3, pytest.approx(0.6))
    assert entry["attributes"] == {
        "sample_id": 30,
        "given_label": SHOWN[2],
        "score": pytest.approx(float(issues.scores[2])),
        "given_probability": pytest.approx(0.4),
        "margin": pytest.approx(-0.2),
        "entropy": pytest.approx(-0.6 * np.log(0.6) - 0.4 * np.log(0.4)),
        "changes": 0,
        "clean_label": SHOWN[2],
    }  # given_loss is unknown, and JSON has no NaN
    issues.to_fiftyone(folder, most=1)
    labels = json.loads((folder / "labels.json").read_text())["labels"]
    files = json.loads((folder / "data.json").read_text())
    assert list(labels) == list(files) == [str([10, 20, 30, 40][issues.order[0]])]
    with pytest.raises(UserError, match="images: entry 3 is a ndarray; pass the path"):
        issues.to_fiftyone(folder, images=np.zeros((4, 8, 8)))


def annotated(sample_id, *choices, updated="2024-05-01T10:00:00.000000Z", **facts):
    """A task as Label Studio exports it as JSON."""
    result = [
        {
            "value": {"choices": list(choices)},
            "id": "x7Hsd",
            "from_name": "label",
            "to_name": "sample",
            "type": "choices",
            "origin": "manual",
        }
    ]
    annotation = {
        "id": 5,
        "completed_by": 1,
        "result": result if choices else [],
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2024-05-01T09:00:00.000000Z",
        "updated_at": updated,
    }
    data = {"image": "a.png", "sample_id": sample_id}
    return {"id": 1, "annotations": [annotation | facts], "data": data, "predictions": []}


def test_marks_of_label_studio(tmp_path):
    two = annotated(7, "dog", updated="2024-05-02T10:00:00Z")
    two["annotations"] += annotated(7, SHOWN[3], updated="2024-05-01T10:00:00Z")["annotations"]
    two["annotations"] += annotated(7, SHOWN[0], updated="2024-05-01T11:00:00Z")["annotations"]
    timeless = annotated(4, "dog")
    del timeless["annotations"][0]["created_at"], timeless["annotations"][0]["updated_at"]
    other = annotated(8, "dog")
    other["annotations"][0]["result"][0]["from_name"] = "quality"
    tasks = [
        annotated(30, SHOWN[2]),
        annotated(5, SHOWN[3]),
        annotated(6),
        annotated(9, "dog", was_cancelled=True),
        two,
        timeless,
        other,
        {"id": 2, "data": {"sample_id": 1}, "annotations": []},
    ]
    path = tmp_path / "project.json"
    path.write_text(json.dumps(tasks))
    ids, labels = read_label_studio(path, NAMES)
    assert (ids.tolist(), labels.tolist()) == ([4, 5, 7, 30], [1, 3, 1, 2])
    assert ids.dtype == labels.dtype == np.int64
    assert read_label_studio(path, NAMES, from_name="quality")[0].tolist() == [8]


def test_marks_of_label_studio_without_a_time(tmp_path):
    first, second = annotated(4, "dog"), annotated(4, SHOWN[0])
    for task in (first, second):
        for name in ("created_at", "updated_at"):
            task["annotations"][0].pop(name, None)
    path = tmp_path / "project.json"
    path.write_text(json.dumps([first, second]))
    assert [part.tolist() for part in read_label_studio(path, NAMES)] == [[4], [0]]
    path.write_text(json.dumps([second, first]))
    assert [part.tolist() for part in read_label_studio(path, NAMES)] == [[4], [1]]


def test_marks_of_label_studio_in_the_short_form(tmp_path):
    facts = {"annotator": 1, "annotation_id": 3, "updated_at": "2024-05-01T10:00:00Z"}
    tasks = [
        {"image": "a.png", "sample_id": 4, "id": 1, "label": "dog", **facts},
        {"image": "b.png", "sample_id": 3, "id": 2, "label": {"choices": [SHOWN[0]]}, **facts},
        {"image": "c.png", "sample_id": 2, "id": 3, **facts},
    ]
    path = tmp_path / "project.json"
    path.write_text(json.dumps(tasks))
    ids, labels = read_label_studio(path, NAMES)
    assert (ids.tolist(), labels.tolist()) == ([3, 4], [0, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory; pass a readable file"),
        ("[", "is no JSON"),
        ('{"a": 1}', "is no list of tasks; export the project as JSON or JSON-MIN"),
        (
            json.dumps([annotated(1, "bird")]),
            "sample 1 has the choice bird; the classes are cat (c",
        ),
        (json.dumps([annotated(1, "dog", SHOWN[0])]), "sample 1 has the choice dog, cat (class 0)"),
        (json.dumps([annotated("x", "dog")]), "has 'x' where an integer belongs"),
        ("[" * 100_000, "is no JSON (maximum recursion depth exceeded"),
        (json.dumps([annotated(10**19, "dog")]), "has 10000000000000000000 where an integer"),
        (json.dumps([annotated(1, ["dog"])]), "task 1 is no task of an export (TypeError("),
        (json.dumps([annotated(1, "dog") | {"data": 3}]), "task 1 is no task of an export"),
        (json.dumps([annotated(1, "dog") | {"annotations": [4]}]), "(AttributeError("),
        (json.dumps([annotated(1, "dog") | {"annotations": 4}]), "task 1 is no task of an export"),
        (json.dumps([{"id": 9, "sample_id": 3, "label": 5}]), "task 9 is no task of an export"),
        (
            json.dumps([annotated(1, "dog", result=[{"type": "choices", "from_name": "label"}])]),
            "task 1 is no task of an export (KeyError('value'))",
        ),
        (
            json.dumps([annotated(1, "dog") | {"data": {"image": "a"}}]),
            "task 1 has no sample_id; import the tasks of to_label_studio",
        ),
    ],
)
def test_wrong_files_of_label_studio(tmp_path, content, message):
    path = tmp_path / "project.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_label_studio(path, NAMES)


OLD = "id,path,given,refined,score,mark,label,given_name,refined_name\r\n"
NEW = OLD.replace("\r\n", ",label_name\r\n")


@pytest.fixture
def marks(tmp_path):
    def write(text):
        path = tmp_path / "marks.csv"
        path.write_text(text, newline="")
        return path

    return write


def small_index():
    names = ("cat", "dog", "=frog")
    return SampleIndex(np.arange(4), ["a", "b", "c", "d"], np.zeros(4, np.int64), None, names)


def test_marks_of_the_page(marks):
    lines = (
        '3,"d",0,1,0.9,"fix",2,"cat","dog","\'=frog"\r\n'
        '1,"b",0,1,0.9,"keep",0,"cat","dog","cat"\r\n'
        '0,"a",0,1,0.9,"unsure",,"cat","dog",\r\n'
    )
    index = small_index()
    path = marks(NEW + lines)
    ids, labels = read_marks(path, index.class_names)
    assert (ids.tolist(), labels.tolist()) == ([1, 3], [0, 2])
    assert read_labels(path, index, None).labels.tolist() == [0, 0, 0, 2]
    assert read_left_out(path, index, 0.5).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('3,"d",0,1,0.9,"fix",0,"cat","dog","cat"\r\n', "fix with its given label cat; choose"),
        ('3,"d",0,1,0.9," FIX ","0.0","cat","dog","cat"\r\n', "fix with its given label cat;"),
        ('3,"d",0,1,0.9,"fix","0",,,\r\n', "fix with its given label 0;"),
        ('3,"d",,,,"fix",,"cat","dog","cat"\r\n', "fix with its given label cat;"),
        ('3,"d","cat",1,0.9,"fix","cat",,,\r\n', "fix with its given label cat;"),
        ('3,"d",0,1,0.9,"fix",,"cat","dog",\r\n', "fix with no label;"),
        (
            '3,"d",0,0,0.9,"fix",0,"cat","cat","cat"\r\n1,"b",1,1,0.9,"fix",1,"dog","dog","dog"'
            '\r\n0,"a",0,1,0.9,"fix",1,"cat","dog","dog"\r\n',
            "fix with its given label cat, and 1 more; choose another class, or change the mark to "
            "keep or unsure",
        ),
    ],
)
def test_fix_without_another_label_is_refused(marks, lines, message):
    """As earlier pages exported it where the refined label is the given one."""
    path, index = marks(NEW + lines), small_index()
    for read in (
        lambda: read_marks(path, index.class_names),
        lambda: read_labels(path, index, None),
        lambda: read_labels(path, index, "label"),
    ):
        with pytest.raises(UserError, match=re.escape(f"{path}, line 2: is marked {message}")):
            read()
    # The samples are left out all the same, and another column does not depend on the marks.
    assert 3 in read_left_out(path, index, 0.5)


@pytest.mark.parametrize("mark", ["fix", "keep", "unsure", ""])
@pytest.mark.parametrize("label", ['1,"cat","dog","dog"', '2,"cat","dog","\'=frog"'])
def test_marks_with_another_label_are_read(marks, mark, label):
    path = marks(NEW + f'3,"d",0,1,0.9,"{mark}",{label}\r\n')
    assert read_marks(path, small_index().class_names)[1].tolist() == [int(label[0])]


def test_marks_of_earlier_pages(marks):
    index = small_index()
    path = marks(
        OLD + '3,"d",0,1,0.9,"fix",1,"cat","dog"\r\n2,"c",0,1,0.9,"unsure",,"cat","dog"\r\n'
    )
    assert read_labels(path, index, None).labels.tolist() == [0, 0, 0, 1]
    assert [column.tolist() for column in read_marks(path, index.class_names)] == [[3], [1]]


def test_marks_without_paths_are_refused_for_training(marks):
    index = small_index()
    path = marks(NEW + '3,"",0,1,0.9,"fix",2,"cat","dog","\'=frog"\r\n')
    with pytest.raises(UserError, match=r"has no paths, and its ids are not exactly .*paths="):
        read_labels(path, index, None)
    assert read_marks(path, index.class_names)[0].tolist() == [3]


def test_marks_of_a_class_whose_name_is_not_utf_8(tmp_path, marks):
    names = ("cat", "b\udcff", "dog")
    path = marks('id,label,label_name\r\n2,1,"b\ufffd"\r\n')  # as a browser writes it
    assert [column.tolist() for column in read_marks(path, names)] == [[2], [1]]
    find_issues([0], np.eye(3)[:1], class_names=names).write_marks(path, [0], [1])
    assert [column.tolist() for column in read_marks(path, names)] == [[0], [1]]
    path = marks("id,label,label_name\r\n2,1,dog\r\n")  # the classes had another order
    assert [column.tolist() for column in read_marks(path, names)] == [[2], [2]]


def test_marks_with_other_classes_are_refused(marks):
    index = small_index()
    path = marks(NEW + '3,"d",0,1,0.9,"fix",2,"cat","dog","toad"\r\n')
    message = r", line 2: label 'toad' is not one of the 3 classes \(cat, dog, =frog\)"
    with pytest.raises(UserError, match=message):
        read_labels(path, index, None)
    with pytest.raises(UserError, match=message):
        read_marks(path, index.class_names)


def test_marks_made_with_the_classes_in_another_order(marks):
    names = ("=frog", "cat", "dog")
    path = marks(NEW + '3,"d",0,1,0.9,"fix",2,"cat","dog","\'=frog"\r\n')
    assert [column.tolist() for column in read_marks(path, names)] == [[3], [0]]


def test_a_label_that_was_changed_without_its_name_is_refused(marks):
    path = marks(NEW + '3,"d",0,1,0.9,"fix",0,"cat","dog","dog"\r\n')
    for read in (read_marks, lambda path, _: read_labels(path, small_index(), None)):
        with pytest.raises(
            UserError, match=r"line 2: calls class 0 'dog', .*line 2 'cat'; write the"
        ):
            read(path, small_index().class_names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,mark\r\n1,keep\r\n", "has no column label; export the marks again"),
        ("id,label\r\n1,7\r\n", "label '7' is not one of the 3 classes"),
        ("id,label\r\nx,1\r\n", "has 'x' where an integer belongs"),
        ("id,label\r\n9223372036854775808,1\r\n", "has '9223372036854775808' where an integer"),
        ("id,label\r\n1,1\r\n1,2\r\n", "has two labels for sample 1; keep one of them"),
    ],
)
def test_wrong_marks(marks, text, message):
    with pytest.raises(UserError, match=message):
        read_marks(marks(text), small_index().class_names)


def test_marks_are_written_for_training(tmp_path, issues):
    path = tmp_path / "marks.csv"
    issues.write_marks(path, [40, 10], [2, 1])
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[0] == {
        "id": "40",
        "path": "e.png",
        "given_label": "1",
        "label": "2",
        "given_name": "dog",
        "label_name": NAMES[2],
    }
    index = SampleIndex(issues.sample_ids, list(issues.paths), issues.labels, None, NAMES)
    assert read_labels(path, index, None).labels.tolist() == [1, 0, 2, 2]
    assert [column.tolist() for column in read_marks(path, NAMES)] == [[10, 40], [1, 2]]
    for arguments, message in (
        (([11], [0]), "sample_ids: there is no sample 11"),
        (([10], [4]), "labels: there is no class 4"),
        (([10], [0, 1]), "labels: has 2 entries for 1 ids"),
    ):
        with pytest.raises(UserError, match=message):
            issues.write_marks(path, *arguments)
