"""The software bill of materials of a bundle: CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from clf_deploy.bundle.wheels import Wheel
from clf_runtime.onnx_file import OnnxFile


def sbom_from_parts(model: OnnxFile, model_sha256: str, wheels: Sequence[Wheel]) -> bytes:
    """Return the document. It has no time and no serial number: the same bundle always has the same one.

    Args:
        model: The model.
        model_sha256: The digest of its whole file. That in its footer covers all but the footer.
        wheels: The wheels.
    """
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": model.path.name,
                "version": model.sha256[:12],
                "hashes": [{"alg": "SHA-256", "content": model_sha256}],
            }
        },
        "components": [_component(wheel) for wheel in wheels],
        "dependencies": [{"ref": "model", "dependsOn": [_purl(wheel) for wheel in wheels]}],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def _component(wheel: Wheel) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": _purl(wheel),
        "name": wheel.name,
        "version": wheel.version,
        "purl": _purl(wheel),
        "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
    }
    if wheel.license is not None:
        component["licenses"] = [{"license": {"name": wheel.license}}]
    return component


def _purl(wheel: Wheel) -> str:
    return f"pkg:pypi/{wheel.name}@{wheel.version.replace('+', '%2B')}"
