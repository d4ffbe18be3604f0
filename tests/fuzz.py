"""Coverage-guided fuzzing of one target, with atheris.

usage: python tests/fuzz.py TARGET SECONDS CORPUS     `make fuzz` runs all targets
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["clf_runtime", "PIL"]):
    from fuzzing import SEEDS, TARGETS


def main(name: str, seconds: str, corpus: str) -> None:
    """Fuzz a target; inputs that reach new code are added to the corpus."""
    Path(corpus).mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]()):
        Path(corpus, f"seed-{number}").write_bytes(seed)
    limits = (f"-max_total_time={seconds}", "-timeout=120", "-rss_limit_mb=4096")
    findings = f"-artifact_prefix={corpus}."  # build/fuzz/image.crash-…
    atheris.Setup([sys.argv[0], *limits, findings, corpus], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
