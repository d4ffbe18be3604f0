"""What clf-export takes, beside a bare script that only imports torch and calls torch.onnx.export.

usage: export.py [NETWORK]...

Both export the same network of torchvision. The data set has 20 drawn images, 4 of them held out, so that what the
proof costs, which grows with the images, is not what is measured. Whole processes, in turn.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from measure import run_in_turn, save_result, summarize
from PIL import Image
from torchvision.models import get_model

RUNS = 3
CLASSES = 2

BARE = """
import sys, torch
from torchvision.models import get_model
model = get_model(sys.argv[1], weights=None, num_classes=2)
model.load_state_dict(torch.load(sys.argv[2], weights_only=True))
torch.onnx.export(
    model.eval(), (torch.zeros(2, 3, 224, 224),), sys.argv[3], dynamo=True, opset_version=18,
    dynamic_shapes=({0: torch.export.Dim("N")},), external_data=False,
)
"""


def prepare(name: str, folder: Path) -> None:
    """Make a state_dict, some images of two classes, and from both a finished model."""
    torch.manual_seed(0)
    model = get_model(name, weights=None, num_classes=CLASSES)
    with torch.no_grad():
        for _ in range(20):  # until batch normalisation knows what it normalises
            model(torch.rand(4, 3, 64, 64))
    torch.save(model.state_dict(), folder / "weights.pt")
    rng = np.random.default_rng(0)
    for label in "ab":
        (folder / "data" / label).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((300, 260)).save(folder / "data" / label / f"{number}.jpg")
    command = ["clf-import", "--weights", "weights.pt", "--model", name, "--labels", "a,b", "--data", "data"]
    subprocess.run([str(Path(sys.executable).parent / command[0]), *command[1:]], cwd=folder, check=True)


def measure(name: str) -> list[dict[str, object]]:
    """Time one network."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(name, folder)
        (folder / "bare.py").write_text(BARE)
        # The data's path in model.json is as it was typed, so it has to be said.
        export = [str(Path(sys.executable).parent / "clf-export"), "-a", str(folder / "artifacts"), "--overwrite"]
        commands = {
            "bare": [sys.executable, str(folder / "bare.py"), name, str(folder / "weights.pt"), str(folder / "m.onnx")],
            "clf-export": [*export, "--data", str(folder / "data")],
        }
        return [{"network": name, **row} for row in summarize(run_in_turn(commands, RUNS), baseline="bare")]


def main() -> None:
    """Measure and keep."""
    names = sys.argv[1:] or ["resnet18", "mobilenet_v3_small"]
    save_result(
        "export", [row for name in names for row in measure(name)], ["torch", "torchvision", "onnx", "onnxscript"]
    )


if __name__ == "__main__":
    main()
