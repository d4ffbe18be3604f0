"""Augmentation in batches, on the device that trains.

What happens to a picture follows from (seed, epoch, index) alone: not from the batch it is in, nor from how
many processes share the work.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clf_train.recipe import Recipe

_DRAWS = 7  # rotation, scale, shear, shift x, shift y, mirror, invert


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Give the source of everything random in one epoch. On the CPU: the same numbers for every device."""
    return torch.Generator().manual_seed((seed << 20) + epoch)


def draws_for_epoch(pictures: int, generator: torch.Generator) -> Tensor:
    """Draw for every picture, by index: float32 (N, 7), uniform in -1..1."""
    return torch.rand(pictures, _DRAWS, generator=generator) * 2 - 1


def augmented(images: Tensor, draws: Tensor, recipe: Recipe) -> Tensor:
    """Transform float images (N, C, H, W) in 0..1 as their draws (N, 7) say; the shape stays."""
    rotation, scale, shear, shift_x, shift_y, mirror, invert = draws.unbind(1)
    if recipe.rotation or recipe.scale or recipe.shear:
        images = _affine(images, (rotation, scale, shear, shift_x, shift_y, mirror), recipe)
    elif recipe.shift or recipe.mirror:
        images = _moved(images, (shift_x, shift_y, mirror), recipe)
    if recipe.invert:
        images = torch.where((invert < 0)[:, None, None, None], 1 - images, images)
    return images


def _affine(images: Tensor, draws: tuple[Tensor, ...], recipe: Recipe) -> Tensor:
    rotation, scale, shear, shift_x, shift_y, mirror = draws
    angle = rotation * math.radians(recipe.rotation)
    zoom = 1 + scale * recipe.scale
    sign = torch.where(mirror < 0, -1.0, 1.0) if recipe.mirror else torch.ones_like(zoom)
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    # grid_sample counts from -1 to 1, so a share of the size is twice as much here.
    right, down = shift_x * 2 * recipe.shift, shift_y * 2 * recipe.shift
    rows = [
        torch.stack([sign * cosine, shear * recipe.shear - sine, right], dim=1),
        torch.stack([sign * sine, cosine, down], dim=1),
    ]
    return _sampled(images, torch.stack(rows, dim=1))


def _moved(images: Tensor, draws: tuple[Tensor, ...], recipe: Recipe) -> Tensor:
    """Shift by whole pixels and mirror: nothing is blurred."""
    shift_x, shift_y, mirror = draws
    height, width = images.shape[2:]
    sign = torch.where(mirror < 0, -1.0, 1.0) if recipe.mirror else torch.ones_like(mirror)
    right = torch.round(shift_x * recipe.shift * width) * 2 / width
    down = torch.round(shift_y * recipe.shift * height) * 2 / height
    zero, one = torch.zeros_like(sign), torch.ones_like(sign)
    rows = [torch.stack([sign, zero, right], dim=1), torch.stack([zero, one, down], dim=1)]
    return _sampled(images, torch.stack(rows, dim=1))


def _sampled(images: Tensor, transforms: Tensor) -> Tensor:
    grid = F.affine_grid(transforms, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
