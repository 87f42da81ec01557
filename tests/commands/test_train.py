import csv
import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from alr_fast.data import open_dataset
from alr_fast.data.datasets import Split
from alr_fast.data.images.sources import ArrayImages
from alr_fast.data.layouts.base import new_index
from alr_fast.data.loaders.base import Loader
from alr_fast.data.loaders.memory import MemoryLoader
from alr_fast.data.loaders.transform import Transform
from alr_fast.data.sampler import SequentialSampler
from alr_fast.train import TRAIN_EXTRA, main
from alr_fast.training.evaluation import evaluate
from alr_fast.training.models import build_model
from alr_fast.training.output.records import EpochRecord, method_summary
from alr_fast.training.profiling import PHASES
from helpers.finished_runs import metrics_of, summary_of

EPOCHS = 6


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """The command as a user types it, in a separate process, with few epochs."""
    folder = tmp_path_factory.mktemp("digits")
    command = [sys.executable, "-m", "alr_fast.train", "--optim.epochs", str(EPOCHS)]
    command += ["--alr.warmup_epochs", "3"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # see one_thread
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs", done.stdout


def test_summary(digits_run):
    runs, _ = digits_run
    summary = summary_of(runs)
    assert list(summary["methods"]) == ["ce", "alr"]
    ce, alr = summary["methods"]["ce"], summary["methods"]["alr"]
    train = open_dataset("digits", None).split("train").index
    changed = summary["noise"]["realised_rate"]
    assert 0.3 < changed < 0.42
    for result in (ce, alr):
        assert 0.3 < result["test_accuracy_last"] <= result["test_accuracy_best"] <= 1
        assert result["label_accuracy_before"] == pytest.approx(1 - changed)
        assert result["seconds"] > 0
    assert ce["label_accuracy_after"] == ce["label_accuracy_before"]
    assert ce["labels_changed"] == 0
    assert summary["noise"]["requested_rate"] == 0.4
    assert summary["data"]["train_samples"] == len(train)
    assert summary["data"]["sample_fingerprint"] == train.sample_fingerprint()
    assert summary["environment"]["torch"] == torch.__version__
    assert (summary["seed"], summary["recipe"], summary["epochs"]) == (0, "digits", EPOCHS)


def test_metrics_agree_with_the_summary(digits_run):
    runs, _ = digits_run
    rows, methods = metrics_of(runs), summary_of(runs)["methods"]
    assert [(r["method"], int(r["epoch"])) for r in rows] == [
        (method, epoch) for method in ("ce", "alr") for epoch in range(1, EPOCHS + 1)
    ]
    for method, result in methods.items():
        accuracies = [float(r["test_accuracy"]) for r in rows if r["method"] == method]
        assert accuracies[-1] == result["test_accuracy_last"]
        assert max(accuracies) == result["test_accuracy_best"]
        assert accuracies[result["best_epoch"] - 1] == max(accuracies)
    assert float(rows[-1]["label_accuracy"]) == methods["alr"]["label_accuracy_after"]
    assert float(rows[-1]["learning_rate"]) == pytest.approx(0, abs=1e-9)


def test_methods_see_the_same_batches_until_refinement(digits_run):
    rows = metrics_of(digits_run[0])
    ce, alr = rows[:EPOCHS], rows[EPOCHS:]
    columns = ["train_loss", "train_accuracy", "test_loss", "test_accuracy", "label_accuracy"]
    for epoch in range(3):  # the warm-up
        assert [ce[epoch][c] for c in columns] == [alr[epoch][c] for c in columns]
    assert ce[3]["train_loss"] != alr[3]["train_loss"]


def test_saved_weights_have_the_reported_accuracy(digits_run):
    runs, _ = digits_run
    model = build_model("conv-mini", num_classes=10, input_shape=(1, 8, 8)).eval()
    split = open_dataset("digits", None).split("test")
    pixels = torch.from_numpy(split.images.array).float() / 255 * 2 - 1
    for method, result in summary_of(runs)["methods"].items():
        model.load_state_dict(load_file(runs / "latest" / f"{method}.safetensors"))
        with torch.no_grad():
            right = model(pixels).argmax(1) == torch.from_numpy(split.index.labels)
        assert right.double().mean().item() == pytest.approx(
            result["test_accuracy_last"], abs=1.5 / 360
        )


def test_bank_is_saved_with_its_ids(digits_run):
    runs, _ = digits_run
    path = runs / "latest" / "alr_bank.safetensors"
    saved = load_file(path)
    train = open_dataset("digits", None).split("train").index
    assert saved["ids"].tolist() == train.sample_ids.tolist()
    assert np.array_equal(saved["clean_labels"], train.labels)
    assert saved["rows"].shape == (1437, 10)
    torch.testing.assert_close(saved["rows"].sum(1), torch.ones(1437), atol=1e-4, rtol=0)
    one_hot = torch.nn.functional.one_hot(saved["given_labels"], 10)
    assert (saved["rows"] != one_hot).any(1).all()  # every row was refined
    right = (saved["rows"].argmax(1) == saved["clean_labels"]).double().mean().item()
    assert right == summary_of(runs)["methods"]["alr"]["label_accuracy_after"]
    with safe_open(path, "pt") as file:
        assert file.metadata()["sample_fingerprint"] == train.sample_fingerprint()
    assert not (runs / "latest" / "ce_bank.safetensors").exists()


def test_run_folder_is_complete(digits_run):
    runs, _ = digits_run
    latest = runs / "latest"
    assert latest.is_symlink()
    assert latest.resolve().parent == runs.resolve()
    config = yaml.safe_load((latest / "config.yaml").read_text())
    assert config["optim"]["epochs"] == EPOCHS
    assert config["alr"]["warmup_epochs"] == 3
    assert (latest / "metrics.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(latest / "tensorboard" / "alr"))
    events.Reload()
    last = events.Scalars("test_accuracy")[-1]
    assert last.step == EPOCHS
    assert last.value == pytest.approx(summary_of(runs)["methods"]["alr"]["test_accuracy_last"])


def test_output_without_a_terminal_is_plain_text(digits_run):
    runs, text = digits_run
    assert "\x1b" not in text
    assert "1,437 training and 360 test images, 10 classes; noise: symmetric 40.0%" in text
    assert sum(line.startswith("   ce  epoch") for line in text.splitlines()) == EPOCHS
    text = text.replace(f"{runs.parent}/", "").replace(sys.executable, "python")  # however long
    assert max(map(len, text.splitlines())) <= 120
    header = next(line for line in text.splitlines() if "method" in line)
    assert "test acc" in header and "label acc" in header


def test_the_same_command_gives_the_same_figures(train_folder):
    def figures():
        status, runs = train_folder("--noise.kind", "symmetric", "--noise.rate", "0.4")
        assert status == 0
        times = ("seconds", "samples_per_second")
        return [{k: v for k, v in r.items() if k not in times} for r in metrics_of(runs)]

    assert figures() == figures()


def test_a_run_never_touches_an_older_one(train_folder, monkeypatch):
    # Both in the same second.
    monkeypatch.setattr(
        "alr_fast.training.output.run_folder.time.strftime", lambda *_: "20260131-235959"
    )
    _, runs = train_folder("--methods", "ce")
    first = (runs / "latest").resolve()
    before = {p: p.read_bytes() for p in first.rglob("*") if p.is_file()}
    train_folder("--methods", "ce")
    second = (runs / "latest").resolve()
    assert first != second
    assert {p: p.read_bytes() for p in first.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in runs.iterdir()) == sorted([first.name, second.name, "latest"])


def test_label_accuracy_is_empty_if_unknown(train_folder, capsys):
    status, runs = train_folder()
    assert status == 0
    for result in summary_of(runs)["methods"].values():
        assert result["label_accuracy_before"] is None
        assert result["label_accuracy_after"] is None
    assert {row["label_accuracy"] for row in metrics_of(runs)} == {""}
    assert "clean_labels" not in load_file(runs / "latest" / "alr_bank.safetensors")
    assert "label accuracy: -" in capsys.readouterr().out


def test_limited_run_saves_the_ids_of_the_whole_set(train_folder):
    status, runs = train_folder("--data.limit", "6", "--bank.dtype", "bfloat16")
    assert status == 0
    saved = load_file(runs / "latest" / "alr_bank.safetensors")
    assert saved["rows"].shape == (6, 2)
    assert saved["rows"].dtype == torch.bfloat16
    assert saved["ids"].max() >= 12  # class b starts at 12
    assert (saved["given_labels"] == (saved["ids"] >= 12).long()).all()


def test_balanced_subset_of_each_epoch(train_folder):
    status, runs = train_folder("--data.epoch_samples", "8", "--alr.warmup_epochs", "0")
    assert status == 0
    saved = load_file(runs / "latest" / "alr_bank.safetensors")
    touched = (saved["rows"] != torch.nn.functional.one_hot(saved["given_labels"], 2)).any(1)
    assert 8 < touched.sum() <= 16  # two epochs with 8 samples each; the bank has 24 rows
    assert saved["rows"].shape == (24, 2)


@pytest.mark.parametrize("kind", ["instance", "matrix"])
def test_noise_that_needs_more_than_labels(train_folder, tmp_path, kind):
    np.savetxt(tmp_path / "m.csv", [[0.5, 0.5], [0.25, 0.75]], delimiter=",")
    more = ["--noise.rate", "0.4"] if kind == "instance" else ["--noise.matrix", tmp_path / "m.csv"]
    status, runs = train_folder("--noise.kind", kind, *map(str, more), "--methods", "ce")
    assert status == 0
    noise = summary_of(runs)["noise"]
    assert noise["kind"] == kind
    assert 0 < noise["realised_rate"] < 0.9


def test_excluding_a_sample_does_not_change_other_labels(train_folder, root, tmp_path):
    options = ["--noise.kind", "symmetric", "--noise.rate", "0.5", "--methods", "alr"]
    labels = []
    (tmp_path / "x.csv").write_text("id,path,reason\n3,train/a/003.png,broken\n")
    for exclude in ("none", str(tmp_path / "x.csv")):
        status, runs = train_folder(*options, "--data.exclude", exclude)
        assert status == 0
        saved = load_file(runs / "latest" / "alr_bank.safetensors")
        labels.append(dict(zip(saved["ids"].tolist(), saved["given_labels"].tolist(), strict=True)))
    assert summary_of(runs)["data"]["excluded_samples"] == 1
    del labels[0][3]
    assert labels[0] == labels[1]


def test_noise_never_reaches_the_test_labels(train_folder):
    status, runs = train_folder(
        "--noise.kind", "symmetric-exclusive", "--noise.rate", "1", "--methods", "ce",
        "--optim.epochs", "15",
    )  # fmt: skip
    assert status == 0
    last = metrics_of(runs)[-1]
    # Two classes, every training label wrong: predictions contradict the true test labels.
    assert float(last["train_accuracy"]) > 0.9
    assert float(last["test_accuracy"]) < 0.1
    assert float(last["label_accuracy"]) == 0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_trains(train_folder, precision):
    status, runs = train_folder(
        "--precision", precision, "--optim.epochs", "4", "--optim.lr", "0.01"
    )  # fmt: skip
    assert status == 0
    rows = metrics_of(runs)
    assert float(rows[3]["train_loss"]) < float(rows[0]["train_loss"])
    assert float(rows[0]["train_loss"]) < 10  # not multiplied by the scale of the gradient scaler
    assert summary_of(runs)["environment"]["precision"] == precision


def test_timm_model_with_random_crops(train_folder):
    status, runs = train_folder(
        "--model.name", "resnet18", "--methods", "alr", "--data.crop", "resized",
        "--data.image_size", "33", "--optim.epochs", "2",
    )  # fmt: skip
    assert status == 0
    assert "fc.weight" in load_file(runs / "latest" / "alr.safetensors")


@pytest.mark.parametrize("loader", ["memory", "torch", "dali"])
def test_a_few_broken_images_are_left_out_and_listed(train_folder, root, capsys, loader):
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    for split, name in (("train", "a/002.png"), ("test", "b/001.png")):
        (root / split / name).write_bytes(b"")
    status, runs = train_folder("--data.loader", loader, "--data.max_broken", "0.2")
    assert status == 0
    out = capsys.readouterr().out
    assert out.count("a/002.png (id 2): the file is empty; left out") == 1
    assert f"loader: {loader} (asked for)" in out
    rows = metrics_of(runs)
    assert {row["broken_samples"] for row in rows} == {"1"}
    assert summary_of(runs)["data"]["broken_samples"] == 1
    assert summary_of(runs)["data"]["loader"] == loader
    with (runs / "latest" / "broken.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["id", "path", "reason"],
            ["2", "train/a/002.png", "the file is empty"],
        ]
    saved = load_file(runs / "latest" / "alr_bank.safetensors")
    changed = (saved["rows"] != torch.nn.functional.one_hot(saved["given_labels"], 2)).any(1)
    # Its row is unchanged, although ALR refined the others in its last epoch.
    assert changed.nonzero().flatten().tolist() == [i for i in range(24) if i != 2]


def test_a_profile_shows_the_time_of_each_phase(train_folder, capsys):
    status, runs = train_folder("--profile", "--optim.epochs", "8", "--methods", "alr")
    assert status == 0
    assert json.loads(gzip.decompress((runs / "latest" / "trace.json.gz").read_bytes()))[
        "traceEvents"
    ]
    lines = capsys.readouterr().out.splitlines()
    (start,) = [n for n, line in enumerate(lines) if line.startswith("One step of 10, traced in ")]
    shares = {}
    for line in lines[start + 2 :][: len(PHASES) + 1]:
        name, _, _, share = line.split()
        shares[name] = float(share.rstrip("%"))
    assert list(shares) == [*PHASES, "other"]
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert min(shares[name] for name in ("forward", "backward", "optimizer", "loss")) > 0


def test_a_profile_needs_enough_steps(train_folder, capsys):
    # One step per epoch: one step too few.
    status, runs = train_folder(
        "--profile", "--optim.epochs", "17", "--optim.batch_size", "24", "--methods", "alr"
    )
    assert status == 0
    assert "--profile: the run has fewer than 18 steps" in capsys.readouterr().err
    assert not (runs / "latest" / "trace.json.gz").exists()


def test_a_compiled_model_trains(train_folder):
    status, runs = train_folder("--model.compile", "default", "--methods", "alr")
    assert status == 0
    assert "head.weight" in load_file(runs / "latest" / "alr.safetensors")


def test_the_library_imports_nothing_of_the_extra():
    code = f"import sys, alr_fast; print([n for n in {TRAIN_EXTRA!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_evaluation_uses_and_leaves_the_running_statistics():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    images = ArrayImages(np.arange(40, dtype=np.uint8).reshape(10, 1, 2, 2))
    index = new_index([f"p{i}" for i in range(10)], np.arange(10) % 3, ("a", "b", "c"))
    loader = MemoryLoader(
        Split(index, images),
        SequentialSampler(10, 10),
        Transform(2, mean=(0.1,)),
        device=torch.device("cpu"),
    )
    (batch,) = loader
    before = {name: t.clone() for name, t in model.state_dict().items()}
    graphs = []
    model.register_forward_hook(lambda module, given, out: graphs.append(out.requires_grad))
    result = evaluate(model.train(), loader, torch.autocast("cpu", enabled=False))
    assert graphs == [False]  # no activations are kept
    with torch.no_grad():
        logits = model.eval()(batch["image"])
    assert result.loss == pytest.approx(
        torch.nn.functional.cross_entropy(logits, batch["label"]).item(), rel=1e-5
    )
    assert result.accuracy == (logits.argmax(1) == batch["label"]).double().mean().item()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_every_epoch_has_its_own_order(train_folder, monkeypatch):
    seen = []
    monkeypatch.setattr(Loader, "set_epoch", lambda self, epoch, start: seen.append(epoch))
    assert train_folder("--optim.epochs", "3")[0] == 0
    assert seen == [0, 1, 2] * 2


def test_the_best_epoch_is_shown_and_the_last_one_is_the_result():
    history = [
        EpochRecord("ce", e, 0.1, 1.0, 0.5, 1.0, acc, None, None, 0.0, e, 0, 0, 100.0, 2.0)
        for e, acc in enumerate([0.5, 0.9, 0.9, 0.7], start=1)
    ]
    result = method_summary(history, None)
    assert (result["test_accuracy_last"], result["test_accuracy_best"]) == (0.7, 0.9)
    assert result["best_epoch"] == 2
    assert (result["nonfinite_rows"], result["seconds"]) == (10, 8.0)


@pytest.mark.slow
def test_default_run_reaches_its_goals(tmp_path):
    assert main(["--runs", str(tmp_path)]) == 0
    methods = summary_of(tmp_path)["methods"]
    ce, alr = methods["ce"], methods["alr"]
    assert alr["test_accuracy_last"] >= 0.95
    assert alr["test_accuracy_last"] >= ce["test_accuracy_last"] + 0.10
    assert ce["test_accuracy_best"] >= 0.90  # a fair comparison
    assert alr["label_accuracy_before"] == pytest.approx(0.64, abs=0.02)
    assert alr["label_accuracy_after"] >= 0.90
    assert ce["seconds"] + alr["seconds"] < 120
