"""Checkpoints of a stranger: their manifest fits, but nothing in them runs or is believed."""

import io
import json
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from enum import Enum

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from alr_fast import export, report, train
from alr_fast.errors import UserError
from alr_fast.training.checkpoint import manifest
from alr_fast.training.checkpoint.store import CheckpointStore, load, saved_tensors
from alr_fast.training.distributed import process_group
from helpers.forged import (
    Command,
    bounded,
    change_metadata,
    proves_itself,
    replace_tensor,
    sign,
    tensor_bytes,
)

OPTIONS = ["--data.limit", "100", "--data.test_limit", "20", "--optim.epochs", "1", "--methods"]
OPTIONS += ["alr", "--alr.warmup_epochs", "0", "--checkpoint.steps", "1", "--log.to", "csv"]
OPTIONS += ["--checkpoint.background", "false", "--log.show", "quiet", "--noise.seed", "0"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run whose checkpoints are complete."""
    folder = tmp_path_factory.mktemp("runs")
    assert train.main([*OPTIONS, "--runs", str(folder)]) == 0
    return (folder / "latest").resolve()


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run with one checkpoint, unfinished."""
    copy = tmp_path / "runs" / finished.name
    shutil.copytree(finished, copy)
    for path in copy.glob("*.safetensors"):
        if "_bank" in path.name:
            path.unlink()
    (copy / "summary.json").unlink()
    *older, _ = sorted((copy / "checkpoints").iterdir())
    for path in older:
        shutil.rmtree(path)
    return copy


@pytest.fixture
def checkpoint(run):
    (path,) = (run / "checkpoints").iterdir()
    return path


def commands(run):
    return {
        "resume": lambda: train.main([*OPTIONS, "--runs", str(run.parent), "--resume", str(run)]),
        "resume auto": lambda: train.main(
            [*OPTIONS, "--runs", str(run.parent), "--resume", "auto"]
        ),
        "export": lambda: export.main([str(run)]),
        "report": lambda: report.main([str(run)]),
    }


def refused(run, capsys, names=("resume", "export", "report")):
    """Runs the commands, which must end with one line; returns the lines."""
    lines = []
    for name in names:
        capsys.readouterr()
        assert commands(run)[name]() == 2, name
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        lines.append(error)
    return lines


@pytest.mark.parametrize("command", ["resume", "resume auto", "export", "report"])
def test_a_checkpoint_that_was_signed_anew_is_usable(run, checkpoint, capsys, command):
    change_metadata(checkpoint, lambda metadata: None)
    assert commands(run)[command]() == 0, capsys.readouterr().err


# Programs in every place of a pickle


def whole(metadata, command):
    return command


def beside_a_tensor(metadata, command):
    metadata.state_dict_metadata["extra"] = command


def as_tensor(metadata, command):
    metadata.state_dict_metadata["bank.rows"] = command


def as_name(metadata, command):
    metadata.state_dict_metadata = OrderedDict(metadata.state_dict_metadata)
    metadata.state_dict_metadata[command] = next(iter(metadata.state_dict_metadata.values()))


def as_shape(metadata, command):
    metadata.state_dict_metadata["bank.rows"].size = command


def in_the_planner(metadata, command):
    metadata.planner_data = {"x": command}


def in_the_place(metadata, command):
    next(iter(metadata.storage_data.values())).relative_path = command


def in_the_storage(metadata, command):
    metadata.storage_meta.modules = [command]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "place",
    [whole, beside_a_tensor, as_tensor, as_name, as_shape, in_the_planner, in_the_place,
     in_the_storage],
)  # fmt: skip
def test_metadata_run_nothing(checkpoint, tmp_path, place, protocol):
    victim = tmp_path / "victim"
    change_metadata(checkpoint, lambda metadata: place(metadata, Command(victim)), protocol)
    proves_itself((checkpoint / ".metadata").read_bytes(), victim)
    found = manifest.read_manifest(checkpoint)
    with process_group("cpu"):
        manifest.check_files(found)  # the sums do not protect
    with pytest.raises(UserError, match=r"\.metadata: cannot be read as the metadata of a check"):
        saved_tensors(found)
    assert not victim.exists()


