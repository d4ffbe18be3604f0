"""What people write without clf-batch: Ray Data reads and decodes, torchvision resizes, onnxruntime classifies.

usage: batch_ray_data.py MODEL LIST OUTPUT     prints the seconds from the first read to the last written file
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import ray
import torch
from torchvision.transforms import functional

from clf_runtime import onnx_file


class Model:
    """An actor with a session."""

    def __init__(self, path: str) -> None:
        """Open the model."""
        self._preprocess = onnx_file.read(Path(path)).spec.preprocess
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the label and the score of each image."""
        size = [self._preprocess.height, self._preprocess.width]
        pixels = []
        for image in batch["image"]:
            tensor = torch.from_numpy(image.reshape(*image.shape[:2], -1)).permute(2, 0, 1)
            pixels.append(functional.resize(tensor, size, antialias=True).permute(1, 2, 0).numpy())
        (probabilities,) = self._session.run(["probabilities"], {"image": np.stack(pixels)})
        return {"path": batch["path"], "index": probabilities.argmax(1), "score": probabilities.max(1)}


def main() -> None:
    """Classify the images of a list."""
    model, names, output = sys.argv[1:]
    ray.init(include_dashboard=False, log_to_driver=False)
    color = onnx_file.read(Path(model)).spec.preprocess.color
    started = time.monotonic()
    images = ray.data.read_images(Path(names).read_text().splitlines(), mode=color, include_paths=True)
    results = images.map_batches(Model, fn_constructor_args=(model,), batch_size=64, concurrency=(1, 2))
    results.write_parquet(output)
    print(time.monotonic() - started)


if __name__ == "__main__":
    main()
