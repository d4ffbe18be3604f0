"""`--annotate DIR`: the images, upright, with their labels and scores as bars below them."""

from __future__ import annotations

import bisect
import contextlib
import functools
import hashlib
import io
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clf_runtime import files
from clf_runtime.errors import ImageError, MachineError, UsageError
from clf_runtime.image_files import MAX_IMAGE_BYTES
from clf_runtime.predictions import Failure, Prediction, Result
from clf_runtime.preprocess import decode_image
from clf_runtime.sources import STDIN, ImageSource
from clf_runtime.spec import Preprocess

# Marks a folder as ours, so that a later run may replace what an earlier one drew, and nothing else.
MARKER = ".clf-annotations"

# Small images are enlarged by an integer factor: 8 x 8 pixels are not legible on a screen.
_MIN_SIDE = 240
_MAX_SIDE = 16_384  # the limit of JPEG is 65,535
_FONT_RATIO = 1 / 18  # of the shorter side
_FONT_PIXELS = (14, 96)
_MAX_ROWS = 20  # 1,000 of a photo took 3 GB
_NAME_BYTES = 200  # of the 255 that file systems allow; a temporary name needs the rest

# Pillow's own font covers ASCII. For other labels, the first of these that this system has and that covers them.
_FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc"),  # Linux
    *("arial.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf"),  # Windows
    *("Arial Unicode.ttf", "PingFang.ttc"),  # macOS
)
_IN_NO_FONT = "\U0010ffff"  # drawn as a font draws characters that it lacks

_BACKGROUND, _GREEN, _AMBER, _WHITE = (24, 26, 30), (24, 92, 58), (128, 82, 12), (255, 255, 255)


def check_folder(folder: Path, arguments: Iterable[str], recursive: bool) -> None:
    """Check that images can be written to `folder`.

    Args:
        folder: Where to write.
        arguments: What is read.
        recursive: Whether subfolders are read.

    Raises:
        UsageError: The folder has other content, or is inside a folder that is read.
    """
    if folder.is_symlink() and not folder.exists():
        raise UsageError(f"--annotate {folder}: a link that leads nowhere; name a folder")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--annotate {folder}: this is a file; name a folder")
    if folder.exists() and not (folder / MARKER).exists() and any(folder.iterdir()):
        raise UsageError(f"--annotate {folder}: the folder contains other files; name a new or an empty one")
    inside = Path(os.path.realpath(folder))  # Path.resolve raises for links in a circle
    for argument in arguments:
        read = Path(os.path.realpath(argument))
        if read.is_dir() and (read == inside or (recursive and inside.is_relative_to(read))):
            raise UsageError(
                f"--annotate {folder}: the folder is inside {argument}, which is read; name a folder elsewhere"
            )


