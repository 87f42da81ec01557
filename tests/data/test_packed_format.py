"""Damaged packed data sets: a result equal to the original, or one line that names the file."""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alr_fast.data.__main__ import main
from alr_fast.data.datasets import open_dataset
from alr_fast.data.layouts import packed_format as module
from alr_fast.data.layouts.base import Found, NoSplit
from alr_fast.data.layouts.packed import check_shards
from alr_fast.data.layouts.packed_format import check_records
from alr_fast.data.packing.pack import Packer
from alr_fast.errors import UserError
from helpers import broken_files
from helpers.commands import commands
from helpers.image_folder import write_folder

LEFT_OUT = (2, 9)
COLUMNS = ("shard", "offset", "size", "labels", "clean_labels", "paths", "offsets")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A packed set of 16 training images in several shards, two of them left out."""
    folder = tmp_path_factory.mktemp("original")
    root = write_folder(folder / "set", train={"a": 8, "b": 8}, test={"a": 2, "b": 2})
    index = open_dataset("folder", root).split("train").index
    for row in LEFT_OUT:
        broken_files.write_broken(root / index.paths[row], "html")
    lines = [f"{path},{k % 2},{k // 8}" for k, path in enumerate(index.paths)]
    (root / "train.csv").write_text("\n".join(["path,label,clean_label", *lines]) + "\n")
    (root / "test.csv").write_text("path,label,clean_label\ntest/a/000.png,0,0\n")
    dataset = open_dataset("table", root)
    packer = Packer(folder / "out", shard_mb=1, workers=1, track=lambda items, **_: items)
    packer.shard_bytes = 20 << 10  # of 5 images
    plans = packer.check(dataset, {name: dataset.split(name) for name in ("train", "test")}, "none")
    for plan in plans.values():
        packer.pack(plan)
    assert len(list((folder / "out").glob("train-*.tar"))) >= 3
    return folder / "out"


@pytest.fixture
def packed(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "packed"))


def everything(root):
    """All that a packed training split offers."""
    split = open_dataset("packed", root).split("train")
    images = []
    for row in range(len(split)):
        try:
            images.append(split.images.read(row))
        except Exception as error:
            images.append(str(error))
    index = split.index
    facts = (index.paths[:], index.labels.tolist(), index.clean_labels.tolist(), index.class_names)
    return facts, images


def without_checksums(root):
    """The set as the first releases wrote it."""
    manifest = json.loads((root / "packed.json").read_text())
    del manifest["sha256"]
    for split in manifest["splits"].values():
        del split["records"]
    (root / "packed.json").write_text(json.dumps(manifest))
    return manifest


def refused(root):
    with pytest.raises(UserError) as caught:
        open_dataset("packed", root).split("train")
    text = str(caught.value)
    assert "\n" not in text and str(root) in text and " data pack DIR" in text
    return text


def column(root, name):
    return root / "index" / f"train.{name}.npy"


def change(root, name, row, value):
    values = np.load(column(root, name))
    values[row] = value
    np.save(column(root, name), values)


HARMS = [
    *(("offset", 4, value) for value in (-1, -512, 0, 511, 513, 1024)),
    *(("offset", 4, value) for value in (10**9, 2**40, 2**62, -(2**63))),
    *(("size", 4, value) for value in (-1, 0, 2**40, 2**62, 10**6, 10_000)),
    ("size", 15, 9_500),  # the last one
    *(("shard", 4, value) for value in (-1, -2, 1, 3, 99, 2**31 - 1)),
    *(("shard", 2, value) for value in (0, 1, 99)),
    *(("size", 2, value) for value in (1, -1)),
    *(("labels", 4, value) for value in (-1, 2, 2**40)),
    *(("clean_labels", 4, value) for value in (-1, 2, 2**40)),
    *(("offsets", 4, value) for value in (-1, 0, 10**9, 2**62, 3)),
    *(("offsets", row, value) for row in (0, 16) for value in (-1, 1, 10**9)),
    *(("paths", row, value) for row in (3, 14) for value in (0, 7)),
]  # fmt: skip


@pytest.mark.parametrize("release", ["this", "first"])
@pytest.mark.parametrize(("name", "row", "value"), HARMS)
def test_damaged_columns_are_refused(packed, release, name, row, value):
    if release == "first":
        without_checksums(packed)
    change(packed, name, row, value)
    assert "index" in refused(packed)


def test_the_first_releases_sets_are_read(packed, original):
    without_checksums(packed)
    assert everything(packed) == everything(original)
    check_shards(Found(packed, ""), ())


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "longer", "other type", "fifo", "2-d"])
def test_damaged_files_of_the_index_are_named(packed, name, harm):
    path = column(packed, name)
    data, values = path.read_bytes(), np.load(path)
    path.unlink()
    if harm == "empty":
        path.touch()
    elif harm == "cut":
        path.write_bytes(data[:-5])
    elif harm == "longer":
        np.save(path, np.append(values, values[-1:]))
    elif harm == "other type":
        np.save(path, values.astype(np.float32))
    elif harm == "fifo":
        os.mkfifo(path)
    elif harm == "2-d":
        np.save(path, values[None])
    text = refused(packed)
    assert str(packed / "index") in text
    if harm in ("empty", "cut", "other type", "2-d"):
        assert path.name in text


def write(root, edit, checksum):
    """Changes the manifest; with a checksum as a stranger would, without as damage does."""
    manifest = json.loads((root / "packed.json").read_text())
    if not checksum:
        manifest = without_checksums(root)
    edit(manifest)
    if checksum:
        manifest["sha256"] = module._checksum(manifest)
    (root / "packed.json").write_text(json.dumps(manifest))


def of_split(**fields):
    return lambda manifest: manifest["splits"]["train"].update(fields)


def of_shard(**fields):
    return lambda manifest: manifest["splits"]["train"]["shards"][1].update(fields)


def without(field):
    return lambda manifest: manifest["splits"]["train"].pop(field)


EDITS = {
    "names above": of_shard(name="../train-000001.tar"),
    "absolute name": of_shard(name="/etc/passwd"),
    "name in a folder": of_shard(name="index/train-000001.tar"),
    "name of another split": of_shard(name="test-000000.tar"),
    "name twice": of_shard(name="train-000000.tar"),
    "empty name": of_shard(name=""),
    "number as a name": of_shard(name=3),
    "negative bytes": of_shard(bytes=-1),
    "huge bytes": of_shard(bytes=2**70),
    "true bytes": of_shard(bytes=True),
    "float bytes": of_shard(bytes=1e4),
    "text checksum": of_shard(sha256="x"),
    "shard as a list": lambda manifest: manifest["splits"]["train"]["shards"].append([]),
    "no shards": of_split(shards=[]),
    "one shard less": lambda manifest: manifest["splits"]["train"]["shards"].pop(),
    "shards as a number": of_split(shards=3),
    "shards as an object": of_split(shards={"name": "x"}),
    "negative count": of_split(count=-1),
    "other count": of_split(count=15),
    "huge count": of_split(count=2**50),
    "text count": of_split(count="16"),
    "class names as a text": of_split(class_names="ab"),
    "numbers as class names": of_split(class_names=[0, 1]),
    "no class names": of_split(class_names=[]),
    "one class name": of_split(class_names=["a"]),
    "clean labels as a number": of_split(clean_labels=1),
    "left out as a list": of_split(left_out=[]),
    "left out without a reason": of_split(left_out={"2": ["x"], "9": ["y"]}),
    "left out as texts": of_split(left_out={"2": "xy", "9": "xy"}),
    "left out of another id": of_split(left_out={"3": ["x", "y"]}),
    "left out of no id": of_split(left_out={"two": ["x", "y"]}),
    "left out of another path": of_split(left_out={"2": ["x", "y"], "9": ["z", "y"]}),
    "other samples": of_split(sample_fingerprint="0" * 64),
    "other labels": of_split(label_fingerprint="0" * 64),
    "fingerprint as a number": of_split(sample_fingerprint=5),
    **{f"without {field}": without(field) for field in module._SPLIT},
    "split as a list": lambda manifest: manifest["splits"].update(train=[]),
    "split as null": lambda manifest: manifest["splits"].update(train=None),
    "splits as a list": lambda manifest: manifest.update(splits=["train"]),
    "no splits": lambda manifest: manifest.pop("splits"),
    "no version": lambda manifest: manifest.pop("version"),
    "version as a text": lambda manifest: manifest.update(version="1"),
    "true version": lambda manifest: manifest.update(version=True),
    "split of another name": lambda manifest: manifest["splits"].update({"../x": {}}),
}


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("edit", EDITS)
def test_manifests_of_another_shape_are_refused(packed, edit, checksum):
    write(packed, EDITS[edit], checksum)
    refused(packed)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', "[" * 100_000, "\xff", "{}"])
def test_what_is_no_manifest_is_refused(packed, text):
    (packed / "packed.json").write_bytes(text.encode("latin-1"))
    assert "packed.json: cannot be read as a manifest" in refused(packed)


def test_a_split_is_added_with_the_command_that_is_named(tmp_path, capsys):
    root = write_folder(tmp_path / "my set", train={"a": 2, "b": 2}, test={"a": 1, "b": 1})
    out = tmp_path / "my shards"
    assert main(["pack", str(root), str(out), "--split", "train"]) == 0
    with pytest.raises(NoSplit) as caught:
        open_dataset("packed", out).split("test")
    ((name, *words),) = commands(str(caught.value))
    assert name == "data" and main([str(root) if word == "DIR" else word for word in words]) == 0
    assert len(open_dataset("packed", out).split("test")) == 2


def test_an_edit_by_hand_is_noticed(packed):
    path = packed / "packed.json"
    path.write_text(
        path.read_text().replace('["a", "b"]', '["a", "c"]').replace('["0", "1"]', '["0", "2"]')
    )
    assert "differs from its checksum" in refused(packed)


def test_shards_are_read_from_the_folder_alone(packed, tmp_path):
    shard = packed / "train-000001.tar"
    shutil.move(shard, tmp_path / "elsewhere.tar")
    shard.symlink_to(tmp_path / "elsewhere.tar")
    with pytest.raises(UserError, match=r"train-000001\.tar: is a link.*replace it by the file"):
        open_dataset("packed", packed).split("train")
    shard.unlink()
    os.mkfifo(shard)
    assert "train-000001.tar: is not a regular file" in refused(packed)
    shard.unlink()
    assert "train-000001.tar: No such file" in refused(packed)


def test_a_split_that_was_not_packed_is_no_split(packed):
    with pytest.raises(NoSplit, match="the split val was not packed"):
        open_dataset("packed", packed).split("val")


def test_verify_compares_the_index_with_the_tar_itself(packed, original):
    """The one change that the sizes alone do not show: within the last block of an image."""
    without_checksums(packed)
    size = int(np.load(column(packed, "size"))[4])
    change(packed, "size", 4, size - 1)
    assert len(open_dataset("packed", packed).split("train")) == 16
    with pytest.raises(UserError, match=r"index of the split train is damaged .*of sample 4"):
        check_shards(Found(packed, ""), ("train",))


@pytest.mark.parametrize("harm", ["manifest", "offset", "sidecar", "link"])
def test_pack_as_before_mends_what_is_damaged(tmp_path, capsys, harm):
    root = write_folder(tmp_path / "set", train={"a": 4, "b": 4}, test={"a": 1, "b": 1})
    out = tmp_path / "out"
    assert main(["pack", str(root), str(out)]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    if harm == "manifest":
        (out / "packed.json").write_text("{")
    elif harm == "offset":
        change(out, "offset", 4, 7)
    elif harm == "sidecar":
        (out / "index" / "train-000000.json").write_text('{"rows": [[]]}')
    else:
        (out / "train-000000.tar").rename(tmp_path / "x.tar")
        (out / "train-000000.tar").symlink_to(tmp_path / "x.tar")
    capsys.readouterr()
    if harm in ("manifest", "offset"):
        ((name, *words),) = commands(refused(out))
        assert (name, words[0]) == ("data", "pack")
        assert main([str(root) if word == "DIR" else word for word in words]) == 0
    assert main(["pack", str(root), str(out)]) == 0
    assert main(["verify", str(out)]) == 0
    if harm != "link":
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_shards_of_another_set_are_not_overwritten_for_want_of_a_manifest(tmp_path, capsys):
    sets = [
        write_folder(tmp_path / name, train={"a": n, "b": n}, test={"a": 1, "b": 1})
        for name, n in (("one", 3), ("two", 4))
    ]
    out = tmp_path / "out"
    assert main(["pack", str(sets[0]), str(out)]) == 0
    (out / "packed.json").write_text("damaged")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["pack", str(sets[1]), str(out)]) == 2
    assert "packed from other data or with other options" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("field", ["rows", "offsets", "sizes", "left_out", "bytes", "name"])
def test_damaged_sidecars_are_not_taken(tmp_path, field):
    root = write_folder(tmp_path / "set", train={"a": 2, "b": 2}, test={"a": 1, "b": 1})
    out = tmp_path / "out"
    call = ["pack", str(root), str(out)]
    assert main(call) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    path = out / "index" / "train-000000.json"
    whole = json.loads(path.read_text())
    for value in (None, 3, "x", [], [1], [[1]], [2**70], ["x"], {"x": 1}, -1):
        path.write_text(json.dumps({**whole, field: value}))
        assert main(call) == 0
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_the_index_of_many_shards_is_checked():
    n = 2_400_000
    size = np.random.default_rng(0).integers(1, 200_000, n)
    room = 512 * (3 + -(-size // 512))
    shard = (np.cumsum(room) // (256 << 20)).astype(np.int32)
    starts = np.searchsorted(shard, np.arange(shard[-1] + 1))
    ends = np.cumsum(room)
    begin = ends - room
    offset = begin - begin[starts][shard] + 512
    last = np.append(starts[1:], n) - 1
    full = offset[last] + -(-size[last] // 512) * 512 + 2048
    check_records(shard, offset, size, (-(-full // 10240) * 10240).tolist())
    offset[n // 2] += 512
    with pytest.raises(ValueError, match=f"row {n // 2} has an offset where no record begins"):
        check_records(shard, offset, size, (-(-full // 10240) * 10240).tolist())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FUZZ = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip


def places(value, path=()):
    """Path of every value in a JSON document."""
    yield path
    children = enumerate(value) if isinstance(value, list) else ()
    children = value.items() if isinstance(value, dict) else children
    for key, inner in children:
        yield from places(inner, (*path, key))


def equal_or_refused(root, expected):
    try:
        found = everything(root)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert found == expected


@contextlib.contextmanager
def kept(*paths):
    before = {path: path.read_bytes() for path in paths}
    try:
        yield
    finally:
        for path, data in before.items():
            path.write_bytes(data)


@FUZZ
@given(data=st.data(), value=JSON)
def test_fuzz_of_the_manifest(packed, data, value):
    expected = everything(packed)
    path = packed / "packed.json"
    with kept(path):
        manifest = json.loads(path.read_text())
        place = data.draw(st.sampled_from(list(places(manifest))[1:]))
        inner = manifest
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        path.write_text(json.dumps(manifest))
        equal_or_refused(packed, expected)
        # With a new checksum nothing else may happen, either; the names of classes may change.
        manifest.pop("sha256", None)
        manifest["sha256"] = hashlib.sha256(
            json.dumps(manifest, sort_keys=True).encode()
        ).hexdigest()
        path.write_text(json.dumps(manifest))
        with contextlib.suppress(UserError):
            assert everything(packed)[1][3] == expected[1][3]


@FUZZ
@given(name=st.sampled_from(COLUMNS), data=st.data())
def test_fuzz_of_the_index(packed, name, data):
    expected = everything(packed)
    path = column(packed, name)
    with kept(path):
        values = np.load(path)
        rows = st.integers(0, len(values) - 1)
        info = np.iinfo(values.dtype)
        near = st.integers(-600, 600).map(lambda step: int(np.clip(step, info.min, info.max)))
        anything = st.integers(int(info.min), int(info.max)) | near
        for row, value in data.draw(st.lists(st.tuples(rows, anything), max_size=3)):
            values[row] = value
        np.save(path, values)
        equal_or_refused(packed, expected)


@FUZZ
@given(
    name=st.sampled_from([*(f"index/train.{name}.npy" for name in COLUMNS), "packed.json"]),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=3),
    keep=st.floats(0, 1) | st.just(1.0),
)
def test_fuzz_of_the_bytes(packed, name, flips, keep):
    expected = everything(packed)
    with kept(packed / name):
        raw = bytearray((packed / name).read_bytes())
        for at, value in flips:
            raw[int(at * len(raw))] ^= value
        (packed / name).write_bytes(raw[: int(keep * len(raw))])
        equal_or_refused(packed, expected)


def test_shards_are_closed_with_the_split(packed):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        everything(packed)
    assert len(os.listdir("/proc/self/fd")) == before
