"""One warm loader for all tests of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.verify.child import LoaderProcess
from spancat_daemon.verify.verdict import Examination, LoadVerdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spancat_daemon.verify.verdict import Subject


@pytest.fixture(scope="module")
def loader() -> Iterator[LoaderProcess]:
    with LoaderProcess() as process:
        yield process


@pytest.fixture
def examine(loader: LoaderProcess) -> Callable[..., LoadVerdict]:
    def ask(subject: Subject, **more: Any) -> LoadVerdict:
        return loader.ask(Examination(subject=subject, **more), timeout_s=120)

    return ask
