"""`--annotate DIR`: the images, upright, with their answers in a bar below them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clf_runtime import files
from clf_runtime.errors import ImageError, MachineError, UsageError
from clf_runtime.predictions import Prediction, Result
from clf_runtime.preprocess import decode_image
from clf_runtime.sources import STDIN, ImageSource
from clf_runtime.spec import Preprocess

# Says that a folder is ours, so that a second run may replace what the first one drew, and nothing else.
MARKER = ".clf-annotations"

# Nothing is read off an image of 8 x 8 pixels on a screen; smaller ones are enlarged by whole pixels.
_LEAST_SIDE = 240
_MOST_SIDE = 16_384  # JPEG ends at 65,535, and no screen has as much
_FONT_SHARE = 1 / 18  # of the shorter side
_FONT_PIXELS = (14, 96)
_NAME_BYTES = 200  # of the 255 that file systems take; a temporary name needs the rest

# Pillow's own font has ASCII. For other labels, the first of these on this system that has all their letters.
_FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc"),  # Linux
    *("arial.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf"),  # Windows
    *("Arial Unicode.ttf", "PingFang.ttc"),  # macOS
)
_IN_NO_FONT = "\U0010ffff"

_GROUND, _KNOWN, _DOUBTED, _INK = (24, 26, 30), (24, 92, 58), (128, 82, 12), (255, 255, 255)


def check(folder: Path, arguments: Iterable[str], recursive: bool) -> None:
    """Refuse a folder of other content, or one that is read itself. Raises UsageError."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--annotate {folder}: it is a file; name a folder")
    if folder.exists() and not (folder / MARKER).exists() and any(folder.iterdir()):
        raise UsageError(f"--annotate {folder}: it holds other files; name a new folder or an empty one")
    inside = folder.resolve()
    for argument in arguments:
        read = Path(argument).resolve()
        if read.is_dir() and (read == inside or (recursive and inside.is_relative_to(read))):
            raise UsageError(f"--annotate {folder}: it lies in {argument}, which is read; name a folder elsewhere")


