"""A folder of images with one subfolder for each class.

``root/{train,test,val}/<class>/*``, ``root/<class>/*``, or ``root/<class>/{train,test,val}/*``;
images may lie any number of folders below the folder of their class. `alr_fast.data.layouts.splits`
lists the names that a folder of a split may have.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from alr_fast.data.classes import alike, sort_names
from alr_fast.data.inventory import (
    counted,
    holds_image,
    scan,
    take_inventory,
)
from alr_fast.data.layouts.base import Found, Layout, Listing, NoSplit
from alr_fast.data.layouts.class_folders import PARTS, candidates, list_class_folders
from alr_fast.data.layouts.listed import has_list, partial_lists
from alr_fast.data.layouts.splits import ROLES, role_of
from alr_fast.errors import UserError
from alr_fast.utils.text import printable

LOOKED_FOR = "train/<class>/* and test/<class>/* (or val), or <class>/* without a test split"
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
    names = top.folders if len(top.folders) == 1 else [n for n in top.folders if n.lower() in PARTS]
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
        places.unused.extend(name for name in top.folders if name.lower() in PARTS)
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
    names = [name for name in folders if role_of(name) not in roles]
    if names and all(name.lower() in PARTS or name.lower() in _UNLABELLED for name in names):
        return []
    for name in names:
        if name.lower() in PARTS and not path:
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
    for name in candidates(root, ""):
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
        for name in candidates(root, train)
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
        images = sum((_images(root, f"{k}/{name}") for k in candidates(root, "")), Counter())
        add(images, f"in {printable(name)} of the class folders")
    for name in places.unused:
        role = role_of(name)
        used = next((places.classes[r] for r in ("test", "val") if r in places.classes), "")
        used = places.classes["train"] if role == "train" else used
        why = f"as {printable(used)} is used" if role and used else "which is no split"
        add(_images(root, name), f"in {printable(name)}, {why}")
    top = scan(root, most=_LOOK)
    if places.classes["train"]:
        where = "in no folder of a split"
        if partial_lists(root):
            lines.append(
                f"not read: a list in {printable(str(root))} with labels of these images; the "
                "layout table reads it"
            )
    else:
        where = "beside the class folders"
        lines += [
            f"not read: {printable(name)}, which lists few of these images; --labels reads labels"
            for name in partial_lists(root)
        ]
    add(Counter(top.kinds), where)
    return lines


def _unused_inner(root: Path, places: _Places) -> list[str]:
    """Names of folders within the class folders that are neither for training nor for testing."""
    if not places.inner:
        return []
    used = [places.inner["train"], places.inner.get("test", places.inner.get("val"))]
    names = (name for k in candidates(root, "") for name in scan(root, k).folders)
    return [name for name in dict.fromkeys(names) if name not in used]


def _images(root: Path, name: str) -> Counter[str]:
    folder = root / name
    return take_inventory(folder, most=None).images if folder.is_dir() else Counter()


LAYOUT = Layout("folder", LOOKED_FOR, find, read, ("train", "test", "val"))
