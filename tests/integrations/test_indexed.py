from collections import UserDict, namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from alr_fast import ALRLoss, LabelBank
from alr_fast.errors import UserError
from alr_fast.integrations import IndexedDataset


class Items(Dataset):
    """A data set of the given items."""

    def __init__(self, items, **attributes):
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(0, 1)])


LABELS = [3, 0, 2, 1, 2]
Pair = namedtuple("Pair", "x y")


@pytest.mark.parametrize(
    "number", [int, np.int16, np.uint8, torch.tensor, lambda y: torch.tensor([y]), np.array]
)
@pytest.mark.parametrize("kind", ["tuple", "list", "named", "dict", "user dict", "last"])
def test_targets_carry_label_and_index(number, kind):
    make = {
        "tuple": lambda y: (torch.ones(2), y),
        "list": lambda y: [torch.ones(2), y, 7],
        "named": lambda y: Pair(torch.ones(2), y),
        "dict": lambda y: {"x": torch.ones(2), "label": y},
        "user dict": lambda y: UserDict(x=torch.ones(2), fine=y),
        "last": lambda y: (torch.ones(2), 7, y),
    }[kind]
    data = IndexedDataset(
        Items([make(number(y)) for y in LABELS]),
        label={"user dict": "fine", "last": -1}.get(kind),
    )
    batch = next(iter(DataLoader(data, batch_size=5)))
    targets = batch["labels"] if isinstance(batch, dict) else batch[-1 if kind == "last" else 1]
    assert targets.dtype == torch.int64
    assert targets.tolist() == [[y, i] for i, y in enumerate(LABELS)]
    assert type(data[0]) is {"list": list, "named": Pair}.get(
        kind, dict if "dict" in kind else tuple
    )
    assert data.given_labels().tolist() == LABELS
    assert data.given_labels().dtype == torch.int64
    x = batch["x"] if isinstance(batch, dict) else batch[0]
    assert torch.equal(x, torch.ones(5, 2))


def test_shuffled_batches_reach_the_loss():
    data = IndexedDataset(Items([(torch.randn(4), y) for y in LABELS]))
    bank = LabelBank.from_labels(data.given_labels(), num_classes=4)
    criterion = ALRLoss(bank, warmup_epochs=0)
    for _, targets in DataLoader(data, batch_size=2, shuffle=True):
        criterion(torch.randn(len(targets), 4, requires_grad=True), targets)  # compares the labels
    assert (bank.rows.amax(1) < 1).all()  # every row once


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_is_fetched_at_once_if_the_data_set_can(num_workers):
    class Batched(Items):
        def __getitem__(self, index):
            raise AssertionError("one by one")

        def __getitems__(self, indices):
            return [self.items[i] for i in indices]

    data = IndexedDataset(Batched([(0.5, y) for y in LABELS]))
    loader = DataLoader(data, batch_size=2, num_workers=num_workers)
    assert torch.cat([targets for _, targets in loader]).tolist() == [
        [y, i] for i, y in enumerate(LABELS)
    ]


def test_subsets_inside_and_outside():
    whole = TensorDataset(torch.arange(5), torch.tensor(LABELS))
    inside = IndexedDataset(Subset(whole, [4, 0]))
    assert [item[1].tolist() for item in inside] == [[2, 0], [3, 1]]
    assert inside.given_labels().tolist() == [2, 3]
    outside = Subset(IndexedDataset(whole), [4, 0])
    assert [outside[i][1].tolist() for i in range(2)] == [[2, 4], [3, 0]]
    assert IndexedDataset(whole)[-1][1].tolist() == [2, 4]


