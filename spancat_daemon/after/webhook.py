"""Telling an address of a swap: JSON, signed, sent again until it is taken or the time is over.

The body is ``Swap.document()``. Its ``id``, also in the header ``Idempotency-Key``, is the same for every
try: a receiver that has seen it answers 200 and does nothing. With a secret, the header
``X-Spancat-Signature: t=SECONDS,v1=HEX`` carries the time of the try, and an HMAC-SHA256 over that time,
a full stop and the body. What a receiver has to do::

    def is_genuine(secret: bytes, header: str, body: bytes) -> bool:
        fields = dict(field.partition("=")[::2] for field in header.split(","))
        signed = hmac.new(secret, fields["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
        fresh = abs(time.time() - int(fields["t"])) < 300
        return fresh and hmac.compare_digest(signed, fields["v1"])

Any 2xx status takes it. Without an answer, and after 408, 425, 429 and 5xx, it is sent again: after half a
second, then after twice as long each time, with some chance to it so that many daemons don't come at once, or
after what ``Retry-After`` says. Redirects are not followed, and no proxy is used, whatever the environment
says.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import random
import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from spancat_daemon.after.http_exchange import Exchange, exchange, shown
from spancat_daemon.after.outcome import Outcome, failed, impossible, stopped
from spancat_daemon.after.small_file import read_small
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.observe import jsonline

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from spancat_daemon.after.swap import Swap

_TRY_AGAIN: Final = (408, 425, 429)
_FIRST_DELAY_S: Final = 0.5
_LONGEST_DELAY_S: Final = 30.0
_SHORTEST_TRY_S: Final = 5.0  # for one of several tries, if the timeout has so much


def webhook_target(url: str) -> str:
    """The address for people, without the path: that of many chat services is the secret."""
    return shown(url, with_path=False)


def sign(secret: bytes, body: bytes, time_s: int) -> str:
    """The value of ``X-Spancat-Signature``."""
    digest = hmac.new(secret, b"%d.%b" % (time_s, body), hashlib.sha256).hexdigest()
    return f"t={time_s},v1={digest}"


def post_webhook(
    url: str,
    secret_file: Path | None,
    swap: Swap,
    *,
    timeout_s: float,
    stopping: threading.Event,
    monotonic: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
    pause: Callable[[float], object] | None = None,
    chance: Callable[[], float] = random.random,
) -> Outcome:
    """Post it until it is taken.

    Args:
        url: where to.
        secret_file: the file with the secret, read now; a line end at its end is not part of it.
        swap: what to tell.
        timeout_s: for all tries, and the time between them.
        stopping: set when the daemon stops.
        monotonic: the clock for the timeout.
        now: the clock for the signature.
        pause: waits between two tries, so many seconds or until the daemon stops.
        chance: a number from 0 up to 1.
    """
    deadline = monotonic() + timeout_s
    pause = pause or stopping.wait
    try:
        secret = _read_secret(secret_file) if secret_file is not None else None
    except SpancatDaemonError as error:
        return impossible(f"the secret is of no use: {error.reason}")
    body = jsonline.dumps(swap.document())
    headers = {"Content-Type": "application/json", "Idempotency-Key": swap.id}
    tries, delay_s = 0, _FIRST_DELAY_S
    while not stopping.is_set():
        tries += 1
        if secret is not None:
            headers["X-Spancat-Signature"] = sign(secret, body, int(now()))
        # Of a server that hangs another try may meet one that doesn't.
        left_s = deadline - monotonic()
        try_s = min(left_s, max(_SHORTEST_TRY_S, timeout_s / 3))
        answer = exchange("POST", url, timeout_s=try_s, stopping=stopping, headers=headers, body=body)
        if answer.ok:
            return Outcome(ok=True, tries=tries)
        if answer.stopped:
            break
        if not _may_come_good(answer):
            return failed(answer.why_not, tries)
        wait_s = delay_s * (0.5 + chance() / 2)
        delay_s = min(delay_s * 2, _LONGEST_DELAY_S)
        asked_s = _asked_to_wait(answer.retry_after, now())
        if asked_s is not None:
            wait_s = max(wait_s, asked_s)
        if wait_s >= deadline - monotonic():
            return failed(_given_up(answer, asked_s, tries, timeout_s), tries)
        pause(wait_s)
    return stopped(tries)


def _may_come_good(answer: Exchange) -> bool:
    if not answer.status:
        return answer.retry
    return answer.status in _TRY_AGAIN or answer.status >= 500


def _given_up(answer: Exchange, asked_s: float | None, tries: int, timeout_s: float) -> str:
    reason = answer.why_not
    if asked_s is not None:
        reason += f", and asks for another try in {asked_s:.0f} s"
    return f"{reason}; given up after {tries} {'try' if tries == 1 else 'tries'} in {timeout_s:g} s"


def _asked_to_wait(retry_after: str, now_s: float) -> float | None:
    """The seconds that ``Retry-After`` asks for, as a number or a date; None if it says neither."""
    if re.fullmatch("[0-9]{1,9}", retry_after):
        return float(retry_after)
    try:
        seconds = parsedate_to_datetime(retry_after).timestamp() - now_s
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _read_secret(path: Path) -> bytes:
    content, _ = read_small(path)
    secret = content.removesuffix(b"\n").removesuffix(b"\r")
    if not secret:
        raise SpancatDaemonError("it is empty")
    return secret
