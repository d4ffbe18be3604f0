"""The wire format is read as it is written, and damage is recognised."""

from __future__ import annotations

import random

import pytest

from clf_runtime.protobuf import Malformed, fields, tagged


def test_fields_of_every_wire_type_are_read_in_order():
    message = b"\x08\x96\x01" + tagged(2, b"testing") + b"\x1d\x01\x02\x03\x04" + b"\x21" + bytes(8)
    assert list(fields(message)) == [(1, 150), (2, b"testing"), (3, b"\x01\x02\x03\x04"), (4, bytes(8))]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 20_000])
def test_what_is_written_is_read_again(size):
    content = bytes(range(256)) * (size // 256 + 1)
    assert list(fields(tagged(14, content[:size]))) == [(14, content[:size])]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"\x80", "ends within a number"),
        (b"\x12\x05ab", "beyond its message"),
        (b"\x02\x00", "beyond its message"),
        (b"\x0b", "wire type 3"),
        (b"\x08" + b"\xff" * 11, "more than 64 bits"),
        (b"\x1d\x01", "beyond its message"),
    ],
)
def test_damage_is_recognised(message, said):
    with pytest.raises(Malformed, match=said):
        list(fields(message))


def test_random_bytes_end_in_fields_or_in_malformed_and_nothing_else():
    source = random.Random(0)
    outcomes = set()
    for _ in range(3000):
        message = source.randbytes(source.randrange(1, 40))
        try:
            outcomes.add(type(list(fields(message))))
        except Malformed:
            outcomes.add(Malformed)
    assert outcomes == {list, Malformed}
