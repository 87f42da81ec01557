"""Files of weights that describe their model, also those of strangers."""

import io
import json
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alr_fast.bank.file import write_tensors
from alr_fast.data.images.sources import BrokenImage
from alr_fast.data.loaders.transform import Transform
from alr_fast.errors import UserError
from alr_fast.training.description import Description, read_description
from alr_fast.training.models import build_model
from alr_fast.training.trained_model import TestTransform, load_for_data, load_model
from helpers.forged import bounded

NAMES = ("cat", "d\xf6g", "caf\udce9", "=1+1", "")


def description(**changes):
    values = {
        "model": "conv-tiny",
        "input_shape": (3, 16, 16),
        "class_names": NAMES,
        "transform": Transform(16, resize=20, mean=(0.1, 0.2, 0.3), std=(0.5,)),
        "method": "alr",
        "epoch": 7,
        "precision": "bfloat16",
        "loader": "torch",
    }
    return Description(**{**values, **changes})


def save(path, about, **texts):
    """Writes weights of the model that is described; ``texts`` replace metadata, None removes."""
    torch.manual_seed(0)
    shape = about.input_shape
    model = build_model(about.model, num_classes=len(about.class_names), input_shape=shape).eval()
    metadata = {k: v for k, v in (about.metadata() | texts).items() if v is not None}
    save_file(model.state_dict(), path, metadata)
    return model


@pytest.mark.parametrize(
    "about",
    [
        description(),
        description(model="linear", input_shape=(9,), transform=Transform(1), loader="memory"),
        description(input_shape=(1, 8, 8), transform=Transform(8, resize=8)),
    ],
)
def test_the_description_is_read_back(tmp_path, about):
    model = save(tmp_path / "alr.safetensors", about)
    found = read_description(tmp_path / "alr.safetensors")
    assert found == about
    loaded, transform, names = load_model(tmp_path / "alr.safetensors")
    assert names == NAMES
    assert transform.transform == about.transform
    assert not loaded.training
    samples = torch.randn(2, *about.input_shape)
    assert torch.equal(loaded(samples), model(samples))


def test_other_libraries_read_the_file(tmp_path):
    path = tmp_path / "alr.safetensors"
    about = description(model="resnet18", transform=Transform(16, resize=16))
    model = save(path, about)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    made = json.loads(metadata["model"])
    assert made == {"name": "resnet18", "num_classes": 5, "in_chans": 3}
    assert json.loads(metadata["input"])["crop"] == "center"
    images = torch.randn(2, 3, 32, 32)
    for options in ({"checkpoint_path": str(path)}, {}):
        other = timm.create_model("resnet18", num_classes=5, **options).eval()
        if not options:
            other.load_state_dict(load_file(path))
        assert torch.equal(other(images), model(images))


def test_an_image_in_any_form(tmp_path):
    transform = TestTransform(description())
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    expected = transform(pixels)
    assert (expected.shape, expected.dtype) == ((3, 16, 16), torch.float32)
    forms = [
        *(tmp_path / "a.png", str(tmp_path / "a.png"), buffer.getvalue()),
        *(Image.fromarray(pixels), Image.open(tmp_path / "a.png"), torch.from_numpy(pixels)),
    ]
    for form in forms:
        assert torch.equal(transform(form), expected)
    flat = transform(np.full((30, 40), 51, np.uint8))  # gray
    for value, mean in zip(flat.mean((1, 2)).tolist(), (0.1, 0.2, 0.3), strict=True):
        assert value == pytest.approx((0.2 - mean) / 0.5, abs=1e-6)


def test_an_image_of_a_camera_is_upright(tmp_path):
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:10] = 255
    exif = Image.Exif()
    exif[274] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    transform = TestTransform(description(transform=Transform(16, resize=16)))
    from_path = transform(tmp_path / "a.png")
    from_pillow = transform(Image.open(tmp_path / "a.png"))
    assert torch.equal(from_path, from_pillow)
    assert from_path[:, 0].mean() < from_path[:, -1].mean()


def test_what_is_no_sample_is_refused(tmp_path):
    transform = TestTransform(description())
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(BrokenImage):
        transform(tmp_path / "a.png")
    for sample in (np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4), np.uint8)):
        with pytest.raises(UserError, match="sample: is torch"):
            transform(sample)
    of_rows = TestTransform(description(model="linear", input_shape=(3,), transform=Transform(1)))
    assert torch.equal(of_rows([1, 2, 3]), torch.tensor([1.0, 2, 3]))
    with pytest.raises(UserError, match=r"sample: has shape \[2\], the model takes 3 features"):
        of_rows([1, 2])


def changed(name, /, **fields):
    return {name: json.dumps(json.loads(description().metadata()[name]) | fields)}


