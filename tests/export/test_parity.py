"""An export that is wrong is refused, whatever is wrong with it, and leaves no file."""

from __future__ import annotations

import dataclasses
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
from clf_export.exporters.module import ExportModule
from clf_export.exporters.onnx import OLDEST_RUNTIME, onnx_from_program
from clf_export.exporters.trace import program_from_model
from clf_export.exporting import OPENERS, Work, write_verified
from clf_export.formats import TARGETS
from clf_export.parity import reference_outputs as evidence_module
from clf_export.parity.check import BATCH_SIZES, TOLERANCE, check_parity, limits_for
from clf_export.parity.reference import Reference
from clf_export.parity.reference_outputs import compute_reference_outputs
from clf_export.test_split import find_test_split
from clf_runtime.classifier import Classifier
from clf_runtime.errors import InvalidModelError
from clf_train.models.saved import load_saved_model


@pytest.fixture(scope="module")
def model(artifacts):
    return load_saved_model(artifacts)


@pytest.fixture(scope="module")
def images(model, artifacts):
    return find_test_split(artifacts, model.spec, None, None)


@pytest.fixture(scope="module")
def reference_outputs(model, images):
    return evidence_of(model, images)


def evidence_of(model, images):
    module = ExportModule(model.model, model.spec).eval()
    return compute_reference_outputs(images.dataset, images.all_images, module, Reference(model.model, model.spec))


class WrongLayout(ExportModule):
    """Takes height for width."""

    def forward(self, image):
        return super().forward(image.permute(0, 2, 1, 3))


class Shuffled(nn.Module):
    """Gives its classes in another order."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).flip(1)


class NotANumber(nn.Module):
    """Gives NaN where the image is bright, as a weight of infinity does."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images) + (images.mean() > 10).float() * 0 / 0


def wrong_mean(model):
    normalize = dataclasses.replace(model.spec.normalize, mean=(0.5001,))
    return ExportModule(model.model, dataclasses.replace(model.spec, normalize=normalize)), model.spec


def wrong_layout(model):
    return WrongLayout(model.model, model.spec), model.spec


def swapped_labels(model):
    labels = list(model.spec.labels)
    labels[3], labels[8] = labels[8], labels[3]
    return ExportModule(model.model, model.spec), dataclasses.replace(model.spec, labels=tuple(labels))


def swapped_outputs(model):
    return ExportModule(Shuffled(model.model), model.spec), model.spec


def wrong_temperature(model):
    wrong = dataclasses.replace(model.spec, temperature=model.spec.temperature * 1.1)
    return ExportModule(model.model, wrong), model.spec


def wrong_resampling(model):
    preprocess = dataclasses.replace(model.spec.preprocess, resize="pad", height=8, width=8)
    shifted = dataclasses.replace(model.spec, preprocess=preprocess)
    return ExportModule(Offset(model.model), shifted), shifted


