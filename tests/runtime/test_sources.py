"""Arguments of the command line: files, folders, lists, patterns, and everything that is no image."""

from __future__ import annotations

import errno
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
from conftest import BIN
from odd_images import drawing
from PIL import Image

from clf_runtime.errors import ImageError
from clf_runtime.sources import find_images

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="its file systems do not allow such names")


@pytest.fixture
def odd(tmp_path, samples, monkeypatch):
    """The current folder, with images of odd names."""
    monkeypatch.chdir(tmp_path)
    for name in ODD:
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(samples[0], name)
    return tmp_path


ODD = ["a b.png", "b\nc.png", os.fsdecode(b"c\xff.png"), "d[1].png", "in/e.png", "in/f.png", "@g.png", "h\r.png"]


def names(*arguments: str, recursive: bool = False) -> list[str]:
    return [image.name for image in find_images(arguments, recursive)]


def errors(*arguments: str) -> list[tuple[str, str]]:
    """Return name and kind of each argument without an image."""
    sources = find_images(arguments, False)
    return [(source.name, source.content.kind) for source in sources if isinstance(source.content, ImageError)]


@pytest.mark.usefixtures("odd")
def test_a_pattern_that_the_shell_did_not_expand_is_expanded():
    assert names("[ab]*.png") == ["a b.png", "b\nc.png"]
    assert names("./in/?.png") == ["./in/e.png", "./in/f.png"]
    assert names("i*") == ["in/e.png", "in/f.png"]
    assert names("**/*.png")[-2:] == ["in/e.png", "in/f.png"]


@pytest.mark.usefixtures("odd")
def test_an_existing_file_takes_precedence_over_a_pattern_and_a_list():
    assert names("d[1].png", "@g.png") == ["d[1].png", "@g.png"]


@pytest.mark.usefixtures("odd")
def test_a_pattern_that_matches_nothing_is_a_failure():
    assert errors("*.jpeg", "in/[x].png") == [("*.jpeg", "not-found"), ("in/[x].png", "not-found")]


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a b.png\nin/e.png\n", ["a b.png", "in/e.png"]),
        (b"in/f.png\r\n\r\nin\r\na b.png", ["in/f.png", "in/e.png", "in/f.png", "a b.png"]),
        (b"\xef\xbb\xbfa b.png\n", ["a b.png"]),
        (b"b\nc.png\0c\xff.png\0h\r.png\0", ["b\nc.png", os.fsdecode(b"c\xff.png"), "h\r.png"]),
        (b"none.png\n*.png\n@g.png\n-\n", ["none.png", "*.png", "@g.png", "-"]),
    ],
    ids=["lines", "Windows lines and a folder", "byte order mark", "zero bytes", "literal names"],
)
def test_a_list_contains_names_on_lines_or_separated_by_zero_bytes(content, expected):
    Path("list.txt").write_bytes(content)
    assert names("@list.txt") == expected


@pytest.mark.usefixtures("odd")
def test_a_list_that_is_missing_unreadable_or_empty_is_a_failure():
    Path("empty.txt").write_bytes(b"\n\n")
    found = errors("@none.txt", "@in", "@empty.txt")
    assert found == [("@none.txt", "not-found"), ("@in", "unreadable"), ("@empty.txt", "empty")]


