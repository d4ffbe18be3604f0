"""From a data set to a finished artifacts folder: load, decode, fit, judge on held-out images, write."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from clf_runtime import artifacts, files
from clf_runtime.errors import DataError
from clf_runtime.spec import ModelSpec
from clf_train import distributed as distributed
from clf_train.config import TrainConfig, TrainPlan, load_dataset, make_plan
from clf_train.data.cache import ArrayPixels, LazyPixels, PixelStore, choose_cache
from clf_train.data.dataset import Dataset, FileImageSet, raise_if_unreadable
from clf_train.data.loading import LoadedDataset, list_unreadable, load, raise_if_class_lost
from clf_train.distributed import ProcessGroup
from clf_train.engine import checkpoint
from clf_train.engine.evaluate import EvalResult, Quality, compute_probabilities, evaluate
from clf_train.engine.signals import Interruption, defer_signals
from clf_train.engine.trainer import Trainer, device_for
from clf_train.history import Epoch, csv_from_history
from clf_train.models.saved import raise_if_finished, serialize_state_dict
from clf_train.models.weights import initial_model
from clf_train.provenance import provenance
from clf_train.report.preview import html_from_images
from clf_train.report.report import html_from_run
from clf_train.report.samples import write_samples
from clf_train.report.tensorboard import TensorBoardWriter

# Processes that train together agree on what only one of them knows (the time, Ctrl-C) so often: it costs 0.2 ms.
_STEPS_BETWEEN_AGREEMENTS = 16


class TrainCallbacks(Protocol):
    """Who is told how it goes."""

    def decoding(self, images: int) -> None: ...
    def decoded(self, images: int) -> None: ...
    def trainer(self, config: str, epochs: float, images: int, done: int) -> None: ...
    def stepped(self, images_done: int) -> None: ...
    def epoch(self, row: Epoch) -> None: ...
    def noticed(self, what: str) -> None: ...


@dataclass(frozen=True)
class TrainResult:
    """What came of a training."""

    spec: ModelSpec
    untempered: Quality  # on the reported images, without the temperature
    artifacts: Path


@dataclass(frozen=True)
class Work:
    """Where the work is done, and with whom."""

    folder: Path  # the artifacts'
    staging: Path  # what is written here becomes the folder's when all is done
    device: torch.device
    group: ProcessGroup
    callbacks: TrainCallbacks


@dataclass(frozen=True)
class Prepared:
    """All that is known before the first step."""

    plan: TrainPlan
    loaded: LoadedDataset
    summary: str


def train(config: TrainConfig, folder: Path, callbacks: TrainCallbacks) -> TrainResult:
    """Train and write a finished model.

    A checkpoint is kept after every epoch and every few minutes, from which `config.resume` goes on to the very
    weights that an undisturbed training gives; without it an unfinished training is only replaced where
    `config.overwrite` says so. Under torchrun all processes call this, and the first one writes.

    Raises:
        DataError: the images cannot be trained on, or something finished would be replaced.
        InvalidModelError, MachineError, OSError.
    """
    device = device_for(config.device)
    with distributed.join_process_group(device) as group:
        config = dataclasses.replace(config, resume=config.resume or distributed.was_restarted())
        if group.is_main:
            _refuse_loss(config, folder)
        with _place_to_work(folder, group) as staging:
            work = Work(folder, staging, device, group, callbacks)
            prepared = prepare(config, work)
            with TensorBoardWriter(folder, config.tensorboard and group.is_main, config.resume) as events:
                return _train(config, prepared, work, events)


def preview(config: TrainConfig, folder: Path, callbacks: TrainCallbacks) -> Path:
    """Check every image, and write a page that shows some with their labels, as they would be trained on.

    Nothing is trained, and nothing replaced but an earlier preview. Raises DataError, MachineError, OSError.
    """
    with files.atomic_folder(folder, last=artifacts.PREVIEW, obsolete=()) as staging:
        prepared = prepare(
            config, Work(folder, staging, device_for(config.device), distributed.SINGLE_PROCESS, callbacks)
        )
        plan, loaded = prepared.plan, prepared.loaded
        page = html_from_images(config, plan, loaded.dataset, loaded.train.pixels, prepared.summary)
        (staging / artifacts.PREVIEW).write_bytes(page.encode("utf-8", "replace"))
    return folder / artifacts.PREVIEW


def prepare(config: TrainConfig, work: Work) -> Prepared:
    """Find, check and decode the images, and decide how to train on them. Raises DataError, MachineError."""
    dataset = load_dataset(config)
    plan = make_plan(config, dataset)
    preprocess, group = plan.preprocess, work.group
    parts = (dataset.train, dataset.validation, dataset.test)
    images = sum(map(len, parts))
    place = (
        choose_cache(images // group.size, preprocess.shape, work.staging) if config.cache == "auto" else config.cache
    )
    work.callbacks.decoding(sum(len(part) for part in parts if isinstance(part, FileImageSet)) // group.size)
    loaded = load(dataset, preprocess, place, work.staging, group, work.callbacks.decoded)
    _tell_unreadable(config, loaded, work, images)
    raise_if_class_lost(dataset, loaded.dataset)
    repeated = loaded.dataset.repeated()
    if repeated:
        work.callbacks.noticed(
            f"{len(repeated)} of {len(dataset.test):,} held-out images are among those trained on too "
            f"({repeated[0]}, say): the accuracy will look better than it is"
        )
    return Prepared(plan, loaded, _summary(config, plan, loaded.dataset, work.device, group))


def _refuse_loss(config: TrainConfig, folder: Path) -> None:
    """Refuse to replace what was not said to be replaced."""
    unfinished = checkpoint.exists(folder)
    raise_if_finished(folder, config.overwrite or (config.resume and unfinished))
    if unfinished and not (config.overwrite or config.resume):
        raise DataError(f"{folder}: has an unfinished training; --resume goes on with it, --overwrite starts anew")


@contextlib.contextmanager
def _place_to_work(folder: Path, group: ProcessGroup) -> Iterator[Path]:
    """Give the first process the folder that becomes the artifacts, and the others one that is there."""
    if not group.is_main:
        yield next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
        return
    # Before the work, not after it: a folder that cannot be written to.
    obsolete = (*artifacts.DERIVED, *artifacts.UNFINISHED, artifacts.UNREADABLE)
    with files.atomic_folder(folder, last=artifacts.SPEC, obsolete=obsolete) as staging:
        yield staging


def _tell_unreadable(config: TrainConfig, loaded: LoadedDataset, work: Work, images: int) -> None:
    """List what cannot be read, and refuse it, or say that it is left out."""
    if not loaded.unreadable:
        return
    path = work.folder / artifacts.UNREADABLE
    if not config.skip_unreadable:
        if work.group.is_main:
            list_unreadable(work.folder, loaded.unreadable)
        remedy = f"all are listed in {path}; mend or remove them, or leave them out by --skip-unreadable"
        raise_if_unreadable(loaded.unreadable, images, remedy)
    if work.group.is_main:
        list_unreadable(work.staging, loaded.unreadable)  # it becomes the folder's with the model that it is of
    work.callbacks.noticed(f"{len(loaded.unreadable)} of {images:,} images cannot be read and are left out: {path}")


def _train(config: TrainConfig, prepared: Prepared, work: Work, events: TensorBoardWriter) -> TrainResult:
    plan, loaded, callbacks, group = prepared.plan, prepared.loaded, work.callbacks, work.group
    preprocess, normalize, dataset = plan.preprocess, plan.normalize, loaded.dataset
    torch.manual_seed(config.seed)
    model = initial_model(plan.architecture, config.weights, preprocess.shape, len(dataset.labels))
    parts = (loaded.train, loaded.validation)
    trainer = Trainer(model, *parts, plan.recipe, normalize, seed=config.seed, device=work.device, group=group)
    checkpoints = Checkpoints(trainer, work.folder, _identity(config, plan, dataset), config.checkpoint_every, group)
    if config.resume:
        checkpoints.go_on(callbacks)
    elif group.is_main:
        checkpoint.discard(work.folder)
    callbacks.trainer(prepared.summary, plan.recipe.epochs, trainer.images, trainer.images_done)
    with defer_signals() as interruption:
        while not trainer.done:
            row = trainer.step()
            callbacks.stepped(trainer.images_done)
            if row is not None:
                callbacks.epoch(row)
                events.epoch(row)
            checkpoints.stepped(ended=row is not None, interruption=interruption)
    evaluation = evaluate(model, loaded.validation, loaded.test, normalize, work.device, group)
    events.evaluation(evaluation, len(trainer.history))
    weights = serialize_state_dict(model)
    spec = ModelSpec(
        architecture=plan.architecture,
        labels=dataset.labels,
        preprocess=preprocess,
        normalize=normalize,
        temperature=evaluation.temperature,
        metrics=evaluation.metrics(dataset.test_name),
        provenance=provenance(config, dataset, plan.recipe.epochs, weights),
    )
    if group.is_main:
        _write(work.staging, spec, weights, trainer.history, loaded, evaluation)
    return TrainResult(spec, evaluation.untempered, work.folder)


class Checkpoints:
    """When a training's state is kept, and where it goes on from."""

    def __init__(
        self, trainer: Trainer, folder: Path, identity: Mapping[str, str], every_s: float, group: ProcessGroup
    ) -> None:
        """`every_s` is the most that is lost of an epoch that takes longer than that."""
        self._fitting = trainer
        self._folder = folder
        self._identity = identity
        self._every_s = every_s
        self._team = group
        self._saved = time.monotonic()
        self._steps = 0

    def stepped(self, *, ended: bool, interruption: Interruption) -> None:
        """After a step: keep the state when it is time, and end here if that was asked for. Raises OSError."""
        self._steps += 1
        asked = due = False
        if self._team.size == 1 or self._steps % _STEPS_BETWEEN_AGREEMENTS == 0:
            late = time.monotonic() - self._saved >= self._every_s
            asked, due = (any(each) for each in zip(*self._team.all_gather((interruption.asked, late)), strict=True))
        if ended or due or asked:
            state = self._fitting.state()
            if self._team.is_main:
                checkpoint.save(self._folder, state, self._identity)
            self._saved = time.monotonic()
        if asked and not self._fitting.done:
            done = self._fitting.images_done / self._fitting.images
            interruption.end(f"--resume goes on from here, with {done:.0%} of the training done")

    def go_on(self, callbacks: TrainCallbacks) -> None:
        """Take up the newest state that is whole. Raises DataError where it is of another training."""
        state: Mapping[str, Any] | None = None
        if self._team.is_main:
            state = checkpoint.newest(self._folder, self._identity, callbacks.noticed)
        state = self._team.broadcast(state)
        if state is None:
            callbacks.noticed("there is no checkpoint to go on from; starting from the beginning")
            return
        self._fitting.restore(state)
        callbacks.noticed(f"going on with {self._fitting.images_done / self._fitting.images:.0%} of the training done")


