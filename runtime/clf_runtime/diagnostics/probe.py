"""One process of `clf-run --doctor`: tries something that may fail or end its process, and prints a report as JSON.

usage: python -m clf_runtime.diagnostics.probe package NAME | providers | device NAME | model FILE DEVICE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from clf_runtime.errors import EXIT_INVALID, EXIT_MACHINE, EXIT_OK, ClfError


@dataclass(frozen=True)
class Report:
    """What was found."""

    exit_code: int  # what clf-run would exit with because of it
    message: str = ""
    is_missing: bool = False  # whether a package is not installed
    names: tuple[str, ...] = ()  # of the providers

    def to_json(self) -> str:
        """Return the JSON text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Parse a report. Raises ValueError."""
        content = json.loads(text)
        return cls(**content | {"names": tuple(content["names"])})


def probe_package(name: str) -> Report:
    """Import a package."""
    try:
        package = import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return Report(EXIT_MACHINE, is_missing=True)
    return Report(EXIT_OK, str(package.__version__))


def probe_providers() -> Report:
    """List the execution providers that onnxruntime includes."""
    from clf_runtime.providers import short_name
    from clf_runtime.session import included_providers

    return Report(EXIT_OK, names=tuple(short_name(provider) for provider in included_providers()))


def probe_device(device: str) -> Report:
    """Run a small graph on a device."""
    from clf_runtime import session

    session.silence_log()
    session.probe_device(device)
    return Report(EXIT_OK)


def probe_model(model: str, device: str) -> Report:
    """Run the self-test of a model on a device."""
    from clf_runtime.classifier import Classifier
    from clf_runtime.diagnostics.selftest import run_self_test
    from clf_runtime.session import silence_log

    silence_log()
    result = run_self_test(Classifier.load(Path(model), device=device))
    return Report(EXIT_OK if result.passed else EXIT_INVALID, str(result))


_PROBES: dict[str, Callable[..., Report]] = {
    "package": probe_package,
    "providers": probe_providers,
    "device": probe_device,
    "model": probe_model,
}


def main(name: str, *arguments: str) -> None:
    """Run a probe and print its report, on a line of its own after whatever else was printed."""
    try:
        report = _PROBES[name](*arguments)
    except ClfError as error:
        report = Report(error.exit_code, str(error))
    print("\n" + report.to_json())


if __name__ == "__main__":
    main(*sys.argv[1:])
