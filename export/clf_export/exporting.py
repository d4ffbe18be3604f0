"""From a finished artifacts folder to exported files, each proven before it gets its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from clf_export.exporters.module import ExportModule
from clf_export.exporters.onnx import OLDEST_RUNTIME, highest_opset, onnx_from_program, with_metadata
from clf_export.exporters.pt2 import Pt2Model, pt2_bytes
from clf_export.exporters.torchscript import TorchScriptModel, torchscript_bytes, torchscript_from_model
from clf_export.exporters.trace import program_from_model
from clf_export.formats import Target
from clf_export.parity.check import Limits, OpenedModel, Parity, check_parity, limits_for
from clf_export.parity.reference import Reference
from clf_export.parity.reference_outputs import ReferenceOutputs, compute_reference_outputs
from clf_export.parity.selftest import build_self_test
from clf_export.record import Exported, write_record
from clf_export.test_split import TestSplit, find_test_split
from clf_runtime import files
from clf_runtime.classifier import Classifier
from clf_runtime.diagnostics.selftest import run_self_test
from clf_runtime.errors import DataError, InvalidModelError
from clf_runtime.onnx_file import PARITY_KEY, SELFTEST_KEY, SPEC_KEY
from clf_runtime.session import runtime_version
from clf_runtime.spec import ModelSpec
from clf_train.models.saved import load_saved_model

Opened = tuple[OpenedModel, ModelSpec]
Say = Callable[[str], object]
Build = Callable[[dict[str, str]], bytes]
Open = Callable[[Path], Opened]

MAX_DROP = 0.5  # percentage points of accuracy

_KEYS = (SPEC_KEY, SELFTEST_KEY, PARITY_KEY)
_SLOWER = 1.05  # times float32's latency, from where on it is told


@dataclass(frozen=True)
class Version:
    """One way of making a file, where there are several."""

    build: Build
    quantization: str = ""


def export(
    folder: Path,
    targets: Sequence[Target],
    *,
    min_runtime: str = OLDEST_RUNTIME,
    max_drop: float = MAX_DROP,
    data: str | None = None,
    data_root: str | None = None,
    trusted: str | None = None,
    overwrite: bool = False,
    say: Say = lambda message: None,
) -> list[Exported]:
    """Export the finished model in `folder`.

    Args:
        folder: the artifacts folder.
        targets: rows of clf_export.formats.TARGETS.
        min_runtime: the oldest onnxruntime that must read the ONNX files.
        max_drop: how many percentage points of accuracy FP16 and INT8 may lose.
        data: where the held-out images are; by default where training found them.
        data_root: likewise, for data sets by name.
        trusted: the package.module:factory that the model may be built by, where it is not one by name.
        overwrite: replace files that are there.
        say: told what is under way.

    Raises:
        UsageError: min_runtime is no version that there is.
        InvalidModelError: the model is damaged, or a proof failed.
        DataError: the images are not those of the training, or a file is already there.
        MachineError, OSError: this machine cannot do it.
    """
    highest_opset(min_runtime)
    _refuse_existing(folder, targets, overwrite)
    model = load_saved_model(folder, trusted)
    images = find_test_split(folder, model.spec, data, data_root)
    reference = Reference(model.model, model.spec)
    module = ExportModule(model.model, model.spec).eval()
    say(f"asking PyTorch about the held-out images ({len(images.all_images):,}, {images.dataset.test_name})")
    reference_outputs = compute_reference_outputs(images.dataset, images.all_images, module, reference)
    work = ExportJob(module, model.spec, min_runtime, max_drop, images, say)
    exported = []
    for target in targets:
        path = folder / target.file
        say(f"exporting {path}, and proving it")
        limits = limits_for(target.precision, reference_outputs, max_drop)
        exported.append(
            export_first_valid(
                path, work.versions(target), OPENERS[target.format], reference, reference_outputs, limits
            )
        )
    return write_record(folder, module, exported, reference_outputs.pixels[:1])


class ExportJob:
    """What several files are made from, each made once and when it is needed."""

    def __init__(
        self, module: ExportModule, spec: ModelSpec, min_runtime: str, max_drop: float, images: TestSplit, say: Say
    ) -> None:
        self._module = module
        self._spec = spec
        self._min_runtime = min_runtime
        self._max_drop = max_drop
        self._images = images
        self._say = say

    def versions(self, target: Target) -> Iterator[Version]:
        """Give the ways of making a file, the best first."""
        if target.format == "torchscript":
            traced = torchscript_from_model(self._module, self._spec)
            yield Version(lambda metadata: torchscript_bytes(traced, metadata))
        elif target.format == "pt2":
            yield Version(lambda metadata: pt2_bytes(self._program, metadata))
        elif target.precision == "fp16":
            yield self._fp16()
        elif target.precision == "int8":
            yield from self._int8()
        else:
            yield Version(lambda metadata: with_metadata(self._graph, metadata))

    @cached_property
    def _program(self) -> torch.export.ExportedProgram:
        return program_from_model(self._module, self._spec)

    @cached_property
    def _graph(self) -> bytes:
        return onnx_from_program(self._program, self._min_runtime)

    def _fp16(self) -> Version:
        from clf_export.quantize.fp16 import fp16_from_onnx

        converted, kept = fp16_from_onnx(self._graph, self._images.calibration)
        if kept:
            self._say(f"in float32 stay {len(kept)} operators whose values float16 might not hold: {_counted(kept)}")
        quantization = f"{len(kept)} operators in float32" if kept else ""
        return Version(lambda metadata: with_metadata(converted, metadata), quantization)

    def _int8(self) -> Iterator[Version]:
        from clf_export.quantize.search import QuantizationSearch, lines

        search = QuantizationSearch(self._graph, self._images, self._say)
        for opened_model in search.candidates(self._max_drop):
            quantization = f"{opened_model.trial.config}, {opened_model.trial.calibration}"
            self._say(f"INT8: {quantization}: {opened_model.trial.latency_ms:.2f} ms, float32 {search.float_ms:.2f} ms")
            if opened_model.trial.latency_ms > _SLOWER * search.float_ms:
                self._say("on this machine INT8 is slower than float32")
            yield Version(lambda metadata, content=opened_model.content: with_metadata(content, metadata), quantization)  # type: ignore[misc]
        for line in lines(search):
            self._say(line)


def export_first_valid(
    path: Path,
    versions: Iterator[Version],
    open_file: Open,
    reference: Reference,
    reference_outputs: ReferenceOutputs,
    limits: Limits,
) -> Exported:
    """Put the first version in place whose proof holds. Raises InvalidModelError with what was wrong with the last."""
    refusal: InvalidModelError | None = None
    for version in versions:
        try:
            return write_verified(path, version, open_file, reference, reference_outputs, limits)
        except InvalidModelError as refused:
            refusal = refused
    if refusal is None:
        refusal = InvalidModelError(
            f"{path}: no way of making it keeps accuracy within {limits.max_drop:g} percentage points and "
            f"{limits.agreement:.0%} of the labels (see the table); --max-drop allows more; no file was written"
        )
    raise refusal


def write_verified(
    path: Path,
    version: Version,
    open_file: Open,
    reference: Reference,
    reference_outputs: ReferenceOutputs,
    limits: Limits,
) -> Exported:
    """Write a file under a temporary name, verify it, then rename it. Raises InvalidModelError, OSError."""
    spec = {SPEC_KEY: reference.spec.to_json()}
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(version.build(spec))
        parity = _proven(path, temporary, open_file, reference_outputs, limits, version.quantization)
        selftest = build_self_test(reference_outputs, reference, parity.tolerance, temporary.stat().st_size)
        # The same graph, now with the record of its proof. What is about to get its name is opened once more.
        complete = {**spec, SELFTEST_KEY: selftest.to_json(), PARITY_KEY: json.dumps(parity.record())}
        temporary.write_bytes(version.build(complete))
        opened_model, _ = open_file(temporary)
        if isinstance(opened_model, Classifier) and not run_self_test(opened_model).passed:
            raise InvalidModelError(
                f"{path}: the proof failed: its own self-test does not pass here; no file was written"
            )
        size_bytes = temporary.stat().st_size
    oldest = opened_model.file.oldest_runtime if isinstance(opened_model, Classifier) else None
    return Exported(path, size_bytes, parity, oldest, opened_model)


def _proven(
    path: Path, temporary: Path, open_file: Open, reference_outputs: ReferenceOutputs, limits: Limits, quantization: str
) -> Parity:
    opened_model, spec = open_file(temporary)
    runtime = (
        f"onnxruntime {runtime_version()}" if isinstance(opened_model, Classifier) else f"torch {torch.__version__}"
    )
    try:
        return check_parity(
            opened_model, spec, reference_outputs, limits, quantization, f"torch {torch.__version__}", runtime
        )
    except InvalidModelError as refusal:
        raise InvalidModelError(f"{path}: {refusal}") from None


def open_onnx(path: Path) -> Opened:
    """Open an ONNX file through the runtime, as a device does."""
    classifier = Classifier.load(path, device="cpu")
    return classifier, classifier.spec


def open_torchscript(path: Path) -> Opened:
    """Open a TorchScript file of ours."""
    model = TorchScriptModel(path, _KEYS)
    return model, ModelSpec.from_json(model.metadata[SPEC_KEY], str(path))


def open_pt2(path: Path) -> Opened:
    """Open a pt2 file of ours."""
    model = Pt2Model(path, _KEYS)
    return model, ModelSpec.from_json(model.metadata[SPEC_KEY], str(path))


OPENERS: dict[str, Open] = {"onnx": open_onnx, "torchscript": open_torchscript, "pt2": open_pt2}


def _refuse_existing(folder: Path, targets: Sequence[Target], overwrite: bool) -> None:
    for target in targets:
        path = folder / target.file
        if path.is_dir():
            raise DataError(f"{path}: is a folder, which no file can replace; move it away")
        if path.exists() and not overwrite:
            raise DataError(f"{path}: is already there; --overwrite replaces it")


def _counted(kinds: Sequence[str]) -> str:
    return ", ".join(f"{list(kinds).count(kind)} {kind}" for kind in sorted(set(kinds)))