def test_no_command_runs_what_is_in_the_metadata(run, checkpoint, tmp_path, capsys):
    victim = tmp_path / "victim"
    change_metadata(checkpoint, lambda metadata: beside_a_tensor(metadata, Command(victim)))
    for line in refused(run, capsys):
        assert "it asks for posix.mkdir" in line
    assert not victim.exists()


@pytest.mark.parametrize("name", ["bank.rows", "bank.ids"])
def test_no_command_runs_what_is_in_a_tensor(run, checkpoint, tmp_path, capsys, name):
    victim = tmp_path / "victim"
    replace_tensor(checkpoint, name, tensor_bytes(Command(victim), tmp_path))
    refused(run, capsys)
    replace_tensor(checkpoint, name, pickle.dumps(Command(victim)))
    refused(run, capsys)
    assert not victim.exists()


def test_no_command_runs_an_object_in_place_of_a_tensor(run, checkpoint, tmp_path, capsys):
    victim = tmp_path / "victim"
    replace_tensor(checkpoint, "bank.rows", tensor_bytes(Command(victim), tmp_path))

    def change(metadata):
        metadata.state_dict_metadata["bank.rows"] = BytesStorageMetadata()
        metadata.storage_data = {
            (type(index)(index.fqn) if index.fqn == "bank.rows" else index): place
            for index, place in metadata.storage_data.items()
        }

    change_metadata(checkpoint, change)
    for line in refused(run, capsys):
        assert "bank.rows is an object, not a tensor" in line
    assert not victim.exists()


def test_a_manifest_that_is_a_pickle(run, checkpoint, tmp_path, capsys):
    victim = tmp_path / "victim"
    (checkpoint / manifest.MANIFEST).write_bytes(pickle.dumps(Command(victim)))
    refused(run, capsys)
    assert not victim.exists()


# Sizes and places that are not so


def place_of(metadata, name):
    (index,) = [index for index in metadata.storage_data if index.fqn == name]
    return metadata.storage_data[index]


def entry(metadata):
    return metadata.state_dict_metadata["bank.rows"]


def set_place(**values):
    return lambda metadata: vars(place_of(metadata, "bank.rows")).update(values)


def set_size(*size):
    return lambda metadata: setattr(entry(metadata), "size", torch.Size(size))


def set_chunk(**sizes):
    def change(metadata):
        for name, size in sizes.items():
            setattr(entry(metadata).chunks[0], name, torch.Size(size))

    return change


def set_dtype(dtype):
    return lambda metadata: setattr(entry(metadata).properties, "dtype", dtype)


def twice(metadata):
    entry(metadata).chunks *= 2


def shared_bytes(metadata):
    other = place_of(metadata, "bank.ids")
    place = place_of(metadata, "bank.rows")
    other.offset, other.length = place.offset, place.length


def many_parts(metadata):
    part = entry(metadata).chunks * 100_000
    for name in list(metadata.state_dict_metadata):
        metadata.state_dict_metadata[name].chunks = part


WRONG = {
    "a file elsewhere": (set_place(relative_path="../../config.yaml"), "it refers to bytes"),
    "an absolute path": (set_place(relative_path="/etc/passwd"), "it refers to bytes"),
    "another file": (set_place(relative_path="manifest.json"), "it refers to bytes"),
    "the metadata": (set_place(relative_path=".metadata"), "it refers to bytes"),
    "a file that is not there": (set_place(relative_path="__9_9.distcp"), "it refers to bytes"),
    "a negative offset": (set_place(offset=-1), "a size out of range"),
    "a large offset": (set_place(offset=2**61), "it refers to bytes"),
    "a huge length": (set_place(length=2**70), "a size out of range"),
    "a length beyond the file": (set_place(length=1 << 40), "it refers to bytes"),
    "a place that is a text": (set_place(offset="0"), "a size out of range"),
    "a transformed tensor": (set_place(transform_descriptors=["x/1"]), "stored transformed"),
    "a huge tensor": (set_size(2**60, 10), "parts that do not make it up"),
    "a negative size": (set_size(-5, 10), "a size out of range"),
    "another shape": (set_size(1000), "a part outside"),
    "a huge part": (set_chunk(sizes=(2**60, 10)), "a part outside"),
    "a moved part": (set_chunk(offsets=(5, 0)), "a part that is not stored"),
    "a larger type": (set_dtype(torch.complex128), "larger than what is stored"),
    "a part twice": (twice, "a part that is not stored"),
    "bytes used twice": (shared_bytes, "twice"),
    "many parts": (many_parts, "a part that is not stored"),
    "no places": (lambda metadata: setattr(metadata, "storage_data", None), "no storage_data"),
    "no tensors": (
        lambda metadata: setattr(metadata, "state_dict_metadata", []),
        "no state_dict_metadata",
    ),
}


