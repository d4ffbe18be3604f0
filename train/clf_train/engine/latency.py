"""Estimate how long the exported model takes for one image on this machine, without ONNX, which training lacks."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from clf_runtime.spec import Preprocess
from clf_train.models.depthwise import has_depthwise_convolutions
from clf_train.models.folding import fold_batch_norm

# PyTorch's CPU time for one more image of a batch, with one thread, divided by onnxruntime's for one image alone: 1.0
# to 1.5 without depthwise convolutions (resnet18 0.99, lenet 1.06, plain-conv3 1.24, small-resnet at 64 pixels 1.24 and
# at 28 pixels 1.54, tiny-convnet at 28 pixels 1.25), 1.6 to 2.3 with them (mobilenet_v3_small 1.60, efficientnet_lite0
# 2.23 and at 160 pixels 2.28, shufflenet_v2_x1_0 1.56). With these factors, the estimates are 0.7 to 1.3 times what
# onnxruntime takes. The first image of a batch is no measure: for a small network, calling the operators takes longer
# than computing (tiny-convnet 8 times). At 8 pixels nothing but calls is left, and the estimate of small-resnet is 3
# times too long. Measured in one process, in turn, AVX2, onnxruntime 1.31.
_FACTOR, _FACTOR_DEPTHWISE = 1 / 1.2, 1 / 2.0
_BATCH = 5
_SLOW_MS = 200.0  # for one image; the calls take nothing then, and a batch would take too long
_SECONDS = 0.2  # of timing each batch size
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
    try:
        with torch.inference_mode():
            network = fold_batch_norm(copy.deepcopy(model).cpu().float().eval())
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]
            compute_ms = _estimate_compute_ms(network, preprocess)
    except Exception:  # a user's network can raise anything, and its training must not fail now
        return None
    return compute_ms * (_FACTOR_DEPTHWISE if has_depthwise_convolutions(model) else _FACTOR)


def _estimate_compute_ms(network: nn.Module, preprocess: Preprocess) -> float:
    """Return how long the layers compute for one image, without the time to call them."""
    with _one_thread():
        # CPU time: on a busy machine, this thread waits for others at any moment.
        alone_ms = further_ms = _measure_ms(network, preprocess, 1, time.thread_time)
        if alone_ms < _SLOW_MS:
            several_ms = _measure_ms(network, preprocess, _BATCH, time.thread_time)
            further_ms = max((several_ms - alone_ms) / (_BATCH - 1), alone_ms / 10)
    # All threads together do not help a small network, neither here nor in onnxruntime.
    return further_ms / max(1.0, alone_ms / _measure_ms(network, preprocess, 1, time.perf_counter))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _measure_ms(network: nn.Module, preprocess: Preprocess, images: int, clock: Callable[[], float]) -> float:
    """Return the lower quartile of the times for a batch: whatever disturbs a measurement makes it longer."""
    pixels = torch.zeros((images, *preprocess.shape), dtype=torch.uint8)
    latencies_ms: list[float] = []
    ends_at = time.perf_counter() + _SECONDS
    for run in range(_WARM_UPS + _MAX_RUNS):
        started = clock()
        _classify(network, pixels)
        if run >= _WARM_UPS:
            latencies_ms.append((clock() - started) * 1000)
        if len(latencies_ms) >= _MIN_RUNS and time.perf_counter() > ends_at:
            break
    return sorted(latencies_ms)[len(latencies_ms) // 4]


def _classify(network: nn.Module, pixels: Tensor) -> Tensor:
    """Run images, uint8 (N, H, W, C); normalization is the same work for any mean."""
    images = pixels.permute(0, 3, 1, 2).float().div(255).contiguous(memory_format=torch.channels_last)
    return torch.softmax(network(images), dim=1)
