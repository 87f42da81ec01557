"""The one reader of tables: formats, encodings, columns, errors with their line."""

import csv
import datetime
import decimal
import gzip
import io
import json
import os
import pickle
import re
import subprocess
import sys
import time
import zipfile
from importlib import resources

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alr_fast.data.tables import TableError, as_text, csv_text, json_text, open_table
from alr_fast.data.tables.cells import CsvWriter, harmless, original
from alr_fast.data.tables.roles import SYNONYMS, find_column


def read(path, columns=None, rows=1000, chosen=None):
    """Lines, columns as lists of texts, and remarks."""
    with open_table(path, chosen) as table:
        names = list(dict.fromkeys(table.columns) if columns is None else columns)
        numbers, values = [], {name: [] for name in names}
        for batch in table.batches(names, rows):
            assert len(batch.numbers) <= rows
            numbers += batch.numbers.tolist()
            for name in names:
                values[name] += as_text(batch.columns[name]).tolist()
        return numbers, values, list(table.remarks)


def written(tmp_path, content, name="table"):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(path, columns=None, **options):
    with pytest.raises(TableError) as error:
        read(path, columns, **options)
    text = f"{error.value.where}: {error.value}"
    assert "\n" not in text and text.startswith(str(path))
    return text.removeprefix(str(path))


# CSV.


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".npz", ".txt", ""])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_line_ends_and_names_of_files(tmp_path, delimiter, end, suffix):
    lines = ["path,label", "a.jpg,3", "", "b b.jpg,cat", ",", "c,"]
    text = end.join(lines).replace(",", delimiter)
    for last in ("", end):
        numbers, columns, remarks = read(written(tmp_path, text + last, f"t{suffix}"))
        assert columns == {"path": ["a.jpg", "b b.jpg", "", "c"], "label": ["3", "cat", "", ""]}
        assert numbers == [2, 4, 5, 6] and not remarks


def test_the_delimiter_divides_header_and_rows(tmp_path):
    _, columns, _ = read(written(tmp_path, "path;label, as given\na,b.jpg;1\n"))
    assert columns == {"path": ["a,b.jpg"], "label, as given": ["1"]}
    _, columns, _ = read(written(tmp_path, "a,b;c\nx,y,1;z\n"))
    assert columns == {"a,b": ["x,y,1"], "c": ["z"]}


def test_quotes(tmp_path):
    text = (
        'path,label,n\n"a, ""b"".jpg",cat,1\n"c\nd\r\ne",",",2\n5" disk.jpg,"x"y,3\n"",""""," "\n'
    )
    numbers, columns, _ = read(written(tmp_path, text))
    assert columns["path"] == ['a, "b".jpg', "c\nd\r\ne", '5" disk.jpg', ""]
    assert columns["label"] == ["cat", ",", "xy", '"']
    assert columns["n"] == ["1", "2", "3", ""]
    assert numbers == [2, 3, 6, 7]  # the first line of each row


def test_blanks_and_quotes_around_fields(tmp_path):
    text = 'path , label\t, "name"\n a.jpg , "cat, or dog"x , "a ""b""" \n'
    assert "4 fields" in refused(written(tmp_path, text))
    text = 'path , label\t, "name"\n a.jpg ,  cat , "a ""b""" \n'
    _, columns, _ = read(written(tmp_path, text))
    assert columns == {"path": ["a.jpg"], "label": ["cat"], "name": ['a "b"']}


def test_blanks_in_names_of_files_stay(tmp_path):
    """Unless the names of the columns have blanks around them, too."""
    _, columns, _ = read(written(tmp_path, "path,label\n a.jpg , 1 \n"))
    assert columns == {"path": [" a.jpg "], "label": ["1"]}
    _, columns, _ = read(written(tmp_path, "x,label\n a.jpg ,1\n"), chosen={"path": "x"})
    assert columns["x"] == [" a.jpg "]


