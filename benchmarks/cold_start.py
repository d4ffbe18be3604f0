"""From exec to the prediction for one image, relative to a baseline; and --help relative to importing click.

usage: cold_start.py [--runs N] [--artifacts DIR] [--model FILE --image FILE] [--ultralytics PYTHON] [--optimum PYTHON]

By default the model is the one in artifacts/ (from `make demo`), with a PNG file, beside torch with the same
state_dict; and MobileNetV3-small with a JPEG file, if CLF_TEST_DATA contains photos. Ultralytics and Optimum are
measured beside the latter, if --ultralytics or --optimum names the Python of an environment; they store their models in
the working folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from measure import run_in_turn, save_result, summarize

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
PYTHON, RUN = str(BIN / "python"), str(BIN / "clf-run")


def classifying_commands(model: str, image: str) -> dict[str, list[str]]:
    """Return the commands that classify one image, the baseline first."""
    return {
        f"baseline: numpy, onnxruntime, Pillow ({Path(model).stem})": [PYTHON, str(HERE / "baseline.py"), model, image],
        f"clf-run IMAGE ({Path(model).stem})": [RUN, image, "--model", model],
    }


def printing_commands() -> dict[str, list[str]]:
    """Return the commands that only print something, the baseline first."""
    return {
        "baseline: import click": [PYTHON, "-c", "import click"],
        "clf-run --help": [RUN, "--help"],
        "clf-run --version": [RUN, "--version"],
    }


def photo_model() -> tuple[str, str] | None:
    """Return MobileNetV3-small and a JPEG file, or None without photos."""
    folder = Path(os.environ.get("CLF_TEST_DATA", ""), "photos")
    if not os.environ.get("CLF_TEST_DATA") or not folder.is_dir():
        return None
    models = Path(tempfile.gettempdir()) / "clf-benchmark-models"
    path = subprocess.check_output([PYTHON, HERE / "models.py", "mobilenet_v3_small", models], text=True)
    return path.strip(), str(min(folder.iterdir()))


def main() -> None:
    """Measure, and save the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--artifacts", default="artifacts", metavar="DIR")
    parser.add_argument("--model", metavar="FILE")
    parser.add_argument("--image", metavar="FILE")
    parser.add_argument("--ultralytics", metavar="PYTHON", help="of an environment that has Ultralytics")
    parser.add_argument("--optimum", metavar="PYTHON", help="of an environment that has optimum[onnxruntime]")
    arguments = parser.parse_args()
    samples = Path(arguments.artifacts, "samples")
    if not arguments.image and not samples.is_dir():
        parser.error(f"{samples}: not found; create it with `make demo`")
    image = arguments.image or str(min(samples.iterdir()))
    groups = [classifying_commands(arguments.model or str(Path(arguments.artifacts, "model.onnx")), image)]
    if find_spec("torch") and not arguments.model:
        groups[0]["torch and the state_dict"] = [PYTHON, str(HERE / "torch_answer.py"), arguments.artifacts, image]
    if not arguments.model and (photo := photo_model()) is not None:
        groups.append(classifying_commands(*photo))
        image = photo[1]
    if arguments.ultralytics:
        groups[-1]["Ultralytics, yolo11n-cls"] = [arguments.ultralytics, str(HERE / "ultralytics_answers.py"), image]
    if arguments.optimum:
        groups[-1]["Optimum, MobileNetV2"] = [arguments.optimum, str(HERE / "optimum_answer.py"), image]
    groups.append(printing_commands())
    rows = [row for group in groups for row in summarize(run_in_turn(group, arguments.runs), next(iter(group)))]
    save_result("cold_start", rows, ["onnxruntime", "numpy", "pillow", "click"])


if __name__ == "__main__":
    main()
