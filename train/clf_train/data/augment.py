"""Augmentation in batches, on the device that trains.

What happens to an image depends only on (seed, epoch, index): neither on its batch nor on the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clf_train.data.blocks import Blocks
from clf_train.recipe import Recipe

_DRAWS = 7  # rotation, scale, shear, shift x, shift y, mirror, invert
_COLOR_DRAWS = 3  # brightness, contrast, saturation; drawn after the others, which were there first
_MAX_CROP_ASPECT = 4 / 3


def create_epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the source of everything random in one epoch. On the CPU: the same numbers for every device."""
    return torch.Generator().manual_seed((seed << 20) + epoch)


def draw_augmentation(images: int, generator: torch.Generator) -> Tensor:
    """Draw numbers for every image, by index: float32 (N, 10), uniform in -1..1."""
    return torch.cat([torch.rand(images, count, generator=generator) for count in (_DRAWS, _COLOR_DRAWS)], 1) * 2 - 1


def draw_epoch(seed: int, epoch: int, images: int, blocks: Blocks | None = None) -> tuple[Tensor, Tensor]:
    """Return the order (N,) of the images in an epoch, and the draws (N, 10) of each image, by index.

    The order is a random permutation; of images that are read in blocks, nearly one.
    """
    generator = create_epoch_generator(seed, epoch)
    permutation, draws = torch.randperm(images, generator=generator), draw_augmentation(images, generator)
    return permutation if blocks is None else blocks.permute(permutation, generator), draws


def choose_view(draws: Tensor, views: int) -> Tensor:
    """Return which of the fixed views of each image an epoch takes, (N,), from its draws (N, 10)."""
    return ((draws[:, 0] + 1) / 2 * views).long().clamp_max(views - 1)


def augment(images: Tensor, draws: Tensor, recipe: Recipe) -> Tensor:
    """Transform images by their draws.

    Args:
        images: float32 (N, C, H, W) in 0..1.
        draws: float32 (N, 10) in -1..1.
        recipe: the ranges.

    Returns:
        The transformed images, in the same shape, or of `recipe.crop_side`.
    """
    rotation, scale, shear, shift_x, shift_y, mirror, invert, *color = draws.unbind(1)
    if recipe.crop < 1:
        images = _crop(images, (scale, shear, shift_x, shift_y, mirror), recipe)
    elif recipe.rotation or recipe.scale or recipe.shear:
        images = _apply_affine(images, (rotation, scale, shear, shift_x, shift_y, mirror), recipe)
    elif recipe.shift or recipe.mirror:
        images = _shift_and_mirror(images, (shift_x, shift_y, mirror), recipe)
    if recipe.color_jitter:
        images = _vary_color(images, color, recipe.color_jitter)
    if recipe.invert:
        images = torch.where((invert < 0)[:, None, None, None], 1 - images, images)
    return images


def _apply_affine(images: Tensor, draws: tuple[Tensor, ...], recipe: Recipe) -> Tensor:
    rotation, scale, shear, shift_x, shift_y, mirror = draws
    angle = rotation * math.radians(recipe.rotation)
    zoom = 1 + scale * recipe.scale
    sign = torch.where(mirror < 0, -1.0, 1.0) if recipe.mirror else torch.ones_like(zoom)
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    # grid_sample's coordinates run from -1 to 1, so a share of the size is twice as much here.
    right, down = shift_x * 2 * recipe.shift, shift_y * 2 * recipe.shift
    rows = [
        torch.stack([sign * cosine, shear * recipe.shear - sine, right], dim=1),
        torch.stack([sign * sine, cosine, down], dim=1),
    ]
    return _resample(images, torch.stack(rows, dim=1))


def _shift_and_mirror(images: Tensor, draws: tuple[Tensor, ...], recipe: Recipe) -> Tensor:
    """Shift by whole pixels and mirror, so that nothing is blurred."""
    shift_x, shift_y, mirror = draws
    height, width = images.shape[2:]
    sign = torch.where(mirror < 0, -1.0, 1.0) if recipe.mirror else torch.ones_like(mirror)
    right = torch.round(shift_x * recipe.shift * width) * 2 / width
    down = torch.round(shift_y * recipe.shift * height) * 2 / height
    zero, one = torch.zeros_like(sign), torch.ones_like(sign)
    rows = [torch.stack([sign, zero, right], dim=1), torch.stack([zero, one, down], dim=1)]
    return _resample(images, torch.stack(rows, dim=1))


def _crop(images: Tensor, draws: tuple[Tensor, ...], recipe: Recipe) -> Tensor:
    """Cut a random part out of each image and mirror it (the random resized crop of Szegedy et al. 2014)."""
    area, aspect, right, down, mirror = draws
    share = recipe.crop + (1 - recipe.crop) * (area + 1) / 2
    ratio = torch.exp(aspect * math.log(_MAX_CROP_ASPECT))
    width, height = (share * ratio).sqrt().clamp_max(1), (share / ratio).sqrt().clamp_max(1)
    sign = torch.where(mirror < 0, -1.0, 1.0) if recipe.mirror else torch.ones_like(width)
    zero = torch.zeros_like(width)
    rows = [
        torch.stack([sign * width, zero, right * (1 - width)], dim=1),
        torch.stack([zero, height, down * (1 - height)], dim=1),
    ]
    size = None if recipe.crop_side is None else (recipe.crop_side, recipe.crop_side)
    return _resample(images, torch.stack(rows, dim=1), size)


def _vary_color(images: Tensor, draws: Sequence[Tensor], share: float) -> Tensor:
    """Change the brightness, the contrast and the saturation of each image."""
    brightness, contrast, saturation = (1 + share * draw[:, None, None, None] for draw in draws)
    images = images * contrast + images.mean((1, 2, 3), keepdim=True) * (brightness - contrast)
    gray = images.mean(1, keepdim=True)
    return torch.lerp(gray, images, saturation).clamp(0, 1)


def _resample(images: Tensor, transforms: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Sample the images at transformed positions (N, 2, 3); outside of the image, the nearest edge continues."""
    height, width = size or images.shape[2:]
    # The centers of the pixels, from -1 to 1. F.affine_grid multiplies matrices for this, which is slower.
    down, right = ((torch.arange(count, device=images.device) * 2 + 1 - count) / count for count in (height, width))
    by_right, by_down, by = transforms[..., None, None].unbind(2)  # each (N, 2, 1, 1)
    grid = by_right * right[None, None, None, :] + (by_down * down[None, None, :, None] + by)
    return F.grid_sample(images, grid.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
