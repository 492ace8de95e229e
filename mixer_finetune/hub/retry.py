"""Reads of the Hub, tried again: which failures are transient, how long to wait, and what to say of those that last.

The client itself tries some requests again, for up to half a minute, but not file_exists, model_info, a HEAD whose
connection is dropped, or a body whose connection is reset; and in some calls it waits for ever.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T")

ATTEMPTS = 4
FIRST_WAIT = 0.5  # seconds; doubled from one attempt to the next
SILENT_WAIT = 5.0  # seconds; of longer waits a line is said
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
    started = time.monotonic()
    for attempt in range(ATTEMPTS):
        set_limits()
        try:
            return read()
        except Exception as error:
            wait = max(FIRST_WAIT * 2**attempt, asked_wait(error))
            last = attempt == ATTEMPTS - 1 or time.monotonic() - started > time_limit
            if last or wait > LONGEST_WAIT or not is_transient(error):
                raise
        time.sleep(wait)
    raise AssertionError("unreachable: the last attempt returns or raises")


def http_library() -> Any:
    """The HTTP library that the client uses: httpx or httpx2, by its version."""
    return import_module("huggingface_hub.utils").httpx


def set_limits() -> None:
    """Have the client wait neither for ever nor in silence; of its present session, which it gives up at times."""
    from huggingface_hub import get_session

    hooks = get_session().event_hooks
    if limit_wait not in hooks["request"]:
        mine = {"request": limit_wait, "response": limit_asked_wait}
        get_session().event_hooks = {kind: [*hooks[kind], hook] for kind, hook in mine.items()}


def lift_limits() -> None:
    """Leave the client's session as it was found."""
    from huggingface_hub import get_session

    hooks, mine = get_session().event_hooks, (limit_wait, limit_asked_wait)
    get_session().event_hooks = {kind: [hook for hook in hooks[kind] if hook not in mine] for kind in hooks}


def limit_wait(request: Any) -> None:
    """Give a request that would wait for ever the time limit of downloads."""
    from huggingface_hub import constants

    limits = request.extensions.get("timeout", {})
    limits = {key: constants.HF_HUB_DOWNLOAD_TIMEOUT if limit is None else limit for key, limit in limits.items()}
    request.extensions = {**request.extensions, "timeout": limits}


def limit_asked_wait(response: Any) -> None:
    """Say what the Hub asks to wait, which the client does in silence, and don't let it where that is too long.

    Raises:
        HfHubHTTPError: It asks for more than `LONGEST_WAIT`.
    """
    from huggingface_hub import errors

    wait = _stated_wait(response) if response.status_code in TRANSIENT_STATUS else 0.0
    if wait > LONGEST_WAIT:
        raise errors.HfHubHTTPError(f"it answers {response.status_code}", response=response)
    if wait > SILENT_WAIT:
        asked = f"{response.request.method} of {response.url.path.rpartition('/')[2]}"
        _log.warning("the Hub answers %d to %s, and asks to wait %.0f s", response.status_code, asked, wait)


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


def asked_wait(error: BaseException) -> float:
    """Seconds that the Hub asks to wait; 0 where it does not."""
    return max((_stated_wait(getattr(cause, "response", None)) for cause in causes(error)), default=0.0)


def _stated_wait(response: Any) -> float:
    """Seconds in Retry-After, or until the rate limit that is used up is reset."""
    headers = getattr(response, "headers", {})
    asked = str(headers.get("Retry-After", ""))
    used_up = re.search(r"\br=0\b.*\bt=(\d{1,9})\b", str(headers.get("RateLimit", "")))
    return float(asked) if re.fullmatch(r"[0-9]{1,9}", asked) else float(used_up[1]) if used_up else 0.0


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
            wait = asked_wait(cause)
            return f"it answers {cause.response.status_code}" + (f" and asks to wait {wait:.0f} s" if wait else "")
        if isinstance(cause, httpx.TimeoutException):
            return "no answer in time"
        if isinstance(cause, httpx.TransportError):
            return first_line(cause)
    return first_line(error)


def first_line(error: BaseException) -> str:
    """What an error says, or its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
