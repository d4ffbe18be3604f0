"""The wheels of a bundle: uv decides which versions, pip downloads them, each with its digest."""

from __future__ import annotations

import email.message
import email.parser
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clf_deploy.bundle.own_wheel import DISTRIBUTION
from clf_deploy.bundle.platforms import Target
from clf_runtime.errors import DataError, MachineError


@dataclass(frozen=True)
class Wheel:
    """A wheel, and what its metadata say.

    Attributes:
        path: The file.
        name: The name of the distribution, normalized.
        version: Its version.
        license: Its license, as an SPDX expression if the wheel states one; None if it states nothing.
        sha256: The digest of the file, hexadecimal.
    """

    path: Path
    name: str
    version: str
    license: str | None
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Wheel:
        """Read the metadata of a wheel. Raises DataError, OSError."""
        try:
            with zipfile.ZipFile(path) as archive:
                (name,) = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
                metadata = email.parser.BytesParser().parsebytes(archive.read(name))
        except (zipfile.BadZipFile, ValueError):
            raise DataError(f"{path.name}: not a wheel; clear the cache of pip, then try again") from None
        name = re.sub(r"[-_.]+", "-", str(metadata["Name"])).lower()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return cls(path, name, str(metadata["Version"]), _license(metadata), digest)

    @property
    def requirement(self) -> str:
        """The line of a requirements file that allows this file only."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


def resolve(own: Path, extras: Sequence[str], target: Target, constraint: Path | None = None) -> str:
    """Return the pinned requirements, with hashes, of clf-edge and pip on a platform.

    Args:
        own: The wheel of clf-edge, which is not among them.
        extras: Its extras.
        target: The platform.
        constraint: Versions to choose, as pip's constraint files state them.

    Raises:
        MachineError: uv is missing, cannot reach an index, or finds no versions that fit.
    """
    needs = f"{DISTRIBUTION}[{','.join(extras)}] @ {own.resolve().as_uri()}\npip\n"
    options = ["--python-platform", target.uv_platform, "--python-version", target.python, "--only-binary", ":all:"]
    options += ["--no-emit-package", DISTRIBUTION, "--generate-hashes", "--no-header", "--no-annotate"]
    if constraint is not None:
        options += ["--constraint", str(constraint.resolve())]
    return _run("uv", "pip", "compile", "--quiet", *options, "-", stdin=needs, folder=own.parent)


def download(requirements: Path, target: Target, folder: Path) -> None:
    """Download the wheels of pinned requirements. Raises MachineError if pip is missing or does not get one."""
    options = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--python-version", target.python]
    for tag in target.tags:
        options += ["--platform", tag]
    _run("pip", "download", "--quiet", *options, "--dest", str(folder), "-r", str(requirements), folder=folder)


def _run(program: str, *arguments: str, folder: Path, stdin: str = "") -> str:
    """Run uv or pip of this Python, and return what it prints. Raises MachineError with its reason in one line."""
    if importlib.util.find_spec(program) is None:
        raise MachineError(f'{program} is not installed; pip install "{DISTRIBUTION}[bundle]"')
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", program, *arguments]
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, encoding="utf-8", cwd=folder, env=environment
    )
    if done.returncode != 0:
        raise MachineError(f"{program} {arguments[0]}: {_summarize(done.stderr)}")
    return done.stdout


def _summarize(stderr: str) -> str:
    """Return the reason in the error message of uv or pip: without progress, warnings and repetition."""
    lines = [re.sub(r"(?i)^(error|cause):\s*", "", line.strip()) for line in stderr.splitlines()]
    wanted = [line for line in lines if line and not line.startswith(("WARNING", "warning", "hint"))]
    return "; ".join(wanted[:3]) or "it failed without a message"


def _license(metadata: email.message.Message) -> str | None:
    """Return the license that a wheel states."""
    if metadata["License-Expression"]:
        return str(metadata["License-Expression"])
    classifiers = [str(line) for line in metadata.get_all("Classifier", []) if str(line).startswith("License :: OSI")]
    if classifiers:
        return classifiers[0].rpartition(" :: ")[2]
    return str(metadata["License"] or "").partition("\n")[0].strip() or None
