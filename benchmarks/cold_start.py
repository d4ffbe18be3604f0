"""From the shell's exec to the answer for one picture, against the floor; and --help against importing click.

usage: cold_start.py [--runs N] [--model FILE] [--image FILE]     (default: artifacts/, as `make demo` leaves it)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from measure import in_turn, keep, table

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--model", default="artifacts/model.onnx")
    parser.add_argument("--image", default=None)
    asked = parser.parse_args()
    image = asked.image or str(next(iter(sorted(Path("artifacts/samples").iterdir()))))
    python, run = str(BIN / "python"), str(BIN / "clf-run")
    answer = {
        "floor: numpy, onnxruntime, Pillow": [python, str(HERE / "floor.py"), asked.model, image],
        "clf-run IMAGE": [run, image, "--model", asked.model],
    }
    words = {
        "floor: import click": [python, "-c", "import click"],
        "clf-run --help": [run, "--help"],
        "clf-run --version": [run, "--version"],
    }
    rows = [table(in_turn(commands, asked.runs), floor=next(iter(commands))) for commands in (answer, words)]
    keep("cold_start", [row for each in rows for row in each], ["onnxruntime", "numpy", "pillow", "click"])


if __name__ == "__main__":
    main()
