"""Installs a model: everything that can be known is known before it runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clf_runtime import onnx_file
from clf_runtime.artifacts import ONNX
from clf_runtime.classifier import Classifier
from clf_runtime.diagnostics.selftest import read_self_test, run_self_test
from clf_runtime.errors import DataError, InvalidModelError
from clf_runtime.files import adding_filename
from clf_runtime.onnx_file import OnnxFile
from clf_runtime.signature import signature_path
from clf_runtime.store.state import State
from clf_runtime.store.store import Store, version_name

_TIMED_RUNS = 20


@dataclass(frozen=True)
class InstallOptions:
    """What a model must fulfil, and what happens then.

    Attributes:
        require_signature: Public keys, one of which must have signed it.
        allow_downgrade: Accept a serial number below one that was activated.
        device: Where it will run, as `clf-run --device`.
        threads: The number of cores; None for all.
        max_latency_s: The longest that one image may take, at the median; None if it does not matter.
        probation_s: How long it must run in the service before it counts as working; 0 for none.
        activate: Make it the current version.
    """

    require_signature: tuple[Path, ...] = ()
    allow_downgrade: bool = False
    device: str = "auto"
    threads: int | None = None
    max_latency_s: float | None = None
    probation_s: float = 0.0
    activate: bool = True


@dataclass(frozen=True)
class Installed:
    """What was installed, and what was found out about it."""

    version: str
    provider: str
    latency_s: float  # of one image, at the median
    is_active: bool


def install(model: Path, store: Store, options: InstallOptions, log: Callable[[str], None]) -> Installed:
    """Verify a model on this machine, copy it into a store, and activate it.

    Args:
        model: The file; its signature is beside it.
        store: Where it is installed.
        options: See InstallOptions.
        log: Takes one line about what the caller may want to know.

    Raises:
        InvalidModelError: The model is rejected.
        DataError: It is older than one that was activated, or failed here before.
        MachineError, UsageError, OSError: See `Classifier.load`; or the store cannot be written.
    """
    file = onnx_file.read_trusted(model, options.require_signature)
    with store.locked() as state, _staged(file, store) as staged:
        _check_allowed(file, state, options.allow_downgrade)
        # From here on the copy: what is verified is what will run.
        try:
            classifier, latency_s = _try(staged / ONNX, options)
        except InvalidModelError as error:
            raise InvalidModelError(str(error).replace(str(staged / ONNX), str(model))) from None
        if classifier.file.file_sha256 != file.file_sha256:
            raise InvalidModelError(f"{model}: it was changed while it was copied; try again")
        if classifier.warning:
            log(classifier.warning)
        name = version_name(file)
        store.add(staged, name)
        if options.activate:
            store.activate(name, file.spec.serial, options.probation_s)
        return Installed(name, classifier.provider, latency_s, is_active=store.current == name)


def activate(name: str, store: Store, options: InstallOptions) -> Installed:
    """Verify an installed version on this machine again, and activate it. Raises as `install` does."""
    with store.locked() as state:
        version = store.find(name)
        file = onnx_file.read_trusted(store.path(version), options.require_signature)
        _check_serial(file, state, options.allow_downgrade)
        classifier, latency_s = _try(file.path, options)
        store.activate(version, file.spec.serial, options.probation_s)
        return Installed(version, classifier.provider, latency_s, is_active=True)


def collect_garbage(store: Store) -> tuple[str, ...]:
    """Remove all versions but the current one and the one before it, and return their names. Raises OSError."""
    with store.locked() as state:
        current = store.current
        if current is None:
            return ()
        kept = {current, store.previous(state)}
        removed = tuple(version for version in store.versions if version not in kept)
        for version in removed:
            store.remove(version)
        return removed


@contextlib.contextmanager
def _staged(file: OnnxFile, store: Store) -> Iterator[Path]:
    """Copy a model and its signature into a new folder of the store, which is removed if it stays there."""
    folder = store.folder / f".staging.{os.getpid()}"
    try:
        folder.mkdir()
        with adding_filename(folder):
            shutil.copyfile(file.path, folder / ONNX)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(signature_path(file.path), signature_path(folder / ONNX))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_allowed(file: OnnxFile, state: State, allow_downgrade: bool) -> None:
    name = version_name(file)
    if name in state.failed:
        raise DataError(
            f"{file.path}: failed on this machine before ({state.failed[name]}); clf-deploy activate {name} tries again"
        )
    _check_serial(file, state, allow_downgrade)


def _check_serial(file: OnnxFile, state: State, allow_downgrade: bool) -> None:
    """Raise DataError for a model that is older than one that was activated; without a serial number it may be."""
    highest, serial = state.highest_serial, file.spec.serial
    if highest is None or allow_downgrade or (serial is not None and serial >= highest):
        return
    found = "none" if serial is None else str(serial)
    raise DataError(
        f"{file.path}: an older model (found serial {found}, expected at least {highest}); --allow-downgrade accepts it"
    )


def _try(model: Path, options: InstallOptions) -> tuple[Classifier, float]:
    """Open a model and run its self-test. Return it with the latency of one image in seconds.

    Raises InvalidModelError if it does not work here, or is too slow; for the rest see `Classifier.load`.
    """
    classifier = Classifier.load(
        model, device=options.device, threads=options.threads, require_signature=options.require_signature
    )
    result = run_self_test(classifier)
    if not result.passed:
        raise InvalidModelError(f"{model}: its self-test failed on this machine ({result}); export it again")
    latency_s = _measure_latency(classifier)
    if options.max_latency_s is not None and latency_s > options.max_latency_s:
        raise InvalidModelError(
            f"{model}: one image takes {latency_s * 1000:.3g} ms on {classifier.provider}, expected at most "
            f"{options.max_latency_s * 1000:.3g}; export it with --precision int8, or train a smaller network"
        )
    return classifier, latency_s


def _measure_latency(classifier: Classifier) -> float:
    """Return the median seconds of one image of the self-test, from its bytes to its label."""
    images = [case.image for case in read_self_test(classifier.file).cases]
    durations = []
    for number in range(_TIMED_RUNS):
        started = time.perf_counter()
        classifier.predict(images[number % len(images)])
        durations.append(time.perf_counter() - started)
    return statistics.median(durations)
