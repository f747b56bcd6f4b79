"""What more than one fault suite needs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults import report

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Told before any of them is deselected: what has not run all of a suite is no run of it."""
    tests = [item.nodeid for item in items if item.path.is_relative_to(Path(__file__).parent)]
    in_part = any("::" in argument for argument in config.args) or config.getoption("lf", default=False)
    report.collected(tests, whole=not in_part)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The page of what was tried says also what was not."""
    made = yield
    if made.skipped and isinstance(made.longrepr, tuple):
        report.ended(item.nodeid, "skipped", made.longrepr[2].removeprefix("Skipped: "))
    elif made.failed:
        report.ended(item.nodeid, "failed")
    elif made.when == "teardown":
        report.ended(item.nodeid, "passed")
    return made


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder in memory, where there is one: for faults that are not the disk's, without its delays."""
    memory = Path("/dev/shm")  # noqa: S108  # a fresh folder in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)
