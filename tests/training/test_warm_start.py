"""A run that starts from the weights and label banks of an earlier one."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alr_fast.train import main
from helpers.features import write_digits
from helpers.finished_runs import metrics_of
from helpers.training_process import options_of, outcome, run_folder

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = [
    "--methods",
    "ce,alr",
    "--log.show",
    "lines",
    "--log.to",
    "csv",
    "--model.name",
    "mlp-64",
]
OPTIONS += ["--optim.lr", "0.1"]
STILL = ["--optim.lr", "1e-9", "--optim.epochs", "1", "--alr.warmup_epochs", "0"]


def split(samples):
    return np.where(np.arange(samples) % 4 == 3, "test", "train")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "set.npz", samples=800, split=split(800))


@pytest.fixture(scope="module")
def earlier(data, tmp_path_factory):
    """A finished run of 8 epochs."""
    runs = tmp_path_factory.mktemp("earlier") / "runs"
    words = ["--data-root", str(data), "--optim.epochs", "8", "--alr.momentum", "0.6"]
    words += ["--alr.warmup_epochs", "5"]
    noise = ["--noise.kind", "symmetric", "--noise.rate", "0.3"]
    assert main([*OPTIONS, *words, *noise, "--runs", str(runs)]) == 0
    return run_folder(runs)


def last(run, method):
    return json.loads((run / "summary.json").read_text())["methods"][method]


def test_a_warm_started_run_begins_where_the_earlier_one_ended(earlier, tmp_path, capfd):
    runs = tmp_path / "runs"
    config = ["--config", str(earlier / "config.yaml"), "--runs", str(runs)]
    assert main([*config, *STILL, "--warm-start", str(earlier)]) == 0
    new = run_folder(runs)
    for method in ("ce", "alr"):
        now, then = last(new, method), last(earlier, method)
        assert now["test_accuracy_last"] == pytest.approx(then["test_accuracy_last"], abs=0.01)
        weights = load_file(new / f"{method}.safetensors")
        for name, tensor in load_file(earlier / f"{method}.safetensors").items():
            torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=1e-4)
    accuracies = [last(run, "alr")["label_accuracy_after"] for run in (new, earlier)]
    assert accuracies[0] > accuracies[1] - 0.01 > last(new, "alr")["label_accuracy_before"] + 0.1
    out = capfd.readouterr().out
    assert f"alr: label bank: 600 of 600 rows are those in {earlier}\n" in out
    assert "warm-up" not in out
    # The refined labels are not new: no sample counts as changed in the first epoch for that.
    before = load_file(earlier / "alr_bank.safetensors")["rows"].argmax(1)
    bank = load_file(new / "alr_bank.safetensors")
    assert torch.equal(bank["changes"] != 0, bank["rows"].argmax(1) != before)


def test_new_and_corrected_samples_start_from_their_label(earlier, data, tmp_path, capfd):
    with np.load(data) as old:
        arrays = dict(old)
    grown = write_digits(tmp_path / "set.npz", samples=1000, split=split(1000))
    assert set(arrays) == {"X", "y", "split"}
    given = load_file(earlier / "alr_bank.safetensors")
    corrected = given["ids"][:5]
    labels = {int(i): int(y) for i, y in zip(given["ids"], given["given_labels"], strict=True)}
    for sample in corrected.tolist():
        labels[sample] = (labels[sample] + 1) % 10
    table = tmp_path / "labels.csv"
    lines = [f"{sample},{label}" for sample, label in labels.items()]
    table.write_text("\n".join(["id,label", *lines]) + "\n")
    runs = tmp_path / "runs"
    words = ["--data-root", str(data), "--noise.kind", "none", "--labels", str(table)]
    words += ["--warm-start", str(earlier), "--runs", str(runs), "--methods", "alr"]
    words += ["--optim.epochs", "2", "--alr.warmup_epochs", "1", "--optim.lr", "1e-9"]
    assert main([*OPTIONS, *words, "--alr.momentum", "0.999"]) == 0
    out = capfd.readouterr().out
    assert "alr: label bank: 595 of 600 rows" in out
    assert "0 new samples and 5 with another label start from it" in out
    assert "alr: its warm-up of 1 epochs trains on the given labels again" in out
    rows = load_file(run_folder(runs) / "alr_bank.safetensors")["rows"]
    assert rows[:5].argmax(1).tolist() == [labels[i] for i in corrected.tolist()]
    assert torch.equal(rows[5:].argmax(1), given["rows"][5:].argmax(1))

    shutil.rmtree(runs)
    words = ["--data-root", str(grown), "--noise.kind", "none", "--methods", "alr"]
    words += ["--warm-start", str(earlier), "--runs", str(runs), *STILL]
    assert main([*OPTIONS, *words]) == 0
    assert "150 new samples and " in capfd.readouterr().out


def test_a_finished_run_says_how_to_train_on(earlier, tmp_path, capfd):
    """Its schedule has ended: more epochs are a run of their own."""
    copy = shutil.copytree(earlier, tmp_path / "runs" / earlier.name)
    assert main(["--resume", str(copy)]) == 0
    assert "has already finished" in capfd.readouterr().out
    assert main(["--resume", str(copy), "--optim.epochs", "10"]) == 2
    error = capfd.readouterr().err
    found = re.fullmatch(
        rf"error: --optim.epochs 10: the run {copy} has 8; pass that, or train on from its weights "
        r"and label bank, with a new schedule: (.+)\n",
        error,
    )
    words = options_of(found[1])
    assert words == [
        "--config", f"{copy}/config.yaml", "--resume", "none", "--warm-start", str(copy),
        "--optim.epochs", "2", "--alr.warmup_epochs", "0",
    ]  # fmt: skip
    runs = tmp_path / "more"
    assert main([*words, "--runs", str(runs), "--checkpoint.steps", "3"]) == 0
    assert len(metrics_of(runs)) == 4
    # Resumed, it does not start from the earlier run again, which may be gone.
    (runs / "latest" / "summary.json").unlink()
    expected = outcome(runs)
    shutil.rmtree(copy)
    assert main(["--resume", str(runs / "latest")]) == 0
    assert outcome(runs) == expected


REFUSED = {
    "no_run": (["--warm-start", "nowhere"], "is not the folder of a run; pass one"),
    "model": (["--model.name", "mlp-32"], "its model is mlp-64; pass --model.name mlp-64"),
    "method": (["--methods", "sat"], r"has no weights of sat \(it has alr, ce\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_kind_of_run_is_refused_before_training(earlier, tmp_path, capfd, case):
    words, message = REFUSED[case]
    runs, config = tmp_path / "runs", ["--config", str(earlier / "config.yaml")]
    assert main([*config, "--warm-start", str(earlier), "--runs", str(runs), *words]) == 2
    assert re.match(rf"error: --warm-start \S+: {message}", capfd.readouterr().err)
    assert not runs.exists()


def test_other_classes_are_refused(earlier, tmp_path, capfd):
    with np.load(json.loads((earlier / "summary.json").read_text())["data"]["root"]) as old:
        arrays = dict(old)
    np.savez(tmp_path / "other.npz", **{**arrays, "y": np.array([f"c{y}" for y in arrays["y"]])})
    words = ["--config", str(earlier / "config.yaml"), "--data-root", str(tmp_path / "other.npz")]
    assert main([*words, "--warm-start", str(earlier), "--runs", str(tmp_path / "runs")]) == 2
    assert re.match(r"error: --warm-start \S+: has the classes 0, 1", capfd.readouterr().err)
