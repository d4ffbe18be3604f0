"""What decoding an image takes, estimated from its header. Imported only for images that are not small.

Peaks of memory were measured for each format and mode with 4,000 x 4,000 pixels (docs/reliability.md).
"""

from __future__ import annotations

from PIL import Image, ImageFile

from clf_runtime.errors import ImageError
from clf_runtime.preprocess import has_several_scans
from clf_runtime.spec import Preprocess

# The script of a progressive JPEG from libjpeg has 10 scans; 500 take seconds for an image of any size.
MAX_SCANS = 100

_BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2}  # Pillow stores all others in 4
# libwebp keeps two RGBA frames, beside the pixels of the file and Pillow's: 16.1 lossy, 17.7 lossless, 26.4 with alpha.
_BYTES_OF_WEBP = {"RGB": 18, "RGBA": 28}
_BYTES_OF_16_BITS = 16
_BYTES_OF_COMPOSITING = 12  # RGBA, the background and the result, beside the image itself


def decoding_bytes(image: Image.Image, size: tuple[int, int], preprocess: Preprocess) -> int:
    """Return the most memory that decoding to the spec's color mode takes.

    Args:
        image: An opened image; a JPEG may have been reduced already.
        size: Its width and height before that.
        preprocess: The model's preprocessing.
    """
    stored = _BYTES_OF_MODE.get(image.mode, 4)
    per_pixel = 2 * stored  # the upright image is a copy
    if image.mode.startswith("I"):
        per_pixel = _BYTES_OF_16_BITS
    elif image.has_transparency_data:
        per_pixel = stored + _BYTES_OF_COMPOSITING
    elif image.mode != preprocess.color:
        # Pillow converts CMYK to gray by way of RGB.
        per_pixel = stored + (4 if preprocess.color == "RGB" else 5 if image.mode == "CMYK" else 1)
    if image.format == "WEBP":
        per_pixel = _BYTES_OF_WEBP[image.mode]
    # libjpeg keeps the coefficients of all scans, 2 bytes each, of the whole image.
    coefficients = 2 * len(image.getbands()) * size[0] * size[1] if has_several_scans(image) else 0
    return per_pixel * image.width * image.height + coefficients


def check_scans(image: Image.Image) -> None:
    """Raise ImageError if a JPEG has so many scans that decoding would take seconds."""
    file = image.fp if isinstance(image, ImageFile.ImageFile) else None
    if file is None or not has_several_scans(image):
        return
    position = file.tell()
    file.seek(0)
    scans = file.read().count(b"\xff\xda")
    file.seek(position)
    if scans > MAX_SCANS:
        raise ImageError("too-large", f"{scans:,} scans in a JPEG, expected at most {MAX_SCANS}; save it again")
