"""Ray: starting it on this machine, or connecting to a cluster. With `pool.py` the only importer of ray."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from clf_batch.options import ClusterOptions
from clf_runtime.errors import MachineError

LOCAL, AUTO = "local", "auto"
_CLIENT = "ray://"
_CONNECT_S = 10.0
# Ray's server for ray:// forks a process per connection, which sometimes hangs (2 of 7 times with Ray 2.60.0).
_ATTEMPTS = 3
_LOST_PROCESS = "Initialization failure from server"
_OBJECT_STORE_BYTES = 256 << 20  # the model and names; images never pass through it

# Nothing is sent anywhere, no folder is uploaded to the workers, and nothing is printed between our lines.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextlib.contextmanager
def connected(options: ClusterOptions, model_bytes: int) -> Iterator[None]:
    """Start Ray here or connect to a cluster, and end or leave it after the block.

    Args:
        options: Where the workers run.
        model_bytes: The size of the model, which passes through Ray's memory.

    Raises:
        MachineError: There is no cluster at the address, or it cannot be used from here.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    # It would print on stdout that a worker has died, which pool.py handles. Ray has no other switch for that.
    ray._private.worker._worker_logs_enabled = False
    _check_reachable(options.address)
    with _keeping_signals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is in the error
        _initialize(options, model_bytes)
    try:
        yield
    finally:
        ray.shutdown()


def _initialize(options: ClusterOptions, model_bytes: int) -> None:
    """Start Ray or connect to it. Raises MachineError."""
    import ray

    here: dict[str, Any] = {
        "num_cpus": options.cores,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES + 2 * model_bytes,
    }
    arguments = here if options.address == LOCAL else {}
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            ray.init(options.address, log_to_driver=False, logging_level=logging.CRITICAL, **arguments)
            return
        except Exception as error:  # Ray raises a bare Exception if a machine is too slow to start it
            if not attempts_left or _LOST_PROCESS not in str(error):
                raise MachineError(f"--address {options.address}: {_reason(error)}") from None
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise MachineError if nothing listens at an address, which Ray itself says after two minutes."""
    match = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if address in (LOCAL, AUTO):
        return
    if match is None:
        raise MachineError(f"--address {address}: is none; expected local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((match[1], int(match[2])), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MachineError(
            f"--address {address}: no cluster answers there ({reason.lower()}); start one with `ray start --head`, or "
            "leave out --address to use this machine"
        ) from None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, ImportError) or "ray[client]" in text:
        return f'{text}; pip install "ray[client]"'
    if "Could not find any running Ray instance" in text:
        return "no cluster runs on this machine; start one with `ray start --head`, or leave out --address"
    if "Failed to connect" in text or "timeout" in text:
        # Ray does not say so: a cluster started with tokens ignores who has none.
        return f"{text}; if the cluster requires a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE"
    return text


@contextlib.contextmanager
def _keeping_signals() -> Iterator[None]:
    """Restore the handlers that Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
