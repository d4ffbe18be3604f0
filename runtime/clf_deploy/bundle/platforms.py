"""The platforms that a bundle can be made for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from clf_runtime.errors import UsageError

# onnxruntime has no wheels for an older C library since 1.28, and none at all for 32-bit Arm.
GLIBC = (2, 28)
_OLDEST_GLIBC = 17  # of manylinux2014
_OLDEST_PYTHON = (3, 10)

# Name → the machine as `platform.machine()` calls it on a device.
PLATFORMS = {"linux-aarch64": "aarch64", "linux-x86_64": "x86_64"}


@dataclass(frozen=True)
class Target:
    """What a bundle is installed on.

    Attributes:
        platform: A key of PLATFORMS.
        python: The version of Python, such as `"3.11"`.
    """

    platform: str
    python: str

    def __post_init__(self) -> None:
        """Raise UsageError for a platform or a Python that no bundle can be made for."""
        if self.platform not in PLATFORMS:
            raise UsageError(f"--platform {self.platform}: unknown; expected {' or '.join(PLATFORMS)}")
        match = re.fullmatch(r"(3)\.(\d{1,2})", self.python)
        if match is None or (int(match[1]), int(match[2])) < _OLDEST_PYTHON:
            raise UsageError(f"--python {self.python}: expected 3.10 or later, as python3 --version of the device")

    @property
    def machine(self) -> str:
        """The machine as `platform.machine()` calls it."""
        return PLATFORMS[self.platform]

    @property
    def uv_platform(self) -> str:
        """The platform as uv calls it."""
        return f"{self.machine}-manylinux_{GLIBC[0]}_{GLIBC[1]}"

    @property
    def tags(self) -> tuple[str, ...]:
        """The platform tags of its wheels, best first."""
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(GLIBC[1], _OLDEST_GLIBC - 1, -1)]
        # Wheels that were built for one system, as NVIDIA's for Jetson, have the last tag.
        return (*tags, f"manylinux2014_{self.machine}", f"linux_{self.machine}")
