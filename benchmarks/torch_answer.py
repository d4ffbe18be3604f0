"""Classify an image as a tutorial's script does, with torch, torchvision and a state_dict.

usage: torch_answer.py FOLDER IMAGE
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from torchvision import transforms

from clf_train.models.factory import build_model

spec = json.loads(Path(sys.argv[1], "model.json").read_text())
preprocess = spec["preprocess"]
size = preprocess["height"], preprocess["width"]
model = build_model(spec["architecture"], (*size, 1 if preprocess["color"] == "L" else 3), len(spec["labels"]))
model.load_state_dict(torch.load(Path(sys.argv[1], "model.pt"), weights_only=True))
model.eval()
normalize = transforms.Normalize(spec["normalize"]["mean"], spec["normalize"]["std"])
prepare = transforms.Compose([transforms.Resize(size), transforms.ToTensor(), normalize])
with torch.inference_mode():
    logits = model(prepare(Image.open(sys.argv[2]).convert(preprocess["color"]))[None])
print(sys.argv[2], spec["labels"][logits.argmax()])
