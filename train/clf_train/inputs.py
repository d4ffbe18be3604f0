"""Everything that a training run needs before its first step: decoded images, and a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from clf_runtime import artifacts
from clf_train.callbacks import TrainCallbacks
from clf_train.config import TrainConfig, load_dataset
from clf_train.data.cache import PixelCache, choose_cache
from clf_train.data.dataset import FileImageSet, raise_if_unreadable
from clf_train.data.findings import DataFindings, analyze_dataset
from clf_train.data.loading import LoadedDataset, decode_dataset, raise_if_class_lost, write_unreadable
from clf_train.distributed import ProcessGroup
from clf_train.plan import TrainPlan, make_plan


@dataclass(frozen=True)
class Workplace:
    """Where a training run does its work."""

    folder: Path  # the artifacts folder
    staging: Path  # its content moves to the artifacts folder when everything is done
    device: torch.device
    group: ProcessGroup
    callbacks: TrainCallbacks


@dataclass(frozen=True)
class TrainInputs:
    """Everything that a training run needs before its first step."""

    plan: TrainPlan
    loaded: LoadedDataset
    summary: str  # for the user
    findings: DataFindings


def prepare_inputs(config: TrainConfig, workplace: Workplace) -> TrainInputs:
    """Find, check and decode the images, and decide how to train on them.

    Raises:
        DataError: the images cannot be used.
        MachineError, OSError: this machine cannot do it.
        UsageError: an option contradicts the model.
    """
    dataset = load_dataset(config.source)
    plan = make_plan(config, dataset, workplace.device.type == "cuda")
    group, callbacks = workplace.group, workplace.callbacks
    for warning in plan.warnings:
        callbacks.on_warning(warning)
    images = sum(map(len, dataset.splits))
    if config.cache == "auto":
        cache = choose_cache(images // group.size, plan.preprocess.shape, workplace.staging)
        if cache.kind == "none":
            callbacks.on_message(
                "the decoded images fit neither into memory nor on this disk, so they are decoded again for each epoch"
            )
    else:
        cache = PixelCache(config.cache, workplace.staging)
    callbacks.on_decode_start(
        sum(len(split) for split in dataset.splits if isinstance(split, FileImageSet)) // group.size
    )
    loaded = decode_dataset(dataset, plan.preprocess, cache, group, callbacks.on_decode)
    _report_unreadable(config, loaded, workplace)
    raise_if_class_lost(dataset, loaded.dataset)
    findings = analyze_dataset(loaded.dataset, loaded.facts, plan.preprocess)
    if isinstance(dataset.train, FileImageSet):
        callbacks.on_data(findings)
    for finding in findings.findings:
        callbacks.on_warning(finding.message)
    return TrainInputs(plan, loaded, _summarize(config, plan, loaded, workplace), findings)


def _report_unreadable(config: TrainConfig, loaded: LoadedDataset, workplace: Workplace) -> None:
    """List the unreadable images; raise DataError, or warn if they are to be skipped."""
    if not loaded.unreadable:
        return
    path = workplace.folder / artifacts.UNREADABLE
    images = sum(map(len, loaded.dataset.splits)) + len(loaded.unreadable)
    if not config.skip_unreadable:
        if workplace.group.is_main:
            write_unreadable(workplace.folder, loaded.unreadable, config.source.data)
        remedy = f"{path} lists all of them; repair or remove them, or leave them out with --skip-unreadable"
        raise_if_unreadable(loaded.unreadable, images, remedy)
    if workplace.group.is_main:
        # Moves to the folder together with the model.
        write_unreadable(workplace.staging, loaded.unreadable, config.source.data)
    workplace.callbacks.on_warning(
        f"{len(loaded.unreadable)} of {images:,} images cannot be read and are left out; {path} lists them"
    )


def _summarize(config: TrainConfig, plan: TrainPlan, loaded: LoadedDataset, workplace: Workplace) -> str:
    preprocess, dataset = plan.preprocess, loaded.dataset
    reason = f" ({plan.reason})" if plan.reason else ""
    processes = f", {workplace.group.size} processes" if workplace.group.size > 1 else ""
    return (
        f"{plan.architecture}{reason} on {config.source.data}: {len(dataset.train):,} training, "
        f"{len(dataset.validation):,} validation and {len(dataset.test):,} test images, {len(dataset.labels)} classes, "
        f"{preprocess.height}x{preprocess.width} {preprocess.color}, on {workplace.device.type}{processes}"
    )
