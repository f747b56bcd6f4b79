"""Webhooks to real receivers: those that check what they get, and those that never mean to answer."""

from __future__ import annotations

import inspect
import json
import logging
import os
import shutil
import socket
import ssl
import subprocess
import textwrap
import threading
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.after import webhook
from spancat_daemon.after.http_exchange import Exchange, exchange, shown
from spancat_daemon.after.outcome import STOPPED, Outcome, stopped
from spancat_daemon.after.steps import notify
from spancat_daemon.after.webhook import post_webhook
from spancat_daemon.config.model import PostWebhook
from tests.integration.after.peers import ID, a_swap, receiver, rude, until_gone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Post:
    """`post_webhook` with a clock that only pauses move; what it paused for."""

    def __init__(self, stopping: threading.Event | None = None) -> None:
        self.stopping = stopping or threading.Event()
        self.clock_s = 1000.0
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.clock_s += seconds
        self.pauses.append(seconds)

    def __call__(self, url: str, secret_file: Path | None = None, timeout_s: float = 30.0) -> Outcome:
        return post_webhook(
            url,
            secret_file,
            a_swap(),
            timeout_s=timeout_s,
            stopping=self.stopping,
            monotonic=lambda: self.clock_s,
            pause=self.pause,
            chance=lambda: 1.0,
        )


def the_documented_receiver() -> Callable[[bytes, str, bytes], bool]:
    """What the module tells a receiver to do, as it stands there."""
    doc = inspect.getdoc(webhook) or ""
    code = doc[doc.index("    def is_genuine") : doc.index("\n\nAny 2xx")]
    names: dict[str, Any] = {}
    exec("import hashlib, hmac, time\n" + textwrap.dedent(code), names)  # noqa: S102
    found: Callable[[bytes, str, bytes], bool] = names["is_genuine"]
    return found


def test_it_is_signed_and_sent_again_until_it_is_taken(tmp_path: Path) -> None:
    is_genuine = the_documented_receiver()
    secret = tmp_path / "secret"
    secret.write_bytes(b"s3cr3t key\r\n")
    post = Post()
    with receiver(500, 503, 201) as hook:
        assert post(hook.url + "/hook", secret) == Outcome(ok=True, tries=3)
        secret.write_bytes(b"another")
        assert post(hook.url + "/hook", secret).ok
    assert post.pauses == [0.5, 1.0]
    first, second, third, fourth = hook.received
    for request in (first, second, third):
        assert (request.method, request.path) == ("POST", "/hook")
        assert request.headers["Idempotency-Key"] == a_swap().id
        assert is_genuine(b"s3cr3t key", request.headers["X-Spancat-Signature"], request.body)
    signature = first.headers["X-Spancat-Signature"]
    assert not is_genuine(b"s3cr3t key", signature, first.body + b" ")
    assert not is_genuine(b"s3cr3t kez", signature, first.body)
    assert not is_genuine(b"s3cr3t key", "t=1" + signature[signature.index(",") :], first.body)
    old = webhook.sign(b"s3cr3t key", first.body, int(time.time()) - 301)
    assert not is_genuine(b"s3cr3t key", old, first.body)
    assert is_genuine(b"another", fourth.headers["X-Spancat-Signature"], fourth.body)
    told = json.loads(first.body)
    assert (told["id"], told["event"], told["release"]) == (a_swap().id, "release.overwrite", ID)
    assert (told["labels"], told["path"]) == (["ORG", "GÜTER"], f"/srv/models/products/releases/{ID}")


def test_retry_after_is_kept_to_as_long_as_there_is_time() -> None:
    post = Post()
    with receiver((429, {"Retry-After": "7"}), (503, {"Retry-After": "soon"}), 200) as hook:
        assert post(hook.url) == Outcome(ok=True, tries=3)
    assert post.pauses == [7.0, 1.0]
    with receiver((429, {"Retry-After": "31"})) as hook:
        outcome = Post()(hook.url)
    assert outcome.reason == (
        "answered 429 Too Many Requests, and asks for another try in 31 s; given up after 1 try in 30 s"
    )
    post = Post()
    with receiver((503, {"Retry-After": formatdate(time.time() + 3600, usegmt=True)}), 200) as hook:
        assert post(hook.url, timeout_s=7200.0).ok
    assert 3500 < post.pauses[0] <= 3600


@pytest.mark.parametrize("status", [302, 404])
def test_what_will_not_come_good_is_not_tried_again(status: int) -> None:
    with receiver(*[(status, {"Location": "/again"})] * 3) as hook:
        outcome = Post()(hook.url)
        assert len(hook.received) == 1
    redirect = "answered 302 Found; redirects are not followed"
    assert outcome == Outcome(ok=False, reason=redirect if status == 302 else "answered 404 Not Found")


