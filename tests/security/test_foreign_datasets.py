"""Data sets in the formats of others: nothing is opened elsewhere, unpacked out of proportion, or
called because the files name it."""

import gzip
import io
import json
import os
import resource
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alr_fast.data.__main__ import main as data
from alr_fast.data.datasets import open_dataset
from alr_fast.data.images.sources import BrokenImage
from alr_fast.data.layouts import arrow_folder
from alr_fast.data.tar_members import members
from alr_fast.errors import UserError
from helpers.forged import bounded
from helpers.layouts import image_bytes, write_shard

DEEP = "[" * 100_000


def refused(root, capsys, *words):
    capsys.readouterr()
    with bounded(gigabytes=2):
        status = data(["verify", str(root), "--workers", "1"])
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    assert all(word in error for word in words), error


@pytest.fixture
def saved(tmp_path):
    """A folder as `save_to_disk` writes it."""
    arrow_folder.table_on_disk.cache_clear()
    images = [{"bytes": image_bytes(k % 2, k), "path": None} for k in range(8)]
    table = pa.table({"image": images, "label": [0, 1] * 4})
    folder = tmp_path / "saved"
    folder.mkdir()
    with pa.ipc.new_stream(str(folder / "a.arrow"), table.schema) as stream:
        stream.write_table(table)
    features = {"label": {"_type": "mkdir", "path": str(tmp_path / "trace")}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    for name in ("saved.py", "dataset.py", "train.py"):
        (folder / name).write_text(f"import os; os.mkdir({str(tmp_path / 'trace')!r})")
    yield folder
    assert not (tmp_path / "trace").exists()


def test_features_and_scripts_are_not_asked(saved):
    assert data(["verify", str(saved), "--workers", "1"]) == 0


@pytest.mark.parametrize("name", ["../a.arrow", "/etc/passwd", "..", "", "a\0"])
def test_files_elsewhere_are_not_opened(saved, tmp_path, capsys, name):
    (tmp_path / "a.arrow").write_bytes((saved / "a.arrow").read_bytes())
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    refused(saved, capsys, "state.json")


def test_splits_elsewhere_are_not_opened(saved, capsys):
    inner = saved / "inner"
    inner.mkdir()
    (inner / "dataset_dict.json").write_text('{"splits": [".."]}')
    refused(inner, capsys, "no split train")


@pytest.mark.parametrize("text", [DEEP, "3", "[]", '{"_data_files": 3}', '{"_data_files": []}'])
@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
def test_descriptions_of_another_shape(saved, capsys, name, text):
    (saved / "state.json").unlink()
    (saved / name).write_text(text.replace("_data_files", "splits") if "dict" in name else text)
    refused(saved, capsys, name if name == "state.json" or text in (DEEP, "3", "[]") else "split")


def test_a_pipe_in_place_of_the_table_is_not_waited_for(saved, capsys):
    (saved / "a.arrow").unlink()
    os.mkfifo(saved / "a.arrow")
    refused(saved, capsys, "a.arrow", "not a regular file")


def test_damaged_tables(saved, capsys):
    good = (saved / "a.arrow").read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(40):
        changed = bytearray(good)
        for at in generator.integers(0, len(good), 5).tolist():
            changed[at] ^= 1 << int(generator.integers(8))
        (saved / "a.arrow").write_bytes(changed)
        arrow_folder.table_on_disk.cache_clear()
        with bounded(gigabytes=2):
            assert data(["verify", str(saved), "--workers", "1"]) in (0, 1, 2)
        error = capsys.readouterr().err
        assert "Traceback" not in error and error.count("\n") <= 1, error


def repeated(value, count, kind):
    return pa.DictionaryArray.from_arrays(np.zeros(count, dtype=np.int32), pa.array([value], kind))


def test_long_labels_that_a_small_file_repeats(tmp_path, capsys):
    images = repeated(image_bytes(0), 8000, pa.binary()).cast(pa.binary())
    labels = repeated("x" * 1_000_000, 8000, pa.string())
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": images, "label": labels}), path, store_schema=False)
    assert path.stat().st_size < 200_000
    refused(tmp_path, capsys, "train.parquet", "label")


def test_long_images_that_a_small_file_repeats(tmp_path):
    images = repeated(image_bytes(0) + bytes(1_000_000), 4000, pa.binary())
    path = tmp_path / "train.parquet"
    table = pa.table({"image": images, "label": [0, 1] * 2000})
    pq.write_table(table, path, store_schema=False, compression="zstd")
    assert path.stat().st_size < 200_000
    train = open_dataset("auto", tmp_path).split("train")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with bounded(gigabytes=2):
        assert not train.images.sizes().any()
        assert data(["verify", str(tmp_path), "--workers", "1"]) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 900 << 10
    with pytest.raises(BrokenImage, match="unpacks to too many bytes"):
        train.images.read(0)


def test_brackets_in_the_metadata_of_parquet(tmp_path):
    images = [{"bytes": image_bytes(k % 2, k), "path": f"{k}.png"} for k in range(8)]
    table = pa.table({"image": images, "label": [0, 1] * 4})
    table = table.replace_schema_metadata({b"huggingface": DEEP.encode()})
    pq.write_table(table, tmp_path / "train.parquet")
    assert len(open_dataset("auto", tmp_path).split("train")) == 8


def test_brackets_in_the_json_of_a_shard(tmp_path, capsys):
    content = []
    for k in range(4):
        content += [(f"{k}.png", image_bytes(k % 2, k)), (f"{k}.json", DEEP.encode())]
    write_shard(tmp_path / "train.tar", content)
    refused(tmp_path, capsys, "no sample with an image and a label")


def test_a_header_of_many_records_takes_no_minutes(tmp_path):
    records = b"6 a=b\n" * ((1 << 20) // 6)
    info = tarfile.TarInfo("x")
    info.size, info.type = len(records), b"x"
    header = info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    (tmp_path / "a.tar").write_bytes(4 * header + buffer.getvalue())
    with bounded(gigabytes=1):
        assert [member.name for member in members(tmp_path / "a.tar")] == ["a.png"]


@pytest.mark.parametrize("record", [b"0 a=b\n", b"-6 a=b\n", b"3 a=b\n", b"9" * 5000 + b" a=b\n"])
def test_records_of_a_wrong_length(tmp_path, record):
    info = tarfile.TarInfo("x")
    info.size, info.type = len(record), b"x"
    data = info.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % 512 + 1024)
    (tmp_path / "a.tar").write_bytes(data)
    if not record.startswith(b"3"):
        with pytest.raises(UserError, match="no tar header"):
            list(members(tmp_path / "a.tar"))


def test_a_zero_byte_in_the_name_of_a_member(tmp_path, capsys):
    content = []
    for k in range(12):
        content += [(f"{k}.png", image_bytes(k % 2, k)), (f"{k}.cls", b"%d" % (k % 2))]
    write_shard(tmp_path / "train.tar", content)
    record = b"14 path=a\0.png\n"
    info = tarfile.TarInfo("x")
    info.size, info.type = len(record), b"x"
    header = info.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % 512)
    good = (tmp_path / "train.tar").read_bytes()
    last = list(members(tmp_path / "train.tar"))[-2].offset - 512
    (tmp_path / "train.tar").write_bytes(good[:last] + header + good[last:])
    refused(tmp_path, capsys, "train.tar", "no tar header")


@pytest.mark.parametrize("packed", [True, False])
def test_pixels_that_do_not_fit_into_the_memory(tmp_path, capsys, monkeypatch, packed):
    suffix, opened = (".gz", gzip.open) if packed else ("", open)
    count = 100_000
    with opened(tmp_path / f"train-images-idx3-ubyte{suffix}", "wb") as file:
        file.write(struct.pack(">HBBIII", 0, 8, 3, count, 28, 28) + bytes(count * 784))
    with opened(tmp_path / f"train-labels-idx1-ubyte{suffix}", "wb") as file:
        file.write(struct.pack(">HBBI", 0, 8, 1, count) + bytes(count - 1) + b"\1")
    monkeypatch.setattr("alr_fast.data.layouts.idx.available_memory", lambda: 50_000_000)
    refused(tmp_path, capsys, "train-images-idx3-ubyte", "78 MB, more memory than there is")


def test_a_class_for_each_row_takes_no_minutes(tmp_path, capsys):
    count = 150_000
    np.savez(tmp_path / "f.npz", X=np.zeros((count, 2), np.float32), y=np.arange(count))
    refused(tmp_path / "f.npz", capsys, "f.npz", "too few to hold out")