def test_a_bad_entry_of_a_folder_has_one_record_and_the_rest_goes_on(command, artifacts, samples, tmp_path, no_root):
    for name in ("in/a.png", "in/lost+found/b.png", "in/z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(samples[0], tmp_path / name)
    (tmp_path / "in/circle.png").symlink_to("circle.png")
    (tmp_path / "in/lost+found").chmod(0)
    for option in ((), ("-r",)):
        done = command("clf-run", "-a", artifacts, *option, "in", "--format", "jsonl", cwd=tmp_path, prefix=no_root)
        kinds = {
            record["path"]: record.get("error", {}).get("kind") for record in map(json.loads, done.out.splitlines())
        }
        expected = {"in/a.png": None, "in/circle.png": "unreadable", "in/lost+found": "no-permission", "in/z.png": None}
        if not option:
            del expected["in/lost+found"]
        assert kinds == expected
        assert done.code == 1


def test_a_folder_whose_listing_breaks_off_keeps_what_was_listed(tmp_path, samples, monkeypatch):
    shutil.copy(samples[0], tmp_path / "a.png")

    class Failing:
        def __init__(self, folder: str) -> None:
            self.entries = scandir(folder)

        def __enter__(self):
            yield from self.entries
            raise OSError(errno.EIO, "Input/output error")

        def __exit__(self, *_: object) -> None:
            self.entries.close()

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", Failing)
    found = list(find_images([str(tmp_path)], False))
    assert [source.name for source in found] == [str(tmp_path), f"{tmp_path}/a.png"]
    assert found[0].content.kind == "unreadable"


def test_folders_nested_more_deeply_than_a_path_may_be_long_are_one_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = os.open(".", os.O_RDONLY)
    for _ in range(2500):
        os.mkdir("d", dir_fd=folder)
        outer, folder = folder, os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(outer)
    os.close(folder)
    drawing(8, 8).save("z.png")
    found = list(find_images(["."], True))
    assert [getattr(source.content, "kind", None) for source in found] == ["unreadable", None]
    assert found[1].name == "./z.png"
    (error,) = find_images(["**/*.jpg"], True)
    assert error.content.kind in ("unreadable", "not-found")
    subprocess.run(["rm", "-r", "d"], check=True)


@pytest.mark.usefixtures("odd")
def test_a_name_that_is_too_long_or_unreachable_does_not_end_a_list():
    Path("circle").symlink_to("circle")
    Path("list.txt").write_text(f"a b.png\n{'x' * 300}\ncircle/x.png\n{'y/' * 3000}\nin\n")
    sources = list(find_images(["@list.txt"], False))
    assert [source.name for source in sources][-2:] == ["in/e.png", "in/f.png"]
    assert errors("@" + "x" * 300) == [("@" + "x" * 300, "unreadable")]


@pytest.mark.usefixtures("odd")
def test_a_list_is_read_in_pieces():
    for separator in ("\r\n", "\0"):
        Path("list.txt").write_bytes(separator.join(f"{number}/in.png" for number in range(20_000)).encode())
        assert names("@list.txt") == [f"{number}/in.png" for number in range(20_000)]


@pytest.mark.parametrize("content", ["zeros", "lines", "one name"])
def test_a_source_without_end_is_not_read_as_a_list(tmp_path, content):
    if content == "zeros":
        (tmp_path / "list").symlink_to("/dev/zero")
    else:
        (tmp_path / "list").write_bytes(b"\n" * 10**6 if content == "lines" else b"x" * 10**6)
    (source,) = find_images([f"@{tmp_path}/list"], False)
    assert (source.content.kind, str(source.content)) == (
        "unreadable",
        "65,536 bytes without a name; expected one name per line",
    )


def test_an_image_on_stdin_is_read_up_to_the_limit(monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(b"\xff\xd8\xff" + bytes(5_000_000)))
    monkeypatch.setattr(sys, "stdin", stdin)
    (source,) = find_images(["-"], False, 2_000_000)
    assert (source.content.kind, str(source.content)) == ("too-large", "more than 2 MB on stdin; name a file")
    assert stdin.buffer.tell() < 2_000_100


def test_stdin_that_cannot_be_read_is_a_record(command, artifacts, tmp_path):
    script = f"'{BIN}/clf-run' - @- -a '{artifacts}' --format jsonl 0> '{tmp_path}/write-only'"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert [json.loads(line)["error"]["kind"] for line in done.stdout.splitlines()] == ["unreadable"] * 2
    assert done.returncode == 1


def test_the_output_of_find_can_be_piped_in(command, odd, artifacts):
    names_from_find = subprocess.run(
        ["find", ".", "-name", "*.png", "-print0"], cwd=odd, capture_output=True, check=True
    ).stdout
    done = command("clf-run", "-a", artifacts, "@-", "--format", "jsonl", cwd=odd, stdin=names_from_find)
    assert done.code == 0
    assert {json.loads(line)["path"] for line in done.out.splitlines()} == {f"./{name}" for name in ODD}


def test_a_list_through_a_pipe_is_read_once_although_the_progress_bar_counts_images(odd, artifacts):
    reader, terminal = pytest.importorskip("pty").openpty()
    script = f"'{BIN}/clf-run' -a '{artifacts}' @<(printf 'in/e.png\\nin/f.png\\n') in > results.txt"
    done = subprocess.run(["bash", "-c", script], cwd=odd, stdin=subprocess.DEVNULL, stderr=terminal, timeout=60)
    os.close(terminal)
    os.close(reader)
    assert done.returncode == 0
    paths = [line.split("\t")[0] for line in (odd / "results.txt").read_text().splitlines()]
    assert paths == ["in/e.png", "in/f.png"] * 2


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    drawing(60, 40).save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def bomb() -> bytes:
    """Return a PNG of 40,000 x 40,000 pixels in some kilobytes."""

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
def expected_kinds(tmp_path, samples) -> dict[str, str | None]:
    """Files that are no images, with the kind of each; the first and the last one are images."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    kinds: dict[str, str | None] = {"first.png": None}
    for name, (content, kind) in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
        kinds[name] = kind
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
        listening.bind("socket.jpg")
    kinds |= {"pipe.jpg": "not-a-file", "device.jpg": "not-a-file", "socket.jpg": "not-a-file", "folder.jpg": "empty"}
    kinds |= {"nowhere.jpg": "not-found", "circle.jpg": "unreadable", "float.tif": "unsupported"}
    kinds |= {"long" * 100 + ".jpg": "unreadable", "none.jpg": "not-found", "last.png": None}
    return kinds


def test_everything_that_is_no_image_is_a_failure_in_its_place(command, artifacts, expected_kinds, tmp_path):
    done = command("clf-run", "-a", artifacts, "--format", "jsonl", *expected_kinds, cwd=tmp_path)
    records = [json.loads(line) for line in done.out.splitlines()]
    found = {record["path"]: record.get("error", {}).get("kind") for record in records}
    assert list(found) == list(expected_kinds)
    assert found == expected_kinds
    assert sum(kind is not None for kind in found.values()) >= 20
    assert done.code == 1
    assert "Traceback" not in done.err


def test_stdin_that_is_no_image_is_not_read_to_its_end(artifacts):
    pipe = subprocess.PIPE
    command = [BIN / "clf-run", "-", "-a", artifacts]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        process.stdin.write(b"this goes on and on")
        process.stdin.flush()
        assert process.wait(60) == 1
        assert b"clf-run: -: not-an-image: it starts with b'this goes on'" in process.stderr.read()


@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="this system has no /proc/kmsg")
def test_a_file_in_proc_that_blocks_is_not_opened(command, artifacts):
    done = command("clf-run", "-a", artifacts, "--format", "jsonl", "/proc/kmsg")
    assert json.loads(done.out)["error"]["kind"] == "empty"


def test_names_that_no_file_can_have_are_not_found(model, samples):
    from clf_runtime import Classifier

    results = list(Classifier.load(model).predict_files(["a\0b.png", "\ud800.png", samples[0]]))
    assert [getattr(result, "kind", None) for result in results] == ["not-found", "not-found", None]
