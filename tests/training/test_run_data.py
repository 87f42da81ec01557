"""The samples of a run: what there is to train on and to test with, and what is said about it."""

import dataclasses

import numpy as np
import pytest
import torch

from alr_fast.data import datasets
from alr_fast.data.__main__ import main as data_main
from alr_fast.data.broken import default_exclusion_file, write_exclusions
from alr_fast.data.datasets import LAYOUTS, open_dataset
from alr_fast.data.layouts.base import Listing, NoSplit
from alr_fast.errors import UserError
from alr_fast.noise.__main__ import main as noise_main
from alr_fast.training.config.schema import DataConfig
from alr_fast.training.run_data import hold_out, label_accuracy, leave_out, load_data
from helpers.image_folder import write_folder
from helpers.layouts import write_lines

UNTESTED = (
    "no test samples: accuracy is not measured (--data.validation 0.1 holds some of the training "
    "samples out); {}: no row has split test or val"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def table(tmp_path):
    """A list of 12 training samples, without a column ``split``."""
    path = tmp_path / "list.csv"
    for k in range(12):
        (tmp_path / f"{k}.png").touch()
    write_lines(path, ["path,label", *(f"{k}.png,{k % 3}" for k in range(12))])
    return path


def loaded(root, **options):
    """The data, and what was said about it."""
    lines = []
    config = DataConfig(name=options.pop("name", "auto"), **options)
    return load_data(config, str(root), log=lines.append), lines


def test_a_data_set_may_lack_test_samples(table):
    data, lines = loaded(table)
    assert (len(data.train), data.tests, data.test) == (12, (), None)
    assert lines[0].startswith(f"table: table {table}") and lines[1:] == [UNTESTED.format(table)]


def test_held_out_samples_take_their_place(table):
    data, lines = loaded(table, validation=0.25)
    assert "accuracy is that on the 25.0% of the training samples that are held out" in lines[1]
    data = hold_out(leave_out(data), 0.25, seed=0)
    assert (len(data.train), len(data.validation), data.tests) == (9, 3, ())


def test_a_split_that_was_asked_for_must_be_there(tmp_path, table):
    root = write_folder(tmp_path / "set", train={"a": 3, "b": 3}, test={"a": 1, "b": 1})
    assert data_main(["pack", str(root), str(tmp_path / "packed"), "--split", "train"]) == 0
    data, lines = loaded(tmp_path / "packed")
    assert data.tests == () and "the split test was not packed" in lines[-1]
    with pytest.raises(NoSplit, match="the split val was not packed"):
        loaded(tmp_path / "packed", test_split="val")
    with pytest.raises(
        UserError, match=r"^--data.test_limit 5: .*no row has split.*; leave it out"
    ):
        loaded(table, test_limit=5)


def exclude_all(root, name):
    """Lists all samples of a split as broken."""
    split = open_dataset("auto", root).split(name)
    rows = [(row, path, "empty") for row, path in enumerate(split.index.paths)]
    write_exclusions(default_exclusion_file(split), rows)


def test_test_samples_may_all_be_left_out(tmp_path):
    root = write_folder(tmp_path / "set", train={"a": 3, "b": 3}, test={"a": 1, "b": 1})
    exclude_all(root, "test")
    data, lines = loaded(root)
    assert data.tests == ()
    assert lines[-1].endswith("; all 2 of them are left out")


@pytest.mark.parametrize("column", ["score,0.4", "mark,keep"])
def test_a_table_that_leaves_nothing_out_is_told(tmp_path, table, column):
    name, value = column.split(",")
    listed = tmp_path / "labels.csv"
    write_lines(listed, [f"path,label,{name}", *(f"{k}.png,{k % 3},{value}" for k in range(12))])
    data, lines = loaded(table, exclude=str(listed))
    assert len(leave_out(data).train) == 12
    said = f"no sample is left out: {listed} has neither a mark nor a score above the limit"
    assert lines.count(said) == 1


def test_an_empty_training_set_is_named(tmp_path):
    root = write_folder(tmp_path / "set", train={"a": 2, "b": 2}, test={"a": 1, "b": 1})
    exclude_all(root, "train")
    data, lines = loaded(root)
    with pytest.raises(
        UserError, match=r"^all 4 training samples are left out.*none, as --data.exclude"
    ):
        leave_out(data)
    assert any(line.startswith("4 samples are left out, listed in ") for line in lines)
    assert len(leave_out(loaded(root, exclude="none")[0]).train) == 4


@pytest.fixture
def remarkable(tmp_path, monkeypatch):
    """A folder whose reader makes remarks, one of them about every split."""
    root = write_folder(tmp_path / "set", train={"a": 3, "b": 3}, test={"a": 1, "b": 1})
    layout = LAYOUTS["folder"]

    def read(found, split) -> Listing:
        listing = layout.read(found, split)
        return dataclasses.replace(listing, remarks=("3 files were not taken", f"about {split}"))

    monkeypatch.setitem(datasets.LAYOUTS, "folder", dataclasses.replace(layout, read=read))
    return root


def test_remarks_of_a_reader_are_logged_once(remarkable):
    _, lines = loaded(remarkable)
    assert lines[1:] == ["3 files were not taken", "about train", "about test"]


@pytest.mark.parametrize("command", ["verify", "pack"])
def test_remarks_are_logged_by_the_commands_for_data(remarkable, tmp_path, capsys, command):
    words = [command, str(remarkable), *([str(tmp_path / "out")] if command == "pack" else [])]
    assert data_main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    for remark in ("3 files were not taken", "about train", "about test"):
        assert lines.count(remark) == 1
    assert noise_main(["--data-root", str(remarkable), "--kind", "pair", "--rate", "0.5",
                       "--output", str(tmp_path / "noise.npz")]) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["3 files were not taken", "about train"]


def test_a_held_out_part_follows_from_the_seed(table):
    data, _ = loaded(table)
    parts = [hold_out(data, 0.25, seed=seed).validation.index.sample_ids for seed in (0, 0, 1)]
    assert np.array_equal(parts[0], parts[1]) and not np.array_equal(parts[0], parts[2])


def test_commands_for_data_expand_home_and_variables(tmp_path, monkeypatch):
    write_folder(tmp_path / "set", train={"a": 3, "b": 3}, test={"a": 1, "b": 1})
    write_lines(tmp_path / "none.csv", ["id,path,reason"])
    write_lines(tmp_path / "matrix.csv", ["0.5,0.5", "0.5,0.5"])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    verify = ["verify", "~/set", "--split", "train", "--output", "$OUT/list.csv"]
    assert data_main(verify) == 0
    assert data_main(["pack", "~/set", "$OUT/packed", "--exclude", "~/none.csv"]) == 0
    noise = ["--kind", "matrix", "--matrix", "~/matrix.csv", "--output", "$OUT/noise.npz"]
    assert noise_main(["--data-root", "~/set", *noise]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "list.csv",
        "packed",
        "noise.npz",
    }


def test_a_limit_takes_right_and_wrong_labels_alike(tmp_path):
    file = tmp_path / "noise.npz"
    noise = ["--data", "digits", "--kind", "pair", "--rate", "0.4", "--output", str(file)]
    assert noise_main(noise) == 0
    config = DataConfig(label_file=str(file), limit=500)
    index = load_data(config, None, log=lambda line: None).train.index
    assert len(index) == 500
    assert label_accuracy(index) == pytest.approx(0.6, abs=0.06)


def test_the_kind_of_a_file_of_labels_is_seen_in_it(table, tmp_path):
    """Not in its name: whoever saves an array calls it as they like."""
    new = np.array([1, 2, 0] * 4)
    np.save(tmp_path / "labels.npy", new)
    np.savez(tmp_path / "arrays.npz", label=new)
    lines = "".join(f'{{"path": "{k}.png", "label": {new[k]}}}\n' for k in range(12))
    (tmp_path / "labels.jsonl").write_text(lines)
    write_lines(tmp_path / "labels.csv", ["path,label", *(f"{k}.png,{new[k]}" for k in range(12))])
    for kind in ("labels.npy", "arrays.npz", "labels.jsonl", "labels.csv"):
        for name in (kind, "anything"):
            file = (tmp_path / kind).rename(tmp_path / name)
            data, lines = loaded(table, label_file=str(file))
            assert data.train.index.labels.tolist() == new.tolist()
            assert f"labels: from {file} for 12 of 12 samples; 12 differ" in "\n".join(lines)
    torch.save({"clean_label": np.arange(12) % 3, "worse_label": new}, tmp_path / "human")
    data, _ = loaded(table, label_file=str(tmp_path / "human"), label_key="worse")
    assert data.train.index.labels.tolist() == new.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"\x89PNG\r\n\x1a\n" + bytes(20),
            "is no table .*no array of labels .* no file of CIFAR-N",
        ),
        (b"\x80\x04K\x01.", "holds several sets of labels; name one with --data.label_key"),
        (b"a,b\n1,2\n", "has no column path; it has a, b"),
    ],
)
def test_a_file_without_labels_is_refused_for_what_it_is(table, tmp_path, content, message):
    (tmp_path / "labels.pt").write_bytes(content)
    with pytest.raises(UserError, match=rf"--data.label_file .*labels.pt.*: {message}") as caught:
        loaded(table, label_file=str(tmp_path / "labels.pt"))
    assert "\n" not in str(caught.value)
