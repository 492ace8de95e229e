"""Requests and replies of the loopback Hub, apart from any socket."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import yaml


@dataclass(frozen=True)
class Request:
    """A request as it came in; `path` is still quoted and has no query."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Response:
    """A reply.

    Attributes:
        status: 0 where the connection is closed without a reply.
        body: Of a reply to HEAD, what GET would bring.
        headers: All but Content-Length.
        sent: How many bytes of the body leave before the connection is closed; None for all, and it stays open.
        reset: Whether it is then reset, not closed.
    """

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None
    reset: bool = False


class Refusal(Exception):
    """An error of the Hub: status, `X-Error-Code` and message."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        named = {"X-Error-Code": code} if code else {}
        self.response = Response(
            status, json.dumps({"error": message}).encode(), {"X-Error-Message": message, **named, **(headers or {})}
        )


def json_response(data: Any, status: int = 200) -> Response:
    return Response(status, json.dumps(data).encode(), {"Content-Type": "application/json"})


def front_matter(readme: str) -> dict[str, Any]:
    """The YAML block that heads a README.md."""
    block = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", readme, re.DOTALL)
    return (yaml.safe_load(block[1]) or {}) if block else {}


def ranged(request: Request, content: bytes, headers: dict[str, str]) -> Response:
    """The content, or the part of it that the request's `Range` asks for."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if match is None:
        return Response(200, content, {**headers, "Accept-Ranges": "bytes"})
    if match[1]:
        first, last = int(match[1]), min(int(match[2] or len(content) - 1), len(content) - 1)
    else:
        first, last = max(len(content) - int(match[2]), 0), len(content) - 1
    if first > last:
        raise Refusal(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{len(content)}"})
    return Response(
        206, content[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
    )
