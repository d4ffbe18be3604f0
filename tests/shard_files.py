"""Shards with drawings of three classes, as tar files and as Parquet files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow
from odd_images import drawing
from pyarrow import parquet

LABELS = ("cat", "dog", "emu")


def draw_png(number: int) -> bytes:
    file = io.BytesIO()
    drawing(16 + number % 7, 16 + number % 5).rotate(number).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, numbers: range) -> None:
    """Write a shard; the class of an image is its number modulo 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            for extension, content in (("png", draw_png(number)), ("cls", b"%d" % (number % 3))):
                info = tarfile.TarInfo(f"{number:04}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_parquet(path: Path, numbers: range) -> None:
    """Write the same images as the library datasets does, in row groups of seven."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {"info": {"features": {"label": {"names": LABELS}}}}
    images = [{"bytes": draw_png(number), "path": f"{number:04}.png"} for number in numbers]
    table = pyarrow.table({"image": images, "label": [number % 3 for number in numbers]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, path, row_group_size=7)
