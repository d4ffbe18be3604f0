"""The workers as Ray actors: they get shards, are replaced when they die, and follow the size of the cluster."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from clf_batch.callbacks import Callbacks
from clf_batch.options import ClusterOptions
from clf_batch.results import PartRecord
from clf_batch.shards import Shard
from clf_batch.worker import ModelFiles, ShardWorker, WorkerInfo, WorkerSetup
from clf_runtime.errors import MachineError

# So many workers may die of one shard. Machines fail at random, but an image that ends its worker does so each time.
_ATTEMPTS = 8
# So many workers may die while they start, in sequence: then something is wrong with the machines.
_FAILED_STARTS = 8
_SECONDS_BETWEEN_LOOKS = 5.0
_SECONDS_UNTIL_WAITING = 120.0


@dataclass(frozen=True)
class _Call:
    """A call in progress: of `open`, or of `score` for a shard."""

    actor: Any
    shard: Shard | None


class WorkerPool:
    """Scores shards on as many workers as the cluster has room for.

    Attributes:
        infos: What each worker has found on its machine.
    """

    def __init__(self, setup: WorkerSetup, model: ModelFiles, options: ClusterOptions, callbacks: Callbacks) -> None:
        """Store what to do; Ray is connected already."""
        self._setup = setup
        self._options = options
        self._callbacks = callbacks
        self._model = ray.put(model)
        self._calls: dict[Any, _Call] = {}
        self._idle: list[Any] = []
        self._again: list[Shard] = []
        self._attempts: Counter[int] = Counter()
        self._failed_starts = 0
        self._look_due = 0.0
        self._started = time.monotonic()
        self.infos: set[WorkerInfo] = set()

    def score(self, shards: Iterator[Shard]) -> Iterator[PartRecord]:
        """Yield the record of each shard when its results are written, in any order.

        Raises:
            ClfError: A worker cannot do its work, or a shard has ended too many workers.
        """
        try:
            while self._assign(shards) or any(call.shard for call in self._calls.values()):
                self._grow()
                ready, _ = ray.wait(list(self._calls), timeout=_SECONDS_BETWEEN_LOOKS)
                for reference in ready:
                    record = self._finish(reference)
                    if record is not None:
                        yield record
                self._report_waiting()
        except RayError as error:
            raise MachineError(f"Ray fails: {_one_line(error)}; --resume continues when the cluster works") from None
        finally:
            for actor in (*self._idle, *(call.actor for call in self._calls.values())):
                with contextlib.suppress(RayError):  # the cluster is gone, and its workers with it
                    ray.kill(actor)

    def _assign(self, shards: Iterator[Shard]) -> bool:
        """Assign shards to idle workers, and return whether there may be more of them."""
        while self._idle:
            shard = self._again.pop() if self._again else next(shards, None)
            if shard is None:
                return False
            actor = self._idle.pop()
            self._calls[actor.score.remote(shard)] = _Call(actor, shard)
        return True

    def _grow(self) -> None:
        """Start workers for the part of the cluster that has none."""
        if time.monotonic() < self._look_due:
            return
        self._look_due = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        for _ in range(self._room() - len(self._calls) - len(self._idle)):
            options = {"num_cpus": self._setup.model.threads, "num_gpus": self._options.gpus, "max_restarts": 0}
            actor: Any = ray.remote(ShardWorker).options(**options).remote(self._setup)
            self._calls[actor.open.remote(self._model)] = _Call(actor, None)

    def _room(self) -> int:
        if self._options.workers is not None:
            return self._options.workers
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        threads, gpus = self._setup.model.threads, self._options.gpus
        room = sum(
            min(int(node.get("CPU", 0) / threads), int(node.get("GPU", 0) / gpus) if gpus else 1 << 30)
            for node in alive
        )
        return max(1, room)  # where there is no room, the worker that waits tells an autoscaler what is needed

    def _finish(self, reference: Any) -> PartRecord | None:
        """Take the result of a call; of a worker that has died, take back its shard."""
        call = self._calls.pop(reference)
        try:
            result: WorkerInfo | PartRecord = ray.get(reference)
        except (RayActorError, OutOfMemoryError) as error:
            self._replace(call, error)
            return None
        except RayTaskError as error:
            self._idle.append(call.actor)
            raise error.cause or error from None
        self._idle.append(call.actor)
        self._failed_starts = 0
        if isinstance(result, WorkerInfo):
            if result.warning and result.warning not in {info.warning for info in self.infos}:
                self._callbacks.on_warning(f"{result.host}: {result.warning}")
            if not self.infos:
                self._callbacks.on_start()
            self.infos.add(result)
            return None
        return result

    def _replace(self, call: _Call, error: Exception) -> None:
        self._look_due = 0.0
        reason = _one_line(error)[-300:]
        if call.shard is None:
            self._failed_starts += 1
            if self._failed_starts == _FAILED_STARTS:
                raise MachineError(
                    f"{_FAILED_STARTS} workers in sequence died while they started ({reason}); each machine "
                    "needs the same clf-edge[batch] and Python as this one"
                )
            return
        self._again.append(call.shard)
        self._attempts[call.shard.index] += 1
        if self._attempts[call.shard.index] == _ATTEMPTS:
            first, last = call.shard.units[0].key, call.shard.units[-1].key
            raise MachineError(
                f"shard {call.shard.index} ({first} to {last}) has ended {_ATTEMPTS} workers ({reason}); lower "
                "--max-image-bytes if the memory does not suffice, or leave these images out"
            )

    def _report_waiting(self) -> None:
        """Say it once if no worker finds room."""
        is_waiting = not self.infos and time.monotonic() > self._started + _SECONDS_UNTIL_WAITING
        if is_waiting:
            self._started = float("inf")
            threads, gpus = self._setup.model.threads, self._options.gpus
            need = f"{threads} {'core' if threads == 1 else 'cores'}" + (f" and {gpus:g} GPU" if gpus else "")
            self._callbacks.on_warning(f"no machine has had {need} free for a worker so far; still waiting")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
