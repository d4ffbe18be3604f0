"""The training loop: a network, decoded images, a recipe; a step at a time, on one device or several."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from clf_runtime.errors import DataError, MachineError
from clf_runtime.preprocess import UInt8Array
from clf_runtime.spec import Normalize
from clf_train import distributed as distributed
from clf_train.data.augment import augment, order_and_draws
from clf_train.data.cache import ArrayPixels, Shard
from clf_train.distributed import SINGLE_PROCESS, ProcessGroup
from clf_train.engine.evaluate import compute_metrics, gather_logits, standardize
from clf_train.history import Epoch
from clf_train.recipe import Recipe

_RISING = 0.25
# Of a GPU's free memory, for images that live there; the rest is the network's.
_DEVICE_MEMORY_SHARE = 0.5


def device_for(wanted: str) -> torch.device:
    """Give the device that --device names; auto takes CUDA where it works. Raises MachineError."""
    if wanted == "cuda" and not torch.cuda.is_available():
        reason = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no CUDA device is found"
        raise MachineError(f"--device cuda: {reason}; look at nvidia-smi, or leave it to --device auto")
    use_cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return distributed.local_device() if use_cuda else torch.device("cpu")


class Trainer:
    """A training under way: what `state` gives after a step, `restore` goes on from, bit for bit.

    Whatever is random follows from (seed, epoch, index) or (seed, step), so there is no generator's state to keep.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Shard,
        validation: Shard,
        recipe: Recipe,
        normalize: Normalize,
        *,
        seed: int,
        device: torch.device,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        """Put everything on the device.

        Args:
            model: takes (N, C, H, W) float32, gives logits (N, classes); trained in place.
            train: what is learnt from: this process's share.
            validation: what is only looked at; may be empty.
            recipe: the numbers.
            normalize: mean and std of pixels in 0..1.
            seed: fixes the order of the images and their augmentation.
            device: where the images and the model are put.
            team: the processes that train together. A batch is shared out among them.

        Raises:
            DataError: too few images for so many processes.
        """
        self.history: list[Epoch] = []
        self._model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._together = group.wrap_ddp(self._model)
        self._train = train
        self._on_device = _on_device(train, device)
        self._targets = torch.from_numpy(train.targets).to(device)
        self._validation = validation
        self._recipe = recipe
        self._normalize = normalize
        self._seed = seed
        self._device = device
        self._team = group
        self._shares = group.all_gather(len(train))
        self._steps_of_epoch = steps_per_epoch(train.of, recipe)
        if min(self._shares) < self._steps_of_epoch:
            raise DataError(
                f"{train.of:,} images in batches of {recipe.batch_size} are too few for {group.size} processes; "
                f"start fewer, or take a --batch-size of {2 * group.size} or more"
            )
        self.steps = max(1, round(self._steps_of_epoch * recipe.epochs))
        self._step = 0  # how many were done
        self._batches: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None  # the rest of this epoch's
        self._sums = _nothing_yet(device)
        self._seconds = 0.0  # of this epoch
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=True,
            weight_decay=recipe.weight_decay,
        )
        self._loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing, reduction="sum")
        self._precision = _precision(device, model)
        # Half precision's gradients would vanish below 6e-8; bfloat16 has float32's range.
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._precision == torch.float16)

    @property
    def done(self) -> bool:
        """Whether every step has been."""
        return self._step >= self.steps

    @property
    def images_done(self) -> int:
        """How many images were learnt from, each as often as it was."""
        return _images_until(self._step, self._train.of, self._steps_of_epoch)

    @property
    def images(self) -> int:
        """How many there will be in all."""
        return _images_until(self.steps, self._train.of, self._steps_of_epoch)

    def step(self) -> Epoch | None:
        """Learn from one batch; gives the epoch's row with the last batch of an epoch."""
        started = time.perf_counter()
        if self._batches is None:
            self._batches = self._rest_of_epoch()
        self._seed_dropout()
        self._together.train()
        self._sums += self._learn(*next(self._batches))
        self._step += 1
        ended = self.done or self._step % self._steps_of_epoch == 0
        row = self._row(started) if ended else None
        self._seconds += time.perf_counter() - started
        if ended:
            self._batches, self._sums, self._seconds = None, _nothing_yet(self._device), 0.0
        return row

    def state(self) -> dict[str, Any]:
        """Give all that the rest of the training depends on: tensors and plain values. Every process asks at once."""
        return {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "history": [asdict(row) for row in self.history],
            "step": self._step,
            "sums": self._team.all_reduce(self._sums),
            "seconds": self._seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.history = [Epoch(**row) for row in state["history"]]
        self._step = state["step"]
        self._seconds = state["seconds"]
        if self._team.is_main:
            self._sums = state["sums"].to(self._device)

    def _seed_dropout(self) -> None:
        # Not torch.manual_seed: without a GPU it notes down the whole stack each time, for a later start of CUDA.
        seed = (self._seed << 24) + self._step
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _learn(self, pixels: Tensor, targets: Tensor, draws: Tensor) -> Tensor:
        """Learn from this process's part of a batch; gives its summed loss, right answers, and images."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(self._step)
        images = augment(pixels.permute(0, 3, 1, 2).float().div(255), draws, self._recipe)
        enabled = self._precision is not None
        with torch.autocast(self._device.type, self._precision or torch.bfloat16, enabled=enabled):
            logits = self._together(standardize(images, self._normalize)).float()
        loss = self._loss(logits, targets)
        self._optimizer.zero_grad()
        # The mean over the whole batch, of which each process has its part: what comes is divided by their number.
        self._scaler.scale(loss * (self._team.size / self._size_of_batch())).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        right = (logits.argmax(1) == targets).sum()
        return torch.stack([loss.detach(), right, torch.full_like(right, len(targets))])

    def _size_of_batch(self) -> int:
        place = self._step % self._steps_of_epoch
        return sum(share // self._steps_of_epoch + (place < share % self._steps_of_epoch) for share in self._shares)

    def _rate(self, step: int) -> float:
        return self._recipe.learning_rate * one_cycle(step, self.steps)

    def _row(self, started: float) -> Epoch:
        """Sum up an epoch; it has had its last batch."""
        loss, right, images = self._team.all_reduce(self._sums).tolist()
        seconds = self._seconds + time.perf_counter() - started
        validated = self._validated()
        self.history.append(
            Epoch(
                epoch=len(self.history) + 1,
                learning_rate=self._rate(self._step - 1),
                train_loss=loss / images,
                train_accuracy=right / images,
                validation_loss=validated[0],
                validation_accuracy=validated[1],
                seconds=seconds,
            )
        )
        return self.history[-1]

    def _validated(self) -> tuple[float | None, float | None]:
        if not self._validation.of:
            return None, None
        judged = gather_logits(self._model, self._validation, self._normalize, self._device, self._team)
        quality = compute_metrics(*judged, temperature=1.0)
        return quality.loss, quality.accuracy

    def _rest_of_epoch(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give the epoch's batches from this step on: pixels (n, H, W, C), classes (n,), draws (n, 7)."""
        epoch, place = divmod(self._step, self._steps_of_epoch)
        order, draws = order_and_draws(self._seed, epoch + 1, self._train.of)
        rows_of = torch.full((self._train.of,), -1)
        rows_of[torch.from_numpy(self._train.indices)] = torch.arange(len(self._train))
        mine = order[rows_of[order] >= 0]  # all, where this process is alone
        batches = mine.tensor_split(self._steps_of_epoch)[place:]
        rows = [rows_of[batch] for batch in batches]
        for batch, of_batch, pixels in zip(batches, rows, self._pixels(rows), strict=True):
            yield pixels, self._targets[of_batch.to(self._device)], draws[batch].to(self._device)

    def _pixels(self, rows: list[Tensor]) -> Iterator[Tensor]:
        if self._on_device is not None:
            for of_batch in rows:
                yield self._on_device[of_batch.to(self._device)]
        else:
            for pixels in _ahead(self._train.pixels.batches(of_batch.numpy() for of_batch in rows)):
                yield torch.from_numpy(pixels).to(self._device)


def one_cycle(step: int, steps: int) -> float:
    """Give the share of the peak learning rate at a step: up for a quarter of the steps, then down to zero.

    Source: Smith & Topin 2017; the quarter is what reached 99.4 % on MNIST in two epochs.
    """
    done = (step + 1) / (steps + 1)
    return min(done / _RISING, (1 - done) / (1 - _RISING))


def steps_per_epoch(images: int, recipe: Recipe) -> int:
    """Count the batches of an epoch: full ones, the last shared out, since a batch of one has no variance."""
    return max(1, -(-images // recipe.batch_size)) if images > 1 else 1


def _images_until(step: int, images: int, steps: int) -> int:
    """Count the images of so many steps, where an epoch's are split into `steps` parts."""
    epochs, place = divmod(step, steps)
    return epochs * images + place * (images // steps) + min(place, images % steps)


def _nothing_yet(device: torch.device) -> Tensor:
    """Give the sums of an epoch at its beginning: loss, right answers, images."""
    return torch.zeros(3, dtype=torch.float64, device=device)


def _precision(device: torch.device, model: nn.Module) -> torch.dtype | None:
    """Give what the device multiplies in: bfloat16 where it has that; else float16 on a GPU, float32 on a CPU.

    On 2 cores with AVX-512's bfloat16 a step of small-resnet takes 0.7 of its time, one of ResNet-18 0.56. Processors
    that would emulate it are slower than with float32, and so are the gradients of depthwise convolutions on any: a
    step of MobileNetV3-small takes 2.2 times as long.
    """
    if device.type != "cuda":
        if any(isinstance(each, nn.Conv2d) and each.groups == each.in_channels > 1 for each in model.modules()):
            return None
        # Older torch does not tell.
        capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return torch.bfloat16 if capabilities.get("avx512_bf16") else None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _on_device(part: Shard, device: torch.device) -> Tensor | None:
    """Put all images where they are learnt from, uint8 (N, H, W, C); None where they do not fit."""
    if not isinstance(part.pixels, ArrayPixels):
        return None
    array = part.pixels.array
    if device.type == "cuda" and array.nbytes > _DEVICE_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    return torch.from_numpy(array).to(device)


def _ahead(batches: Iterator[UInt8Array]) -> Iterator[UInt8Array]:
    """Have the next batch fetched while this one is learnt from."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch
