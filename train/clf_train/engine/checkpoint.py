"""Checkpoints: the state of a training run, from which --resume continues. The newest two are kept, each complete."""

from __future__ import annotations

import hashlib
import io
import pickle
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clf_runtime import artifacts, files, system
from clf_runtime.errors import DataError, MachineError, format_reason
from clf_train.distributed import ProcessGroup
from clf_train.engine.signals import Interruption
from clf_train.engine.trainer import Trainer

NAMES = artifacts.UNFINISHED  # newest first

# How often processes that train together agree on what only one of them knows (the time, Ctrl-C): it takes 0.2 ms.
_STEPS_BETWEEN_AGREEMENTS = 16

_DIGEST_BYTES = 32
_KEYS = ("identity", "state")


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoint files of one training run."""

    folder: Path
    identity: Mapping[str, str]  # everything that the weights depend on; only a run with the same identity resumes

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, and keep the one before it.

        Raises:
            MachineError: it cannot be written; there is still a checkpoint if there was one before.
        """
        file = io.BytesIO()
        torch.save({"identity": dict(self.identity), "state": dict(state)}, file)
        content = file.getvalue()
        newest, previous = (self.folder / name for name in NAMES)
        try:
            with files.atomic_path(newest) as temporary:
                temporary.write_bytes(content + hashlib.sha256(content).digest())
                system.sync(temporary)
                if newest.exists():
                    newest.replace(previous)
        except OSError as error:
            kept = (
                "--resume continues from the one before it"
                if has_checkpoint(self.folder)
                else "there is none before it"
            )
            raise MachineError(f"{newest}: {format_reason(error)}, so this checkpoint is not written; {kept}") from None

    def load_newest(self, on_warning: Callable[[str], object]) -> Mapping[str, Any] | None:
        """Return the newest state that is not damaged; None if there is none.

        Args:
            on_warning: called for each damaged checkpoint.

        Raises:
            DataError: the checkpoint is of other data or options; the message names them.
        """
        paths = [self.folder / name for name in NAMES if (self.folder / name).is_file()]
        for path in paths:
            content = _read(path)
            if content is None:
                on_warning(f"{path}: damaged (its digest does not match, or it is no checkpoint); ignoring it")
                continue
            self._raise_if_different(path, content["identity"])
            state: Mapping[str, Any] = content["state"]
            return state
        if not paths:
            on_warning(f"{self.folder}: no checkpoint to resume from; starting from the beginning")
        else:
            on_warning(f"{self.folder}: no undamaged checkpoint; starting from the beginning")
        return None

    def _raise_if_different(self, path: Path, found: Mapping[str, str]) -> None:
        differences = [
            f"{key} was {found.get(key, 'missing')}, is {self.identity.get(key, 'missing')}"
            for key in sorted({*found, *self.identity})
            if found.get(key) != self.identity.get(key)
        ]
        if differences:
            raise DataError(
                f"{path}: from a different training run ({'; '.join(differences)}); "
                "use the same options, or start over with --overwrite"
            )


class CheckpointSchedule:
    """Decides when a training run is saved, and stops it when that was requested."""

    def __init__(self, trainer: Trainer, store: CheckpointStore, every_s: float, group: ProcessGroup) -> None:
        """Save after every epoch, and every `every_s` seconds within an epoch."""
        self._trainer = trainer
        self._store = store
        self._every_s = every_s
        self._group = group
        self._saved_at = time.monotonic()
        self._steps = 0

    def after_step(self, *, epoch_ended: bool, interruption: Interruption) -> None:
        """Save the state if it is time.

        Raises:
            KeyboardInterrupt, SystemExit: the state is saved, and a stop was requested.
            OSError: it cannot be saved.
        """
        self._steps += 1
        is_requested = is_due = False
        if self._group.size == 1 or self._steps % _STEPS_BETWEEN_AGREEMENTS == 0:
            is_late = time.monotonic() - self._saved_at >= self._every_s
            is_requested, is_due = self._agree(interruption.is_requested, is_late)
        if epoch_ended or is_due or is_requested:
            state = self._trainer.state()
            if self._group.is_main:
                self._store.save(state)
            self._saved_at = time.monotonic()
        if is_requested:
            done = 100 * self._trainer.images_done / self._trainer.images
            interruption.stop(f"{done:.0f} % of the training is saved; --resume continues it")

    def resume(self, on_warning: Callable[[str], object]) -> None:
        """Restore the newest state, if there is one.

        Raises:
            DataError: it is of a different training run, or contains something else.
        """
        state = self._store.load_newest(on_warning) if self._group.is_main else None
        state = self._group.broadcast(state)
        if state is not None:
            try:
                self._trainer.restore(state)
            except ValueError as error:
                raise DataError(
                    f"{self._store.folder}: the state in its checkpoint is not one of this training run ({error}); "
                    "start over with --overwrite"
                ) from None

    def _agree(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set in any process."""
        return tuple(any(values) for values in zip(*self._group.all_gather(flags), strict=True))


def has_checkpoint(folder: Path) -> bool:
    """Return whether the folder has an unfinished training run."""
    return any((folder / name).is_file() for name in NAMES)


def read_identity(folder: Path) -> Mapping[str, str] | None:
    """Return the identity of the training run of the newest undamaged checkpoint; None if there is none."""
    contents = (_read(folder / name) for name in NAMES if (folder / name).is_file())
    identities: list[Mapping[str, str]] = [content["identity"] for content in contents if content is not None]
    return identities[0] if identities else None


def discard_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a training run that is not resumed.

    Raises:
        MachineError: one cannot be removed.
    """
    for name in reversed(NAMES):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise MachineError(
                f"{folder / name}: cannot be removed ({format_reason(error)}); training has not begun"
            ) from None


def _read(path: Path) -> Mapping[str, Any] | None:
    """Return the content of a checkpoint; None if it is damaged."""
    content = path.read_bytes()
    payload, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other versions of the pickle format: they are damaged, too
            checkpoint = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError):
        return None  # whoever can write the file can write its digest, so the content may be anything
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(key), dict) for key in _KEYS):
        return None
    is_text = all(isinstance(text, str) for item in checkpoint["identity"].items() for text in item)
    return checkpoint if is_text else None
