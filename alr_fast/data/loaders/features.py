"""The loader of features: all rows are on the training device, a batch is a selection of them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from alr_fast.data.broken import BrokenSamples
from alr_fast.data.datasets import Split
from alr_fast.data.images.sources import FeatureRows
from alr_fast.data.loaders.base import Loader, SamplerT
from alr_fast.data.loaders.transform import Transform


class FeatureLoader(Loader[SamplerT]):
    """Batches of features, float32 [B, D] under the key ``image``; the model standardises them.

    They are float32 in every precision of training: only standardised values may be rounded.

    Args:
        split, sampler, transform, device, workers, broken: See `Loader`; features are neither
            cropped nor normalised.
    """

    def __init__(
        self,
        split: Split,
        sampler: SamplerT,
        transform: Transform,
        *,
        device: torch.device,
        workers: int = 1,
        broken: BrokenSamples | None = None,
    ) -> None:
        super().__init__(split, sampler, transform, device=device, workers=workers, broken=broken)
        if not isinstance(split.images, FeatureRows):
            raise ValueError("the samples of this split are images")
        self._rows = torch.from_numpy(split.images.features[sampler.rows]).to(device)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _, index in self.sampler.batches(self.epoch, self.start):
            rows = torch.from_numpy(index).to(self.device, non_blocking=True)
            yield self._batch(self._rows[rows].float(), index, {})
