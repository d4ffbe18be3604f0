"""What makes a training run the same one, so that it resumes only from a checkpoint of its own."""

from __future__ import annotations

import dataclasses

import torch

from clf_train.config import TrainConfig
from clf_train.data.loading import LoadedDataset
from clf_train.plan import TrainPlan
from clf_train.portable import portable_path


def identify(config: TrainConfig, plan: TrainPlan, loaded: LoadedDataset) -> dict[str, str]:
    """Return everything that the weights depend on, so that only the same training run resumes from a checkpoint."""
    dataset = loaded.dataset
    return {
        "--data": portable_path(config.source.data),
        "--seed": str(config.source.seed),
        "--weights": portable_path(str(plan.weights)),
        "--test-split": str(config.source.test_split),
        # Only those that are set, so that training which began before they existed resumes.
        **{f"--{name}": value for name, value in config.source.columns.to_dict().items()},
        "model": plan.architecture,
        "input": str(plan.preprocess),
        **{key.replace("_", " "): _format_choice(value) for key, value in dataclasses.asdict(plan.recipe).items()},
        "labels": ", ".join(dataset.labels),
        "training images": dataset.train.fingerprint(),
        "validation images": dataset.validation.fingerprint(),
        "test images": dataset.test.fingerprint(),
        "torch": str(torch.__version__),
    }


def _format_choice(value: object) -> str:
    """Return a text that is the same for 2 and 2.0."""
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
