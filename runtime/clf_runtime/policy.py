"""What this machine requires of the models that it runs: `/etc/clf-edge/policy.toml`, for every command and user.

    # Keys of the fleet: one of them must have signed a model.
    require_signature = ["/etc/clf-edge/fleet.pem", "/etc/clf-edge/next.pem"]

A second policy, which the environment variable `CLF_POLICY` names, and the keys of an option apply in addition: they
can require more, never less. The file is a subset of TOML (tomllib is missing in Python 3.10): lines with a comment or
`key = value`, where the value is a string or a list of strings in the same line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from clf_runtime import onnx_file
from clf_runtime.errors import InvalidModelError, MachineError
from clf_runtime.onnx_file import OnnxFile
from clf_runtime.signature import read_public_key, verify_signature

_KEY = "require_signature"
_STRING = r'"(?:[^"\\]|\\["\\])*"'
_LINE = re.compile(rf"\s*(?:(\w+)\s*=\s*({_STRING}|\[\s*(?:{_STRING}\s*(?:,\s*{_STRING}\s*)*,?\s*)?\])\s*)?(?:#.*)?")


def enforce(file: OnnxFile, keys: Sequence[Path]) -> None:
    """Verify the signature of a model as the policies of this machine and the keys of an option require.

    Raises:
        InvalidModelError: It is not signed as required.
        ModelChangedError: The model was replaced meanwhile; try again.
        MachineError: A policy cannot be read.
        UsageError: A key is not one.
        OSError: A file cannot be read.
    """
    try:
        for trusted in (tuple(keys), *_read_policies()):
            if trusted:
                verify_signature(file, [read_public_key(key) for key in trusted])
    except InvalidModelError:
        file.check_unchanged()  # the signature may be the one of the model that replaced this one
        raise


def _read_policies() -> list[tuple[Path, ...]]:
    """Return the keys that each policy of this machine requires."""
    paths = [onnx_file.POLICY_PATH if onnx_file.has_policy() else None, os.environ.get(onnx_file.POLICY_VARIABLE)]
    return [_read_policy(Path(path)) for path in paths if path]


def _read_policy(path: Path) -> tuple[Path, ...]:
    """Return the keys of a policy; relative paths start at its folder. Raises MachineError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MachineError(f"{path}: this policy cannot be read ({error}); no model is opened without it") from None
    found: dict[str, tuple[Path, ...]] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None or match[1] not in (None, _KEY) or match[1] in found:
            raise MachineError(
                f'{path}: line {number} is not understood; expected {_KEY} = "KEY.pem" or a list of such, once'
            )
        if match[1]:
            found[_KEY] = _parse_paths(match[2], path.parent)
    if not found.get(_KEY):
        raise MachineError(f'{path}: it names no key; expected {_KEY} = "KEY.pem", or remove the file')
    return found[_KEY]


def _parse_paths(value: str, folder: Path) -> tuple[Path, ...]:
    # JSON reads these strings as TOML does, and these lists but for a comma at their end.
    content = json.loads(re.sub(r",\s*\]$", "]", value))
    return tuple(folder / name for name in ([content] if isinstance(content, str) else content))