class Annotations:
    """Draws answers as they pass, into one folder."""

    def __init__(self, folder: Path, preprocess: Preprocess) -> None:
        """Make `folder` where it is not there. `preprocess` is the model's: its background goes under transparency."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).touch()
        self._folder = folder
        # Asking for more pixels than there are keeps the decoder from leaving some out.
        background = preprocess.background if preprocess.color == "RGB" else preprocess.background * 3
        self._preprocess = replace(
            preprocess, color="RGB", background=background, resize="squash", width=_MOST_SIDE, height=_MOST_SIDE
        )
        self._waiting: deque[tuple[ImageSource, Path]] = deque()
        self._taken: set[bytes] = set()

    def noted(self, images: Iterable[ImageSource]) -> Iterator[ImageSource]:
        """Keep images at hand until their answers come, and give each a name of its own."""
        for each in images:
            self._waiting.append((each, self._own(target(each.name))))
            yield each

    def passed_over(self) -> None:
        """Forget the images noted so far: a former run has drawn them."""
        self._waiting.clear()

    def drawn(self, results: Iterable[Result]) -> Iterator[Result]:
        """Draw each answer, then give it on. Raises OSError."""
        for result in results:
            named, path = self._waiting.popleft()
            if isinstance(result, Prediction) and not isinstance(named.source, ImageError):
                # An image that changed since it was classified has its answer all the same.
                with contextlib.suppress(ImageError):
                    self._write(path, annotated(decode_image(named.source, self._preprocess), result))
            yield result

    def _own(self, path: Path) -> Path:
        """Give `path`, or one with a number where another image has it already."""
        number, own = 1, path
        while (key := hashlib.blake2b(os.fsencode(str(own).casefold()), digest_size=8).digest()) in self._taken:
            number += 1
            own = path.with_name(f"{path.stem}-{number}{path.suffix}")
        self._taken.add(key)
        return own

    def _write(self, path: Path, image: Image.Image) -> None:
        where = self._folder / path
        where.parent.mkdir(parents=True, exist_ok=True)
        if not where.parent.resolve().is_relative_to(self._folder.resolve()):
            raise MachineError(f"{where}: a link leads out of {self._folder}; name a new folder")
        encoded = io.BytesIO()
        image.save(encoded, "PNG" if where.suffix.lower() == ".png" else "JPEG", quality=92)
        files.write(where, encoded.getvalue())


def target(name: str) -> Path:
    """Give the path, below the folder, of the image that its record calls `name`."""
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


def annotated(image: Image.Image, prediction: Prediction) -> Image.Image:
    """Give an RGB image with a bar below it: a line for each label, filled as far as its probability goes."""
    image = _viewable(image)
    width = max(image.width, _LEAST_SIDE)
    font = _font(round(min(image.size) * _FONT_SHARE))
    rows = [(each.label, each.score) for each in prediction.top]
    if prediction.index is None:
        rows[0] = (f"{prediction.label} ({rows[0][0]}?)", prediction.score)
    height = round(sum(font.getmetrics()) * 1.4)
    canvas = Image.new("RGB", (width, image.height + height * len(rows)), _GROUND)
    canvas.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    color = _DOUBTED if prediction.index is None else _KNOWN
    for place, (label, score) in enumerate(rows):
        top = image.height + place * height
        draw.rectangle((0, top, max(0, round(width * score) - 1), top + height - 1), color)
        written, has_it = _writable(label, font)
        _write_row(draw, (width, top + height // 2), height // 3, (written, f"{score:.3f}"), has_it)
    return canvas


def _viewable(image: Image.Image) -> Image.Image:
    if max(image.size) > _MOST_SIDE:
        image.thumbnail((_MOST_SIDE, _MOST_SIDE))
    factor = -(-_LEAST_SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _font(pixels: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(min(max(_FONT_PIXELS[0], pixels), _FONT_PIXELS[1]))
    assert isinstance(font, ImageFont.FreeTypeFont)  # so it is wherever a size is asked for
    return font


def _write_row(
    draw: ImageDraw.ImageDraw,
    end: tuple[int, int],
    margin: int,
    texts: tuple[str, str],
    font: ImageFont.FreeTypeFont,
) -> None:
    """Write a label from the left and its score up to `end`; a label too long loses its end."""
    (width, middle), (label, score) = end, texts
    room = width - 3 * margin - font.getlength(score)
    shown = label
    while shown and font.getlength(shown) > room:
        label = label[:-1]
        shown = f"{label}..." if label else ""
    draw.text((margin, middle), shown, _INK, font, "lm")
    draw.text((width - margin, middle), score, _INK, font, "rm")


def _writable(label: str, font: ImageFont.FreeTypeFont) -> tuple[str, ImageFont.FreeTypeFont]:
    """Give what to write for `label`, and the font to do it with: `font`, or one of the system's of its size."""
    shown = "".join(each if each.isprintable() else "?" for each in label)
    other = None if shown.isascii() else _font_with(frozenset(shown), round(font.size))
    return (_latin(shown), font) if other is None else (shown, other)


@functools.lru_cache
def _font_with(letters: frozenset[str], pixels: int) -> ImageFont.FreeTypeFont | None:
    for name in _FONTS:
        try:
            font = ImageFont.truetype(name, pixels)
        except OSError:
            continue
        missing = bytes(font.getmask(_IN_NO_FONT))
        if not any(bytes(font.getmask(each)) == missing for each in letters):
            return font
    return None


def _latin(label: str) -> str:
    """Give `label` in the letters that Pillow's own font has: ASCII, without accents."""
    plain = (each for each in unicodedata.normalize("NFKD", label) if not unicodedata.combining(each))
    return "".join(each if each.isascii() else "?" for each in plain)
