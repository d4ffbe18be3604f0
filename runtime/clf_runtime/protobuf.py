"""Just enough of the protobuf wire format to look into a file without a protobuf library.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Buffer = bytes | memoryview


class Malformed(ValueError):
    """These bytes are no protobuf message."""


def fields(message: Buffer) -> Iterator[tuple[int, Buffer | int]]:
    """Give (field number, value) in order: an int for a varint, a slice for everything else.

    Raises Malformed.
    """
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == BYTES:
            size, position = _varint(message, position)
        elif wire_type in (FIXED32, FIXED64):
            size = 4 if wire_type == FIXED32 else 8
        else:
            raise Malformed(f"wire type {wire_type}")
        if number == 0 or position + size > end:
            raise Malformed("a field reaches beyond its message")
        yield number, message[position : position + size]
        position += size


def tagged(number: int, content: bytes) -> bytes:
    """Encode one length-delimited field."""
    return _encoded_varint(number << 3 | BYTES) + _encoded_varint(len(content)) + content


def _varint(message: Buffer, position: int) -> tuple[int, int]:
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
                raise Malformed("a number of more than 64 bits")
    except IndexError:
        raise Malformed("it ends within a number") from None


def _encoded_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
