"""Files of noisy labels and of transition matrices."""

import io
import os
import pickle

import numpy as np
import pytest

from alr_fast.data.index import SampleIndex
from alr_fast.errors import UserError
from alr_fast.noise import (
    inject,
    load_labels,
    load_noise,
    read_matrix,
    save_labels,
)


def make_index(n=30, names=("a", "b", "ü"), prefix="train"):
    labels = np.arange(n) % len(names)
    return SampleIndex(
        sample_ids=np.arange(n),
        paths=[f"{prefix}/{i:03d}.png" for i in range(n)],
        labels=labels,
        clean_labels=None,
        class_names=names,
    )


def relabelled(index):
    """The same samples, one of them with another given label."""
    labels = index.labels.copy()
    labels[4] = (labels[4] + 1) % index.num_classes
    return SampleIndex(index.sample_ids, index.paths, labels, None, index.class_names)


@pytest.fixture
def saved(tmp_path):
    """Path, noise and index of a file of noisy labels."""
    index = make_index()
    noise = inject(index.labels, num_classes=3, kind="symmetric-exclusive", rate=0.4, seed=9)
    path = tmp_path / "noisy.npz"
    save_labels(path, noise, index)
    return path, noise, index


def test_round_trip(saved):
    path, noise, index = saved
    labels = load_labels(path, index)
    assert labels.dtype == np.int64
    assert labels.tolist() == noise.labels.tolist()
    loaded = load_noise(path, index)
    for name in ("kind", "requested_rate", "realised_rate", "seed"):
        assert getattr(loaded, name) == getattr(noise, name)
        assert type(getattr(loaded, name)) is type(getattr(noise, name))
    assert loaded.counts.tolist() == noise.counts.tolist()
    assert [file.name for file in path.parent.iterdir()] == ["noisy.npz"]


def test_content_of_the_file(saved):
    path, noise, index = saved
    with np.load(path, allow_pickle=False) as archive:
        content = {name: archive[name].tolist() for name in archive.files}
    assert content == {
        "format": "alr_fast noisy labels 2",
        "ids": list(range(30)),
        "labels": noise.labels.tolist(),
        "original": index.labels.tolist(),
        "paths": list(b"".join(path.encode() + b"\0" for path in index.paths)),
        "class_names": ["a", "b", "ü"],
        "kind": "symmetric-exclusive",
        "requested_rate": 0.4,
        "realised_rate": 0.4,
        "seed": 9,
        "sample_fingerprint": index.sample_fingerprint(),
    }


def test_a_subset_gets_the_labels_of_its_ids(saved):
    path, noise, index = saved
    rows = np.array([2, 3, 11, 29])
    part = load_noise(path, index.take(rows))
    assert part.labels.tolist() == noise.labels[rows].tolist()
    assert part.realised_rate == np.mean(noise.labels[rows] != index.labels[rows])
    assert part.requested_rate == 0.4


def test_a_file_of_a_subset_is_for_that_subset_alone(tmp_path):
    index = make_index()
    part = index.take(np.arange(10, 20))
    noise = inject(part.labels, num_classes=3, kind="pair", rate=0.5, seed=0)
    save_labels(tmp_path / "part.npz", noise, part)
    assert load_labels(tmp_path / "part.npz", part).tolist() == noise.labels.tolist()
    with pytest.raises(
        UserError, match=r"part\.npz: has no label for 20 of 30 .*id 0, train/000.png\).*whole"
    ):
        load_labels(tmp_path / "part.npz", index)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda index: make_index(names=tuple("abcd")),
            "labels of the class ü, which the data set",
        ),
        (lambda index: make_index(names=tuple("axü")), "labels of the class b, which the data set"),
        (lambda index: make_index(61), r"no label for 31 of 61 samples \(first: id 30, train/030"),
        (lambda index: make_index(prefix="other"), "no label for 30 of 30 samples"),
        (relabelled, r"first: train/004.png was b, in the data set ü\)"),
        (
            lambda index: relabelled(index).take(np.arange(3, 9)),
            r"004.png was b, in the data set ü",
        ),
    ],
    ids=["class-count", "class-names", "more-samples", "paths", "labels", "labels-of-a-subset"],
)
def test_another_data_set_is_refused(saved, change, message):
    path, _, index = saved
    with pytest.raises(UserError, match=rf"noisy\.npz: .*{message}"):
        load_labels(path, change(index))


def reordered(index, first, names):
    """The same samples with ids from ``first`` on, and the classes in this order."""
    labels = np.array([names.index(index.class_names[k]) for k in index.labels])
    return SampleIndex(index.sample_ids + first, index.paths, labels, None, names)


def test_a_data_set_that_grew(saved):
    """An image was added in front of the others, which moves all ids, and a class."""
    path, noise, index = saved
    names = ("0", "ü", "b", "a")
    moved = reordered(index, 1, names)
    grown = SampleIndex(
        np.arange(31),
        ["train/+.png", *index.paths],
        np.array([0, *moved.labels]),
        None,
        names,
    )
    log = []
    loaded = load_noise(path, grown, log.append)
    assert [names[k] for k in loaded.labels[1:]] == [index.class_names[k] for k in noise.labels]
    assert loaded.labels[0] == 0
    assert loaded.original.tolist() == grown.labels.tolist()
    assert loaded.counts.shape == (4, 4)
    assert log == [
        "30 of 31 samples; 1 of the data set are not in the file and keep their label (first: "
        "train/+.png)"
    ]


