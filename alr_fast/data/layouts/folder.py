"""A folder of images with one subfolder for each class.

``root/{train,test,val}/<class>/*``, ``root/<class>/*``, or ``root/<class>/{train,test,val}/*``;
images may lie any number of folders below the folder of their class. `alr_fast.data.layouts.splits`
lists the names that a folder of a split may have.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alr_fast.data.classes import alike, sort_names
from alr_fast.data.index import PathTable
from alr_fast.data.inventory import (
    SYSTEM_NAMES,
    Folder,
    Inventory,
    counted,
    holds_image,
    identity_of,
    scan,
    suffix_of,
    take_inventory,
    walk,
)
from alr_fast.data.layouts.base import Found, Layout, Listing, NoSplit, new_index
from alr_fast.data.layouts.listed import has_list
from alr_fast.data.layouts.splits import ROLES, role_of
from alr_fast.errors import UserError
from alr_fast.utils.text import printable, some_names

LOOKED_FOR = "train/<class>/* and test/<class>/* (or val), or <class>/* without a test split"
# Folders that hold parts of a data set, not a class.
_PARTS = frozenset(
    (
        *("images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "data", "labels"),
        *("label", "annotations", "annotation", "masks", "mask", "segmentations", "meta"),
    )
)
_UNLABELLED = ("unknown", "unlabeled", "unlabelled", "all", "test")  # of images without labels
_LOOK = 100_000  # entries of one folder that `find` looks at
_DEEPEST = 3  # folders around a data set, as archives contain them
_PROBE = 2_000  # entries of a class folder that `find` looks at


@dataclass(frozen=True)
class _Places:
    """The parts of a data set of class folders, as paths below the root.

    Attributes:
        classes: Split -> the folder of its class folders; empty for the root itself.
        inner: Split -> name of its folder within the class folders; empty without one.
        unlabelled: Folders of splits with images, but without class folders.
        unused: Other folders beside them.
    """

    classes: dict[str, str] = field(default_factory=dict)
    inner: dict[str, str] = field(default_factory=dict)
    unlabelled: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def find(root: Path) -> Found | None:
    """A folder with class folders in the folder of a training split, or with class folders.

    Or a folder with such a folder that is the only one, or called like a part, ``images``. Folders
    beside a list of the images in them are no classes, unless they lie in the folder of a split.
    """
    places = _places(root) if root.is_dir() else None
    if places is None:
        return _find_inside(root, 0) if root.is_dir() else None
    if places.classes["train"] == "" and has_list(root):
        return None
    parts = {split: root / path for split, path in places.classes.items()}
    test = next((split for split in ("test", "val") if split in parts), None)
    where = str(parts["train"])
    if places.inner:
        where += f", with {' and '.join(places.inner.values())} in each"
    elif test is not None:
        where += f" and {parts[test]}"
    if test is None and not places.inner:
        where += ", without a test split"
    return Found(root, f"folders of classes in {where}")


def _find_inside(root: Path, depth: int) -> Found | None:
    """The data set in a folder that contains nothing else but parts of one."""
    try:
        top = scan(root, most=_LOOK)
    except OSError:
        return None
    if has_list(root):
        return None
    names = (
        top.folders if len(top.folders) == 1 else [n for n in top.folders if n.lower() in _PARTS]
    )
    for name in names if depth < _DEEPEST and not top.images else ():
        inner = root / name
        found = find(inner) if _places(inner) is not None else _find_inside(inner, depth + 1)
        if found is not None:
            return found
    return None


def _places(root: Path) -> _Places | None:
    try:
        top = scan(root, most=_LOOK)
    except OSError:
        return None
    by_role: dict[str, list[str]] = {}
    for role, name in sorted(
        (role, name) for name in top.folders if (role := role_of(name)) is not None
    ):
        by_role.setdefault(role, []).append(name)
    for names in by_role.values():
        names.sort(key=lambda name: (ROLES.index(name.lower()), name))
    taken = next((n for n in by_role.get("train", ()) if _class_folders(root, n, 1)), None)
    places = _Places()
    if taken is not None:
        places.classes["train"] = taken
        places.unused.extend(name for name in top.folders if role_of(name) is None)
    else:
        # Without a folder for training, one called train may be a class: bus, car, train.
        if len(_class_folders(root, "", 2)) < 2:
            return None
        places.classes["train"] = ""
        places.inner.update(_inner_splits(root))
        places.unused.extend(name for name in top.folders if name.lower() in _PARTS)
    for role in ("train", "test", "val"):
        for name in by_role.get(role, ()):
            if name == taken or (role == "train" and taken is None):
                continue
            if role != "train" and role not in places.classes and _class_folders(root, name, 1):
                places.classes[role] = name
            elif scan(root, name, _PROBE).images:
                places.unlabelled.append(name)
            else:
                places.unused.append(name)
    return places


def _class_folders(root: Path, path: str, enough: int) -> list[str]:
    """Names of folders with images at ``path``; stops after ``enough`` of them.

    Without a name for training, folders called like splits are no classes.
    """
    found: list[str] = []
    try:
        folders = scan(root, path, _LOOK).folders
    except OSError:
        return []
    roles = () if path else ("test", "val")
    names = [name for name in folders if role_of(name) not in roles or role_of(name) is None]
    if names and all(name.lower() in _PARTS or name.lower() in _UNLABELLED for name in names):
        return []
    for name in names:
        if name.lower() in _PARTS and not path:
            continue  # images beside class folders
        if holds_image(root, f"{path}/{name}" if path else name, most=_PROBE):
            found.append(name)
            if len(found) == enough:
                break
    return found


def _inner_splits(root: Path) -> dict[str, str]:
    """Split -> its folder within the class folders; empty unless all of them consist of splits,
    train among them."""
    inner: dict[str, str] = {}
    for name in _candidates(root, ""):
        folder = scan(root, name, _PROBE)
        roles = {role_of(inside): inside for inside in reversed(folder.folders)}
        if folder.images or None in roles or "train" not in roles:
            return {}
        inner |= {role: inside for role, inside in roles.items() if role is not None}
    return inner


def read(found: Found, split: str) -> Listing:
    """Lists the images of a split, sorted by path.

    Classes are the subfolders of the folder for training that contain images. Test images are those
    of ``test``, or of ``val`` if there is no ``test``. The true labels are unknown:
    ``clean_labels`` is None.

    Raises:
        NoSplit: There are no class folders for this split.
        UserError: There are fewer than two classes, or a test class that is not in train; or a
            folder cannot be read.
    """
    root = found.root
    places = _places(root)
    if places is None:
        raise UserError(f"{root}: its folders of classes are gone; restore them")
    train = places.classes["train"]
    if split == "train":
        listing = list_class_folders(root, root / train, inner=places.inner.get("train", ""))
        names = listing.index.class_names
        remarks = [*listing.remarks, *_beside(root, places), *alike(names)]
        return Listing(listing.index, _sources(root, places, listing), None, tuple(remarks))
    path, inner = _test_place(root, places, split)
    names = sort_names(
        name
        for name in _candidates(root, train)
        if holds_image(root, "/".join(filter(None, (train, name, places.inner.get("train")))))
    )
    listing = list_class_folders(root, root / path, names, inner=inner)
    return Listing(listing.index, _sources(root, places, listing), None, listing.remarks)


def _sources(root: Path, places: _Places, listing: Listing) -> tuple[Path, ...]:
    # The classes depend on train, the choice between test and val on the root.
    paths = (root, root / places.classes["train"], *listing.sources)
    return tuple(dict.fromkeys(paths))


def _test_place(root: Path, places: _Places, split: str) -> tuple[str, str]:
    """Folder of a split, and the name of its folder within the class folders."""
    for name in dict.fromkeys((split, "test", "val") if split == "test" else (split,)):
        if name in places.inner:
            return places.classes["train"], places.inner[name]
        if name in places.classes:
            return places.classes[name], ""
    flat = [name for name in places.unlabelled if role_of(name) in (split, "val")]
    if flat:
        raise NoSplit(f"{root / flat[0]}: images without class folders cannot be tested on")
    raise NoSplit(f"{root}: no folder {split} with class folders")


def _beside(root: Path, places: _Places) -> list[str]:
    """Lines about what lies beside the splits that are used."""
    lines = []

    def add(images: Counter[str], where: str) -> None:
        if images:
            lines.append(f"not used: {counted(images)} {where}")

    for name in places.unlabelled:
        add(_images(root, name), f"in {printable(name)}, which has no class folders")
    if "test" in places.classes and "val" in places.classes:
        val, test = places.classes["val"], places.classes["test"]
        add(
            _images(root, val),
            f"in {printable(val)}, as {printable(test)} is for testing; the split val has them",
        )
    for name in _unused_inner(root, places):
        images = sum((_images(root, f"{k}/{name}") for k in _candidates(root, "")), Counter())
        add(images, f"in {printable(name)} of the class folders")
    for name in places.unused:
        add(_images(root, name), f"in {printable(name)}, which is no split")
    top = scan(root, most=_LOOK)
    if places.classes["train"]:
        where = "in no folder of a split"
        if has_list(root):
            lines.append(
                f"not read: a list in {printable(str(root))} with labels of these images; the "
                "layout table reads it"
            )
    else:
        where = "beside the class folders"
    add(Counter(map(suffix_of, top.images)), where)
    return lines


def _unused_inner(root: Path, places: _Places) -> list[str]:
    """Names of folders within the class folders that are neither for training nor for testing."""
    if not places.inner:
        return []
    used = [places.inner["train"], places.inner.get("test", places.inner.get("val"))]
    names = (name for k in _candidates(root, "") for name in scan(root, k).folders)
    return [name for name in dict.fromkeys(names) if name not in used]


def _images(root: Path, name: str) -> Counter[str]:
    folder = root / name
    return take_inventory(folder, most=None).images if folder.is_dir() else Counter()


def list_class_folders(
    root: Path, folder: Path, class_names: tuple[str, ...] | None = None, *, inner: str = ""
) -> Listing:
    """The images below ``folder/<class>``, sorted by path.

    Args:
        root: Folder that the paths of the samples are relative to.
        folder: Folder, the root or below it, that contains the class folders.
        class_names: The classes, of which the folder may lack some; None to take those of the
            folder that contain images.
        inner: Name of the folder within each class folder that contains the images.

    Raises:
        UserError: There are fewer than two classes, or there is a folder of another class than
            ``class_names``, or no image at all; or a folder cannot be read.
    """
    base = "" if folder == root else folder.relative_to(root).as_posix()
    lister = _Lister(root, base, inner)
    table = PathTable.of(lister.paths())
    used = {name: count for name, count in lister.counts.items() if count}
    if class_names is None:
        class_names = sort_names(used)
        if len(class_names) < 2:
            only = f"only one class ({printable(class_names[0])})" if used else "no images"
            raise UserError(f"{folder}: {only}; training needs two or more classes")
    unknown = sorted(set(used) - set(class_names))
    if unknown:
        raise UserError(
            f"{folder / unknown[0]}: this class is not one of the training classes; remove it or "
            "add training images of it"
        )
    if not used:
        raise NoSplit(f"{folder}: no images in its class folders")
    number = {name: k for k, name in enumerate(class_names)}
    labels = np.repeat([number[name] for name in used], list(used.values()))
    index = new_index(table, labels, class_names)
    return Listing(index, tuple(lister.sources), None, tuple(lister.remarks()))


def _candidates(root: Path, path: str) -> list[str]:
    """Names of the class folders at ``path``; at the root those of splits are none."""
    names = _scanned(root, path).folders
    if path:
        return names
    return [name for name in names if role_of(name) in (None, "train")
            and name.lower() not in _PARTS]  # fmt: skip


def _scanned(root: Path, path: str) -> Folder:
    try:
        return scan(root, path)
    except OSError as error:
        raise _unreadable(root / path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{error.filename or path}: {error.strerror or error}; make the folder readable, or move "
        "it away"
    )


class _Lister:
    """Lists the images in the class folders at one place, and what else is there.

    Args:
        root: The root.
        base: Folder of the class folders, below the root; empty for the root.
        inner: Folder within each class folder.

    Attributes:
        counts: Class folder -> number of images, in the order of the paths.
        sources: Folders that were read.
    """

    def __init__(self, root: Path, base: str, inner: str) -> None:
        self.root = root
        self.base = base
        self.inner = inner
        self.counts: dict[str, int] = {}
        self.sources: list[Path] = []
        self._inventory = Inventory(root)
        self._deepest = 0
        self._beside = Folder(base)

    def paths(self) -> Iterator[str]:
        """Paths below the root; holds those of one class in memory at a time."""
        names = _candidates(self.root, self.base)
        self._beside = _scanned(self.root, self.base)
        self.sources.append(self.root / self.base)
        places = [self._beside.below(name) for name in names]
        try:
            # A link in a class that leads to another one, or above, is not followed.
            outside = {identity_of(self.root), identity_of(self.root, self.base)}
            identities = [identity_of(self.root, place) for place in places]
            for name, place, own in zip(names, places, identities, strict=True):
                seen = outside | set(identities) - {own}
                paths = list(self._images(place, seen))
                self.counts[name] = len(paths)
                yield from paths
        except OSError as error:
            raise _unreadable(self.root / self.base, error) from error

    def _images(self, place: str, seen: set[tuple[int, int]]) -> Iterator[str]:
        start = f"{place}/{self.inner}" if self.inner else place
        if self.inner and not (self.root / start).is_dir():
            return
        paths: list[str] = []
        inventory = Inventory(self.root)
        for folder in walk(self.root, start, inventory=inventory, seen=seen):
            paths += [folder.below(name) for name in folder.images]
            self._inventory.add(folder)
            self.sources.append(self.root / folder.path)
            if folder.images:
                self._deepest = max(self._deepest, folder.path.count("/") - start.count("/"))
        self._inventory.links += inventory.links
        for path, reason in inventory.unreadable.items():
            raise UserError(
                f"{self.root / path}: {reason}; make the folder readable, or move it away"
            )
        # Deeper ones are mixed in by name: sorted as whole paths.
        yield from sorted(paths)

    def remarks(self) -> list[str]:
        """Lines about what was not taken, or read in a way that may surprise."""
        where = printable(self.base or str(self.root))
        lines = []
        empty = [printable(name) for name, count in self.counts.items() if not count]
        if empty:
            what = "class folder" if len(empty) == 1 else "class folders"
            lines.append(f"{where}: no images in the {what} {some_names(empty)}: left out")
        if self._deepest:
            lines.append(
                f"{where}: images lie up to {self._deepest + 1} folders deep; the folder directly "
                f"in {where} is the class, those in it are no classes"
            )
        others = self._inventory.others
        if self.base:
            others = others + Counter(map(suffix_of, self._beside.others))
        if others:
            lines.append(f"{where}: not taken: {counted(others)}, which are no images")
        if self._beside.images and self.base:
            images = Counter(map(suffix_of, self._beside.images))
            lines.append(f"{where}: not used: {counted(images)} beside the class folders")
        skipped = self._inventory.skipped + Counter(
            name for name in self._beside.skipped if name.lower() in SYSTEM_NAMES
        )
        if skipped:
            lines.append(f"{where}: skipped: {counted(skipped)} entries of the system")
        links = self._inventory.links
        if links:
            lines.append(
                f"{where}: not followed: {some_names(list(map(printable, links)))}, links to "
                "folders that are listed already"
            )
        return lines


LAYOUT = Layout("folder", LOOKED_FOR, find, read, ("train", "test", "val"))
