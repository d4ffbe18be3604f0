"""clf-export, killed at every change of a file: no file is ever incomplete. Part of `make test-kills`."""

from __future__ import annotations

import itertools
import json
import os
import shutil

import pytest
from conftest import BIN, Zygote

from clf_export.exporting import EXPORTERS
from clf_export.formats import TARGETS

OPTIONS = ("--overwrite", "-f", "onnx", "-f", "torchscript", "-f", "pt2", "-p", "fp32", "-p", "fp16")


@pytest.mark.slow
def test_a_kill_at_any_change_of_a_file_leaves_only_complete_files(artifacts, tmp_path):
    for change in itertools.count(1):
        folder = tmp_path / str(change) / "artifacts"
        shutil.copytree(artifacts, folder)
        (folder / "model.pt2").unlink()  # so that one file is new, while the others are replaced
        ended = Zygote.shared().run(
            [str(BIN / "clf-export"), *OPTIONS], folder.parent, dict(os.environ), kill_at=change
        )
        for target in TARGETS:
            if (folder / target.file).exists():
                EXPORTERS[target.format].open(folder / target.file)  # verifies its digest
        assert "</html>" in (folder / "report.html").read_text()
        json.loads((folder / "export.json").read_text())
        left = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        assert left - {"model.pt2"} == {path.name for path in artifacts.iterdir()} - {"model.pt2"}
        shutil.rmtree(folder)
        if ended.code == 0:
            break
        assert ended.code < 0
    assert change > 10
