"""What notifications need of systemd and polkit, judged by the tools that will read it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[3] / "deploy" / "systemd"
UNIT = DEPLOY / "spancat-daemon.service"
DROP_IN = DEPLOY / "spancat-daemon.service.d" / "notifications.conf.example"
RULES = DEPLOY / "polkit-1" / "rules.d" / "60-spancat-daemon.rules"


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with the drop-in where systemd looks for it."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/spancat-daemon/bin/spancat-daemon", "/bin/true"))
    folder = tmp_path / DROP_IN.parent.name
    folder.mkdir()
    shutil.copy(DROP_IN, folder / DROP_IN.stem)
    return unit


def test_the_drop_in_is_understood_to_its_last_key(unit: Path) -> None:
    done = run(tool("systemd-analyze"), "verify", "--man=no", str(unit))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_drop_in_costs_what_it_says_and_opens_nothing_but_the_network(unit: Path) -> None:
    analyze = tool("systemd-analyze")
    said = re.search(r"from ([0-9.]+) to ([0-9.]+[0-9]) ", DROP_IN.read_text())
    assert said is not None
    exposures, open_by = [], []
    for with_drop_in in (False, True):
        path = unit if with_drop_in else UNIT
        done = run(analyze, "security", "--offline=true", "--threshold=10", "--no-pager", str(path))
        assert done.returncode == 0, done.stdout
        exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
        assert exposure is not None
        exposures.append(float(exposure[1]))
        open_by.append(set(re.findall(r"^✗ (\S+)", done.stdout, re.MULTILINE)))
    # Each systemd weighs a little differently.
    assert exposures == pytest.approx([float(said[1]), float(said[2])], abs=0.4)
    assert open_by[1] - open_by[0] == {
        "PrivateNetwork=",
        "RestrictAddressFamilies=~AF_(INET|INET6)",
        "IPAddressDeny=",  # not all addresses any more
    }
    # The unit's own stays: a unix socket is what the daemon listens on.
    assert "RestrictAddressFamilies=AF_UNIX" in UNIT.read_text().splitlines()


ASK = """
let rule;
const polkit = {Result: {YES: "yes", NOT_HANDLED: "not handled"}, addRule: found => { rule = found }};
eval(require("fs").readFileSync(process.argv[1], "utf8"));
console.log(JSON.stringify(JSON.parse(process.argv[2]).map(([id, user, details]) =>
  rule({id: id, lookup: name => details[name]}, {user: user}))));
"""


def test_polkit_lets_the_services_user_do_what_is_listed_and_nothing_else() -> None:
    # polkit's own interpreter is not to be had alone; the language is the same.
    manage, reload = "org.freedesktop.systemd1.manage-units", {"unit": "ner-api.service", "verb": "reload"}
    user = re.search(r"^User=(.+)$", UNIT.read_text(), re.MULTILINE)
    assert user is not None
    questions = [
        (manage, user[1], reload),
        (manage, "nobody", reload),
        (manage, user[1], {**reload, "verb": "stop"}),
        (manage, user[1], {**reload, "unit": "sshd.service"}),
        (manage, user[1], {**reload, "unit": "constructor"}),
        (manage, user[1], {}),
        ("org.freedesktop.systemd1.manage-unit-files", user[1], reload),
    ]
    done = run(tool("node"), "-e", ASK, str(RULES), json.dumps(questions))
    assert done.stderr == ""
    assert json.loads(done.stdout) == ["yes"] + ["not handled"] * 6
