"""What people name on a command line, and the things among it that are no images."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from awkward import drawing
from conftest import BIN
from PIL import Image

from clf_runtime.errors import ImageError
from clf_runtime.sources import find_images

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no such names")


@pytest.fixture
def odd(tmp_path, samples, monkeypatch):
    """Give a folder to be in, whose images have odd names."""
    monkeypatch.chdir(tmp_path)
    for name in ODD:
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(samples[0], name)
    return tmp_path


ODD = ["a b.png", "b\nc.png", os.fsdecode(b"c\xff.png"), "d[1].png", "in/e.png", "in/f.png", "@g.png", "h\r.png"]


def names(*arguments: str, recursive: bool = False) -> list[str]:
    return [image.name for image in find_images(arguments, recursive)]


def refusals(*arguments: str) -> list[tuple[str, str]]:
    found = [(each.name, each.source) for each in find_images(arguments, False)]
    return [(name, source.kind) for name, source in found if isinstance(source, ImageError)]


@pytest.mark.usefixtures("odd")
def test_a_pattern_that_the_shell_did_not_expand_is_expanded():
    assert names("[ab]*.png") == ["a b.png", "b\nc.png"]
    assert names("./in/?.png") == ["./in/e.png", "./in/f.png"]
    assert names("i*") == ["in/e.png", "in/f.png"]
    assert names("**/*.png")[-2:] == ["in/e.png", "in/f.png"]


@pytest.mark.usefixtures("odd")
def test_a_name_that_exists_is_no_pattern_and_no_list():
    assert names("d[1].png", "@g.png") == ["d[1].png", "@g.png"]


@pytest.mark.usefixtures("odd")
def test_a_pattern_that_matches_nothing_is_a_record():
    assert refusals("*.jpeg", "in/[x].png") == [("*.jpeg", "not-found"), ("in/[x].png", "not-found")]


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"a b.png\nin/e.png\n", ["a b.png", "in/e.png"]),
        (b"in/f.png\r\n\r\nin\r\na b.png", ["in/f.png", "in/e.png", "in/f.png", "a b.png"]),
        (b"\xef\xbb\xbfa b.png\n", ["a b.png"]),
        (b"b\nc.png\0c\xff.png\0h\r.png\0", ["b\nc.png", os.fsdecode(b"c\xff.png"), "h\r.png"]),
        (b"none.png\n*.png\n@g.png\n-\n", ["none.png", "*.png", "@g.png", "-"]),
    ],
    ids=["lines", "lines of Windows, and a folder", "byte order mark", "zero bytes", "names are taken as they are"],
)
def test_a_list_names_images_by_lines_or_by_zero_bytes(content, named):
    Path("list.txt").write_bytes(content)
    assert names("@list.txt") == named


@pytest.mark.usefixtures("odd")
def test_a_list_that_gives_nothing_is_a_record():
    Path("empty.txt").write_bytes(b"\n\n")
    found = refusals("@none.txt", "@in", "@empty.txt")
    assert found == [("@none.txt", "not-found"), ("@in", "unreadable"), ("@empty.txt", "empty")]


def test_what_find_prints_comes_through_a_pipe(command, odd, artifacts):
    listed = subprocess.run(["find", ".", "-name", "*.png", "-print0"], cwd=odd, capture_output=True, check=True).stdout
    done = command("clf-run", "-a", artifacts, "@-", "--format", "jsonl", cwd=odd, stdin=listed)
    assert done.code == 0
    assert {json.loads(line)["path"] for line in done.out.splitlines()} == {f"./{name}" for name in ODD}


def test_a_list_through_a_pipe_is_read_once_though_a_bar_counts(odd, artifacts):
    import pty

    ours, terminal = pty.openpty()
    script = f"'{BIN}/clf-run' -a '{artifacts}' @<(printf 'in/e.png\\nin/f.png\\n') in > answers.txt"
    done = subprocess.run(["bash", "-c", script], cwd=odd, stdin=subprocess.DEVNULL, stderr=terminal, timeout=60)
    os.close(terminal)
    os.close(ours)
    assert done.returncode == 0
    paths = [line.split("\t")[0] for line in (odd / "answers.txt").read_text().splitlines()]
    assert paths == ["in/e.png", "in/f.png"] * 2


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    drawing(60, 40).save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def bomb() -> bytes:
    """Give a PNG of 40,000 x 40,000 pixels in some kilobytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = (40_000).to_bytes(4, "big") * 2 + b"\x01\x00\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6)))


