"""Runs of a stranger: every file that is not what it should be is one line that names it."""

import json
import os
import shutil

import numpy as np
import pytest
import yaml

from alr_fast import export, report, train
from helpers.forged import bounded

OPTIONS = ["--data.limit", "100", "--data.test_limit", "20", "--optim.epochs", "1", "--methods"]
OPTIONS += ["alr", "--log.show", "quiet", "--log.to", "csv", "--checkpoint.steps", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert train.main([*OPTIONS, "--runs", str(folder)]) == 0
    return (folder / "latest").resolve()


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs" / finished.name)


def refused(run, capsys, mains=(export.main, report.main)):
    lines = []
    for main in mains:
        capsys.readouterr()
        with bounded(gigabytes=2):
            status = main([str(run)])
        error = capsys.readouterr().err
        assert status == 2, error
        assert error.startswith("error: ") and error.count("\n") == 1, error
        lines.append(error)
    return lines


def test_a_flipped_bit_in_a_bank_is_found(run, capsys):
    path = run / "alr_bank.safetensors"
    good = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.integers(0, len(good), 40).tolist():
        path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        for line in refused(run, capsys, [export.main]):
            assert path.name in line


def forged_bank(path, tensors, size):
    """A bank file of this header, and a hole of ``size`` bytes."""
    header = json.dumps({"__metadata__": {}} | tensors).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


def test_a_bank_of_holes_does_not_fill_the_memory(run, capsys):
    count = 10**10
    labels = {"dtype": "I64", "shape": [count], "data_offsets": [0, 8 * count]}
    forged_bank(run / "alr_bank.safetensors", {"given_labels": labels}, 8 * count)
    for line in refused(run, capsys):
        assert "more memory than there is" in line


@pytest.mark.parametrize("shape", [[10**4000] * 1500, [1] * 10**6, [-1, -1], [1e400], [True]])
def test_shapes_of_a_bank_that_take_for_ever(run, capsys, shape):
    tensors = {"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}
    forged_bank(run / "alr_bank.safetensors", tensors, 4)
    for line in refused(run, capsys):
        assert "it is no safetensors file" in line


BOMBS = {
    "aliases": "a0: &a0 [x, x]\n"
    + "".join(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]\n" for k in range(1, 60)),
    "aliases of objects": "a0: &a0 {x: y}\n"
    + "".join(f"a{k}: &a{k} {{x: *a{k - 1}, y: *a{k - 1}}}\n" for k in range(1, 60)),
    "itself": "data: &a {x: *a}\n",
    "brackets": "[" * 100_000,
    "braces": "{a: " * 20_000,
    "keys": "? " * 20_000,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_nested_options_do_not_take_for_ever(run, tmp_path, capsys, text):
    (run / "config.yaml").write_text(text)
    for line in refused(run, capsys):
        assert "config.yaml" in line
    (tmp_path / "mine.yaml").write_text(text)
    mains = [lambda argv: train.main(["--config", str(tmp_path / "mine.yaml")])]
    mains.append(lambda argv: train.main(["--resume", str(run), "--runs", str(tmp_path / "r")]))
    refused(run, capsys, mains)


@pytest.mark.parametrize("name", ["config.yaml", "alr_bank.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "sparse"])
def test_what_is_no_file_is_refused_at_once(run, capsys, name, kind):
    path = run / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(60 * 10**9)
    else:
        path.symlink_to(name)
    refused(run, capsys)


@pytest.mark.parametrize("name", ["summary.json", "metrics.csv"])
@pytest.mark.parametrize("kind", ["pipe", "sparse", "device"])
def test_a_report_does_not_wait(run, capsys, name, kind):
    path = run / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(60 * 10**9)
    else:
        path.symlink_to("/dev/zero")
    with bounded(gigabytes=2):
        assert report.main([str(run)]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


SUMMARIES = [
    "[]", "3", '"x"', "null", "[" * 100_000, '{"methods": []}', '{"methods": {"alr": 3}}',
    '{"epochs": "x"}', "nan", "\x00",
]  # fmt: skip


@pytest.mark.parametrize("text", SUMMARIES)
def test_summaries_of_another_shape(run, capsys, text):
    (run / "summary.json").write_text(text)
    (line,) = refused(run, capsys, [report.main])
    assert "summary.json" in line


@pytest.mark.parametrize("change", ["methods", "epochs", "seconds", "noise"])
def test_values_of_another_type_in_a_summary(run, capsys, change):
    content = json.loads((run / "summary.json").read_text())
    for value in ([1], {"x": 1}, "<b>x</b>", -1e400):
        (run / "summary.json").write_text(json.dumps(content | {change: value}))
        with bounded(gigabytes=2):
            status = report.main([str(run)])
        error = capsys.readouterr().err
        assert status in (0, 2) and error.count("\n") == (1 if status else 0), (value, error)
        assert status == 0 or "summary.json" in error


@pytest.mark.parametrize(
    "text", ["", "x\n1\n", "method,epoch\nalr,x\n", "\x00", "method\n" + '"' * 1000, "a," * 100_000]
)
def test_metrics_of_another_shape(run, capsys, text):
    (run / "metrics.csv").write_text(text)
    with bounded(gigabytes=2):
        status = report.main([str(run)])
    error = capsys.readouterr().err
    assert status in (0, 2)
    assert error.count("\n") == (1 if status else 0)


@pytest.mark.parametrize("methods", ["../alr", "/etc/passwd", "alr/../alr", "a\x00b", "~", ""])
def test_methods_are_no_paths(run, capsys, methods):
    options = yaml.safe_load((run / "config.yaml").read_text())
    options["methods"] = [methods]
    (run / "config.yaml").write_text(yaml.safe_dump(options))
    refused(run, capsys)


def test_a_run_does_not_show_files_outside_of_its_data(tmp_path, monkeypatch):
    """Paths with ``..`` in the samples of a run lead nowhere."""
    from alr_fast.data.images.sources import BrokenImage
    from alr_fast.data.index import PathTable
    from alr_fast.training.run_images import _files
    from helpers import broken_files

    (tmp_path / "set").mkdir()
    broken_files.write_good(tmp_path / "private.png")
    broken_files.write_good(tmp_path / "set" / "a.png")
    found = _files(tmp_path / "set", PathTable.of(["a.png", "../private.png"]))
    assert found.read(0) is not None and found.file(0) == tmp_path / "set/a.png"
    with pytest.raises(BrokenImage, match="out of the folder"):
        found.read(1)
    assert found.file(1) is None
