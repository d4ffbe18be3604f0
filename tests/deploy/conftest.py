"""Keys, and a signed model that the tests of this folder share; they do not write to its folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from rewriting import with_serial

from clf_deploy.signing.sign import Signer, create_key


@dataclass(frozen=True)
class Keys:
    """Two key pairs."""

    private: Path
    public: Path
    other_private: Path
    other_public: Path


@pytest.fixture(scope="session")
def keys(tmp_path_factory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    return Keys(*create_key(folder / "fleet.pem", "P-256"), *create_key(folder / "other.pem", "P-256"))


@pytest.fixture(scope="session")
def signed(model, keys, tmp_path_factory) -> Path:
    """A model with serial 5, and its signature beside it."""
    path = with_serial(model, tmp_path_factory.mktemp("signed") / "model.onnx", 5)
    Signer(keys.private).sign(path)
    return path


@pytest.fixture
def signed_copy(signed, tmp_path) -> Path:
    """A copy of it that a test may change."""
    for path in signed.parent.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / signed.name
