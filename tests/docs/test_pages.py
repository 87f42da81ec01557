"""Every page works as a reader uses it: its blocks are pasted one after another into one folder.

A page begins with an empty folder and an empty Python session, and its blocks run as they stand
there. Two kinds of pages begin with more: see `BEGINS_WITH_DATA` and `SMALLER`.
"""

import shutil

import numpy as np
import pytest
import torch

from alr_fast.data.datasets import LAYOUTS, open_dataset
from alr_fast.training.methods import METHODS
from helpers.documents import DOCUMENTS, blocks_of, write_programs
from helpers.reader import Reader, surroundings, write_data

# References, whose examples take any data (DIR, features.npz) and a run that has finished.
BEGINS_WITH_DATA = {"README.md", "data.md", "method.md", "training.md"}
# Their trainings are made small. (So is every training on DIR.)
SMALLER = {*BEGINS_WITH_DATA, "adding-a-method.md"}
# Pages whose commands train for half a minute or more.
LONG = {
    *("README.md", "method.md", "training.md", "adding-a-method.md"),
    *("labels.md", "review.md", "scaling.md"),
}

PAGES = [page for page in DOCUMENTS if any(b.language in ("python", "sh") for b in blocks_of(page))]


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    """Small models: one thread is faster."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def new_reader(request, tmp_path, monkeypatch):
    """Makes the reader of a page, in a folder of its own."""

    def make(page):
        text = page.read_text(encoding="utf-8")
        if page.name in BEGINS_WITH_DATA or " DIR" in text:
            shutil.copytree(
                request.getfixturevalue("data"), tmp_path, dirs_exist_ok=True, symlinks=True
            )
        write_programs(tmp_path, smaller=page.name in SMALLER)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend("")
        names = surroundings() if page.name == "README.md" else None
        finished = None
        if page.name in BEGINS_WITH_DATA:
            (finished,) = tmp_path.glob("runs/*-digits")
        readers.append(Reader(tmp_path, names, finished))
        return readers[-1]

    readers, methods = [], dict(METHODS)
    yield make
    METHODS.clear()  # of those that a page adds
    METHODS.update(methods)
    for reader in readers:
        reader.forget_modules()


def _marks():
    for page in PAGES:
        marks = [pytest.mark.slow] if page.name in LONG else []
        yield pytest.param(page, id=page.name, marks=marks)


@pytest.mark.parametrize("page", list(_marks()))
def test_the_blocks_of_a_page_work_one_after_another(page, new_reader):
    reader = new_reader(page)
    for block in blocks_of(page):
        reader.read(block)
    check = CHECKS.get(page.name)
    if check is not None:
        check(reader.names, reader.folder)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name in LONG], ids=lambda p: p.name
)
def test_the_python_blocks_of_a_long_page_work(page, new_reader):
    """Those before its first command: the others need what the commands write."""
    reader = new_reader(page)
    for block in blocks_of(page):
        if block.language == "sh" and not block.installs and page.name != "README.md":
            break
        if block.language == "python":
            reader.read(block)


# What the text of a page promises of its examples.


def _index(names, folder):
    before = (names["y"] == names["truth"]).mean()
    after = (names["classifier"].refined_labels_ == names["truth"]).mean()
    assert before < 0.75 and after > 0.95


def _own_loop(names, folder):
    wrong = (names["labels"] != names["truth"]).float().mean()
    assert wrong == pytest.approx(0.285, abs=5e-4)  # "28.5 % of these labels are wrong"
    assert abs(names["issues"].noise_rate - wrong) < 0.02
    refined = torch.load(folder / "refined.pt")
    assert (refined == names["truth"]).float().mean() > 0.98
    assert names["loss"].isfinite()


def _features(names, folder):
    refined = np.load(folder / "refined.npy")
    assert (refined == names["truth"]).mean() > 0.94
    assert len(list(folder.glob("runs/*-features/alr_bank.safetensors"))) == 1


def _labels(names, folder):
    wrong = (names["digits"].target != names["labels"]).mean()
    assert abs(names["issues"].noise_rate - wrong) < 0.05
    assert names["labels"][[3, 5]].tolist() == [3, 5]
    assert (folder / "report.html").stat().st_size > 100_000
    assert len((folder / "issues.csv").read_text(encoding="utf-8").splitlines()) == 1798


def _images(names, folder):
    rows = names["rows"]

    def right(column):
        return sum(row[column] in row["path"].split("/")[-1] for row in rows)

    assert len(rows) == 400
    assert right("given_name") < 300 < 380 < right("refined_name")
    assert len((folder / "classes.csv").read_text(encoding="utf-8").splitlines()) == 101


def _integrations(names, folder):
    for bank in (names["bank"], names["module"].criterion.bank):
        assert (bank.refined_labels() == names["truth"]).float().mean() > 0.95
    assert (names["whole"].refined_labels() == names["truth"]).float().mean() > 0.95


def _adding_a_dataset(names, folder):
    assert np.bincount(names["train"].index.labels).tolist() == [40, 40]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYOUTS, "pets", names["LAYOUT"])
        assert open_dataset("pets", "pets").split("train").index.class_names == ("cat", "dog")
    by_list = open_dataset("auto", "pets/list.csv").split("train").index
    assert np.array_equal(by_list.labels, names["train"].index.labels)


CHECKS = {
    "index.md": _index,
    "own-loop.md": _own_loop,
    "features.md": _features,
    "labels.md": _labels,
    "images.md": _images,
    "integrations.md": _integrations,
    "adding-a-dataset.md": _adding_a_dataset,
}


def test_every_name_is_that_of_a_page():
    names = {page.name for page in PAGES}
    assert names >= set(CHECKS) | LONG | BEGINS_WITH_DATA | SMALLER
    assert len(names) == len(PAGES)
