"""Where the time goes of what other measurements here give a total of.

Own times, by what they are spent in: a system call or another function of C, a module of ours, a library.
`cProfile` lengthens what is many calls of Python; so the shares are to be looked at, and totals elsewhere.

    make bench ARGS='-k profile'
"""

from __future__ import annotations

import cProfile
import pstats
import re
import subprocess
import sys
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from spancat_daemon.config.model import Keep
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.release.verdicts import verdicts_on
from tests.benchmarks import many
from tests.benchmarks.checkpoints import Trainer, of_6_mb
from tests.benchmarks.installed import program
from tests.benchmarks.records import keep, rounds
from tests.benchmarks.test_staging_cost import Site
from tests.pipelines import build
from tests.service import ROOT, configure

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

ROUNDS: Final = 20
RELEASES: Final = 10_000
SHOWN: Final = 18
_IMPORT: Final = re.compile(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", re.MULTILINE)
_FAMILIES: Final = {
    "pydantic": {"pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions"},
    "Typer": {"typer", "click", "rich", "shellingham", "markdown_it", "mdurl", "pygments"},
    "spancat-daemon": {"spancat_daemon"},
}


def test_a_release(tmp_path: Path) -> None:
    """On the thread that makes it: the time that it waits for others is theirs."""
    trainer = Trainer(tmp_path / "room/model-last", of_6_mb(tmp_path / "generations"))
    profile = cProfile.Profile()
    times = rounds(ROUNDS)
    with Site(trainer, tmp_path / "room", afresh=True) as site:
        for number in range(-3, times):
            site.prepare()
            trainer.save(number, dirty=True)
            if number < 0:
                site.snapshot()
            else:
                profile.runcall(site.snapshot)
        site.judge()
    tell("a release of 6 MB, every file written", _own(profile), times)


def test_retention_of_a_command(tmp_path: Path) -> None:
    many.releases(tmp_path / "deploy", RELEASES)
    profile = cProfile.Profile()
    folder = DeploymentFolder(tmp_path / "deploy")
    profile.runcall(verdicts_on, folder, Keep(last=100_000), datetime.now(UTC))
    tell(f"the decision over {RELEASES:,} releases that were not read before", _own(profile), 1)


def test_imports_of_a_command(tmp_path: Path) -> None:
    build("default", tmp_path / "runs/model-best", steps=2)
    config = configure(tmp_path)
    own_us_of: Counter[str] = Counter()
    times = rounds(ROUNDS)
    command: list[str | Path] = [
        sys.executable,
        "-X",
        "importtime",
        program(),
        "-c",
        config,
        "list",
        "products",
    ]
    for number in range(-2, times):
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        if number >= 0:
            for own_us, name in _IMPORT.findall(done.stderr):
                own_us_of[_family(name)] += int(own_us)
    tell("the imports of `list`", {family: us / 1e6 for family, us in own_us_of.items()}, times)


def _own(profile: cProfile.Profile) -> Mapping[str, float]:
    """Own seconds by what they are spent in."""
    own_s: defaultdict[str, float] = defaultdict(float)
    for (path, _line, name), (_, _, seconds, *_) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        own_s[_spent_in(path, name)] += seconds
    return own_s


def _spent_in(path: str, name: str) -> str:
    if path == "~":  # of C
        found = re.search(r"built-in method (?:builtins\.)?([\w.]+)|method '(\w+)' of '([\w.]+)'", name)
        if found is None:
            return name.strip("{}<>")
        return f"`{found[1]}`" if found[1] else f"`{found[3]}.{found[2]}`"
    parts = Path(path).parts
    if "spancat_daemon" in parts:
        return f"`{'/'.join(parts[len(parts) - parts[::-1].index('spancat_daemon') :])}`"
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1]
    return "tests" if "tests" in parts else "Python's own library"


def _family(module: str) -> str:
    package = module.partition(".")[0]
    own = package in sys.stdlib_module_names or package in {"site", "sitecustomize"}
    usual = "Python's own library" if own else "other libraries"
    return next((name for name, packages in _FAMILIES.items() if package in packages), usual)


def tell(what: str, own_s: Mapping[str, float], times: int) -> None:
    """Keep the largest parts, by milliseconds of one of so many times, and the rest in one."""
    parts = sorted(own_s.items(), key=lambda part: part[1], reverse=True)
    shown = {name: seconds / times * 1000 for name, seconds in parts[:SHOWN]}
    if rest := parts[SHOWN:]:
        shown["all else"] = sum(seconds for _, seconds in rest) / times * 1000
    name = re.sub(r"[^a-z0-9]+", "_", what.lower()).strip("_")
    keep(f"profile_{name}", {"what": what, "times": times, "own_ms": shown})
    print(f"\n{what}: {sum(shown.values()):.1f} ms")  # noqa: T201  # a measurement is there to be read
    for part, own_ms in shown.items():
        print(f"{own_ms:9.2f}  {part}")  # noqa: T201
