import errno
import importlib.util
import itertools
import multiprocessing
import multiprocessing.synchronize
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from alr_fast.data.broken import BrokenSamples
from alr_fast.data.datasets import Split, open_dataset
from alr_fast.data.images.sources import ArrayImages, FileImages
from alr_fast.data.layouts.base import new_index
from alr_fast.data.loaders.choose import (
    LOADERS,
    LoaderChoice,
    choose_loader,
    has_dali,
    make_loader,
)
from alr_fast.data.loaders.memory import MemoryLoader, decode_all
from alr_fast.data.loaders.transform import Transform, for_evaluation
from alr_fast.data.sampler import SequentialSampler, ShuffledSampler
from alr_fast.errors import UserError
from helpers.broken_files import BROKEN, FINE
from helpers.image_folder import write_folder

CPU = torch.device("cpu")
UNTESTABLE = {"unreadable"} if os.geteuid() == 0 else set()  # root may read everything
HAS_DALI = has_dali()
needs_dali = pytest.mark.skipif(not HAS_DALI, reason="NVIDIA DALI is not installed")
loaders = pytest.mark.parametrize("name", [
    "memory", "torch", pytest.param("dali", marks=needs_dali)
])  # fmt: skip
# Loaders that decode while they load.
decoding = pytest.mark.parametrize("name", ["torch", pytest.param("dali", marks=needs_dali)])

PLAIN = Transform(size=8, resize=8, mean=(0.0,), std=(1 / 255,))  # returns pixel values
VARIED = Transform(size=8, crop="pad", resize=8, padding=2, flip=True, mean=(0.0,), std=(1 / 255,))


def loader_of(name, split, transform=PLAIN, *, batch_size=4, shuffle=True, **options):
    ranks = {key: options.pop(key) for key in ("rank", "world_size", "seed") if key in options}
    options = {"device": CPU, "workers": 1, **options}
    sampler = (ShuffledSampler if shuffle else SequentialSampler)(len(split), batch_size, **ranks)
    if name == "memory" and split.images.array is None:
        options["decoded"] = decode_all(
            split,
            transform.size,
            rows=sampler.rows,
            resize=transform.resize,
            broken=options.get("broken"),
        )
    return make_loader(LoaderChoice(name, "for the test"), split, sampler, transform, **options)


def epoch_of(loader, epoch=0, start=0):
    loader.set_epoch(epoch, start)
    return list(loader)


