"""Resuming with other data, labels or options, or with damaged checkpoints."""

import csv
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from alr_fast.training.checkpoint.manifest import list_checkpoints, newest_checkpoint
from helpers.faults import (
    SMALL,
    TERM,
    checkpoints,
    same,
    saved_tensors,
    slow,
)
from helpers.image_folder import write_folder
from helpers.training_process import outcome, run_folder

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def stopped_table(server, tmp_path_factory):
    """A run on a list of images, stopped with three checkpoints: folder, options, list."""
    folder = tmp_path_factory.mktemp("table")
    classes = dict.fromkeys("abc", 8)
    write_folder(folder / "set", train=classes, test=dict.fromkeys("abc", 2))
    rows = [
        (f"{split}/{name}/{path.name}", name, split)
        for split in ("train", "test")
        for name in classes
        for path in sorted((folder / "set" / split / name).iterdir())
    ]
    write_list(folder / "set" / "all.csv", rows)
    options = [*SMALL, "--methods", "alr", "--optim.epochs", "3", "--optim.batch_size", "8"]
    options += ["--data.loader", "memory", "--data.workers", "1", "--checkpoint.steps", "2"]
    options += ["--checkpoint.keep", "3"]
    faults = {"signal_after": {"number": TERM, "steps": 7}}
    words = [*options, "--data-root", folder / "set" / "all.csv", "--runs", folder / "runs"]
    training = server.start(*words, log=folder / "log", faults=faults)
    assert training.wait() == 75, training.output
    return folder, options, rows


def write_list(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])


@pytest.fixture
def resume(server, stopped_table, tmp_path):
    """Resumes a copy of that run; returns status and output lines."""
    folder, words, rows = stopped_table
    for name in ("set", "runs"):
        shutil.copytree(folder / name, tmp_path / name)

    numbers = []

    def resume(*argv, **options):
        given = [*words, "--data-root", tmp_path / "set" / "all.csv", "--runs", tmp_path / "runs"]
        numbers.append(None)
        training = server.start(*given, *argv, log=tmp_path / f"log{len(numbers)}", **options)
        status = training.wait()
        if "faults" not in options:  # torchrun itself writes one for a signal
            assert "Traceback" not in training.output
        return status, training.output.splitlines()

    return SimpleNamespace(
        resume=resume, rows=list(rows), table=tmp_path / "set" / "all.csv", runs=tmp_path / "runs"
    )


def refused(answer, *parts):
    status, lines = answer
    assert status == 2, lines
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert lines[-1] == errors[0]
    for part in parts:
        assert part in errors[0]


def test_other_classes_are_refused(resume):
    rows = [(path, "d" if label == "c" else label, split) for path, label, split in resume.rows]
    write_list(resume.table, rows)
    refused(resume.resume("--resume", "auto"), "was made with 3 classes (a, b, c)", "--data-root")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("another file", "23 continue, 1 is gone, 1 starts from its label"),
        ("another order", "24 continue"),
        ("fewer", "23 continue, 1 is gone"),
    ],
)
@pytest.mark.parametrize("processes", [None, slow(2)])
def test_other_samples_go_on(resume, change, said, processes):
    rows = resume.rows
    if change == "another file":
        old = resume.table.parent / rows[3][0]
        old.rename(old.with_name("zzz.png"))
        rows[3] = ("train/a/zzz.png", *rows[3][1:])
    elif change == "another order":
        rows[2], rows[3] = rows[3], rows[2]
    else:
        del rows[2]
    write_list(resume.table, rows)
    status, lines = resume.resume("--resume", "auto", processes=processes)
    assert status == 0, lines
    number = 23 if change == "fewer" else 24
    wanted = f"the data set has {number} samples, the checkpoint 24: {said}; epoch 3 starts anew"
    assert sum(line.endswith(wanted) for line in lines) == 1, lines
    saved = load_file(run_folder(resume.runs) / "alr_bank.safetensors")
    listed = [path for path, _, split in rows if split == "train"]
    assert bytes(saved["paths"].tolist()).decode().split("\0")[:-1] == listed


