"""The processes that train one network together: under torchrun several, otherwise this one alone.

torchrun says in the environment who is who, and starts all of them again when one is lost.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from clf_runtime.errors import MachineError

_Value = TypeVar("_Value")

# What torch's backends say when another process is gone.
_LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "store", "heartbeat")


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that train together; each method is called by all of them, or waits for ever."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.rank == 0

    def all_gather(self, value: _Value) -> list[_Value]:
        """Give everyone's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return cast("list[_Value]", values)

    def broadcast(self, value: _Value) -> _Value:
        """Give the first process's value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def all_reduce(self, values: Tensor) -> Tensor:
        """Add up everyone's numbers, in a tensor of its own on the CPU."""
        total = values.detach().cpu().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's running means: each has seen other images."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        """Give a network whose gradients are the mean of everyone's, and whose weights are the first one's."""
        return model if self.size == 1 else DistributedDataParallel(model)


SINGLE_PROCESS = ProcessGroup()


def rank() -> int:
    """Which of the processes this is, before they have met; 0 alone."""
    return int(os.environ.get("RANK", "0"))


def was_restarted() -> bool:
    """Whether torchrun lost a process and started all of them again."""
    return _starts() > 0


def _starts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def local_device() -> torch.device:
    """Give the CUDA device of this process: under torchrun each has its own."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextlib.contextmanager
def join_process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """Meet the other processes that torchrun started, if any. Raises MachineError when one of them is lost."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SINGLE_PROCESS
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, _, _ = next(rendezvous("env://"))
        # torchrun keeps its store when it starts all again, and in it the addresses of processes that are gone
        # (torch 2.15: 3 of 5 restarts failed on them).
        of_this_start = PrefixStore(f"start-{_starts()}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=of_this_start, rank=rank(), world_size=size)
        yield ProcessGroup(rank(), size)
    except RuntimeError as error:
        if isinstance(error, MachineError) or not any(each in str(error) for each in _LOST):
            raise
        reason = " ".join(str(error).split())[:200]
        raise MachineError(
            f"process {rank()} of {size} lost the others ({reason}); torchrun --max-restarts starts all of them again"
        ) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