def rows_of(loader, batches):
    """Rows of the split, -1 for broken images: an index counts the rows of one rank."""
    index = torch.cat([batch["index"] for batch in batches])
    return torch.where(index < 0, -1, torch.from_numpy(loader.sampler.rows)[index]).tolist()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Grey images of brightness 10 times their row: 12 of class a, 13 of class b."""
    root = tmp_path_factory.mktemp("grey")
    for number in range(25):
        folder = root / "train" / ("a" if number < 12 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((10, 12, 3), 10 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.jpg", quality=95)
    (root / "test").symlink_to("train")
    return root


@pytest.fixture
def split(root):
    return open_dataset("folder", root).split("train")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images with structure, of different sizes."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(24):
        folder = root / "train" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        rough = rng.integers(0, 256, size=(5, 6, 3)).astype(np.uint8)
        size = (40 + 7 * (number % 5), 60 - 6 * (number % 4))
        image = Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)
        options = {}
        if number % 6 == 5:
            options["exif"] = Image.Exif()
            options["exif"][0x0112] = 1 + number % 8
        image.save(folder / f"{number:02d}.jpg", quality=90, **options)
    (root / "test").symlink_to("train")
    return open_dataset("folder", root).split("train")


@loaders
@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_once_with_its_label_row_and_pixels(name, split, workers):
    loader = loader_of(name, split, workers=workers)
    batches = epoch_of(loader)
    assert len(loader) == len(batches) == 6
    assert [len(batch["index"]) for batch in batches] == [4, 4, 4, 4, 4, 5]
    assert sorted(rows_of(loader, batches)) == list(range(25))
    for batch in batches:
        assert set(batch) == {"image", "label", "index"}
        image, label, index = batch["image"], batch["label"], batch["index"]
        row = torch.tensor(rows_of(loader, [batch]))
        assert image.shape == (len(index), 3, 8, 8)
        assert image.dtype == torch.float32
        assert image.is_contiguous(memory_format=torch.channels_last)
        assert label.dtype == index.dtype == torch.int64
        assert torch.equal(label, (row >= 12).long())
        assert ((image.mean((1, 2, 3)) - 10.0 * row).abs() < 2).all()


@loaders
def test_order_depends_on_seed_and_epoch_alone(name, split):
    def order(epoch, **options):
        loader = loader_of(name, split, **options)
        return rows_of(loader, epoch_of(loader, epoch))

    assert order(3) != order(4)
    assert order(3) == order(3, workers=2)
    assert order(3) != order(3, seed=1)
    assert order(3, shuffle=False) == list(range(25))


@loaders
def test_normalisation_by_channel(name, tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    for number in range(2):
        image = Image.new("RGB", (8, 8), (51, 102, 204))
        image.save(tmp_path / "train" / "a" / f"{number}.png")
    index = new_index(["train/a/0.png", "train/a/1.png"], np.zeros(2, np.int64), ("a",))
    split = Split(index, FileImages(tmp_path, index.paths))
    transform = Transform(8, resize=8, mean=(0.1, 0.2, 0.4), std=(0.5, 0.5, 0.25))
    (batch,) = epoch_of(loader_of(name, split, transform))
    expected = torch.tensor([0.2, 0.4, 1.6])[None, :, None, None].expand(2, 3, 8, 8)
    torch.testing.assert_close(batch["image"], expected, atol=1e-4, rtol=0)


@loaders
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_come_in_the_training_dtype(name, split, dtype):
    full = epoch_of(loader_of(name, split))[0]["image"]
    half = epoch_of(loader_of(name, split, dtype=dtype))[0]["image"]
    assert half.dtype == dtype
    assert half.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(half.float(), full, atol=0, rtol=2 * torch.finfo(dtype).eps)


@loaders
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_together_see_every_sample_once(name, split, world_size, shuffle):
    seen = []
    for rank in range(world_size):
        loader = loader_of(name, split, shuffle=shuffle, rank=rank, world_size=world_size)
        for batch in epoch_of(loader, 1):
            rows = loader.sampler.rows[
                batch["index"].numpy()
            ]  # the index counts the rows of the rank
            assert (
                (batch["image"].mean((1, 2, 3)) - torch.from_numpy(10.0 * rows)).abs() < 2
            ).all()
            assert torch.equal(batch["label"], torch.from_numpy(rows >= 12).long())
            seen += rows.tolist()
    assert sorted(seen) == list(range(25))


@pytest.mark.parametrize("transform", [
    Transform(24, resize=28, flip=True),
    Transform(24, crop="random", resize=28, flip=True),
    Transform(24, crop="pad", resize=24, padding=4, flip=True),
    Transform(24, crop="resized", resize=24, flip=True),
], ids=lambda t: t.crop)  # fmt: skip
@pytest.mark.parametrize("shuffle", [True, False])
def test_loaders_agree(photos, transform, shuffle):
    names = [name for name in LOADERS if name != "dali" or HAS_DALI]
    if transform.crop not in ("center", "pad"):
        names.remove("memory")
    transform = transform if shuffle else for_evaluation(transform)
    seen = {
        name: epoch_of(loader_of(name, photos, transform, shuffle=shuffle), 2) for name in names
    }
    for name, other in itertools.pairwise(names):
        for a, b in zip(seen[name], seen[other], strict=True):
            assert torch.equal(a["label"], b["label"])
            assert torch.equal(a["index"], b["index"])
            # In levels of 0 to 255: decoder and filter round differently.
            difference = (a["image"] - b["image"]).abs() * 127.5
            assert difference.max() < 8
            assert difference.mean() < 0.7
    # Different crops would differ by far more.
    one, two = (batch["image"] for batch in seen[names[0]][:2])
    assert (one - two).abs().mean() * 127.5 > 20


@decoding
def test_rotated_images_are_turned_upright(name, tmp_path):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :12] = 250  # upper left quarter
    (tmp_path / "a").mkdir()
    paths = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        paths.append(f"a/{orientation}.jpg")
        Image.fromarray(pixels).save(tmp_path / paths[-1], exif=exif, quality=95)
    index = new_index(paths, np.zeros(8, np.int64), ("a",))
    split = Split(index, FileImages(tmp_path, index.paths))
    (batch,) = epoch_of(loader_of(name, split, batch_size=8, shuffle=False))
    bright = batch["image"].mean(1) > 125
    quarters = [tuple(b[i, j].item() for i in (1, 6) for j in (1, 6)) for b in bright]
    upper_left, upper_right, lower_left, lower_right = range(4)
    expected = [upper_left, upper_right, lower_right, lower_left]
    expected += [upper_left, upper_right, lower_right, lower_left]
    assert [q.index(True) for q in quarters] == expected
    assert all(sum(q) == 1 for q in quarters)


def test_augmentation_crops_and_flips_every_image_by_itself():
    rng = np.random.default_rng(0)
    array = rng.integers(1, 256, size=(64, 2, 4, 4)).astype(np.uint8)
    padded = np.pad(array, ((0, 0), (0, 0), (1, 1), (1, 1)))
    transform = Transform(4, crop="pad", padding=1, flip=True, mean=(0.0,), std=(1 / 255,))
    index = new_index([f"p{i}" for i in range(64)], np.zeros(64, np.int64), ("a",))
    loader = loader_of("memory", Split(index, ArrayImages(array)), transform, batch_size=64)
    (batch,) = epoch_of(loader)
    seen = set()
    rows = rows_of(loader, [batch])
    for image, row in zip(batch["image"].round().to(torch.uint8), rows, strict=True):
        matches = [
            (top, left, flip)
            for top in range(3)
            for left in range(3)
            for flip in (1, -1)
            if np.array_equal(image, padded[row][:, top : top + 4, left : left + 4][:, :, ::flip])
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 12  # of 18


def test_gpu_and_cpu_cut_the_same_windows(split, monkeypatch):
    """Runs the code for GPUs on the CPU; it copies the windows with torch, not with numpy."""
    loader = loader_of("memory", split, VARIED)
    on_cpu = epoch_of(loader, 1)
    monkeypatch.setattr(MemoryLoader, "_on_cpu", False)
    for a, b in zip(on_cpu, epoch_of(loader, 1), strict=True):
        assert torch.equal(a["image"], b["image"])


@loaders
def test_a_batch_without_any_image(name, split, tmp_path):
    """The last batch of an evaluation may be one broken file."""
    write_folder(tmp_path, train={"a": 5}, test={"a": 1}, size=(12, 10), suffix=".jpg")
    (tmp_path / "train" / "a" / "004.jpg").write_bytes(b"")
    index = new_index([f"train/a/{i:03d}.jpg" for i in range(5)], np.zeros(5, np.int64), ("a",))
    split = Split(index, FileImages(tmp_path, index.paths))
    loader = loader_of(name, split, batch_size=2, shuffle=False)
    batches = epoch_of(loader)
    assert rows_of(loader, batches) == [0, 1, 2, 3, -1]
    assert batches[-1]["image"].shape == (1, 3, 8, 8)


def test_a_dead_worker_is_one_line(split, monkeypatch):
    from alr_fast.data.loaders import torch as torch_loader

    monkeypatch.setattr(torch_loader, "prepare", lambda data: os._exit(9))
    with pytest.raises(UserError, match=r"workers 1: a worker process of the loader died") as error:
        epoch_of(loader_of("torch", split))
    assert "\n" not in str(error.value)


def test_batches_come_without_shared_memory_too(split, monkeypatch):
    expected = epoch_of(loader_of("torch", split))
    monkeypatch.setattr(torch.Tensor, "share_memory_", failing_share)
    lines = []
    broken = BrokenSamples(split, log=lines.append)
    batches = epoch_of(loader_of("torch", split, broken=broken))
    for batch, want in zip(batches, expected, strict=True):
        assert torch.equal(batch["image"], want["image"])
    (line,) = lines
    assert line.startswith("shared memory: /dev/shm has no room") and "--shm-size" in line


def failing_share(tensor):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>")


def test_a_loader_that_hangs_is_one_line_after_a_while(split, monkeypatch):
    from alr_fast.data.loaders import torch as torch_loader

    monkeypatch.setattr(torch_loader, "prepare", lambda data: time.sleep(60))
    monkeypatch.setattr(torch_loader, "_LONGEST_WAIT", 1)
    before = set(multiprocessing.active_children())
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    with pytest.raises(UserError, match=r"workers 1: no batch came for .* check that folder"):
        epoch_of(loader_of("torch", split))
    assert set(multiprocessing.active_children()) <= before


def test_workers_that_cannot_be_started_are_one_line(split, monkeypatch):
    def fork():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(
        UserError, match=r"workers 1: worker processes cannot be started .*temporar"
    ):
        epoch_of(loader_of("torch", split))


def test_workers_without_locks_are_one_line(split, monkeypatch):
    def lock(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", lock)
    with pytest.raises(UserError, match=r"Read-only file system; .* /dev/shm\); use fewer, or 0"):
        epoch_of(loader_of("torch", split))


class Hanging(torch.utils.data.Dataset):
    """The second sample takes a minute."""

    def __getitem__(self, item):
        time.sleep(60 * item)
        return item


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker cannot identify the sender")
def test_only_the_parent_ends_a_worker_with_sigterm():
    from alr_fast.data.loaders.torch import _leave_signals_to_parent as init

    options = {"sampler": [0, 1], "num_workers": 1, "worker_init_fn": init}
    before = set(multiprocessing.active_children())
    batches = iter(torch.utils.data.DataLoader(Hanging(), **options))
    (worker,) = set(multiprocessing.active_children()) - before
    assert next(batches).item() == 0
    for name in ("TERM", "USR1", "INT"):
        subprocess.run(["sh", "-c", f"kill -{name} {worker.pid}"], check=True)
    worker.join(0.3)
    assert worker.is_alive()
    # As torch ends a hanging worker, and Python at its exit, which then waits without a limit.
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
    del batches


def test_randaugment_of_the_torch_loader_depends_on_the_epoch(photos):
    transform = Transform(24, crop="center", resize=24, randaugment=(2, 15))
    loader = loader_of("torch", photos, transform, workers=2)
    first, other = epoch_of(loader, 0), epoch_of(loader, 1)
    again = epoch_of(loader_of("torch", photos, transform), 0, 2)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first[2:], again, strict=True))
    assert not torch.equal(first[0]["image"], other[0]["image"])


@decoding
def test_randaugment_varies_training_images_alone(name, photos):
    transform = Transform(24, crop="center", resize=24, randaugment=(2, 15))
    varied = epoch_of(loader_of(name, photos, transform, shuffle=False))
    plain = epoch_of(loader_of(name, photos, for_evaluation(transform), shuffle=False))
    changed = [
        (a - b).abs().max() > 0.2
        for x, y in zip(varied, plain, strict=True)
        for a, b in zip(x["image"], y["image"], strict=True)
    ]
    assert sum(changed) > 12  # of 24: some operations have no effect
    assert all(batch["image"].abs().max() <= 1.01 for batch in varied)


def test_crops_stay_inside_and_vary():
    rng = np.random.default_rng(0)
    transform = Transform(224, crop="resized")
    areas = []
    for _ in range(300):
        height, width = rng.integers(30, 700, size=2)
        draws = transform.draw(rng, 1)
        top, left, h, w = transform.box(height, width, draws.place[0], draws.shape[0])
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        assert min(h, w) > 0
        if 0.8 < height / width < 1.25:
            assert 0.7 < w / h < 1.4
            areas.append(h * w / (height * width))
    assert np.ptp(areas) > 0.7
    # The middle: 224 pixels of a shorter side of 256.
    middle = Transform(224, resize=256).box(512, 700, (), ())
    assert middle == ((512 - 448) // 2, (700 - 448) // 2, 448, 448)
    place = Transform(224, crop="random", resize=256).box(512, 700, (0.999, 0.0), ())
    assert place == (64, 0, 448, 448)
    # An image that is too long for any ratio is cut to its middle.
    assert transform.box(10, 1000, (0.9, 0.9), np.zeros((0, 2))) == (0, 493, 10, 13)


@loaders
def test_resuming_returns_the_same_batches(name, photos):
    transform = Transform(24, crop="pad", resize=24, padding=4, flip=True)
    whole = epoch_of(loader_of(name, photos, transform, seed=3), 5)
    for start in (1, 4, len(whole)):
        rest = epoch_of(loader_of(name, photos, transform, seed=3), 5, start)
        assert len(rest) == len(whole) - start
        for a, b in zip(rest, whole[start:], strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)


@loaders
def test_a_pass_that_ends_early_does_not_affect_the_next(name, photos):
    transform = Transform(24, crop="pad", resize=24, padding=4)
    loader = loader_of(name, photos, transform)
    expected = [epoch_of(loader, e) for e in (0, 1)]
    loader.set_epoch(0)
    for number, _ in enumerate(loader):
        if number == 1:
            break
    again = [epoch_of(loader, e) for e in (1, 0)]
    for a, b in zip(expected[::-1], again, strict=True):
        assert rows_of(loader, a) == rows_of(loader, b)
        assert all(torch.equal(x["image"], y["image"]) for x, y in zip(a, b, strict=True))


@loaders
def test_later_batches_do_not_overwrite_earlier_ones(name, photos):
    transform = Transform(24, resize=24)
    kept, copies = [], []
    for batch in loader_of(name, photos, transform):
        kept.append(batch["image"])
        copies.append(batch["image"].clone())
    assert all(map(torch.equal, kept, copies))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A set in which 1 % of the files are broken, one per kind, and one per kind is unusual."""
    root = tmp_path_factory.mktemp("damaged")
    kinds = [item for item in (*BROKEN.items(), *FINE.items()) if item[0] not in UNTESTABLE]
    each = 50 * (len(BROKEN) - len(UNTESTABLE))
    write_folder(root, train={"a": each, "b": each}, test={"a": 1}, size=(20, 16), suffix=".jpg")
    paths = sorted((root / "train").rglob("*.jpg"))
    rows = np.random.default_rng(1).choice(len(paths), size=len(kinds), replace=False)
    split = open_dataset("folder", root).split("train")  # listed before the files are damaged
    broken = {}
    for row, (kind, damage) in zip(rows.tolist(), kinds, strict=True):
        damage(paths[row])
        if kind in BROKEN:
            broken[row] = kind
    return split, broken


