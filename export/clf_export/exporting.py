"""From a finished artifacts folder to exported files. Each is verified before it gets its name."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from clf_export.callbacks import ExportCallbacks, IgnoreCallbacks
from clf_export.exporters.exporter import Exporter
from clf_export.exporters.module import ExportModule
from clf_export.exporters.onnx import OLDEST_RUNTIME, OnnxExporter, highest_opset, onnx_from_program
from clf_export.exporters.pt2 import Pt2Exporter
from clf_export.exporters.torchscript import TorchScriptExporter, torchscript_from_model
from clf_export.exporters.trace import program_from_model
from clf_export.formats import Target
from clf_export.parity.check import Answers, Parity, ParityError, check_final_file, check_parity, run_batch
from clf_export.parity.limits import Limits, limits_for
from clf_export.parity.reference import Reference
from clf_export.parity.reference_outputs import ReferenceOutputs, compute_reference_outputs
from clf_export.parity.selftest import build_self_test
from clf_export.record import ExportedFile, measure_latencies, write_record
from clf_export.reference_split import TestSplit, find_test_split
from clf_export.stages import plan_stages
from clf_runtime import files, folders
from clf_runtime.errors import ClfError, DataError, InvalidModelError, MachineError, format_os_error
from clf_runtime.onnx_file import PARITY_KEY, SELFTEST_KEY, SPEC_KEY, parse_version
from clf_runtime.session import runtime_version
from clf_runtime.signature import signature_path
from clf_runtime.spec import ModelSpec
from clf_train.models.saved import load_saved_model

if TYPE_CHECKING:
    from clf_deploy.signing.sign import Signer
    from clf_export.quantize.search import QuantizationSearch

EXPORTERS: dict[str, type[Exporter]] = {
    "onnx": OnnxExporter,
    "torchscript": TorchScriptExporter,
    "pt2": Pt2Exporter,
}

# The first onnxruntime whose tools convert a graph to a precision; the file itself runs on older ones.
_CONVERTERS = {"fp32": OLDEST_RUNTIME, "fp16": "1.16", "int8": "1.21"}

_SEARCH_SHARE = 0.8  # of the time of an INT8 export
_SLOWER = 1.05  # above this multiple of float32's latency, INT8 is reported as slower


@dataclass(frozen=True)
class ExportOptions:
    """What the user chooses about an export."""

    min_runtime: str = OLDEST_RUNTIME  # the oldest onnxruntime that must read the ONNX files
    max_drop: float = 0.5  # accuracy drop in percentage points that FP16 and INT8 may cost
    data: str | None = None  # the images of the training, where they have moved
    data_root: str | None = None  # the folder of named data sets, where it has moved
    trust_factory: str | None = None  # the package.module:factory of a foreign architecture
    overwrite: bool = False  # whether existing files are replaced
    signer: Signer | None = None  # signs the ONNX files
    serial: int | None = None  # the place of the files in the sequence of the model's versions


@dataclass(frozen=True)
class Verification:
    """What a file is verified against."""

    reference: Reference
    reference_outputs: ReferenceOutputs
    limits: Limits


def export(
    folder: Path,
    targets: Sequence[Target],
    options: ExportOptions | None = None,
    callbacks: ExportCallbacks | None = None,
) -> list[ExportedFile]:
    """Export the finished model in an artifacts folder.

    A file that is finished stays, in export.json and in the report, even if the export of a later one fails.

    Args:
        folder: the artifacts folder.
        targets: rows of clf_export.formats.TARGETS.
        options: see ExportOptions.
        callbacks: are told what is done, and which files are finished.

    Raises:
        UsageError: min_runtime is not a version that exists.
        InvalidModelError: the model is damaged, or a parity check failed.
        DataError: the images are not those of the training, or a file is already there.
        MachineError, OSError: this machine cannot do it.
    """
    options, callbacks = options or ExportOptions(), callbacks or IgnoreCallbacks()
    highest_opset(options.min_runtime)
    _raise_if_too_old(targets)
    with folders.locked_folder(folder, "clf-export") if folder.is_dir() else contextlib.nullcontext():
        return _export(folder, targets, options, callbacks)


def _export(
    folder: Path, targets: Sequence[Target], options: ExportOptions, callbacks: ExportCallbacks
) -> list[ExportedFile]:
    _raise_if_blocked(folder, targets, options.overwrite)
    model = load_saved_model(folder, options.trust_factory)
    model = replace(model, spec=replace(model.spec, serial=options.serial))
    split = find_test_split(folder, model.spec, options.data, options.data_root)
    stages = plan_stages(folder, targets, len(split.all_images), split.dataset.test_name)
    callbacks.on_start(stages)
    callbacks.on_stage()
    module = ExportModule(model.model, model.spec).eval()
    reference = Reference(model.model, model.spec)
    float32_share = len(split.all_images) / stages[0].images
    reference_outputs = compute_reference_outputs(
        split, module, reference, lambda share: callbacks.on_progress(share * float32_share)
    )
    job = ExportJob(module, model.spec, split, options, callbacks)
    return job.export_all(targets, folder, reference, reference_outputs)


def _raise_if_too_old(targets: Sequence[Target]) -> None:
    """Raise MachineError if the installed onnxruntime cannot convert to a precision."""
    installed = runtime_version()
    for target in targets:
        needed = _CONVERTERS[target.precision]
        if parse_version(installed) < parse_version(needed):
            raise MachineError(
                f"--precision {target.precision}: needs onnxruntime {needed} or later here, found {installed}; "
                "update it"
            )


class ExportJob:
    """Several exports of one model. What they have in common is computed once, when it is needed."""

    def __init__(
        self,
        module: ExportModule,
        spec: ModelSpec,
        split: TestSplit,
        options: ExportOptions,
        callbacks: ExportCallbacks,
    ) -> None:
        self._module = module
        self._spec = spec
        self._split = split
        self._options = options
        self._callbacks = callbacks

    def export_all(
        self, targets: Sequence[Target], folder: Path, reference: Reference, reference_outputs: ReferenceOutputs
    ) -> list[ExportedFile]:
        """Write the files of all targets, and record each as soon as it has its name.

        Raises InvalidModelError, OSError; the files before the one that failed are complete.
        """
        exported: list[ExportedFile] = []
        try:
            for target in targets:
                self._callbacks.on_stage()
                limits = limits_for(target.precision, reference_outputs, self._options.max_drop)
                verification = Verification(reference, reference_outputs, limits)
                exported.append(self.export(target, folder / target.file, verification))
                if target.format == "onnx":
                    self._sign(folder / target.file)
                # Now, without latencies, because measuring them can be interrupted.
                self._record(folder, exported)
            exported = measure_latencies(exported, self._module, reference_outputs.pixels[:1])
            self._record(folder, exported)
        except (ClfError, OSError) as error:
            if not exported:
                raise
            exported = measure_latencies(exported, self._module, reference_outputs.pixels[:1])
            with contextlib.suppress(OSError):  # the first error is the one to report
                self._record(folder, exported)
            if isinstance(error, OSError):
                raise _partly_exported_error(error, exported) from None
            raise
        return exported

    def _sign(self, path: Path) -> None:
        """Sign a file; without a key, remove the signature of the file that was there before."""
        if self._options.signer is not None:
            self._options.signer.sign(path)
        else:
            signature_path(path).unlink(missing_ok=True)

    def _record(self, folder: Path, exported: Sequence[ExportedFile]) -> None:
        self._callbacks.on_exported(exported)
        write_record(folder, exported)

    def export(self, target: Target, path: Path, verification: Verification) -> ExportedFile:
        """Write one file. Raises InvalidModelError, OSError."""
        if target.precision == "int8":
            return self._export_int8(path, verification)
        return write_verified(path, self.make_exporter(target), verification)

    def make_exporter(self, target: Target) -> Exporter:
        """Return the exporter of a target that has a single candidate: all but INT8."""
        if target.format == "torchscript":
            return TorchScriptExporter(torchscript_from_model(self._module, self._spec))
        if target.format == "pt2":
            return Pt2Exporter(self._program)
        return self._make_fp16_exporter() if target.precision == "fp16" else OnnxExporter(self._graph)

    @cached_property
    def _program(self) -> torch.export.ExportedProgram:
        return program_from_model(self._module, self._spec)

    @cached_property
    def _graph(self) -> bytes:
        return onnx_from_program(self._program, self._options.min_runtime)

    def _make_fp16_exporter(self) -> Exporter:
        from clf_export.quantize.fp16 import fp16_from_onnx

        fp16 = fp16_from_onnx(self._graph, self._split.calibration)
        operators = fp16.float32_operators
        if not operators:
            return OnnxExporter(fp16.content)
        self._callbacks.on_message(
            f"{len(operators)} operators stay in float32, because float16 might not hold their values: "
            f"{_count_by_name(operators)}"
        )
        return OnnxExporter(fp16.content, f"{len(operators)} operators in float32")

    @cached_property
    def _search(self) -> QuantizationSearch:
        from clf_export.quantize.search import QuantizationSearch

        # The parity check follows the search.
        return QuantizationSearch(
            self._graph,
            self._split,
            self._options.max_drop,
            lambda share: self._callbacks.on_progress(_SEARCH_SHARE * share),
        )

    def _export_int8(self, path: Path, verification: Verification) -> ExportedFile:
        """Write the fastest INT8 file that passes the search's limits and the parity check."""
        from clf_export.quantize.trial import AcceptedTrial, Baseline, format_trials

        exported: list[ExportedFile] = []
        errors: list[InvalidModelError] = []

        def verify(accepted: AcceptedTrial, baseline: Baseline) -> bool:
            latency_ms, float32_ms = accepted.latency_ms, baseline.latency_ms
            self._callbacks.on_message(f"INT8: {accepted.trial}: {latency_ms:.2f} ms, float32 {float32_ms:.2f} ms")
            if latency_ms > _SLOWER * float32_ms:
                self._callbacks.on_message("on this machine INT8 is slower than float32")
            try:
                exporter = OnnxExporter(accepted.content, str(accepted.trial))
                exported.append(write_verified(path, exporter, verification))
            except InvalidModelError as error:
                errors.append(error)
            return bool(exported)

        result = self._search.run(verify)
        if result.chosen is None:
            for line in format_trials(result):
                self._callbacks.on_message(line)
            raise errors[-1] if errors else _no_config_error(path, verification.limits)
        return exported[0]


