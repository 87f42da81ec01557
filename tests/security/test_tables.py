"""Tables from strangers: whatever they unpack to, memory stays bounded and the file is named."""

import json
import resource

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alr_fast import train
from alr_fast.data import open_dataset
from alr_fast.data.__main__ import main as data
from alr_fast.data.tables import TableError, as_text, open_table
from alr_fast.data.tables.array_file import open_arrays
from alr_fast.errors import UserError
from helpers.forged import bounded
from helpers.image_folder import write_folder

MB = 1 << 10  # of ru_maxrss


def read(path, columns):
    with open_table(path) as table:
        return [batch for batch in table.batches(columns, 4096)]


def grown(before):
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


@pytest.fixture
def before():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("role", ["label", "path", "x"])
def test_long_texts_that_a_small_file_repeats(tmp_path, before, role, stored):
    """50 kB that stand for 20 GB."""
    text = "x" * 1_000_000
    long = pa.DictionaryArray.from_arrays(np.zeros(20_000, dtype=np.int32), [text])
    pq.write_table(pa.table({role: long}), tmp_path / "t", store_schema=stored)
    assert (tmp_path / "t").stat().st_size < 200_000
    if stored:  # a categorical column: the text is in memory once
        assert len(read(tmp_path / "t", [role])) == 5
    else:
        with pytest.raises(TableError, match=f"column {role} has texts of more than 66 kB"):
            read(tmp_path / "t", [role])
    assert grown(before) < 900 * MB


def test_columns_that_do_not_fit_into_the_memory(tmp_path, before, monkeypatch):
    label = pa.array(np.arange(1_000_000) % 2)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(8_000_000, np.float32)), 8)
    pq.write_table(pa.table({"label": label, "v": vectors}), tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 1_000_000
    for module in ("alr_fast.data.tables.parquet", "alr_fast.data.tables.array_file"):
        monkeypatch.setattr(f"{module}.available_memory", lambda: 10_000_000)
    assert len(read(tmp_path / "t.parquet", ["label"])) > 1
    with pytest.raises(TableError, match="v need 32 MB, more memory than there is"):
        read(tmp_path / "t.parquet", ["v"])
    with pytest.raises(UserError, match=r"t\.parquet: v need 32 MB"):
        open_dataset("features", tmp_path / "t.parquet").split("train")
    np.savez_compressed(tmp_path / "t.npz", X=np.zeros((1_000_000, 8), np.float32), y=label)
    with pytest.raises(UserError, match=r"t\.npz: X is float32 of shape 1000000 x 8, 32 MB"):
        open_arrays(tmp_path / "t.npz").read("X")


def test_a_million_brackets(tmp_path, before):
    for start in ("[", '{"a":', "[[1],"):
        (tmp_path / "t").write_text(start * 1_000_000)
        with pytest.raises(TableError, match="is no JSON"):
            read(tmp_path / "t", ["a"])
    assert grown(before) < 300 * MB


def test_control_characters_and_escapes_in_names_stay_in_their_cells(tmp_path):
    names = ["\x1b[31mred", "a\x00b", "\x07", "\u202egpj.exe", "\u2028", "a\x0bb\x0c"]
    # Zero bytes are refused at the beginning of a file, as those of another encoding.
    rows = [f"x{k}" for k in range(2000)] + names
    (tmp_path / "t").write_text("path,label\n" + "".join(f"{row},1\n" for row in rows))
    with open_table(tmp_path / "t") as table:
        (batch,) = table.batches(["path"], 10_000)
    assert as_text(batch.columns["path"]).tolist() == rows


def wide(path, count, form):
    names = ["path", "label", *(f"c{k}" for k in range(count))]
    row = ["a/000.png", "a", *[""] * count]
    if form == "csv":
        path.write_text(",".join(names) + "\n" + 8 * (",".join(row) + "\n"))
    elif form == "json":
        path.write_text(8 * (json.dumps(dict(zip(names, row, strict=True))) + "\n"))
    else:
        pq.write_table(
            pa.table({name: [value] for name, value in zip(names, row, strict=True)}), path
        )


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_tables_of_very_many_columns(tmp_path, capsys, form):
    """Neither looking for a list in a folder nor reading takes time out of proportion."""
    root = write_folder(tmp_path / "set", train={"a": 2, "b": 2}, test={"a": 1, "b": 1})
    wide(root / f"labels.{form}", 20_000, form)
    with bounded(gigabytes=2):
        assert data(["verify", str(root), "--workers", "1"]) == 0
        assert len(read(root / f"labels.{form}", ["path", "label"])) == 1
    if form == "parquet":  # slow to write
        return
    wide(tmp_path / "t", 100_000, form)
    with pytest.raises(TableError, match="has 100,002 columns, more than the 100,000"):
        read(tmp_path / "t", ["path"])


def test_half_a_character_of_json_is_named(tmp_path):
    (tmp_path / "t").write_text('{"path": "a", "label": 1}\n{"path": "\\ud800", "label": 1}\n')
    with pytest.raises(TableError, match="path contains half a character") as raised:
        read(tmp_path / "t", ["path"])
    assert raised.value.where.endswith("line 2")


def test_a_line_of_many_megabytes_is_read_once(tmp_path):
    (tmp_path / "t").write_text('{"path": "' + "x" * 100_000_000 + '", "label": 1}\n')
    with bounded(gigabytes=4):
        assert len(read(tmp_path / "t", ["path"])) == 1


def test_a_name_of_a_million_characters_is_not_shown_whole(tmp_path, capsys):
    root = write_folder(tmp_path / "set", train={"a": 2, "b": 2}, test={"a": 1, "b": 1})
    (tmp_path / "t.csv").write_text("path,label\n" + "x" * 10**6 + ",a\n")
    argv = ["--data-root", str(root), "--runs", str(tmp_path / "runs")]
    assert train.main([*argv, "--data.label_file", str(tmp_path / "t.csv")]) == 2
    error = capsys.readouterr().err
    assert "are not in this data set" in error and len(error) < 10_100