@loaders
def test_every_good_sample_once_and_every_broken_one_named(name, damaged):
    split, broken = damaged
    lines = []
    limit = BrokenSamples(split, max_broken=0.011, log=lines.append)
    transform = Transform(12, crop="pad" if name == "memory" else "resized", resize=12, flip=True)
    loader = loader_of(name, split, transform, batch_size=64, workers=2, broken=limit)
    for epoch in range(3):
        batches = epoch_of(loader, epoch)
        index = torch.tensor(rows_of(loader, batches))
        label = torch.cat([batch["label"] for batch in batches])
        assert len(index) == len(split)
        assert sorted(index[index >= 0].tolist()) == sorted(set(range(len(split))) - set(broken))
        assert (index < 0).sum() == len(broken)
        assert torch.equal(label < 0, index < 0)
        assert torch.equal(
            label[index >= 0], torch.from_numpy(split.index.labels)[index[index >= 0]]
        )
        assert all(batch["image"].isfinite().all() for batch in batches)
        assert set(limit.reasons) == set(broken)
    assert len(lines) == len(broken)  # once, not once per epoch
    for row in broken:
        (line,) = [text for text in lines if f"(id {row})" in text]
        assert str(split.images.root / split.index.paths[row]) in line
        assert "\n" not in line


@loaders
@pytest.mark.parametrize("rank", [0, 1])
def test_a_broken_file_of_a_shard_is_named_by_its_id(name, tmp_path, rank):
    write_folder(tmp_path, train={"a": 20, "b": 20}, test={"a": 1}, size=(12, 10), suffix=".jpg")
    split = open_dataset("folder", tmp_path).split("train")
    paths = sorted((tmp_path / "train").rglob("*.jpg"))
    for row in (5, 6, 30, 33):
        paths[row].write_bytes(b"")
    loader = loader_of(name, split, rank=rank, world_size=2)
    epoch_of(loader)
    own = set(loader.sampler.rows.tolist()) & {5, 6, 30, 33}
    assert set(loader.broken.reasons) == own
    for row in own:
        assert loader.broken.reasons[row][0] == split.index.paths[row]