@pytest.mark.parametrize("processes", [None, slow(2)])
def test_the_rows_of_known_samples_are_those_of_the_checkpoint(resume, processes):
    """Whatever the number of processes then and now: after one step few rows have changed."""
    before = saved_tensors(newest_checkpoint(checkpoints(resume.runs)))
    place = {int(sample): k for k, sample in enumerate(before["bank.ids"])}
    rows = resume.rows
    train = [row for row in rows if row[2] == "train"][::-1]  # the ids are others
    write_list(resume.table, [*train, *(row for row in rows if row[2] != "train")])
    stop = {"signal_after": {"number": TERM, "steps": 1}}
    status, lines = resume.resume("--resume", "auto", processes=processes, faults=stop)
    assert status in (75, 1), lines
    after = saved_tensors(newest_checkpoint(checkpoints(resume.runs)))
    same_rows = sum(
        bool(torch.equal(after["bank.rows"][k], before["bank.rows"][place[23 - int(sample)]]))
        for k, sample in enumerate(after["bank.ids"])
    )
    assert same_rows >= 24 - 8 * (processes or 1)


def test_other_labels_are_refused_or_accepted(resume):
    rows = resume.rows
    rows[2] = (rows[2][0], "b", "train")
    write_list(resume.table, rows)
    refused(
        resume.resume("--resume", "auto"),
        "other given labels of the same samples",
        "--checkpoint.other_labels true",
    )
    status, lines = resume.resume(
        *("--resume", "auto", "--checkpoint.other_labels", "true", "--checkpoint.steps", "1")
    )
    assert status == 0, lines
    assert any("alr: resumes in epoch 3 after step 1" in line for line in lines)
    saved = load_file(run_folder(resume.runs) / "alr_bank.safetensors")
    assert saved["given_labels"][2] == 1
    # The history of the label before is discarded.
    last = saved_tensors(newest_checkpoint(checkpoints(resume.runs)))
    passes = dict(zip(last["bank.ids"].tolist(), last["history.passes"].tolist(), strict=True))
    assert passes[2] < min(passes[i] for i in passes if i != 2)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "manifest"])
@pytest.mark.parametrize("asked", ["auto", slow("run"), slow("checkpoint")])
def test_a_damaged_checkpoint_is_refused_and_an_older_one_offered(resume, damage, asked):
    *_, older, newest = list_checkpoints(checkpoints(resume.runs))
    name = "manifest.json" if damage == "manifest" else sorted(newest.files)[-1]
    path = newest.path / name
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        path.unlink()
    else:
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
    word = {"auto": "auto", "run": run_folder(resume.runs), "checkpoint": newest.path}[asked]
    message = {"truncated": "is truncated", "missing": "is missing"}.get(damage, "was changed")
    refused(resume.resume("--resume", word), str(path), message, f"--resume {older.path}")
    status, lines = resume.resume("--resume", older.path)
    assert status == 0, lines
    assert any(line.endswith(f"from {older.path}") for line in lines)


def test_an_older_checkpoint_leads_to_the_same_results(resume, undisturbed, stopped_table):
    folder, options, _ = stopped_table
    expected = undisturbed(*options, "--data-root", folder / "set" / "all.csv")
    oldest, *_ = list_checkpoints(checkpoints(resume.runs))
    assert resume.resume("--resume", oldest.path)[0] == 0
    same(outcome(resume.runs), expected)


def test_another_option_is_refused(resume):
    run = run_folder(resume.runs)
    refused(
        resume.resume("--resume", run, "--optim.lr", "0.03"),
        "--optim.lr 0.03",
        "has 0.05",
        str(run),
    )


def test_auto_starts_a_new_run_with_another_option(resume):
    (before,) = [path for path in resume.runs.iterdir() if not path.is_symlink()]
    content = {path: path.read_bytes() for path in before.rglob("*") if path.is_file()}
    status, lines = resume.resume("--resume", "auto", "--optim.lr", "0.03")
    assert status == 0, lines
    assert not any("resumes" in line for line in lines)
    assert len([path for path in resume.runs.iterdir() if not path.is_symlink()]) == 2
    assert {path: path.read_bytes() for path in before.rglob("*") if path.is_file()} == content


def test_a_path_without_a_run_is_refused(resume, tmp_path):
    refused(resume.resume("--resume", tmp_path / "none"), "none: no such folder")
    refused(resume.resume("--resume", resume.table), "all.csv: no such folder")
    (tmp_path / "empty").mkdir()
    refused(resume.resume("--resume", tmp_path / "empty"), str(tmp_path / "empty"))
    run = run_folder(resume.runs)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    refused(resume.resume("--resume", run), "has no complete checkpoint")


def test_auto_without_a_checkpoint_starts_a_new_run(resume):
    shutil.rmtree(run_folder(resume.runs))
    status, lines = resume.resume("--resume", "auto")
    assert status == 0, lines
    assert not any("resumes" in line for line in lines)
    assert (run_folder(resume.runs) / "summary.json").is_file()
