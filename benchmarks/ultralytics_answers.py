"""Ultralytics on an image or a folder of images, as in its documentation. usage: ultralytics_answers.py IMAGE|DIR

yolo11n-cls as ONNX, exported once into the working folder. Its weights are random, which does not change the time.
"""

import sys
from pathlib import Path

from ultralytics import YOLO

if not Path("yolo11n-cls.onnx").exists():
    YOLO("yolo11n-cls.yaml").export(format="onnx", imgsz=224)
for result in YOLO("yolo11n-cls.onnx", task="classify").predict(sys.argv[1], stream=True, verbose=False, imgsz=224):
    print(result.path, result.probs.top1)
