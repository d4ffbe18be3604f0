"""Augmentation in batches, on the device that trains.

What happens to an image follows from (seed, epoch, index) alone: not from the batch it is in, nor from how
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


def draws_for_epoch(images: int, generator: torch.Generator) -> Tensor:
    """Draw for every image, by index: float32 (N, 7), uniform in -1..1."""
    return torch.rand(images, _DRAWS, generator=generator) * 2 - 1


def order_and_draws(seed: int, epoch: int, images: int) -> tuple[Tensor, Tensor]:
    """Give the order (N,) in which an epoch takes the images, and the draws (N, 7) of each, by index."""
    generator = epoch_generator(seed, epoch)
    return torch.randperm(images, generator=generator), draws_for_epoch(images, generator)


def augment(images: Tensor, draws: Tensor, recipe: Recipe) -> Tensor:
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
    """Look up each place of the result where its transform (N, 2, 3) says; what lies outside is the edge's."""
    height, width = images.shape[2:]
    # The centres of the pixels, from -1 to 1. F.affine_grid multiplies matrices for this, which takes longer.
    down, right = ((torch.arange(count, device=images.device) * 2 + 1 - count) / count for count in (height, width))
    by_right, by_down, by = transforms[..., None, None].unbind(2)  # each (N, 2, 1, 1)
    grid = by_right * right[None, None, None, :] + (by_down * down[None, None, :, None] + by)
    return F.grid_sample(images, grid.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