class Offset(nn.Module):
    """Sees the image one pixel to the left."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images.roll(1, 3))


def not_a_number(model):
    return ExportModule(NotANumber(model.model), model.spec), model.spec


FAULTS = {
    wrong_mean: "a logit differs",
    wrong_layout: "labels flipped",
    swapped_labels: r" for one is '\d' there and '\d' in PyTorch",
    swapped_outputs: "labels flipped",
    wrong_temperature: "a probability by",
    wrong_resampling: "labels flipped",
}
# Smaller than what half precision or 8 bits round away.
SMALL = (wrong_mean, wrong_temperature)


@pytest.mark.parametrize(
    ("target", "fault", "said"),
    [
        pytest.param(target, fault, said, id=f"{target.file}-{fault.__name__}")
        for target in TARGETS
        for fault, said in FAULTS.items()
        if target.precision == "fp32" or fault not in SMALL
    ],
)
def test_a_wrong_export_is_refused_by_its_worst_image_and_leaves_no_file(
    model, reference_outputs, images, tmp_path, target, fault, said
):
    module, spec = fault(model)
    work = Work(module.eval(), spec, OLDEST_RUNTIME, 0.5, images, lambda message: None)
    version = next(work.versions(target))
    wrong = Reference(model.model, spec)
    with pytest.raises(InvalidModelError, match="the proof failed on digits/") as refused:
        write_verified(
            tmp_path / "model",
            version,
            OPENERS[target.format],
            wrong,
            reference_outputs,
            limits_for(target.precision, reference_outputs, max_drop=0.5),
        )
    assert str(refused.value).endswith("no file was written")
    assert list(tmp_path.iterdir()) == []
    assert re.search(said, str(refused.value))


@dataclasses.dataclass
class Answers:
    """A candidate that answers with given arrays, whatever it is asked: for faults that no exporter makes."""

    logits_: np.ndarray
    probabilities_: np.ndarray
    pixels: np.ndarray

    def logits(self, pixels):
        rows = [next(at for at, known in enumerate(self.pixels) if (known == each).all()) for each in pixels]
        return self.logits_[rows], self.probabilities_[rows]


def proved(logits, model, reference_outputs):
    classes = logits.shape[1]
    candidate = Answers(logits, reference_outputs.probabilities[:, :classes], reference_outputs.pixels)
    return check_parity(
        candidate, model.spec, reference_outputs, limits_for("fp32", reference_outputs, 0.5), "", "", ""
    )


def test_one_nan_in_one_image_fails_the_proof(model, reference_outputs):
    logits = reference_outputs.logits.copy()
    logits[17, 3] = np.nan
    with pytest.raises(
        InvalidModelError, match=rf"the proof failed on {reference_outputs.names[17]}: a logit differs .* by nan"
    ):
        proved(logits, model, reference_outputs)


def test_a_difference_just_above_the_tolerance_fails_and_one_below_passes(model, reference_outputs):
    for share, fails in ((0.8, False), (1.3, True)):
        logits = reference_outputs.logits.copy()
        logits[5, 2] += share * TOLERANCE
        if fails:
            with pytest.raises(InvalidModelError, match=reference_outputs.names[5]):
                proved(logits, model, reference_outputs)
        else:
            parity = proved(logits, model, reference_outputs)
            assert parity.worst_image == reference_outputs.names[5]
            assert parity.max_difference == pytest.approx(share * TOLERANCE, rel=0.1)


def test_a_candidate_with_another_number_of_classes_fails(model, reference_outputs):
    with pytest.raises(InvalidModelError, match=r"it gives \(359, 9\), PyTorch \(359, 10\)"):
        proved(reference_outputs.logits[:, :9], model, reference_outputs)


def test_all_held_out_images_are_the_evidence_and_a_thousand_where_there_are_more(
    reference_outputs, images, model, monkeypatch
):
    assert reference_outputs.names == images.dataset.test.names
    monkeypatch.setattr(evidence_module, "_IMAGES", 100)
    fewer = evidence_of(model, images)
    assert len(fewer.names) == 100
    assert len(set(fewer.targets)) == 10


@pytest.mark.parametrize("name", ["model.onnx", "model.torchscript.pt"])
def test_what_was_proven_is_in_the_file_and_beside_it(artifacts, name):
    record = json.loads((artifacts / "export.json").read_text())[name]
    assert record["images"] == 359
    assert record["batch_sizes"] == list(BATCH_SIZES) == [1, 2, 7, 32]
    assert 0 < record["max_difference"] <= TOLERANCE == 1e-4
    assert record["flipped"] == 0
    assert record["size_bytes"] == (artifacts / name).stat().st_size
    if name == "model.onnx":
        carried = json.loads(Classifier.load(artifacts / name).file.metadata["clf.parity"])
        of_the_machine = {"size_bytes", "oldest_onnxruntime", "latency_ms", "eager_latency_ms"}
        assert carried == {key: value for key, value in record.items() if key not in of_the_machine}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(artifacts, tmp_path, value):
    folder = with_state(artifacts, tmp_path, lambda state: state["0.weight"].view(-1).__setitem__(3, value))
    with pytest.raises(InvalidModelError, match=r"model\.pt: refused: 0\.weight has NaN or infinite values"):
        exporting.export(folder, TARGETS[:1])
    assert not (folder / "model.onnx").exists()


def test_weights_that_overflow_on_the_way_are_refused(artifacts, tmp_path):
    folder = with_state(artifacts, tmp_path, lambda state: state[list(state)[-2]].mul_(1e38))
    with pytest.raises(InvalidModelError, match="PyTorch itself gives NaN or infinite logits"):
        exporting.export(folder, TARGETS[:1])


def with_state(artifacts, tmp_path, change):
    """Copy a finished model with other weights, digest and all, as someone could who trains by hand."""
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


def test_the_same_weights_give_the_same_graph_wherever_they_are_exported(model):
    module = ExportModule(model.model, model.spec).eval()
    first, second = (onnx_from_program(program_from_model(module, model.spec)) for _ in range(2))
    assert first == second


def test_a_torchscript_file_opens_with_torch_alone_and_carries_the_same(artifacts, model):
    extra = dict.fromkeys(("clf.spec", "clf.selftest", "clf.parity"), "")
    with pytest.warns(FutureWarning) if torch.__version__ >= "2.11" else nullcontext():
        module = torch.jit.load(str(artifacts / "model.torchscript.pt"), _extra_files=extra)
    onnx = Classifier.load(artifacts / "model.onnx")
    assert extra["clf.spec"].decode() == onnx.file.metadata["clf.spec"]
    assert extra["clf.selftest"].decode() == onnx.file.metadata["clf.selftest"]
    for size in (1, 3):
        pixels = np.random.default_rng(size).integers(0, 256, (size, 8, 8, 1), dtype=np.uint8)
        with torch.inference_mode():
            logits, probabilities = module(torch.from_numpy(pixels))
        np.testing.assert_allclose(logits.numpy(), onnx.run(pixels)[0], atol=1e-4)
        np.testing.assert_allclose(probabilities.sum(1).numpy(), 1, rtol=1e-5)


def test_the_last_bytes_of_a_torchscript_file_are_its_digest(artifacts):
    content = (artifacts / "model.torchscript.pt").read_bytes()
    assert content[-75:-64] == b"clf.sha256:"
    assert content[-64:].decode() == hashlib.sha256(content[:-75]).hexdigest()


def test_a_class_folder_of_another_training_is_not_what_the_proof_is_about(artifacts, tmp_path):
    folder = tmp_path / "artifacts"
    folder.mkdir()
    shutil.copy(artifacts / "model.pt", folder)
    content = json.loads((artifacts / "model.json").read_text())
    content["provenance"]["seed"] = 1
    (folder / "model.json").write_text(json.dumps(content))
    from clf_runtime.errors import DataError

    with pytest.raises(DataError, match="its held-out images are not those of the training"):
        exporting.export(folder, TARGETS[:1])