@loaders
def test_too_many_broken_files_end_the_run(name, photos, tmp_path):
    write_folder(tmp_path, train={"a": 20, "b": 20}, test={"a": 1}, size=(40, 32), suffix=".jpg")
    split = open_dataset("folder", tmp_path).split("train")
    for number in range(3):
        (tmp_path / "train" / "a" / f"{number:03d}.jpg").write_bytes(b"")
    for share, ends in ((3 / 40, False), (2 / 40, True)):
        limit = BrokenSamples(split, max_broken=share)
        if not ends:
            epoch_of(loader_of(name, split, broken=limit))
            assert sorted(limit.reasons) == [0, 1, 2]
            continue
        with pytest.raises(UserError, match=r"max_broken 0.05: 3 of 40 files are broken") as error:
            epoch_of(loader_of(name, split, broken=limit))
        assert str(tmp_path) in str(error.value)
        assert "\n" not in str(error.value)


@needs_dali
def test_a_file_that_only_the_decoder_finds_broken(photos, monkeypatch):
    """A broken file that passes the check of its structure must not cost the whole batch."""
    from alr_fast.data.images.decode import Encoded, prepare
    from alr_fast.data.loaders import dali

    bad = {3, 17}
    seen = iter(range(10**6))

    def blind(data):
        encoded = prepare(data)
        bad_file = data in bad_data
        next(seen)
        return Encoded(b"\xff\xd8 no JPEG", encoded.height, encoded.width) if bad_file else encoded

    bad_data = {photos.images.read(row) for row in bad}
    monkeypatch.setattr(dali, "prepare", blind)
    transform = Transform(24, crop="resized", flip=True)
    loader = loader_of("dali", photos, transform, seed=2)
    builds = []
    monkeypatch.setattr(
        dali.DaliLoader,
        "_build",
        lambda self, *a, build=dali.DaliLoader._build: builds.append(a) or build(self, *a),
    )
    for epoch in range(3):
        built = len(builds)
        batches = epoch_of(loader, epoch)
        rows = rows_of(loader, batches)
        assert sorted(r for r in rows if r >= 0) == sorted(set(range(24)) - bad)
        assert rows.count(-1) == 2
        assert set(loader.broken.reasons) == bad
        assert "the decoder failed" in loader.broken.reasons[3][1]
        if epoch:
            assert len(builds) == built  # known from the first epoch
    # The other samples of the epoch are unaffected.
    monkeypatch.setattr(dali, "prepare", prepare)
    for a, b in zip(
        batches, epoch_of(loader_of("dali", photos, transform, seed=2), 2), strict=True
    ):
        good = a["index"] >= 0
        assert torch.equal(a["image"][good], b["image"][good])