def test_given_labels_come_from_the_data_set_without_loading_items():
    class NoItems(Items):
        def __getitem__(self, index):
            raise AssertionError("an item was loaded")

    kept = NoItems(LABELS, targets=LABELS)
    assert IndexedDataset(kept).given_labels().tolist() == LABELS
    assert IndexedDataset(Subset(kept, [1, 3])).given_labels().tolist() == [0, 1]

    class Columns(NoItems):
        def __init__(self, labels):
            super().__init__(labels, column_names=["text", "label"])

        def __getitem__(self, key):
            assert key == "label"
            return self.items

    assert IndexedDataset(Columns(LABELS)).given_labels().tolist() == LABELS
    # Another label than `targets`, or one of another length, is read from the items.
    other = Items([(0, 1, y) for y in LABELS], targets=[9] * 5)
    assert IndexedDataset(other, label=2).given_labels().tolist() == LABELS
    changed = Items([(0, y) for y in LABELS], targets=[9] * 5, target_transform=int)
    assert IndexedDataset(changed).given_labels().tolist() == LABELS
    assert IndexedDataset(Subset(changed, [4])).given_labels().tolist() == [2]
    assert IndexedDataset(Items([])).given_labels().dtype == torch.int64
    short = Items([(0, y) for y in LABELS], targets=[9])
    assert IndexedDataset(short).given_labels().tolist() == LABELS


@pytest.mark.parametrize(
    ("item", "label", "message"),
    [
        ((0, 0.5), None, r"item 0 has the label 0\.5 of type float, not one integer: soft labels"),
        ((0, True), None, "has the label True of type bool"),
        ((0, "cat"), None, "has the label 'cat' of type str, .* texts need a number"),
        ((0, torch.tensor([0.1, 0.9])), None, r"has the label \(2,\) of type float32"),
        ((0, torch.tensor(1.0)), None, r"has the label 1\.0 of type float32"),
        ((0, torch.tensor(True)), None, "has the label True of type bool"),
        ((0, torch.tensor([1, 0])), None, r"has the label \(2,\) of type int64"),
        ((0, None), None, "has the label None of type NoneType"),
        ((0,), None, "has 1 entries, and the label is at 1"),
        (torch.ones(2), None, "is a Tensor; it has to be a tuple"),
        ((0, 1), "label", "is a tuple; it has to be"),
        ({"x": 0}, None, r"has the keys \['x'\], none of labels, label, label_ids"),
        ({"label": 1}, "fine", r"has the keys \['label'\], none of fine"),
    ],
)
def test_other_labels_are_refused_by_name(item, label, message):
    data = IndexedDataset(Items([item]), label=label)
    with pytest.raises(UserError, match=rf"dataset Items: .*{message}"):
        data[0]
    with pytest.raises(UserError, match=message):
        data.given_labels()


def test_streams_and_wrapped_data_sets_are_refused():
    with pytest.raises(UserError, match="dataset Stream: must be a map-style data set"):
        IndexedDataset(Stream())
    with pytest.raises(UserError, match="dataset IndexedDataset: is wrapped already"):
        IndexedDataset(IndexedDataset(Items([])))


def test_the_transform_is_that_of_the_data_set():
    inner = Items([(0, 1)], transform=None)
    data = IndexedDataset(inner)
    data.transform = str  # as timm's create_loader does
    assert inner.transform is str and data.transform is str


def test_collate_functions_of_frameworks_stack_targets():
    expected = [[y, i] for i, y in enumerate(LABELS)]
    timm_loader = pytest.importorskip("timm.data.loader")
    images = IndexedDataset(Items([(torch.zeros(3, 2, 2, dtype=torch.uint8), y) for y in LABELS]))
    _, targets = timm_loader.fast_collate([images[i] for i in range(5)])
    assert targets.tolist() == expected

    transformers = pytest.importorskip("transformers")
    rows = IndexedDataset(Items([{"input_ids": [1] * (y + 1), "label": y} for y in LABELS]))
    same = IndexedDataset(Items([{"x": [1.0, 2.0], "label_ids": y} for y in LABELS]))
    batch = transformers.default_data_collator([same[i] for i in range(5)])
    assert batch["labels"].tolist() == expected and batch["x"].shape == (5, 2)

    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "a": 1}, "[PAD]"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
    batch = transformers.DataCollatorWithPadding(tokenizer)([rows[i] for i in range(5)])
    assert batch["labels"].tolist() == expected and batch["input_ids"].shape == (5, 4)
