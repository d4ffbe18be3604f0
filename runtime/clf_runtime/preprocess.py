"""From an image in any form to the pixels that the graph takes. Training and inference both use this module.

The steps: detect the format by the first bytes, limit the number of pixels, decode (a large JPEG at reduced size), take
the first frame, apply the EXIF orientation, convert the color (16 bits are scaled, transparency is composited over the
background), resize. Pillow does all of it.
"""

from __future__ import annotations

import importlib
import os
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from clf_runtime.errors import ImageError
from clf_runtime.image_files import (
    HEAD_BYTES,
    MAX_IMAGE_BYTES,
    detect_format,
    image_error_from_os_error,
    open_binary,
)
from clf_runtime.spec import Preprocess

UInt8Array = npt.NDArray[np.uint8]
ImageInput = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | UInt8Array

# Checked before decoding: 256 MiB of RGB, where Pillow starts to warn.
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3

# The side of the largest JPEG. A strip of 1 x 80,000,000 pixels takes gigabytes while it is resized.
MAX_SIDE = 65_535

# What no format and mode exceeds per pixel.
_MOST_BYTES_PER_PIXEL = 32

# A smaller PNG may lack pixels if its compressed data end early without an error: to look takes half as long as to
# decode 28 x 28 pixels, and only a faulty program writes such files.
_UNCHECKED_PIXELS = 64 * 64

# Only an image that is much longer than wide becomes much larger before its crop.
_ELONGATED = 16

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if both sides stay this many times larger than after resampling.
SHORTCUT_MARGIN = 2

_JPEG = ("JPEG", "MPO")  # phones write several images into one file; the first is a normal JPEG

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset((5, 6, 7, 8))

_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def pixels_from_image(image: ImageInput, preprocess: Preprocess, max_bytes: int = MAX_IMAGE_BYTES) -> UInt8Array:
    """Decode one image and resize it to the model's input.

    Args:
        image: A path, the bytes of an image file, an open binary file, a PIL image, or a uint8 array of shape (H, W),
            (H, W, 1), (H, W, 3) or (H, W, 4), which is RGBA.
        preprocess: The model's preprocessing.
        max_bytes: The memory that the image may take; if it needs more, that is an error.

    Returns:
        Pixels, uint8 (preprocess.height, preprocess.width, preprocess.channels).

    Raises:
        ImageError: The image cannot be read.
    """
    image = resize_image(decode_image(image, preprocess, max_bytes), preprocess, max_bytes)
    return np.frombuffer(image.tobytes(), np.uint8).reshape(preprocess.shape)


def decode_image(image: ImageInput, preprocess: Preprocess, max_bytes: int = MAX_IMAGE_BYTES) -> Image.Image:
    """Decode one image, upright and in the spec's color mode, at its own size.

    Raises:
        ImageError: The image cannot be read.
    """
    if isinstance(image, np.ndarray):
        return convert_color(_image_from_array(image), preprocess)
    if isinstance(image, Image.Image):
        return _decode(image, preprocess, max_bytes)
    try:
        with open_binary(image) as file:
            return _decode(open_image(file), preprocess, max_bytes)
    except OSError as error:
        raise image_error_from_os_error(error) from None


