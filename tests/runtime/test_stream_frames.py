"""From a stream of bytes to frames: thumbnails, progressive scans, multipart streams, damage, and bounded memory."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clf_runtime.errors import ImageError
from clf_runtime.streams import walkers
from clf_runtime.streams.frames import FrameSplitter


def encode(seed, kind="JPEG", side=16, **options):
    """Return a noisy image, as a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def with_segment(jpeg, marker, content):
    """Return a JPEG with one more segment at its beginning."""
    return jpeg[:2] + bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content + jpeg[2:]


THUMBNAIL = encode(9, side=8)
FRAMES = [
    encode(0),
    encode(1, progressive=True),
    encode(2, "PNG"),
    encode(3, exif=b"Exif\0\0II*\0" + THUMBNAIL),
    encode(4, restart_marker_blocks=1),
    with_segment(encode(5), 0xFE, b"a comment with \xff\xd9 and \xff\xd8\xff in it"),
    encode(6, "PNG", compress_level=0),
    encode(7, progressive=True, quality=30, exif=b"Exif\0\0II*\0" + THUMBNAIL),
]


def split(stream, sizes=(1 << 20,), **options):
    """Return what a splitter finds, with damage as its message, if it gets pieces of these sizes in turn."""
    splitter, found, position, turn = FrameSplitter(**options), [], 0, 0
    while position < len(stream):
        size = sizes[turn % len(sizes)]
        found += splitter.feed(stream[position : position + size])
        position, turn = position + size, turn + 1
    found += splitter.finish()
    return [str(each) if isinstance(each, ImageError) else each for each in found]


