"""A wrong export fails the parity check, whatever is wrong with it, and no file is written."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import io
import json
import re
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from clf_export import exporting
from clf_export.callbacks import IgnoreCallbacks
from clf_export.exporters.module import ExportModule
from clf_export.exporters.onnx import OnnxExporter, onnx_from_program
from clf_export.exporters.trace import program_from_model
from clf_export.exporting import ExportJob, ExportOptions, Verification, write_verified
from clf_export.formats import TARGETS
from clf_export.parity import reference_outputs as reference_outputs_module
from clf_export.parity.check import BATCH_SIZES, ParityError, check_parity
from clf_export.parity.limits import TOLERANCE, limits_for
from clf_export.parity.reference import Reference
from clf_export.parity.reference_outputs import compute_reference_outputs
from clf_export.quantize.bias_correction import measure_input_means
from clf_export.quantize.calibration import Calibration
from clf_export.quantize.graph import fuse
from clf_export.quantize.int8 import QUANTIZATION_CONFIGS, int8_from_onnx
from clf_export.quantize.rewrite import rewrite_for_quantization
from clf_export.reference_split import find_test_split
from clf_runtime.classifier import Classifier
from clf_runtime.errors import DataError, InvalidModelError
from clf_train.models.saved import load_saved_model


@pytest.fixture(scope="module")
def saved(artifacts):
    return load_saved_model(artifacts)


@pytest.fixture(scope="module")
def split(saved, artifacts):
    return find_test_split(artifacts, saved.spec, None, None)


@pytest.fixture(scope="module")
def reference_outputs(saved, split):
    return outputs_of(saved, split)


def outputs_of(saved, split):
    module = ExportModule(saved.model, saved.spec).eval()
    return compute_reference_outputs(split, module, Reference(saved.model, saved.spec))


@pytest.fixture(scope="module")
def make_exporter(saved, split):
    """Return the exporter of a target, for a module and a spec made by a function of the saved model.

    Each is traced once. INT8 is quantized with one config, without a search.
    """

    @functools.cache
    def make_job(make):
        module, spec = make(saved)
        return ExportJob(module.eval(), spec, split, ExportOptions(), IgnoreCallbacks())

    def make_exporter(make, target):
        if target.precision != "int8":
            return make_job(make).make_exporter(target)
        graph = rewrite_for_quantization(fuse(make_job(make).make_exporter(TARGETS[0]).build({})))
        ranges, means = (
            Calibration(graph, split.calibration).ranges("minmax"),
            measure_input_means(graph, split.calibration),
        )
        return OnnxExporter(int8_from_onnx(graph, QUANTIZATION_CONFIGS[0], ranges, means), "one config")

    return make_exporter


def correct(saved):
    return ExportModule(saved.model, saved.spec), saved.spec


def slightly_scaled(saved):
    """Multiply the weights of the last layer by 1.02."""
    model = copy.deepcopy(saved.model)
    with torch.no_grad():
        [parameter for name, parameter in model.named_parameters() if name.endswith("weight")][-1].mul_(1.02)
    return ExportModule(model, saved.spec), saved.spec


class WrongLayout(ExportModule):
    """Takes height for width."""

    def forward(self, image):
        return super().forward(image.permute(0, 2, 1, 3))


class Reversed(nn.Module):
    """Returns its classes in reverse order."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).flip(1)


