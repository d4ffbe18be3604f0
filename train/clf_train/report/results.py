"""Collect what the report is made from at the end of a training run."""

from __future__ import annotations

from clf_runtime.spec import ModelSpec
from clf_train.data.cache import ArrayPixels, LazyPixels, PixelStore, Shard
from clf_train.data.dataset import FileImageSet, ImageSet
from clf_train.data.facts import join_facts
from clf_train.data.loading import LoadedDataset
from clf_train.engine.evaluate import EvalResult, compute_probabilities
from clf_train.history import Epoch
from clf_train.report.analysis import RunResults
from clf_train.report.splits import LabeledSplits, SplitImages


def collect_results(spec: ModelSpec, history: list[Epoch], loaded: LoadedDataset, evaluation: EvalResult) -> RunResults:
    """Return the results on the test split, and the images of all splits."""
    dataset = loaded.dataset
    shards = (loaded.train, loaded.validation, loaded.test)
    splits = LabeledSplits(
        *(
            SplitImages(images.names, images.targets, _find_pixels(images, shard, spec))
            for images, shard in zip(dataset.splits, shards, strict=True)
        )
    )
    hashes = join_facts(loaded.facts).hashes  # of files only
    return RunResults(
        spec=spec,
        history=history,
        pixels=splits.test.pixels,
        targets=evaluation.targets,
        probabilities=compute_probabilities(evaluation.logits, evaluation.temperature),
        uncalibrated=evaluation.uncalibrated,
        unreadable_images=len(loaded.unreadable),
        names=dataset.test.names,
        splits=splits,
        hashes=hashes if len(hashes) == len(splits) else None,
    )


def _find_pixels(images: ImageSet, shard: Shard, spec: ModelSpec) -> PixelStore:
    """Return the pixels of a complete split; this process may have decoded only its share."""
    if len(shard) == len(images):
        return shard.pixels
    if isinstance(images, FileImageSet):
        return LazyPixels(images, spec.preprocess)
    return ArrayPixels(images.decode(spec.preprocess))
