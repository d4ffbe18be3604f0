"""Start a pretrained network as a linear probe of its own features: a good classifier before any step of training."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clf_runtime.errors import MachineError
from clf_runtime.machine import usable_memory
from clf_train.data.loading import LoadedDataset
from clf_train.engine.evaluate import Predictor, gather_logits
from clf_train.engine.features import ImageFeatures
from clf_train.engine.probe import Probe, fit_probe
from clf_train.engine.views import FixedViews, create_recorder
from clf_train.history import Epoch
from clf_train.models.efficientnet_lite import EfficientNetLite
from clf_train.models.transfer import FeatureExtractor
from clf_train.recipe import Recipe

StateDict = dict[str, Tensor]

# The best one is chosen on the validation split; without one, or where each fit takes minutes, the middle one is used.
# 3,409 photos of clothes in ten classes: 0.03 to 0.1 are best, 0.01 and 0.3 lose 0.5 to 1 pp.
_L2 = (0.01, 0.03, 0.1, 0.3)
_DEFAULT_L2 = 0.03
_MAX_WORK = 5e9  # images times features times classes
_MIN_EPOCHS_FOR_FRESH_HEAD = 3.0
_MEMORY_SHARE = 0.4  # they are there twice while processes exchange them


@dataclass(frozen=True)
class ProbeStart:
    """What the linear probe found; its weights are in the head of the network."""

    features: ImageFeatures
    l2: float
    has_validation: bool
    validation_accuracy: float  # 0 without a validation split, like the loss
    validation_loss: float
    state: StateDict  # of the network with the probe as its head
    fresh_head: tuple[Tensor, Tensor]  # the weight and the bias that the probe replaced
    views: FixedViews | None = None  # the first one
    image_s: float = 0.0  # to compute the features of one image, in one process

    def describe(self) -> str:
        """Return one line for the user."""
        if not self.has_validation:
            return "fitted a linear probe of the network's features"
        return f"a linear probe of its features has a validation accuracy of {self.validation_accuracy:.1%}"

    def prepare_fine_tuning(self, model: nn.Module, recipe: Recipe) -> None:
        """Replace the probe by a fresh head if there is time to train one.

        A probe fits the features of the training images too well: the blocks before it learn little from them. 648
        clothing photos after 4 epochs, two seeds: 91.8 and 91.4 % from a fresh head, 91.5 and 90.3 % from the probe.
        """
        assert isinstance(model, EfficientNetLite)
        if recipe.epochs >= _MIN_EPOCHS_FOR_FRESH_HEAD or (recipe.views and recipe.epochs):
            model.set_head(*self.fresh_head)

    def keep_better(self, model: nn.Module, history: Sequence[Epoch], on_message: Callable[[str], object]) -> None:
        """Undo the fine-tuning if it did not make the network better on the validation split."""
        last = history[-1] if history else None
        if last is None or last.validation_accuracy is None or last.validation_loss is None:
            return
        if (last.validation_accuracy, -last.validation_loss) > (self.validation_accuracy, -self.validation_loss):
            return
        model.load_state_dict(self.state)
        on_message(
            f"fine-tuning did not improve the validation accuracy ({self.validation_accuracy:.1%} before, "
            f"{last.validation_accuracy:.1%} after), so the linear probe is kept"
        )


def start_from_probe(
    model: EfficientNetLite, loaded: LoadedDataset, predictor: Predictor, *, keeps_views: bool
) -> ProbeStart:
    """Compute the features of all images, fit a probe, and put it into the head of a network.

    Under torchrun every process computes the features of its own images, and all fit the same probe.

    Args:
        model: a pretrained network; its head is replaced in place.
        loaded: the images.
        predictor: how to run a network on them; its own network is ignored.
        keeps_views: whether to keep what the last block sees of each image, if the memory suffices.

    Raises:
        MachineError: the features do not fit into memory.
    """
    _raise_if_too_many(sum(part.total for part in (loaded.train, loaded.validation, loaded.test)), model)
    recorder = create_recorder(model, loaded, predictor) if keeps_views else None
    extractor = recorder or FeatureExtractor(model).to(predictor.device)
    runner = Predictor(extractor, predictor.normalize, predictor.device, predictor.group, predictor.on_batch)
    started = time.perf_counter()
    train, train_targets = gather_logits(runner, loaded.train)
    image_s = (time.perf_counter() - started) / max(1, len(loaded.train))
    views = []
    if recorder:
        views.append(recorder.take())
        recorder.dtype = torch.float32
    validation, validation_targets = train[:0], train_targets[:0]
    if loaded.validation.total:
        validation, validation_targets = gather_logits(runner, loaded.validation)
    if recorder:
        views.append(recorder.take())
    test, _ = gather_logits(runner, loaded.test)
    if recorder:
        views.append(recorder.take())
    classes = len(loaded.dataset.labels)
    features, targets = torch.from_numpy(train), torch.from_numpy(train_targets)
    candidates = _L2 if len(validation_targets) and train.size * classes <= _MAX_WORK else (_DEFAULT_L2,)
    probes = [fit_probe(features, targets, classes, l2) for l2 in candidates]
    unseen = torch.from_numpy(validation), torch.from_numpy(validation_targets)
    losses = [_compute_loss(probe, *unseen) for probe in probes]
    best = losses.index(min(losses))
    fresh_head = model.copy_head()
    model.set_head(probes[best].weight, probes[best].bias)
    return ProbeStart(
        ImageFeatures(train, validation, test),
        candidates[best],
        has_validation=len(validation_targets) > 0,
        validation_accuracy=_compute_accuracy(probes[best], *unseen),
        validation_loss=losses[best],
        state={name: value.clone() for name, value in model.state_dict().items()},
        fresh_head=fresh_head,
        views=FixedViews(*views) if views else None,
        image_s=image_s,
    )


def _raise_if_too_many(images: int, model: EfficientNetLite) -> None:
    """Raise MachineError if the features of all images, in float32, take more than a share of the memory."""
    size_bytes = images * model.copy_head()[0].shape[1] * 4
    limit = int(_MEMORY_SHARE * usable_memory())
    if size_bytes > limit:
        raise MachineError(
            f"the features of {images:,} images, from which transfer learning starts, take {size_bytes / 1e9:.1f} GB, "
            f"and {limit / 1e9:.1f} GB are available; use --weights none, or fewer images"
        )


def _compute_loss(probe: Probe, features: Tensor, targets: Tensor) -> float:
    return F.cross_entropy(probe.logits(features), targets).item() if len(targets) else 0.0


def _compute_accuracy(probe: Probe, features: Tensor, targets: Tensor) -> float:
    return (probe.logits(features).argmax(1) == targets).float().mean().item() if len(targets) else 0.0
