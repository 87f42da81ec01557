"""CIFAR-N: human labels of the training images of CIFAR-10 and CIFAR-100.

``CIFAR-10_human.pt``, ``CIFAR-100_human.pt``
"""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.layouts.base import check_labels
from alr_fast.data.layouts.cifar import integers, unpickle
from alr_fast.data.tables.npz import ZIP_MAGIC
from alr_fast.errors import UserError
from alr_fast.utils.files import open_regular
from alr_fast.utils.text import did_you_mean, error_text, readable

_LEGACY_HEADERS = 3  # torch.save before 1.6: pickles of magic number, version and machine
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MOST_BYTES = 1 << 24  # unpacked; the files have some 3 MB


def read_cifar_n(path: Path, key: str, clean: NDArray[np.int64]) -> NDArray[np.int64]:
    """The labels of one annotation, int64 [N].

    The file has the order of the Python pickles of CIFAR. This is checked: its ``clean_label`` must
    equal the labels of the data set.

    Args:
        path: ``CIFAR-10_human.pt`` or ``CIFAR-100_human.pt``.
        key: ``aggre``, ``worse``, ``random1`` to ``random3``, ``noisy``, or a name in the file,
            such as ``random_label1``.
        clean: True labels of the whole training split, int64 [N].

    Raises:
        UserError: The file is missing, damaged or of another data set, has no such annotation, or
            has another order than ``clean``.
    """
    content = _load(path)
    annotations = _annotations(content)
    if not annotations or "clean_label" not in content:
        raise UserError(
            f"{path}: contains no labels of CIFAR-N; pass CIFAR-10_human.pt or CIFAR-100_human.pt"
        )
    name = annotations.get(key, key)
    if name not in annotations.values():
        raise UserError(
            f"{path}: no labels {key}; choose from {', '.join(annotations)}"
            f"{did_you_mean(key, list(annotations))}"
        )
    true = integers(content["clean_label"], f"{path}: 'clean_label'")
    labels = integers(content[name], f"{path}: '{name}'")
    for column, values in (("clean_label", true), (name, labels)):
        if len(values) != len(clean):
            raise UserError(
                f"{path}: '{column}' has {len(values)} labels, the training split {len(clean)}; "
                "pass the file that belongs to this data set"
            )
    different = np.flatnonzero(true != clean)
    if len(different):
        first = different[0]
        raise UserError(
            f"{path}: its true labels differ from those of the data set, first at sample {first} "
            f"({true[first]} here, {clean[first]} there); pass the file that belongs to this data "
            "set, in the order of the Python pickles"
        )
    # Every class occurs among the true labels.
    check_labels(labels, int(true.max(initial=0)) + 1, f"{path}: '{name}'", "sample")
    return labels


def is_torch_file(path: Path) -> bool:
    """Whether a file begins as those of ``torch.save`` do: an archive, or a pickle before 1.6."""
    with open_regular(path) as file:
        return file.read(len(ZIP_MAGIC[0])).startswith((*ZIP_MAGIC, b"\x80"))


def _annotations(content: Any) -> dict[str, str]:
    """Short name -> name in the file; without the labels of CIFAR-100's superclasses."""
    if not isinstance(content, dict):
        return {}
    names = {}
    for name in content:
        match = re.fullmatch(r"(?!clean)([a-z]+)_label(\d*)", name) if type(name) is str else None
        if match:
            names[match[1] + match[2]] = name
    return names


def _load(path: Path) -> Any:
    """Reads a file of ``torch.save``, in its zip format or the legacy one."""
    try:
        with open_regular(path, _MOST_BYTES) as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    names = [n for n in archive.namelist() if n.count("/") == 1]
                    inner = next((n for n in names if n.endswith("/data.pkl")), None)
                    if inner is None:
                        raise zipfile.BadZipFile("no data.pkl in it")
                    size = archive.getinfo(inner).file_size
                    if size > _MOST_BYTES:
                        raise zipfile.BadZipFile(
                            f"it unpacks to {readable(size)}, labels need {readable(_MOST_BYTES)} "
                            "at most"
                        )
                    with archive.open(inner) as pickled:
                        return unpickle(pickled, path, _MOST_BYTES)
            file.seek(0)
            content = unpickle(file, path, _MOST_BYTES)
            if content == _LEGACY_MAGIC:
                for _ in range(_LEGACY_HEADERS):
                    content = unpickle(file, path, _MOST_BYTES)
            return content
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}; pass the CIFAR-N file as downloaded"
        ) from error
    except Exception as error:  # BadZipFile, NotImplementedError, EOFError, zlib.error, ...
        raise UserError(
            f"{path}: not a file of torch.save ({error_text(error)}); restore it from the download"
        ) from error
