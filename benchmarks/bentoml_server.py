"""BentoML with an exported file, as in its documentation. usage: bentoml_server.py MODEL PORT CORES

A process per core, adaptive batching, no access log. The image travels as base64 in JSON. Run by serving.py, in an
environment with bentoml, onnxruntime, numpy and Pillow.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    model, port, cores = sys.argv[1:]
    os.environ |= {"MODEL": model, "CORES": cores, "BENTOML_DO_NOT_TRACK": "true"}
    here = str(Path(__file__).parent)
    serve = ["-m", "bentoml", "serve", "bentoml_server:Classify", "--working-dir", here, "--host", "127.0.0.1"]
    os.execv(sys.executable, [sys.executable, *serve, "--port", port])

import bentoml
import numpy as np
import onnxruntime
from PIL import Image


@bentoml.service(workers=int(os.environ["CORES"]), logging={"access": {"enabled": False}}, traffic={"timeout": 60})
class Classify:
    """Decode, resize, run, and return the best labels, one batch at a time."""

    def __init__(self) -> None:
        """Open the model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.spec = json.loads(self.session.get_modelmeta().custom_metadata_map["clf.spec"])

    @bentoml.api(batchable=True, max_batch_size=8, max_latency_ms=1000)
    def classify(self, images: list[str]) -> list[dict]:
        """Return the best label of each image."""
        pixels = np.stack([self.decode(image) for image in images])
        probabilities = self.session.run(["probabilities"], {"image": pixels})[0]
        best = probabilities.argmax(1)
        rows = zip(best, probabilities, strict=True)
        return [{"label": self.spec["labels"][index], "score": float(row[index])} for index, row in rows]

    def decode(self, image: str):
        """Return pixels."""
        preprocess = self.spec["preprocess"]
        width, height, color = preprocess["width"], preprocess["height"], preprocess["color"]
        opened = Image.open(io.BytesIO(base64.b64decode(image)))
        opened.draft(color, (2 * width, 2 * height))
        return np.asarray(opened.convert(color).resize((width, height), Image.Resampling.BILINEAR)).reshape(
            height, width, -1
        )
