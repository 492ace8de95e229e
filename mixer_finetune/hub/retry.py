"""Reads of the Hub, tried again: which failures are transient, how long to wait, and what to say of those that last.

The client itself tries some requests again, for up to half a minute, but not file_exists, model_info, a HEAD whose
connection is dropped, or a body whose connection is reset; and in some calls it waits for ever.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T")

ATTEMPTS = 4
FIRST_WAIT = 0.5  # seconds; doubled from one attempt to the next
LONGEST_WAIT = 60.0  # seconds; a Hub that asks for more with Retry-After is not waited for
TIME_LIMIT = 20.0  # seconds after which a failure is final, since the client tries some requests again by itself
DOWNLOAD_TIME_LIMIT = 3600.0  # seconds; the same of a whole file
TRANSIENT_STATUS = frozenset((408, 429, 500, 502, 503, 504))

_log = logging.getLogger(__name__)


def retried(read: Callable[[], T], time_limit: float = TIME_LIMIT) -> T:
    """The result of an idempotent read, tried again while it fails for a transient reason.

    Args:
        read: What to do.
        time_limit: Seconds after which a failure is final.

    Raises:
        Exception: That of the last attempt.
    """
    from huggingface_hub import get_session

    started = time.monotonic()
    for attempt in range(ATTEMPTS):
        hooks = get_session().event_hooks  # of a new session where the client gave up the last one
        if limit_wait not in hooks["request"]:
            get_session().event_hooks = {**hooks, "request": [*hooks["request"], limit_wait]}
        try:
            return read()
        except Exception as error:
            wait = max(FIRST_WAIT * 2**attempt, _asked_wait(error))
            last = attempt == ATTEMPTS - 1 or time.monotonic() - started > time_limit
            if last or wait > LONGEST_WAIT or not is_transient(error):
                raise
            if wait > 5:
                _log.warning("the Hub asks to wait %.0f s", wait)
        time.sleep(wait)
    raise AssertionError("unreachable: the last attempt returns or raises")


def http_library() -> Any:
    """The HTTP library that the client uses: httpx or httpx2, by its version."""
    return import_module("huggingface_hub.utils").httpx


def limit_wait(request: Any) -> None:
    """Give a request that would wait for ever the time limit of downloads."""
    from huggingface_hub import constants

    limits = request.extensions.get("timeout", {})
    limits = {key: constants.HF_HUB_DOWNLOAD_TIMEOUT if limit is None else limit for key, limit in limits.items()}
    request.extensions = {**request.extensions, "timeout": limits}


def is_transient(error: BaseException) -> bool:
    """Whether the same read may succeed a little later: network errors, and statuses that say so."""
    from huggingface_hub import constants, errors

    httpx = http_library()
    for cause in causes(error):
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return False
        if isinstance(cause, errors.HfHubHTTPError):
            return cause.response.status_code in TRANSIENT_STATUS
        if isinstance(cause, errors.LocalEntryNotFoundError) and cause.__cause__ is None:
            return not constants.HF_HUB_OFFLINE  # datasets drops the cause, which then is the network
        if isinstance(cause, httpx.TimeoutException | httpx.NetworkError | httpx.RemoteProtocolError | ConnectionError):
            return True
    # How the client calls a body that ends early.
    return "Consistency check failed" in str(error)


def _asked_wait(error: BaseException) -> float:
    """Seconds that the Hub asks to wait with Retry-After; 0 where it does not."""
    for cause in causes(error):
        asked = getattr(getattr(cause, "response", None), "headers", {}).get("Retry-After", "")
        if asked.isdigit():
            return float(asked)
    return 0.0


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from (`raise ... from`), without errors that were handled meanwhile."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def reason(error: BaseException) -> str:
    """Why the Hub did not answer, in a few words."""
    from huggingface_hub import errors

    httpx = http_library()
    for cause in causes(error):
        if isinstance(cause, errors.HfHubHTTPError):
            wait = _asked_wait(cause)
            return f"it answers {cause.response.status_code}" + (f" and asks to wait {wait:.0f} s" if wait else "")
        if isinstance(cause, httpx.TimeoutException):
            return "no answer in time"
        if isinstance(cause, httpx.TransportError):
            return first_line(cause)
    return first_line(error)


def first_line(error: BaseException) -> str:
    """What an error says, or its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
