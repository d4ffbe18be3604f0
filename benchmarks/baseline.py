"""The least that any program needs for one prediction: numpy, onnxruntime, Pillow. usage: baseline.py MODEL IMAGE"""

import sys

import numpy as np
import onnxruntime as ort
from PIL import Image

session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
_, height, width, channels = session.get_inputs()[0].shape
image = Image.open(sys.argv[2]).convert("L" if channels == 1 else "RGB").resize((width, height), Image.BILINEAR)
pixels = np.asarray(image).reshape(1, height, width, channels)
print(sys.argv[2], session.run(None, {"image": pixels})[0].argmax())
