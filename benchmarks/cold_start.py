"""From the shell's exec to the answer for one image, against the floor; and --help against importing click.

usage: cold_start.py [--runs N] [--artifacts DIR] [--model FILE --image FILE] [--ultralytics PYTHON] [--optimum PYTHON]

By default the model is that of artifacts/, as `make demo` leaves it, on a PNG file, with torch and the same state_dict
beside it; and, where CLF_TEST_DATA names photographs, MobileNetV3-small on a JPEG file. Beside the last, Ultralytics
and Optimum, where the Python of an environment that has one is named; they keep their models in the working folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from measure import in_turn, keep, table

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
PYTHON, RUN = str(BIN / "python"), str(BIN / "clf-run")


def answers(model: str, image: str) -> dict[str, list[str]]:
    """Give the commands that answer for one image, the floor first."""
    return {
        f"floor: numpy, onnxruntime, Pillow ({Path(model).stem})": [PYTHON, str(HERE / "floor.py"), model, image],
        f"clf-run IMAGE ({Path(model).stem})": [RUN, image, "--model", model],
    }


def words() -> dict[str, list[str]]:
    """Give the commands that only say something, the floor first."""
    return {
        "floor: import click": [PYTHON, "-c", "import click"],
        "clf-run --help": [RUN, "--help"],
        "clf-run --version": [RUN, "--version"],
    }


def photographs() -> list[tuple[str, str]]:
    """Give MobileNetV3-small and a JPEG file, where there is one to be had."""
    folder = Path(os.environ.get("CLF_TEST_DATA", ""), "photos")
    if not os.environ.get("CLF_TEST_DATA") or not folder.is_dir():
        return []
    models = Path(tempfile.gettempdir()) / "clf-benchmark-models"
    made = subprocess.check_output([PYTHON, HERE / "models.py", "mobilenet_v3_small", models], text=True)
    return [(made.strip(), str(min(folder.iterdir())))]


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--artifacts", default="artifacts", metavar="DIR")
    parser.add_argument("--model", metavar="FILE")
    parser.add_argument("--image", metavar="FILE")
    parser.add_argument("--ultralytics", metavar="PYTHON", help="of an environment that has Ultralytics")
    parser.add_argument("--optimum", metavar="PYTHON", help="of an environment that has optimum[onnxruntime]")
    asked = parser.parse_args()
    samples = Path(asked.artifacts, "samples")
    if not asked.image and not samples.is_dir():
        parser.error(f"{samples}: there is none; `make demo` makes it")
    image = asked.image or str(min(samples.iterdir()))
    groups = [answers(asked.model or str(Path(asked.artifacts, "model.onnx")), image)]
    if find_spec("torch") and not asked.model:
        groups[0]["torch and the state_dict"] = [PYTHON, str(HERE / "torch_answer.py"), asked.artifacts, image]
    for model, photograph in photographs() if not asked.model else []:
        groups.append(answers(model, photograph))
        image = photograph
    if asked.ultralytics:
        groups[-1]["Ultralytics, yolo11n-cls"] = [asked.ultralytics, str(HERE / "ultralytics_answers.py"), image]
    if asked.optimum:
        groups[-1]["Optimum, MobileNetV2"] = [asked.optimum, str(HERE / "optimum_answer.py"), image]
    groups.append(words())
    rows = [row for each in groups for row in table(in_turn(each, asked.runs), floor=next(iter(each)))]
    keep("cold_start", rows, ["onnxruntime", "numpy", "pillow", "click"])


if __name__ == "__main__":
    main()