def parts(frames, boundary=b"frame", headers=b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n", end=b"\r\n"):
    """Return a multipart stream."""
    stream = b""
    for frame in frames:
        lines = headers.replace(b"%d", b"%d" % len(frame)).replace(b"\r\n", end)
        stream += b"--" + boundary + end + lines + end + frame + end
    return stream + b"--" + boundary + b"--" + end


SIZES = st.lists(st.integers(1, 3000), min_size=1, max_size=5)


@given(st.lists(st.sampled_from(FRAMES), max_size=6), SIZES, st.sampled_from([b"", b"\0\0\0", b"\r\n"]))
@settings(deadline=None)
def test_frames_of_any_kind_are_found_in_pieces_of_any_size(frames, sizes, padding):
    assert split(padding.join(frames), sizes) == frames


@given(
    st.lists(st.sampled_from(FRAMES), max_size=6),
    SIZES,
    st.sampled_from([b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n", b"Content-type: image/jpeg\r\n", b""]),
    st.sampled_from([b"\r\n", b"\n"]),
    st.booleans(),
)
@settings(deadline=None)
def test_parts_of_a_multipart_stream_are_found_in_pieces_of_any_size(frames, sizes, headers, end, has_response):
    response = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
    assert split(response * has_response + parts(frames, headers=headers, end=end), sizes) == frames


MUTATION = st.tuples(st.integers(0, 100_000), st.integers(0, 300), st.binary(max_size=40))


@given(st.lists(st.sampled_from(FRAMES), min_size=1, max_size=5), st.lists(MUTATION, max_size=4), SIZES, st.booleans())
@settings(deadline=None)
def test_damage_has_the_same_result_in_pieces_of_any_size(frames, mutations, sizes, is_multipart):
    stream = parts(frames) if is_multipart else b"".join(frames)
    for position, removed, inserted in mutations:
        position %= len(stream)
        stream = stream[:position] + inserted + stream[position + removed :]
    assert split(stream, sizes) == split(stream)


GOOD = [encode(seed) for seed in range(100, 104)]
MORE = GOOD * 25  # more than the longest segment of a JPEG


@given(st.sampled_from([*FRAMES[:2], FRAMES[3], FRAMES[4]]), st.lists(MUTATION, min_size=1, max_size=3))
@settings(deadline=None, max_examples=50)
def test_after_a_damaged_frame_the_stream_continues(frame, mutations):
    for position, removed, inserted in mutations:
        position %= len(frame)
        frame = frame[:position] + inserted + frame[position + removed :]
    found = split(GOOD[0] + frame + b"".join(MORE), [700])
    assert found[0] == GOOD[0]
    assert found[-len(GOOD) :] == GOOD


@given(st.lists(st.binary(max_size=200) | st.sampled_from([*FRAMES, b"--a\r\n\r\n", b"HTTP/1.1 "]), max_size=40), SIZES)
@settings(deadline=None)
def test_no_stream_takes_more_memory_than_its_largest_frame(pieces, sizes):
    splitter, stream = FrameSplitter(max_frame_bytes=2000), b"".join(pieces)
    while stream:
        size = sizes[len(stream) % len(sizes)]
        assert all(len(each) <= 2000 + size for each in splitter.feed(stream[:size]) if isinstance(each, bytes))
        assert len(splitter._data) <= 2000
        stream = stream[size:]


CUT = FRAMES[0][:-40]


@pytest.mark.parametrize("sizes", [[1], [50], [1 << 20]], ids=["bytes", "pieces", "whole"])
@pytest.mark.parametrize(
    ("stream", "expected"),
    {
        "begins within a frame": (
            GOOD[0][200:] + GOOD[1] + GOOD[2],
            ["bytes between two frames are no image", *GOOD[1:3]],
        ),
        "a frame without its end": (CUT + GOOD[1], [f"the JPEG breaks off after {len(CUT)} bytes", GOOD[1]]),
        "ends within a frame": (GOOD[0] + CUT, [GOOD[0], f"the stream ends after {len(CUT)} bytes of a frame"]),
        "ends within a signature": (GOOD[0] + b"\x89PN", [GOOD[0], "the stream ends after 3 bytes of a frame"]),
        "two frames without their ends": (
            CUT + CUT + GOOD[1] + GOOD[2],
            [f"the JPEG breaks off after {len(CUT)} bytes"] * 2 + GOOD[1:3],
        ),
        # What is left of the second frame begins with its thumbnail, which is an intact JPEG.
        "a frame whose beginning is lost": (
            CUT + FRAMES[3][FRAMES[3].index(THUMBNAIL) :] + GOOD[1] + GOOD[2],
            [f"the JPEG breaks off after {len(CUT)} bytes", *GOOD[1:3]],
        ),
        "only a frame is left after damage": (b"garbage" + GOOD[0], ["bytes between two frames are no image", GOOD[0]]),
        "a segment of no length": (
            with_segment(GOOD[0], 0xE1, b"")[:4] + b"\0\0" + GOOD[1] + GOOD[2],
            ["the JPEG has a segment of 0 bytes", *GOOD[1:3]],
        ),
        "a marker within a scan": (
            CUT + b"\xff\x02" + GOOD[1],
            [f"the JPEG breaks off after {len(CUT)} bytes", GOOD[1]],
        ),
        "no marker after a segment": (
            GOOD[0][:20] + b"?" + GOOD[1] + GOOD[2],
            ["the JPEG has no marker at its byte 20", *GOOD[1:3]],
        ),
        "a PNG without its end": (
            FRAMES[2][:-12] + FRAMES[2] + FRAMES[6],
            [f"the PNG has no chunk at its byte {len(FRAMES[2]) - 12}", FRAMES[2], FRAMES[6]],
        ),
        "fill bytes before a marker": (
            GOOD[0][:2] + b"\xff\xff" + GOOD[0][2:],
            [GOOD[0][:2] + b"\xff\xff" + GOOD[0][2:]],
        ),
        "hyphens that begin no part": (
            GOOD[0] + b"--\xff\xfe" + GOOD[1],
            [GOOD[0], "a part of a multipart stream has no headers", GOOD[1]],
        ),
        "hyphens like those of a part": (
            CUT + b"--x\r\n\r\nmore damage" + GOOD[1] + GOOD[2],
            [f"the JPEG breaks off after {len(CUT) + 18} bytes", *GOOD[1:3]],
        ),
        "a part of no headers and no image": (b"--x\r\n\r\nno image" + GOOD[1], [GOOD[1]]),
        "hyphens and text": (
            GOOD[0] + b"--?" * 3000 + GOOD[1] + GOOD[2],
            [GOOD[0], "a part of a multipart stream has no headers", *GOOD[1:3]],
        ),
    }.values(),
    ids=lambda value: "" if isinstance(value, (bytes, list)) else None,
)
def test_damage_is_reported_once_and_the_next_frame_is_found(stream, expected, sizes):
    assert split(stream, sizes) == expected


@pytest.mark.parametrize("sizes", [[1], [50], [1 << 20]], ids=["bytes", "pieces", "whole"])
def test_parts_that_are_neither_jpeg_nor_png_end_where_their_length_or_the_boundary_says(sizes):
    webp = encode(1, "WEBP")
    for headers in (b"Content-Length: %d\r\n", b"Content-Type: image/webp\r\n"):
        assert split(parts([webp, b"no image", FRAMES[0]], headers=headers), sizes) == [webp, b"no image", FRAMES[0]]
    stream = b"--x\r\nContent-Length: 999\r\n\r\n" + webp[:50] + b"\r\n" + parts([FRAMES[0]], boundary=b"x")
    assert split(stream, sizes) == ["the part has 51 bytes, expected 999", FRAMES[0]]


@pytest.mark.parametrize("sizes", [[1], [50], [1 << 20]], ids=["bytes", "pieces", "whole"])
def test_a_camera_may_reconnect_with_another_boundary_and_pad_its_images(sizes):
    response = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace\r\n\r\n"
    padded = response + parts(FRAMES[:2]).replace(FRAMES[1], FRAMES[1] + b"trailing bytes of this camera")
    first, second = padded[: len(padded) - 700], parts(FRAMES[2:4], boundary=b"another")
    assert split(padded + second, sizes) == FRAMES[:4]
    assert split(first + second, sizes)[-2:] == FRAMES[2:4]


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_a_damaged_length_of_a_png_chunk_is_noticed_with_the_next_frame(size, monkeypatch):
    monkeypatch.setattr(walkers, "_TRUSTED_CHUNK_BYTES", 1000)
    png = FRAMES[6]
    position = png.index(b"IDAT") - 4
    damaged = png[:position] + (50_000_000).to_bytes(4, "big") + png[position + 4 :]
    assert split(damaged + FRAMES[2] + png, [size]) == [f"the PNG breaks off after {len(png)} bytes", FRAMES[2], png]
    too_long = png[:position] + b"text" + png[position + 4 :]
    assert split(too_long + FRAMES[2] + png, [size])[1:] == [FRAMES[2], png]
    wrong_end = FRAMES[2][:-12] + b"\0\0\0\1" + FRAMES[2][-8:]
    assert split(wrong_end + FRAMES[2] + png, [size])[1:] == [FRAMES[2], png]
    long_chunk = encode(1, "PNG", side=40, compress_level=0)
    assert split(long_chunk + png, [size]) == [long_chunk, png]


def test_a_frame_without_an_end_is_given_up_at_the_limit():
    endless = GOOD[0][:-2] + b"\0" * 5000
    found = split(endless + GOOD[1] + GOOD[2], [100], max_frame_bytes=3000)
    assert found == ["a frame has no end within 3,000 bytes", GOOD[1], GOOD[2]]
