"""Whether a network takes the images and returns a logit for each class, which only running it shows."""

from __future__ import annotations

import torch
from torch import nn

from clf_runtime.errors import InvalidModelError
from clf_runtime.spec import Preprocess


def raise_if_input_does_not_fit(model: nn.Module, architecture: str, preprocess: Preprocess, classes: int) -> None:
    """Run two black images through a network, in eval mode and without changing it.

    Raises:
        InvalidModelError: the network fails, or does not return logits of shape (2, classes).
    """
    was_training = model.training
    try:
        with torch.no_grad():  # inference tensors in a lazy layer could not be trained
            logits = model.eval()(torch.zeros((2, preprocess.channels, preprocess.height, preprocess.width)))
    except Exception as error:  # any layer can raise anything for an input that does not fit
        reason = " ".join(str(error).split())[:200]
        raise InvalidModelError(
            f"{architecture}: fails on {preprocess.height}x{preprocess.width} {preprocess.color} images ({reason}); "
            "use another --size or --color"
        ) from None
    finally:
        model.train(was_training)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (2, classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InvalidModelError(
            f"{architecture}: returns {found} for two images, expected logits of shape {(2, classes)}; "
            "use another --model or --labels"
        )