def test_nothing_is_converted(tmp_path):
    values = ["007", "1e5", "2024-01-02", "NA", "null", "true", "3.0", "nan", "-1", "1 000"]
    text = "path,label\n" + "".join(f"{k},{value}\n" for k, value in enumerate(values))
    assert read(written(tmp_path, text))[1]["label"] == values


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path,label\na,1\nb\n", ", line 3: 1 fields, the header has 2; correct the line"),
        ("path,label\n\na,1,2\n", ", line 3: 3 fields, the header has 2"),
        ('path,label\n"a\nb",1\nc\n', ", line 4: 1 fields"),
        ('path,label\na,1\n"b,2\nc,3\n', ", line 3: a quote is opened and never closed"),
        ("", ": no header; the first line must name the columns"),
        ("\n\r\n", ": no header"),
        ("path,label\na,1\n".encode("utf-16-le"), ": contains zero bytes"),
        (b"\xff\xfep\0a\0t\0h\0,\0\0\xd8\n\0", ": is no valid utf-16-le text"),
        (b"\xff\xfep\0,\0x\0\n\0a\0,\0b\0\n", ": is no valid utf-16-le text"),
    ],
)
def test_wrong_lines(tmp_path, text, problem):
    assert refused(written(tmp_path, text)).startswith(problem)


def test_pieces_of_any_size_give_the_same_rows(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    alphabet = [*'ab,"\n\r', "\u00e4", "\r\n"]
    rows = [["".join(rng.choice(alphabet, 3)) + "x" for _ in range(3)] for _ in range(50)]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["u", "v", "w"])
    writer.writerows(rows)
    path = written(tmp_path, buffer.getvalue())
    expected = {name: [row[k] for row in rows] for k, name in enumerate("uvw")}
    whole = read(path)
    assert whole[1] == expected
    for size in (1, 2, 3, 7, 64):
        monkeypatch.setattr("alr_fast.data.tables.encoding._PIECE", size)
        assert read(path, rows=4) == whole


def test_a_row_without_an_end_takes_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_text, "_LARGEST_ROW", 1000)
    monkeypatch.setattr("alr_fast.data.tables.encoding._PIECE", 100)
    text = "path,label\na,1\n"
    assert refused(written(tmp_path, text + 'b,"' + "x\n" * 900)).startswith(", line 3: a quote")
    assert refused(written(tmp_path, text + "x" * 2000)).startswith(", line 3: is too long")


def test_one_column(tmp_path):
    numbers, columns, _ = read(written(tmp_path, 'path\na.jpg\n\n""\nb.jpg'))
    assert columns == {"path": ["a.jpg", "", "b.jpg"]} and numbers == [2, 4, 5]


# Encodings.


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", ["csv", "json lines", "json"])
def test_encodings_with_a_mark(tmp_path, encoding, form):
    records = [{"path": "a\u00e4.jpg", "label": "\u732b"}, {"path": "b", "label": "\U0001f431"}]
    text = "path,label\n" + "".join(f"{r['path']},{r['label']}\n" for r in records)
    if form == "json lines":
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if form == "json":
        text = json.dumps(records, ensure_ascii=False, indent=1)
    _, columns, remarks = read(written(tmp_path, text.encode(encoding)))
    assert columns == {"path": ["a\u00e4.jpg", "b"], "label": ["\u732b", "\U0001f431"]}
    assert not remarks


def test_utf_16_of_the_other_order(tmp_path):
    text = "\ufeffpath,label\n\u00e4,1\n".encode("utf-16-be")
    assert read(written(tmp_path, text))[1] == {"path": ["\u00e4"], "label": ["1"]}


def test_windows_1252_is_said(tmp_path):
    path = written(tmp_path, "path,label\na.jpg,B\u00e4r \u20ac\nb.jpg,cat\n".encode("cp1252"))
    _, columns, remarks = read(path)
    assert columns["label"] == ["B\u00e4r \u20ac", "cat"]
    assert remarks == [f"{path}: is not UTF-8; texts are read as Windows-1252"]


def test_bytes_of_names_of_files_stay(tmp_path):
    """Old disks have names in any encoding; `alr_fast.data.paths` decides by the files there."""
    _, columns, remarks = read(written(tmp_path, b"path,label\nB\xe4r.jpg,1\n"))
    assert [os.fsencode(text) for text in columns["path"]] == [b"B\xe4r.jpg"] and not remarks
    _, columns, _ = read(written(tmp_path, b"x,label\nB\xe4r.jpg,1\n"), chosen={"path": "x"})
    assert [os.fsencode(text) for text in columns["x"]] == [b"B\xe4r.jpg"]


