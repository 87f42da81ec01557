"""Tiny data sets for the tests, in the form of their public downloads.

Every writer returns the expected listing: split -> list of (path below the root, label), in the
order of the lists. Brightness depends on the class, so that even a short training learns something.
"""

import io
import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

Expected = dict[str, list[tuple[str, int]]]

CIFAR10_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CLOTHING_NAMES = (
    *("T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker"),
    *("Jacket", "Downcoat", "Suit", "Shawl", "Dress", "Vest", "Underwear"),
)
FOOD_NAMES = ("apple_pie", "baby_back_ribs", "baklava", "crème_brûlée")


def pixels(label: int, classes: int, number: int, height: int, width: int) -> np.ndarray:
    """An image of a class, uint8 [height, width, 3], another one for each number."""
    rng = np.random.default_rng((label, number))
    level = 20 + 200 * label // max(classes - 1, 1)
    return (level + rng.integers(0, 16, size=(height, width, 3))).astype(np.uint8)


def write_image(path: Path, label: int, classes: int, number: int, height=32, width=40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels(label, classes, number, height, width))
    image.save(path, format="JPEG", quality=90)


def write_lines(path: Path, lines, end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode())


def shuffled(items: list) -> list:
    """The items in a fixed order that is not sorted, like that of the lists in the downloads."""
    return [items[k] for k in np.random.default_rng(1).permutation(len(items))]


class _Python2Pickler(pickle._Pickler):
    """Pickles like Python 2: strings are bytes without an encoding."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def _save_string(self, text):
        raw = text if isinstance(text, bytes) else text.encode("latin1")
        if len(raw) < 256:
            self.write(pickle.SHORT_BINSTRING + struct.pack("<B", len(raw)) + raw)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(text)

    dispatch[str] = _save_string
    dispatch[bytes] = _save_string


def python2_pickle(value) -> bytes:
    """A pickle like those of the download: protocol 2 of Python 2, module names of old numpy."""
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2, fix_imports=True).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")


def write_cifar10(root: Path, *, per_batch: int = 20, dump=python2_pickle) -> Expected:
    """``cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}``."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    meta = {"num_cases_per_batch": per_batch, "label_names": list(CIFAR10_NAMES), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(dump(meta))
    expected: Expected = {"train": [], "test": []}
    for b, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        labels = [(i * 3 + b) % 10 for i in range(per_batch)]
        content = {
            "batch_label": f"batch {b}",
            "labels": labels,
            "data": _cifar_rows(labels, 10, per_batch * b),
            "filenames": [f"{CIFAR10_NAMES[k]}_s_{i:06d}.png" for i, k in enumerate(labels)],
        }
        (folder / name).write_bytes(dump(content))
        rows = [(f"{name}/{i:05d}", label) for i, label in enumerate(labels)]
        expected["test" if name == "test_batch" else "train"] += rows
    return expected


def write_cifar100(root: Path, *, meta: bool = True, dump=python2_pickle) -> Expected:
    """``cifar-100-python/{train,test,meta}`` with 200 and 100 images."""
    from alr_fast.noise.classes import CIFAR100_SUPERCLASSES

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    fine = sorted(name for members in CIFAR100_SUPERCLASSES.values() for name in members)
    coarse = {n: k for k, members in enumerate(CIFAR100_SUPERCLASSES.values()) for n in members}
    if meta:
        names = {"fine_label_names": fine, "coarse_label_names": list(CIFAR100_SUPERCLASSES)}
        (folder / "meta").write_bytes(dump(names))
    expected: Expected = {}
    for first, (name, count) in enumerate((("train", 200), ("test", 100))):
        labels = [(i * 7 + first) % 100 for i in range(count)]
        content = {
            "filenames": [f"{fine[k]}_s_{i:06d}.png" for i, k in enumerate(labels)],
            "batch_label": f"{name}ing batch 1 of 1",
            "fine_labels": labels,
            "coarse_labels": [coarse[fine[k]] for k in labels],
            "data": _cifar_rows(labels, 100, 1000 * first),
        }
        (folder / name).write_bytes(dump(content))
        expected[name] = [(f"{name}/{i:05d}", label) for i, label in enumerate(labels)]
    return expected


def _cifar_rows(labels: list[int], classes: int, first: int) -> np.ndarray:
    images = [pixels(k, classes, first + i, 32, 32) for i, k in enumerate(labels)]
    return np.stack(images).transpose(0, 3, 1, 2).reshape(len(labels), 3072)


