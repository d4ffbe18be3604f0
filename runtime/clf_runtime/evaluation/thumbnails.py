"""Small copies of images, as data URIs for a page that needs no other file."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

from clf_runtime.errors import ImageError
from clf_runtime.preprocess import decode_image
from clf_runtime.sources import ImageSource
from clf_runtime.spec import Preprocess

_MAX_SIDE = 200
_PNG_SIDE = 64  # below, every pixel is visible and no JPEG is used
_JPEG_QUALITY = 80


def thumbnail_uri(source: ImageSource, preprocess: Preprocess) -> str | None:
    """Return an image, upright, in color and in its own aspect ratio; None if it cannot be read any more.

    Args:
        source: The image.
        preprocess: That of the model; its background is drawn under transparency.
    """
    if isinstance(source.content, ImageError):
        return None
    background = preprocess.background if preprocess.color == "RGB" else preprocess.background * 3
    # The size is that of the thumbnail, so that a large JPEG is decoded at a reduced size.
    upright = replace(
        preprocess, color="RGB", background=background, width=_MAX_SIDE, height=_MAX_SIDE, resize="squash"
    )
    try:
        image = decode_image(source.content, upright)
    except ImageError:
        return None
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    kind = "png" if max(image.size) <= _PNG_SIDE else "jpeg"
    file = io.BytesIO()
    image.save(file, kind, quality=_JPEG_QUALITY, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
