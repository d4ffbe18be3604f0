"""What the frozen blocks compute for a few fixed views of each image: once, instead of in every epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from clf_runtime.machine import usable_memory
from clf_train.data.augment import augment, choose_view, draw_epoch
from clf_train.data.cache import Shard
from clf_train.data.loading import LoadedDataset
from clf_train.engine.budget import MAX_VIEWS
from clf_train.engine.calibration import Float32Array
from clf_train.engine.evaluate import Predictor, standardize
from clf_train.models.efficientnet_lite import EfficientNetLite
from clf_train.models.transfer import FeatureExtractor, FrozenBlocks
from clf_train.recipe import LAST_BLOCK, Recipe

_BATCH = 16  # the same in each run, so that resumed training sees the same bits
_MEMORY_SHARE = 0.25


class FixedViews:
    """The input of the last block for this process's share of the images.

    View 0 is the image as it is; the others are augmented. Which of them an epoch takes is drawn.
    """

    def __init__(self, train: Tensor, validation: Tensor, test: Tensor) -> None:
        """Keep view 0 of each split, (n, C, H, W): float16 to train on, float32 to evaluate."""
        self._train = [train]
        self._validation = validation
        self._test = test

    def add(self, model: EfficientNetLite, shard: Shard, predictor: Predictor, recipe: Recipe, seed: int) -> None:
        """Compute the other views of the training images.

        Args:
            model: the network.
            shard: this process's share of the training split.
            predictor: how to run a network; its own network is ignored.
            recipe: how many views, and their augmentation.
            seed: of the augmentation.
        """
        frozen = FrozenBlocks(model, LAST_BLOCK).to(predictor.device)
        for view in range(1, recipe.views):
            _, draws = draw_epoch(seed, view, shard.total)
            own = draws[torch.from_numpy(shard.indices)].to(predictor.device)
            activations = []
            batches = zip(_load_batches(shard, predictor.device), torch.split(own, _BATCH), strict=True)
            for images, batch_draws in batches:
                augmented = augment(images, batch_draws, recipe)
                activations.append(frozen(standardize(augmented, predictor.normalize)).half())
                predictor.on_batch(len(images))
            self._train.append(torch.cat(activations))

    def select(self, rows: Tensor, draws: Tensor) -> Tensor:
        """Return one view of each training image, float32 (n, C, H, W).

        Args:
            rows: the places of the images in this process's share (n,).
            draws: what was drawn for them in this epoch, float32 (n, 10).
        """
        chosen = choose_view(draws, len(self._train)).tolist()
        return torch.stack([self._train[view][row] for view, row in zip(chosen, rows.tolist(), strict=True)]).float()

    def classify_validation(self, trained: nn.Module) -> Float32Array | None:
        """Return the logits (n, classes) of the validation images, in this process's order; None without images."""
        return _classify(trained, self._validation)

    def classify_test(self, trained: nn.Module) -> Float32Array | None:
        """Return the logits (n, classes) of the test images, in this process's order; None without images."""
        return _classify(trained, self._test)


class ViewRecorder(nn.Module):
    """A feature extractor that keeps the input of the last block: view 0 of the images that pass through it."""

    def __init__(self, model: EfficientNetLite) -> None:
        """Copy a network for inference, in two parts."""
        super().__init__()
        self._frozen = FrozenBlocks(model, LAST_BLOCK)
        self._rest = FeatureExtractor(model, LAST_BLOCK)
        self._recorded: list[Tensor] = []
        self.dtype = torch.float16  # of what is kept

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to features (N, D)."""
        activations = self._frozen(images)
        self._recorded.append(activations.to(self.dtype))
        features: Tensor = self._rest(activations)
        return features

    def take(self) -> Tensor:
        """Return what was recorded since the last call, (n, C, H, W)."""
        recorded, self._recorded = self._recorded, []
        return torch.cat(recorded) if recorded else torch.empty(0, 0, 0, 0)


def create_recorder(model: EfficientNetLite, loaded: LoadedDataset, predictor: Predictor) -> ViewRecorder | None:
    """Return a feature extractor that keeps view 0; None if a process has no memory for all views. A collective."""
    recorder = ViewRecorder(model).to(predictor.device)
    height, width, channels = loaded.train.pixels.shape
    recorder(torch.zeros(1, channels, height, width, device=predictor.device))
    evaluated = len(loaded.validation) + len(loaded.test)
    size_bytes = recorder.take().nbytes * (MAX_VIEWS * len(loaded.train) + 2 * evaluated)
    fits = size_bytes <= _MEMORY_SHARE * usable_memory()
    return recorder if all(predictor.group.all_gather(fits)) else None


def _classify(trained: nn.Module, view: Tensor) -> Float32Array | None:
    trained.eval()
    with torch.inference_mode():
        logits = [trained(batch) for batch in torch.split(view, _BATCH)]
    return torch.cat(logits).cpu().numpy() if len(view) else None


def _load_batches(shard: Shard, device: torch.device) -> Iterator[Tensor]:
    """Yield all images in their order, float32 (n, C, H, W) in 0..1."""
    places = (np.arange(start, min(start + _BATCH, len(shard))) for start in range(0, len(shard), _BATCH))
    for pixels in shard.pixels.batches(places):
        yield torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div(255)
