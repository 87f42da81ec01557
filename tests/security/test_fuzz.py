"""Whatever the bytes: every reader returns a result or an error for the user, soon and in little
memory.

Each target changes good files in small ways: single bits reach far into a format, and random bytes
fail at its beginning. Cases that were found are kept as examples.
"""

import contextlib
import csv
import io
import json
import pickle
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from alr_fast.data.__main__ import main as data
from alr_fast.data.broken import read_exclusions
from alr_fast.data.checks.examine import Broken, examine
from alr_fast.data.datasets import open_dataset
from alr_fast.data.images.decode import decode_rgb, prepare
from alr_fast.data.images.sources import BrokenImage
from alr_fast.data.index import PathTable, SampleIndex
from alr_fast.data.label_files.cifar_n import read_cifar_n
from alr_fast.data.label_files.label_table import read_labels, read_left_out, read_probabilities
from alr_fast.data.layouts import cifar
from alr_fast.data.unlabelled import find_images
from alr_fast.errors import UserError
from alr_fast.labels import find_issues
from alr_fast.labels.marks import read_label_studio, read_marks
from alr_fast.noise.files import load_labels, read_matrix, save_labels
from alr_fast.noise.injection import inject
from alr_fast.training.checkpoint import manifest
from alr_fast.training.checkpoint.metadata import read_metadata
from alr_fast.training.checkpoint.store import CheckpointStore
from alr_fast.training.distributed import process_group
from alr_fast.training.open_run import from_bank_file
from alr_fast.training.output.run_folder import read_config
from alr_fast.training.trained_model import load_model
from helpers.forged import bounded
from helpers.image_folder import write_folder
from helpers.patience import PATIENCE

GIGABYTES = 2
EXPECTED = (UserError, BrokenImage, Broken)
NAMES = ("cat", "dog", "bird")
COUNT = 12


def _edits():
    """Changes of a file: (place, what is removed, what is inserted), places as shares of it."""
    piece = st.one_of(
        st.binary(max_size=4),
        st.sampled_from(
            [
                b"\x00", b"\xff" * 4, b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7, b"-1",
                b"nan", b"1e309", b"99999999999999999999", b'"', b",", b"\n", b"\r", b"[" * 50,
                b"{}", b"null", b"../", b"/etc/passwd", b"=1+1", b"\xd8\x00", b"\x00\x80",
            ]
        ),
    )  # fmt: skip
    edit = st.tuples(st.floats(0, 1), st.integers(0, 8), piece)
    return st.lists(edit, min_size=1, max_size=4)


def _changed(content, edits):
    content = bytearray(content)
    for place, removed, inserted in edits:
        at = round(place * len(content))
        content[at : at + removed] = inserted
    return bytes(content)


ANY = st.one_of(_edits(), st.binary(max_size=200))


@pytest.fixture(autouse=True)
def _bounded_memory():
    """A read that needs much memory fails, with a MemoryError, which is no error for the user."""
    with bounded(seconds=3600, gigabytes=GIGABYTES):
        yield


def fuzz(*, cases=()):
    """Runs a test with 100 changes, as a slow test with 2,000; ``cases`` are kept from earlier."""

    def decorate(test):
        def with_settings(count):
            run = settings(
                max_examples=count,
                deadline=1000 * PATIENCE,
                database=None,
                suppress_health_check=list(HealthCheck),
            )(given(change=ANY)(test))
            for case in cases:
                run = example(change=case)(run)
            return run

        @pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
        def run(count, request):
            arguments = {
                name: request.getfixturevalue(name)
                for name in test.__code__.co_varnames[: test.__code__.co_argcount]
                if name != "change"
            }
            with_settings(count)(**arguments)

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


def attempt(read):
    """Calls a reader: a result, or an error of one or few short lines."""
    try:
        return read()
    except EXPECTED as error:
        text = str(error)
        assert text and len(text) < 4000
        assert "Traceback" not in text
    return None


def write(path, good, change):
    path.write_bytes(_changed(good, change) if isinstance(change, list) else change)
    return path


# Good files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def index():
    paths = PathTable.of(f"{NAMES[k % 3]}/{k}.png" for k in range(COUNT))
    ids = np.arange(COUNT, dtype=np.int64)
    return SampleIndex(ids, paths, ids % 3, None, NAMES)


