"""The same list in every form that people write it in is the same data set."""

import datetime
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alr_fast.data import open_dataset
from alr_fast.errors import UserError

ROWS = [
    (f"{label}/b\u00e4r {k}.png", label, "train" if k < 2 else "test")
    for label in ("cat", "d\u00f6g") for k in range(3)
]  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    root = tmp_path / "set"
    for path, *_ in ROWS:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))
    return root


def text(rows, mark=",", end="\n", header=("path", "label", "split")):
    return "".join(mark.join(row) + end for row in (header, *rows)).encode()


def with_paths(change):
    return lambda root: text([(change(path, root), *rest) for path, *rest in ROWS])


def arrow(root):
    table = pa.table({"image": [r[0] for r in ROWS], "class": [r[1] for r in ROWS],
                      "subset": [r[2] for r in ROWS]})  # fmt: skip
    pq.write_table(table, root / "x")
    content = (root / "x").read_bytes()
    (root / "x").unlink()
    return content


FORMS = {
    "plain": lambda root: text(ROWS),
    "semicolons": lambda root: text(ROWS, ";"),
    "tabs": lambda root: text(ROWS, "\t"),
    "blanks": lambda root: text(ROWS, " , "),
    "Windows lines": lambda root: text(ROWS, end="\r\n"),
    "quotes": lambda root: text([[f'"{cell}"' for cell in row] for row in ROWS]),
    "mark": lambda root: b"\xef\xbb\xbf" + text(ROWS),
    "UTF-16": lambda root: text(ROWS, "\t").decode().encode("utf-16"),
    "Windows-1252": lambda root: text(ROWS, ";").decode().encode("cp1252"),
    "synonyms": lambda root: text(ROWS, header=("Image Path", "Class Name", "Subset")),
    "JSON lines": lambda root: "".join(
        json.dumps({"file_name": p, "label": y, "split": s}) + "\n" for p, y, s in ROWS
    ).encode(),
    "Parquet": arrow,
    "backslashes": with_paths(lambda path, root: path.replace("/", "\\")),
    "dots": with_paths(lambda path, root: f"./{path}"),
    "absolute": with_paths(lambda path, root: f"{root}/{path}"),
    "home": with_paths(lambda path, root: f"~/set/{path}"),
    "addresses": with_paths(lambda path, root: f"file://{root}/{path.replace(' ', '%20')}"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_forms_of_a_list(root, form, suffix):
    file = root / f"all{suffix}"
    file.write_bytes(FORMS[form](root))
    for split in ("train", "test"):
        listed = open_dataset("table", file).split(split)
        rows = [row for row in ROWS if row[2] == split]
        assert list(listed.index.paths) == [row[0] for row in rows]
        names = listed.index.class_names
        assert [names[label] for label in listed.index.labels] == [row[1] for row in rows]
        for row in range(len(rows)):
            assert listed.images.read(row).startswith(b"\x89PNG")
        said = [remark for remark in listed.remarks if "Windows-1252" in remark]
        assert bool(said) == (form == "Windows-1252")


def test_a_column_of_yes_and_no_names_the_splits(root):
    columns = {"path": [row[0] for row in ROWS], "label": [row[1] for row in ROWS]}
    columns["is_test"] = [row[2] == "test" for row in ROWS]
    pq.write_table(pa.table(columns), root / "all.parquet")
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (root / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name in ("all.parquet", "all.jsonl"):
        listed = open_dataset("table", root / name).split("test")
        assert list(listed.index.paths) == [row[0] for row in ROWS if row[2] == "test"]


def test_columns_of_other_types_are_no_obstacle(root):
    columns = {"file_name": [row[0] for row in ROWS], "label": [row[1] for row in ROWS]}
    others = {"tags": [["x"]] * 6, "seen": [True] * 6, "day": [datetime.date(2024, 1, 1)] * 6}
    pq.write_table(pa.table(others | columns), root / "all.parquet")
    records = [dict(zip(columns, row[:2], strict=True)) | {"objects": {"n": [1]}} for row in ROWS]
    (root / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name in ("all.parquet", "all.jsonl"):
        listed = open_dataset("table", root / name).split("train")
        assert list(listed.index.paths) == columns["file_name"]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("s3://bucket/a.png", "is an address; only files on a disk are read: download them"),
        ("https://x.org/a.png", "is an address"),
        ("/somewhere/else/a.png", "leads out of the data folder"),
        ("D:\\data\\a.png", "leads out of the data folder"),
        ("../a.png", "leads out of the data folder"),
    ],
)
def test_paths_of_a_list_that_are_elsewhere(root, path, problem):
    file = root / "all.csv"
    file.write_bytes(text([*ROWS, (path, "cat", "train")]))
    with pytest.raises(UserError, match=f"all.csv, line {len(ROWS) + 2}: .*{problem}") as error:
        open_dataset("table", file).split("train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "labels", [pa.array([[1]] * 6), pa.array([True] * 6), pa.array([{"a": 1}] * 6),
               pa.array([datetime.date(2024, 1, 1)] * 6), pa.array([b"\xff"] * 6)],
)  # fmt: skip
def test_labels_of_other_types(root, labels):
    paths = [row[0] for row in ROWS]
    pq.write_table(pa.table({"path": paths, "label": labels}), root / "all.parquet")
    with pytest.raises(UserError, match="column label ") as error:
        open_dataset("table", root / "all.parquet").split("train")
    assert "all.parquet" in str(error.value)


def test_paths_in_lists(root):
    paths = pa.array([[row[0]] for row in ROWS])
    pq.write_table(pa.table({"path": paths, "label": ["a"] * 6}), root / "all.parquet")
    with pytest.raises(UserError, match="column path is of type list"):
        open_dataset("table", root / "all.parquet").split("train")


def test_names_of_an_old_disk(root):
    """Bytes that are not UTF-8 are the name of the file, if there is one."""
    name = os.fsdecode(b"cat/b\xe4r.png")
    os.rename(root / ROWS[0][0], root / name)
    content = b"path,label,split\ncat/b\xe4r.png,cat,train\n" + text(ROWS[1:]).split(b"\n", 1)[1]
    (root / "all.csv").write_bytes(content)
    listed = open_dataset("table", root / "all.csv").split("train")
    assert listed.index.paths[0] == name and listed.images.read(0).startswith(b"\x89PNG")
