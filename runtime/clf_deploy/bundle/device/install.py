"""Installs the bundle in which it lies. It needs the standard library only, no network, and no pip.

    PREFIX/releases/ID/                a virtual environment; ID follows from the wheels and the Python
    PREFIX/current → releases/ID       the one in use; it changes in one step
    PREFIX/bin → current/bin           and likewise lib and pyvenv.cfg: together a virtual environment

Then `clf-deploy install` brings the model into its store. If PREFIX is a virtual environment already, the packages are
installed there, and the model is only tested.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any, NoReturn

BUNDLE = Path(__file__).resolve().parent
INVALID, MACHINE = 3, 4  # the exit codes of clf-edge
UNCHANGED = "; what was in use before is unchanged"


def main() -> None:
    """Install the bundle, and run the self-test of the model."""
    if len(sys.argv) > 2 or sys.argv[1:2] in (["-h"], ["--help"]):
        fail(2, f"usage: sh install.sh [PREFIX]; PREFIX is {default_prefix()} if it is not named")
    prefix = Path(sys.argv[1]).absolute() if len(sys.argv) == 2 else default_prefix()
    manifest = json.loads((BUNDLE / "manifest.json").read_bytes())
    check_device(manifest)
    check_parts(manifest)
    try:
        if (prefix / "pyvenv.cfg").exists() and not (prefix / "releases").exists():
            install_into(prefix)
            self_test(prefix, manifest)
            model = BUNDLE / manifest["model"]
        else:
            install_release(prefix, manifest)
            model = install_model(prefix, manifest)
    except OSError as error:
        fail(MACHINE, f"{error.filename or prefix}: {error.strerror}{UNCHANGED}")
    next_command = f"{prefix}/bin/clf-run --model {model} IMAGE"
    print(f"install.sh: installed clf-edge {manifest['clf_edge']} into {prefix}; next: {next_command}")


def default_prefix() -> Path:
    """Return where the bundle is installed: for everyone as root, else for this user."""
    return Path("/opt/clf") if os.geteuid() == 0 else Path.home() / ".local/share/clf"


def check_device(manifest: dict[str, Any]) -> None:
    """Fail if the wheels do not run on this device."""
    machine, python = platform.machine(), ".".join(map(str, sys.version_info[:2]))
    if machine != manifest["machine"]:
        fail(MACHINE, f"this bundle is for {manifest['machine']}, found {machine}; build one for this device")
    if python != manifest["python"]:
        fail(MACHINE, f"this bundle is for Python {manifest['python']}, found {python}; build one for this device")
    library, version = platform.libc_ver()
    if library != "glibc" or numbers(version) < numbers(manifest["glibc"]):
        found = f"{library} {version}".strip() or "another C library"
        fail(MACHINE, f"this bundle needs glibc {manifest['glibc']} or later, found {found}; update the system")


def check_parts(manifest: dict[str, Any]) -> None:
    """Fail unless each file is as it was when the bundle was built, and there are no others."""
    parts = {part["path"]: part["sha256"] for part in manifest["parts"]}
    wheels = {path.relative_to(BUNDLE).as_posix() for path in (BUNDLE / "wheels").iterdir()}
    unknown = sorted(wheels - parts.keys())
    if unknown:
        fail(INVALID, f"{unknown[0]}: does not belong to this bundle; unpack it again into an empty folder")
    for path, expected in parts.items():
        try:
            found = hashlib.sha256((BUNDLE / path).read_bytes()).hexdigest()
        except OSError as error:
            fail(INVALID, f"{path}: {error.strerror}; unpack the bundle again")
        if found != expected:
            fail(INVALID, f"{path}: damaged (SHA-256 {found[:12]}, expected {expected[:12]}); copy the bundle again")


def install_release(prefix: Path, manifest: dict[str, Any]) -> None:
    """Create a new environment, test it, and only then make it the one in use."""
    pinned = (BUNDLE / "requirements.txt").read_bytes() + sys.version.encode()
    release = prefix / "releases" / hashlib.sha256(pinned).hexdigest()[:12]
    complete = release / "complete"
    if not complete.exists():
        shutil.rmtree(release, ignore_errors=True)
        venv.create(release, symlinks=True)
        install_into(release)
        os.sync()
        complete.touch()
    self_test(release, manifest)
    current = prefix / "current"
    previous = current.readlink().name if current.is_symlink() else ""
    os.sync()
    link(current, Path("releases", release.name))
    for name in ("lib", "pyvenv.cfg", "bin"):
        link(prefix / name, Path("current", name))
    os.sync()
    remove_others(prefix / "releases", {release.name, previous})


def link(path: Path, target: Path) -> None:
    """Make a path a link to a target, in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)


def install_into(environment: Path) -> None:
    """Install the wheels into an environment, with the pip of the bundle."""
    (pip,) = (BUNDLE / "wheels").glob("pip-*.whl")
    # Nothing that this device's pip is configured to do: no index, no other folder of wheels, no --user.
    os.environ["PIP_CONFIG_FILE"] = os.devnull
    command = [environment / "bin/python", "-I", pip / "pip", "--isolated", "install", "--quiet", "--no-index"]
    command += ["--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--require-hashes"]
    command += ["--find-links", BUNDLE / "wheels", "-r", BUNDLE / "requirements.txt"]
    run(command, f"the packages could not be installed{UNCHANGED}")


def self_test(environment: Path, manifest: dict[str, Any]) -> None:
    """Run the self-test of the model with what was just installed."""
    command = [environment / "bin/clf-run", "--self-test", "--model", BUNDLE / manifest["model"]]
    run(command, f"the self-test failed on this device{UNCHANGED}")


def install_model(prefix: Path, manifest: dict[str, Any]) -> Path:
    """Install the model into the store of this device, which verifies it, and return where the one that runs is."""
    # The place that the units open, or one beside the programs.
    usual = Path("/var/lib/clf-edge") if prefix == Path("/opt/clf") else prefix / "models"
    store = Path(os.environ.get("CLF_STORE") or usual)
    command = [prefix / "bin/clf-deploy", "install", "--store", store, BUNDLE / manifest["model"]]
    run(command, "the programs are installed, but not the model; the one before stays in use")
    return store / "current/model.onnx"


def remove_others(releases: Path, kept: set[str]) -> None:
    """Remove all environments but the one in use and the one before it."""
    for path in releases.iterdir():
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def numbers(version: str) -> tuple[int, ...]:
    """Return a version for comparisons."""
    return tuple(int(number) for number in version.split(".") if number.isdigit())


def run(command: list[Any], failure: str) -> None:
    """Run a program that must succeed; its output goes to stderr, of which only results belong on stdout."""
    code = subprocess.run([*map(str, command)], stdout=sys.stderr, check=False).returncode
    if code != 0:
        fail(code if code in (INVALID, MACHINE) else MACHINE, failure)


def fail(code: int, reason: str) -> NoReturn:
    """Print the reason in one line and exit."""
    print(f"install.sh: {reason}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
