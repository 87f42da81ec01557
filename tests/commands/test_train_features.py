"""The commands with the digits as features, from an .npz file."""

import csv
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from alr_fast.data import open_dataset
from alr_fast.export import main as export
from alr_fast.noise.__main__ import main as make_noise
from alr_fast.report import main as report
from alr_fast.train import main
from alr_fast.training.trained_model import load_for_data
from helpers.features import write_digits
from helpers.finished_runs import summary_of
from helpers.training_process import Server

NOISE = ("--noise.kind", "symmetric", "--noise.rate", "0.4")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("features") / "digits.npz")


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    """A finished run of ce and alr with the recipe's options; no test writes into it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runs = tmp_path_factory.mktemp("runs")
    assert main(["--data-root", str(file), "--runs", str(runs), *NOISE]) == 0
    torch.set_num_threads(threads)
    return (runs / "latest").resolve()


@pytest.fixture
def train(tmp_path, one_thread):
    """Trains with few epochs; returns the exit status."""

    def start(root, *argv, epochs=2):
        given = ["--data-root", str(root), "--runs", str(tmp_path / "runs")]
        return main([*given, "--optim.epochs", str(epochs), *map(str, argv)])

    return start


def last_rows(run):
    with open(run / "metrics.csv") as lines:
        rows = list(csv.DictReader(lines))
    return {row["method"]: row for row in rows}


def test_alr_corrects_what_cross_entropy_memorises(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["recipe"] == summary["data"]["name"] == "features"
    assert (summary["data"]["train_samples"], summary["data"]["test_samples"]) == (1438, 359)
    assert summary["data"]["loader"] == "memory"
    ce, alr = (summary["methods"][name] for name in ("ce", "alr"))
    assert ce["test_accuracy_last"] < 0.92
    assert alr["test_accuracy_last"] > 0.93
    assert float(last_rows(run)["alr"]["label_accuracy"]) > 0.93


def test_the_saved_weights_contain_the_standardisation(run, file):
    saved = load_file(run / "alr.safetensors")
    dataset = open_dataset("features", file)
    train, test = dataset.split("train"), dataset.split("test")
    x = train.values.astype(np.float64)
    assert np.allclose(saved["mean"], x.mean(0), atol=1e-5)
    assert np.allclose(saved["std"], np.where(x.std(0) > 0, x.std(0), 1), atol=1e-5)
    model = load_for_data(run / "alr.safetensors", num_classes=10, input_shape=(64,))
    with torch.no_grad():
        predicted = model(torch.from_numpy(test.values)).argmax(1).numpy()
    accuracy = (predicted == test.index.labels).mean()
    assert accuracy == pytest.approx(float(last_rows(run)["alr"]["test_accuracy"]))


def test_export_and_training_on_its_table(run, tmp_path, train, file):
    table = tmp_path / "labels.parquet"
    assert export([str(run), "--output", str(table)]) == 0
    rows = pq.read_table(table).to_pydict()
    assert len(rows["id"]) == 1438
    right = np.mean(np.array(rows["refined_label"]) == rows["clean_label"])
    assert right > 0.9
    assert re.fullmatch(r"digits/\d{5}", rows["path"][0])
    assert train(file, "--labels", table, "--data.exclude", table, "--methods", "ce") == 0
    summary = summary_of(tmp_path / "runs")
    assert 0 < summary["data"]["excluded_samples"] < 1438
    assert summary["data"]["train_samples"] == 1438 - summary["data"]["excluded_samples"]


def test_the_report_shows_rows_without_images(run, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert report([str(run), "--output", str(page), "--most", "20"]) == 0
    text = page.read_text()
    assert "Suspicious samples" in text and '"image":null,"problem":""' in text
    assert "digits/0" in text
    assert "images cannot be shown" not in text


def test_noise_of_a_file_equals_noise_of_a_run(file, tmp_path, train):
    noisy = tmp_path / "noisy.npz"
    words = ["--data-root", str(file), "--kind", "instance", "--rate", "0.4"]
    assert make_noise([*words, "--output", str(noisy)]) == 0
    assert train(file, "--labels", noisy, "--methods", "ce", epochs=1) == 0
    of_file = summary_of(tmp_path / "runs")["data"]["label_fingerprint"]
    noise = ["--noise.kind", "instance", "--noise.rate", "0.4"]
    assert train(file, *noise, "--methods", "ce", epochs=1) == 0
    summary = summary_of(tmp_path / "runs")
    assert summary["data"]["label_fingerprint"] == of_file
    assert 0.3 < summary["noise"]["realised_rate"] < 0.5


def test_every_method_subset_and_validation(file, tmp_path, train):
    methods = (
        "ce,label_smoothing,backward_correction,forward_correction,distillation,selc,alr,sat,elr"
    )
    options = ["--methods", methods, "--distillation.teacher", "ce", "--data.limit", "200"]
    options += ["--data.test_limit", "100", "--data.validation", "0.2", "--model.name", "linear"]
    options += ["--model.ema_decay", "0.9", "--precision", "bfloat16"]
    assert train(file, *options, *NOISE) == 0
    summary = summary_of(tmp_path / "runs")
    assert list(summary["methods"]) == methods.split(",")
    data = summary["data"]
    assert (data["train_samples"], data["validation_samples"]) == (160, 40)
    rows = last_rows(tmp_path / "runs" / "latest")
    assert all(float(row["validation_accuracy"]) > 0 for row in rows.values())


def test_a_run_resumes_where_it_stopped(file, tmp_path, train, monkeypatch):
    words = [*NOISE, "--methods", "alr", "--alr.warmup_epochs", "1", "--checkpoint.steps", "5"]
    assert train(file, *words) == 0
    whole = load_file(tmp_path / "runs" / "latest" / "alr.safetensors")

    from alr_fast.training.trainer import Trainer

    step = Trainer.train_step

    def interrupted(trainer, batch):
        if trainer.steps_made == 18:  # in the second epoch, after the checkpoint of step 15
            raise KeyboardInterrupt
        step(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert train(file, *words, "--runs", tmp_path / "stopped") == 130
    monkeypatch.undo()
    assert train(file, *words, "--runs", tmp_path / "stopped", "--resume", "auto") == 0
    resumed = load_file(tmp_path / "stopped" / "latest" / "alr.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_two_processes_train_on_all_rows(file, tmp_path):
    words = ["--data-root", file, "--runs", tmp_path / "runs", "--methods", "alr", *NOISE]
    words += ["--optim.epochs", "30", "--device", "cpu"]
    server = Server()
    try:
        training = server.start(*words, log=tmp_path / "log", processes=2)
        assert training.wait() == 0, training.output
    finally:
        server.close()
    summary = summary_of(tmp_path / "runs")
    assert summary["environment"]["processes"] == 2
    latest = tmp_path / "runs" / "latest"
    assert load_file(latest / "alr_bank.safetensors")["ids"].tolist() == list(range(1438))
    assert float(last_rows(latest)["alr"]["label_accuracy"]) > 0.93
    # The standardisation is that of all rows, not of those of a process.
    x = open_dataset("features", file).split("train").values
    saved = load_file(latest / "alr.safetensors")
    assert np.allclose(saved["mean"], x.mean(0, dtype=np.float64), atol=1e-5)


def test_options_of_images_have_no_effect_in_one_line(file, train, capsys):
    assert train(file, "--data.flip", "true", "--data.crop", "resized", epochs=1) == 0
    text = capsys.readouterr().out
    assert text.count("of features, these options have no effect: crop, flip\n") == 1
    assert "20% of each class" in text.splitlines()[0]
    assert "1,438 training and 359 test samples, 10 classes" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model.name", "conv-tiny"], "--model.name conv-tiny: is no model of features; pass li"),
        (["--model.name", "mlp-0"], "--model.name mlp-0: is no model of features; pass linear"),
        (["--model.pretrained", "true"], "--model.pretrained: mlp has no pretrained weights"),
        (["--data.loader", "torch"], "--data.loader torch: the features of this data set"),
        (["--data.column", "clip"], "--data.column clip: no such vectors in"),
        (["--recipe", "cifar10", "--methods", "ce"], "is not cifar10: "),
        (["--data.name", "table"], "is not table: "),
    ],
)
def test_what_does_not_fit_is_refused_before_training(file, train, capsys, tmp_path, argv, message):
    assert train(file, *argv) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*"))


def test_models_of_features_refuse_images(tmp_path, capsys):
    assert main(["--model.name", "mlp", "--runs", str(tmp_path)]) == 2
    assert (
        "--model.name mlp: is a model of features, the data are images" in capsys.readouterr().err
    )


def test_other_numbers_of_features_are_refused(tmp_path, train, capsys):
    x = np.ones((30, 4), np.float32)
    test = {"X_test": x[:5, :3], "y_test": np.arange(5) % 2}
    file = write_digits(tmp_path / "set.npz", X=x, y=np.arange(30) % 2, **test)
    assert train(file) == 2
    assert "training samples have 4 features, test samples 3" in capsys.readouterr().err


def test_a_teacher_of_other_features_is_refused(run, tmp_path, train, capsys):
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    file = write_digits(tmp_path / "set.npz", X=x, y=np.arange(200) % 10)
    weights = run / "ce.safetensors"
    assert train(file, "--methods", "distillation", "--distillation.teacher", weights) == 2
    assert "does not fit 10 classes and 4 features" in capsys.readouterr().err
