"""Runs to export, and the export command."""

import csv
import shutil

import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alr_fast.bank.file import CHECKSUMS, DIGEST, BankFileWriter
from alr_fast.export import main
from alr_fast.train import main as train
from helpers.image_folder import write_folder

QUIET = ["--log.show", "quiet", "--log.to", "csv"]


def lines_of(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def exported(run, *argv, name="labels.parquet"):
    assert main([str(run), *argv]) == 0
    return pq.read_table(run / name)


def refused(capsys, run, *argv):
    """Runs the command, which must write nothing; returns its message."""
    before = sorted(run.iterdir()) if run.is_dir() else None
    assert main([str(run), *argv]) == 2
    assert (sorted(run.iterdir()) if run.is_dir() else None) == before
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def train_digits(folder):
    """Folder of a finished run with checkpoints."""
    argv = ["--methods", "ce,alr", "--optim.epochs", "7", "--runs", str(folder / "runs")]
    argv += ["--alr.warmup_epochs", "3", "--alr.momentum", "0.6", "--checkpoint.steps", "42"]
    # The last step has a checkpoint, with the final bank.
    assert train([*argv, *QUIET]) == 0
    return (folder / "runs/latest").resolve()


def train_folder(folder):
    """A run on a folder of 24 images: folder of the images, and folder of the run."""
    root = write_folder(folder / "set", train={"a": 12, "b": 12}, test={"a": 4, "b": 4})
    argv = ["--data-root", str(root), "--runs", str(folder / "runs"), "--optim.epochs", "2"]
    argv += ["--optim.batch_size", "8", "--data.workers", "1", "--bank.dtype", "bfloat16"]
    argv += ["--alr.warmup_epochs", "0", "--alr.momentum", "0.3", "--methods", "alr"]
    assert train([*argv, *QUIET]) == 0
    return root, (folder / "runs/latest").resolve()


def moved_copy(images, run, folder):
    """Copies of images and run; the configuration of the run has a folder that does not exist."""
    root, copy = shutil.copytree(images, folder / "set"), shutil.copytree(run, folder / "run")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(images), str(folder / "nowhere")))
    return root, copy


def content_of_bank(path):
    """Tensors and metadata of a bank file, without checksums."""
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    facts.pop(DIGEST)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    del tensors[CHECKSUMS]
    return tensors, facts


def rewrite_bank(run, change, method="alr"):
    """Changes the content of the bank file of a run, with checksums made anew.

    ``change(tensors, facts)`` changes both in place.
    """
    path = run / f"{method}_bank.safetensors"
    tensors, facts = content_of_bank(path)
    change(tensors, facts)
    rows = tensors.pop("rows")
    n, k = rows.shape
    writer = BankFileWriter(
        path, num_samples=n, num_classes=k, dtype=rows.dtype, tensors=tensors, metadata=facts
    )
    with writer:
        writer.write(torch.arange(n), rows)


def make_old(run, change=lambda tensors, facts: None, method="alr"):
    """Makes the files of a run those of a version without paths and checksums in them."""
    path = run / f"{method}_bank.safetensors"
    tensors, facts = content_of_bank(path)
    for name in ("paths", "path_offsets"):
        del tensors[name]
    change(tensors, facts)
    save_file(tensors, path, metadata=facts)
    for samples in run.glob("samples-*.safetensors"):
        samples.unlink()
