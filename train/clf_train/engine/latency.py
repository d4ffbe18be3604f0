"""Estimate how long the exported model takes for one image on this machine, without ONNX, which training lacks."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from clf_runtime.spec import Preprocess
from clf_train.models.folding import fold_batch_norm

_FACTOR = 1.0
_SECONDS = 0.3  # of timing
_WARM_UPS, _MIN_RUNS, _MAX_RUNS = 2, 3, 100


def estimate_latency(model: nn.Module, preprocess: Preprocess) -> float | None:
    """Return about how many milliseconds the exported model takes for one image on this machine's CPU, or None.

    The network is timed in PyTorch with batch normalization folded into the convolutions, as onnxruntime does it. The
    network itself is not changed. Call `clf_train.allocator.keep_freed_memory` before, or the allocator is timed, too.
    None means that the network, which may be a user's, cannot be copied or does not run on a CPU.

    Args:
        model: maps (N, C, H, W) float32 to logits (N, classes).
        preprocess: the size and the color of its input.
    """
    pixels = torch.zeros((1, *preprocess.shape), dtype=torch.uint8)
    try:
        with torch.inference_mode():
            network = fold_batch_norm(copy.deepcopy(model).cpu().float().eval())
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]
            return _FACTOR * _measure_median_ms(partial(_classify, network, pixels))
    except Exception:  # a user's network can raise anything, and its training must not fail now
        return None


def _classify(network: nn.Module, pixels: Tensor) -> Tensor:
    """Run one image, uint8 (1, H, W, C); normalization is the same work for any mean."""
    images = pixels.permute(0, 3, 1, 2).float().div(255).contiguous(memory_format=torch.channels_last)
    return torch.softmax(network(images), dim=1)


def _measure_median_ms(run: Callable[[], object]) -> float:
    for _ in range(_WARM_UPS):
        run()
    latencies_ms: list[float] = []
    started = time.perf_counter()
    while len(latencies_ms) < _MIN_RUNS or (time.perf_counter() - started < _SECONDS and len(latencies_ms) < _MAX_RUNS):
        run_started = time.perf_counter()
        run()
        latencies_ms.append((time.perf_counter() - run_started) * 1000)
    return statistics.median(latencies_ms)
