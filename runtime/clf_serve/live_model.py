"""The model that runs now, and its replacement while the service runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from clf_runtime.classifier import Classifier
from clf_runtime.diagnostics.selftest import SelfTestResult, run_self_test
from clf_runtime.errors import ClfError, InvalidModelError, format_os_error
from clf_runtime.onnx_file import identify
from clf_runtime.signature import signature_path
from clf_runtime.store.probation import BatchCounts, ProbationWatch
from clf_runtime.store.store import Store
from clf_serve.metrics import Metrics
from clf_serve.options import ModelOptions

_POLL_S = 1.0


@dataclass(frozen=True)
class LoadedModel:
    """A model that has passed its self-test in this process."""

    classifier: Classifier
    self_test: SelfTestResult
    batches: BatchCounts = field(default_factory=BatchCounts)


def load_model(options: ModelOptions, workers: int) -> LoadedModel:
    """Open a model and run its self-test.

    Raises:
        InvalidModelError: It cannot be loaded, or it fails its self-test.
        MachineError: The device does not work.
        UsageError: The device is unknown.
        OSError: The file cannot be read.
    """
    classifier = Classifier.load(
        options.path,
        device=options.device,
        threads=options.threads,
        workers=workers,
        max_image_bytes=options.max_image_bytes,
        require_signature=options.require_signature,
    )
    result = run_self_test(classifier)
    if not result.passed:
        raise InvalidModelError(f"{options.path}: its self-test failed on this machine ({result}); export it again")
    return LoadedModel(classifier, result)


class LiveModel:
    """Holds the model that runs, and replaces it when its file changes.

    Attributes:
        current: The model for the next batch. A batch in progress keeps its own.
    """

    current: LoadedModel

    def __init__(self, options: ModelOptions, workers: int, metrics: Metrics, log: Callable[[str], None]) -> None:
        """Store what to load; `log` takes one line about each reload."""
        self._options = options
        self._workers = workers
        self._metrics = metrics
        self._log = log
        self._refused: tuple[int, ...] = ()
        self._former = BatchCounts()
        store = Store.around(options.path) if options.is_judge else None
        self._probation = None if store is None else ProbationWatch(store, log)
        self._wake = threading.Event()
        self._is_closing = False
        self._is_requested = False
        self._thread = threading.Thread(target=self._watch, name="clf-reload", daemon=True)

    @property
    def path(self) -> Path:
        """The file of the model."""
        return self._options.path

    @property
    def name(self) -> str:
        """The name of the model in the Open Inference Protocol."""
        return self._options.name

    def load(self) -> None:
        """Load the first model, and start to watch its file. Raises the same as `load_model`."""
        self._set(self._load_first())
        self._thread.start()

    def _load_first(self) -> LoadedModel:
        if self._probation is not None:
            self._probation.begin()
        try:
            return load_model(self._options, self._workers)
        except ClfError as error:
            if self._probation is None or not self._probation.fail(str(error)):
                raise
            return load_model(self._options, self._workers)

    def request_reload(self) -> None:
        """Load the file again soon, changed or not. May be called by a signal handler."""
        self._is_requested = True
        self._wake.set()

    def close(self) -> None:
        """Stop watching the file."""
        self._is_closing = True
        self._wake.set()
        self._thread.join()
        if self._probation is not None:
            self._probation.end()

    def _set(self, model: LoadedModel) -> None:
        self.current = model
        self._metrics.describe_model(model.classifier.file.sha256, model.classifier.provider)

    def _watch(self) -> None:
        previous: tuple[int, ...] = ()
        while not self._is_closing:
            self._wake.wait(_POLL_S)
            self._wake.clear()
            if self._probation is not None:
                self._probation.check(self.current.batches, self._former)
            identity = identify(self.path)
            seen = (*identity, *identify(signature_path(self.path)))  # the signature may arrive later
            is_changed = identity not in (self.current.classifier.file.identity, ()) and seen != self._refused
            # A file that is still being written changes until the next look.
            if not self._is_closing and (self._is_requested or (is_changed and seen == previous)):
                self._is_requested = False
                self._reload(seen)
            previous = seen

    def _reload(self, seen: tuple[int, ...]) -> None:
        old = self.current.classifier.file.sha256
        try:
            model = load_model(self._options, self._workers)
        except Exception as error:  # whatever is wrong with the new model, the old one goes on
            self._refused = seen
            reason = format_os_error(error) if isinstance(error, OSError) else str(error) or repr(error)
            self._log(f"refused the new model, {old[:12]} goes on: {reason}")
            self._metrics.count_reload("refused")
            if self._probation is not None:
                self._probation.fail(reason)
        else:
            self._former = self.current.batches
            self._set(model)
            if self._probation is not None:
                self._probation.begin()
            self._log(f"loaded {self.path} again: {model.classifier.file.sha256[:12]} replaces {old[:12]}")
            self._metrics.count_reload("loaded")