def write_cifar_n(path: Path, clean, classes: int = 10, *, zipped: bool = True) -> dict:
    """``CIFAR-10_human.pt`` or ``CIFAR-100_human.pt``; returns its content."""
    clean = np.asarray(clean, dtype=np.int64)
    if classes == 10:
        content = {
            "clean_label": clean,
            "aggre_label": (clean + (np.arange(len(clean)) % 11 == 0)) % 10,
            "worse_label": (clean + (np.arange(len(clean)) % 5 < 2)) % 10,
            **{f"random_label{k}": (clean + k) % 10 for k in (1, 2, 3)},
        }
    else:
        content = {
            "clean_label": clean,
            "noisy_label": (clean + (np.arange(len(clean)) % 5 < 2)) % 100,
            "noisy_coarse_label": [int(k) // 5 for k in clean],
            "clean_coarse_label": [int(k) // 5 for k in clean],
        }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return content


def write_clothing1m(root: Path, convention: str = "B", *, end: str = "\n") -> Expected:
    """14 classes with three noisy images each, one clean for training, one for val, two for test.

    Args:
        root: Folder to create.
        convention: ``A``: text files beside the folders 0 to 9; ``B``: in ``annotations/``.
        end: Line end.
    """
    text, cut = (root, "images/") if convention == "A" else (root / "annotations", "")
    counts = {"train": 3, "clean_train": 1, "val": 1, "test": 2}
    samples = {
        split: shuffled([(k, number) for k in range(14) for number in range(count)])
        for split, count in counts.items()
    }
    expected: Expected = {}
    kv: dict[str, list[str]] = {"noisy": [], "clean": []}
    for first, (split, chosen) in enumerate(samples.items()):
        keys, expected[split] = [], []
        for k, number in chosen:
            name = f"{first + 1}0{k:02d}{number},{90000 - k}"
            key = f"images/{k % 10}/{number}{first}/{name}.jpg"
            write_image(root / key.removeprefix(cut), k, 14, 10 * first + number)
            label = (k + (number == 0)) % 14 if split == "train" else k
            kv["noisy" if split == "train" else "clean"].append(f"{key} {label}")
            keys.append(key)
            expected[split].append((key.removeprefix(cut), label))
        stem = "noisy_train" if split == "train" else f"clean_{split.removeprefix('clean_')}"
        write_lines(text / f"{stem}_key_list.txt", keys, end)
    kv["noisy"].append("images/0/00/9,9.jpg 3")  # in no key list, like 37,497 in the download
    for kind, lines in kv.items():
        write_lines(text / f"{kind}_label_kv.txt", shuffled(lines), end)
    write_lines(text / "category_names_eng.txt", CLOTHING_NAMES, end)
    write_lines(text / "category_names_chn.txt", ["T恤", *"衬针雪毛卫风夹羽西披连背内"], end)
    return expected


WEBVISION_CLASSES = 52
WNIDS = [f"n{1440764 + 4711 * k:08d}" for k in range(WEBVISION_CLASSES)]
_FIRST_NAMES = {0: "tench", 1: "goldfish", 17: "crane", 18: "crane"}
WEBVISION_NAMES = [_FIRST_NAMES.get(k, f"animal {k}") for k in range(WEBVISION_CLASSES)]
WEBVISION_NAMES[17:19] = [f"crane ({wnid})" for wnid in WNIDS[17:19]]


def write_webvision(root: Path, *, flickr: bool = True, end: str = "\n") -> Expected:
    """52 classes, two more than mini-WebVision has; one or two images of each source.

    Args:
        root: Folder to create.
        flickr: Whether to write Flickr's images; their list is written in any case.
        end: Line end.
    """
    expected: Expected = {"google": [], "flickr": [], "test": []}
    lists = {"google": "train_filelist_google", "flickr": "train_filelist_flickr"}
    for first, source in enumerate(lists):
        for k in range(WEBVISION_CLASSES):
            for number in range(2 if source == "google" and k % 2 else 1):
                path = f"{source}/q{k:04d}/{source[0]}{k}_{number}.jpg"
                if flickr or source == "google":
                    write_image(root / path, k, WEBVISION_CLASSES, 10 * first + number)
                expected[source].append((path, k))
        expected[source] = shuffled(expected[source])
        lines = [f"{path} {k}" for path, k in expected[source]]
        write_lines(root / "info" / f"{lists[source]}.txt", lines, end)
    for k in range(WEBVISION_CLASSES):
        name = f"val{k + 1:06d}.jpg"
        label = k * 5 % WEBVISION_CLASSES
        write_image(root / "val_images_256" / name, label, WEBVISION_CLASSES, 20)
        expected["test"].append((f"val_images_256/{name}", label))
    lines = [f"{path.split('/')[1]} {k}" for path, k in expected["test"]]
    write_lines(root / "info" / "val_filelist.txt", lines, end)
    synsets = [
        f"{wnid} {_FIRST_NAMES.get(k, f'animal {k}')}, Animalia {k}" for k, wnid in enumerate(WNIDS)
    ]
    write_lines(root / "info" / "synsets.txt", synsets, end)
    queries = [f"{k + 1} {k + 1}" for k in range(WEBVISION_CLASSES)]
    write_lines(root / "info" / "queries_synsets_map.txt", queries, end)
    expected["train"] = expected["google"] + expected["flickr"]
    return expected


def write_ilsvrc12(root: Path, form: str, *, classes: int = WEBVISION_CLASSES) -> None:
    """One image of each class in ``val/``.

    Args:
        root: Folder to create.
        form: ``wnids`` or ``numbers`` for class folders; ``list`` for a flat folder and a list with
            numbers, ``list-wnids`` for a list with WordNet ids.
        classes: Number of classes.
    """
    lines = []
    for k, wnid in enumerate(WNIDS[:classes]):
        name = f"ILSVRC2012_val_{k * 37 % 101:08d}.JPEG"
        folder = {"wnids": f"{wnid}/", "numbers": f"{k}/"}.get(form, "")
        write_image(root / "val" / f"{folder}{name}", k, classes, 30)
        lines.append(f"{name} {wnid if form == 'list-wnids' else k}")
    if form.startswith("list"):
        write_lines(root / "val.txt", sorted(lines))


def write_animal10n(root: Path, form: str, *, per_class: int = 2) -> Expected:
    """Ten classes of 64x64 images, half as many for testing.

    Args:
        root: Folder to create.
        form: ``records``, ``flat`` or ``folders``.
        per_class: Training images of each class.
    """
    root.mkdir(parents=True, exist_ok=True)
    expected: Expected = {}
    for split, count in (("train", per_class), ("test", max(per_class // 2, 1))):
        samples = shuffled([(k, number) for k in range(10) for number in range(count)])
        if form == "records":
            expected[split] = _write_records(root, split, samples)
            continue
        expected[split] = []
        for k, number in samples:
            rest = f"{int(split == 'test')}{number:04d}.jpg"
            path = f"{split}ing/{k}_{rest}" if form == "flat" else f"{split}/{k}/{rest}"
            write_image(root / path, k, 10, number, 64, 64)
            expected[split].append((path, k))
        expected[split].sort()
    return expected


def _write_records(root: Path, split: str, samples: list) -> list[tuple[str, int]]:
    names = [f"data_batch_{k}" for k in range(1, 6)] if split == "train" else ["test_batch"]
    expected = []
    for name, part in zip(names, np.array_split(np.array(samples), len(names)), strict=True):
        with open(root / f"{name}.bin", "wb") as file:
            for record, (k, number) in enumerate(part.tolist()):
                image = pixels(k, 10, number, 64, 64).transpose(2, 0, 1)
                file.write(struct.pack("<ii", 7 * k + number, k) + image.tobytes())
                expected.append((f"{name}/{record:05d}", k))
    return expected


def write_food101n(root: Path, where: str = "merged", *, end: str = "\n") -> Expected:
    """Four classes, two images for training and one for testing each.

    Args:
        root: Folder to create.
        where: Place of Food-101: ``merged``, a ``child`` of the root or a ``sibling``.
        end: Line end.
    """
    base = {"merged": "", "child": "food-101/", "sibling": "../food-101/"}[where]
    root.mkdir(parents=True, exist_ok=True)
    expected: Expected = {"train": [], "test": []}
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for k, name in shuffled(list(enumerate(FOOD_NAMES))):
        for number in range(2):
            path = f"{name}/{number}f3a, b.jpg"
            write_image(root / "images" / path, k, 4, number)
            expected["train"].append((f"images/{path}", k))
            lines["train"].append(path)
        write_image(root / base / "images" / name / f"10{k}.jpg", k, 4, 9)
        expected["test"].append((f"{base}images/{name}/10{k}.jpg", k))
        lines["test"].append(f"{name}/10{k}")
    write_lines(root / "meta" / "imagelist.tsv", ["class_name/key", *lines["train"]], end)
    write_lines(root / "meta" / "classes.txt", ["class_name", *FOOD_NAMES], end)
    write_lines(root / base / "meta" / "test.txt", lines["test"], end)
    return expected


def write_table(root: Path, *, names: bool = False) -> Expected:
    """``images/`` and ``all.csv`` with all columns; four images of each of three classes.

    Args:
        root: Folder to create.
        names: Whether to write class names instead of numbers.
    """
    kinds = ("ant", "bee", "cat")
    expected: Expected = {"train": [], "test": []}
    lines = ["id,path,label,clean_label,split"]
    for k, number in shuffled([(k, number) for k in range(3) for number in range(4)]):
        path = f"images/{kinds[k]} {number}, ü.jpg"
        write_image(root / path, k, 3, number)
        split = "test" if number == 3 else "train"
        label = (k + 1) % 3 if number == 0 else k
        shown = [kinds[label], kinds[k]] if names else [str(label), str(k)]
        lines.append(f'{number},"{path}",{shown[0]},{shown[1]},{split}')
        expected[split].append((path, label))
    write_lines(root / "all.csv", lines)
    return expected


def write_tree(root: Path, content: dict[str, object]) -> Path:
    """Files as people keep them.

    Args:
        root: Folder to create.
        content: Path below it -> the class of an image (an integer, of six), a text, or bytes; None
            for an empty folder. The suffix selects the format of an image.
    """
    root.mkdir(parents=True, exist_ok=True)
    for number, (name, value) in enumerate(content.items()):
        path = root / name
        if value is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, int):
            path.write_bytes(image_bytes(value, number, path.suffix))
        else:
            path.write_bytes(value if isinstance(value, bytes) else str(value).encode())
    return root


def image_bytes(label: int, number: int = 0, suffix: str = ".png") -> bytes:
    """A small image of one of six classes."""
    buffer = io.BytesIO()
    kind = Image.registered_extensions().get(suffix.lower(), "PNG")
    image = Image.fromarray(pixels(label, 6, number, 12, 16))
    image.convert("1" if suffix == ".pbm" else "L" if suffix == ".pgm" else "RGB").save(
        buffer, kind
    )
    return buffer.getvalue()


def write_idx(path: Path, array: np.ndarray, *, kind: int = 8) -> None:
    """An idx file as of MNIST, compressed if its name ends with .gz."""
    import gzip

    head = bytes((0, 0, kind, array.ndim)) + b"".join(struct.pack(">i", n) for n in array.shape)
    data = head + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_shard(path: Path, members: list[tuple[str, bytes]], **options) -> None:
    """A tar file of these members."""
    import tarfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_parquet_images(
    path: Path,
    labels: list,
    *,
    names=None,
    group: int = 3,
    plain: bool = False,
    data: list[bytes] | None = None,
    **columns,
) -> None:
    """A Parquet file as on Hugging Face: a column image of bytes and paths, a column label.

    Args:
        path: The file.
        labels: Labels, integers or texts; the image shows the class ``label % 6`` of an integer.
        names: Class names in the metadata; None for none.
        group: Rows in a row group.
        plain: Whether the column contains bytes only.
        data: The images; None for small ones of the classes.
        columns: Other columns.
    """
    import json

    import pyarrow
    from pyarrow import parquet

    if data is None:
        data = [image_bytes(k % 6 if isinstance(k, int) else 0, n) for n, k in enumerate(labels)]
    images = data if plain else [{"bytes": d, "path": f"{path.stem}_{n}.png"}
                                 for n, d in enumerate(data)]  # fmt: skip
    table = pyarrow.table({"image": images, "label": labels, **columns})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    # So that the bytes of an image occur once.
    plainly = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    parquet.write_table(table, path, row_group_size=group, **plainly)


SOURCE_LABELS = [k % 3 for k in range(12)]


def write_source(root: Path, form: str) -> Path:
    """The same twelve images of three classes, without a test split, in one of the forms `SOURCES`;
    returns the root of the data set."""
    data = [image_bytes(label, number) for number, label in enumerate(SOURCE_LABELS)]
    names = [f"{number:02d}" for number in range(len(data))]
    if form == "list":
        rows = [f"{n},{'abc'[k]}" for n, k in zip(names, SOURCE_LABELS, strict=True)]
        write_lines(root / "labels.csv", ["id,breed", *rows])
        write_tree(root, {f"pictures/{n}.png": d for n, d in zip(names, data, strict=True)})
    elif form == "parquet":
        for part in (0, 1):
            chosen = slice(6 * part, 6 * part + 6)
            path = root / "data" / f"train-{part}.parquet"
            write_parquet_images(
                path, SOURCE_LABELS[chosen], names=list("abc"), group=4, data=data[chosen]
            )
    elif form == "arrow":
        import datasets

        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abc"))}
        rows = {"image": [{"bytes": d, "path": None} for d in data], "label": SOURCE_LABELS}
        saved = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
        saved.save_to_disk(str(root), num_shards=2)
    else:
        triples = list(zip(names, data, SOURCE_LABELS, strict=True))
        for part in (0, 1):
            members = [m for n, d, k in triples[6 * part : 6 * part + 6]
                       for m in ((f"{n}.png", d), (f"{n}.cls", b"%d" % k))]  # fmt: skip
            write_shard(root / f"train-{part}.tar", members)
    return root


SOURCES = ("list", "parquet", "arrow", "tar")
