"""From an exported model to a bundle: everything that a device needs, in one reproducible file."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files as resources
from pathlib import Path

from clf_deploy.bundle.archive import write_archive
from clf_deploy.bundle.manifest import Manifest, Part, is_safe
from clf_deploy.bundle.own_wheel import DISTRIBUTION, extras, write_own_wheel
from clf_deploy.bundle.platforms import GLIBC, Target
from clf_deploy.bundle.sbom import sbom_from_parts
from clf_deploy.bundle.wheels import Wheel, download, resolve
from clf_runtime import onnx_file
from clf_runtime.errors import MachineError, UsageError
from clf_runtime.files import atomic_path
from clf_runtime.onnx_file import OnnxFile, parse_version

REQUIREMENTS, SBOM, WHEELS = "requirements.txt", "sbom.cdx.json", "wheels"
_UNITS = ("clf-serve.service", "clf-camera.service", "clf-update.service", "clf-update.timer")
_DEVICE = ("install.sh", "install.py", *(f"systemd/{name}" for name in _UNITS))


def default_extras(model: Path) -> tuple[str, ...]:
    """Return the extras of clf-edge that a device needs to serve a model and, if it is signed, to verify it."""
    return ("cpu", "serve", "verify") if _signature_of(model).exists() else ("cpu", "serve")


@dataclass(frozen=True)
class BundleOptions:
    """What a bundle contains.

    Attributes:
        model: An exported ONNX file. Its signature, beside it, is packed if there is one.
        target: The platform and the Python of the devices.
        extras: The extras of clf-edge that are installed there.
        constraint: Versions of the dependencies, as pip's constraint files state them; None for the newest ones.
    """

    model: Path
    target: Target
    extras: tuple[str, ...]
    constraint: Path | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for extras that do not exist or exclude each other, and a name that some systems lack."""
        unknown = [name for name in self.extras if name not in extras()]
        if unknown:
            raise UsageError(f"--extra {unknown[0]}: clf-edge has no such extra; expected cpu, serve or verify, ...")
        if ("cpu" in self.extras) == ("gpu" in self.extras):
            raise UsageError("--extra: expected either cpu or gpu, and not both: they install the same module")
        if not is_safe(self.model.name):
            raise UsageError(f"{self.model}: the name has characters that not every system allows; rename the file")


def build_bundle(options: BundleOptions, output: Path) -> Manifest:
    """Write a bundle, and return its manifest.

    Raises:
        InvalidModelError: The model cannot be used.
        MachineError: uv or pip is missing or fails, or no onnxruntime for the platform reads the model.
        OSError: A file cannot be read or written; an existing bundle is unchanged.
    """
    _check_output(output)  # not after the minutes that the wheels may take
    model = onnx_file.read(options.model)
    with tempfile.TemporaryDirectory(prefix="clf-bundle-") as name:
        folder = Path(name)
        wheels = _collect_wheels(options, folder)
        _check_runtime(model, wheels)
        signature = _copy_model(options.model, folder)
        for part in _DEVICE:
            (folder / part).parent.mkdir(exist_ok=True)
            (folder / part).write_bytes(resources(__package__).joinpath("device", part).read_bytes())
        (folder / REQUIREMENTS).write_text("".join(f"{wheel.requirement}\n" for wheel in wheels), encoding="utf-8")
        (folder / SBOM).write_bytes(sbom_from_parts(model, _digest(folder / model.path.name), wheels))
        manifest = Manifest(
            clf_edge=metadata.version(DISTRIBUTION),
            target=options.target,
            glibc=".".join(map(str, GLIBC)),
            model=options.model.name,
            signature=signature,
            parts=tuple(_parts(folder)),
        )
        with atomic_path(output) as temporary:
            write_archive(temporary, manifest, folder)
    return manifest


def _check_output(output: Path) -> None:
    """Raise OSError if no file can be put there."""
    if output.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(output))
    if not output.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(output))


def _collect_wheels(options: BundleOptions, folder: Path) -> list[Wheel]:
    """Download the wheels, write that of clf-edge, and return them all by name."""
    wheels = folder / WHEELS
    wheels.mkdir()
    own = write_own_wheel(wheels)
    requirements = folder / REQUIREMENTS
    requirements.write_text(resolve(own, options.extras, options.target, options.constraint), encoding="utf-8")
    download(requirements, options.target, wheels)
    return sorted(map(Wheel.read, wheels.iterdir()), key=lambda wheel: wheel.name)


def _check_runtime(model: OnnxFile, wheels: Iterable[Wheel]) -> None:
    """Raise MachineError if the onnxruntime of the bundle is older than the model allows."""
    version = next(wheel.version for wheel in wheels if wheel.name in ("onnxruntime", "onnxruntime-gpu"))
    oldest = model.oldest_runtime
    if oldest is not None and parse_version(version) < parse_version(oldest):
        raise MachineError(
            f"{model.path}: needs onnxruntime {oldest} or later, found {version} for this platform and Python; "
            "choose a newer --python, or allow newer versions in --constraint"
        )


def _copy_model(model: Path, folder: Path) -> str | None:
    """Copy the model and its signature; return the name of the signature, or None without one."""
    shutil.copyfile(model, folder / model.name)
    signature = _signature_of(model)
    if not signature.exists():
        return None
    shutil.copyfile(signature, folder / signature.name)
    return signature.name


def _signature_of(model: Path) -> Path:
    return model.with_name(f"{model.name}.sig")


def _parts(folder: Path) -> Iterable[Part]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield Part(path.relative_to(folder).as_posix(), path.stat().st_size, _digest(path))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
