"""A linear probe: multinomial logistic regression on the features of a frozen network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# L-BFGS needs about 30 iterations for 3,000 images of ten classes; more only for hardly regularized probes.
_MAX_ITERATIONS = 100
_MIN_DEVIATION = 1e-6


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features."""

    weight: Tensor  # (classes, D) float32
    bias: Tensor  # (classes,) float32

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (N, classes) of features (N, D)."""
        return features @ self.weight.T + self.bias


def fit_probe(features: Tensor, targets: Tensor, classes: int, l2: float) -> Probe:
    """Fit a probe; the result depends only on the arguments.

    The loss is the mean cross-entropy plus `l2` / 2 times the squared weights of the standardized features. It is
    convex, so L-BFGS (Liu & Nocedal 1989) from zero ends near its only minimum.

    Args:
        features: float32 (N, D).
        targets: the classes (N,).
        classes: how many there are; each column of the result exists even if no image has its class.
        l2: the strength of the regularization.

    Returns:
        A probe of the features as they are: their standardization is part of its weights.
    """
    mean = features.mean(0)
    deviation = features.std(0, correction=0).clamp_min(_MIN_DEVIATION)
    standardized = (features - mean) / deviation
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def compute_loss() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(standardized, weight, bias), targets) + l2 / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    with torch.enable_grad():
        optimizer.step(compute_loss)  # type: ignore[no-untyped-call]
    scaled = weight.detach() / deviation
    return Probe(scaled, bias.detach() - scaled @ mean)
