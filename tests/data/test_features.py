import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from alr_fast.data import open_dataset
from alr_fast.data.__main__ import main as data_main
from alr_fast.data.images.sources import BrokenImage, FeatureRows
from alr_fast.data.layouts.base import NoSplit
from alr_fast.data.layouts.features import is_file_of_features
from alr_fast.data.loaders.choose import choose_loader, make_loader
from alr_fast.data.loaders.transform import Transform
from alr_fast.data.sampler import SequentialSampler, ShuffledSampler
from alr_fast.errors import UserError

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = np.arange(40) % 4


def save(folder, /, **arrays):
    file = folder / "set.npz"
    np.savez(file, **arrays)
    return file


def save_table(folder, /, **columns):
    file = folder / "set.parquet"
    pq.write_table(pa.table(columns), file)
    return file


def splits(file, column=None):
    dataset = open_dataset("auto", file, column=column)
    assert dataset.layout.name == "features"
    return dataset.split("train"), dataset.split("test")


def refused(file, *parts, column=None):
    with pytest.raises(UserError) as error:
        splits(file, column)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


# Parts and classes.


def test_arrays_with_a_test_part(tmp_path):
    clean = (Y + (Y == 3)) % 4
    file = save(
        tmp_path, X=X, y=Y, clean_labels=clean, X_test=X[:6] + 1, y_test=Y[:6],
        class_names=np.array(["ant", "bee", "cat", "dog"]), ids=np.arange(100, 140),
    )  # fmt: skip
    train, test = splits(file)
    assert (train.values == X).all()
    assert (test.values == X[:6] + 1).all()
    assert (train.index.labels == Y).all()
    assert (train.index.clean_labels == clean).all()
    assert (test.index.labels == Y[:6]).all()
    assert test.index.clean_labels is None
    assert train.index.class_names == test.index.class_names == ("ant", "bee", "cat", "dog")
    assert list(train.index.paths) == [str(k) for k in range(100, 140)]
    assert list(test.index.paths)[:2] == ["set-test/00000", "set-test/00001"]


@pytest.mark.parametrize(
    ("features", "labels", "test"),
    [
        ("embeddings", "labels", ("embeddings_test", "labels_test")),
        ("X_train", "y_train", ("X_test", "y_test")),
        ("train_features", "train_labels", ("test_features", "test_labels")),
        ("embedding", "target", ("test_embedding", "target_test")),
    ],
)
def test_common_names(tmp_path, features, labels, test):
    arrays = {features: X, labels: Y, test[0]: X[:8], test[1]: Y[:8]}
    train, tested = splits(save(tmp_path, **arrays))
    assert (train.values == X).all()
    assert (tested.values == X[:8]).all()
    assert (tested.index.labels == Y[:8]).all()


def test_a_fifth_of_each_class_is_held_out_without_a_test_part(tmp_path):
    file = save(tmp_path, X=X, y=Y)
    assert "20% of each class" in open_dataset("auto", file).found.what
    train, test = splits(file)
    assert np.bincount(test.index.labels).tolist() == [2] * 4
    assert np.bincount(train.index.labels).tolist() == [8] * 4
    rows = sorted([*train.index.paths, *test.index.paths])
    assert rows == [f"set/{row:05d}" for row in range(40)]
    for split in (train, test):
        at = [int(path[-5:]) for path in split.index.paths]
        assert at == sorted(at)
        assert (split.values == X[at]).all()
        assert (split.index.labels == Y[at]).all()
    assert list(splits(file)[1].index.paths) == list(test.index.paths)


def test_the_held_out_part_is_tested_on_clean_labels(tmp_path):
    clean = np.roll(Y, 1)
    train, test = splits(save(tmp_path, X=X, y=Y, y_clean=clean))
    at = [int(path[-5:]) for path in test.index.paths]
    assert (test.index.labels == clean[at]).all()
    at = [int(path[-5:]) for path in train.index.paths]
    assert (train.index.labels == Y[at]).all()
    assert (train.index.clean_labels == clean[at]).all()


def test_splits_by_name(tmp_path):
    names = np.array(["train"] * 30 + ["val"] * 4 + ["test"] * 6)
    train, test = splits(save(tmp_path, X=X, y=Y, split=names))
    assert (train.values == X[:30]).all()
    assert (test.values == X[34:]).all()
    names[34:] = "val"
    assert (splits(save(tmp_path, X=X, y=Y, split=names))[1].values == X[30:]).all()


