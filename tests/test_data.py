import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_folder import write_folder
from PIL import Image

from alr_fast.config import DataConfig
from alr_fast.data import load_data
from alr_fast.data.digits import read_digits
from alr_fast.data.folder import read_folder
from alr_fast.data.images import FileImages, decode
from alr_fast.data.index import SampleIndex, balanced_rows
from alr_fast.data.torch import TorchLoader
from alr_fast.errors import UserError

CPU = torch.device("cpu")
FOLDER = DataConfig(name="folder", workers=1)


def silent(items, *, description, total):
    return items


def load(root, **changes):
    return load_data(replace(FOLDER, **changes), str(root), track=silent)


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "set", train={"a": 6, "b": 4}, test={"a": 2, "b": 3})


def index_of(labels, ids=None, paths=None, classes=3):
    labels = np.asarray(labels)
    ids = np.arange(len(labels)) if ids is None else np.asarray(ids)
    return SampleIndex(
        ids=ids,
        paths=[f"p{i}" for i in ids] if paths is None else paths,
        labels=labels,
        clean_labels=None,
        class_names=tuple("abcdef"[:classes]),
    )


# The sample index.


def test_a_subset_keeps_ids_and_finds_rows():
    index = index_of([0, 1, 2, 0, 1]).take(np.array([1, 3, 4]))
    assert index.ids.tolist() == [1, 3, 4]
    assert index.paths == ["p1", "p3", "p4"]
    assert index.labels.tolist() == [1, 0, 1]
    assert index.rows_of([4, 1]).tolist() == [2, 0]
    for missing in (0, 2, 9):
        with pytest.raises(KeyError, match=str(missing)):
            index.rows_of([1, missing])


def test_fingerprints_name_samples_and_labels_apart():
    index = index_of([0, 1, 2])
    relabelled = index.with_noisy_labels(np.array([1, 1, 2]))
    assert relabelled.sample_fingerprint() == index.sample_fingerprint()
    assert relabelled.label_fingerprint() != index.label_fingerprint()
    assert relabelled.clean_labels.tolist() == [0, 1, 2]
    for other in (
        index_of([0, 1, 2], ids=[0, 1, 3], paths=index.paths),
        index_of([0, 1, 2], paths=["p0", "p1", "q2"]),
        index_of([0, 1, 2], paths=["p0", "p1p", "2"]),  # the same letters, cut elsewhere
    ):
        assert other.sample_fingerprint() != index.sample_fingerprint()
        assert other.label_fingerprint() == index.label_fingerprint()


def test_known_clean_labels_stay_clean():
    index = replace(index_of([1, 1, 2]), clean_labels=np.array([0, 1, 2]))
    assert index.with_noisy_labels(np.array([2, 2, 2])).clean_labels.tolist() == [0, 1, 2]


def test_wrong_columns_are_refused():
    with pytest.raises(ValueError, match="paths has 2 entries, ids has 3"):
        index_of([0, 1, 2], paths=["x", "y"])
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        index_of([0, 1, 2], classes=2)


def test_balanced_rows():
    labels = np.array([0] * 50 + [1] * 50 + [2] * 3)
    rows = balanced_rows(labels, 3, 20, option="x")
    assert np.bincount(labels[rows]).tolist() == [7, 7, 3]  # 20 = 7 + 7 + 6, and 3 is all there is
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, balanced_rows(labels, 3, 20, option="x"))
    assert balanced_rows(labels, 3, None, option="x").tolist() == list(range(103))
    assert len(balanced_rows(labels, 3, 500, option="x")) == 103
    with pytest.raises(UserError, match=r"data\.limit 2: below the number of classes, 3"):
        balanced_rows(labels, 3, 2, option="data.limit")


# Digits.


def test_digits_are_split_by_class_and_always_alike():
    (train, images), (test, test_images) = read_digits()
    assert (len(train), len(test)) == (1437, 360)
    assert not set(train.paths) & set(test.paths)
    assert len({*train.paths, *test.paths}) == 1797
    assert train.paths == sorted(train.paths)
    assert train.ids.tolist() == list(range(1437))
    shares = np.bincount(train.labels) / np.bincount(np.r_[train.labels, test.labels])
    assert np.abs(shares - 0.8).max() < 0.01
    assert images.shape == test_images.shape == (1, 8, 8)
    assert images.array.max() == 255
    assert read_digits()[0][0].sample_fingerprint() == train.sample_fingerprint()


def test_digits_pixels_belong_to_their_labels():
    from sklearn.datasets import load_digits

    digits = load_digits()
    _, (test, images) = read_digits()
    for row in (0, 100, 359):
        original = int(test.paths[row].split("/")[1])
        assert test.labels[row] == digits.target[original]
        assert np.abs(images[row][0] / 255 * 16 - digits.images[original]).max() < 0.05


# Folders.


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_folder_layout(tmp_path, test_name):
    write_folder(tmp_path, train={"b": 2, "a": 3}, test={"b": 1}, test_name=test_name)
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "a" / ".hidden.png").write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    train, test = read_folder(tmp_path)
    assert train.class_names == ("a", "b")
    assert train.paths == [f"train/{p}.png" for p in ("a/000", "a/001", "a/002", "b/000", "b/001")]
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert train.clean_labels is None
    assert test.paths == [f"{test_name}/b/000.png"]
    assert test.labels.tolist() == [1]  # by name: the test folder lacks class a


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".png", ".webp"])
def test_kinds_of_files(tmp_path, suffix):
    write_folder(tmp_path, train={"a": 1, "b": 1}, test={"a": 1}, suffix=suffix)
    train, test = load(tmp_path)
    assert (len(train), len(test)) == (2, 1)
    assert train.images.array.shape == (2, 3, 8, 8)


