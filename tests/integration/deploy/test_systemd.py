"""The files under deploy/systemd, judged by the tools that will read them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from spancat_daemon.config.load import load

DEPLOY = Path(__file__).parents[3] / "deploy" / "systemd"
UNIT = DEPLOY / "spancat-daemon.service"


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment}
    )


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_is_understood_to_its_last_key(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    # systemd-analyze wants the program to be there
    unit.write_text(UNIT.read_text().replace("/opt/spancat-daemon/bin/spancat-daemon", "/bin/true"))
    done = run(tool("systemd-analyze"), "verify", "--man=no", str(unit))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_exposes_little() -> None:
    done = run(
        tool("systemd-analyze"), "security", "--offline=true", "--threshold=10", "--no-pager", str(UNIT)
    )
    assert done.returncode == 0, done.stdout
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert exposure is not None
    assert float(exposure.group(1)) <= 1.0


def test_the_unit_says_what_the_service_relies_on() -> None:
    unit = settings()
    assert unit["Type"] == ["notify"]
    assert unit["RestartPreventExitStatus"] == ["2"]
    assert unit["WatchdogSec"] == ["30s"]
    # A reload must wait for the daemon's answer, so it is a command and no signal.
    assert unit["ExecReload"] == [unit["ExecStart"][0].removesuffix("run") + "reload"]
    # Every path named here is a mount of its own, and nothing can be renamed or linked between mounts.
    assert "ReadWritePaths" not in unit
    assert unit["ProtectHome"] == ["read-only"]


def test_the_unit_lets_the_verifying_process_confine_itself() -> None:
    allowed = {
        name for line in settings()["SystemCallFilter"] if line[0] not in "~@" for name in line.split()
    }
    # systemd 252 has these in no group; without them a model's code could write to all releases.
    landlock = {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"}
    assert allowed == landlock | {"seccomp"}


def test_sysusers_makes_the_user_of_the_unit(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    file = DEPLOY / "sysusers.d" / "spancat-daemon.conf"
    done = run(tool("systemd-sysusers"), f"--root={tmp_path}", str(file), SYSTEMD_LOG_LEVEL="notice")
    assert (done.returncode, done.stderr) == (0, "")
    user = next(line for line in (tmp_path / "etc" / "passwd").read_text().splitlines() if "spancat" in line)
    name, _, uid, *_, home, shell = user.split(":")
    assert [name] == settings()["User"]
    assert 0 < int(uid) < 1000
    assert home == "/var/lib/spancat-daemon"
    assert shell.endswith("nologin")


@pytest.mark.root
def test_tmpfiles_makes_the_folders(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("root: the folders are to be given to another user")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("spancat:x:64999:64999::/:/bin/false\n")
    (tmp_path / "etc" / "group").write_text("spancat:x:64999:\n")
    file = DEPLOY / "tmpfiles.d" / "spancat-daemon.conf"
    done = run(tool("systemd-tmpfiles"), "--create", f"--root={tmp_path}", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    models = (tmp_path / "var" / "lib" / "spancat-daemon" / "models").stat()
    assert (models.st_uid, models.st_mode & 0o7777) == (64999, 0o755)
    assert (tmp_path / "var" / "log" / "spancat-daemon").stat().st_mode & 0o7777 == 0o750


def test_logrotate_understands_its_file(tmp_path: Path) -> None:
    file = tmp_path / "logrotate"
    # Without the user, whom this machine need not have.
    text = (DEPLOY / "logrotate.d" / "spancat-daemon").read_text()
    file.write_text(text.replace("su spancat spancat", "").replace("0640 spancat spancat", "0640"))
    file.chmod(0o644)
    done = run(tool("logrotate"), "--debug", "--state", str(tmp_path / "state"), str(file))
    assert done.returncode == 0
    assert "error" not in done.stderr.lower()


def test_the_services_daemon_toml_is_valid_and_names_what_the_unit_makes() -> None:
    configuration = load(DEPLOY / "daemon.toml", {})
    state = Path("/var/lib", *settings()["StateDirectory"])
    assert configuration.daemon.state_dir == state
    assert configuration.daemon.control_socket.parent == Path("/run", *settings()["RuntimeDirectory"])
    assert configuration.log.file is not None
    assert configuration.log.file.parent == Path("/var/log", *settings()["LogsDirectory"])
    assert all(Path(watch.deploy).is_relative_to(state / "models") for watch in configuration.watch)
    in_service = load(
        DEPLOY / "daemon.toml",
        {"STATE_DIRECTORY": str(state), "RUNTIME_DIRECTORY": "/run/spancat-daemon"},
    )
    assert in_service.daemon == configuration.daemon
