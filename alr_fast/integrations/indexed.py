"""A data set whose targets carry the index of the sample."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from alr_fast.errors import UserError

_LABEL_KEYS = ("labels", "label", "label_ids")  # of items that are mappings, as Transformers does


class IndexedDataset(Dataset[Any]):
    """Wraps a map-style data set: the target of item i is an int64 tensor [2] of (label, i).

    Loaders stack targets to [B, 2] and pass them on to the loss unseen, and the losses of
    `alr_fast.losses` take them in place of labels and index:

        dataset = IndexedDataset(ImageFolder("train", transform))
        bank = LabelBank.from_labels(dataset.given_labels(), num_classes=10)
        for images, targets in DataLoader(dataset, batch_size=128, shuffle=True):
            loss = criterion(model(images), targets)

    The index counts the items of the data set that is wrapped: of ``IndexedDataset(Subset(...))``
    the subset, so that the bank has a row for each item of it; ``Subset(IndexedDataset(...))``
    keeps the index of the whole.

    Items are tuples, lists or named tuples with the label at one position, or mappings with the
    label under one key. In a mapping the target is stored under ``labels``, whatever the key was,
    and as an array, since this is what the collate functions of Transformers stack.
    """

    def __init__(self, dataset: Any, *, label: int | str | None = None) -> None:
        """Wraps a data set.

        Args:
            dataset: With `__getitem__` and `__len__`; its labels are integers.
            label: Position or key of the label in an item; by default position 1, or the first of
                the keys ``labels``, ``label`` and ``label_ids``.

        Raises:
            UserError: The data set is a stream or wrapped already.
        """
        name = type(dataset).__name__
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        ):
            raise UserError(
                "must be a map-style data set, with __getitem__ and __len__: the items of a stream "
                "have no index",
                argument="dataset",
                value=name,
            )
        if isinstance(dataset, IndexedDataset):
            raise UserError("is wrapped already: wrap it once", argument="dataset", value=name)
        self.dataset = dataset
        self._label = label

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """The item, with (label, index) in place of its label.

        Raises:
            UserError: The item has no label where it is expected, or one that is no integer.
        """
        index = operator.index(index)
        return self._indexed(self.dataset[index], index)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The items of a batch, through the data set's own `__getitems__` if it has one."""
        get = getattr(self.dataset, "__getitems__", None)
        items = [self.dataset[i] for i in indices] if get is None else get(list(indices))
        return [self._indexed(item, i) for item, i in zip(items, indices, strict=True)]

    @property
    def transform(self) -> Any:
        """That of the data set, which timm's `create_loader` sets."""
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.dataset.transform = transform

    def given_labels(self) -> Tensor:
        """The labels of all items, to make the label bank of: int64 [N].

        Read from the labels that the data set keeps beside its items (``targets``, as those of
        torchvision do, the last tensor of a `TensorDataset`, a column of a Hugging Face data set),
        also through a `Subset`; otherwise, and if the data set has a ``target_transform``, from all
        items, which takes as long as loading them. The loss compares the labels of each batch with
        those of the bank.

        Raises:
            UserError: A label is no integer.
        """
        labels = self._column(self.dataset)
        if labels is None or len(labels) != len(self):
            labels = [self._split(self.dataset[i], i)[1] for i in range(len(self))]
        integers = [self._integer(label, i) for i, label in enumerate(labels)]
        return torch.tensor(integers, dtype=torch.int64)

    def _indexed(self, item: Any, index: int) -> Any:
        key, label = self._split(item, index)
        count = len(self)
        pair = (self._integer(label, index), index + count if index < 0 else index)
        if isinstance(item, Mapping):
            rest = {name: value for name, value in item.items() if name != key}
            # Collators that pad, and others that call torch.tensor on a list, do not take tensors.
            return {**rest, "labels": np.array(pair, dtype=np.int64)}
        target = torch.tensor(pair, dtype=torch.int64)
        values = [*item]
        values[key] = target
        if hasattr(item, "_fields"):  # a named tuple
            return type(item)(*values)
        return tuple(values) if isinstance(item, tuple) else values

    def _split(self, item: Any, index: int) -> tuple[Any, Any]:
        """Where the label of an item is, and the label."""
        if isinstance(item, Mapping):
            keys = _LABEL_KEYS if self._label is None else (self._label,)
            found = [key for key in keys if key in item]
            if not found:
                raise self._error(
                    index,
                    f"has the keys {sorted(map(str, item))}, none of {', '.join(map(str, keys))}",
                )
            return found[0], item[found[0]]
        place = 1 if self._label is None else self._label
        if not isinstance(item, tuple | list) or not isinstance(place, int):
            raise self._error(
                index,
                f"is a {type(item).__name__}; it has to be a tuple of input and label, or a "
                "mapping",
            )
        if not -len(item) <= place < len(item):
            raise self._error(index, f"has {len(item)} entries, and the label is at {place}")
        return place, item[place]

    def _integer(self, label: Any, index: int) -> int:
        problem = f"{label!r} of type {type(label).__name__}"
        if isinstance(label, Tensor | np.ndarray | np.generic):
            kind = str(label.dtype).removeprefix("torch.")
            if label.ndim == 0 or label.shape == (1,):
                if kind.startswith(("int", "uint")):
                    return int(label)
                problem = f"{label.item()!r} of type {kind}"
            else:
                problem = f"{tuple(label.shape)} of type {kind}"
        elif isinstance(label, int) and not isinstance(label, bool):
            return label
        raise self._error(
            index,
            f"has the label {problem}, not one integer: soft labels (mixup, label smoothing) "
            "cannot be refined, and texts need a number for each class",
        )

    def _error(self, index: int, problem: str) -> UserError:
        return UserError(
            f"item {index} {problem}. IndexedDataset(dataset, label=...) says where the label is",
            argument="dataset",
            value=type(self.dataset).__name__,
        )

    def _column(self, dataset: Any) -> Any:
        """All labels of a data set, if it keeps them; else None."""
        if isinstance(dataset, Subset):
            labels = self._column(dataset.dataset)
            return None if labels is None else [labels[i] for i in dataset.indices]
        if isinstance(dataset, TensorDataset):
            place = 1 if self._label is None else self._label
            return dataset.tensors[place] if isinstance(place, int) else None
        columns = getattr(dataset, "column_names", None)
        if isinstance(columns, list):
            keys = _LABEL_KEYS if self._label is None else (self._label,)
            return next((dataset[key] for key in keys if key in columns), None)
        if self._label is not None or getattr(dataset, "target_transform", None) is not None:
            return None  # the items have other labels
        return getattr(dataset, "targets", None)
