"""What the service leaves out of its memory, and that all of it is still to be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

_LEFT_OUT = ("rich", "ssl", "importlib.metadata", "asyncio.base_events", "multiprocessing", "typer", "httpx")


def _told_by(program: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", f"import json\n{program}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COVERAGE_PROCESS_CONFIG": ""},  # coverage has imports of its own
    )
    return json.loads(done.stdout)


def test_the_service_is_imported_without_what_only_others_need() -> None:
    left_out = _told_by(f"""
from spancat_daemon.daemon.sparing import spare
spare()
import sys
import spancat_daemon.daemon.service
print(json.dumps([name for name in {_LEFT_OUT!r} if name in sys.modules]))
""")
    assert left_out == []


def test_whoever_wants_it_gets_the_real_thing() -> None:
    assert _told_by("""
from spancat_daemon.daemon.sparing import spare
spare()
import spancat_daemon.daemon.service
import asyncio, asyncio.subprocess, importlib.metadata, os, rich.console
from apscheduler.executors.pool import ThreadPoolExecutor
async def answer():
    await asyncio.sleep(0)
    return 42
print(json.dumps([
    asyncio.run(answer()),
    asyncio.iscoroutinefunction(answer),
    importlib.metadata.version("structlog") != "3",
    bool(importlib.metadata.entry_points(group="console_scripts")),
    callable(ThreadPoolExecutor),
    "PYDANTIC_DISABLE_PLUGINS" in os.environ,
]))
""") == [42, True, True, True, True, False]


def test_a_program_that_has_them_already_keeps_them() -> None:
    assert _told_by("""
import asyncio, importlib.metadata, rich, sys
before = [sys.modules[name] for name in ("asyncio", "importlib.metadata", "rich")]
from spancat_daemon.daemon.sparing import spare
spare()
import spancat_daemon.daemon.service
print(json.dumps(before == [sys.modules[name] for name in ("asyncio", "importlib.metadata", "rich")]))
""")
