"""The device that trains, and the precision it multiplies in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from clf_runtime.errors import MachineError
from clf_train import torchrun
from clf_train.models.depthwise import is_depthwise


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


def select_precision(device: torch.device, layers: nn.Module) -> torch.dtype | None:
    """Return the type that autocast multiplies in; None for float32.

    bfloat16 if the hardware has it; otherwise float16 on a GPU and float32 on a CPU. On 2 cores with AVX-512's
    bfloat16, a step of small-resnet takes 0.7 of its time in float32, one of ResNet-18 0.56, and one of
    EfficientNet-Lite0 that trains no depthwise filters 0.6. Processors that emulate bfloat16 are slower than with
    float32, and so are the gradients of depthwise filters on any processor: a step of MobileNetV3-small takes 2.2 times
    as long.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if any(is_depthwise(layer) and next(layer.parameters()).requires_grad for layer in layers.modules()):
        return None
    # Older releases of torch have no such function.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if capabilities.get("avx512_bf16") else None


def multiply_in(precision: torch.dtype | None, device: torch.device) -> torch.autocast:
    """Return a context in which PyTorch multiplies in this type, or in float32 for None."""
    return torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None)
