"""Ultralytics on a folder of photographs, by its own example: yolo11n-cls as ONNX. usage: … FOLDER

The model is made once, beside this process's working folder: yolo11n-cls.yaml needs no download.
"""

import sys
from pathlib import Path

from ultralytics import YOLO

if not Path("yolo11n-cls.onnx").exists():
    YOLO("yolo11n-cls.yaml").export(format="onnx", imgsz=224)
for result in YOLO("yolo11n-cls.onnx", task="classify").predict(sys.argv[1], stream=True, verbose=False, imgsz=224):
    print(result.path, result.probs.top1)
