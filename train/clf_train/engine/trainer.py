"""The training loop, one step at a time, on one device or several."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from clf_runtime.errors import DataError, InvalidModelError
from clf_runtime.spec import Normalize
from clf_train.data.augment import augment
from clf_train.data.cache import Shard
from clf_train.distributed import SINGLE_PROCESS, ProcessGroup
from clf_train.engine.averaging import MovingAverage
from clf_train.engine.batches import Batch, BatchLoader
from clf_train.engine.device import multiply_in, select_precision
from clf_train.engine.evaluate import Predictor, compute_metrics, gather_logits, gather_shards, standardize
from clf_train.engine.optimizer import create_optimizer
from clf_train.engine.schedule import Schedule, count_images_in_batch
from clf_train.engine.state import raise_if_foreign
from clf_train.engine.views import FixedViews
from clf_train.history import Epoch
from clf_train.models.transfer import copy_for_evaluation, split_network
from clf_train.recipe import Recipe

_MEASURED_STEPS, _MEASURED_S = 3, 2.0  # at least; the first step is slower: memory is allocated, kernels are chosen
_FORWARD_SHARE = 0.5  # of a step, for the evaluation of as many images
_SLOWDOWN = 1.06  # of an average step against a measured one, and checkpoints


@dataclass(frozen=True)
class TrainerOptions:
    """How a network is trained, and where."""

    recipe: Recipe
    normalize: Normalize  # of pixels in 0..1
    seed: int  # of the order of the images and their augmentation
    device: torch.device
    group: ProcessGroup = SINGLE_PROCESS  # the processes that share each batch


@dataclass(frozen=True)
class Pace:
    """How long a training run takes, as measured before it starts."""

    epoch_s: float  # with its validation
    finish_s: float  # the evaluation at the end

    def estimate(self, epochs: float, share_done: float) -> float:
        """Return the seconds until the model is finished."""
        return self.epoch_s * epochs * (1 - share_done) + self.finish_s


class Trainer:
    """A training run; after `restore` it continues bit for bit where `state` was taken.

    Everything random depends on (seed, epoch, index) or (seed, step), so the state holds no random generator.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Shard,
        validation: Shard,
        options: TrainerOptions,
        views: FixedViews | None = None,
    ) -> None:
        """Move the network and the images to the device.

        Args:
            model: maps (N, C, H, W) float32 to logits (N, classes); trained in place. An EfficientNetLite if the recipe
                has a first block.
            train: this process's share of the training split.
            validation: this process's share of the validation split, which may be empty.
            options: how to train.
            views: what the frozen blocks have computed; by default they run in each step.

        Raises:
            DataError: a process would have too few images.
        """
        recipe, device, group = options.recipe, options.device, options.group
        self.history: list[Epoch] = []
        self._options = options
        self._model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        frozen, trained = split_network(self._model, recipe)
        self._frozen = frozen if views is None else nn.Identity()
        self._trained = trained
        self._ddp_model = group.wrap_ddp(trained)
        self._views = views
        self._validation = validation
        self._schedule = Schedule(train.total, recipe)
        steps = self._schedule.steps_per_epoch
        self._batch_loader = BatchLoader(train, steps, options.seed, device, has_pixels=views is None)
        self._shard_sizes = group.all_gather(len(train))
        if min(self._shard_sizes) < self._schedule.steps_per_epoch:
            raise DataError(
                f"{train.total:,} images in batches of {recipe.batch_size} are too few for {group.size} processes; "
                f"start fewer, or use a --batch-size of at least {2 * group.size}"
            )
        self._step = 0  # how many are done
        self._batches: Iterator[Batch] | None = None  # the rest of the current epoch
        self._sums = _zero_sums(device)
        self._seconds = 0.0  # of the current epoch
        self._optimizer = create_optimizer(trained, recipe)
        self._average = MovingAverage(trained, recipe.averaging) if recipe.averaging else None
        self._loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing, reduction="sum")
        self._precision = select_precision(device, trained)
        # Gradients below 6e-8 would vanish in float16; bfloat16 has float32's range.
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._precision == torch.float16)

    @property
    def is_done(self) -> bool:
        """Whether all steps are done."""
        return self._step >= self._schedule.steps

    @property
    def images_done(self) -> int:
        """How many images the finished steps have seen; an image counts once per epoch."""
        return self._schedule.count_images(self._step)

    @property
    def images(self) -> int:
        """How many images all steps see; an image counts once per epoch."""
        return self._schedule.count_images(self._schedule.steps)

    def step(self) -> Epoch | None:
        """Train on one batch; return the row of the epoch after its last batch.

        Raises:
            InvalidModelError: after an epoch, a weight is NaN or infinite: no further step mends it.
        """
        started = time.perf_counter()
        if self._batches is None:
            self._batches = self._load_batches()
        self._sums += self._train_on(next(self._batches))
        self._step += 1
        self._update_average()
        epoch_ended = self.is_done or self._step % self._schedule.steps_per_epoch == 0
        row = self._end_epoch(started) if epoch_ended else None
        self._seconds += time.perf_counter() - started
        if epoch_ended:
            self._batches, self._sums, self._seconds = None, _zero_sums(self._options.device), 0.0
        return row

    def measure_pace(self, test_images: int, evaluation_s: float | None = None) -> Pace:
        """Measure how long everything takes, on the first batches, and undo them. A collective.

        Args:
            test_images: in the test split, on which the network is evaluated at the end.
            evaluation_s: for one image by the complete network; by default it is a share of a step.
        """
        state = copy.deepcopy(self.state())
        seconds = self._time_steps(_MEASURED_STEPS)
        if seconds:
            # Every process has to take the same number of steps.
            more = self._options.group.broadcast(int((_MEASURED_S - sum(seconds)) / seconds[-1]))
            seconds += self._time_steps(more)
        self.restore(state)
        step_s = median(seconds[1:] or seconds or [0.0]) * _SLOWDOWN
        steps = self._schedule.steps_per_epoch
        image_s = _FORWARD_SHARE * step_s * steps / self._schedule.images
        if evaluation_s is not None and self._views is None:
            image_s = evaluation_s
        return Pace(
            epoch_s=step_s * steps + image_s * self._validation.total,
            finish_s=image_s * (self._validation.total + test_images),
        )

    def _time_steps(self, steps: int) -> list[float]:
        """Train on the next batch up to `steps` times, and return the seconds that each took."""
        seconds = []
        for _ in range(min(steps, self._schedule.steps - self._step)):
            started = time.perf_counter()
            self._train_on(next(self._load_batches()))
            _synchronize(self._options.device)
            seconds.append(time.perf_counter() - started)
        return seconds

    def state(self) -> dict[str, Any]:
        """Return everything that the remaining steps depend on: tensors and plain values. A collective."""
        return {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": [] if self._average is None else self._average.values,
            "history": [asdict(row) for row in self.history],
            "step": self._step,
            "sums": self._options.group.all_reduce(self._sums),
            "seconds": self._seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned. A collective.

        Raises:
            ValueError: it is not the state of such a training run; the message says what differs.
        """
        raise_if_foreign(state, self.state(), self._optimizer, self._schedule.steps)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.restore(state["average"])
        self.history = [Epoch(**row) for row in state["history"]]
        self._step = state["step"]
        self._seconds = state["seconds"]
        if self._options.group.is_main:
            self._sums = state["sums"].to(self._options.device)

    def _update_average(self) -> None:
        if self._average is not None:
            self._average.update(self._step)
            if self.is_done:
                self._average.apply()

    def _load_batches(self) -> Iterator[Batch]:
        """Return the rest of the current epoch."""
        return self._batch_loader.load_epoch(*divmod(self._step, self._schedule.steps_per_epoch))

    def _seed_dropout(self) -> None:
        # Not torch.manual_seed: without a GPU it records the whole stack each time, for a later start of CUDA.
        seed = (self._options.seed << 24) + self._step
        torch.default_generator.manual_seed(seed)
        if self._options.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _train_on(self, batch: Batch) -> Tensor:
        """Train on this process's share of a batch; return its summed loss, correct predictions and images."""
        self._seed_dropout()
        self._ddp_model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.learning_rate(self._step)
        inputs = self._prepare(batch)
        with multiply_in(self._precision, self._options.device):
            logits = self._ddp_model(self._frozen(inputs)).float()
        loss = self._loss(logits, batch.targets)
        self._optimizer.zero_grad()
        # The mean over the complete batch: DDP divides the sum of all processes' gradients by their number.
        self._scaler.scale(loss * (self._options.group.size / self._count_batch())).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        correct = (logits.argmax(1) == batch.targets).sum()
        return torch.stack([loss.detach(), correct, torch.full_like(correct, len(batch.targets))])

    def _prepare(self, batch: Batch) -> Tensor:
        """Return augmented images, or what the frozen blocks have computed of them."""
        if self._views is not None:
            return self._views.select(batch.rows, batch.draws)
        assert batch.pixels is not None
        images = augment(batch.pixels.permute(0, 3, 1, 2).float().div(255), batch.draws, self._options.recipe)
        return standardize(images, self._options.normalize)

    def _count_batch(self) -> int:
        """Return how many images of all processes the current batch has."""
        batches = self._schedule.steps_per_epoch
        return sum(count_images_in_batch(size, batches, self._step % batches) for size in self._shard_sizes)

    def _end_epoch(self, step_started: float) -> Epoch:
        """Validate, and add a row to the history."""
        loss, correct, images = self._options.group.all_reduce(self._sums).tolist()
        seconds = self._seconds + time.perf_counter() - step_started
        self._raise_if_diverged(loss / images)
        validation_loss, validation_accuracy = self._validate()
        row = Epoch(
            epoch=len(self.history) + 1,
            learning_rate=self._schedule.learning_rate(self._step - 1),
            train_loss=loss / images,
            train_accuracy=correct / images,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            seconds=seconds,
        )
        self.history.append(row)
        return row

    def _raise_if_diverged(self, loss: float) -> None:
        if all(bool(torch.isfinite(value).all()) for value in self._model.state_dict().values()):
            return
        raise InvalidModelError(
            f"the training diverged in epoch {len(self.history) + 1} (loss {loss:g}, weights NaN or infinite); start "
            f"over with --overwrite and a lower --learning-rate (now {self._options.recipe.learning_rate:g}); "
            "no model was written"
        )

    def _validate(self) -> tuple[float | None, float | None]:
        """Return the loss and the accuracy on the validation split, if it has images."""
        if not self._validation.total:
            return None, None
        options = self._options
        if self._views is None:
            model = copy_for_evaluation(self._model)
            predictor = Predictor(model, options.normalize, options.device, options.group)
            outputs = gather_logits(predictor, self._validation)
        else:
            outputs = gather_shards(options.group, self._validation, self._views.classify_validation(self._trained))
        metrics = compute_metrics(*outputs, temperature=1.0, split="validation")
        return metrics.loss, metrics.accuracy


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _zero_sums(device: torch.device) -> Tensor:
    """Return the sums of an epoch at its beginning: loss, correct predictions, images."""
    return torch.zeros(3, dtype=torch.float64, device=device)
