"""docs/artifact-format.md says all that the code says, so that a reader in another language can be written from it."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from clf_export.parity.check import TOLERANCE, Parity
from clf_runtime import artifacts, onnx_file, preprocess, spec
from clf_runtime.diagnostics.selftest import Case, SelfTest
from clf_runtime.errors import IMAGE_ERROR_KINDS
from clf_runtime.spec import ModelSpec

PAGE = (Path(__file__).parent.parent / "docs" / "artifact-format.md").read_text(encoding="utf-8")
EXAMPLES = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)]


def paths(kind: type, prefix: str = "") -> list[str]:
    """Name every field of a dataclass, those of dataclasses inside it with a dot."""
    hints = get_type_hints(kind)
    names = []
    for each in fields(kind):
        hint = hints[each.name]
        names.append(prefix + each.name)
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner) and isinstance(inner, type):
                names += paths(inner, f"{prefix}{each.name}.")
    return names


def constants(module: Any, pattern: str) -> list[str]:
    return [value for name, value in vars(module).items() if re.fullmatch(pattern, name) and isinstance(value, str)]


def test_the_fields_of_the_spec_are_found_to_their_last_level():
    assert {"labels", "preprocess.crop_ratio", "metrics.loss", "provenance.versions"} <= set(paths(ModelSpec))


@pytest.mark.parametrize("path", paths(ModelSpec))
def test_every_field_of_the_spec_is_described(path):
    assert re.search(rf"^\| .*`{re.escape(path)}`.* \| .+ \| .+ \|$", PAGE, re.MULTILINE)


def test_every_field_described_is_one_of_the_spec():
    section = PAGE.split("\n## The spec\n")[1].split("\n## ")[0]
    described = re.findall(r"`([a-z0-9_.]+)`", " ".join(re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)))
    assert sorted(described) == sorted(paths(ModelSpec))


@pytest.mark.parametrize("choices", [spec.Color, spec.ResizeMode, spec.Resample])
def test_every_choice_of_the_spec_is_named(choices):
    for choice in get_args(choices):
        assert f'`"{choice}"`' in PAGE


@pytest.mark.parametrize("kind", [SelfTest, Case, Parity])
def test_every_field_of_the_proof_is_described(kind):
    for path in paths(kind):
        assert re.search(rf"^\| .*`{path.split('.')[-1]}`.* \|", PAGE, re.MULTILINE), path


@pytest.mark.parametrize("key", constants(onnx_file, r"[A-Z]+_KEY"))
def test_every_metadata_key_is_described(key):
    assert key.startswith("clf.")
    assert f"\n| `{key}` |" in PAGE


@pytest.mark.parametrize("name", constants(artifacts, r"[A-Z]+"))
def test_every_name_in_the_folder_is_described(name):
    assert re.search(rf"^\| `{re.escape(name)}/?` \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize("kind", IMAGE_ERROR_KINDS)
def test_every_way_to_refuse_a_image_is_described(kind):
    assert f"\n| `{kind}` |" in PAGE


def test_the_example_of_a_spec_is_accepted():
    (example,) = (each for each in EXAMPLES if "labels" in each)
    assert json.loads(ModelSpec.from_json(json.dumps(example), "the page").to_json()) == example


def test_the_examples_of_the_proof_have_exactly_the_fields_there_are():
    (selftest,) = (each for each in EXAMPLES if "cases" in each)
    assert set(selftest) == {each.name for each in fields(SelfTest)}
    assert set(selftest["cases"][0]) == {each.name for each in fields(Case)}
    assert selftest["tolerance"] == TOLERANCE
    (parity,) = (each for each in EXAMPLES if "flipped" in each)
    assert set(parity) == {each.name for each in fields(Parity)}


def test_the_table_of_runtimes_is_the_one_that_the_code_goes_by():
    rows = re.findall(r"^\| (1\.\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert tuple((version, int(opset), int(ir)) for version, opset, ir in rows) == onnx_file.RUNTIMES


def test_the_footer_is_byte_for_byte_the_one_that_is_written():
    table = PAGE.split("| offset | bytes | meaning |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (\d+) \| `([0-9A-F ]+)` \|", table, re.MULTILINE)
    written = b""
    for offset, row in rows:
        assert int(offset) == len(written)
        written += bytes.fromhex(row)
    assert written == onnx_file.footer("0" * 64)[:-64]
    assert f"The last {onnx_file.FOOTER_BYTES} bytes of the file" in PAGE


def test_what_a_reader_must_refuse_is_named():
    assert f"no metadata key `{onnx_file._SESSION_OPTIONS_KEY}`" in PAGE
    domains = re.search(r"Every domain of opset_import is one of ([^.]*(?:\.[a-z][^.]*)*)\. A", PAGE)
    assert domains is not None
    assert {each.strip('"') for each in re.findall(r"`([^`]*)`", domains[1])} == onnx_file._DOMAINS | set(
        onnx_file._DEFAULT_DOMAIN
    )


def test_the_limits_are_those_of_the_code():
    assert f"at most {preprocess.MAX_PIXELS:,}" in PAGE
    assert f"whole number, 1 to {spec.MAX_SIDE} " in PAGE
    assert f"It describes format {spec.FORMAT}." in PAGE