def resize_image(image: Image.Image, preprocess: Preprocess, max_bytes: int = MAX_IMAGE_BYTES) -> Image.Image:
    """Resize an image to the model's input: squash it, crop its center, or pad it with the background.

    Raises:
        ImageError: The image is so elongated that it would be too large before its crop.
    """
    size = _check_resizing(image.size, preprocess, max_bytes)
    # In two steps, width before height: Pillow 13 chooses the order by the shape, and rounds between the two.
    for step in ((size[0], image.height), size):
        if step != image.size:
            image = image.resize(step, _RESAMPLE[preprocess.resample])
    if size == (preprocess.width, preprocess.height):
        return image
    # Python rounds halves to even, as torchvision's CenterCrop does.
    left, top = round((size[0] - preprocess.width) / 2), round((size[1] - preprocess.height) / 2)
    if preprocess.resize == "crop":
        return image.crop((left, top, left + preprocess.width, top + preprocess.height))
    canvas = Image.new(preprocess.color, (preprocess.width, preprocess.height), _fill(preprocess))
    canvas.paste(image, ((preprocess.width - size[0]) // 2, (preprocess.height - size[1]) // 2))
    return canvas


def _check_resizing(size: tuple[int, int], preprocess: Preprocess, max_bytes: int) -> tuple[int, int]:
    """Return the size to resample to. Raises ImageError if it is too large, as for a strip of 1 x 100,000 pixels."""
    to_width, to_height = _resampled_size(size, preprocess)
    most = max(to_width * to_height, to_width * size[1])
    if most > MAX_PIXELS or most * 4 > max_bytes:
        raise ImageError(
            "too-large",
            f"{size[0]:,} x {size[1]:,} pixels would be resized to {to_width:,} x {to_height:,} before the crop; "
            "crop the image first",
        )
    return to_width, to_height


def convert_color(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Convert to the spec's color mode: 16 bits are scaled, transparency is composited over the background.

    Raises:
        ImageError: The pixels have no defined interpretation.
    """
    if image.mode.startswith("I"):
        image = _scale_16_bits(image)
    if image.mode == "F":
        raise ImageError("unsupported", "floating-point pixels have no defined white; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = preprocess.background if preprocess.color == "RGB" else preprocess.background * 3
        canvas = Image.new("RGBA", image.size, (*background, 255))
        canvas.alpha_composite(image)
        image = canvas
    return image if image.mode == preprocess.color else image.convert(preprocess.color)


def _resampled_size(size: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    """Return (width, height) to resample to before cropping or padding. For a square crop as torchvision's Resize."""
    if preprocess.resize == "squash":
        return preprocess.width, preprocess.height
    width, height = size
    # Rounded: 224 / 0.9655 must be 232 again, which the ratio was computed from.
    ratio = preprocess.crop_ratio if preprocess.resize == "crop" else 1.0
    to_width, to_height = round(preprocess.width / ratio), round(preprocess.height / ratio)
    width_decides = width * to_height <= height * to_width
    if preprocess.resize == "pad":
        width_decides = not width_decides
    if width_decides:
        return to_width, max(1, int(to_width * height / width))
    return max(1, int(to_height * width / height)), to_height


def open_image(file: IO[bytes]) -> Image.Image:
    """Open an image file by its first bytes; no pixels are decoded yet.

    Raises:
        ImageError: It is no supported image, or its header is damaged.
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if not head:
        raise ImageError("empty", "the file has zero bytes")
    if (detected := detect_format(head)) is not None:
        name, plugin = detected
        # Not Image.open: it loads five plugins for one image, 8 ms of a cold start.
        importlib.import_module(f"PIL.{plugin}")
        try:
            return Image.OPEN[name][0](file, "")
        except MemoryError:
            raise
        except Exception as error:
            # Damage makes Pillow's plugins raise nearly anything: SyntaxError, struct.error, IndexError, …
            raise _damaged_error(name, error) from None
    hint = "; convert HEIC and AVIF to JPEG" if head[4:8] == b"ftyp" else ""
    raise ImageError("not-an-image", f"it starts with {head!r}, which is no supported image format{hint}")


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if max(size) > MAX_SIDE:
        raise ImageError(
            "too-large", f"{width:,} x {height:,} pixels, expected at most {MAX_SIDE:,} per side; crop the image first"
        )
    if width * height > MAX_PIXELS:
        raise ImageError(
            "too-large",
            f"{width:,} x {height:,} pixels, expected at most {MAX_PIXELS:,} in total; scale it down",
        )


def _check_budget(image: Image.Image, size: tuple[int, int], preprocess: Preprocess, max_bytes: int) -> None:
    """Raise ImageError if decoding takes too much; `size` is that of the image before a JPEG is reduced."""
    from clf_runtime import budget  # most images do not need it

    budget.check_scans(image)
    needed = budget.decoding_bytes(image, size, preprocess)
    if needed > max_bytes:
        raise ImageError(
            "too-large",
            f"decoding {size[0]:,} x {size[1]:,} pixels of mode {image.mode} takes {needed:,} bytes, expected at most "
            f"{max_bytes:,}; scale it down or raise --max-image-bytes",
        )


def _decode(image: Image.Image, preprocess: Preprocess, max_bytes: int) -> Image.Image:
    size = image.size
    _check_size(size)
    try:
        _reduce_jpeg(image, preprocess)
        if size[0] * size[1] * _MOST_BYTES_PER_PIXEL > max_bytes or has_several_scans(image):
            _check_budget(image, size, preprocess, max_bytes)
        if max(size) > _ELONGATED * min(size) and preprocess.resize != "squash":
            _check_resizing_of(image.size, preprocess, max_bytes)
        if image.format == "TIFF":
            from clf_runtime import tiff  # most images do not need it

            tiff.silence()
        file = image.fp if _is_large_png(image) and isinstance(image, ImageFile.ImageFile) else None
        image.load()
        if file is not None and _may_end_early(image):
            from clf_runtime import png  # most images do not need it

            png.check_is_complete(file)
        # After loading: a PNG may have its EXIF block behind its pixels, and Pillow rotates a TIFF while it loads it.
        orientation = _orientation(image)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        return convert_color(image, preprocess)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # Damage makes Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error, IndexError, …
        raise _damaged_error(image.format or "image", error) from None


def _is_large_png(image: Image.Image) -> bool:
    return image.format == "PNG" and image.width * image.height > _UNCHECKED_PIXELS


def _may_end_early(image: Image.Image) -> bool:
    """Return whether pixels of a PNG may be missing: they are black, and the last ones unless it is interlaced."""
    last = image.crop((0, image.height - 1, *image.size))
    return bool(image.info.get("interlace")) or last.getbbox() is None


def has_several_scans(image: Image.Image) -> bool:
    """Return whether libjpeg decodes several scans, each of which can take as long as the image: a progressive JPEG, or
    one whose first scan has not all components."""
    if image.format not in _JPEG or not isinstance(image, ImageFile.ImageFile) or image.fp is None:
        return False
    if "progressive" in image.info:
        return True
    count = len(image.getbands())
    # The header was read up to the end of the marker segment of the first scan.
    end = image.fp.tell()
    image.fp.seek(max(0, end - 8 - 2 * count))
    marker = image.fp.read(5)
    image.fp.seek(end)
    return marker != b"\xff\xda" + bytes((0, 6 + 2 * count, count))


def _check_resizing_of(size: tuple[int, int], preprocess: Preprocess, max_bytes: int) -> None:
    """Raise ImageError if an image that is not decoded yet will be too large to be resized, upright or not."""
    try:
        _check_resizing(size, preprocess, max_bytes)
    except ImageError:
        _check_resizing(size[::-1], preprocess, max_bytes)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:
        # Pillow raises nearly anything for a broken EXIF block; the image itself can be intact.
        return 1


def _reduce_jpeg(image: Image.Image, preprocess: Preprocess) -> None:
    """Let the JPEG decoder skip detail that resampling would discard (DCT scaling)."""
    if image.format not in _JPEG:
        return
    sideways = _orientation(image) in _SIDEWAYS
    size = image.size[::-1] if sideways else image.size
    width, height = _resampled_size(size, preprocess)
    if sideways:
        width, height = height, width
    image.draft(None, (SHORTCUT_MARGIN * width, SHORTCUT_MARGIN * height))


def _scale_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 0xFFFF):
        raise ImageError("unsupported", "more than 16 bits per pixel; save it with 8 or 16 bits")
    return Image.fromarray(((values.astype(np.uint32) * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8))


def _image_from_array(pixels: npt.NDArray[Any]) -> Image.Image:
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3, 4) or not pixels.size:
        found = f"{pixels.dtype} {pixels.shape}"
        raise ImageError("unsupported", f"the array is {found}, expected uint8 (H, W) or (H, W, C), C = 1, 3 or 4")
    return Image.fromarray(pixels.reshape(pixels.shape[:2]) if channels == 1 else pixels)


def _damaged_error(name: str, error: Exception) -> ImageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ImageError("damaged", f"the {name} data cannot be decoded ({reason})")


def _fill(preprocess: Preprocess) -> int | tuple[int, ...]:
    return preprocess.background[0] if preprocess.color == "L" else preprocess.background