def test_a_file_of_earlier_versions(saved):
    """It has no paths: ids count, and of the whole data set the fingerprint."""
    path, noise, index = saved
    with_arrays(paths=None, format=np.array("alr_fast noisy labels 1"))(path)
    assert load_labels(path, index).tolist() == noise.labels.tolist()
    assert load_labels(path, index.take(np.arange(3, 9))).tolist() == noise.labels[3:9].tolist()
    with pytest.raises(UserError, match="made for other samples"):
        load_labels(path, make_index(prefix="other"))
    with pytest.raises(UserError, match=r"no label for 1 of 31 samples \(first: id 30, train/030"):
        load_labels(path, make_index(31))


def test_an_existing_file_stays(saved):
    path, noise, index = saved
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"noisy\.npz: exists already; .*overwrite"):
        save_labels(path, noise, index)
    assert path.read_bytes() == before
    other = inject(index.labels, num_classes=3, kind="pair", rate=1.0, seed=0)
    path.with_name("link").hardlink_to(path)
    save_labels(path, other, index, overwrite=True)
    assert path.with_name("link").read_bytes() == before  # replaced, not written into
    assert load_labels(path, index).tolist() == other.labels.tolist()


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    path, noise, index = saved
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(UserError, match=r"noisy\.npz: No space left on device; free"):
        save_labels(path, noise, index, overwrite=True)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["noisy.npz"]


def test_places_that_cannot_be_written(saved, tmp_path):
    _, noise, index = saved
    with pytest.raises(UserError, match=r"no folder .*nosuch; make it"):
        save_labels(tmp_path / "nosuch" / "x.npz", noise, index)
    with pytest.raises(UserError, match="is a folder"):
        save_labels(tmp_path, noise, index, overwrite=True)
    with pytest.raises(ValueError, match="30 samples"):
        save_labels(tmp_path / "x.npz", noise, make_index(29))


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_the_mode_of_the_file_follows_the_umask(saved):
    path, *_ = saved
    plain = path.with_name("plain")
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def with_arrays(**changes):
    def spoil(path):
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
        arrays.update(changes)
        np.savez(path, **{name: a for name, a in arrays.items() if a is not None})

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no such file; make it with"),
        (lambda path: path.write_bytes(b""), "not a file of noisy labels"),
        (lambda path: path.write_text("id,label\n"), "not a file of noisy labels"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "not a file of noisy labels"),
        (lambda path: path.write_bytes(pickle.dumps([1, 2])), "not a file of noisy labels"),
        (lambda path: path.write_bytes(npy(np.arange(3))), r"\(it lacks format, ids, "),
        (with_arrays(ids=None), r"\(it lacks ids\)"),
        (with_arrays(labels=np.array([None] * 30)), "not a file of noisy labels.*Python objects"),
        (with_arrays(labels=np.zeros(30)), "labels is float64"),
        (with_arrays(labels=np.full(30, 3)), "labels holds labels of more than 3 classes"),
        (with_arrays(labels=np.zeros(29, int)), "labels has 29 entries, ids has 30"),
        (with_arrays(ids=np.arange(30)[::-1]), "ids do not ascend"),
        (
            with_arrays(format=np.array("alr_fast noisy labels 3")),
            "format .* 3, this version reads",
        ),
        (with_arrays(paths=None), "format .* 2, this version reads"),
        (with_arrays(paths=np.zeros(30, np.uint8)), "paths are not 30 texts"),
        (with_arrays(paths=np.frombuffer(b"a\0" * 29, np.uint8)), "paths are not 30 texts"),
        (with_arrays(paths=np.frombuffer(b"a\0" * 30 + b"b", np.uint8)), "paths are not 30 texts"),
    ],
)
def test_files_without_noisy_labels(saved, spoil, message):
    path, _, index = saved
    spoil(path)
    with pytest.raises(UserError, match=rf"^.*noisy\.npz: .*{message}") as info:
        load_labels(path, index)
    assert "\n" not in str(info.value)


def test_matrix_files(tmp_path):
    matrix = np.array([[0.9, 0.1], [0.25, 0.75]])
    np.save(tmp_path / "t.npy", matrix.astype(np.float32))
    (tmp_path / "t.csv").write_text("0.9, 0.1\n0.25,0.75\n\n")
    np.testing.assert_allclose(read_matrix(tmp_path / "t.npy"), matrix, atol=1e-7)
    assert np.array_equal(read_matrix(tmp_path / "t.csv"), matrix)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, r"none\.csv: no such file"),
        ("t.csv", b"a,b\n1,0\n", r"t\.csv: cannot be read .*'a'.*K rows"),
        ("t.csv", b"1,0\n1\n", r"t\.csv: cannot be read"),
        ("t.csv", b"", r"t\.csv: cannot be read .*empty"),
        ("t.npy", b"junk", r"t\.npy: cannot be read"),
        ("t.npy", pickle.dumps({}), r"t\.npy: cannot be read"),
    ],
)
def test_wrong_matrix_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as info:
        read_matrix(tmp_path / name)
    assert "\n" not in str(info.value)
