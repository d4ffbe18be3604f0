"""From a data set to a finished artifacts folder: load, decode, fit, judge on held-out pictures, write."""

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
from clf_runtime.errors import DataRefused
from clf_runtime.spec import ModelSpec
from clf_train import checkpoint
from clf_train import team as teams
from clf_train.dataset import Dataset, FilePictures, refuse_unreadable
from clf_train.evaluate import Judgement, Quality, judged, probabilities_of
from clf_train.events import Events
from clf_train.fit import Fitting, device_for
from clf_train.history import Epoch, csv_from_history
from clf_train.interruption import Interruption, postponed
from clf_train.loading import Loaded, list_unreadable, load, refuse_emptied
from clf_train.order import Order, Plan, dataset_for, plan_for
from clf_train.pixels import DecodedAnew, HeldPixels, Pixels, place_for
from clf_train.preview import html_from_pictures
from clf_train.provenance import provenance
from clf_train.report import html_from_run
from clf_train.samples import write_samples
from clf_train.team import Team
from clf_train.trained import refuse_finished, state_dict_bytes
from clf_train.weights import starting_point

# Processes that train together agree on what only one of them knows (the time, Ctrl-C) so often: it costs 0.2 ms.
_STEPS_BETWEEN_AGREEMENTS = 16


