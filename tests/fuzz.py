"""Coverage-guided fuzzing of one target, with atheris.

usage: python tests/fuzz.py TARGET [LIBFUZZER_OPTION]... CORPUS...     `make fuzz` runs all targets

With -merge=1, the first corpus gets the fewest inputs that reach what all of them reach: `make corpus`.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["clf_runtime", "PIL"]):
    from fuzzing import CORPUS, SEEDS, TARGETS


def main(name: str, *arguments: str) -> None:
    """Fuzz a target; inputs that reach new code are added to the first corpus."""
    folders = [Path(argument) for argument in arguments if not argument.startswith("-")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    if not any(argument.startswith("-merge") for argument in arguments):
        _add_known(name, folders[0])
    limits = ("-timeout=120", "-rss_limit_mb=4096")
    findings = f"-artifact_prefix={folders[0]}."  # build/fuzz/image.crash-…
    # To merge, libFuzzer runs this command again.
    atheris.Setup([f"{sys.executable} {__file__} {name}", *limits, findings, *arguments], TARGETS[name])
    atheris.Fuzz()


def _add_known(name: str, folder: Path) -> None:
    """Add what every corpus starts from, and what earlier runs found."""
    for number, seed in enumerate(SEEDS[name]()):
        (folder / f"seed-{number}").write_bytes(seed)
    path = CORPUS / f"{name}.zip"
    if path.exists():
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