CONTENTS = {
    "html.jpg": (b"<!doctype html><title>404</title>", "not-an-image"),
    "letter.png": (b"Dear Sir or Madam,", "not-an-image"),
    "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not-an-image"),
    "pdf.jpg": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "not-an-image"),
    "zip.jpg": (b"PK\x03\x04\x14\x00\x00\x00\x08\x00", "not-an-image"),
    "video.jpg": (b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00", "not-an-image"),
    "iphone.jpg": (b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00", "not-an-image"),
    "sound.webp": (b"RIFF\x24\x00\x00\x00WAVEfmt ", "not-an-image"),
    "zeros.bmp": (bytes(5000), "not-an-image"),
    "one byte.gif": (b"G", "not-an-image"),
    "nothing.png": (b"", "empty"),
    "cut.jpg": (encoded("JPEG")[:400], "damaged"),
    "cut.png": (encoded("PNG")[:400], "damaged"),
    "cut.tif": (encoded("TIFF")[:400], "damaged"),
    "cut.webp": (encoded("WEBP")[:200], "damaged"),
    "cut.bmp": (encoded("BMP")[:400], "damaged"),
    "header.jpg": (b"\xff\xd8\xff\xe0", "damaged"),
    "bomb.png": (bomb(), "too-large"),
}


@pytest.fixture
def no_images(tmp_path, samples):
    """Give the names of things that are no images, with the kind of each; an image comes first and last."""
    wanted: dict[str, str | None] = {"first.png": None}
    for name, (content, kind) in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
        wanted[name] = kind
    for name in ("first.png", "last.png"):
        shutil.copy(samples[0], tmp_path / name)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "nowhere.jpg").symlink_to("gone.jpg")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "float.tif")
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(tmp_path)
        listening.bind("door.jpg")
    wanted |= {"pipe.jpg": "not-a-file", "device.jpg": "not-a-file", "door.jpg": "not-a-file", "folder.jpg": "empty"}
    wanted |= {"nowhere.jpg": "not-found", "circle.jpg": "unreadable", "float.tif": "unsupported"}
    wanted |= {"long" * 100 + ".jpg": "unreadable", "none.jpg": "not-found", "last.png": None}
    return wanted


def test_whatever_is_no_image_is_a_record_in_its_place(command, artifacts, no_images, tmp_path):
    done = command("clf-run", "-a", artifacts, "--format", "jsonl", *no_images, cwd=tmp_path)
    records = [json.loads(line) for line in done.out.splitlines()]
    found = {record["path"]: record.get("error", {}).get("kind") for record in records}
    assert list(found) == list(no_images)
    assert found == no_images
    assert sum(kind is not None for kind in found.values()) >= 20
    assert done.code == 1
    assert "Traceback" not in done.err


def test_what_is_no_image_on_stdin_is_not_read_to_its_end(artifacts):
    pipe = subprocess.PIPE
    command = [BIN / "clf-run", "-", "-a", artifacts]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        process.stdin.write(b"this goes on and on")
        process.stdin.flush()
        assert process.wait(60) == 1
        assert b"clf-run: -: not-an-image: it starts with b'this goes on'" in process.stderr.read()


@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="this system has no /proc/kmsg")
def test_a_file_of_the_system_that_waits_for_ever_is_not_waited_for(command, artifacts):
    done = command("clf-run", "-a", artifacts, "--format", "jsonl", "/proc/kmsg")
    assert json.loads(done.out)["error"]["kind"] == "empty"


def test_names_that_no_file_can_have_are_not_found(model, samples):
    from clf_runtime import Classifier

    results = list(Classifier.load(model).predict_files(["a\0b.png", "\ud800.png", samples[0]]))
    assert [getattr(result, "kind", None) for result in results] == ["not-found", "not-found", None]
