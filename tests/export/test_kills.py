"""clf-export killed at every change of a file: what has a final name is whole. Part of `make test-kills`."""

from __future__ import annotations

import itertools
import json
import os
import shutil

import pytest
from conftest import BIN, Zygote

from clf_export.exporting import OPENERS
from clf_export.formats import TARGETS

EVERYTHING = ("--overwrite", "-f", "onnx", "-f", "torchscript", "-f", "pt2", "-p", "fp32", "-p", "fp16")


@pytest.mark.slow
def test_killed_at_any_change_every_file_that_has_its_name_is_whole(artifacts, tmp_path):
    for change in itertools.count(1):
        folder = tmp_path / str(change) / "artifacts"
        shutil.copytree(artifacts, folder)
        (folder / "model.pt2").unlink()  # one that is new, among those that are replaced
        ended = Zygote.shared().run(
            [str(BIN / "clf-export"), *EVERYTHING], folder.parent, dict(os.environ), kill_at=change
        )
        for target in TARGETS:
            if (folder / target.file).exists():
                OPENERS[target.format](folder / target.file)  # its digest fits
        assert "</html>" in (folder / "report.html").read_text()
        json.loads((folder / "export.json").read_text())
        left = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        assert left - {"model.pt2"} == {path.name for path in artifacts.iterdir()} - {"model.pt2"}
        shutil.rmtree(folder)
        if ended.code == 0:
            break
        assert ended.code < 0
    assert change > 10