def write_verified(path: Path, exporter: Exporter, verification: Verification) -> ExportedFile:
    """Write a file under a temporary name, verify it, then rename it. Raises InvalidModelError, OSError.

    The parity check comes before the file is complete, because its result goes into the file. Then the complete file is
    opened and compared once more.
    """
    reference, reference_outputs = verification.reference, verification.reference_outputs
    metadata = {SPEC_KEY: reference.spec.to_json()}
    with files.atomic_path(path) as temporary:
        try:
            parity, answers = _build_and_check(temporary, exporter, metadata, verification)
            self_test = build_self_test(reference_outputs, reference, parity.tolerance, temporary.stat().st_size)
            metadata |= {SELFTEST_KEY: self_test.to_json(), PARITY_KEY: json.dumps(parity.record())}
            temporary.write_bytes(exporter.build(metadata))
            model = exporter.open(temporary)
            check_final_file(model, metadata, answers, reference_outputs)
        except ParityError as error:
            raise ParityError(f"{path}: {error}") from None
        return ExportedFile(path, temporary.stat().st_size, parity, model)


def _build_and_check(
    temporary: Path, exporter: Exporter, metadata: dict[str, str], verification: Verification
) -> tuple[Parity, Answers]:
    """Write a file with the spec alone, and return what the parity check found and its answers to one batch."""
    temporary.write_bytes(exporter.build(metadata))
    model = exporter.open(temporary)
    reference_outputs = verification.reference_outputs
    parity = check_parity(model, reference_outputs, verification.limits, exporter.quantization)
    return parity, run_batch(model, reference_outputs)


def _partly_exported_error(error: OSError, exported: Sequence[ExportedFile]) -> MachineError:
    names = ", ".join(str(file.path) for file in exported)
    return MachineError(f"{format_os_error(error)}; written before that, and complete: {names}")


def _no_config_error(path: Path, limits: Limits) -> InvalidModelError:
    return InvalidModelError(
        f"{path}: no INT8 configuration keeps the accuracy drop within {limits.max_drop:g} percentage points and "
        f"{limits.min_agreement:.0%} of the labels (see the table); --max-drop allows more; no file was written"
    )


def _raise_if_blocked(folder: Path, targets: Sequence[Target], overwrite: bool) -> None:
    """Raise DataError where a target cannot be written."""
    for target in targets:
        path = folder / target.file
        if path.is_dir():
            raise DataError(f"{path}: is a folder, and a file of this name is to be written; move it away")
        if path.exists() and not overwrite:
            raise DataError(f"{path}: is already there; --overwrite replaces it")


def _count_by_name(names: Sequence[str]) -> str:
    return ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names)))