def test_with_the_mark_of_utf_8_all_bytes_stay(tmp_path):
    _, columns, _ = read(written(tmp_path, b"\xef\xbb\xbfpath,label\na,B\xe4r\n"))
    assert [os.fsencode(text) for text in columns["label"]] == [b"B\xe4r"]


# JSON.


def test_json_lines(tmp_path):
    text = '{"path": "a", "label": 3, "is_test": true}\n\n'
    text += '{"label": 3.0, "path": "b", "x": [1]}\n{"path": null}'
    numbers, columns, _ = read(written(tmp_path, text), ["path", "label", "is_test"])
    assert columns == {
        "path": ["a", "b", ""], "label": ["3", "3.0", ""], "is_test": ["True", "", ""]
    }  # fmt: skip
    assert numbers == [1, 3, 4]


@pytest.mark.parametrize("size", [1, 5, 64, 1 << 21])
def test_json_does_not_depend_on_the_pieces_that_are_read(tmp_path, monkeypatch, size):
    monkeypatch.setattr("alr_fast.data.tables.encoding._PIECE", size)
    text = '\n{"path": "a", "label": 1}\n\n{"path": "b", "label": 2}'
    for end in ("", "\n", "\n\n"):
        numbers, columns, _ = read(written(tmp_path, text + end))
        assert columns == {"path": ["a", "b"], "label": ["1", "2"]} and numbers == [2, 4]


def test_a_list_on_one_line_takes_time_in_proportion(tmp_path, monkeypatch):
    monkeypatch.setattr("alr_fast.data.tables.encoding._PIECE", 64)
    text = json.dumps([{"path": f"{k}.png", "label": k % 3} for k in range(50_000)])
    start = time.process_time()
    numbers, _, _ = read(written(tmp_path, text))
    assert len(numbers) == 50_000 and time.process_time() - start < 5  # 0.5 s; squared 20 s


def test_a_list_of_objects(tmp_path):
    text = json.dumps([{"path": "a", "label": 1}, {"path": "b", "label": "x"}], indent=2)
    numbers, columns, _ = read(written(tmp_path, text))
    assert columns == {"path": ["a", "b"], "label": ["1", "x"]} and numbers == [1, 2]


def test_vectors_in_json(tmp_path):
    path = written(tmp_path, '{"p": [0.5, 0.5], "id": 1}\n{"p": [1, 0], "id": 2}\n')
    with open_table(path) as table:
        (batch,) = table.batches(["p"], 10)
    assert batch.columns["p"].tolist() == [[0.5, 0.5], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"path": "a", "label": [1]}', ", line 1: label is a list; must be a text or a number"),
        ('{"path": "a", "label": true}', ", line 1: label is true or false"),
        ('{"path": {"x": 1}, "label": 0}', ", line 1: path is an object"),
        ('{"path": "a"}\n{"path": \n', ", line 2: is no JSON"),
        ('{"path": "a"}\n3\n', ", line 2: is no object"),
        ("[1, 2]", ", row 1: is no object"),
        ("{}\n", ": contains no objects with values"),
        ("[]", ": contains no objects with values"),
        ('{"images": [1,\n2]}', ", line 1: is no JSON"),
        ("[" * 100_000, ": is no JSON"),
        ('{"a":' * 100_000, ", line 1: is no JSON"),
    ],
)
def test_wrong_json(tmp_path, text, problem):
    assert refused(written(tmp_path, text)).startswith(problem)


def test_a_column_that_begins_late_is_not_overlooked(tmp_path, monkeypatch):
    monkeypatch.setattr(json_text, "_FIRST", 2)
    text = '{"path": "a"}\n{"path": "b", "label": 1}\n{"path": "c", "clean_label": 1}\n'
    assert ", line 3: has clean_label" in refused(written(tmp_path, text))


# Parquet and arrays.


def parquet(tmp_path, **columns):
    path = tmp_path / "table.csv"  # the name does not matter
    pq.write_table(pa.table(columns), path)
    return path


