"""A machine that boots Debian under qemu: a kernel, systemd, and a disk that survives a reboot.

Nothing of this machine changes. The disk is an image that is made without mounting it, and there is no network. The
tests speak to the machine through its second serial port.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from debian import DEVICE_RELEASE, copy_debian, unpack_debian

_PACKAGES = (
    *("base-files", "base-passwd", "bash", "coreutils", "curl", "dash", "diffutils", "grep", "kmod", "libc-bin"),
    *("libnss-systemd", "libstdc++6", "mount", "procps", "python3", "sed", "systemd-sysv", "tar", "udev", "util-linux"),
)
_BOOT_S, _COMMAND_S = 600, 1200  # emulation is slow, and the machine may have other work

# Runs each command that it reads, one JSON string a line, and answers with a line of JSON.
_AGENT = """
import json, subprocess, tty
port = open("/dev/PORT", "r+b", buffering=0)
tty.setraw(port)
def answer(**value): port.write(json.dumps(value).encode() + b"\\n")
answer(boot=open("/proc/sys/kernel/random/boot_id").read().strip())
for line in iter(port.readline, b""):
    done = subprocess.run(json.loads(line), shell=True, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1, text=True)
    answer(code=done.returncode, out=done.stdout, err=done.stderr)
"""
_AGENT_UNIT = """
[Unit]
Description=Takes commands from the second serial port
After=multi-user.target
[Service]
ExecStart=/usr/bin/python3 -u /usr/local/sbin/agent
Environment=HOME=/root LANG=C.UTF-8
"""


@dataclass(frozen=True)
class Platform:
    """A processor that qemu emulates, or this one.

    Attributes:
        debian: Debian's name of it.
        kernel: Debian's package with the kernel.
        qemu: The program and its options.
        package: Debian's package with the program.
        console: The first serial port.
        agent: The second one.
    """

    debian: str
    kernel: str
    qemu: tuple[str, ...]
    package: str
    console: str
    agent: str


# Emulated, too: in a virtual machine /dev/kvm may be there and not work.
_X86 = ("-machine", "q35", "-cpu", "max", "-accel", "tcg,thread=multi")
# A Cortex-A72 is the processor of a Raspberry Pi 4.
_ARM = ("-machine", "virt", "-cpu", "cortex-a72", "-accel", "tcg,thread=multi")
PLATFORMS = {
    "linux-x86_64": Platform(
        *("amd64", "linux-image-cloud-amd64", ("qemu-system-x86_64", *_X86)),
        *("qemu-system-x86", "ttyS0", "ttyS1"),
    ),
    "linux-aarch64": Platform(
        *("arm64", "linux-image-cloud-arm64", ("qemu-system-aarch64", *_ARM)),
        *("qemu-system-arm", "ttyAMA0", "ttyS0"),
    ),
}


@dataclass(frozen=True)
class Done:
    """What a command on the machine returned."""

    code: int
    out: str
    err: str


@dataclass
class BootedMachine:
    """A machine that runs.

    Attributes:
        console: Everything that the kernel and systemd have printed.
        boot_s: How long the last start took.
    """

    console: Path
    _port: socket.socket
    boot_s: float = 0.0
    _rest: bytes = field(default=b"")

    def try_to_run(self, command: str) -> Done:
        """Run a command of the shell as root."""
        self._port.sendall(json.dumps(command).encode() + b"\n")
        return Done(**self._read(_COMMAND_S))

    def run(self, command: str) -> str:
        """Run a command that must succeed, and return what it printed on both streams."""
        done = self.try_to_run(command)
        assert done.code == 0, f"{command}: {done.code}\n{done.out}{done.err}"
        return (done.out + done.err).strip()

    def wait_for_boot(self) -> None:
        """Wait until the machine takes commands."""
        began = time.monotonic()
        while self._read(_BOOT_S).keys() != {"boot"}:
            pass  # the answer to the command before
        self.boot_s = time.monotonic() - began

    def reboot(self) -> None:
        """Restart the machine in an orderly way; the command may end before it has answered."""
        self._port.sendall(json.dumps("systemctl reboot").encode() + b"\n")
        self.wait_for_boot()

    def _read(self, timeout_s: float) -> Mapping[str, object]:
        """Read one answer; what is no JSON comes from the start of the port."""
        deadline = time.monotonic() + timeout_s
        while True:
            line, found, rest = self._rest.partition(b"\n")
            if not found:
                self._port.settimeout(max(0.1, deadline - time.monotonic()))
                received = self._port.recv(65536)
                assert received, f"the machine has stopped: {self.console.read_text(errors='replace')[-2000:]}"
                self._rest += received
                continue
            self._rest = rest
            with contextlib.suppress(ValueError):
                return dict(json.loads(line))


@contextlib.contextmanager
def booted(name: str, files: Mapping[str, Path], folder: Path) -> Iterator[BootedMachine]:
    """Start a machine of a platform, and switch it off at the end of the block.

    Args:
        name: A key of PLATFORMS.
        files: Path on the machine → a file or folder here that is copied there.
        folder: An empty folder for the disk.
    """
    wanted = PLATFORMS[name]
    for program, package in (
        (wanted.qemu[0], wanted.package),
        ("mmdebstrap", "mmdebstrap"),
        ("mke2fs", "e2fsprogs"),
    ):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: apt-get install {package}")
    if os.geteuid() != 0:
        pytest.skip("needs root: the files of the disk belong to root")
    root = folder / "root"
    kernel = _write_root(root, wanted, files)
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-d", root, folder / "disk", "3G"], check=True, stdin=subprocess.DEVNULL
    )
    shutil.rmtree(root)
    console, port = folder / "console.log", folder / "port"
    append = f"console={wanted.console} root=/dev/nvme0n1 rw net.ifnames=0 systemd.getty_auto=no panic=-1"
    command = [
        *wanted.qemu,
        *("-nodefaults", "-display", "none", "-smp", "2", "-m", "2G", "-kernel", kernel, "-append", append),
        *("-drive", f"file={folder / 'disk'},format=raw,if=none,id=disk", "-device", "nvme,drive=disk,serial=1"),
        *("-serial", f"file:{console}", "-chardev", f"socket,path={port},server=on,wait=off,id=port"),
        *("-device", "pci-serial,chardev=port"),
    ]
    with subprocess.Popen(command) as process:
        try:
            with _connected(port, process) as connection:
                machine = BootedMachine(console, connection)
                machine.wait_for_boot()
                yield machine
        finally:
            process.kill()


def _write_root(root: Path, wanted: Platform, files: Mapping[str, Path]) -> Path:
    """Write the files of the disk, and return the kernel."""
    debian = unpack_debian(f"boot-{wanted.debian}", DEVICE_RELEASE, (*_PACKAGES, wanted.kernel), wanted.debian)
    copy_debian(debian, root)
    # What base-passwd, systemd and their like do when they are configured.
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / f"etc/{name}")
    (root / "etc/machine-id").write_text(f"{'c1f' * 10}ed\n")
    (root / "etc/hostname").write_text("device\n")
    (root / "var/log/journal").mkdir(exist_ok=True)
    (root / "usr/local/sbin").mkdir(parents=True, exist_ok=True)
    (root / "usr/local/sbin/agent").write_text(_AGENT.replace("PORT", wanted.agent))
    units = root / "etc/systemd/system"
    (units / "agent.service").write_text(_AGENT_UNIT)
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants/agent.service").symlink_to("../agent.service")
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    for path, source in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    (kernel,) = (debian / "boot").glob("vmlinuz-*")
    return kernel


@contextlib.contextmanager
def _connected(port: Path, process: subprocess.Popen[bytes]) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        for _ in range(100):
            assert process.poll() is None, "qemu has ended"
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                connection.connect(str(port))
                yield connection
                return
            time.sleep(0.1)
        raise AssertionError("qemu does not open its serial port")
