"""Debian's packages, unpacked into folders: no program of theirs runs, and nothing of this machine changes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import ROOT

FOLDER = ROOT / "build/debian"

# Debian 12, which Raspberry Pi OS and JetPack are of the same age as, has Python 3.11.
DEVICE_RELEASE, DEVICE_PYTHON = "bookworm", "3.11"


def unpack_debian(name: str, release: str, packages: Sequence[str], architecture: str = "") -> Path:
    """Unpack packages of Debian, and what they need, into a folder; once for all runs. Skip the test where that fails.

    The architecture is that of this machine if it is not named.
    """
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap: apt-get install mmdebstrap")
    folder = FOLDER / name
    if not folder.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        unfinished = FOLDER / f".{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        merged = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
        command = ["mmdebstrap", "--quiet", "--variant=extract", f"--include={','.join(packages)}", merged]
        command += [f"--architectures={architecture}"] if architecture else []
        command += [release, str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"Debian's packages cannot be unpacked: {done.stderr.strip().splitlines()[-1]}")
        unfinished.rename(folder)
    return folder


def copy_debian(folder: Path, root: Path) -> None:
    """Copy unpacked packages to a new folder, without what is in /dev: a copy of /dev/zero has no end."""
    shutil.copytree(folder, root, symlinks=True, ignore=lambda at, names: names if at == f"{folder}/dev" else ())
