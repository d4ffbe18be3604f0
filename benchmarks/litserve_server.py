"""LitServe with an exported file, as in its documentation. usage: litserve_server.py MODEL PORT CORES

The image travels as base64 in JSON, which is what LitServe decodes by itself. Run by serving.py, in an environment with
litserve, onnxruntime, numpy and Pillow.
"""

from __future__ import annotations

import base64
import io
import json
import sys

import litserve
import numpy as np
import onnxruntime
from PIL import Image

MODEL, PORT, CORES = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


class Classify(litserve.LitAPI):
    """Decode, resize, run, and return the best label, one batch at a time."""

    def setup(self, device):
        """Open the model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        self.spec = json.loads(self.session.get_modelmeta().custom_metadata_map["clf.spec"])

    def decode_request(self, request):
        """Return pixels."""
        preprocess = self.spec["preprocess"]
        width, height, color = preprocess["width"], preprocess["height"], preprocess["color"]
        image = Image.open(io.BytesIO(base64.b64decode(request["image"])))
        image.draft(color, (2 * width, 2 * height))
        return np.asarray(image.convert(color).resize((width, height), Image.Resampling.BILINEAR)).reshape(
            height, width, -1
        )

    def batch(self, inputs):
        """Put the pixels of several requests together."""
        return np.stack(inputs)

    def predict(self, x):
        """Run the graph."""
        return self.session.run(["probabilities"], {"image": x})[0]

    def unbatch(self, output):
        """Return the rows of a batch."""
        return list(output)

    def encode_response(self, output):
        """Return the best label."""
        best = int(output.argmax())
        return {"label": self.spec["labels"][best], "score": float(output[best])}


if __name__ == "__main__":
    api = Classify(max_batch_size=8, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=CORES)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
