"""`POST /v1/classify/batch`: several images in one request, their records in the same order as the answer."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass

from clf_serve.classify import parse_ranking, record
from clf_serve.errors import RequestError, bad_request
from clf_serve.http import Request, Response
from clf_serve.service import Service

_BOUNDARY = re.compile(r'multipart/[\w.+-]+\s*;(?:.*;)?\s*boundary="?([^";]{1,70})"?\s*(?:;.*)?', re.IGNORECASE)
_FILE_NAME = re.compile(rb'^content-disposition:.*\bfilename="([^"]*)"', re.IGNORECASE | re.MULTILINE)
_LENGTH = struct.Struct(">I")
_MAX_PART_HEADER_BYTES = 4096


@dataclass(frozen=True)
class Part:
    """One image of a request."""

    name: str | None
    content: bytes


async def classify_batch(service: Service, request: Request) -> Response:
    """Classify the images in the body: parts of a multipart body, or each with its length before it."""
    ranking = parse_ranking(request)
    content_type = request.headers.get("content-type", "")
    body = await request.read_body(service.options.limits.body_bytes)
    most = service.options.batch.queue
    if content_type.lower().startswith("multipart/"):
        boundary = _BOUNDARY.fullmatch(content_type.strip())
        if boundary is None:
            raise bad_request("a multipart body without a boundary in its Content-Type")
        parts = split_multipart(body, boundary[1].encode("latin-1"), most)
    else:
        parts = split_lengths(body, most)
    results = await service.batcher.classify([part.content for part in parts], request)
    records = [record(result, ranking, part.name) for part, result in zip(parts, results, strict=True)]
    return Response(200, "".join(f"{json.dumps(each)}\n" for each in records).encode(), "application/x-ndjson")


def split_lengths(body: bytes, most: int) -> list[Part]:
    """Split images that each follow their length, 4 bytes, big-endian. Raises RequestError."""
    parts: list[Part] = []
    position = 0
    while position < len(body):
        start = position + _LENGTH.size
        if start > len(body):
            raise bad_request(f"the body ends within the length of image {len(parts) + 1}")
        (length,) = _LENGTH.unpack_from(body, position)
        position = start + length
        if position > len(body):
            raise bad_request(
                f"the length of image {len(parts) + 1} is {length:,} bytes, but only {len(body) - start:,} follow"
            )
        parts.append(Part(None, body[start:position]))
        _check_count(parts, most)
    return parts


def split_multipart(body: bytes, boundary: bytes, most: int) -> list[Part]:
    """Split the parts of a multipart body (RFC 2046), named by the file name of each, if any. Raises RequestError."""
    delimiter = b"\r\n--" + boundary
    body = b"\r\n" + body
    position = body.find(delimiter)
    if position < 0:
        raise bad_request("the multipart body does not contain its boundary")
    parts: list[Part] = []
    while True:
        position += len(delimiter)
        if body.startswith(b"--", position):
            return parts
        line_end = body.find(b"\r\n", position)
        following = body.find(delimiter, max(line_end, position))
        if line_end < 0 or body[position:line_end].strip(b" \t") or following < 0:
            raise bad_request(f"part {len(parts) + 1} of the multipart body has no end")
        parts.append(_parse_part(body[line_end:following], len(parts) + 1))
        _check_count(parts, most)
        position = following


def _parse_part(part: bytes, number: int) -> Part:
    """Split the headers of a part, which starts with a line break, from its content."""
    end = part.find(b"\r\n\r\n", 0, _MAX_PART_HEADER_BYTES)
    if end < 0:
        raise bad_request(f"part {number} of the multipart body has no end of its headers")
    name = _FILE_NAME.search(part, 0, end)
    return Part(None if name is None else name[1].decode("utf-8", "replace"), part[end + 4 :])


def _check_count(parts: list[Part], most: int) -> None:
    if len(parts) > most:
        raise RequestError(413, "too-large", f"more than {most:,} images in one request; send fewer at once")
