"""The processes that train one network together: several under torchrun, otherwise only this one."""

from __future__ import annotations

import contextlib
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
from clf_train import torchrun

_Value = TypeVar("_Value")

# Parts of the messages of torch's backends when another process is lost.
_LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "store", "heartbeat")


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that train together. Every method is a collective: all processes must call it."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def all_gather(self, value: _Value) -> list[_Value]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return cast("list[_Value]", values)

    def broadcast(self, value: _Value) -> _Value:
        """Return the value of the main process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the sum of all processes' tensors, as a new tensor on the CPU."""
        total = values.detach().cpu().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy the main process's running means to all processes: each has seen other images."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        """Return the network with averaged gradients, and with the main process's weights."""
        return model if self.size == 1 else DistributedDataParallel(model)


SINGLE_PROCESS = ProcessGroup()


@contextlib.contextmanager
def join_process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started, if any.

    Raises:
        MachineError: another process is lost.
    """
    rank, size = torchrun.get_rank(), torchrun.get_world_size()
    if size == 1:
        yield SINGLE_PROCESS
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, _, _ = next(rendezvous("env://"))
        # torchrun keeps its store when it restarts the processes, and the addresses of the lost ones stay in it
        # (torch 2.15: 3 of 5 restarts failed because of them).
        store_of_start = PrefixStore(f"start-{torchrun.get_restart_count()}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store_of_start, rank=rank, world_size=size)
        yield ProcessGroup(rank, size)
    except RuntimeError as error:
        if isinstance(error, MachineError) or not any(text in str(error) for text in _LOST):
            raise
        reason = " ".join(str(error).split())[:200]
        raise MachineError(
            f"process {rank} of {size} lost the others ({reason}); torchrun --max-restarts restarts all of them"
        ) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
