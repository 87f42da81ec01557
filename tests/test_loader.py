import numpy as np
import pytest
import torch

from alr_fast.data.images import ArrayImages
from alr_fast.data.torch import TorchLoader

CPU = torch.device("cpu")


def pixel_rows(n, channels=1, size=4):
    """Images whose every pixel is the number of the row."""
    array = np.arange(n, dtype=np.uint8)[:, None, None, None]
    return ArrayImages(np.tile(array, (1, channels, size, size)))


def loader_of(n, *, batch_size=4, images=None, **options):
    images = pixel_rows(n) if images is None else images
    labels = torch.arange(n) % 3
    return TorchLoader(
        images,
        labels,
        batch_size=batch_size,
        device=CPU,
        mean=(0.0,),
        std=(1 / 255,),  # images come out as the pixel values
        **options,
    )


@pytest.mark.parametrize(
    ("n", "batch_size", "shuffle", "sizes"),
    [
        (8, 4, True, [4, 4]),
        (10, 4, True, [4, 4, 2]),
        (9, 4, True, [4, 5]),  # a lone sample joins the batch before it
        (9, 4, False, [4, 4, 1]),  # evaluation needs no such care
        (3, 4, True, [3]),
        (1, 4, True, [1]),
        (3, 1, True, [1, 1, 1]),
    ],
)
def test_every_sample_once_with_its_label_and_row(n, batch_size, shuffle, sizes):
    loader = loader_of(n, batch_size=batch_size, shuffle=shuffle)
    batches = list(loader)
    assert len(loader) == len(batches)
    assert [len(batch["index"]) for batch in batches] == sizes
    index = torch.cat([batch["index"] for batch in batches])
    assert sorted(index.tolist()) == list(range(n))
    for batch in batches:
        assert set(batch) == {"image", "label", "index"}
        assert batch["image"].dtype == torch.float32
        assert batch["label"].dtype == batch["index"].dtype == torch.int64
        assert torch.equal(batch["label"], batch["index"] % 3)
        expected = batch["index"][:, None, None, None].expand(-1, 1, 4, 4)
        torch.testing.assert_close(batch["image"], expected.float())


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        loader = loader_of(50, shuffle=True, seed=seed)
        loader.set_epoch(epoch)
        return torch.cat([batch["index"] for batch in loader]).tolist()

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    assert order(0, 3) != list(range(50))


def test_normalisation_by_channel():
    images = ArrayImages(np.full((2, 3, 4, 4), 51, np.uint8))  # 51 / 255 = 0.2
    loader = TorchLoader(
        images,
        torch.zeros(2, dtype=torch.int64),
        batch_size=2,
        device=CPU,
        mean=(0.1, 0.2, 0.4),
        std=(0.5, 0.5, 0.25),
    )
    (batch,) = loader
    expected = torch.tensor([0.2, 0.0, -0.8])[None, :, None, None].expand(2, 3, 4, 4)
    torch.testing.assert_close(batch["image"], expected)


def test_augmentation_crops_and_flips_every_image_by_itself():
    rng = np.random.default_rng(0)
    array = rng.integers(1, 256, size=(64, 2, 4, 4)).astype(np.uint8)
    padded = np.pad(array, ((0, 0), (0, 0), (1, 1), (1, 1)))
    loader = loader_of(64, images=ArrayImages(array), batch_size=64, shuffle=True, crop_padding=1,
                       flip=True)  # fmt: skip
    (batch,) = loader
    seen = set()
    for image, row in zip(batch["image"].round().to(torch.uint8), batch["index"], strict=True):
        matches = [
            (top, left, flip)
            for top in range(3)
            for left in range(3)
            for flip in (1, -1)
            if np.array_equal(image, padded[row][:, top : top + 4, left : left + 4][:, :, ::flip])
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 12  # of 18


def test_no_augmentation_unless_asked():
    array = np.random.default_rng(0).integers(0, 256, size=(8, 1, 4, 4)).astype(np.uint8)
    (batch,) = loader_of(8, images=ArrayImages(array), batch_size=8, shuffle=True)
    np.testing.assert_allclose(batch["image"], array[batch["index"]], rtol=1e-5, atol=1e-4)
