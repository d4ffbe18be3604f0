"""clf-batch on clusters that `ray start` made, with and without tokens. Run by `make test-batch`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("ray", reason="the extra [batch] is not installed")
from conftest import BIN

pytestmark = pytest.mark.slow

PORT, CLIENT_PORT = 6399, 10001


@pytest.fixture
def environment(request, tmp_path) -> Iterator[dict[str, str]]:
    """The environment of those who may use a cluster that `ray start` has made on this machine."""
    variables = os.environ | {"RAY_AUTH_MODE": request.param, "HOME": str(tmp_path)}
    if request.param == "token":
        subprocess.run([BIN / "ray", "get-auth-token", "--generate"], env=variables, check=True, capture_output=True)
    options = ["--num-cpus", "1", "--disable-usage-stats", "--include-dashboard=false", "--block"]
    # Not `ray stop` at the end, which would end all clusters on this machine.
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--port", str(PORT), *options],
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(PORT)
        wait_for(CLIENT_PORT)
        yield variables
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def wait_for(port: int) -> None:
    """Wait until something listens on a port of this machine."""
    for _ in range(600):
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"nothing listens on port {port}")


def batch(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [BIN / "clf-batch", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("environment", ["disabled"], indirect=True)
def test_a_cluster_is_used_by_each_kind_of_address(environment, artifacts, digits, tmp_path):
    for number, address in enumerate(("auto", f"127.0.0.1:{PORT}", f"ray://127.0.0.1:{CLIENT_PORT}")):
        if address.startswith("ray:"):
            pytest.importorskip("grpc", reason="ray[client] is not installed")
        output = tmp_path / f"out{number}"
        done = batch(environment, digits, "-r", "-a", artifacts, "--output", output, "--address", address)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert "clf-batch: 359 images, 0 failed" in done.stderr


@pytest.mark.parametrize("environment", ["token"], indirect=True)
def test_a_cluster_with_a_token_asks_for_it(environment, artifacts, digits, tmp_path):
    arguments = (digits, "-r", "-a", artifacts, "--address", f"127.0.0.1:{PORT}", "--output")
    done = batch(environment, *arguments, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    done = batch(environment | {"RAY_AUTH_MODE": "disabled"}, *arguments, tmp_path / "refused")
    assert done.returncode == 4
    *lines_of_ray, line = done.stderr.splitlines()  # the library writes one for each attempt, whatever its log level
    assert all("InvalidAuthToken" in line for line in lines_of_ray)
    assert line.endswith("; if the cluster requires a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE")
