"""Ultralytics on an image or a folder of them, as its documentation has it. usage: ultralytics_answers.py IMAGE|DIR

yolo11n-cls as ONNX, made once in the working folder; its weights are random, which changes no time.
"""

import sys
from pathlib import Path

from ultralytics import YOLO

if not Path("yolo11n-cls.onnx").exists():
    YOLO("yolo11n-cls.yaml").export(format="onnx", imgsz=224)
for result in YOLO("yolo11n-cls.onnx", task="classify").predict(sys.argv[1], stream=True, verbose=False, imgsz=224):
    print(result.path, result.probs.top1)
