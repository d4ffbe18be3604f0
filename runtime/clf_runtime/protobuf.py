"""A reader and writer of the protobuf wire format, as far as ONNX files need it. No protobuf library needed.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

_MAX_NUMBER = 2**29 - 1  # of a field: a key has 32 bits
_MAX_VARINT = 2**64 - 1

Buffer = bytes | memoryview


class ProtobufError(ValueError):
    """The bytes are not a valid protobuf message."""


def read_fields(message: Buffer) -> Iterator[tuple[int, Buffer | int]]:
    """Yield (field number, value) in the order of the message: an int for a varint, a slice for a length-delimited one.

    Fields of a fixed size are skipped: none that we need has one, and protobuf ignores a field of an unexpected type.
    Stricter than protobuf, so that no field can be hidden from us: groups, varints that are longer than necessary, and
    bits of a key that protobuf ignores (those above 32) are errors.

    Raises:
        ProtobufError: A field is malformed or ends beyond the message.
    """
    position, end = 0, len(message)
    while position < end:
        key, position = _read_varint(message, position)
        number, wire_type = key >> 3, key & 7
        if not 0 < number <= _MAX_NUMBER:
            raise ProtobufError(f"the field number is {number}")
        if wire_type == VARINT:
            value, position = _read_varint(message, position)
            yield number, value
            continue
        if wire_type == BYTES:
            size, position = _read_varint(message, position)
        elif wire_type in (FIXED32, FIXED64):
            size = 4 if wire_type == FIXED32 else 8
        else:
            raise ProtobufError(f"unknown wire type {wire_type}")
        if position + size > end:
            raise ProtobufError("a field extends beyond its message")
        if wire_type == BYTES:
            yield number, message[position : position + size]
        position += size


def encode_field(number: int, content: bytes) -> bytes:
    """Encode one length-delimited field."""
    return _encode_varint(number << 3 | BYTES) + _encode_varint(len(content)) + content


def _read_varint(message: Buffer, position: int) -> tuple[int, int]:
    """Return the value at `position` and the position after it."""
    value = shift = 0
    try:
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise ProtobufError("a varint has more than 64 bits")
    except IndexError:
        raise ProtobufError("the message ends inside a varint") from None
    if shift and (byte == 0 or value > _MAX_VARINT):
        raise ProtobufError("a varint is longer than necessary, or has more than 64 bits")
    return value, position


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