@pytest.mark.parametrize(
    ("labels", "names", "first"),
    [
        (["b", "a", "c"], ("a", "b", "c"), 1),
        (["10", "9", "2"], ("2", "9", "10"), 2),
        ([7, 3, 30], ("3", "7", "30"), 1),
        ([[2], [0], [1]], ("0", "1", "2"), 2),
        ([2.0, 9.0, 10.0], ("2", "9", "10"), 0),
        (np.array([1, 2, 2**63], dtype=np.uint64), ("1", "2", str(2**63)), 0),
        (["01", "10", "b"], ("01", "10", "b"), 0),
    ],
)
def test_labels_of_any_kind(tmp_path, labels, names, first):
    labels = np.concatenate([labels] * 10)
    file = save(tmp_path, X=X[:30], y=labels, X_test=X[:3], y_test=labels[:3])
    index = splits(file)[0].index
    assert index.class_names == names
    assert index.labels[0] == first
    assert set(index.labels.tolist()) == {0, 1, 2}


def test_named_classes_need_not_occur(tmp_path):
    names = np.array(["a", "b", "c", "d", "e"])
    index = splits(save(tmp_path, X=X, y=names[Y], class_names=names))[0].index
    assert index.class_names == tuple("abcde")
    assert set(index.labels.tolist()) == {0, 1, 2, 3}


# Types.


@pytest.mark.parametrize(
    ("given", "kept"), [("f2", "f2"), ("f4", "f4"), ("f8", "f4"), ("u1", "f4"), ("i8", "f4")]
)
def test_types_of_features(tmp_path, given, kept):
    values = (X * 10).astype(given) if given != "u1" else (X * 10 + 100).astype("u1")
    train, _ = splits(save(tmp_path, X=values, y=Y, X_test=values, y_test=Y))
    assert train.values.dtype == kept
    assert (train.values == values.astype(kept)).all()


def test_a_take_keeps_features_beside_labels(tmp_path):
    part = splits(save(tmp_path, X=X, y=Y, X_test=X, y_test=Y))[0].take(np.array([3, 11]))
    assert (part.values == X[[3, 11]]).all()
    assert part.input_shape(1) == (3,)
    with pytest.raises(BrokenImage, match="no image"):
        part.images.read(0)


# Parquet.


@pytest.mark.parametrize("fixed", [True, False])
def test_parquet(tmp_path, fixed):
    kind = pa.list_(pa.float32(), 3) if fixed else pa.list_(pa.float32())
    file = save_table(
        tmp_path,
        path=[f"{k}.jpg" for k in range(40)],
        vector=pa.array(X.tolist(), kind),
        label=[("ant", "bee", "cat", "dog")[k] for k in Y],
        split=["train"] * 32 + ["test"] * 8,
    )
    train, test = splits(file)
    assert (train.values == X[:32]).all()
    assert (test.values == X[32:]).all()
    assert train.index.class_names == ("ant", "bee", "cat", "dog")
    assert list(train.index.paths)[31] == "31.jpg"


def test_parquet_in_several_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("alr_fast.data.tables.array_file._ROWS", 7)
    train, _ = splits(save_table(tmp_path, embedding=X.tolist(), label=Y))
    rows = [int(path[-5:]) for path in train.index.paths]
    assert np.allclose(train.values, X[rows])
    assert (train.index.labels == Y[rows]).all()


def test_paths_are_preferred_to_ids(tmp_path):
    paths = [f"{k}.jpg" for k in range(40)]
    file = save_table(tmp_path, id=range(40), path=paths, v=X.tolist(), label=Y)
    assert splits(file)[0].index.paths[0].endswith(".jpg")


def test_a_column_is_chosen_by_name(tmp_path):
    file = save_table(tmp_path, small=X[:, :1].tolist(), large=X.tolist(), label=Y)
    assert splits(file, "small")[0].input_shape(1) == (1,)
    assert splits(file, "large")[0].input_shape(1) == (3,)
    refused(file, "no features", "small, large")
    refused(file, "column label", "small, large", column="label")
    refused(save(tmp_path, clip=X, y=Y, y_test=Y), "clip_test", column="clip")
    file = save(tmp_path, clip=X, dino_train=X + 1, y=Y, clip_test=X[:8], y_test=Y[:8])
    assert (splits(file, "clip")[0].values == X).all()
    assert (splits(file, "clip")[1].values == X[:8]).all()


