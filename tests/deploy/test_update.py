"""The units of docs/updates.md: a device fetches its model from a server on this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import BIN, ROOT
from rewriting import with_serial

from clf_deploy.signing.sign import Signer
from clf_runtime import onnx_file
from clf_runtime.store.store import Store

UNITS = ROOT / "runtime/clf_deploy/bundle/device/systemd"
SERVICE, TIMER = ((UNITS / f"clf-update.{kind}").read_text() for kind in ("service", "timer"))


def test_a_bundle_contains_the_units_of_the_page():
    assert re.findall(r"```ini\n(.*?)```", (ROOT / "docs/updates.md").read_text(), flags=re.DOTALL) == [TIMER, SERVICE]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_the_units_are_valid(tmp_path):
    (tmp_path / "clf-update.service").write_text(SERVICE.replace("/opt/clf/bin", str(BIN)))
    (tmp_path / "clf-update.timer").write_text(TIMER)
    for name in ("clf-update.service", "clf-update.timer"):
        checked = subprocess.run(["systemd-analyze", "verify", tmp_path / name], capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")


class Server(SimpleHTTPRequestHandler):
    """Serves a folder, and remembers what was asked for."""

    asked: list[str] = []  # noqa: RUF012 (shared by all connections of the one test)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        self.asked.append(self.path.rpartition("/")[2])

    def log_error(self, *args: object) -> None:
        pass


@pytest.fixture
def published(tmp_path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which it is served."""
    folder = tmp_path / "published"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_a_device_fetches_each_new_model_once_and_keeps_the_old_one_otherwise(published, keys, model, tmp_path):
    folder, url = published
    store, work = Store(tmp_path / "store"), tmp_path / "work"
    line = re.search(r"ExecStart=/bin/sh -ec '(.*)'", SERVICE)
    script = line[1].replace("/var/lib/clf-edge", str(store.folder)).replace("/opt/clf/bin", str(BIN))
    script = script.replace("/etc/clf-edge/fleet.pub.pem", str(keys.public))
    script = script.replace("clf-deploy install", f"clf-deploy install --store {store.folder} --device cpu")

    def update() -> tuple[int, list[str], int | None]:
        """Run the service; return its exit code, what it fetched, and the serial number that runs."""
        Server.asked.clear()
        shutil.rmtree(work, ignore_errors=True)  # as systemd does with /run/clf-update
        work.mkdir()
        done = subprocess.run(["sh", "-ec", script], cwd=work, env={"URL": url, "PATH": "/usr/bin:/bin"}, stderr=-1)
        current = store.folder / "current/model.onnx"
        return done.returncode, list(Server.asked), onnx_file.read(current).spec.serial if current.exists() else None

    def publish(serial: int, key: Path) -> None:
        (folder / "model.onnx").unlink(missing_ok=True)
        Signer(key).sign(with_serial(model, folder / "model.onnx", serial))

    both = ["model.onnx.sig", "model.onnx"]
    assert update() == (22, ["model.onnx.sig"], None)  # curl's code for a 404
    publish(1, keys.private)
    assert update() == (0, both, 1)
    assert update() == (0, ["model.onnx.sig"], 1)
    publish(2, keys.private)
    assert update() == (0, both, 2)
    publish(3, keys.other_private)
    assert update() == (3, both, 2)
    publish(1, keys.private)
    assert update() == (3, both, 2)
    publish(4, keys.private)
    (folder / "model.onnx").write_bytes(model.read_bytes()[:1000])
    assert update() == (3, both, 2)
    (folder / "model.onnx").unlink()
    assert update() == (22, both, 2)
