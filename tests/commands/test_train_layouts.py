"""The training command on a tiny data set in every layout, given the folder of a download."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alr_fast.data import open_dataset
from alr_fast.data.loaders.choose import has_dali
from alr_fast.report import about_run
from alr_fast.train import main
from alr_fast.training.config.schema import recipe_names
from alr_fast.training.models import build_model
from alr_fast.training.open_run import open_run
from alr_fast.training.output.run_folder import read_config
from helpers.features import write_digits
from helpers.finished_runs import metrics_of, summary_of
from helpers.image_folder import write_folder
from helpers.layouts import (
    SOURCE_LABELS,
    write_animal10n,
    write_cifar10,
    write_cifar100,
    write_cifar_n,
    write_clothing1m,
    write_food101n,
    write_ilsvrc12,
    write_source,
    write_table,
    write_webvision,
)

HAS_DALI = has_dali()
FILES = "dali" if HAS_DALI else "torch"  # choice of auto for random crops


write_two_classes = partial(write_folder, train={"a": 6, "b": 6}, test={"a": 2, "b": 2})


@pytest.fixture
def train(tmp_path, one_thread):
    """Trains for one epoch with tiny images; returns the summary."""

    def run(root, *argv):
        given = ["--data-root", str(root), "--runs", str(tmp_path / "runs"), "--methods", "alr"]
        given += ["--model.name", "conv-tiny", "--optim.epochs", "1", "--alr.warmup_epochs", "0"]
        given += ["--optim.batch_size", "16", "--data.workers", "1"]
        assert main([*given, *map(str, argv)]) == 0
        return summary_of(tmp_path / "runs")

    return run


@pytest.mark.parametrize(
    ("layout", "write", "loader"),
    [
        ("cifar10", write_cifar10, "memory"),
        ("cifar100", write_cifar100, "memory"),
        ("clothing1m", partial(write_clothing1m, convention="A"), FILES),
        ("clothing1m", partial(write_clothing1m, convention="B"), FILES),
        ("webvision", write_webvision, FILES),
        ("webvision-mini", partial(write_webvision, flickr=False), FILES),
        ("animal10n", partial(write_animal10n, form="records"), "memory"),
        ("animal10n", partial(write_animal10n, form="flat"), FILES),
        ("food101n", write_food101n, FILES),
        ("folder", write_two_classes, FILES),
        ("table", write_table, FILES),  # its file all.csv
    ],
)
def test_a_download_trains_without_preparation(train, tmp_path, capsys, layout, write, loader):
    root = tmp_path / "down load"
    write(root)
    if layout == "table":
        root = root / "all.csv"
    options = [] if loader == "memory" else ["--data.crop", "resized", "--data.image_size", "16"]
    summary = train(root, *options)
    text = capsys.readouterr().out
    assert text.startswith(f"{layout}: ")
    assert str(root) in text.splitlines()[0]
    assert f"loader: {loader}" in text
    assert summary["data"]["name"] == layout
    split = open_dataset("auto", root).split("train")
    assert summary["data"]["train_samples"] == len(split)
    assert summary["data"]["sample_fingerprint"] == split.index.sample_fingerprint()
    assert summary["data"]["broken_samples"] == 0
    bank = load_file(tmp_path / "runs" / "latest" / "alr_bank.safetensors")
    assert bank["ids"].tolist() == list(range(len(split)))
    one_hot = torch.nn.functional.one_hot(bank["given_labels"], bank["rows"].shape[1])
    assert (bank["rows"] != one_hot).any(1).all()  # every sample was seen


def test_packed_shards_train_without_the_samples_left_out(train, tmp_path, capsys):
    from alr_fast.data.__main__ import main as data_main

    write_two_classes(tmp_path / "set", size=(40, 32), suffix=".jpg")
    (tmp_path / "set" / "train" / "b" / "001.jpg").write_bytes(b"")
    assert data_main(["pack", str(tmp_path / "set"), str(tmp_path / "packed")]) == 0
    summary = train(tmp_path / "packed", "--data.crop", "resized", "--data.image_size", "16")
    text = capsys.readouterr().out
    assert "1 samples were left out when the data set was packed" in text
    assert f"loader: {FILES}" in text
    assert (summary["data"]["train_samples"], summary["data"]["broken_samples"]) == (11, 0)
    bank = load_file(tmp_path / "runs" / "latest" / "alr_bank.safetensors")
    assert bank["ids"].tolist() == [i for i in range(12) if i != 7]


def test_the_size_that_was_chosen_is_said_and_kept(train, tmp_path, capsys):
    write_two_classes(tmp_path / "set", size=(48, 40))
    options = ["--optim.epochs", "3", "--checkpoint.steps", "1"]
    train(tmp_path / "set", *options)
    assert (
        "images: 40 pixels on the shorter side (median of 12): training at 40 x 40"
        in capsys.readouterr().out
    )
    run = (tmp_path / "runs" / "latest").resolve()
    assert read_config(run)["data"]["image_size"] == 40
    assert read_config(run, asked=True)["data"]["image_size"] is None
    (run / "summary.json").unlink()
    # The images of a resumed run have the size that they had, whatever lies there now.
    write_two_classes(tmp_path / "other", size=(20, 20))
    train(tmp_path / "other", *options, "--resume", min((run / "checkpoints").iterdir()))
    assert "training at" not in capsys.readouterr().out
    assert read_config(run)["data"]["image_size"] == 40


@pytest.fixture
def untested(tmp_path):
    """A list of images without test samples."""
    root = write_folder(tmp_path / "set", train={"a": 8, "b": 8}, test={})
    paths = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    lines = [f"{path},{path.parent.name}" for path in paths]
    (root / "labels.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    return root / "labels.csv"


def page_of(run):
    """Facts and titles of the panels that a report has about a run."""
    with open_run(run) as labels:
        about = about_run(run, labels)
    return dict(about["facts"]), [panel.title for panel in about["panels"]]


def accuracies(record):
    return [record[f"{name}_accuracy"] for name in ("test", "second_test", "validation")]


def test_a_data_set_without_test_samples(train, untested, tmp_path, capsys, monkeypatch):
    """Only which labels are wrong is the question: accuracy is not measured, nowhere a number."""

    def evaluate(*_):
        raise AssertionError("nothing is there to evaluate on")

    monkeypatch.setattr("alr_fast.training.loop.evaluate", evaluate)
    options = ["--data.image_size", "16", "--log.to", "csv,tensorboard", "--methods", "ce,alr"]
    summary = train(untested, *options, "--optim.epochs", "2")
    text, run = capsys.readouterr().out, (tmp_path / "runs" / "latest").resolve()
    assert text.splitlines()[1].startswith("no test samples: accuracy is not measured (--data.val")
    assert "16 training and no test images" in text
    assert "Last of 2 epochs (no test samples: accuracy is not measured)" in text
    assert "test acc" not in text and "held out" not in text and "nan" not in text
    for result in summary["methods"].values():
        names = ("test_accuracy_last", "test_accuracy_best", "best_epoch")
        assert [result[name] for name in names] == [None] * 3
    assert summary["data"]["test_samples"] == summary["data"]["broken_test_samples"] == 0
    for row in metrics_of(tmp_path / "runs"):
        assert accuracies(row) == ["", "", ""] and row["test_loss"] == ""
    assert (run / "metrics.png").stat().st_size > 1000
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard" / "alr")).Reload()
    assert {"train_accuracy", "test_accuracy", "test_loss"} & {*events.Tags()["scalars"]} == {
        "train_accuracy"
    }
    facts, titles = page_of(run)
    assert facts["test accuracy, alr"] == "not measured"
    assert titles == ["changed labels", "training loss"]


@pytest.mark.parametrize("below", ["train", ""])
def test_folders_of_classes_alone_just_train(train, tmp_path, capsys, below):
    write_folder(tmp_path / "set", train={"a": 8, "b": 8}, test={})
    summary = train(tmp_path / "set" / below, "--data.image_size", "16")
    assert summary["data"]["train_samples"] == 16
    assert summary["methods"]["alr"]["test_accuracy_last"] is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("no test samples: accuracy is not measured (--data.validation 0.1")


def test_held_out_samples_instead_of_test_samples(train, untested, tmp_path, capsys):
    summary = train(untested, "--data.image_size", "16", "--data.validation", "0.25")
    text, run = capsys.readouterr().out, (tmp_path / "runs" / "latest").resolve()
    result = summary["methods"]["alr"]
    assert result["test_accuracy_last"] is None and 0 <= result["validation_accuracy_last"] <= 1
    shown = f"{100 * result['validation_accuracy_last']:.1f}%"
    assert re.search(rf"epoch 1/1 .* held out acc +{shown}", text)
    assert "test acc" not in text and "Last of 1 epochs (no test samples)" in text
    facts, titles = page_of(run)
    assert facts["accuracy on held-out samples, alr"] == shown
    assert titles[0] == "accuracy on held-out samples"


def test_a_run_without_test_samples_resumes(train, untested, tmp_path, capsys):
    options = ["--data.image_size", "16", "--optim.epochs", "3", "--checkpoint.steps", "1"]
    train(untested, *options)
    run = (tmp_path / "runs" / "latest").resolve()
    before = metrics_of(tmp_path / "runs")
    (run / "summary.json").unlink()
    first = min((run / "checkpoints").iterdir())  # in the second epoch: two are kept
    capsys.readouterr()
    train(untested, *options, "--resume", first)
    assert "resumes in epoch 3" in capsys.readouterr().out
    after = metrics_of(tmp_path / "runs")
    assert len(after) == 3 and after[:2] == before[:2]
    assert after[2]["train_loss"] == before[2]["train_loss"] and after[1]["test_loss"] == ""


def test_numbered_folders_train_as_animal10n_if_named(train, tmp_path):
    write_animal10n(tmp_path / "set", form="folders")
    summary = train(tmp_path / "set", "--data.name", "animal10n", "--data.image_size", "16")
    assert summary["data"]["classes"][3] == "coyote"


def test_human_labels_of_cifar(train, tmp_path):
    expected = write_cifar10(tmp_path / "set")
    clean = np.array([label for _, label in expected["train"]])
    written = write_cifar_n(tmp_path / "human.pt", clean)
    options = ["--data.label_file", tmp_path / "human.pt", "--data.label_key"]
    summary = train(tmp_path / "set", *options, "worse")
    right = (np.array(written["worse_label"]) == clean).mean()
    assert summary["methods"]["alr"]["label_accuracy_before"] == pytest.approx(right)


@pytest.mark.parametrize("form", ["wnids", "numbers", "list"])
def test_second_test_set_of_webvision(train, tmp_path, form):
    write_webvision(tmp_path / "set", flickr=False)
    write_ilsvrc12(tmp_path / "ilsvrc", form)
    options = ["--data.ilsvrc12", tmp_path / "ilsvrc", "--data.image_size", "16"]
    train(tmp_path / "set", *options)
    rows = (tmp_path / "runs" / "latest" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("second_test_accuracy")
    assert 0 <= float(rows[1].split(",")[column]) <= 1


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if name != "digits"])
def test_every_recipe_loads_its_data_set(train, tmp_path, recipe):
    """The shipped recipes, with a small model and small images instead of theirs."""
    write = {
        "animal10n": partial(write_animal10n, form="flat"),
        "cifar10": write_cifar10,
        "cifar10-accuracy": write_cifar10,
        "cifar10-small": write_cifar10,
        "cifar100": write_cifar100,
        "clothing1m": write_clothing1m,
        "features": write_digits,
        "folder": write_two_classes,
        "webvision": write_webvision,
        "webvision-mini": write_webvision,
    }[recipe]
    root = tmp_path / ("set.npz" if recipe == "features" else "set")
    write(root)
    smaller = ["--recipe", recipe, "--model.pretrained", "false", "--optim.milestones", "[]"]
    smaller += ["--optim.schedule", "cosine"]
    if "cifar" not in recipe:
        smaller += ["--data.image_size", "16"]
        if recipe not in ("animal10n", "features", "folder", "webvision"):
            smaller += ["--data.resize", "18"]
    if recipe == "features":
        smaller += ["--model.name", "mlp"]
    summary = train(root, *smaller)
    assert summary["recipe"] == recipe


@pytest.mark.parametrize("name", ["resnet34-cifar", "vgg19_bn", "inception_resnet_v2", "resnet50"])
def test_the_models_of_the_recipes_exist(name):
    with torch.device("meta"):
        assert build_model(name, num_classes=14, input_shape=(3, 227, 227))


@pytest.mark.parametrize(
    ("form", "layout", "options"),
    [
        ("list", "table", ["--data.columns", "path=id,label=breed", "--data.images", "pictures"]),
        ("parquet", "huggingface", ["--data.crop", "resized", "--data.image_size", "16"]),
        ("arrow", "huggingface", []),
        ("tar", "webdataset", ["--data.crop", "resized", "--data.image_size", "16"]),
    ],
)
def test_images_in_other_forms_train_without_a_test_split(
    train, tmp_path, capsys, form, layout, options
):
    root = write_source(tmp_path / "set", form)
    summary = train(root, *options)
    text = capsys.readouterr().out
    assert f"{layout}: " in text and "no test samples: accuracy is not measured" in text
    assert f"loader: {FILES if 'resized' in options else 'memory'}" in text
    assert summary["data"]["train_samples"] == 12
    assert summary["data"]["broken_samples"] == 0
    bank = load_file(tmp_path / "runs" / "latest" / "alr_bank.safetensors")
    assert bank["given_labels"].tolist() == SOURCE_LABELS
