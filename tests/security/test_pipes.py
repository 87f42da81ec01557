"""Files that commands and functions open by name: a pipe in their place is not waited for."""

import os

import pytest

from alr_fast.data.layouts.webvision import _target_list
from alr_fast.errors import UserError
from alr_fast.labels.marks import read_label_studio
from alr_fast.noise.files import read_matrix
from alr_fast.training.models import build_model
from alr_fast.training.trained_model import load_for_data
from helpers.forged import bounded

READERS = {
    "matrix.csv": lambda path: read_matrix(path),
    "tasks.json": lambda path: read_label_studio(path, ["a", "b"]),
    "alr.safetensors": lambda path: load_for_data(path, num_classes=2, input_shape=(1, 8, 8)),
    "val.txt": lambda path: _target_list(path.parent, path.parent / "val"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused_at_once(tmp_path, name):
    (tmp_path / "config.yaml").write_text("model: {name: conv-mini}\n")
    os.mkfifo(tmp_path / name)
    with bounded(gigabytes=2), pytest.raises(UserError):
        READERS[name](tmp_path / name)


NAMES = ["resnet18.a:b", "hf-hub:a/b", "local-dir:/tmp", "mlp-" + "9" * 5000]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_models_are_no_addresses_and_no_endless_numbers(name):
    shape = (8,) if name.startswith("mlp") else (3, 32, 32)
    with pytest.raises(UserError, match=r"no such model|no model of features"):
        build_model(name, num_classes=2, input_shape=shape)
