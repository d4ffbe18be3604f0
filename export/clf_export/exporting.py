"""From a finished artifacts folder to exported files, each proven before it gets its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clf_export.carried import selftest_from_pictures
from clf_export.deployable import Deployable
from clf_export.onnx_from_model import onnx_from_model, with_metadata
from clf_export.proof import Candidate, Evidence, Parity, evidence_from_data, prove
from clf_export.reference import Reference
from clf_export.torchscript_from_model import TorchScriptModel, torchscript_bytes, torchscript_from_model
from clf_runtime import artifacts, files
from clf_runtime.classifier import Classifier
from clf_runtime.errors import DataRefused, ModelRefused
from clf_runtime.onnx_file import PARITY_KEY, SELFTEST_KEY, SPEC_KEY
from clf_runtime.selftest import replay
from clf_runtime.session import runtime_version
from clf_runtime.spec import ModelSpec
from clf_train import trained
from clf_train.dataset import Dataset
from clf_train.loading import readable
from clf_train.order import Order, dataset_for

FILE_OF = {"onnx": artifacts.ONNX, "torchscript": artifacts.TORCHSCRIPT}

Opened = tuple[Candidate, ModelSpec]
Say = Callable[[str], object]


@dataclass(frozen=True)
class Exported:
    """One file that is in place, and what was proven of it."""

    path: Path
    size_bytes: int
    parity: Parity


def export(
    folder: Path,
    formats: Sequence[str],
    *,
    data: str | None = None,
    data_root: str | None = None,
    trusted: str | None = None,
    overwrite: bool = False,
    say: Say = lambda message: None,
) -> list[Exported]:
    """Export the finished model in `folder`.

    Args:
        folder: the artifacts folder.
        formats: keys of FILE_OF.
        data: where the held-out pictures are; by default where training found them.
        data_root: likewise, for data sets by name.
        trusted: the package.module:factory that the model may be built by, where it is not one by name.
        overwrite: replace files that are there.
        say: told what is under way.

    Raises:
        ModelRefused: the model is damaged, or a proof failed.
        DataRefused: the pictures are not those of the training, or a file is already there.
        MachineUnable, OSError: this machine cannot do it.
    """
    formats = tuple(dict.fromkeys(formats))
    _refuse_existing(folder, formats, overwrite)
    model = trained.load(folder, trusted)
    dataset = _held_out(model.spec, data, data_root, left_out=(folder / artifacts.UNREADABLE).is_file())
    reference = Reference(model.model, model.spec)
    say(f"asking PyTorch about the held-out pictures ({len(dataset.test):,}, {dataset.test_name})")
    evidence = evidence_from_data(dataset, reference)
    metadata = {
        SPEC_KEY: model.spec.to_json(),
        SELFTEST_KEY: selftest_from_pictures(dataset.test, reference, model.spec.preprocess).to_json(),
    }
    module = Deployable(model.model, model.spec).eval()
    exported = []
    for each in formats:
        path = folder / FILE_OF[each]
        say(f"exporting {path}, and proving it")
        build = onnx_builder(module, model.spec) if each == "onnx" else torchscript_builder(module, model.spec)
        exported.append(put_in_place(path, build, _OPENERS[each], metadata, evidence))
    _record(folder, exported)
    return exported


Build = Callable[[dict[str, str]], bytes]
Open = Callable[[Path], Opened]


def onnx_builder(module: Deployable, spec: ModelSpec) -> Build:
    """Export the graph once; the result makes a file of it for any metadata."""
    graph = onnx_from_model(module, spec)
    return lambda metadata: with_metadata(graph, metadata)


def torchscript_builder(module: Deployable, spec: ModelSpec) -> Build:
    """Trace the module once; the result makes a file of it for any metadata."""
    traced = torchscript_from_model(module, spec)
    return lambda metadata: torchscript_bytes(traced, metadata)


def put_in_place(path: Path, build: Build, opened: Open, metadata: dict[str, str], evidence: Evidence) -> Exported:
    """Write a file under a temporary name, prove it, and only then give it its name. Raises ModelRefused, OSError."""
    with files.complete_or_absent(path) as temporary:
        temporary.write_bytes(build(metadata))
        parity = _proven(path, temporary, opened, evidence)
        # The same graph, now with the record of its proof. What is about to get its name is opened once more.
        temporary.write_bytes(build({**metadata, PARITY_KEY: json.dumps(parity.record())}))
        candidate, _ = opened(temporary)
        if isinstance(candidate, Classifier) and not replay(candidate).passed:
            raise ModelRefused(f"{path}: the proof failed: its own self-test does not pass here; no file was written")
        size_bytes = temporary.stat().st_size
    return Exported(path, size_bytes, parity)


def _proven(path: Path, temporary: Path, opened: Open, evidence: Evidence) -> Parity:
    candidate, spec = opened(temporary)
    runtime = "torch.jit" if isinstance(candidate, TorchScriptModel) else f"onnxruntime {runtime_version()}"
    try:
        return prove(candidate, spec, evidence, f"torch {torch.__version__}", runtime)
    except ModelRefused as refusal:
        raise ModelRefused(f"{path}: {refusal}") from None


def open_onnx(path: Path) -> Opened:
    """Open an ONNX file through the runtime, as a device does."""
    classifier = Classifier.load(path, device="cpu")
    return classifier, classifier.spec


def open_torchscript(path: Path) -> Opened:
    """Open a TorchScript file of ours."""
    model = TorchScriptModel(path, (SPEC_KEY, SELFTEST_KEY, PARITY_KEY))
    return model, ModelSpec.from_json(model.metadata[SPEC_KEY], str(path))


_OPENERS: dict[str, Open] = {"onnx": open_onnx, "torchscript": open_torchscript}


def _refuse_existing(folder: Path, formats: Sequence[str], overwrite: bool) -> None:
    for each in formats:
        path = folder / FILE_OF[each]
        if path.exists() and not overwrite:
            raise DataRefused(f"{path}: is already there; --overwrite replaces it")


def _held_out(spec: ModelSpec, data: str | None, data_root: str | None, left_out: bool) -> Dataset:
    """Find the very pictures that were held out in training, which left out some or not. Raises DataRefused."""
    origin = spec.provenance
    wanted = data or (origin.data if origin else None)
    if origin is None or wanted is None:
        raise DataRefused(
            "model.json: names no data, so there is nothing to prove the export with; say --data with labelled pictures"
        )
    order = Order(
        data=wanted,
        data_root=data_root or origin.data_root or "data",
        held_out=origin.held_out,
        seed=origin.seed,
    )
    try:
        dataset = dataset_for(order)
    except DataRefused as refusal:
        raise DataRefused(f"{refusal}; --data says where the pictures of the training are") from None
    if left_out:
        dataset = replace(dataset, test=readable(dataset.test, spec.preprocess))
    if origin.fingerprint is not None and dataset.test.fingerprint() != origin.fingerprint:
        raise DataRefused(
            f"{order.data}: its held-out pictures are not those of the training ({len(dataset.test):,} found, "
            "changed since), so a proof would be about something else; restore them, or train again"
        )
    if origin.fingerprint is None and dataset.labels != spec.labels:
        raise DataRefused(
            f"{order.data}: its classes are {list(dataset.labels)}; expected the model's, {list(spec.labels)}"
        )
    return dataset


def _record(folder: Path, exported: Sequence[Exported]) -> None:
    """Write export.json: what was proven, in numbers, of each exported file that is there."""
    path = folder / artifacts.EXPORT
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    record = {name: value for name, value in known.items() if (folder / name).exists()}
    record |= {each.path.name: {"size_bytes": each.size_bytes, **each.parity.record()} for each in exported}
    files.write(path, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