FORGED = {
    "another format": {"format_version": "2"},
    "no number": {"format_version": '"1"'},
    "no names": {"class_names": None},
    "no list": {"class_names": "{}"},
    "fewer names": {"class_names": '["a"]'},
    "no classes": {"class_names": "[]", **changed("model", num_classes=0)},
    "no text in a file": {"class_names": json.dumps([f"\ud800{k}" for k in range(5)])},
    "no texts": {"class_names": "[1, 2, 3, 4, 5]"},
    "no JSON": {"input": "{"},
    "nested": {"input": "[" * 100_000},
    "no object": {"model": "[]"},
    "a long number": {"model": '{"num_classes": ' + "9" * 5000 + "}"},
    "no model": {"model": None},
    "kind": changed("input", kind="sound"),
    "channels": changed("input", channels=2),
    "other channels": changed("model", in_chans=1),
    "size": changed("input", size=1 << 20),
    "no size": changed("input", size=0),
    "true": changed("input", size=True),
    "resize": changed("input", resize=8),
    "crop": changed("input", crop="random"),
    "interpolation": changed("input", interpolation="nearest"),
    "mean": changed("input", mean=[0.5] * 2),
    "no mean": changed("input", mean=None),
    "NaN": changed("input", mean=[float("nan")]),
    "infinite": changed("input", std=[float("inf")]),
    "std": changed("input", std=[0]),
    "method": changed("training", method="../alr"),
    "epoch": changed("training", epoch=-1),
    "precision": changed("training", precision="int8"),
    "loader": changed("training", loader="mine"),
    "features": changed("input", kind="features"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_descriptions_are_refused(tmp_path, name):
    save(tmp_path / "alr.safetensors", description(), **FORGED[name])
    with bounded(gigabytes=2), pytest.raises(UserError) as caught:
        load_model(tmp_path / "alr.safetensors")
    message = str(caught.value)
    assert re.match(r"weights .*alr\.safetensors: cannot be read as weights \(", message)
    assert message.endswith("); pass the weights of a run") and len(message) < 500


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("vit_giant_patch14_224", "has not the weights of the model vit_giant"),  # 4 GB
        ("mlp-9999999", "is a model of features"),
        ("hf-hub:a/b", "no such model"),
        ("conv-mini", "has not the weights of the model conv-mini"),
    ],
)
def test_a_model_must_have_the_weights_of_the_file(tmp_path, model, message):
    save(tmp_path / "alr.safetensors", description(), **changed("model", name=model))
    with (
        bounded(gigabytes=2),
        pytest.raises(UserError, match=rf"weights .*alr.safetensors: .*{message}"),
    ):
        load_model(tmp_path / "alr.safetensors")


def test_huge_features_of_a_small_file(tmp_path):
    about = description(model="linear", input_shape=(9,), transform=Transform(1))
    large = json.dumps({"name": "mlp-9999999", "num_classes": 5, "in_features": 1 << 30})
    save(tmp_path / "alr.safetensors", about, model=large)
    with bounded(gigabytes=2), pytest.raises(UserError, match="has not the weights"):
        load_model(tmp_path / "alr.safetensors")


def test_a_flipped_bit_is_found(tmp_path):
    path, about = tmp_path / "alr.safetensors", description()
    model = save(path, about)
    write_tensors(path, model.state_dict(), about.metadata())
    good = path.read_bytes()
    write_tensors(path, model.state_dict(), about.metadata())
    assert path.read_bytes() == good  # the library writes metadata in random order
    for position in (good.index(b"conv-tiny"), len(good) // 2, len(good) - 5):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(UserError, match=r"SHA-256 differs|cannot be made here"):
            load_model(path)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "alr.safetensors"
    save(path, description())
    good = path.read_bytes()
    for content in (b"", good[:100], good[:-1], good + b"x", b"\xff" * 100):
        path.write_bytes(content)
        with bounded(gigabytes=2), pytest.raises(UserError, match="cannot be read as"):
            load_model(path)
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**11], "data_offsets": [0, 4 * 10**11]}})
    with path.open("wb") as file:  # holes
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 4 * 10**11)
    with bounded(gigabytes=2), pytest.raises(UserError, match="more memory than"):
        load_model(path)


def test_loading_draws_no_random_numbers_but_those_of_the_model(tmp_path):
    """A teacher is loaded between the seed of a run and its dropout masks."""
    save(tmp_path / "alr.safetensors", description())
    torch.manual_seed(5)
    build_model("conv-tiny", num_classes=5, input_shape=(3, 16, 16))
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_for_data(tmp_path / "alr.safetensors", num_classes=5, input_shape=(3, 16, 16))
    assert torch.equal(torch.rand(3), expected)
