"""Preprocessing: every image becomes pixels of the right shape, or an error with its kind."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib

import numpy as np
import pytest
from odd_images import drawing, odd_images
from PIL import Image

from clf_runtime import tiff
from clf_runtime.budget import decoding_bytes
from clf_runtime.classifier import Classifier
from clf_runtime.errors import IMAGE_ERROR_KINDS, ImageError
from clf_runtime.image_files import MAX_IMAGE_BYTES, image_error_from_os_error
from clf_runtime.preprocess import MAX_PIXELS, has_several_scans, open_image, pixels_from_image
from clf_runtime.spec import Preprocess

RGB = Preprocess("RGB", 24, 32, "squash", 1.0, "bilinear", (255, 255, 255))
GRAY = Preprocess("L", 24, 32, "squash", 1.0, "bilinear", (255,))


def png(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)  # type: ignore[arg-type]
    return file.getvalue()


def error_of(image: object, preprocess: Preprocess = RGB) -> ImageError:
    """Return the error for an image."""
    with pytest.raises(ImageError) as error:
        pixels_from_image(image, preprocess)  # type: ignore[arg-type]
    assert error.value.kind in IMAGE_ERROR_KINDS
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize("preprocess", [RGB, GRAY], ids=["RGB", "L"])
def test_every_kind_of_image_becomes_uint8_of_the_expected_shape(tmp_path, preprocess):
    for path in odd_images(tmp_path).values():
        pixels = pixels_from_image(path, preprocess)
        assert (pixels.dtype, pixels.shape) == (np.uint8, preprocess.shape), path


def test_path_bytes_file_image_and_array_have_the_same_pixels(tmp_path):
    image = drawing(80, 60)
    path = tmp_path / "a.png"
    image.save(path)
    expected = pixels_from_image(str(path), RGB)
    with path.open("rb") as file:
        others = [path, path.read_bytes(), file, io.BytesIO(path.read_bytes()), image, np.asarray(image)]
        for other in others:
            np.testing.assert_array_equal(pixels_from_image(other, RGB), expected)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1)])
def test_a_gray_array_may_have_a_channel_axis(shape):
    assert pixels_from_image(np.full(shape, 7, np.uint8), RGB).tolist() == np.full(RGB.shape, 7).tolist()


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_results_in_the_same_upright_image(tmp_path, orientation, suffix):
    upright = drawing(64, 48)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(pixels_from_image(path, RGB), pixels_from_image(upright, RGB))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("block", [b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00nonsense"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_with_a_broken_exif_block_is_decoded(kind, block):
    file = io.BytesIO()
    drawing(40, 30).save(file, kind, exif=block)
    assert pixels_from_image(file.getvalue(), RGB).shape == RGB.shape


def test_a_file_too_large_to_be_read_at_once_has_the_same_pixels(tmp_path):
    path = tmp_path / "large.bmp"
    drawing(900, 700).save(path)
    assert path.stat().st_size > 1_800_000
    np.testing.assert_array_equal(pixels_from_image(path, RGB), pixels_from_image(path.read_bytes(), RGB))


def test_16_bits_are_scaled_and_not_clipped():
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    preprocess = Preprocess("L", 1, 6, "squash", 1.0, "bilinear", (0,))
    assert pixels_from_image(png(Image.fromarray(values)), preprocess)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_transparency_is_composited_over_the_background_and_not_over_black():
    clear = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    preprocess = Preprocess("RGB", 5, 5, "squash", 1.0, "bilinear", (9, 80, 200))
    assert (pixels_from_image(png(clear), preprocess) == (9, 80, 200)).all()
    assert (pixels_from_image(png(clear), GRAY) == 255).all()


def test_only_the_first_frame_of_an_animation_is_used(tmp_path):
    animated = odd_images(tmp_path)["animated.gif"]
    with Image.open(animated) as image:
        first = image.convert("RGB")
    np.testing.assert_array_equal(pixels_from_image(animated, RGB), pixels_from_image(first, RGB))


def test_crop_takes_the_center_and_pad_keeps_everything():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    crop = Preprocess("RGB", 10, 10, "crop", 1.0, "bilinear", (1, 2, 3))
    pad = Preprocess("RGB", 30, 30, "pad", 1.0, "bilinear", (1, 2, 3))
    assert (pixels_from_image(pixels, crop) == 200).all()
    padded = pixels_from_image(pixels, pad)
    np.testing.assert_array_equal(padded[10:20], pixels)
    assert (padded[:10] == (1, 2, 3)).all()
    assert (padded[20:] == (1, 2, 3)).all()


def test_a_gray_pad_uses_the_gray_background():
    pad = Preprocess("L", 30, 10, "pad", 1.0, "bilinear", (77,))
    assert pixels_from_image(np.zeros((10, 10), np.uint8), pad)[0, 0, 0] == 77


def test_a_huge_jpeg_is_decoded_at_reduced_size_and_looks_the_same(tmp_path):
    path = tmp_path / "huge.jpg"
    drawing(2000, 1500).save(path, quality=95)
    exact = pixels_from_image(Image.open(path).convert("RGB"), RGB).astype(int)
    assert np.abs(pixels_from_image(path, RGB).astype(int) - exact).mean() < 1.5


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"", "empty", "zero bytes"),
        (b"hello, this is a letter", "not-an-image", "starts with b'hello"),
        (b"<html><body>404</body></html>", "not-an-image", "<html>"),
        (b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00", "not-an-image", "convert HEIC"),
        (b"RIFF\x00\x00\x00\x00WAVE", "not-an-image", "RIFF"),
        (b"\xff\xd8\xff\xe0", "damaged", "JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "damaged", "PNG"),
        (b"GIF89a" + bytes(3), "damaged", "GIF"),
        (b"BM", "damaged", "BMP"),
        (b"II*\x00\xff\xff\xff\xff", "damaged", "TIFF"),
        (b"P6 junk", "damaged", "PPM"),
    ],
)
def test_content_that_is_no_image_is_an_error_with_its_kind(content, kind, message):
    error = error_of(content)
    assert error.kind == kind
    assert message in str(error)


def pixels_or_kind(content: bytes) -> np.ndarray | str:
    """Return the pixels, or the kind of the error."""
    try:
        return pixels_from_image(content, RGB)
    except ImageError as error:
        return error.kind


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_image_truncated_at_any_byte_is_an_error_or_complete():
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "PPM", "BMP", "TIFF"):
        content = encoded(kind)
        complete = pixels_from_image(content, RGB)
        outcomes = [pixels_or_kind(content[:end]) for end in range(len(content))]
        # Only checksums and the trailer may be missing from an image that is decoded.
        assert all(isinstance(outcome, str) for outcome in outcomes[:-24])
        assert set(outcomes[:-24]) == {"empty", "not-an-image", "damaged"}
        for outcome in outcomes[-24:]:
            assert isinstance(outcome, str) or np.array_equal(outcome, complete)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_image_with_a_flipped_bit_is_decoded_or_an_image_error_and_nothing_else():
    source = np.random.default_rng(0)
    seen = set()
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"):
        content = encoded(kind)
        for position in source.integers(0, len(content), 200):
            broken = bytearray(content)
            broken[position] ^= 1 << int(source.integers(8))
            outcome = pixels_or_kind(bytes(broken))
            seen.add(outcome if isinstance(outcome, str) else outcome.shape)
    assert {"damaged", RGB.shape} <= seen <= {*IMAGE_ERROR_KINDS, RGB.shape}


def test_a_decompression_bomb_is_an_error_before_it_is_decoded():
    side = 10_000
    row = zlib.compress(bytes(side // 8 + 1) * side, 9)
    header = side.to_bytes(4, "big") * 2 + b"\x01\x00\x00\x00\x00"
    bomb = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", row) + _chunk(b"IEND", b"")
    error = error_of(bomb)
    assert error.kind == "too-large"
    assert f"at most {MAX_PIXELS:,}" in str(error)


def test_a_decompression_bomb_larger_than_pillows_own_limit_is_an_error():
    header = (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    bomb = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")
    assert error_of(bomb).kind == "too-large"


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (1, 80_000_000, "at most 65,535 per side"),
        (9400, 9400, "of mode RGBA takes 1,413,760,000 bytes, expected at most 512,000,000"),
        (60_000, 60_000, "in total"),
    ],
)
def test_an_image_that_would_take_gigabytes_is_an_error_from_its_header(width, height, message):
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x06\x00\x00\x00"
    error = error_of(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b""))
    assert error.kind == "too-large"
    assert message in str(error)


def test_the_budget_counts_what_each_mode_and_format_takes(tmp_path):
    for path in odd_images(tmp_path).values():
        with pytest.raises(ImageError) as error:
            pixels_from_image(path, RGB, 1)
        assert error.value.kind in ("too-large", "unsupported"), path
        assert pixels_from_image(path, RGB).shape == RGB.shape


def test_a_progressive_jpeg_needs_its_coefficients_and_few_scans():
    file = io.BytesIO()
    drawing(640, 480).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    assert pixels_from_image(content, RGB).shape == RGB.shape
    with pytest.raises(ImageError, match=r"mode RGB takes [\d,]+ bytes, expected at most 1,000,000;"):
        pixels_from_image(content, RGB, 1_000_000)
    last = content.rindex(b"\xff\xda")
    error = error_of(content[:last] + content[last:-2] * 500 + content[-2:])
    assert (error.kind, "scans in a JPEG" in str(error)) == ("too-large", True)
    assert pixels_from_image(Image.open(io.BytesIO(content)), RGB).shape == RGB.shape
    loaded = Image.open(io.BytesIO(content))
    loaded.load()
    assert pixels_from_image(loaded, RGB).shape == RGB.shape


def png_from_rows(size: tuple[int, int], data: bytes, color: int = 0, interlaced: int = 0) -> bytes:
    """Return a PNG of 8 bits whose compressed data contain these bytes."""
    header = struct.pack(">IIBBBBB", *size, 8, color, 0, 0, interlaced)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("color", [0, 2, 6])
@pytest.mark.parametrize("value", [0, 7])
def test_a_png_whose_compressed_data_end_early_is_damaged(interlaced, color, value):
    samples = {0: 1, 2: 3, 6: 4}[color]
    passes = [(10, 10), (10, 10), (20, 10), (20, 20), (40, 20), (40, 40), (80, 40)] if interlaced else [(80, 80)]
    data = b"".join((b"\0" + bytes([value]) * columns * samples) * rows for columns, rows in passes)
    complete = png_from_rows((80, 80), data, color, interlaced)
    assert pixels_from_image(complete, RGB).shape == RGB.shape
    for missing in (1, len(data) // 2, len(data)):
        assert error_of(png_from_rows((80, 80), data[:-missing], color, interlaced)).kind == "damaged"


def test_a_png_that_pillow_writes_is_complete_whatever_its_kind():
    for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "I;16"):
        assert pixels_from_image(png(Image.new(mode, (130, 70))), RGB).shape == RGB.shape


def baseline_jpeg_of_scans(scans: int) -> bytes:
    """Return a JPEG that is not progressive, with a scan for each component and the last of them repeated."""
    file = io.BytesIO()
    drawing(64, 48).convert("L").save(file, "JPEG")
    gray = file.getvalue()
    frame, scan = gray.index(b"\xff\xc0"), gray.index(b"\xff\xda")
    size = gray[frame + 4 : frame + 9]
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    header = gray[:frame] + b"\xff\xc0" + bytes((0, 17)) + size + b"\x03" + components + gray[frame + 13 : scan]
    data = gray[scan + 10 : -2]
    numbers = (1, 2, *[3] * (scans - 2))
    return header + b"".join(b"\xff\xda\x00\x08\x01%c\x00\x00\x3f\x00" % n + data for n in numbers) + b"\xff\xd9"


def test_the_scans_of_a_baseline_jpeg_are_counted_too():
    assert pixels_from_image(baseline_jpeg_of_scans(3), RGB).shape == RGB.shape
    error = error_of(baseline_jpeg_of_scans(101))
    assert (error.kind, str(error)) == ("too-large", "101 scans in a JPEG, expected at most 100; save it again")
    assert not has_several_scans(Image.open(io.BytesIO(encoded("JPEG"))))
    assert has_several_scans(Image.open(io.BytesIO(baseline_jpeg_of_scans(3))))


@pytest.mark.parametrize(("mode", "per_pixel"), [("RGB", 18), ("RGBA", 28)])
def test_a_webp_photo_of_24_megapixels_fits_into_the_default(mode, per_pixel):
    file = io.BytesIO()
    Image.new(mode, (40, 30), 5).save(file, "WEBP")
    file.seek(0)
    image = open_image(file)
    assert decoding_bytes(image, image.size, RGB) == per_pixel * 40 * 30
    assert decoding_bytes(image, image.size, RGB) * (24_000_000 // (40 * 30)) < MAX_IMAGE_BYTES or mode == "RGBA"


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_strip_that_cannot_be_resized_is_an_error_before_it_is_decoded(size):
    crop = Preprocess("RGB", 224, 224, "crop", 1.0, "bilinear", (0, 0, 0))
    content = png(Image.new("L", size))
    error = error_of(content[: content.index(b"IDAT") + 8], crop)  # decoding would find no pixels
    assert (error.kind, "before the crop" in str(error)) == ("too-large", True)


def test_a_strip_whose_resizing_takes_too_much_is_an_error():
    wide = Preprocess("RGB", 8, 4000, "squash", 1.0, "bilinear", (0, 0, 0))
    assert error_of(np.zeros((60_000, 1), np.uint8), wide).kind == "too-large"


def test_a_lack_of_memory_is_a_record_of_the_image_that_needed_it(model, samples, monkeypatch):
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    classifier = Classifier.load(model)
    monkeypatch.setitem(Image.OPEN, "GIF", (fail, None))
    results = classifier.predict_batch([samples[0], encoded("GIF"), samples[1]])
    assert [getattr(result, "kind", None) for result in results] == [None, "too-large", None]


def test_a_list_of_images_is_not_one_image(model):
    with pytest.raises(TypeError, match=r"expected one image .*, found list"):
        Classifier.load(model).predict(["a.png"])


def test_a_lack_of_memory_is_not_an_error_of_the_image(monkeypatch):
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    content = png(drawing(9, 9))
    monkeypatch.setitem(Image.OPEN, "PNG", (fail, None))
    with pytest.raises(MemoryError):
        pixels_from_image(content, RGB)


def test_a_strip_that_would_be_huge_before_its_crop_is_an_error():
    crop = Preprocess("RGB", 224, 224, "crop", 1.0, "bilinear", (0, 0, 0))
    assert error_of(np.zeros((1, 200_000), np.uint8), crop).kind == "too-large"


@pytest.mark.parametrize(
    "image",
    [Image.new("F", (4, 4), 0.5), Image.new("I", (4, 4), 70_000), Image.new("I", (4, 4), -1)],
    ids=["float", "32-bit", "negative"],
)
def test_pixels_without_a_defined_white_are_unsupported(image):
    assert error_of(image).kind == "unsupported"


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4), np.uint8)],
    ids=["float", "two channels", "one axis", "no pixels"],
)
def test_an_array_of_another_type_or_shape_is_unsupported(array):
    error = error_of(array)
    assert error.kind == "unsupported"
    assert "expected uint8 (H, W)" in str(error)


def test_an_array_of_four_channels_is_composited_like_an_rgba_file():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    assert np.array_equal(pixels_from_image(pixels, RGB), pixels_from_image(png(Image.fromarray(pixels)), RGB))


def test_a_pipe_a_socket_a_folder_and_a_device_are_errors_without_waiting(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    pipe, unix_socket = tmp_path / "pipe.jpg", tmp_path / "socket.jpg"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(tmp_path)
        listening.bind("socket.jpg")
        # A pipe without a writer would block for ever.
        kinds = [error_of(path).kind for path in (pipe, unix_socket, tmp_path, "/dev/zero", tmp_path / "no.jpg")]
    assert kinds == ["not-a-file", "not-a-file", "not-a-file", "not-a-file", "not-found"]


def test_a_file_that_may_not_be_read_is_an_error_with_its_kind():
    error = image_error_from_os_error(PermissionError(13, "Permission denied"))
    assert (error.kind, str(error)) == ("no-permission", "permission denied")
    assert image_error_from_os_error(OSError(5, "Input/output error")).kind == "unreadable"


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    drawing(30, 20).save(file, kind)
    return file.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def test_libtiff_prints_nothing_about_a_damaged_file(capfd):
    stored = io.BytesIO()
    Image.effect_noise((300, 300), 100).convert("1").save(stored, "TIFF", compression="group4")
    damaged = bytearray(stored.getvalue())
    damaged[2000:-2000:97] = bytes(byte ^ 0x5A for byte in damaged[2000:-2000:97])
    pixels_from_image(bytes(damaged), GRAY)
    assert capfd.readouterr().err == ""


def test_a_system_without_a_list_of_libraries_decodes_tiff_all_the_same(tmp_path):
    (tmp_path / "maps").write_text("7f00-7f01 r-xp 0 08:02 7 /usr/lib/libjpeg.so.62\n7f02-7f03 rw-p 0 00:00 0\n")
    for name in ("maps", "none"):
        tiff.silence(tmp_path / name)


def test_a_black_png_that_ends_behind_its_pixels_is_complete():
    content = png(Image.new("RGB", (130, 70)))
    assert (pixels_from_image(content[: content.index(b"IEND") - 4], RGB) == 0).all()
