"""What the runtime imports: nothing that a device does not have, and nothing that a command does not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "numpy",
    "PIL",
    "onnxruntime",
    "torch",
    "torchvision",
    "onnx",
    "sklearn",
    "jinja2",
    "tqdm",
    "matplotlib",
    "uvicorn",
    "prometheus_client",
    "ray",
    "pyarrow",
    "fsspec",
)
NEVER_ON_A_DEVICE = ("torch", "torchvision", "onnx", "onnxscript", "sklearn", "jinja2", "tqdm", "scipy", "clf_train")


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a new process has imported after running `code`."""
    program = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in process.stderr.split()}


@pytest.mark.parametrize(
    "module",
    [
        *("clf_runtime.cli", "clf_runtime.evaluation.cli", "clf_runtime.bench.cli"),
        *(
            "clf_serve.cli",
            "clf_batch.cli",
            "clf_deploy.cli",
            "clf_train.cli",
            "clf_train.cli_import",
            "clf_export.cli",
        ),
    ],
)
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(module, flag):
    loaded = modules_after(
        f"from {module} import command\ntry: command.main(['{flag}'], standalone_mode=False)\nexcept SystemExit: pass"
    )
    assert "click" in loaded
    assert not loaded & set(HEAVY)


def test_importing_the_package_imports_nothing_else():
    assert not modules_after("import clf_runtime; clf_runtime.ClfError") & {*HEAVY, "click"}


def test_formatting_a_duration_imports_nothing_heavy():
    # clf-train formats durations too, and does not need onnxruntime.
    assert not modules_after("from clf_runtime.progress import format_duration; format_duration(1)") & set(HEAVY)


def test_classifying_an_image_needs_neither_torch_nor_onnx(model, samples):
    loaded = modules_after(
        f"from clf_runtime import Classifier\nClassifier.load({str(model)!r}).predict({str(samples[0])!r})"
    )
    assert {"numpy", "PIL", "onnxruntime"} <= loaded
    assert not loaded & set(NEVER_ON_A_DEVICE)


def test_serving_needs_neither_torch_nor_a_template_engine():
    loaded = modules_after("from clf_serve import server")
    assert {"numpy", "PIL", "onnxruntime", "uvicorn", "prometheus_client"} <= loaded
    assert not loaded & set(NEVER_ON_A_DEVICE)


def test_a_batch_worker_needs_neither_torch_nor_ray():
    loaded = modules_after("from clf_batch import worker")
    assert {"numpy", "PIL", "onnxruntime", "pyarrow"} <= loaded
    assert not loaded & {*NEVER_ON_A_DEVICE, "ray"}


def test_classifying_an_image_imports_nothing_that_opens_connections(model, samples):
    code = f"import sys; sys.argv = ['clf-run', {str(samples[0])!r}, '-m', {str(model)!r}]\n"
    loaded = modules_after(f"{code}from clf_runtime.cli import command\ncommand.main(standalone_mode=False)")
    assert not (loaded - modules_after("pass")) & {"http", "ssl", "socket", "asyncio", "uvicorn"}


def test_evaluating_needs_neither_torch_nor_a_template_engine():
    loaded = modules_after("from clf_runtime.evaluation import evaluate, page, record, table")
    assert {"numpy", "PIL", "onnxruntime"} <= loaded
    assert not loaded & set(NEVER_ON_A_DEVICE)


def test_every_public_name_is_found_and_no_other():
    import clf_runtime

    assert all(getattr(clf_runtime, name) is not None for name in clf_runtime.__all__)
    assert set(dir(clf_runtime)) == set(clf_runtime.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Clasifier'"):
        clf_runtime.Clasifier  # noqa: B018
