"""A 64-bit Arm device on this machine: Debian's packages, unpacked, under qemu's emulation of a processor.

Nothing of this machine changes. Each command runs in namespaces of its own, without a network. There, and only there,
the kernel starts programs for Arm with qemu.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from debian import DEVICE_RELEASE, copy_debian, unpack_debian

FOLDER = ROOT / "build/arm64"

# Not python3-venv, and not pip.
DEVICE_PACKAGES = ("base-files", "dash", "coreutils", "sed", "tar", "libc-bin", "libstdc++6", "python3")
# qemu 10; version 7 of Debian 12 crashes in onnxruntime 1.31.
QEMU_RELEASE, QEMU_PACKAGES = "trixie", ("qemu-user",)

# Arguments: the folder of the device, qemu, the command. The header is that of an ELF file of 64 bits for AArch64; with
# the flag F the kernel opens qemu now, outside the new root.
_ENTER = r"""
root=$1 qemu=$2; shift 2
mount -t binfmt_misc binfmt_misc "$root/mnt" || exit 125
printf '%s' ':qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:'\
'\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:'"$qemu:F" \
    >"$root/mnt/register" || exit 125
for name in dev proc sys; do mount --rbind "/$name" "$root/$name" || exit 125; done
exec chroot "$root" env -i PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 OMP_NUM_THREADS=1 "$@"
"""
_PREFIX = ("unshare", "--user", "--map-root-user", "--mount", "--net", "sh", "-c", _ENTER, "enter")


@dataclass(frozen=True)
class ArmDevice:
    """A folder with the system of a device, and the qemu that runs its programs."""

    root: Path
    qemu: Path

    def run(self, *command: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command on the device that must succeed."""
        done = subprocess.run(self._arguments(command), input=stdin, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def copy(self, source: Path) -> str:
        """Copy a file or a folder to the device, and return its path there."""
        target = Path(tempfile.mkdtemp(dir=self.root / "tmp")) / source.name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
        return f"/{target.relative_to(self.root)}"

    def _arguments(self, command: Sequence[object]) -> list[str]:
        return [*_PREFIX, str(self.root), str(self.qemu), *map(str, command)]


def create_device() -> ArmDevice:
    """Return a device as it comes from its maker; skip the test where that is not possible."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare: apt-get install util-linux")
    qemu = unpack_debian("qemu", QEMU_RELEASE, QEMU_PACKAGES) / "usr/bin/qemu-aarch64"
    root = FOLDER / "device"
    shutil.rmtree(root, ignore_errors=True)
    copy_debian(unpack_debian("device", DEVICE_RELEASE, DEVICE_PACKAGES, "arm64"), root)
    for name in ("mnt", "proc", "sys", "tmp"):
        (root / name).mkdir(exist_ok=True)
    device = ArmDevice(root, qemu)
    tried = subprocess.run(device._arguments(["uname", "-m"]), capture_output=True, text=True)
    if tried.returncode == 125:
        pytest.skip(f"needs Linux 6.7 or later with binfmt_misc and user namespaces: {tried.stderr.strip()}")
    assert tried.stdout == "aarch64\n", tried.stderr
    return device
