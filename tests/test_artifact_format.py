"""docs/artifact-format.md agrees with the code, so that a reader can be written from it in another language."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from clf_export.parity.check import Parity
from clf_export.parity.limits import TOLERANCE
from clf_runtime import artifacts, onnx_file, preprocess, spec
from clf_runtime.diagnostics.selftest import Case, SelfTest
from clf_runtime.errors import IMAGE_ERROR_KINDS
from clf_runtime.spec import ModelSpec

PAGE = (Path(__file__).parent.parent / "docs" / "artifact-format.md").read_text(encoding="utf-8")
EXAMPLES = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)]


def paths(kind: type, prefix: str = "") -> list[str]:
    """Return the name of every field of a dataclass; those of nested dataclasses have a dot."""
    hints = get_type_hints(kind)
    names = []
    for field in fields(kind):
        hint = hints[field.name]
        names.append(prefix + field.name)
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner) and isinstance(inner, type):
                names += paths(inner, f"{prefix}{field.name}.")
    return names


def constants(module: Any, pattern: str) -> list[str]:
    return [value for name, value in vars(module).items() if re.fullmatch(pattern, name) and isinstance(value, str)]


def test_nested_fields_of_the_spec_are_found():
    assert {"labels", "preprocess.crop_ratio", "metrics.loss", "provenance.versions"} <= set(paths(ModelSpec))


@pytest.mark.parametrize("path", paths(ModelSpec))
def test_every_field_of_the_spec_is_documented(path):
    assert re.search(rf"^\| .*`{re.escape(path)}`.* \| .+ \| .+ \|$", PAGE, re.MULTILINE)


def test_every_documented_field_exists_in_the_spec():
    section = PAGE.split("\n## The spec\n")[1].split("\n## ")[0]
    documented = re.findall(r"`([a-z0-9_.]+)`", " ".join(re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)))
    assert sorted(documented) == sorted(paths(ModelSpec))


@pytest.mark.parametrize("choices", [spec.Color, spec.ResizeMode, spec.Resample])
def test_every_choice_of_the_spec_is_documented(choices):
    for choice in get_args(choices):
        assert f'`"{choice}"`' in PAGE


@pytest.mark.parametrize("kind", [SelfTest, Case, Parity])
def test_every_field_of_the_self_test_and_the_parity_record_is_documented(kind):
    for path in paths(kind):
        assert re.search(rf"^\| .*`{path.split('.')[-1]}`.* \|", PAGE, re.MULTILINE), path


@pytest.mark.parametrize("key", constants(onnx_file, r"[A-Z]+_KEY"))
def test_every_metadata_key_is_documented(key):
    assert key.startswith("clf.")
    assert f"\n| `{key}` |" in PAGE


@pytest.mark.parametrize("name", constants(artifacts, r"[A-Z]+"))
def test_every_file_of_an_artifacts_folder_is_documented(name):
    assert re.search(rf"^\| `{re.escape(name)}/?` \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize("kind", IMAGE_ERROR_KINDS)
def test_every_kind_of_image_error_is_documented(kind):
    assert f"\n| `{kind}` |" in PAGE


def test_the_example_of_a_spec_is_accepted():
    (example,) = (block for block in EXAMPLES if "labels" in block)
    assert json.loads(ModelSpec.from_json(json.dumps(example), "the page").to_json()) == example


def test_the_examples_of_self_test_and_parity_have_exactly_the_fields_of_the_code():
    (selftest,) = (block for block in EXAMPLES if "cases" in block)
    assert set(selftest) == {field.name for field in fields(SelfTest)}
    assert set(selftest["cases"][0]) == {field.name for field in fields(Case)}
    assert selftest["tolerance"] == TOLERANCE
    (parity,) = (block for block in EXAMPLES if "flipped" in block)
    assert set(parity) == {field.name for field in fields(Parity)}


def test_the_table_of_runtimes_matches_the_code():
    rows = re.findall(r"^\| (1\.\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert tuple((version, int(opset), int(ir)) for version, opset, ir in rows) == onnx_file.RUNTIMES


def test_the_documented_footer_is_the_written_one_byte_for_byte():
    table = PAGE.split("| offset | bytes | meaning |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (\d+) \| `([0-9A-F ]+)` \|", table, re.MULTILINE)
    written = b""
    for offset, row in rows:
        assert int(offset) == len(written)
        written += bytes.fromhex(row)
    assert written == onnx_file.footer("0" * 64)[:-64]
    assert f"The last {onnx_file.FOOTER_BYTES} bytes of the file" in PAGE


def test_everything_a_reader_must_reject_is_documented():
    assert f"no metadata key `{onnx_file._SESSION_OPTIONS_KEY}`" in PAGE
    domains = re.search(r"Every domain of opset_import is one of ([^.]*(?:\.[a-z][^.]*)*)\. A", PAGE)
    assert domains is not None
    assert {name.strip('"') for name in re.findall(r"`([^`]*)`", domains[1])} == onnx_file._DOMAINS | set(
        onnx_file._DEFAULT_DOMAIN
    )


def test_the_limits_match_the_code():
    assert f"at most {preprocess.MAX_PIXELS:,}" in PAGE
    assert f"integer, 1 to {spec.MAX_SIDE} " in PAGE
    assert f"describes format {spec.FORMAT}." in PAGE
