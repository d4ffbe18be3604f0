"""The protobuf wire format: read as it was written, and damage is an error."""

from __future__ import annotations

import random

import pytest

from clf_runtime.protobuf import ProtobufError, encode_field, read_fields


def test_fields_are_read_in_order_and_those_of_a_fixed_size_skipped():
    message = b"\x08\x96\x01" + encode_field(2, b"testing") + b"\x1d\x01\x02\x03\x04" + b"\x21" + bytes(8)
    assert list(read_fields(message + b"\x28\x00")) == [(1, 150), (2, b"testing"), (5, 0)]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 20_000])
def test_an_encoded_field_is_read_back(size):
    content = bytes(range(256)) * (size // 256 + 1)
    assert list(read_fields(encode_field(14, content[:size]))) == [(14, content[:size])]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (b"\x80", "ends inside a varint"),
        (b"\x12\x05ab", "extends beyond its message"),
        (b"\x02\x00", "field number is 0"),
        (b"\x00\x00", "field number is 0"),
        (b"\xea\x80\x80\x80\x10\x00", "field number is 536870925"),  # to protobuf it is field 13
        (b"\x88\x00\x01", "longer than necessary"),
        (b"\x08\x81\x00", "longer than necessary"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "more than 64 bits"),
        (b"\x0e\x00", "wire type 6"),
        (b"\x0f\x00", "wire type 7"),
        (b"\x0b", "wire type 3"),
        (b"\x08" + b"\xff" * 11, "more than 64 bits"),
        (b"\x1d\x01", "extends beyond its message"),
    ],
)
def test_a_damaged_message_is_an_error(message, problem):
    with pytest.raises(ProtobufError, match=problem):
        list(read_fields(message))


def test_random_bytes_are_fields_or_a_protobuf_error_and_nothing_else():
    source = random.Random(0)
    outcomes = set()
    for _ in range(3000):
        message = source.randbytes(source.randrange(1, 40))
        try:
            outcomes.add(type(list(read_fields(message))))
        except ProtobufError:
            outcomes.add(ProtobufError)
    assert outcomes == {list, ProtobufError}


@pytest.mark.parametrize("value", [0, 1, 127, 128, 2**32, 2**63, 2**64 - 1])
def test_every_integer_is_read(value):
    encoded = bytearray()
    rest = value
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    assert list(read_fields(b"\x08" + bytes([*encoded, rest]))) == [(1, value)]