def _identity(config: TrainConfig, plan: TrainPlan, dataset: Dataset) -> dict[str, str]:
    """Name all that the weights depend on, so that a checkpoint of something else is not gone on with."""
    return {
        "--data": config.data,
        "--seed": str(config.seed),
        "--weights": str(config.weights),
        "--test-split": str(config.test_split),
        "model": plan.architecture,
        "input": str(plan.preprocess),
        **{key.replace("_", " "): str(value) for key, value in dataclasses.asdict(plan.recipe).items()},
        "labels": ", ".join(dataset.labels),
        "training images": dataset.train.fingerprint(),
        "validation images": dataset.validation.fingerprint(),
        "held-out images": dataset.test.fingerprint(),
        "torch": str(torch.__version__),
    }


def _summary(config: TrainConfig, plan: TrainPlan, dataset: Dataset, device: torch.device, group: ProcessGroup) -> str:
    preprocess = plan.preprocess
    reason = f" ({plan.reason})" if plan.reason else ""
    processes = f", {group.size} processes" if group.size > 1 else ""
    return (
        f"{plan.architecture}{reason} on {config.data}: {len(dataset.train):,} images to train on, "
        f"{len(dataset.validation):,} for validation, {len(dataset.test):,} held out, {len(dataset.labels)} classes, "
        f"{preprocess.height}x{preprocess.width} {preprocess.color}, on {device.type}{processes}"
    )


def _write(
    staging: Path, spec: ModelSpec, weights: bytes, history: list[Epoch], loaded: LoadedDataset, evaluation: EvalResult
) -> None:
    page = html_from_run(
        spec,
        history,
        _all_held_out(loaded, spec),
        evaluation.targets,
        compute_probabilities(evaluation.logits, evaluation.temperature),
        untempered=evaluation.untempered,
        left_out=len(loaded.unreadable),
    )
    (staging / artifacts.STATE_DICT).write_bytes(weights)
    (staging / artifacts.HISTORY).write_text(csv_from_history(history), encoding="utf-8", newline="\n")
    (staging / artifacts.REPORT).write_text(page, encoding="utf-8")
    (staging / artifacts.SPEC).write_text(spec.to_json() + "\n", encoding="utf-8")
    write_samples(staging / artifacts.SAMPLES, loaded.dataset.test, spec)


def _all_held_out(loaded: LoadedDataset, spec: ModelSpec) -> PixelStore:
    images = loaded.dataset.test
    if len(loaded.test) == len(images):
        return loaded.test.pixels
    if isinstance(images, FileImageSet):
        return LazyPixels(images, spec.preprocess)
    return ArrayPixels(images.decoded(spec.preprocess))
