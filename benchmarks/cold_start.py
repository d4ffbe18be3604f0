"""From the shell's exec to the answer for one picture, against the floor; and --help against importing click.

usage: cold_start.py [--runs N] [--artifacts DIR] [--model FILE --image FILE] [--ultralytics PYTHON]

By default the model is that of artifacts/, as `make demo` leaves it, on a PNG file; and, where CLF_TEST_DATA names
photographs, MobileNetV3-small on a JPEG file. Beside them, torch with the same state_dict where it is installed, and
Ultralytics where the Python of an environment that has it is named.
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
    """Give the commands that answer for one picture, the floor first."""
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
    asked = parser.parse_args()
    image = asked.image or str(min(Path(asked.artifacts, "samples").iterdir()))
    ours = answers(asked.model or str(Path(asked.artifacts, "model.onnx")), image)
    if find_spec("torch") and not asked.model:
        ours["torch and the state_dict"] = [PYTHON, str(HERE / "torch_answer.py"), asked.artifacts, image]
    if asked.ultralytics:
        ours["Ultralytics, yolo11n-cls"] = [asked.ultralytics, str(HERE / "ultralytics_answers.py"), image]
    groups = [ours, *(answers(*each) for each in photographs() if not asked.model), words()]
    rows = [row for each in groups for row in table(in_turn(each, asked.runs), floor=next(iter(each)))]
    keep("cold_start", rows, ["onnxruntime", "numpy", "pillow", "click"])


if __name__ == "__main__":
    main()