DAY = datetime.date(2024, 1, 2)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array([3, None]), ["3", ""]),
        (pa.array([3, 4], pa.uint8()), ["3", "4"]),
        (pa.array([3.0, 0.5]), ["3.0", "0.5"]),
        (pa.array(["x", None]), ["x", ""]),
        (pa.array(["x", "y"], pa.large_string()), ["x", "y"]),
        (pa.array(["x", "y"], pa.string_view()), ["x", "y"]),
        (pa.array(["x", "x"]).dictionary_encode(), ["x", "x"]),
        (pa.array([7, None]).dictionary_encode(), ["7", ""]),
        (pa.array([b"x", "\u00e4".encode()]), ["x", "\u00e4"]),
        (pa.array([decimal.Decimal("3"), decimal.Decimal("40")]), ["3", "40"]),
        (pa.nulls(2), ["", ""]),
    ],
)
def test_types_of_parquet(tmp_path, values, texts):
    numbers, columns, _ = read(parquet(tmp_path, path=["a", "b"], label=values))
    assert columns == {"path": ["a", "b"], "label": texts} and numbers == [1, 2]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([[1], [2]]),
        pa.array([["a"], ["b"]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([DAY, DAY]),
        pa.array([datetime.datetime(2024, 1, 2)] * 2),
        pa.array([datetime.time(1)] * 2),
        pa.array([datetime.timedelta(1)] * 2),
        pa.array([True, False]),
        pa.array([True, False]).dictionary_encode(),
        pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
        pa.array([b"\xff", b"a"]),
        pa.array([b"\xff\xfe", b"ab"], pa.binary(2)),
    ],
)
@pytest.mark.parametrize("role", ["label", "clean_label", "split", "id", "path", "category"])
def test_types_that_are_refused_by_name(tmp_path, values, role):
    path = parquet(tmp_path, **{"x": ["a", "b"], role: values})
    is_bytes = "binary" in str(values.type)
    if "bool" in str(values.type) and role == "split":  # a column like is_test
        assert read(path)[1]["split"] == ["True", "False"]
        return
    if is_bytes and role == "path":  # names of files on old disks
        assert len(read(path)[1]["path"]) == 2
        return
    assert f"column {role} " in refused(path)
    assert read(path, ["x"])[1] == {"x": ["a", "b"]}  # the other columns can be read


def test_vectors_of_parquet_stay_numbers(tmp_path):
    path = parquet(tmp_path, path=["a", "b"], probabilities=[[0.5, 0.5], [0.0, 1.0]])
    with open_table(path) as table:
        assert table.vectors == ["probabilities"]
        (batch,) = table.batches(["probabilities", "path"], 10)
    assert batch.columns["probabilities"].shape == (2, 2)


def test_a_chosen_column_is_checked_as_its_role(tmp_path):
    path = parquet(tmp_path, x=["a", "b"], scores=[[0.5], [0.0]])
    assert "column scores is of type list" in refused(path, ["scores"], chosen={"label": "scores"})


def test_first_rows_leave_other_types_out(tmp_path):
    path = parquet(tmp_path, path=["a", "b"], flag=[True, False], day=[DAY, DAY], n=[1, 2])
    with open_table(path) as table:
        rows = table.first_rows(1)
    assert {name: column.tolist() for name, column in rows.items()} == {
        "path": ["a"], "flag": ["True"], "day": [], "n": ["1"]
    }  # fmt: skip
    path = written(tmp_path, '{"path": "a", "tags": ["x"]}\n{"path": "b", "tags": []}\n')
    with open_table(path) as table:
        assert [len(column) for column in table.first_rows(9).values()] == [2, 0]
    path = written(tmp_path, "path,label\na\n")
    with open_table(path) as table, pytest.raises(TableError, match="1 fields"):
        table.first_rows(9)


def test_columns_of_one_name_in_parquet(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 2, ["path", "path"]), tmp_path / "t")
    assert "several columns path" in refused(tmp_path / "t", ["path"])


def deep_parquet(depth):
    """A file whose schema nests groups; no writer writes it."""

    def number(value):
        value, out = 2 * value, b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    group = b"\x35\x02\x18\x01a\x15\x02\0"
    leaf = b"\x15\x02\x25\x02\x18\x01x\0"
    elements = [group] * depth + [leaf]
    count, size = b"", len(elements)
    while size > 127:
        count, size = count + bytes([size & 127 | 128]), size >> 7
    listed = b"\xfc" + count + bytes([size]) + b"".join(elements)
    footer = b"\x15" + number(1) + b"\x19" + listed + b"\x16" + number(0) + b"\x19\x0c\0"
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def test_endless_nesting_in_parquet_is_refused(tmp_path):
    assert "nested" in refused(written(tmp_path, deep_parquet(5000)), [])