def test_labels_belong_to_the_pixels(root):
    train, test = load(root)
    for split in (train, test):  # write_folder makes class a darker than 60, class b brighter
        brightness = split.images.array.reshape(len(split), -1).mean(1)
        assert (split.index.labels == (brightness > 60)).all()


def test_limit_keeps_ids_and_pixels(root):
    whole, _ = load(root)
    part, test = load(root, limit=4, test_limit=2)
    assert len(part) == 4
    assert len(test) == 2
    assert part.index.ids.max() > 3
    for row, sample in enumerate(part.index.ids):
        assert part.index.paths[row] == whole.index.paths[sample]
        assert np.array_equal(part.images[row], whole.images[sample])


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda r: None, "no such folder"),
        (lambda r: r.write_text(""), "is not a folder"),
        (lambda r: r.mkdir(), "the folder is empty; looked for ROOT/train"),
        (lambda r: (r / "images").mkdir(parents=True), r"no train/ .*found: images.*looked for"),
        (
            lambda r: write_folder(r, train={"a": 1, "b": 1}, test={"a": 1}, test_name="eval"),
            r"no test/ or val/ in it .*found: eval, train",
        ),
        (
            lambda r: [(r / s).mkdir(parents=True) for s in ("train", "test")],
            "train: no class folders",
        ),
        (lambda r: write_folder(r, train={"a": 2}, test={"a": 1}), r"only one class \(a\)"),
        (
            lambda r: write_folder(r, train={"a": 1, "b": 1}, test={"c": 1}),
            r"test/c: this class is not in",
        ),
        (
            lambda r: write_folder(r, train={"a": 1, "b": 0}, test={"a": 1}),
            "train/b: no images in this class folder",
        ),
    ],
)
def test_wrong_folder_is_named_with_the_way_out(tmp_path, prepare, message):
    prepare(tmp_path / "set")
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / "set")
    assert str(tmp_path / "set") in str(error.value)
    assert "\n" not in str(error.value)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        lambda p: p.write_bytes(b""),
        lambda p: p.write_text("<html>"),
        lambda p: p.unlink(),
    ],
)
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_unreadable_image_is_named(tmp_path, spoil, suffix):
    write_folder(tmp_path, train={"a": 3, "b": 3}, test={"a": 1}, suffix=suffix, size=(40, 40))
    index, _ = read_folder(tmp_path)
    spoil(tmp_path / "train" / "b" / f"001{suffix}")
    images = FileImages(tmp_path, index.paths, 8)
    with pytest.raises(
        UserError, match=f"train/b/001{suffix}: cannot be read as an image"
    ) as error:
        images.verify(keep=True, workers=2, progress=iter)
    assert "\n" not in str(error.value)
    assert images.array is None


def test_several_unreadable_images_are_counted(root):
    for number in (1, 2):
        truncate(root / "train" / "a" / f"00{number}.png")
    with pytest.raises(UserError, match=r"a/001\.png.* \(2 such files, this is the first\)"):
        load(root)


@pytest.mark.parametrize("workers", [0, 1])
def test_unverified_broken_image_is_named_when_it_is_reached(root, workers):
    truncate(root / "train" / "b" / "002.png")
    train, _ = load(root, verify=False)
    loader = TorchLoader(
        train.images,
        torch.from_numpy(train.index.labels),
        batch_size=4,
        device=CPU,
        workers=workers,
    )
    with pytest.raises(UserError, match=r"train/b/002\.png: cannot be read") as error:
        list(loader)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("cache_mb", "cached"), [(1, True), (0, False)])
def test_cache_is_bounded_and_changes_nothing(root, cache_mb, cached):
    train, test = load(root, cache_mb=cache_mb)
    assert (train.images.array is not None) == cached
    assert (test.images.array is not None) == cached
    path = root / train.index.paths[7]
    assert np.array_equal(train.images[7], decode(str(path), 8))
    epochs = [
        [
            batch["image"]
            for batch in TorchLoader(
                images,
                torch.zeros(10, dtype=torch.int64),
                batch_size=4,
                device=CPU,
                shuffle=True,
                crop_padding=2,
            )
        ]
        for images in (train.images, FileImages(root, train.index.paths, 8))
    ]
    assert all(map(torch.equal, *epochs))


def test_decode_resizes_the_shorter_side_and_keeps_the_centre(tmp_path):
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 255  # a white square in the middle of a wide image
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert (decode(str(tmp_path / "wide.png"), 4) == 255).all()
    half = decode(str(tmp_path / "wide.png"), 2)
    assert half.shape == (3, 2, 2)
    assert (half > 200).all()  # the filter reaches a little beyond the square


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    file = io.BytesIO()
    Image.new("RGB", (6, 6), (200, 200, 200)).convert(mode).save(file, "TIFF")
    (tmp_path / "image.png").write_bytes(file.getvalue())
    assert decode(str(tmp_path / "image.png"), 6).shape == (3, 6, 6)


def test_exif_rotation_is_applied(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255  # upper half white
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = decode(str(tmp_path / "turned.png"), 8)
    assert (image[:, 4:] == 255).all()
    assert (image[:, :4] == 0).all()


def test_size_without_image_size_is_that_of_the_first_image(tmp_path):
    write_folder(tmp_path, train={"a": 1, "b": 1}, test={"a": 1}, size=(12, 10))
    assert load(tmp_path)[0].images.shape == (3, 10, 10)
    assert load(tmp_path, image_size=6)[1].images.shape == (3, 6, 6)