class Annotations:
    """Draws predictions into copies of the images, in one folder."""

    def __init__(self, folder: Path, preprocess: Preprocess, max_image_bytes: int = MAX_IMAGE_BYTES) -> None:
        """Store where to write.

        Args:
            folder: The folder.
            preprocess: The model's preprocessing; its background is drawn under transparency.
            max_image_bytes: The memory that decoding an image, here in full size, may take.
        """
        self._folder = folder
        self._max_image_bytes = max_image_bytes
        background = preprocess.background if preprocess.color == "RGB" else preprocess.background * 3
        # With a target that is larger than any image, the decoder does not reduce a JPEG.
        self._preprocess = replace(
            preprocess, color="RGB", background=background, resize="squash", width=_MAX_SIDE, height=_MAX_SIDE
        )
        self._used_paths: set[bytes] = set()

    def create_folder(self) -> None:
        """Create the folder if it does not exist, and mark it as ours. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / MARKER).touch()

    def skip(self, source: ImageSource) -> None:
        """Reserve the path of an image that an earlier run has drawn."""
        self._reserve_path(target_path(source.name))

    def draw(self, source: ImageSource, result: Result) -> None:
        """Write a copy of the image with its prediction; nothing if it could not be read.

        Raises:
            MachineError: A link leads out of the folder.
            OSError: The copy cannot be written.
        """
        path = self._reserve_path(target_path(source.name))
        if isinstance(result, Failure) or isinstance(source.content, ImageError):
            return
        # An image that has changed since it was classified still has its result.
        with contextlib.suppress(ImageError):
            self._write(
                path, annotate_image(decode_image(source.content, self._preprocess, self._max_image_bytes), result)
            )

    def _reserve_path(self, path: Path) -> Path:
        """Return `path`, or a numbered variant if another image has it already."""
        number, unique = 1, path
        while (key := hashlib.blake2b(os.fsencode(str(unique).casefold()), digest_size=8).digest()) in self._used_paths:
            number += 1
            unique = path.with_name(f"{path.stem}-{number}{path.suffix}")
        self._used_paths.add(key)
        return unique

    def _write(self, path: Path, image: Image.Image) -> None:
        file = self._folder / path
        # First: mkdir would follow the link. Path.resolve raises for links in a circle.
        if not Path(os.path.realpath(file.parent)).is_relative_to(os.path.realpath(self._folder)):
            raise MachineError(f"{file}: a link leads out of {self._folder}; name a new folder")
        file.parent.mkdir(parents=True, exist_ok=True)
        encoded = io.BytesIO()
        image.save(encoded, "PNG" if file.suffix.lower() == ".png" else "JPEG", quality=92)
        files.atomic_write(file, encoded.getvalue())


def target_path(name: str) -> Path:
    """Return the path below the folder for the image whose result has the path `name`."""
    if name == STDIN:
        return Path("stdin.png")
    path = Path(os.path.normpath(name))
    parts = ["_" if part == os.pardir else part for part in path.parts if part != path.anchor]
    last = parts.pop() if parts else "_"
    if Path(last).suffix.lower() not in (".jpg", ".jpeg", ".png"):
        last += ".png"
    if len(os.fsencode(last)) > _NAME_BYTES:
        digest = hashlib.blake2b(os.fsencode(last), digest_size=4).hexdigest()
        last = os.fsdecode(os.fsencode(last)[: _NAME_BYTES - 16]) + f"-{digest}{Path(last).suffix}"
    return Path(*parts, last)


def annotate_image(image: Image.Image, prediction: Prediction) -> Image.Image:
    """Return an RGB image with one line per label below it, at most 20, filled in proportion to the probability."""
    image = _scale_to_screen(image)
    width = max(image.width, _MIN_SIDE)
    font = _default_font(round(min(image.size) * _FONT_RATIO))
    rows = [(row.label, row.score) for row in prediction.top]
    if prediction.index is None:
        rows[0] = (f"{prediction.label} ({rows[0][0]}?)", prediction.score)
    height = round(sum(font.getmetrics()) * 1.4)
    rows = rows[:_MAX_ROWS]
    canvas = Image.new("RGB", (width, image.height + height * len(rows)), _BACKGROUND)
    canvas.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    color = _AMBER if prediction.index is None else _GREEN
    for position, (label, score) in enumerate(rows):
        top = image.height + position * height
        draw.rectangle((0, top, max(0, round(width * score) - 1), top + height - 1), color)
        text, font_of_text = _choose_font(label[:width], font)  # no letter is narrower than a pixel
        _draw_row(draw, (width, top + height // 2), height // 3, (text, f"{score:.3f}"), font_of_text)
    return canvas


def _scale_to_screen(image: Image.Image) -> Image.Image:
    if max(image.size) > _MAX_SIDE:
        image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    factor = -(-_MIN_SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _default_font(pixels: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(min(max(_FONT_PIXELS[0], pixels), _FONT_PIXELS[1]))
    assert isinstance(font, ImageFont.FreeTypeFont)  # always, if a size is given
    return font


def _draw_row(
    draw: ImageDraw.ImageDraw,
    end: tuple[int, int],
    margin: int,
    texts: tuple[str, str],
    font: ImageFont.FreeTypeFont,
) -> None:
    """Draw a label from the left, shortened if necessary, and its score up to `end`."""
    (width, middle), (label, score) = end, texts
    available = width - 3 * margin - font.getlength(score)
    draw.text((margin, middle), _shorten(label, font, available), _WHITE, font, "lm")
    draw.text((width - margin, middle), score, _WHITE, font, "rm")


def _shorten(label: str, font: ImageFont.FreeTypeFont, available: float) -> str:
    """Return a label, or as many of its letters as fit with three dots."""
    if font.getlength(label) <= available:
        return label
    kept = bisect.bisect_right(
        range(1, len(label) + 1), available, key=lambda letters: font.getlength(f"{label[:letters]}...")
    )
    return f"{label[:kept]}..." if kept else ""


def _choose_font(label: str, font: ImageFont.FreeTypeFont) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return the text to draw for a label, and a font that covers it: `font`, or a system font of the same size."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in label)
    other = None if shown.isascii() else _find_system_font(frozenset(shown), round(font.size))
    return (_to_ascii(shown), font) if other is None else (shown, other)


@functools.lru_cache
def _find_system_font(letters: frozenset[str], pixels: int) -> ImageFont.FreeTypeFont | None:
    for name in _FONTS:
        try:
            font = ImageFont.truetype(name, pixels)
        except OSError:
            continue
        missing = bytes(font.getmask(_IN_NO_FONT))
        if not any(bytes(font.getmask(letter)) == missing for letter in letters):
            return font
    return None


def _to_ascii(label: str) -> str:
    """Return `label` without accents, and with `?` for every other letter that is not ASCII."""
    letters = (letter for letter in unicodedata.normalize("NFKD", label) if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() else "?" for letter in letters)
