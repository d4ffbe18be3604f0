"""What is fuzzed: each target reads bytes from anyone. Errors that it documents are ignored; any other is a finding."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from clf_runtime import onnx_file
from clf_runtime.diagnostics.selftest import Case, SelfTest
from clf_runtime.errors import ImageError, InvalidModelError
from clf_runtime.onnx_file import footer, metadata_entry, read_header
from clf_runtime.preprocess import pixels_from_image
from clf_runtime.protobuf import ProtobufError, encode_field, read_fields
from clf_runtime.spec import Metrics, ModelSpec, Normalize, Preprocess

_PREPROCESS = Preprocess(
    color="RGB", height=8, width=8, resize="crop", crop_ratio=0.875, resample="bilinear", background=(255, 255, 255)
)

_IMAGE_BYTES = 20_000_000  # a low limit: what is within the usual one takes up to a second


def fuzz_protobuf(content: bytes) -> None:
    """Read the fields of a message, and a header."""
    with contextlib.suppress(ProtobufError):
        for _ in read_fields(content):
            pass
    with contextlib.suppress(ProtobufError, UnicodeDecodeError):
        read_header(content)


def fuzz_spec(content: bytes) -> None:
    """Parse a spec and a self-test; a valid spec is the same after writing and reading it."""
    text = content.decode(errors="replace")
    with contextlib.suppress(InvalidModelError):
        SelfTest.from_json(text, "model.onnx")
    with contextlib.suppress(InvalidModelError):
        spec = ModelSpec.from_json(text, "model.json")
        assert ModelSpec.from_json(spec.to_json(), "model.json") == spec


def fuzz_footer(content: bytes) -> None:
    """Read a file with this content, and with a matching digest behind it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        for tail in (b"", footer(hashlib.sha256(content).hexdigest()), footer("0" * 64)):
            path.write_bytes(content + tail)
            with contextlib.suppress(InvalidModelError):
                onnx_file.read(path)


def fuzz_image(content: bytes) -> None:
    """Decode an image."""
    with contextlib.suppress(ImageError):
        assert pixels_from_image(content, _PREPROCESS, _IMAGE_BYTES).shape == (8, 8, 3)


def seed_images() -> list[bytes]:
    """Return a small image of each format, and of each way in which pixels are stored."""
    gray = Image.radial_gradient("L").resize((20, 20))
    color = Image.merge("RGB", (gray, gray.rotate(90), gray.point(lambda value: 255 - value)))
    alpha = color.convert("RGBA")
    alpha.putalpha(gray)
    palette = color.convert("P", palette=Image.Palette.ADAPTIVE, colors=7)
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        *(_encode(gray, image_format) for image_format in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")),
        _encode(color, "JPEG", progressive=True, exif=exif),
        _encode(color.convert("CMYK"), "JPEG"),
        _encode(color, "MPO", save_all=True, append_images=[gray]),
        _encode(alpha, "PNG", exif=exif),
        _encode(alpha.convert("LA"), "PNG"),
        _encode(palette, "PNG", transparency=b"\x80\xff\x00"),
        _encode(gray.convert("I;16"), "PNG"),
        _encode(gray.convert("1"), "TIFF", compression="group4"),
        _encode(color.convert("CMYK"), "TIFF", compression="tiff_lzw", exif=exif),
        _encode(palette, "GIF", save_all=True, append_images=[palette.rotate(90)], transparency=3),
        _encode(palette, "BMP"),
        _encode(alpha, "WEBP", lossless=True, exif=exif),
        _encode(color, "WEBP", save_all=True, append_images=[color.rotate(90)]),
        b"P3 2 2 255\n0 0 0 255 0 0 0 255 0 9 9 9\n",
    ]


def _encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def seed_texts() -> list[bytes]:
    """Return a spec and a self-test."""
    normalize = Normalize(mean=(0.5,) * 3, std=(0.2,) * 3)
    metrics = Metrics(split="test", images=10, accuracy=0.9, loss=0.3, calibration_error=0.02)
    spec = ModelSpec("lenet", ("a", "b"), _PREPROCESS, normalize, 1.5, metrics, provenance=None)
    self_test = SelfTest(1e-4, (Case("a.png", b"image", (1.0, 2.0)),), classes=(0, 1))
    return [spec.to_json().encode(), self_test.to_json().encode()]


def seed_files() -> list[bytes]:
    """Return the header of a model: versions, a graph with a tensor, and metadata."""
    tensor = b"\x08\x02" + encode_field(8, b"w")
    node = encode_field(1, b"x") + encode_field(5, encode_field(5, tensor))
    graph = encode_field(1, node) + encode_field(5, tensor)
    header = b"\x08\x08" + encode_field(7, graph) + encode_field(8, b"\x10\x12")
    spec = seed_texts()[0].decode()
    return [header + metadata_entry("clf.spec", spec), header + metadata_entry("k", "v")]


# Inputs that `make fuzz` found, one archive for each target; `make corpus` renews them.
CORPUS = Path(__file__).with_name("corpus")

# What a corpus starts from; without it, few inputs get past the first bytes.
SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "protobuf": seed_files,
    "spec": seed_texts,
    "footer": seed_files,
    "image": seed_images,
}
TARGETS: dict[str, Callable[[bytes], None]] = {
    "protobuf": fuzz_protobuf,
    "spec": fuzz_spec,
    "footer": fuzz_footer,
    "image": fuzz_image,
}