def test_nobody_there_is_tried_until_the_time_is_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    post = Post()
    outcome = post(f"http://127.0.0.1:{port}/", timeout_s=10.0)
    assert outcome == Outcome(
        ok=False,
        reason="the connection failed: Connection refused; given up after 5 tries in 10 s",
        tries=5,
    )
    assert post.pauses == [0.5, 1.0, 2.0, 4.0]


def drip_headers(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.01)


def endlessly_not_yet(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    while True:
        connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")


def endless_headers(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        connection.sendall(b"x" * 65536)


def endless_body(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def garbage(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(b"\x00\xff\x16 hello\r\n\r\n")


def hang_up(connection: socket.socket) -> None:
    connection.recv(1 << 16)


NOT_HTTP = "closed the connection, or answered with something that is not HTTP"
LATE = "no answer within 0.3 s"


@pytest.mark.timeout(60)  # none of them ever ends of itself
@pytest.mark.parametrize(
    ("behave", "expected"),
    [
        (until_gone, LATE),
        (drip_headers, LATE),
        (endlessly_not_yet, LATE),
        (endless_headers, NOT_HTTP),
        (endless_body, ""),  # its status came, and nobody asked for more
        (garbage, NOT_HTTP),
        (hang_up, NOT_HTTP),
    ],
)
def test_no_peer_holds_us_for_longer_than_allowed(
    behave: Callable[[socket.socket], None], expected: str
) -> None:
    with rude(behave) as url:
        timeout_s = 0.3 if expected == LATE else 30.0
        answer = exchange("GET", url, timeout_s=timeout_s, stopping=threading.Event())
    assert (answer.ok, answer.reason) == (not expected, expected)
    for thread in threading.enumerate():
        if thread.name == "http":
            thread.join()


@pytest.mark.timeout(60)
def test_a_stop_ends_it_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = threading.Event()

    def hang(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        stopping.set()
        until_gone(connection)

    with rude(hang) as url:
        after = PostWebhook.model_validate({"webhook": {"url": url}, "timeout": 3600.0})
        done = notify(after, a_swap(), stopping=stopping)
        assert (done.ok, done.stopped, done.tries, done.reason) == (False, True, 1, STOPPED)
        assert notify(after, a_swap(), stopping=stopping).tries == 0
    # … also between two tries
    post = Post()
    monkeypatch.setattr(post, "pause", lambda _: post.stopping.set())
    with receiver(500) as hook:
        assert post(hook.url) == stopped(1)


def test_without_its_secret_nothing_is_sent(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    with receiver() as hook:
        missing = Post()(hook.url, secret)
        secret.write_text("\n")
        empty = Post()(hook.url, secret)
        assert hook.received == []
    assert missing == Outcome(
        ok=False, reason="the secret is of no use: it can't be read: No such file or directory", tries=0
    )
    assert empty.reason == "the secret is of no use: it is empty"


def test_no_secret_is_told_and_no_proxy_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    caplog.set_level(logging.DEBUG)
    with receiver(400) as hook:
        url = f"{hook.url}/services/hunter2?key=hunter2#hunter2"
        after = PostWebhook.model_validate({"webhook": {"url": url, "secret_file": secret}})
        done = notify(after, a_swap(), stopping=threading.Event())
        assert hook.received[0].path == "/services/hunter2?key=hunter2"
        assert (done.kind, done.target, done.reason) == (
            "webhook",
            f"{hook.url}/…",
            "answered 400 Bad Request",
        )
    assert "hunter2" not in repr(done)
    assert "hunter2" not in caplog.text
    shut = exchange("GET", "http://me:hunter2@127.0.0.1:bad/", timeout_s=5.0, stopping=threading.Event())
    assert shut == Exchange(reason="its address is none for HTTP", retry=False)


@pytest.mark.parametrize(
    ("url", "with_path", "expected"),
    [
        ("https://me:pass@hooks.example/services/T0/x?key=k#f", False, "https://hooks.example/…"),
        ("https://me:pass@hooks.example:8443/healthz?key=k#f", True, "https://hooks.example:8443/healthz"),
        ("http://[::1]:80/", False, "http://[::1]:80/"),
        ("http://[::1", True, "an address that is none"),
    ],
)
def test_an_address_is_shown_without_what_may_be_secret(url: str, with_path: bool, expected: str) -> None:
    assert shown(url, with_path=with_path) == expected


def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    command = [openssl, *request.split(), "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        [*command, "-keyout", os.fspath(key), "-out", os.fspath(certificate)], check=True, capture_output=True
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with receiver(tls=tls) as hook:
        assert Post()(hook.url) == Outcome(
            ok=False, reason="its certificate is not to be trusted: self-signed certificate"
        )
        monkeypatch.setenv("SSL_CERT_FILE", os.fspath(certificate))
        assert Post()(hook.url).ok
        other_name = Post()(hook.url.replace("localhost", "127.0.0.1"))
    assert "certificate is not valid for '127.0.0.1'" in other_name.reason
    assert len(hook.received) == 1
