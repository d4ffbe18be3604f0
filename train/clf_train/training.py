"""From a data set to a finished artifacts folder: decode, train, evaluate on the test split, write."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from clf_runtime import artifacts, folders
from clf_runtime.errors import DataError
from clf_runtime.folders import ReplacementPlan
from clf_runtime.progress import format_duration
from clf_runtime.spec import Metrics, ModelSpec
from clf_train import distributed, torchrun
from clf_train.callbacks import TrainCallbacks
from clf_train.config import TrainConfig
from clf_train.data.loading import LoadedDataset
from clf_train.distributed import ProcessGroup
from clf_train.engine.budget import ViewPace, fit_to_budget, restore_recipe
from clf_train.engine.checkpoint import (
    CheckpointSchedule,
    CheckpointStore,
    discard_checkpoints,
    has_checkpoint,
    read_identity,
)
from clf_train.engine.collapse import CollapseMonitor
from clf_train.engine.device import select_device
from clf_train.engine.evaluate import EvalResult, Predictor, evaluate, evaluate_logits, gather_shards
from clf_train.engine.latency import estimate_latency
from clf_train.engine.signals import defer_signals
from clf_train.engine.trainer import Pace, Trainer, TrainerOptions
from clf_train.engine.transfer import ProbeStart, start_from_probe
from clf_train.engine.views import FixedViews
from clf_train.history import csv_from_history
from clf_train.identity import identify
from clf_train.inputs import TrainInputs, Workplace, prepare_inputs
from clf_train.models.efficientnet_lite import EfficientNetLite
from clf_train.models.fit import raise_if_input_does_not_fit
from clf_train.models.saved import raise_if_finished, serialize_state_dict
from clf_train.models.transfer import TrainedBlocks, copy_for_evaluation
from clf_train.models.weights import create_model
from clf_train.plan import TrainPlan
from clf_train.provenance import record_provenance
from clf_train.recipe import LAST_BLOCK, train_last_block
from clf_train.report.analysis import RunResults
from clf_train.report.preview import html_from_images
from clf_train.report.results import collect_results
from clf_train.report.samples import write_samples
from clf_train.report.tensorboard import TensorBoardWriter
from clf_train.report.writing import write_report

# The report and its analysis of the data, which a budget includes: 8 s for 3,409 photos on 2 cores.
_REPORT_S, _REPORT_S_PER_IMAGE = 2.0, 0.0018


@dataclass(frozen=True)
class TrainResult:
    """A finished training run."""

    spec: ModelSpec
    uncalibrated: Metrics  # on the test split, without the temperature
    artifacts: Path
    warnings: tuple[str, ...] = ()  # what is wrong with the training
    latency_ms: float | None = None  # expected of the exported model on this machine; None if it cannot be estimated


def train(config: TrainConfig, folder: Path, callbacks: TrainCallbacks) -> TrainResult:
    """Train a network and write a finished model.

    A checkpoint is written after every epoch and every `config.checkpoint_every_s` seconds. `config.resume` continues
    from it, to exactly the weights of uninterrupted training; without it, unfinished training is only replaced with
    `config.overwrite`. Under torchrun every process calls this function, and the main one writes.

    Raises:
        DataError: the images cannot be used, or the folder has a model or unfinished training.
        InvalidModelError: the weights to start from do not fit, or the training diverges.
        MachineError, OSError: this machine cannot do it.
        UsageError: an option contradicts the model.
        KeyboardInterrupt, SystemExit: interrupted; a checkpoint is written.
    """
    device = select_device(config.device)
    with distributed.join_process_group(device) as group:
        config = dataclasses.replace(config, resume=config.resume or torchrun.get_restart_count() > 0)
        with _open_staging(config, folder, group) as staging:
            workplace = Workplace(folder, staging, device, group, callbacks)
            inputs = prepare_inputs(config, workplace)
            with TensorBoardWriter(folder, config.tensorboard and group.is_main, config.resume) as tensorboard:
                return _train(config, inputs, workplace, tensorboard)


def preview(config: TrainConfig, folder: Path, callbacks: TrainCallbacks) -> Path:
    """Decode every image and write a page that shows some training images with their labels; train nothing.

    Raises:
        DataError: the images cannot be used.
        MachineError, OSError: this machine cannot do it.
        UsageError: an option contradicts the model.
    """
    device = select_device(config.device)
    plan = ReplacementPlan(last=artifacts.PREVIEW)
    with folders.locked_folder(folder, "clf-train --preview"), folders.atomic_folder(folder, plan) as staging:
        workplace = Workplace(folder, staging, device, distributed.SINGLE_PROCESS, callbacks)
        page = html_from_images(prepare_inputs(config, workplace), config.source.seed)
        (staging / artifacts.PREVIEW).write_bytes(page.encode("utf-8", "backslashreplace"))
    return folder / artifacts.PREVIEW


def _raise_if_replaced(config: TrainConfig, folder: Path) -> None:
    """Raise DataError if training would replace something that the user did not allow it to replace."""
    is_unfinished = has_checkpoint(folder)
    raise_if_finished(folder, config.overwrite or (config.resume and is_unfinished))
    if is_unfinished and not (config.overwrite or config.resume):
        raise DataError(f"{folder}: has unfinished training; --resume continues it, --overwrite starts over")


@contextlib.contextmanager
def _open_staging(config: TrainConfig, folder: Path, group: ProcessGroup) -> Iterator[Path]:
    """Yield the staging folder to the main process; to the others, the nearest folder that exists.

    Raises DataError if training would replace something that the user did not allow it to replace.
    """
    if not group.is_main:
        yield next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        return
    # Before the work, so that a folder without write permission fails at once.
    obsolete = (*artifacts.DERIVED, artifacts.UNREADABLE, artifacts.LABEL_ISSUES)
    plan = ReplacementPlan(artifacts.SPEC, obsolete, leftovers=artifacts.UNFINISHED)
    with folders.locked_folder(folder, "clf-train"):
        _raise_if_replaced(config, folder)
        with folders.atomic_folder(folder, plan) as staging:
            yield staging


def _train(
    config: TrainConfig, inputs: TrainInputs, workplace: Workplace, tensorboard: TensorBoardWriter
) -> TrainResult:
    loaded = inputs.loaded
    model, start = _start(config, inputs, workplace)
    plan, pace = _fit_plan(config, inputs, workplace, model, start)
    inputs = dataclasses.replace(inputs, plan=plan)
    if start is not None:
        start.prepare_fine_tuning(model, plan.recipe)
    views = _compute_views(config, inputs, workplace, model, start)
    trainer = _create_trainer(config, inputs, workplace, model, views)
    pace = pace or _measure_pace(trainer, loaded, start)
    warnings = _run(config, inputs, workplace, trainer, pace, tensorboard)
    if start is not None:
        start.keep_better(model, trainer.history, workplace.callbacks.on_message)
    evaluation = _evaluate(inputs, workplace, model, views)
    tensorboard.write_evaluation(evaluation, len(trainer.history))
    weights = serialize_state_dict(model)
    spec = ModelSpec(
        architecture=plan.architecture,
        labels=loaded.dataset.labels,
        preprocess=plan.preprocess,
        normalize=plan.normalize,
        temperature=evaluation.temperature,
        metrics=evaluation.metrics,
        provenance=record_provenance(config.source, loaded.dataset, weights, plan.recipe.epochs, config.command),
    )
    if workplace.group.is_main:
        _write_model(workplace.staging, spec, weights, loaded)
        results = collect_results(spec, trainer.history, loaded, evaluation)
        results = dataclasses.replace(
            results,
            features=None if start is None else start.features,
            findings=tuple(finding.message for finding in inputs.findings.findings),
            warnings=warnings,
        )
        _write_report(workplace.staging, results)
    latency_ms = estimate_latency(model, plan.preprocess) if workplace.group.is_main else None
    return TrainResult(spec, evaluation.uncalibrated, workplace.folder, warnings, latency_ms)


def _start(config: TrainConfig, inputs: TrainInputs, workplace: Workplace) -> tuple[nn.Module, ProbeStart | None]:
    """Build the network; fit a linear probe of a pretrained one that is trained in part."""
    plan, loaded, callbacks = inputs.plan, inputs.loaded, workplace.callbacks
    callbacks.on_message(inputs.summary)
    torch.manual_seed(config.source.seed)
    model = create_model(plan.architecture, plan.weights, plan.preprocess.shape, len(loaded.dataset.labels))
    raise_if_input_does_not_fit(model, plan.architecture, plan.preprocess, len(loaded.dataset.labels))
    if plan.recipe.first_block is None:
        return model, None
    assert isinstance(model, EfficientNetLite)
    callbacks.on_features_start(sum(map(len, (loaded.train, loaded.validation, loaded.test))))
    model.to(workplace.device)
    predictor = Predictor(model, plan.normalize, workplace.device, workplace.group, callbacks.on_features)
    # On a GPU, an epoch of all blocks takes seconds.
    keeps_views = config.budget_s is not None and workplace.device.type == "cpu"
    start = start_from_probe(model, loaded, predictor, keeps_views=keeps_views)
    callbacks.on_message(start.describe())
    return model, start


def _fit_plan(
    config: TrainConfig, inputs: TrainInputs, workplace: Workplace, model: nn.Module, start: ProbeStart | None
) -> tuple[TrainPlan, Pace | None]:
    """Return the plan with as many epochs as the budget allows, and their pace, which is None without a budget.

    Resumed training keeps the epochs it started with.
    """
    plan, group, loaded = inputs.plan, workplace.group, inputs.loaded
    if config.budget_s is None:
        return plan, None
    identity = read_identity(workplace.folder) if config.resume and group.is_main else None
    recipe = plan.recipe if identity is None else restore_recipe(plan.recipe, identity)
    pace = fast_pace = _measure_pace(_create_trainer(config, inputs, workplace, model), loaded, start)
    view_pace = None
    if start is not None and start.views is not None:
        fast = dataclasses.replace(inputs, plan=dataclasses.replace(plan, recipe=train_last_block(plan.recipe, 1)))
        trainer = _create_trainer(config, fast, workplace, model, start.views)
        fast_pace = _measure_pace(trainer, loaded, start)
        view_pace = ViewPace(fast_pace.epoch_s, start.image_s * len(loaded.train), saved_s=pace.finish_s)
    if identity is None:
        report_s = _REPORT_S + _REPORT_S_PER_IMAGE * sum(map(len, loaded.dataset.splits))
        left_s = config.budget_s - (time.monotonic() - config.started) - pace.finish_s - report_s
        if left_s < 0:
            workplace.callbacks.on_warning(
                "the budget is too short: even with hardly any training, the model is finished after about "
                + format_duration(round(config.budget_s - left_s))
            )
        recipe = fit_to_budget(recipe, pace.epoch_s, left_s, loaded.train.total, view_pace)
    recipe = dataclasses.replace(recipe, learning_rate=config.learning_rate or recipe.learning_rate)
    recipe = group.broadcast(recipe)
    return dataclasses.replace(plan, recipe=recipe), fast_pace if recipe.views else pace


def _compute_views(
    config: TrainConfig, inputs: TrainInputs, workplace: Workplace, model: nn.Module, start: ProbeStart | None
) -> FixedViews | None:
    """Compute the views of the training images that the recipe has; None if it has none."""
    recipe, train, callbacks = inputs.plan.recipe, inputs.loaded.train, workplace.callbacks
    if start is None or start.views is None or not recipe.views:
        return None
    assert isinstance(model, EfficientNetLite)
    if recipe.views > 1:
        callbacks.on_features_start((recipe.views - 1) * len(train))
    predictor = Predictor(model, inputs.plan.normalize, workplace.device, workplace.group, callbacks.on_features)
    start.views.add(model, train, predictor, recipe, config.source.seed)
    return start.views


def _create_trainer(
    config: TrainConfig,
    inputs: TrainInputs,
    workplace: Workplace,
    model: nn.Module,
    views: FixedViews | None = None,
) -> Trainer:
    plan, loaded, group = inputs.plan, inputs.loaded, workplace.group
    options = TrainerOptions(plan.recipe, plan.normalize, config.source.seed, workplace.device, group)
    return Trainer(model, loaded.train, loaded.validation, options, views)


def _measure_pace(trainer: Trainer, loaded: LoadedDataset, start: ProbeStart | None) -> Pace:
    # A step trains a part of the network; the features have shown how long the complete one takes.
    evaluation_s = None if start is None else start.image_s
    return trainer.measure_pace(len(loaded.dataset.test), evaluation_s)


def _run(
    config: TrainConfig,
    inputs: TrainInputs,
    workplace: Workplace,
    trainer: Trainer,
    pace: Pace,
    tensorboard: TensorBoardWriter,
) -> tuple[str, ...]:
    """Run all steps, from the latest checkpoint on if training resumes; return what went wrong."""
    callbacks = workplace.callbacks
    store = CheckpointStore(workplace.folder, identify(config, inputs.plan, inputs.loaded))
    schedule = CheckpointSchedule(trainer, store, config.checkpoint_every_s, workplace.group)
    if config.resume:
        schedule.resume(callbacks.on_warning)
    elif workplace.group.is_main:
        discard_checkpoints(workplace.folder)
    dataset, recipe = inputs.loaded.dataset, inputs.plan.recipe
    monitor = CollapseMonitor(dataset.train.targets, dataset.validation.targets, recipe)
    estimated_s = pace.estimate(recipe.epochs, trainer.images_done / max(1, trainer.images))
    callbacks.on_train_start(recipe.epochs, trainer.images, trainer.images_done, estimated_s)
    with defer_signals() as interruption:
        while not trainer.is_done:
            row = trainer.step()
            callbacks.on_step(trainer.images_done)
            if row is not None:
                callbacks.on_epoch(row)
                tensorboard.write_epoch(row)
                warning = monitor.check(trainer.history)
                if warning:
                    callbacks.on_warning(warning)
            schedule.after_step(epoch_ended=row is not None, interruption=interruption)
        if interruption.is_requested and workplace.group.size == 1:  # while the last checkpoint was written
            interruption.stop("all steps of the training are saved; --resume continues it")
    return monitor.conclude(trainer.history)


def _evaluate(inputs: TrainInputs, workplace: Workplace, model: nn.Module, views: FixedViews | None) -> EvalResult:
    loaded, group = inputs.loaded, workplace.group
    if views is None:
        predictor = Predictor(copy_for_evaluation(model), inputs.plan.normalize, workplace.device, group)
        return evaluate(predictor, loaded.validation, loaded.test, loaded.dataset.test_name)
    assert isinstance(model, EfficientNetLite)
    trained = TrainedBlocks(model, LAST_BLOCK)
    test = gather_shards(group, loaded.test, views.classify_test(trained))
    validation = None
    if loaded.validation.total:
        validation = gather_shards(group, loaded.validation, views.classify_validation(trained))
    return evaluate_logits(validation, test, loaded.dataset.test_name)


def _write_model(staging: Path, spec: ModelSpec, weights: bytes, loaded: LoadedDataset) -> None:
    (staging / artifacts.STATE_DICT).write_bytes(weights)
    (staging / artifacts.SPEC).write_text(spec.to_json() + "\n", encoding="utf-8")
    write_samples(staging / artifacts.SAMPLES, loaded.dataset.test, spec)


def _write_report(staging: Path, results: RunResults) -> None:
    (staging / artifacts.HISTORY).write_text(csv_from_history(results.history), encoding="utf-8", newline="\n")
    write_report(staging, results)