class Shifted(nn.Module):
    """Sees the image one pixel to the left."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images.roll(1, 3))


def wrong_mean(saved):
    normalize = dataclasses.replace(saved.spec.normalize, mean=(0.5001,))
    return ExportModule(saved.model, dataclasses.replace(saved.spec, normalize=normalize)), saved.spec


def wrong_layout(saved):
    return WrongLayout(saved.model, saved.spec), saved.spec


def swapped_labels(saved):
    labels = list(saved.spec.labels)
    labels[3], labels[8] = labels[8], labels[3]
    return ExportModule(saved.model, saved.spec), dataclasses.replace(saved.spec, labels=tuple(labels))


def reversed_outputs(saved):
    return ExportModule(Reversed(saved.model), saved.spec), saved.spec


def wrong_temperature(saved):
    wrong = dataclasses.replace(saved.spec, temperature=saved.spec.temperature * 1.1)
    return ExportModule(saved.model, wrong), saved.spec


def shifted_images(saved):
    preprocess = dataclasses.replace(saved.spec.preprocess, resize="pad", height=8, width=8)
    spec = dataclasses.replace(saved.spec, preprocess=preprocess)
    return ExportModule(Shifted(saved.model), spec), spec


FAULTS = {
    wrong_mean: "a logit differs",
    wrong_layout: "labels flipped",
    swapped_labels: r"labels flipped, such as digits/\d+.png \('\d', not '\d'\)",
    reversed_outputs: "labels flipped",
    wrong_temperature: "a probability by",
    shifted_images: "labels flipped",
}
# Smaller than the rounding of half precision or 8 bits.
SMALL_FAULTS = (wrong_mean, wrong_temperature)


@pytest.mark.parametrize(
    ("target", "fault", "message"),
    [
        pytest.param(target, fault, message, id=f"{target.file}-{fault.__name__}")
        for target in TARGETS
        for fault, message in FAULTS.items()
        if target.precision == "fp32" or fault not in SMALL_FAULTS
    ],
)
def test_a_wrong_export_fails_with_its_worst_image_and_leaves_no_file(
    saved, reference_outputs, make_exporter, tmp_path, target, fault, message
):
    exporter = make_exporter(fault, target)
    limits = limits_for(target.precision, reference_outputs, max_drop=0.5)
    verification = Verification(Reference(saved.model, fault(saved)[1]), reference_outputs, limits)
    with pytest.raises(ParityError, match=r"model: the parity check failed on digits/") as error:
        write_verified(tmp_path / "model", exporter, verification)
    assert str(error.value).endswith("no file was written")
    assert list(tmp_path.iterdir()) == []
    assert re.search(message, str(error.value))


class SecondBuildDiffers:
    """An exporter whose first build is one network, and every later build another one, or other metadata."""

    quantization = ""

    def __init__(self, first, second, change=lambda metadata: metadata):
        self._exporters = [first, second]
        self._change = change
        self.open = first.open

    def build(self, metadata):
        if len(self._exporters) > 1:
            return self._exporters.pop(0).build(metadata)
        return self._exporters[0].build(self._change(metadata))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.file)
def test_a_final_file_with_other_weights_than_the_verified_one_is_not_written(
    saved, reference_outputs, make_exporter, tmp_path, target
):
    """The weights differ by so little that both INT8 files pass the parity check."""
    first, second = make_exporter(correct, target), make_exporter(slightly_scaled, target)
    limits = limits_for(target.precision, reference_outputs, max_drop=0.5)
    verification = Verification(Reference(saved.model, saved.spec), reference_outputs, limits)
    with pytest.raises(ParityError, match=r"model: the final file differs from the verified one: a logit by 0\.\d+ "):
        write_verified(tmp_path / "model", SecondBuildDiffers(first, second), verification)
    assert list(tmp_path.iterdir()) == []
    assert write_verified(tmp_path / "model", SecondBuildDiffers(first, first), verification).path.is_file()
    if target.precision == "int8":
        assert write_verified(tmp_path / "other", second, verification).path.is_file()


@pytest.mark.parametrize("target", [target for target in TARGETS if target.precision == "fp32"], ids=lambda t: t.file)
def test_a_final_file_with_other_metadata_than_were_written_is_not_written(
    saved, reference_outputs, make_exporter, tmp_path, target
):
    exporter = make_exporter(correct, target)
    limits = limits_for(target.precision, reference_outputs, max_drop=0.5)
    verification = Verification(Reference(saved.model, saved.spec), reference_outputs, limits)
    for change in (
        lambda metadata: {key: value for key, value in metadata.items() if key != "clf.selftest"},
        lambda metadata: metadata | {"clf.parity": "{}"},
    ):
        with pytest.raises(ParityError, match="the final file does not carry the metadata written into it"):
            write_verified(tmp_path / "model", SecondBuildDiffers(exporter, exporter, change), verification)
        assert list(tmp_path.iterdir()) == []


def test_a_final_file_that_fails_its_own_self_test_is_not_written(saved, reference_outputs, make_exporter, tmp_path):
    exporter = make_exporter(correct, TARGETS[0])
    limits = limits_for("fp32", reference_outputs, max_drop=0.5)
    # The self-test's logits come from another network than the outputs of the parity check.
    verification = Verification(Reference(Reversed(saved.model), saved.spec), reference_outputs, limits)
    with pytest.raises(ParityError, match=r"the final file does not pass its own self-test \(FAILED"):
        write_verified(tmp_path / "model", exporter, verification)
    assert list(tmp_path.iterdir()) == []


@dataclasses.dataclass
class GivenAnswers:
    """An opened model that returns given arrays: for faults that no exporter produces."""

    spec: object
    logits: np.ndarray
    probabilities: np.ndarray
    pixels: np.ndarray
    runtime: str = "none"

    def run(self, pixels):
        rows = [next(row for row, known in enumerate(self.pixels) if (known == image).all()) for image in pixels]
        return self.logits[rows], self.probabilities[rows]


def check_logits(logits, saved, reference_outputs):
    classes = logits.shape[1]
    probabilities = reference_outputs.probabilities[:, :classes]
    model = GivenAnswers(saved.spec, logits, probabilities, reference_outputs.pixels)
    return check_parity(model, reference_outputs, limits_for("fp32", reference_outputs, 0.5))


def test_one_nan_in_one_image_fails_the_check(saved, reference_outputs):
    logits = reference_outputs.logits.copy()
    logits[17, 3] = np.nan
    with pytest.raises(
        ParityError, match=rf"the parity check failed on {reference_outputs.names[17]}: a logit differs .* by nan"
    ):
        check_logits(logits, saved, reference_outputs)


def test_a_difference_just_above_the_tolerance_fails_and_one_just_below_passes(saved, reference_outputs):
    for factor, fails in ((0.8, False), (1.3, True)):
        logits = reference_outputs.logits.copy()
        logits[5, 2] += factor * TOLERANCE
        if fails:
            with pytest.raises(ParityError, match=reference_outputs.names[5]):
                check_logits(logits, saved, reference_outputs)
        else:
            parity = check_logits(logits, saved, reference_outputs)
            assert parity.worst_image == reference_outputs.names[5]
            assert parity.max_difference == pytest.approx(factor * TOLERANCE, rel=0.1)


def test_logits_of_another_number_of_classes_fail(saved, reference_outputs):
    with pytest.raises(ParityError, match=r"the logits have shape \(359, 9\), expected PyTorch's \(359, 10\)"):
        check_logits(reference_outputs.logits[:, :9], saved, reference_outputs)


def test_the_reference_images_are_the_test_split_or_a_thousand_spread_over_it(
    reference_outputs, split, saved, monkeypatch
):
    assert reference_outputs.names == split.dataset.test.names
    monkeypatch.setattr(reference_outputs_module, "_MAX_IMAGES", 100)
    fewer = outputs_of(saved, split)
    assert len(fewer.names) == 100
    assert len(set(fewer.targets)) == 10


@pytest.mark.parametrize("name", ["model.onnx", "model.torchscript.pt"])
def test_the_parity_record_is_in_the_file_and_in_export_json(artifacts, name):
    record = json.loads((artifacts / "export.json").read_text())[name]
    assert record["images"] == 359
    assert record["batch_sizes"] == list(BATCH_SIZES) == [1, 2, 7, 32]
    assert 0 < record["max_difference"] <= TOLERANCE == 1e-4
    assert record["flipped"] == 0
    assert record["size_bytes"] == (artifacts / name).stat().st_size
    if name == "model.onnx":
        in_file = json.loads(Classifier.load(artifacts / name).file.metadata["clf.parity"])
        of_this_machine = {"size_bytes", "oldest_onnxruntime", "latency_ms", "eager_latency_ms"}
        assert in_file == {key: value for key, value in record.items() if key not in of_this_machine}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_an_error(artifacts, tmp_path, value):
    folder = copy_with_state(artifacts, tmp_path, lambda state: state["0.weight"].view(-1).__setitem__(3, value))
    with pytest.raises(InvalidModelError, match=r"model\.pt: 0\.weight has NaN or infinite values"):
        exporting.export(folder, TARGETS[:1])
    assert not (folder / "model.onnx").exists()


def test_weights_whose_logits_overflow_are_an_error(artifacts, tmp_path):
    folder = copy_with_state(artifacts, tmp_path, lambda state: state[list(state)[-2]].mul_(1e38))
    with pytest.raises(InvalidModelError, match="PyTorch's own logits are NaN or infinite"):
        exporting.export(folder, TARGETS[:1])


def copy_with_state(artifacts, tmp_path, change):
    """Copy a finished model with changed weights and a matching digest."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    state = torch.load(artifacts / "model.pt", weights_only=True)
    change(state)
    file = io.BytesIO()
    torch.save(state, file)
    (folder / "model.pt").write_bytes(file.getvalue())
    content = json.loads((artifacts / "model.json").read_text())
    content["provenance"]["state_dict_sha256"] = hashlib.sha256(file.getvalue()).hexdigest()
    (folder / "model.json").write_text(json.dumps(content))
    return folder


