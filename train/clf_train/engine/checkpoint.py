"""What --resume goes on from: the newest two checkpoints of a training, each complete or absent."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from clf_runtime import artifacts, files
from clf_runtime.errors import DataError

# Newest first.
NAMES = artifacts.UNFINISHED

_DIGEST_BYTES = 32


def exists(folder: Path) -> bool:
    """Say whether a training was cut off here."""
    return any((folder / name).is_file() for name in NAMES)


def discard(folder: Path) -> None:
    """Remove the checkpoints of a training that is given up. Raises OSError."""
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)


def save(folder: Path, state: Mapping[str, Any], identity: Mapping[str, str]) -> None:
    """Keep a state, and the one before it. Raises OSError; then what was there is still there.

    `identity` says what is trained on what and how; only the same may be gone on with.
    """
    file = io.BytesIO()
    torch.save({"identity": dict(identity), "state": dict(state)}, file)
    content = file.getvalue()
    newest, previous = (folder / name for name in NAMES)
    with files.atomic_path(newest) as temporary:
        temporary.write_bytes(content + hashlib.sha256(content).digest())
        if newest.exists():
            newest.replace(previous)


def newest(folder: Path, identity: Mapping[str, str], notice: Callable[[str], object]) -> Mapping[str, Any] | None:
    """Give the newest state that is undamaged, or None where there is none.

    A damaged one is told to `notice`, and the one before it taken. Raises DataError where the checkpoint
    is of other data or other options, naming them.
    """
    damaged = False
    for name in NAMES:
        path = folder / name
        if not path.is_file():
            continue
        content = _content(path)
        if content is None:
            damaged = True
            notice(f"{path}: is damaged; going on from the checkpoint before it")
            continue
        _refuse_other(path, content["identity"], identity)
        state: Mapping[str, Any] = content["state"]
        return state
    if damaged:
        notice(f"{folder}: no checkpoint is whole; starting from the beginning")
    return None


def _content(path: Path) -> Mapping[str, Any] | None:
    content = path.read_bytes()
    payload, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    loaded: Mapping[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return loaded


def _refuse_other(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    changed = [
        f"{key} was {found.get(key, 'nothing')}, is {wanted.get(key, 'nothing')}"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    ]
    if changed:
        raise DataError(
            f"{path}: is of another training: {'; '.join(changed)}; give the same options, "
            "or start anew with --overwrite"
        )
