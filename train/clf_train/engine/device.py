"""The device that trains, and the precision it multiplies in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from clf_runtime.errors import MachineError
from clf_train import torchrun


def select_device(name: str) -> torch.device:
    """Return the device for `--device`: auto, cpu or cuda. Under torchrun each process has its own CUDA device.

    Raises:
        MachineError: CUDA was requested and is not available.
    """
    if name == "cuda" and not torch.cuda.is_available():
        reason = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no CUDA device found"
        raise MachineError(f"--device cuda: {reason}; check nvidia-smi, or use --device auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torchrun.get_local_rank())


def select_precision(device: torch.device, model: nn.Module) -> torch.dtype | None:
    """Return the type that autocast multiplies in; None for float32.

    bfloat16 if the hardware has it; otherwise float16 on a GPU and float32 on a CPU. On 2 cores with AVX-512's
    bfloat16, a step of small-resnet takes 0.7 of its time in float32, one of ResNet-18 0.56. Processors that emulate
    bfloat16 are slower than with float32, and so are the gradients of depthwise convolutions on any processor: a step
    of MobileNetV3-small takes 2.2 times as long.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if has_depthwise_convolutions(model):
        return None
    # Older releases of torch have no such function.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if capabilities.get("avx512_bf16") else None


def has_depthwise_convolutions(model: nn.Module) -> bool:
    """Return whether the network has convolutions with one filter per channel."""
    return any(isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1 for layer in model.modules())