def test_damaged_parquet(tmp_path):
    whole = parquet(tmp_path, path=["a"] * 100, label=list(range(100))).read_bytes()
    for content in (whole[:-9], b"PAR1", whole[:40] + b"\0" * 40 + whole[80:]):
        assert "cannot be read as Parquet" in refused(written(tmp_path, content))


def test_arrays_as_columns(tmp_path):
    path = tmp_path / "table.parquet"
    with path.open("wb") as file:
        np.savez(
            file, path=np.array(["a", "\u00e4"]), label=[1, 2], raw=[b"x", b"y"], p=np.eye(2),
            flags=[True, False], times=np.array([1, 2], "M8[s]"), classes=["u", "v", "w"],
        )  # fmt: skip
    numbers, columns, _ = read(path, ["path", "label", "raw"], rows=1)
    assert columns == {"path": ["a", "\u00e4"], "label": ["1", "2"], "raw": ["x", "y"]}
    assert numbers == [1, 2]
    with open_table(path) as table:
        assert table.vectors == ["p"]
        (batch,) = table.batches(["p", "label"], 10)
    assert batch.columns["p"].tolist() == [[1, 0], [0, 1]]
    assert read(path, ["flags"])[1] == {"flags": ["True", "False"]}
    assert "flags is bool" in refused(path, ["flags"], chosen={"label": "flags"})
    assert "times is datetime64[s] of shape 2; must" in refused(path, ["times"])
    assert "differ in length: 2 of path, 3 of classes" in refused(path, ["path", "classes"])


def test_an_array_alone_is_the_labels(tmp_path):
    np.save(tmp_path / "a.npy", np.array([3, 1, 2]))
    assert read(tmp_path / "a.npy")[1] == {"label": ["3", "1", "2"]}
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    assert "label is float64 of shape 3 x 2" in refused(tmp_path / "a.npy", ["label"])
    np.save(tmp_path / "a.npy", np.float64(3))
    assert "a single value" in refused(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.array([None]), allow_pickle=True)
    assert "object" in refused(tmp_path / "a.npy")


def workbook():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("[Content_Types].xml", "")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (gzip.compress(b"path,label\n", mtime=0), "is compressed by gzip"),
        (workbook(), "is an Excel workbook"),
        (pickle.dumps([1]), "is a pickle"),
        ("path,label\n".encode("utf-32"), "is UTF-32"),
        (b"SQLite format 3\0", "is an SQLite database"),
        (b"PK\x03\x04 junk", "as an .npz file cannot be read"),
        (bytes(range(256)), "contains zero bytes"),
    ],
)
def test_other_formats_are_named(tmp_path, content, problem):
    assert problem in refused(written(tmp_path, content))


