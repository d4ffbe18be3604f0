"""What leaves the workstation names neither its folders nor its user nor its host."""

from __future__ import annotations

import base64
import json
import platform
import zipfile
from pathlib import Path

from conftest import ROOT


def contents(folder: Path) -> dict[str, bytes]:
    """Return what all files of a folder contain; archives are unpacked."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
        if path.suffix == ".sig":
            payload = json.loads(path.read_bytes())["dsseEnvelope"]["payload"]
            found[f"{path.name}/payload"] = base64.b64decode(payload)
        if path.is_file() and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found |= {f"{path.name}/{name}": archive.read(name) for name in archive.namelist()}
    return found


def assert_nothing_private(folder: Path, *secrets: str) -> None:
    """Check that no file of a folder contains the name or a folder of this machine, or one of these texts."""
    host = platform.node()
    secrets = (*secrets, str(ROOT), str(Path.home() / "."), *((host,) if len(host) > 3 else ()))
    private = [str(Path.home())] if str(Path.home()) != "/root" else []
    for name, content in contents(folder).items():
        assert host not in Path(name).name.split(".")
        for secret in (*secrets, *private):
            assert secret.encode() not in content, f"{secret} in {name}"
