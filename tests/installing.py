"""What an installer leaves of a wheel, for those who look for it."""

from __future__ import annotations

from pathlib import Path


def installed(folder: Path, name: str, version: str, owns: str) -> None:
    """Have `folder` say that a wheel is installed there, and owns a file."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{owns},,\n")