@pytest.mark.parametrize(("change", "reason"), WRONG.values(), ids=WRONG)
def test_metadata_are_compared_with_the_files(checkpoint, change, reason):
    change_metadata(checkpoint, change)
    found = manifest.read_manifest(checkpoint)
    with bounded(gigabytes=0.5), pytest.raises(UserError, match=reason) as caught:
        saved_tensors(found)
    assert "\n" not in str(caught.value)


def test_metadata_that_fit_otherwise_are_refused_by_the_commands(run, checkpoint, capsys):
    change_metadata(checkpoint, set_size(2**60, 10))
    for line in refused(run, capsys):
        assert str(checkpoint / ".metadata") in line


def zip_of(compression, content):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
    return data.getvalue()


def test_a_compressed_tensor_is_refused_unread(run, checkpoint, tmp_path, capsys):
    stored = zipfile.ZipFile(io.BytesIO(tensor_bytes(torch.zeros(10_000_000), tmp_path)))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in stored.namelist():
            archive.writestr(name, stored.read(name))
    assert len(packed.getvalue()) < 100_000
    replace_tensor(checkpoint, "bank.rows", packed.getvalue())
    for line in refused(run, capsys):
        assert "bank.rows cannot be read (it unpacks to more than it has)" in line


@pytest.mark.parametrize("data", [b"x" * 60_000, zip_of(zipfile.ZIP_STORED, b"x" * 60_000)])
def test_a_tensor_that_is_something_else(run, checkpoint, capsys, data):
    replace_tensor(checkpoint, "bank.rows", data)
    refused(run, capsys)


def test_a_tensor_of_another_shape(run, checkpoint, tmp_path, capsys):
    replace_tensor(checkpoint, "bank.rows", tensor_bytes(torch.zeros(5000), tmp_path))
    refused(run, capsys)


# Manifests


def change_manifest(checkpoint, change):
    path = checkpoint / manifest.MANIFEST
    fields = json.loads(path.read_bytes())
    del fields["sha256"]
    change(fields)
    path.write_bytes(manifest._encode(fields))


def rename_file(name):
    def change(fields):
        fields["files"][name] = fields["files"].pop(".metadata")

    return change


MANIFESTS = {
    "a file elsewhere": (rename_file("../../config.yaml"), "is no file of a checkpoint"),
    "an absolute path": (rename_file("/etc/passwd"), "is no file of a checkpoint"),
    "a folder": (rename_file("__0_0.distcp/x"), "is no file of a checkpoint"),
    "a line more": (rename_file("__0_0.distcp\n"), "is no file of a checkpoint"),
    "an empty name": (rename_file(""), "is no file of a checkpoint"),
    "no files": (lambda fields: fields.pop("files"), "files is missing"),
    "an extra field": (lambda fields: fields.update(extra=1), "extra is unknown"),
    "files as a list": (lambda fields: fields.update(files=[]), "files is a list, not a dict"),
    "a number as text": (lambda fields: fields.update(number="1"), "number is a str, not a int"),
    "a number as truth": (lambda fields: fields.update(number=True), "number is a bool"),
    "a size as text": (
        lambda fields: fields["files"].update({".metadata": ["1", "x"]}),
        "has no size and SHA-256",
    ),
    "no sum": (lambda fields: fields["files"].update({".metadata": [1]}), "has no size and SHA"),
    "no format": (lambda fields: fields.pop("format"), "format is missing"),
    "an odd format": (lambda fields: fields.update(format=[]), "format is a list"),
}


