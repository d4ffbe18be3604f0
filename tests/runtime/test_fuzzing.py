"""The parsers of untrusted bytes, on inputs that hypothesis makes up; `make fuzz` does the same guided by coverage."""

from __future__ import annotations

import json
import zipfile
from typing import Any

import pytest
from fuzzing import CORPUS, SEEDS, TARGETS, fuzz_image, fuzz_protobuf, fuzz_spec, seed_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clf_runtime import onnx_file
from clf_runtime.protobuf import encode_field, read_fields

# The same inputs in every run: a test that fails for chance does not fail here.
SETTINGS = settings(
    max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)

NUMBERS = st.integers() | st.floats() | st.just(10**400)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4),
)
FIELDS = st.lists(st.tuples(st.integers(1, 2**29 - 1), st.binary(max_size=300)))


@pytest.mark.parametrize("target", list(TARGETS))
@SETTINGS
@given(content=st.binary(max_size=300))
def test_any_bytes_are_read_or_a_documented_error(target, content):
    TARGETS[target](content)


@pytest.mark.parametrize("target", list(TARGETS))
def test_what_a_corpus_starts_from_is_read(target):
    for seed in SEEDS[target]():
        TARGETS[target](seed)


@pytest.mark.parametrize("target", list(TARGETS))
def test_what_fuzzing_found_is_read_or_a_documented_error(target):
    with zipfile.ZipFile(CORPUS / f"{target}.zip") as archive:
        assert archive.namelist()
        for name in archive.namelist():
            TARGETS[target](archive.read(name))


@SETTINGS
@given(fields=FIELDS)
def test_encoded_fields_are_read_back(fields):
    message = b"".join(encode_field(number, content) for number, content in fields)
    assert list(read_fields(message)) == fields
    fuzz_protobuf(message)


@SETTINGS
@given(data=st.data())
def test_a_spec_with_any_other_value_is_read_or_an_invalid_model(model, data):
    content: dict[str, Any] = json.loads(onnx_file.read(model).metadata["clf.spec"])
    objects = [content, content["preprocess"], content["normalize"], content["metrics"], content["provenance"]]
    changed = data.draw(st.sampled_from(objects))
    changed[data.draw(st.sampled_from(sorted(changed)))] = data.draw(JSON)
    fuzz_spec(json.dumps(content).encode())


@pytest.mark.parametrize("image", seed_images())
@SETTINGS
@given(position=st.floats(0, 1, exclude_max=True), value=st.binary(min_size=1, max_size=4))
def test_a_changed_image_is_decoded_or_an_image_error(image, position, value):
    content = bytearray(image)
    at = int(position * len(content))
    content[at : at + len(value)] = value
    fuzz_image(bytes(content))