def test_files_that_cannot_be_read(tmp_path):
    assert refused(tmp_path / "none").startswith(": No such file")
    assert "directory" in refused(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "regular" in refused(tmp_path / "fifo")


def test_without_pyarrow(tmp_path):
    """The library layer does not need it before a table is read."""
    path = written(tmp_path, "id,label\n1,0\n")
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "import alr_fast.labels, pathlib\n"
        "from alr_fast.data.tables import TableError, open_table\n"
        "try:\n"
        "    with open_table(pathlib.Path(sys.argv[1])): pass\n"
        "except TableError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert "needs pyarrow, not installed: " in done.stdout


# Roles of columns.


@pytest.mark.parametrize(
    ("columns", "role", "name"),
    [
        (["file_name", "text"], "path", "file_name"),
        (["Image ID", "Class-Name"], "path", "Image ID"),
        (["Image ID", "Class-Name"], "label", "Class-Name"),
        (["path", "image", "filename"], "path", "path"),
        (["Label", "class"], "label", "Label"),
        (["label", "Label", "class"], "label", "label"),
        (["subset"], "split", "subset"),
        (["a", "b"], "path", None),
        (["sample_id", "label_name", "label"], "id", "sample_id"),
        (["sample_id", "label_name", "label"], "label", "label"),
    ],
)
def test_columns_are_found_by_synonyms(columns, role, name):
    assert find_column(role, columns) == name


@pytest.mark.parametrize(
    ("columns", "role", "problem"),
    [
        (["image", "filename"], "path", "the columns image and filename may each be the path"),
        (["class", "target", "x"], "label", "the columns class and target may each be the label"),
        (["path", "path"], "path", "several columns path; keep one"),
    ],
)
def test_several_columns_for_one_role(tmp_path, columns, role, problem):
    path = written(tmp_path, ",".join(columns) + "\n")
    with open_table(path) as table, pytest.raises(TableError, match=problem):
        table.find(role)


def test_chosen_columns(tmp_path):
    path = written(tmp_path, "image,filename,class,target\n")
    with open_table(path, {"path": "filename", "label": "target"}) as table:
        assert (table.find("path"), table.find("label")) == ("filename", "target")
        assert table.find("split") is None
    with open_table(path, {"split": "target", "path": "nothing"}) as table:
        assert table.find("label") == "class"  # the other one is taken
        with pytest.raises(TableError, match="no column nothing for path; choose from image"):
            table.find("path")


def test_a_synonym_belongs_to_one_role():
    names = [name for names in SYNONYMS.values() for name in names]
    assert len(names) == len(set(names))


# Harmless CSV.


@pytest.mark.parametrize("text", ["=1+1", "+a", "-b", "@c", "\td", "\re", "\uff1dx", "'=x", "''+"])
def test_formulas_get_an_apostrophe_and_lose_it(text):
    assert harmless(text) == f"'{text}" and original(harmless(text)) == text


@pytest.mark.parametrize("text", ["", "a", "'", "'a", "''", "'s-Hertogenbosch.jpg", "a=b"])
def test_other_texts_stay(text):
    assert harmless(text) == text == original(text)


def test_the_page_has_the_same_rule():
    script = (resources.files("alr_fast.labels.report") / "templates" / "marks.js").read_text()
    pattern = re.search("FORMULA_START = /(.*)/;", script)[1]
    characters = [chr(code) for code in range(0xD800)] + ["\uff1d", "\uff0b", "\uff0d", "\uff20"]
    for text in (f"{start}{c}" for c in characters for start in ("", "'", "a")):
        assert (harmless(text) != text) == (re.match(pattern, text) is not None)


FILE_NAMES = st.binary(min_size=1, max_size=12).map(lambda b: os.fsdecode(b.replace(b"\0", b"x")))
PARTS = st.text(st.sampled_from("'=+-@\t\r\n\", ;a\u00e4\uff1d"), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(FILE_NAMES | PARTS, st.integers(-9, 9)), min_size=1, max_size=5))
def test_every_name_survives_a_table(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "survives.csv"
    names = [name for name, _ in rows]
    all_utf8 = not any("\udc80" <= c <= "\udcff" for name in names for c in name)
    with path.open("wb") as file, CsvWriter(file, all_utf8=all_utf8) as writer:
        writer.write_row(["path", "n"])
        writer.write_columns([names, np.array([number for _, number in rows])])
    _, columns, _ = read(path)
    assert columns == {"path": names, "n": [str(number) for _, number in rows]}
    first = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\r\n", 1)[1][:2].strip(b'"')
    assert first[:1] not in (b"=", b"+", b"-", b"@")


@pytest.mark.parametrize(
    "start", [b"", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"PAR1", b"\x93NUMPY", b"PK\x03\x04",
              b'{"a": ', b"[", b"path,label\n"],
)  # fmt: skip
@settings(max_examples=60, deadline=None)
@given(rest=st.binary(max_size=200) | st.text(st.sampled_from("a,;\t\"\n\r{}[]:'")).map(str.encode))
def test_whatever_the_bytes(tmp_path_factory, start, rest):
    path = tmp_path_factory.getbasetemp() / "whatever"
    path.write_bytes(start + rest)
    try:
        numbers, columns, _ = read(path)
    except TableError as error:
        assert "\n" not in str(error)
    else:
        assert all(len(column) == len(numbers) for column in columns.values())