@needs_dali
def test_an_error_without_a_broken_file_is_raised(photos, monkeypatch):
    from alr_fast.data.loaders.dali import DaliLoader

    loader = loader_of("dali", photos, Transform(24, crop="resized"))

    class Failing:
        def __init__(self, pipeline):
            self.pipeline = pipeline

        def __getattr__(self, name):
            return getattr(self.pipeline, name)

        def share_outputs(self):
            raise RuntimeError("out of memory")

    build = DaliLoader._build
    monkeypatch.setattr(
        DaliLoader,
        "_build",
        lambda self, size, threads: (Failing if size > 1 else lambda p: p)(
            build(self, size, threads)
        ),
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        epoch_of(loader)
    assert not loader.broken.reasons


def test_auto_chooses_the_first_suitable_loader(split, monkeypatch):
    crop = Transform(8, crop="resized")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert choose_loader("auto", split, VARIED, 1).name == "memory"
    assert choose_loader("auto", split, VARIED, 0).name == "dali"
    assert choose_loader("auto", split, crop, 1).name == "dali"
    assert choose_loader("torch", split, crop, 1).name == "torch"

    def no_such_package(name):  # as find_spec without any nvidia package
        if "." in name:
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", no_such_package)
    choice = choose_loader("auto", split, crop, 1)
    assert (choice.name, "pip install" in choice.why) == ("torch", True)
    with pytest.raises(UserError, match=r"loader dali: NVIDIA DALI is not installed.*torch"):
        choose_loader("dali", split, crop, 1)


def test_unsuitable_loaders_are_refused(split):
    with pytest.raises(UserError, match=r"loader memory: needs crop center or pad"):
        choose_loader("memory", split, Transform(8, crop="resized"), 1000)
    with pytest.raises(UserError, match=r"cache_mb of 1 or more"):
        choose_loader("memory", split, PLAIN, 0)
    arrays = Split(split.index, ArrayImages(np.zeros((25, 3, 8, 8), np.uint8)))
    assert choose_loader("auto", arrays, PLAIN, 0).name == "memory"
    with pytest.raises(UserError, match=r"loader torch: the images of this data set are arrays"):
        choose_loader("torch", arrays, PLAIN, 0)


def test_workers_have_no_list_of_paths(split):
    """Millions of strings in every worker would exhaust the memory."""
    import pickle

    size = len(pickle.dumps(split.images))
    many = split.images.take(np.arange(25).repeat(1000))
    assert (len(pickle.dumps(many)) - size) / 25_000 < 20
    assert os.path.basename(many.name(24_999)) == "24.jpg"