def test_other_files_are_no_features(tmp_path):
    lists = save_table(tmp_path, path=["a.jpg"], label=[0], split=["train"])
    assert not is_file_of_features(lists)
    assert not is_file_of_features(tmp_path)
    assert not is_file_of_features(tmp_path / "missing.npz")
    with pytest.raises(UserError, match=r"column clip: names the vectors .* digits"):
        open_dataset("digits", None, column="clip")


# Errors.


def wrong(**changes):
    return {"X": X, "y": Y, **changes}


def with_value(row, column, value, dtype="f4"):
    x = X.astype(dtype)
    x[row, column] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"y": Y, "feats": X}, ["no features", "X", "found: y, feats"]),
        ({"X": X, "lab": Y}, ["no labels", "y or labels", "found: X, lab"]),
        (wrong(features=X), ["features twice: X, features"]),
        (wrong(labels=Y), ["labels twice: y, labels"]),
        (wrong(X=with_value(7, 2, np.nan)), ["X has nan in row 7, column 2"]),
        (wrong(X=with_value(9, 0, -np.inf)), ["X has -inf in row 9, column 0"]),
        (wrong(X=with_value(5, 1, 1e39, "f8")), ["1e+39 in row 5, column 1", "float32"]),
        (wrong(X=X[:, 0]), ["X is 40", "samples x features"]),
        (wrong(X=X.reshape(40, 3, 1)), ["X is 40 x 3 x 1", "reshape(len(X), -1)"]),
        (wrong(X=X[:, :0]), ["X is 40 x 0"]),
        (wrong(X=X.astype("U")), ["X is <U", "floating-point"]),
        (wrong(X=X.astype(complex)), ["X is complex128"]),
        (wrong(X=X > 0), ["X is bool"]),
        (wrong(y=Y[:39]), ["39 labels for 40 rows of X"]),
        (wrong(y=Y / 2), [", row 1: label '0.5' is a fraction"]),
        (wrong(y=Y.astype(complex)), ["y is complex128", "one integer or one name for each"]),
        (wrong(y=np.where(Y, Y, np.nan)), [", row 0: label 'nan' is a missing value"]),
        (wrong(y=np.eye(4, dtype=int)[Y]), ["y is int64 of shape 40 x 4"]),
        (wrong(y=Y - 1), [", row 0: label '-1' is below 0; correct or remove it"]),
        (wrong(y=np.array(["a", "b\ud83d"] * 20)), ["y has b\\ud83d in row 1"]),
        (wrong(paths=np.array([f"{k}\udd00" for k in Y])), ["paths has 0\\udd00 in row 0"]),
        (wrong(class_names=np.array([*"abc", "\ud83d"])), ["class_names has \\ud83d in row 3"]),
        (wrong(y=Y * 0), ["fewer than two classes"]),
        (wrong(y=np.where(Y, "a", "")), [", row 0: label '' is a missing value"]),
        (wrong(clean_labels=Y[:5]), ["5 clean labels for 40 labels"]),
        (wrong(clean_labels=np.array(list("abcd"))[Y]), ["have no class in common"]),
        (wrong(class_names=np.array(["a", "b"])), ["row 2: label '2' is not one of the 2 classes"]),
        (wrong(class_names=np.array(["a", "b", "a", "d"])), ["class_names has a name twice"]),
        (wrong(X_test=X[:5]), ["no labels", "y_test"]),
        (wrong(y_test=Y[:5]), ["y_test without features", "X_test"]),
        (wrong(X_test=X[:5], y_test=Y[:5] + 3), ["row 1: label '4' is not one of the 4 classes"]),
        (wrong(y=Y + 1, X_test=X[:1], y_test=Y[:1]), ["row 0: label '0' is not one of the 4 cl"]),
        (wrong(X_test=X[:5], y_test=Y[:4]), ["4 labels for 5 rows of X_test"]),
        (wrong(split=np.array(["test"] * 40)), ["no row has split train"]),
        (wrong(split=np.array(["train"] * 39 + ["dev"])), ["split 'dev' of row 39"]),
        (wrong(split=np.array(["train"])), ["split has 1 entries for 40 labels"]),
        (wrong(paths=np.array(["a"] * 40)), ["paths of row 1 is that of row 0, 'a'"]),
        (wrong(paths=np.arange(39)), ["paths has 39 entries for 40 rows"]),
        ({"X": X[:4], "y": Y[:4]}, ["too few to hold out", "X_test"]),
        (wrong(y=np.array(["a", None] * 20, dtype=object)), ["y contains Python objects"]),
        (wrong(X=np.array([[1], [1, 2]] * 20, dtype=object)), ["X contains Python objects"]),
    ],
)
def test_wrong_arrays_are_refused_by_name(tmp_path, arrays, parts):
    refused(save(tmp_path, **arrays), "set.npz", *parts)