class Watch(Protocol):
    """Who is told how it goes."""

    def decoding(self, pictures: int) -> None: ...
    def decoded(self, pictures: int) -> None: ...
    def fitting(self, order: str, epochs: float, pictures: int, done: int) -> None: ...
    def stepped(self, pictures_done: int) -> None: ...
    def epoch(self, row: Epoch) -> None: ...
    def noticed(self, what: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What came of a training."""

    spec: ModelSpec
    untempered: Quality  # on the reported pictures, without the temperature
    artifacts: Path


@dataclass(frozen=True)
class Work:
    """Where the work is done, and with whom."""

    folder: Path  # the artifacts'
    staging: Path  # what is written here becomes the folder's when all is done
    device: torch.device
    team: Team
    watch: Watch


@dataclass(frozen=True)
class Prepared:
    """All that is known before the first step."""

    plan: Plan
    loaded: Loaded
    summary: str


def train(order: Order, folder: Path, watch: Watch) -> Outcome:
    """Train and write a finished model.

    A checkpoint is kept after every epoch and every few minutes, from which `order.resume` goes on to the very
    weights that an undisturbed training gives; without it an unfinished training is only replaced where
    `order.overwrite` says so. Under torchrun all processes call this, and the first one writes.

    Raises:
        DataRefused: the pictures cannot be trained on, or something finished would be replaced.
        ModelRefused, MachineUnable, OSError.
    """
    device = device_for(order.device)
    with teams.joined(device) as team:
        order = dataclasses.replace(order, resume=order.resume or teams.was_started_again())
        if team.is_first:
            _refuse_loss(order, folder)
        with _place_to_work(folder, team) as staging:
            work = Work(folder, staging, device, team, watch)
            prepared = prepare(order, work)
            with Events(folder, order.tensorboard and team.is_first, order.resume) as events:
                return _train(order, prepared, work, events)


def preview(order: Order, folder: Path, watch: Watch) -> Path:
    """Check every picture, and write a page that shows some with their labels, as they would be trained on.

    Nothing is trained, and nothing replaced but an earlier preview. Raises DataRefused, MachineUnable, OSError.
    """
    with files.folder_or_absent(folder, last=artifacts.PREVIEW, obsolete=()) as staging:
        prepared = prepare(order, Work(folder, staging, device_for(order.device), teams.ALONE, watch))
        plan, loaded = prepared.plan, prepared.loaded
        page = html_from_pictures(order, plan, loaded.dataset, loaded.train.pixels, prepared.summary)
        (staging / artifacts.PREVIEW).write_bytes(page.encode("utf-8", "replace"))
    return folder / artifacts.PREVIEW


def prepare(order: Order, work: Work) -> Prepared:
    """Find, check and decode the pictures, and decide how to train on them. Raises DataRefused, MachineUnable."""
    dataset = dataset_for(order)
    plan = plan_for(order, dataset)
    how, team = plan.preprocess, work.team
    parts = (dataset.train, dataset.validation, dataset.test)
    pictures = sum(map(len, parts))
    place = place_for(pictures // team.size, how.shape, work.staging) if order.cache == "auto" else order.cache
    work.watch.decoding(sum(len(part) for part in parts if isinstance(part, FilePictures)) // team.size)
    loaded = load(dataset, how, place, work.staging, team, work.watch.decoded)
    _tell_unreadable(order, loaded, work, pictures)
    refuse_emptied(dataset, loaded.dataset)
    repeated = loaded.dataset.repeated()
    if repeated:
        work.watch.noticed(
            f"{len(repeated)} of {len(dataset.test):,} held-out pictures are among those trained on too "
            f"({repeated[0]}, say): the accuracy will look better than it is"
        )
    return Prepared(plan, loaded, _summary(order, plan, loaded.dataset, work.device, team))


def _refuse_loss(order: Order, folder: Path) -> None:
    """Refuse to replace what was not said to be replaced."""
    unfinished = checkpoint.exists(folder)
    refuse_finished(folder, order.overwrite or (order.resume and unfinished))
    if unfinished and not (order.overwrite or order.resume):
        raise DataRefused(f"{folder}: has an unfinished training; --resume goes on with it, --overwrite starts anew")


@contextlib.contextmanager
def _place_to_work(folder: Path, team: Team) -> Iterator[Path]:
    """Give the first process the folder that becomes the artifacts, and the others one that is there."""
    if not team.is_first:
        yield next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
        return
    # Before the work, not after it: a folder that cannot be written to.
    obsolete = (*artifacts.DERIVED, *artifacts.UNFINISHED, artifacts.UNREADABLE)
    with files.folder_or_absent(folder, last=artifacts.SPEC, obsolete=obsolete) as staging:
        yield staging


def _tell_unreadable(order: Order, loaded: Loaded, work: Work, pictures: int) -> None:
    """List what cannot be read, and refuse it, or say that it is left out."""
    if not loaded.unreadable:
        return
    path = work.folder / artifacts.UNREADABLE
    if not order.skip_bad:
        if work.team.is_first:
            list_unreadable(work.folder, loaded.unreadable)
        remedy = f"all are listed in {path}; mend or remove them, or leave them out by --skip-bad"
        refuse_unreadable(loaded.unreadable, pictures, remedy)
    if work.team.is_first:
        list_unreadable(work.staging, loaded.unreadable)  # it becomes the folder's with the model that it is of
    work.watch.noticed(f"{len(loaded.unreadable)} of {pictures:,} pictures cannot be read and are left out: {path}")


def _train(order: Order, prepared: Prepared, work: Work, events: Events) -> Outcome:
    plan, loaded, watch, team = prepared.plan, prepared.loaded, work.watch, work.team
    how, normalize, dataset = plan.preprocess, plan.normalize, loaded.dataset
    torch.manual_seed(order.seed)
    model = starting_point(plan.architecture, order.weights, how.shape, len(dataset.labels))
    parts = (loaded.train, loaded.validation)
    fitting = Fitting(model, *parts, plan.recipe, normalize, seed=order.seed, device=work.device, team=team)
    checkpoints = Checkpoints(fitting, work.folder, _identity(order, plan, dataset), order.checkpoint_every, team)
    if order.resume:
        checkpoints.go_on(watch)
    elif team.is_first:
        checkpoint.discard(work.folder)
    watch.fitting(prepared.summary, plan.recipe.epochs, fitting.pictures, fitting.pictures_done)
    with postponed() as interruption:
        while not fitting.done:
            row = fitting.step()
            watch.stepped(fitting.pictures_done)
            if row is not None:
                watch.epoch(row)
                events.epoch(row)
            checkpoints.stepped(ended=row is not None, interruption=interruption)
    judgement = judged(model, loaded.validation, loaded.test, normalize, work.device, team)
    events.judged(judgement, len(fitting.history))
    weights = state_dict_bytes(model)
    spec = ModelSpec(
        architecture=plan.architecture,
        labels=dataset.labels,
        preprocess=how,
        normalize=normalize,
        temperature=judgement.temperature,
        metrics=judgement.metrics(dataset.test_name),
        provenance=provenance(order, dataset, plan.recipe.epochs, weights),
    )
    if team.is_first:
        _write(work.staging, spec, weights, fitting.history, loaded, judgement)
    return Outcome(spec, judgement.untempered, work.folder)


class Checkpoints:
    """When a training's state is kept, and where it goes on from."""

    def __init__(self, fitting: Fitting, folder: Path, identity: Mapping[str, str], every_s: float, team: Team) -> None:
        """`every_s` is the most that is lost of an epoch that takes longer than that."""
        self._fitting = fitting
        self._folder = folder
        self._identity = identity
        self._every_s = every_s
        self._team = team
        self._saved = time.monotonic()
        self._steps = 0

    def stepped(self, *, ended: bool, interruption: Interruption) -> None:
        """After a step: keep the state when it is time, and end here if that was asked for. Raises OSError."""
        self._steps += 1
        asked = due = False
        if self._team.size == 1 or self._steps % _STEPS_BETWEEN_AGREEMENTS == 0:
            late = time.monotonic() - self._saved >= self._every_s
            asked, due = (any(each) for each in zip(*self._team.gathered((interruption.asked, late)), strict=True))
        if ended or due or asked:
            state = self._fitting.state()
            if self._team.is_first:
                checkpoint.save(self._folder, state, self._identity)
            self._saved = time.monotonic()
        if asked and not self._fitting.done:
            done = self._fitting.pictures_done / self._fitting.pictures
            interruption.end(f"--resume goes on from here, with {done:.0%} of the training done")

    def go_on(self, watch: Watch) -> None:
        """Take up the newest state that is whole. Raises DataRefused where it is of another training."""
        state: Mapping[str, Any] | None = None
        if self._team.is_first:
            state = checkpoint.newest(self._folder, self._identity, watch.noticed)
        state = self._team.of_first(state)
        if state is None:
            watch.noticed("there is no checkpoint to go on from; starting from the beginning")
            return
        self._fitting.restore(state)
        watch.noticed(f"going on with {self._fitting.pictures_done / self._fitting.pictures:.0%} of the training done")


def _identity(order: Order, plan: Plan, dataset: Dataset) -> dict[str, str]:
    """Name all that the weights depend on, so that a checkpoint of something else is not gone on with."""
    return {
        "--data": order.data,
        "--seed": str(order.seed),
        "--weights": str(order.weights),
        "--held-out": str(order.held_out),
        "model": plan.architecture,
        "input": str(plan.preprocess),
        **{key.replace("_", " "): str(value) for key, value in dataclasses.asdict(plan.recipe).items()},
        "labels": ", ".join(dataset.labels),
        "training pictures": dataset.train.fingerprint(),
        "validation pictures": dataset.validation.fingerprint(),
        "held-out pictures": dataset.test.fingerprint(),
        "torch": str(torch.__version__),
    }


def _summary(order: Order, plan: Plan, dataset: Dataset, device: torch.device, team: Team) -> str:
    how = plan.preprocess
    reason = f" ({plan.reason})" if plan.reason else ""
    processes = f", {team.size} processes" if team.size > 1 else ""
    return (
        f"{plan.architecture}{reason} on {order.data}: {len(dataset.train):,} pictures to train on, "
        f"{len(dataset.validation):,} for validation, {len(dataset.test):,} held out, {len(dataset.labels)} classes, "
        f"{how.height}x{how.width} {how.color}, on {device.type}{processes}"
    )


def _write(
    staging: Path, spec: ModelSpec, weights: bytes, history: list[Epoch], loaded: Loaded, judgement: Judgement
) -> None:
    page = html_from_run(
        spec,
        history,
        _all_held_out(loaded, spec),
        judgement.targets,
        probabilities_of(judgement.logits, judgement.temperature),
        untempered=judgement.untempered,
        left_out=len(loaded.unreadable),
    )
    (staging / artifacts.STATE_DICT).write_bytes(weights)
    (staging / artifacts.HISTORY).write_text(csv_from_history(history), encoding="utf-8", newline="\n")
    (staging / artifacts.REPORT).write_text(page, encoding="utf-8")
    (staging / artifacts.SPEC).write_text(spec.to_json() + "\n", encoding="utf-8")
    write_samples(staging / artifacts.SAMPLES, loaded.dataset.test, spec)


def _all_held_out(loaded: Loaded, spec: ModelSpec) -> Pixels:
    pictures = loaded.dataset.test
    if len(loaded.test) == len(pictures):
        return loaded.test.pixels
    if isinstance(pictures, FilePictures):
        return DecodedAnew(pictures, spec.preprocess)
    return HeldPixels(pictures.decoded(spec.preprocess))
