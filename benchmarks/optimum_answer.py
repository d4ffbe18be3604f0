"""Optimum on an image, as its documentation has it. usage: optimum_answer.py IMAGE

MobileNetV2 as ONNX, made once in the working folder; its weights are random, which changes no time.
"""

import sys
from pathlib import Path

from optimum.onnxruntime import ORTModelForImageClassification
from transformers import AutoImageProcessor, pipeline

FOLDER = Path("optimum-mobilenet-v2")

if not FOLDER.exists():
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification, MobileNetV2ImageProcessor

    MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1000)).save_pretrained("optimum-torch")
    ORTModelForImageClassification.from_pretrained("optimum-torch", export=True).save_pretrained(FOLDER)
    MobileNetV2ImageProcessor().save_pretrained(FOLDER)
classify = pipeline(
    "image-classification",
    model=ORTModelForImageClassification.from_pretrained(FOLDER),
    image_processor=AutoImageProcessor.from_pretrained(FOLDER),
)
print(classify(sys.argv[1])[0])
