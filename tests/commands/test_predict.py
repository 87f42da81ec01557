"""Predictions with the files of a run."""

import csv
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from alr_fast.data import open_dataset
from alr_fast.data.label_files.label_table import read_labels, read_probabilities
from alr_fast.predict import main
from alr_fast.train import main as train
from alr_fast.training.models import ConvNet
from alr_fast.training.trained_model import load_model
from helpers.exported_runs import lines_of
from helpers.features import write_digits
from helpers.image_folder import write_folder

QUIET = ["--log.show", "quiet", "--log.to", "csv", "--data.workers", "0"]
NO_WORKERS = ["--workers", "0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of images, one of them broken, and a run on them whose preparation is all but the
    default; no test writes into them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("predict")
    sizes = {"train": {"cat": 12, "dog": 12, "ox": 12}, "test": {"cat": 6, "dog": 3, "ox": 4}}
    root = write_folder(base / "set", **sizes, size=(25, 20), suffix=".jpg")
    (root / "test/dog/000.jpg").write_bytes(b"no image")
    argv = ["--data-root", str(root), "--runs", str(base / "runs"), "--methods", "ce,alr"]
    argv += ["--data.crop", "random", "--data.resize", "12", "--data.image_size", "8"]
    argv += ["--data.mean", "[0.2, 0.3, 0.4]", "--data.std", "[0.1, 0.2, 0.3]"]
    argv += ["--data.loader", "torch", "--data.max_broken", "0.2", "--precision", "bfloat16"]
    argv += ["--optim.epochs", "4", "--optim.batch_size", "6", "--alr.momentum", "0.3"]
    assert train([*argv, *QUIET]) == 0
    torch.set_num_threads(threads)
    return root, (base / "runs/latest").resolve()


@pytest.fixture
def predict(trained, tmp_path, capsys):
    """Runs the command on a run; returns the rows of its table."""

    def run(*argv, weights=None, name="out.csv"):
        words = [str(weights or trained[1]), *map(str, argv), "--output", str(tmp_path / name)]
        assert main([*words, *NO_WORKERS]) == 0, capsys.readouterr().err
        if name.endswith(".parquet"):
            return pq.read_table(tmp_path / name).to_pylist()
        return lines_of(tmp_path / name)

    return run


@pytest.mark.parametrize("method", ["ce", "alr"])
def test_the_test_samples_have_the_accuracy_of_the_run_to_the_sample(
    trained, predict, capsys, method
):
    root, run = trained
    rows = predict(root / "test", "--method", method)
    message = capsys.readouterr()
    assert f"{root}/test/dog/000.jpg: not an image; left out" in message.err
    assert "12 of 13 samples: " in message.out
    right = {name: [] for name in ("cat", "dog", "ox")}
    for row in rows:
        assert row["path"].startswith(f"{root}/test/")
        right[row["path"].split("/")[-2]].append(row["class"] == row["path"].split("/")[-2])
    result = json.loads((run / "summary.json").read_text())["methods"][method]
    everything = [answer for answers in right.values() for answer in answers]
    assert len(everything) == 12
    assert result["test_accuracy_last"] == np.mean(everything)
    shares = [np.mean(answers) for answers in right.values()]
    assert result["test_balanced_accuracy_last"] == pytest.approx(np.mean(shares))
    assert result["class_accuracy_last"]["test"] == pytest.approx(shares, abs=1e-6)
    table = lines_of(run / f"{method}_classes.csv")
    assert [row["name"] for row in table] == ["cat", "dog", "ox"]
    assert [int(row["test_samples"]) for row in table] == [6, 2, 4]
    assert [float(row["test_accuracy"]) for row in table] == pytest.approx(shares, abs=1e-6)
    last = [row for row in lines_of(run / "metrics.csv") if row["method"] == method][-1]
    assert float(last["test_balanced_accuracy"]) == pytest.approx(np.mean(shares))
    assert last["test_top5_accuracy"] == ""


def test_the_file_of_weights_is_enough(trained, predict, tmp_path):
    root, run = trained
    copy = shutil.copy(run / "alr.safetensors", tmp_path / "mine.safetensors")
    assert predict(root / "test", weights=copy) == predict(root / "test")  # of the last method
    model, transform, class_names = load_model(copy)
    assert class_names == ("cat", "dog", "ox")
    for row in predict(root / "test", "--soft"):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            p = model(transform(row["path"])[None]).float().softmax(1)[0]
        assert class_names[p.argmax()] == row["class"]
        assert [float(row[f"p{k}"]) for k in range(3)] == pytest.approx(p.tolist(), abs=0.01)


def test_batches_and_pieces_do_not_matter(trained, predict, monkeypatch):
    root, _ = trained
    whole = predict(root / "test", name="whole.parquet")
    monkeypatch.setattr("alr_fast.data.tables.writing._GROUP_ROWS", 4)
    small = predict(root / "test", "--batch-size", "3", name="small.parquet")
    assert [row["path"] for row in small] == [row["path"] for row in whole]
    assert [row["class"] for row in small] == [row["class"] for row in whole]


def test_images_are_named_by_files_folders_and_lists(trained, predict, tmp_path, monkeypatch):
    root, _ = trained
    monkeypatch.chdir(root)
    (tmp_path / "list.csv").write_text("filename;note\ntrain/ox/003.jpg;x\ntrain/cat/001.jpg;y\n")
    (root / "near.csv").write_text("path\nox/009.jpg\n")
    hidden = root / "test/cat/.hidden.jpg"
    shutil.copy(root / "test/cat/001.jpg", hidden)
    rows = predict("test/cat", "train/dog/002.jpg", "near.csv", tmp_path / "list.csv",
                   "--data-root", ".")  # fmt: skip
    hidden.unlink()
    (root / "near.csv").unlink()
    paths = [row["path"] for row in rows]
    assert paths == [
        *(f"test/cat/{k:03d}.jpg" for k in range(6)),
        *("train/dog/002.jpg", "train/ox/009.jpg", "train/ox/003.jpg", "train/cat/001.jpg"),
    ]


def test_the_best_classes_and_all_probabilities(trained, predict):
    root, _ = trained
    (row, *_) = predict(root / "test", "--top", "9", "--soft", name="out.parquet")
    names = [row["class"], row["class_2"], row["class_3"]]
    assert sorted(names) == ["cat", "dog", "ox"] and "class_4" not in row
    shares = [row["probability"], row["probability_2"], row["probability_3"]]
    assert shares == sorted(shares, reverse=True)
    assert dict(zip(names, shares, strict=True)) == dict(
        zip(("cat", "dog", "ox"), row["probabilities"], strict=True)
    )
    assert sum(shares) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_training_reads_the_table_as_labels_and_as_soft_labels(trained, predict, tmp_path, name):
    root, _ = trained
    rows = predict(root / "train", "--soft", name=name)
    index = open_dataset("folder", root).split("train").index
    labels = read_labels(tmp_path / name, index, None).labels
    assert [index.class_names[k] for k in labels] == [row["class"] for row in rows]
    ((found, p),) = read_probabilities(tmp_path / name, index)
    assert found.tolist() == list(range(36))
    assert p.argmax(1).tolist() == labels.tolist()


def test_the_first_rows_are_printed_without_a_file(trained, capsys, monkeypatch):
    root, run = trained
    monkeypatch.setattr("alr_fast.predict.SHOWN", 2)
    monkeypatch.chdir(root / "test")
    assert main([str(run), "cat", "ox", *NO_WORKERS]) == 0
    out = capsys.readouterr().out
    assert "cat/000.jpg" in out and "cat/001.jpg" in out and "cat/002.jpg" not in out
    assert "10 samples, the first 2 are shown; --output FILE.csv" in out
    assert main([str(run), "cat/000.jpg", *NO_WORKERS]) == 0
    assert "are shown" not in capsys.readouterr().out


WRONG = {
    "no such image": (["nowhere.jpg"], "images nowhere.jpg: no such file or folder"),
    "no images": (["empty"], "images empty: no images in this folder"),
    "broken": (["set/test/dog/000.jpg"], "set/test/dog/000.jpg: not an image; pass an image"),
    "features": (["x.npz"], "is a file of features, the model conv-small takes images"),
    "column": (["set/test", "--column", "X"], "--column X: is for files of features"),
    "no column": (["labels.csv"], "labels.csv: has no column of images; it has id, note; call it"),
    "no rows": (["rows.csv"], "rows.csv: has no rows below the header"),
    "elsewhere": (["far.csv"], "far.csv, line 2: '../../etc/passwd' leads out of the data folder"),
    "empty cell": (["cell.csv"], "cell.csv, line 3: names no image; fill it in"),
    "suffix": (["set/test", "--output", "a.txt"], "--output a.txt: name a file that ends with"),
    "folder": (["set/test", "--output", "no/a.csv"], "--output no/a.csv: no folder no; make it"),
    "method": (["set/test", "--method", "sat"], "--method sat: not trained by RUN; it has alr, ce"),
    "top": (["set/test", "--top", "0"], "--top 0: must be 1 or more"),
    "batch": (["set/test", "--batch-size", "0"], "--batch-size 0: must be 1 or more"),
    "workers": (["set/test", "--workers", "-1"], "--workers -1: must be 0 or more"),
    "device": (["set/test", "--device", "tpu"], "--device tpu: not usable on this machine"),
    "all classes": (["set/test", "--soft", "NO OUTPUT"], "--soft: the probabilities of all"),
    "nothing": ([], "the following arguments are required: IMAGES"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_one_line_and_nothing_is_written(
    trained, tmp_path, capsys, monkeypatch, name
):
    root, run = trained
    argv, message = WRONG[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").symlink_to(root)
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "x.npz", X=np.zeros((2, 3)))
    (tmp_path / "labels.csv").write_text("id,note\n1,x\n")
    (tmp_path / "rows.csv").write_text("path,label\n")
    (tmp_path / "far.csv").write_text("path\n../../etc/passwd\n")
    (tmp_path / "cell.csv").write_text("path,x\nset/test/cat/000.jpg,1\n,2\n")
    before = sorted(tmp_path.rglob("*"))
    if not {"--output", "NO OUTPUT"} & set(argv):
        argv = [*argv, "--output", "out.csv"]
    argv = [word for word in argv if word != "NO OUTPUT"]
    assert main([str(run), *argv]) == 2
    assert sorted(tmp_path.rglob("*")) == before
    error = capsys.readouterr().err.replace(str(run), "RUN").splitlines()[-1]
    assert error.startswith("error: ") and message in error, error


def test_folders_that_are_no_runs(trained, tmp_path, capsys):
    root, run = trained
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "config.yaml").unlink()
    assert main([str(copy), str(root / "test")]) == 2
    assert "--method: RUN: has the weights of alr, ce; name one" in capsys.readouterr().err.replace(
        str(copy), "RUN"
    )
    assert main([str(copy), str(root / "test/cat/000.jpg"), "--method", "ce", *NO_WORKERS]) == 0
    for path in copy.glob("*.safetensors"):
        path.unlink()
    capsys.readouterr()
    assert main([str(copy), str(root / "test")]) == 2
    assert "has no weights, METHOD.safetensors; pass a run that has" in capsys.readouterr().err
    assert main([str(tmp_path / "none"), str(root / "test")]) == 2
    assert "none: no such folder or file; pass the folder of a run" in capsys.readouterr().err


def test_weights_of_earlier_versions_say_so(trained, tmp_path, capsys):
    root, run = trained
    save_file(load_file(run / "alr.safetensors"), tmp_path / "alr.safetensors")
    assert main([str(tmp_path / "alr.safetensors"), str(root / "test")]) == 2
    error = capsys.readouterr().err
    assert "alr.safetensors: does not say what model it is of, as an earlier version" in error


def test_gray_images_of_a_model_of_one_channel(tmp_path, predict):
    runs = tmp_path / "runs"
    argv = ["--optim.epochs", "2", "--methods", "ce", "--runs", str(runs), *QUIET]
    assert train([*argv, "--data.limit", "300"]) == 0
    split = open_dataset("digits", None).split("test")
    for row in range(len(split)):
        path = tmp_path / f"png/{split.index.class_names[split.index.labels[row]]}/{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(split.images.read(row))
    rows = predict(tmp_path / "png", weights=runs / "latest")
    share = np.mean([row["class"] == row["path"].split("/")[-2] for row in rows])
    summary = json.loads((runs / "latest/summary.json").read_text())
    assert summary["methods"]["ce"]["test_accuracy_last"] == share


def test_features(tmp_path, predict, capsys):
    file = write_digits(tmp_path / "digits.npz")
    runs = tmp_path / "runs"
    argv = ["--data-root", str(file), "--runs", str(runs), "--methods", "ce", *QUIET]
    assert train([*argv, "--optim.epochs", "3"]) == 0
    split = open_dataset("features", file).split("test")
    np.savez(
        tmp_path / "test.npz", X_test=split.values, paths_test=[f"row {k}" for k in range(359)]
    )
    pq.write_table(pa.table({"vector": list(split.values)}), tmp_path / "test.parquet")
    np.save(tmp_path / "test.npy", split.values)
    rows = predict(tmp_path / "test.npz", "--column", "X_test", weights=runs / "latest")
    assert [row["path"] for row in rows[:2]] == ["row 0", "row 1"]
    names = [split.index.class_names[k] for k in split.index.labels]
    summary = json.loads((runs / "latest/summary.json").read_text())
    right = [row["class"] == name for row, name in zip(rows, names, strict=True)]
    assert summary["methods"]["ce"]["test_accuracy_last"] == np.mean(right)
    for other in ("test.parquet", "test.npy"):
        again = predict(tmp_path / other, weights=runs / "latest")
        assert [row["class"] for row in again] == [row["class"] for row in rows]
        assert again[1]["path"] == "test/00001"
    both = predict(tmp_path / "test.npy", tmp_path / "test.parquet", weights=runs / "latest")
    assert len(both) == 718
    np.savez(tmp_path / "narrow.npz", X=np.zeros((2, 3)))
    for wrong, message in (
        ("narrow.npz", "narrow.npz: has 3 features, the model takes 64"),
        ("set.jpg", "set.jpg: the model mlp takes features: pass .npz or .parquet files"),
        ("none.jpg", "none.jpg: no such file; the model mlp takes features"),
    ):
        Image.new("RGB", (4, 4)).save(tmp_path / "set.jpg")
        assert main([str(runs / "latest"), str(tmp_path / wrong)]) == 2
        assert message in capsys.readouterr().err


def test_no_memory_is_one_line(trained, monkeypatch, capsys):
    def no_memory(self, images):
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried 17179869184 bytes"
        )

    root, run = trained
    monkeypatch.setattr(ConvNet, "forward", no_memory)
    assert main([str(run), str(root / "test/cat/001.jpg"), *NO_WORKERS]) == 2
    message = capsys.readouterr().err
    assert "not enough memory for samples of 8 x 8 pixels (DefaultCPU" in message
    assert message.count("\n") == 1


def test_names_that_are_no_text_survive(trained, tmp_path, predict):
    root, _ = trained
    odd = tmp_path / "images"
    odd.mkdir()
    for name in (b"=1+1.jpg", b"caf\xe9.jpg"):
        shutil.copy(root / "test/cat/001.jpg", odd / name.decode("utf-8", "surrogateescape"))
    for name in ("out.csv", "out.parquet"):
        predict(odd, name=name)
    with (tmp_path / "out.csv").open(
        newline="", encoding="utf-8-sig", errors="surrogateescape"
    ) as f:
        paths = [row["path"] for row in csv.DictReader(f)]
    assert paths == [f"{odd}/=1+1.jpg", f"{odd}/caf\udce9.jpg"]
    stored = pq.read_table(tmp_path / "out.parquet")["path"].to_pylist()
    assert stored == [path.encode("utf-8", "surrogateescape") for path in paths]