def test_rows_of_later_pieces_are_counted_from_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("alr_fast.data.layouts.features._ROWS", 8)
    refused(save(tmp_path, X=with_value(21, 2, np.nan), y=Y), "nan in row 21, column 2")


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        ({"v": [[1.0, 2.0]] * 39 + [[1.0]], "label": Y}, ["vector v of row 39 has 1 values"]),
        ({"v": [[1.0, 2.0]] * 39 + [None], "label": Y}, ["vector v of row 39 has 0 values"]),
        ({"v": [[1.0, 2.0]] * 39 + [[None, 1.0]], "label": Y}, ["v has nan in row 39, column 0"]),
        ({"v": X.tolist(), "label": [*Y.tolist()[:39], None]}, ["row 39: label '' is a missing"]),
        ({"v": X.tolist(), "label": Y / 2}, ["row 1: label '0.5' is a fraction"]),
        ({"v": X[:0].tolist(), "label": Y[:0]}, ["no rows"]),
    ],
)
def test_wrong_columns_are_refused_by_name(tmp_path, columns, parts):
    kinds = pa.list_(pa.float64())
    columns["v"] = pa.array(columns["v"], kinds)
    refused(save_table(tmp_path, **columns), "set.parquet", *parts)


def test_no_archive_and_a_damaged_one_are_refused(tmp_path):
    file = tmp_path / "set.npz"
    file.write_bytes(b"not a zip")
    refused(file, "set.npz", "cannot be read", "write it again")
    good = save(tmp_path, X=X, y=Y).read_bytes()
    file.write_bytes(good[:100] + bytes(100) + good[200:])
    refused(file, "X cannot be read", "write it again")


# Loader.


@pytest.fixture
def split(tmp_path):
    return splits(save(tmp_path, X=X, y=Y, X_test=X, y_test=Y))[0]


def test_batches_are_rows_beside_their_labels(split):
    sampler = ShuffledSampler(40, 16, seed=1, rank=0, world_size=1, labels=split.index.labels)
    transform = Transform(size=1)
    choice = choose_loader("auto", split, transform, 0)
    assert choice.name == "memory"
    loader = make_loader(
        choice, split, sampler, transform, device=torch.device("cpu"), dtype=torch.bfloat16
    )
    loader.set_epoch(2)
    seen = []
    for batch in loader:
        rows = sampler.rows[batch["index"].numpy()]
        assert batch["image"].dtype == torch.float32
        assert (batch["image"].numpy() == X[rows]).all()
        assert (batch["label"].numpy() == Y[rows]).all()
        seen += rows.tolist()
    assert sorted(seen) == list(range(40))
    assert loader.zeros(5).shape == (5, 3)
    loader.set_epoch(2, start=2)
    assert [len(batch["label"]) for batch in loader] == [8]


def test_half_precision_features_become_float32_in_batches(split):
    images = FeatureRows(split.images.file, split.values.astype(np.float16))
    half = type(split)(split.index, images)
    choice = choose_loader("memory", half, Transform(size=1), 0)
    sampler = SequentialSampler(40, 40)
    loader = make_loader(choice, half, sampler, Transform(size=1), device=torch.device("cpu"))
    (batch,) = loader
    assert batch["image"].dtype == torch.float32
    assert (batch["image"].numpy() == X.astype(np.float16).astype(np.float32)).all()


@pytest.mark.parametrize("loader", ["dali", "torch"])
def test_loaders_of_images_are_refused(split, loader):
    with pytest.raises(UserError, match=f"loader {loader}: the features .* pass auto"):
        choose_loader(loader, split, Transform(size=1), 1024)


# Commands.


def test_verify_and_pack_explain_themselves(tmp_path, capsys):
    file = save(tmp_path, X=X, y=Y)
    assert data_main(["verify", str(file)]) == 0
    assert "its features are read and checked whenever they are used" in capsys.readouterr().out
    assert data_main(["pack", str(file), str(tmp_path / "out")]) == 2
    assert "one file of features already; only images are packed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_only_the_test_part_is_missing_without_test_rows(tmp_path):
    dataset = open_dataset("auto", save(tmp_path, **wrong(split=np.array(["train"] * 40))))
    assert len(dataset.split("train")) == 40
    with pytest.raises(NoSplit, match="no row has split test or val"):
        dataset.split("test")
