"""The metadata that an installer leaves of a wheel."""

from __future__ import annotations

from pathlib import Path


def installed(folder: Path, name: str, version: str, owns: str) -> None:
    """Write metadata into `folder` as if a wheel that owns one file were installed there."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{owns},,\n")
