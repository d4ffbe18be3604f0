"""What a store remembers beside its files: `state.json`, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clf_runtime.errors import DataError
from clf_runtime.files import atomic_write
from clf_runtime.spec import parse_json

NAME = "state.json"


@dataclass(frozen=True)
class Probation:
    """A version that has yet to show that it works.

    Attributes:
        version: Its name.
        fallback: The version that ran before it.
        seconds: How long it must run without a failure.
        starts: How often a service has started with it and not been stopped in an orderly way.
    """

    version: str
    fallback: str
    seconds: float
    starts: int = 0


@dataclass(frozen=True)
class State:
    """The memory of a store.

    Attributes:
        history: Names of the versions that were activated, newest last.
        highest_serial: The highest serial number that was activated; None if no version had one.
        failed: Name of a version → why it failed here.
        probation: The version on probation, if there is one.
    """

    history: tuple[str, ...] = ()
    highest_serial: int | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    probation: Probation | None = None

    @classmethod
    def read(cls, folder: Path) -> State:
        """Read the state of a store; that of a new one is empty. Raises DataError, OSError."""
        path = folder / NAME
        try:
            return _parse(parse_json(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{path}: not what clf-deploy writes; remove it to start over without the history of this store"
            ) from None

    def write(self, folder: Path) -> None:
        """Replace the state of a store. Raises MachineError, OSError."""
        atomic_write(folder / NAME, json.dumps(asdict(self), indent=1).encode())


def _parse(content: Any) -> State:
    probation, serial = content["probation"], content["highest_serial"]
    return State(
        history=tuple(map(_check_name, content["history"])),
        highest_serial=None if serial is None else int(serial),
        failed={_check_name(name): str(reason) for name, reason in content["failed"].items()},
        probation=None
        if probation is None
        else Probation(
            version=_check_name(probation["version"]),
            fallback=_check_name(probation["fallback"]),
            seconds=float(probation["seconds"]),
            starts=int(probation["starts"]),
        ),
    )


def _check_name(name: object) -> str:
    """Return the name of a version. Raises ValueError for anything that leads out of the store."""
    if not isinstance(name, str) or not name or name != Path(name).name or name.startswith("."):
        raise ValueError(f"{name!r} is not the name of a version")
    return name
