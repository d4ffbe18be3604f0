"""A reader and writer of the protobuf wire format, as far as ONNX files need it. No protobuf library needed.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Buffer = bytes | memoryview


class ProtobufError(ValueError):
    """The bytes are not a valid protobuf message."""


def read_fields(message: Buffer) -> Iterator[tuple[int, Buffer | int]]:
    """Yield (field number, value) in the order of the message: an int for a varint, a slice for all other types.

    Raises:
        ProtobufError: A field is malformed or ends beyond the message.
    """
    position, end = 0, len(message)
    while position < end:
        key, position = _read_varint(message, position)
        number, wire_type = key >> 3, key & 7
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
        if number == 0 or position + size > end:
            raise ProtobufError("a field extends beyond its message")
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
                return value, position
            shift += 7
            if shift > 63:
                raise ProtobufError("a varint has more than 64 bits")
    except IndexError:
        raise ProtobufError("the message ends inside a varint") from None


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
