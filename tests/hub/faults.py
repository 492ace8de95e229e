"""Faults of the loopback Hub: which request goes wrong, how, and how often.

server.faults.add(status(503), method="GET", path=r"model\\.safetensors")
server.faults.add(lose_reply(), method="POST", path=r"/commit/", times=2)
server.faults.add(drop(), times=None)    # every request, until `server.faults.clear()`
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hub.protocol import Request, Response

# Given the way to the true answer, what the client gets in its place.
Action = Callable[[Callable[[], Response]], Response]
NO_REPLY = Response(0)


def status(
    code: int, retry_after: int | None = None, message: str = "injected", error_code: str | None = None
) -> Action:
    """Nothing is done, and an error comes back."""
    headers = {"Content-Type": "application/json"}
    headers |= {"Retry-After": str(retry_after)} if retry_after is not None else {}
    headers |= {"X-Error-Code": error_code} if error_code else {}
    return lambda answer: Response(code, json.dumps({"error": message}).encode(), headers)


def reply(body: bytes, code: int = 200) -> Action:
    """Nothing is done, and something comes back as if all were well."""
    return lambda answer: Response(code, body, {"Content-Type": "application/json"})


def drop() -> Action:
    """Nothing is done, and the connection is closed without a reply."""
    return lambda answer: NO_REPLY


def lose_reply() -> Action:
    """The work is done, but the connection is closed without a reply."""

    def act(answer: Callable[[], Response]) -> Response:
        answer()
        return NO_REPLY

    return act


def cut(reset: bool = False) -> Action:
    """Half of the body comes, then the connection is closed, or reset."""

    def act(answer: Callable[[], Response]) -> Response:
        response = answer()
        return replace(response, sent=len(response.body) // 2, reset=reset)

    return act


def stall(seconds: float) -> Action:
    """The reply is the right one, but late."""

    def act(answer: Callable[[], Response]) -> Response:
        time.sleep(seconds)
        return answer()

    return act


def flip() -> Action:
    """One byte in the middle of the body is another one."""

    def act(answer: Callable[[], Response]) -> Response:
        response = answer()
        body = bytearray(response.body)
        body[len(body) // 2] ^= 0xFF
        return replace(response, body=bytes(body))

    return act


@dataclass
class Fault:
    """A fault, and how many times it is still to come (None: always) and has come."""

    action: Action
    method: str | None
    path: re.Pattern[str]
    times: int | None
    count: int = 0


@dataclass
class Faults:
    """The faults that wait for their request; of those that match one, the first added comes first."""

    waiting: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, action: Action, *, method: str | None = None, path: str = "", times: int | None = 1) -> Fault:
        """Have the next requests go wrong.

        Args:
            action: What happens: `status`, `drop`, `lose_reply`, `cut`, `stall` or `flip` of this module.
            method: "GET", "HEAD", "POST", "PUT"; None for all.
            path: Regular expression, searched in the quoted path without the query; empty for all.
            times: How often; None for always.

        Returns:
            The fault, whose `count` says how often it has come.
        """
        fault = Fault(action, method, re.compile(path), times)
        with self._lock:
            self.waiting.append(fault)
        return fault

    def clear(self) -> None:
        """From now on everything works."""
        with self._lock:
            self.waiting.clear()

    def take(self, request: Request) -> Action | None:
        """The action for a request, if one waits for it."""
        with self._lock:
            for fault in self.waiting:
                if (
                    fault.method in (None, request.method)
                    and fault.path.search(request.path)
                    and fault.times != fault.count
                ):
                    fault.count += 1
                    return fault.action
        return None
