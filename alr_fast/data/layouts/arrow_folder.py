"""Folders that ``Dataset.save_to_disk`` of Hugging Face writes: Arrow files beside JSON files.

The library `datasets` is not asked: it waits for pipes, opens files elsewhere, and calls by name
what the features of a stranger ask for.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from alr_fast.data.layouts.splits import SPLITS, role_of
from alr_fast.errors import UserError
from alr_fast.utils.files import open_regular
from alr_fast.utils.text import error_text, some_names

_DISK = ("dataset_dict.json", "state.json")
_MOST_JSON = 1 << 24  # bytes


def is_on_disk(root: Path) -> bool:
    """Whether this is such a folder, by the names in it."""
    return root.is_dir() and any((root / name).is_file() for name in _DISK)


def folders_on_disk(root: Path) -> dict[str, tuple[Path, ...]]:
    """Split -> the one folder of its table."""
    if (root / "state.json").is_file():
        return {"train": (root,)}
    path = root / "dataset_dict.json"
    names = [name for name in _listed(path, "splits") if _is_plain(name)]
    files = {role: (root / name,) for name in names if (role := role_of(name)) is not None}
    if "train" not in files and len(names) == 1:
        files = {"train": (root / names[0],)}
    if "train" not in files:
        raise UserError(f"{root}: no split train, only {some_names(names) or 'none'}; rename one")
    return {split: files[split] for split in SPLITS if split in files}


def _listed(path: Path, name: str) -> list[Any]:
    """A list in a JSON file of `save_to_disk`.

    Raises:
        UserError: The file cannot be read, or has no such list.
    """
    try:
        with open_regular(path, _MOST_JSON) as file:
            listed = json.load(file)[name]
        if not isinstance(listed, list):
            raise TypeError(f"{name} is no list")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error_text(error)}); save it again") from error
    return listed


def _is_plain(name: object) -> bool:
    """Whether this is the name of an entry of a folder, and does not lead out of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set("/\0") & set(name)


@lru_cache(maxsize=8)
def table_on_disk(folder: Path) -> Any:
    """The Arrow table in a folder of `save_to_disk`, mapped into memory.

    Raises:
        UserError: It cannot be read.
    """
    import pyarrow

    path = folder / "state.json"
    listed = _listed(path, "_data_files")
    names = [str(entry.get("filename")) for entry in listed if isinstance(entry, dict)]
    if not names or len(names) < len(listed) or not all(map(_is_plain, names)):
        raise UserError(f"{path}: does not name files of its folder; save it again")
    tables = []
    for path in (folder / name for name in names):
        try:
            open_regular(path).close()
            tables.append(_arrow_file(path))
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise UserError(
                f"{path}: cannot be read ({error_text(error)}); save it again"
            ) from error
    if any(table.schema != tables[0].schema for table in tables):
        raise UserError(f"{folder}: its files have different columns; save it again")
    return pyarrow.concat_tables(tables)


def _arrow_file(path: Path) -> Any:
    """The table of an Arrow file, whose lengths and texts are checked: pyarrow believes them."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        size, most = 0, source.size() + _MOST_JSON
        batches = []
        with pyarrow.ipc.open_stream(source) as stream:
            for batch in stream:
                size += batch.nbytes
                if size > most:
                    raise ValueError("it is compressed")
                batch.validate(full=True)
                batches.append(batch)
            return pyarrow.Table.from_batches(batches, stream.schema)