def test_the_same_weights_give_the_same_graph_bytes(saved):
    module = ExportModule(saved.model, saved.spec).eval()
    first, second = (onnx_from_program(program_from_model(module, saved.spec)) for _ in range(2))
    assert first == second


def test_a_torchscript_file_opens_with_torch_alone_and_has_the_same_metadata(artifacts):
    extra = dict.fromkeys(("clf.spec", "clf.selftest", "clf.parity"), "")
    with pytest.warns(FutureWarning) if torch.__version__ >= "2.11" else nullcontext():
        module = torch.jit.load(str(artifacts / "model.torchscript.pt"), _extra_files=extra)
    classifier = Classifier.load(artifacts / "model.onnx")
    assert extra["clf.spec"].decode() == classifier.file.metadata["clf.spec"]
    assert extra["clf.selftest"].decode() == classifier.file.metadata["clf.selftest"]
    for size in (1, 3):
        pixels = np.random.default_rng(size).integers(0, 256, (size, 8, 8, 1), dtype=np.uint8)
        with torch.inference_mode():
            logits, probabilities = module(torch.from_numpy(pixels))
        np.testing.assert_allclose(logits.numpy(), classifier.run(pixels)[0], atol=1e-4)
        np.testing.assert_allclose(probabilities.sum(1).numpy(), 1, rtol=1e-5)


def test_the_last_bytes_of_a_torchscript_file_are_its_digest(artifacts):
    content = (artifacts / "model.torchscript.pt").read_bytes()
    assert content[-75:-64] == b"clf.sha256:"
    assert content[-64:].decode() == hashlib.sha256(content[:-75]).hexdigest()


def test_another_test_split_than_that_of_the_training_is_an_error(artifacts, tmp_path):
    folder = tmp_path / "artifacts"
    folder.mkdir()
    shutil.copy(artifacts / "model.pt", folder)
    content = json.loads((artifacts / "model.json").read_text())
    content["provenance"]["seed"] = 1
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="its test split is not that of the training"):
        exporting.export(folder, TARGETS[:1])