ROWS = {
    "id": list(range(COUNT)),
    "path": [f"{NAMES[k % 3]}/{k}.png" for k in range(COUNT)],
    "label": [NAMES[(k + 1) % 3] for k in range(COUNT)],
    "score": [k / COUNT for k in range(COUNT)],
    "reason": ["broken"] * COUNT,
    "mark": ["", "keep", "fix", "unsure"] * (COUNT // 4),
    "split": ["train"] * 9 + ["test"] * 3,
    **{f"p{k}": [1 / 3] * COUNT for k in range(3)},
}


def _csv():
    file = io.StringIO(newline="")
    lines = csv.writer(file)
    lines.writerow(ROWS)
    lines.writerows(zip(*ROWS.values(), strict=True))
    return file.getvalue().encode()


def _jsonl():
    rows = [dict(zip(ROWS, row, strict=True)) for row in zip(*ROWS.values(), strict=True)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parquet():
    file = io.BytesIO()
    pq.write_table(pa.table(ROWS), file, compression="none")
    return file.getvalue()


def _npz():
    file = io.BytesIO()
    np.savez(file, **{name: np.array(values) for name, values in ROWS.items()})
    return file.getvalue()


TABLES = {"csv": _csv(), "tsv": _csv().replace(b",", b"\t"), "jsonl": _jsonl()}
TABLES |= {"parquet": _parquet(), "npz": _npz()}


def _table_target(suffix):
    @fuzz(cases=[b"", b"path\n", b"path,label\n", b"id,path,label\n0,cat/0.png,\n"])
    def test(folder, index, change):
        path = write(folder / f"table.{suffix}", TABLES[suffix], change)
        attempt(lambda: read_labels(path, index, None))
        attempt(lambda: read_labels(path, index, "probabilities"))
        attempt(lambda: [None for _ in read_probabilities(path, index)])
        attempt(lambda: read_left_out(path, index, 0.5))
        attempt(lambda: read_exclusions(path, index))

    return test


test_label_table_csv = _table_target("csv")
test_label_table_tsv = _table_target("tsv")
test_label_table_jsonl = _table_target("jsonl")
test_label_table_parquet = _table_target("parquet")
test_label_table_npz = _table_target("npz")


def _open(root):
    dataset = open_dataset("auto", str(root))
    for name in ("train", "test"):
        split = attempt(lambda name=name: dataset.split(name))
        if split is not None and len(split):
            attempt(lambda split=split: split.images.read(0))


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """A folder of images with a list beside them."""
    root = tmp_path_factory.mktemp("listed")
    for path in ROWS["path"]:
        (root / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / path)
    return root


def _list_target(suffix):
    @fuzz(cases=[b"", b"path,label\n", b"path,label,split\na,b,train\n"])
    def test(listed, change):
        for other in listed.glob("list.*"):
            other.unlink()
        path = write(listed / f"list.{suffix}", TABLES[suffix], change)
        attempt(lambda: _open(path))
        attempt(lambda: _open(listed))
        attempt(lambda: find_images([path], None, print))

    return test


test_list_csv = _list_target("csv")
test_list_jsonl = _list_target("jsonl")
test_list_parquet = _list_target("parquet")
test_features_npz = _list_target("npz")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A packed set and the content of its files."""
    folder = tmp_path_factory.mktemp("packed")
    root = write_folder(folder / "set", train={"a": 4, "b": 4}, test={"a": 1, "b": 1})
    assert data(["pack", str(root), str(folder / "out"), "--workers", "1"]) == 0
    return folder / "out", {p: p.read_bytes() for p in (folder / "out").rglob("*") if p.is_file()}


def _packed_target(choose):
    @fuzz(cases=[b"", b"{}", b"[]", b"[" * 100])
    def test(packed, change):
        root, contents = packed
        paths = sorted(path for path in contents if choose(path.name))
        path = paths[len(repr(change)) % len(paths)]
        write(path, contents[path], change)
        try:
            attempt(lambda: _open(root))
        finally:
            path.write_bytes(contents[path])

    return test


test_packed_manifest = _packed_target(lambda name: name == "packed.json")
test_packed_index = _packed_target(lambda name: name.startswith("train") and name.endswith(".npy"))
test_packed_shard = _packed_target(lambda name: name == "train-000000.tar")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its folder, the content of its files, its labels."""
    from alr_fast import train

    runs = tmp_path_factory.mktemp("runs")
    argv = ["--data.limit", "30", "--data.test_limit", "10", "--optim.epochs", "2", "--methods"]
    argv += ["alr", "--log.show", "quiet", "--runs", str(runs), "--checkpoint.steps", "1"]
    assert train.main(argv) == 0
    run = (runs / "latest").resolve()
    contents = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    return run, contents, from_bank_file(run / "alr_bank.safetensors", "alr")


def _run_target(name):
    @fuzz(cases=[b"", b"{}", b"[]", b"\x00" * 8, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
    def test(finished, change):
        from alr_fast.report import about_run

        run, contents, good = finished
        path = run / name
        write(path, contents[path], change)
        try:
            if name == "config.yaml":
                attempt(lambda: read_config(run))
            elif name == "alr_bank.safetensors":
                labels = attempt(lambda: from_bank_file(path, "alr"))
                if labels is not None:
                    attempt(lambda: labels.noise_rate)
            elif name == "alr.safetensors":
                attempt(lambda: load_model(path))
            else:
                attempt(lambda: about_run(run, good))
        finally:
            path.write_bytes(contents[path])

    return test


test_bank_file = _run_target("alr_bank.safetensors")
test_weights = _run_target("alr.safetensors")
test_summary = _run_target("summary.json")
test_metrics = _run_target("metrics.csv")
test_config = _run_target("config.yaml")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    tensors = {"x": torch.ones(3, 4), "y": torch.arange(5), "z": torch.tensor(1.0)}
    with process_group("cpu"):
        store = CheckpointStore(folder, keep=1, log=print)
        store.save(1, tensors, {"method": "alr", "position": {"epoch": 1}}, wait=True)
        store.close()
    path = folder / "000000001"
    return path, {file.name: file.read_bytes() for file in path.iterdir()}


@fuzz(cases=[b"", b".", b"N.", b"}.", b"\x80\x04]\x94h\x00a."])
def test_metadata(checkpoint, change):
    path, contents = checkpoint
    write(path / ".metadata", contents[".metadata"], change)
    sizes = {name: len(content) for name, content in contents.items()}
    attempt(lambda: read_metadata(path, sizes))


@fuzz(cases=[b"", b"{}", b"[]", b"1", b"[" * 100_000])
def test_manifest(checkpoint, change):
    path, contents = checkpoint
    file = path / manifest.MANIFEST
    write(file, contents[file.name], change)
    attempt(lambda: manifest.read_manifest(path))
    with contextlib.suppress(ValueError, RecursionError):  # as an attacker would sign it
        fields = json.loads(file.read_bytes())
        if isinstance(fields, dict):
            fields.pop("sha256", None)
            file.write_bytes(manifest._encode(fields))
            attempt(lambda: manifest.read_manifest(path))
    file.write_bytes(contents[file.name])


def _image(kind, **options):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, kind, **options)
    return file.getvalue()


def _palette(kind):
    file = io.BytesIO()
    Image.new("P", (9, 11)).save(file, kind)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
IMAGES = {
    "jpg": _image("JPEG", exif=EXIF.tobytes()),
    "png": _image("PNG", exif=EXIF.tobytes()),
    "webp": _image("WEBP", exif=EXIF.tobytes()),
    "gif": _palette("GIF"),
    "bmp": _image("BMP"),
    "tif": _image("TIFF"),
}


def _image_target(suffix):
    @fuzz(cases=[b"", b"\xff\xd8", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"P6 99999999 99999999 255\n"])
    def test(change):
        content = _changed(IMAGES[suffix], change) if isinstance(change, list) else change
        attempt(lambda: decode_rgb(prepare(content)))
        attempt(lambda: examine(content, f"image.{suffix}"))

    return test


test_image_jpeg = _image_target("jpg")
test_image_png = _image_target("png")
test_image_webp = _image_target("webp")
test_image_gif = _image_target("gif")
test_image_bmp = _image_target("bmp")
test_image_tiff = _image_target("tif")


BATCH = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 3], "filenames": ["a"] * 4}
PICKLES = [pickle.dumps(BATCH, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]


@fuzz(cases=[b"", b"N.", b"]\x94h\x00a.", b"cos\nsystem\n(S'true'\ntR."])
def test_cifar(folder, change):
    for content in PICKLES[::2]:
        path = write(folder / "data_batch_1", content, change)
        attempt(lambda path=path: cifar.read_pickle(path))


def _human():
    content = {"clean_label": np.arange(COUNT) % 3, "worse_label": np.arange(COUNT) % 3}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("human/data.pkl", pickle.dumps(content, 2))
    return file.getvalue()


HUMAN = _human()


@fuzz(
    cases=[
        b"",
        b"PK\x03\x04",
        b"PK\x05\x06" + b"\x00" * 18,
        *([(0.875, 4, edit)] for edit in (b"\0@\0\0", b"\0\0\0@", b"\0\0\0 ", b"\0\0\0\1")),
    ]
)
def test_cifar_n(folder, change):
    path = write(folder / "CIFAR-10_human.pt", HUMAN, change)
    attempt(lambda: read_cifar_n(path, "worse", np.arange(COUNT) % 3))


@fuzz(
    cases=[
        b"",
        b"PK\x05\x06" + b"\x00" * 18,
        [(0.4089895204457207, 4, b"\x00\x00\x05\x00")],  # zipfile quotes thousands of bytes
    ]
)
def test_noise_file(folder, index, change):
    path = folder / "noisy.npz"
    if not hasattr(test_noise_file, "good"):
        noise = inject(index.labels, num_classes=3, kind="symmetric", rate=0.4, seed=0)
        save_labels(path, noise, index)
        test_noise_file.good = path.read_bytes()
    write(path, test_noise_file.good, change)
    attempt(lambda: load_labels(path, index))


@fuzz(cases=[b"", b"1,0\n0,1", b"nan,0\n0,1", b"\x93NUMPY"])
def test_matrix(folder, change):
    attempt(lambda: read_matrix(write(folder / "matrix.csv", b"0.9,0.1\n0.2,0.8\n", change)))
    file = io.BytesIO()
    np.save(file, np.array([[0.9, 0.1], [0.2, 0.8]]))
    attempt(lambda: read_matrix(write(folder / "matrix.npy", file.getvalue(), change)))


MARKS = b"id,path,label,label_name\n0,cat/0.png,1,dog\n3,cat/3.png,2,bird\n"
TASKS = json.dumps(
    [
        {
            "id": 1,
            "data": {"sample_id": 0},
            "annotations": [
                {"result": [{"from_name": "label", "value": {"choices": ["dog"]}}],
                 "updated_at": "2026-01-01T00:00:00Z"},
            ],
        }
    ]
).encode()  # fmt: skip


@fuzz(cases=[b"", b"[]", b"[{}]", b"[" * 100_000])
def test_marks(folder, change):
    attempt(lambda: read_marks(write(folder / "marks.csv", MARKS, change), NAMES))
    attempt(lambda: read_label_studio(write(folder / "tasks.json", TASKS, change), NAMES))


MADE_IN_A_PAGE = (
    b"id,path,given,refined,score,mark,label,given_name,refined_name,label_name\n"
    b"0,cat/0.png,0,1,0.9,fix,1,cat,dog,dog\n4,dog/4.png,1,2,0.8,unsure,,dog,bird,\n"
)


@fuzz(cases=[b"", b"id,path,label\n", b"mark,label,path\nfix,,cat/0.png\n"])
def test_marks_of_a_review(folder, index, change):
    from alr_fast.labels.report.marks_file import MarksFile

    labels = find_issues(
        index.labels, np.full((COUNT, 3), 1 / 3), class_names=NAMES, paths=list(index.paths)
    )
    path = folder / "review.csv"
    content = write(path, MADE_IN_A_PAGE, change).read_bytes()
    file = attempt(lambda: MarksFile(path, labels))
    assert path.read_bytes() == content  # reading changes nothing
    if file is None:
        return
    known = file.marks()
    file.update({11: "keep"})
    assert MarksFile(path, labels).marks() == {**known, 11: "keep"}  # what is read is not lost


OPTIONS = yaml.safe_dump({"recipe": "digits", "optim": {"epochs": 3}, "methods": ["alr"]}).encode()


@fuzz(cases=[b"", b"a: &a [*a]", b"\xff", b"? [a]: b", b"!!python/name:os.system"])
def test_file_of_options(folder, change):
    from alr_fast.training.config.command_line import parse

    path = write(folder / "config.yaml", OPTIONS, change)
    attempt(lambda: parse(["--config", str(path)]))


def test_the_bound_on_memory_works():
    with pytest.raises(MemoryError):
        bytearray(3 * 10**9)