@pytest.mark.parametrize(("change", "reason"), MANIFESTS.values(), ids=MANIFESTS)
def test_the_fields_of_a_manifest_are_checked(run, checkpoint, capsys, change, reason):
    change_manifest(checkpoint, change)
    with pytest.raises(UserError, match=reason):
        manifest.read_manifest(checkpoint)


def test_a_strange_manifest_is_refused_by_every_command(run, checkpoint, capsys):
    change_manifest(checkpoint, rename_file("../../config.yaml"))
    for line in refused(run, capsys):
        assert f"{checkpoint / manifest.MANIFEST} is not a manifest of alr_fast" in line


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", manifest.MANIFEST])
def test_what_is_no_file_is_refused_at_once(run, checkpoint, capsys, name):
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    with bounded():
        refused(run, capsys)
    (checkpoint / name).unlink()
    (checkpoint / name).symlink_to("/dev/zero")
    with bounded():
        refused(run, capsys)


def test_a_nested_manifest_is_refused(run, checkpoint, capsys):
    (checkpoint / manifest.MANIFEST).write_bytes(b"[" * 200_000)
    with bounded():
        refused(run, capsys)


# The folder


def test_checkpoints_behind_a_link_are_not_written(run, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    (run / "checkpoints").rename(elsewhere)
    (run / "checkpoints").symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    (line,) = refused(run, capsys, ["resume"])
    assert f"{run / 'checkpoints'}: is a symbolic link" in line
    assert sorted(elsewhere.rglob("*")) == before


def test_a_link_at_the_name_of_a_checkpoint_being_written(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("mine")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for suffix in ("tmp", "old", "del"):
        (folder / f".000000001.{suffix}").symlink_to(elsewhere)
    lines = []
    with process_group("cpu"):
        store = CheckpointStore(folder, keep=1, log=lines.append)
        store.save(1, {"x": torch.ones(1)}, {}, wait=True)
        assert store.last_error is None, lines
        x = torch.zeros(1)
        load(manifest.read_manifest(folder / "000000001"), {"x": x})
        store.close()
    assert x.item() == 1
    assert sorted(p.name for p in elsewhere.iterdir()) == ["precious"]
    assert [p.name for p in folder.iterdir()] == ["000000001"]


def test_a_legacy_tensor_is_refused(checkpoint, tmp_path):
    path = tmp_path / "legacy"
    torch.save(torch.zeros(10_000), path, _use_new_zipfile_serialization=False)
    replace_tensor(checkpoint, "bank.rows", path.read_bytes())
    found = manifest.read_manifest(checkpoint)
    shape, dtype = saved_tensors(found)["bank.rows"]
    with process_group("cpu"), pytest.raises(UserError, match=r"bank\.rows cannot be read"):
        load(found, {"bank.rows": torch.zeros(shape, dtype=dtype)})


def test_other_versions_of_torch_append_to_the_properties(checkpoint):
    def change(metadata):
        for value in metadata.state_dict_metadata.values():
            kind = type(value.properties)
            break
        state = kind.__getstate__
        kind.__getstate__ = lambda self: (*state(self), None)
        try:
            (checkpoint / "longer").write_bytes(pickle.dumps(metadata))
        finally:
            kind.__getstate__ = state

    before = saved_tensors(manifest.read_manifest(checkpoint))
    change_metadata(checkpoint, change)
    (checkpoint / "longer").replace(checkpoint / ".metadata")
    sign(checkpoint)
    assert saved_tensors(manifest.read_manifest(checkpoint)) == before


def test_members_of_an_enum_as_python_3_11_2_writes_them(checkpoint):
    """``getattr(Enum, name)``, which is not called here either."""

    class Pickler(pickle.Pickler):
        def reducer_override(self, value):
            if isinstance(value, Enum):
                return getattr, (type(value), value.name)
            return NotImplemented

    def change(metadata):
        buffer = io.BytesIO()
        Pickler(buffer, protocol=4).dump(metadata)
        (checkpoint / "other").write_bytes(buffer.getvalue())

    before = saved_tensors(manifest.read_manifest(checkpoint))
    change_metadata(checkpoint, change)
    (checkpoint / "other").replace(checkpoint / ".metadata")
    assert b"getattr" in (checkpoint / ".metadata").read_bytes()
    sign(checkpoint)
    assert saved_tensors(manifest.read_manifest(checkpoint)) == before
