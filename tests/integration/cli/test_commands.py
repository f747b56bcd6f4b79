"""The commands on real deployment folders, without a daemon."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import many
from tests.pipelines import build
from tests.service import ROOT, command, run

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
ENTRY_KEYS = {
    "id", "sequence", "live", "created_at", "trigger", "forced", "changed", "content_sha256", "model_sha256",
    "bytes", "bytes_unique", "labels", "metrics", "verified", "pinned", "leased", "kept_because", "path",
}  # fmt: skip


class Site:
    """A configuration, a checkpoint and what is deployed from it."""

    def __init__(self, root: Path) -> None:
        self.config = root / "daemon.toml"
        self.checkpoint = root / "runs" / "model-best"
        self.deploy = root / "models"
        self.config.write_text(
            '[daemon]\nmin_free = "1MiB"\n'
            '[[watch]]\nname = "products"\nsource = "runs/model-best"\ndeploy = "models"\n'
            'verify = { level = "structure" }\n'
            "[watch.keep]\nlast = 2\n"
        )

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """A command that must end with that exit code, without a traceback."""
        done = run(*arguments, config=self.config)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def write(self, generation: int) -> None:
        """The checkpoint, as a trainer replaces it."""
        if self.checkpoint.exists():
            subprocess.run(["rm", "-r", str(self.checkpoint)], check=True)
        build("default", self.checkpoint, generation=generation)

    def snapshot(self, *arguments: str) -> str:
        return self.run("snapshot", "products", *arguments).stdout.strip()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture(scope="module")
def two_releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = Site(tmp_path_factory.mktemp("two_releases"))
    for generation in (0, 1):
        site.write(generation)
        site.snapshot()
    return site.config.parent


@pytest.fixture
def deployed(two_releases: Path, tmp_path: Path) -> Site:
    """Two releases, the second live."""
    subprocess.run(["cp", "-a", f"{two_releases}/.", str(tmp_path)], check=True)
    return Site(tmp_path)


def start(site: Site, *arguments: str) -> subprocess.Popen[bytes]:
    """A command whose ends are in the test's hands."""
    return subprocess.Popen(
        command("-c", site.config, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=site.config.parent,
        env=ENVIRONMENT,
    )


HEAVY = {
    "rich",
    "spacy",
    "structlog",
    "apscheduler",
    "watchdog",
    "numpy",
    "asyncio",
    "ssl",
    "httpx",
}


def imported(*arguments: str | Path) -> tuple[str, set[str]]:
    """The exit code of a command, and which packages it imported."""
    script = (
        "import sys; from spancat_daemon.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as e: code = int(e.code)\n"
        "print(file=sys.stdout)\n"
        "print(code, *{m.split('.')[0] for m in sys.modules})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, check=True, timeout=120, env=ENVIRONMENT,
    )  # fmt: skip
    code, *found = done.stdout.splitlines()[-1].split()
    return code, set(found)


def test_version_and_help_start_without_what_they_do_not_need() -> None:
    code, found = imported("--version")
    assert code == "0"
    assert not found & (HEAVY | {"pydantic"})
    code, found = imported("--help")
    assert code == "0"
    assert not found & (HEAVY | {"pydantic"})


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("list products", "0"),
        ("list products --json", "0"),
        ("show products @1", "0"),
        ("history products --verify", "0"),
        ("prune products --dry-run", "0"),
        ("status", "3"),
    ],
)
def test_commands_that_only_read_start_without_what_they_do_not_need(
    arguments: str, code: str, deployed: Site
) -> None:
    ended, found = imported("-c", deployed.config, *arguments.split())
    assert ended == code
    assert not found & HEAVY


def test_snapshot_prints_the_id_of_what_is_live_then(site: Site) -> None:
    site.write(0)
    first = site.run("snapshot", "products")
    assert (site.deploy / "current").resolve().name == first.stdout.strip()
    again = site.run("snapshot", "products")
    assert again.stdout == first.stdout
    assert "unchanged" in again.stderr
    forced = site.json("snapshot", "products", "--force")
    assert forced["status"] == "published"
    assert forced["release"] != first.stdout.strip()
    assert (site.deploy / "current").resolve().name == forced["release"]


def test_a_snapshot_that_can_not_be_made_says_why(site: Site) -> None:
    absent = site.run("snapshot", "products", code=1)
    assert absent.stdout == ""
    assert "vanished: " in absent.stderr
    site.write(0)
    (site.checkpoint / "config.cfg").write_text("[nlp]\nlang = \n")
    os.utime(site.checkpoint / "config.cfg", (0, 0))
    (site.checkpoint / "extra").symlink_to("/etc/passwd")
    rejected = site.run("snapshot", "products", code=1)
    assert rejected.stdout == ""
    assert "rejected: " in rejected.stderr
    assert "extra" in rejected.stderr
    assert not (site.deploy / "current").exists()


def test_list_tells_what_is_live_and_why_each_is_kept(deployed: Site) -> None:
    entries = deployed.json("list", "products")
    assert [set(entry) for entry in entries] == [ENTRY_KEYS, ENTRY_KEYS]
    newest, oldest = entries
    assert (newest["sequence"], newest["live"], oldest["sequence"], oldest["live"]) == (2, True, 1, False)
    assert "live" in newest["kept_because"]
    assert "previous" in oldest["kept_because"]
    assert newest["verified"] is True
    assert newest["path"] == str((deployed.deploy / "current").resolve())
    # tokenizer and vocab did not change: only what did is the release's own
    assert 0 < newest["bytes_unique"] < newest["bytes"] + 20_000
    sizes = {
        (status.st_dev, status.st_ino): status.st_size
        for path in Path(newest["path"]).rglob("*")
        if path.is_file() and path.name != "release.json"
        for status in [path.lstat()]
    }
    assert newest["bytes"] == sum(sizes.values())

    lines = deployed.run("list", "products").stdout.splitlines()
    assert lines[0].split() == ["release", "age", "trigger", "size", "own", "spans_sc_f", "kept", "because"]
    assert lines[1].startswith(f"*  {newest['id']}")
    assert lines[2].startswith(f"   {oldest['id']}")


def test_pins_and_leases_show(deployed: Site) -> None:
    pinned = deployed.run("pin", "products", "1").stdout.strip()
    with (deployed.deploy / "current" / "release.json").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        newest, oldest = deployed.json("list", "products")
    assert pinned == oldest["id"]
    assert (newest["leased"], newest["pinned"], oldest["leased"], oldest["pinned"]) == (
        True,
        False,
        False,
        True,
    )
    assert "pinned" in oldest["kept_because"]
    assert deployed.run("unpin", "products", "1").stdout.strip() == pinned
    assert not deployed.json("list", "products")[1]["pinned"]


def test_an_empty_folder_is_no_fault(site: Site) -> None:
    assert site.json("list", "products") == []
    assert site.json("history", "products") == []
    assert "no releases yet" in site.run("list", "products").stderr
    assert "nothing is live" in site.run("verify", "products", code=2).stderr
    assert "no release" in site.run("show", "products", "1", code=2).stderr
    for reading in (("prune", "--dry-run"), ("verify", "--all"), ("history",), ("history", "--verify")):
        told = site.run(reading[0], "products", *reading[1:])
        assert told.stdout == ""
        assert str(site.deploy) in told.stderr
    assert not site.deploy.exists()


def test_reading_needs_no_permission_to_write(deployed: Site) -> None:
    root = deployed.config.parent
    subprocess.run(["chmod", "-R", "a-w", str(root)], check=True)
    # Root may write everywhere: without its capabilities it is like anybody else
    plain = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if os.geteuid() == 0 else []
    try:
        with pytest.raises(subprocess.CalledProcessError):
            subprocess.run(
                [*plain, "touch", str(deployed.deploy / "x")], check=True, stderr=subprocess.DEVNULL
            )
        for arguments in (
            ("list", "products"),
            ("show", "products", "1"),
            ("history", "products"),
            ("history", "products", "--verify"),
            ("verify", "products"),
            ("prune", "products", "--dry-run"),
        ):
            done = subprocess.run(
                [*plain, *command("-c", deployed.config, *arguments)],
                capture_output=True, text=True, check=False, timeout=120, env=ENVIRONMENT,
            )  # fmt: skip
            assert done.returncode == 0, (arguments, done.stderr)
        refused = subprocess.run(
            [*plain, *command("-c", deployed.config, "rollback", "products")],
            capture_output=True, text=True, check=False, timeout=120, env=ENVIRONMENT,
        )  # fmt: skip
        assert refused.returncode == 1
        assert "Permission denied; run it as the daemon's user" in refused.stderr
        assert "Traceback" not in refused.stderr
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(root)], check=True)


def test_show_prints_the_manifest(deployed: Site) -> None:
    raw = deployed.run("show", "products", "@0", "--json").stdout
    assert raw == (deployed.deploy / "current" / "release.json").read_text()
    readable = deployed.run("show", "products", "2").stdout
    manifest = json.loads(raw)
    for text in (
        manifest["id"],
        "(live)",
        manifest["model_sha256"],
        *manifest["labels"],
        "spancat/model",
        "structure passed",
    ):
        assert text in readable


def test_rollback_and_history(deployed: Site) -> None:
    newest, oldest = (entry["id"] for entry in deployed.json("list", "products"))
    rolled_back = deployed.json("rollback", "products")
    assert (rolled_back["release"], rolled_back["previous_release"]) == (oldest, newest)
    assert rolled_back["trigger"] == "rollback"
    assert (deployed.deploy / "current").resolve().name == oldest
    assert deployed.run("rollback", "products", newest).stdout.strip() == newest
    nothing_left = deployed.run("rollback", "products", newest, code=2)
    assert "is live already" in nothing_left.stderr

    spans = deployed.json("history", "products")
    assert [span["release"] for span in spans] == [newest, oldest, newest, oldest]
    assert spans[0]["live_until"] is None
    for later, earlier in pairwise(spans):
        assert earlier["live_until"] == later["live_from"]
    assert deployed.run("history", "products", "--at", spans[2]["live_from"]).stdout.strip() == newest
    at = deployed.json("history", "products", "--at", spans[1]["live_from"])
    assert at == spans[1]
    before = deployed.run("history", "products", "--at", "1d", code=1)
    assert "nothing was live" in before.stderr
    assert deployed.run("history", "products", "--at", "soon", code=2).stdout == ""
    assert len(deployed.run("history", "products").stdout.splitlines()) == 5


def test_history_verify_finds_a_changed_record_and_a_moved_link(deployed: Site) -> None:
    good = deployed.json("history", "products", "--verify")
    assert good["findings"] == []
    assert good["records"] == 4

    current = deployed.deploy / "current"
    oldest = deployed.json("list", "products")[1]["path"]
    before = current.readlink()
    current.unlink()
    current.symlink_to(oldest)
    moved = deployed.json("history", "products", "--verify", code=4)
    assert len(moved["findings"]) == 1
    assert "current leads to" in moved["findings"][0]
    current.unlink()
    current.symlink_to(before)

    history = deployed.deploy / ".spancat-daemon" / "history.jsonl"
    history.write_text(history.read_text().replace('"trigger":"manual"', '"trigger":"change"', 1))
    changed = deployed.run("history", "products", "--verify", code=4)
    assert changed.stdout.startswith("line ")


def test_verify_finds_a_changed_byte(deployed: Site) -> None:
    results = deployed.json("verify", "products", "--all")
    assert [result["ok"] for result in results] == [True, True]
    assert all(result["load"]["spacy"] for result in results)
    assert deployed.json("verify", "products")[0]["id"] == (deployed.deploy / "current").resolve().name

    model = deployed.deploy / "current" / "spancat" / "model"
    model.chmod(0o644)
    with model.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([file.read(1)[0] ^ 1]))
    results = deployed.json("verify", "products", "--all", code=4)
    assert [result["ok"] for result in results] == [False, True]
    assert {finding["path"] for finding in results[0]["digests"]} >= {"spancat/model"}
    told = deployed.run("verify", "products", code=4)
    assert "`rollback` makes another live" in told.stderr
    assert "WRONG" in told.stdout
    assert "spancat/model" in told.stdout
    deployed.run("verify", "products", "1", "--all", code=2)


def test_verify_all_tells_of_a_damaged_manifest(deployed: Site) -> None:
    oldest = Path(deployed.json("list", "products")[1]["path"])
    (oldest / "release.json").chmod(0o644)
    (oldest / "release.json").write_text("{")
    results = deployed.json("verify", "products", "--all", code=4)
    assert [(result["id"], result["ok"]) for result in results][-1] == (oldest.name, False)
    listed = deployed.run("list", "products")
    assert listed.stderr.count(oldest.name) == 1
    assert oldest.name not in listed.stdout


def test_prune_says_what_goes_and_why_the_rest_stays(deployed: Site) -> None:
    deployed.run("pin", "products", "1")
    for generation in (2, 3):
        deployed.write(generation)
        deployed.snapshot()
    deployed.run("unpin", "products", "1")
    planned = deployed.json("prune", "products", "--dry-run")
    assert [bool(verdict["kept_because"]) for verdict in planned] == [True, True, False]
    assert len(deployed.json("list", "products")) == 3
    told = deployed.run("prune", "products", "--dry-run").stdout
    assert told.splitlines()[-1].split()[1:3] == ["would", "go"]
    pruned = deployed.json("prune", "products")
    assert [verdict["pruned"] for verdict in pruned] == [False, False, True]
    assert [entry["id"] for entry in deployed.json("list", "products")] == [pruned[0]["id"], pruned[1]["id"]]
    assert not (deployed.deploy / "releases" / pruned[2]["id"]).exists()


def test_a_held_folder_says_who_holds_it(deployed: Site) -> None:
    script = (
        "import sys; from pathlib import Path; from spancat_daemon.release.folder import DeploymentFolder\n"
        "with DeploymentFolder(Path(sys.argv[1])).lock('a test'):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(deployed.deploy)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            refused = deployed.run("rollback", "products", code=1)
            assert f"pid {holder.pid}" in refused.stderr
            assert len(deployed.json("list", "products")) == 2
        finally:
            holder.terminate()


def test_what_needs_a_daemon_exits_3_without_one(deployed: Site) -> None:
    assert deployed.run("reload", code=3).stdout == ""
    status = deployed.json("status", code=3)
    assert status["daemon"] is None
    (rule,) = status["rules"]
    assert rule["rule"] == "products"
    assert rule["live"] == (deployed.deploy / "current").resolve().name
    assert rule["releases"] == 2
    readable = deployed.run("status", code=3)
    assert rule["live"] in readable.stdout
    assert "no daemon" in readable.stderr


def test_list_shows_the_newest_of_many_and_json_all(site: Site) -> None:
    many.releases(site.deploy, 60)
    for path in (site.deploy / "releases").glob("000003-*"):
        path.joinpath("release.json").unlink()
    shown = site.run("list", "products")
    ids = [line.split("*")[-1].split()[0] for line in shown.stdout.splitlines()[1:]]
    assert [int(name[:6]) for name in ids] == list(range(60, 10, -1))
    assert "and 10 older releases: `list products --all` shows them" in shown.stderr
    assert "000003-" not in shown.stderr
    everything = site.run("list", "products", "--all")
    assert "older" not in everything.stderr
    assert "000003-" in everything.stderr
    assert everything.stdout.splitlines()[:51] == shown.stdout.splitlines()
    assert len(everything.stdout.splitlines()) == len(site.json("list", "products")) + 1 == 60
    rolled_back = f"releases/{next((site.deploy / 'releases').glob('000002-*')).name}"
    (site.deploy / "current").unlink()
    (site.deploy / "current").symlink_to(rolled_back)
    assert "which is live, is one of them" in site.run("list", "products").stderr


@pytest.mark.parametrize("line", ["best = 3", 'within = "1d"', "hourly = 4"])
def test_the_newest_are_kept_for_the_same_reasons_as_among_all(line: str, site: Site) -> None:
    many.releases(site.deploy, 60)
    with site.config.open("a") as config:
        config.write(line)
    shown = site.run("list", "products").stdout.splitlines()
    assert shown == site.run("list", "products", "--all").stdout.splitlines()[:51]


def test_status_keeps_the_order_of_the_configuration_and_of_names(site: Site) -> None:
    site.config.write_text('[[watch]]\nname = "zoo"\nsource = "runs/*/model-best"\ndeploy = "models/{1}"\n')
    assert "no checkpoint is there yet" in site.run("status", code=3).stderr
    for name in ("b", "a"):
        (site.checkpoint.parent / name / "model-best").mkdir(parents=True)
    with site.config.open("a") as config:
        config.write('[[watch]]\nname = "ant"\nsource = "model-best"\ndeploy = "ant"\n')
    assert [rule["rule"] for rule in site.json("status", code=3)["rules"]] == ["zoo/a", "zoo/b", "ant"]


def test_status_does_not_take_what_it_can_not_read_for_nothing(deployed: Site) -> None:
    history = deployed.deploy / ".spancat-daemon" / "history.jsonl"
    history.unlink()
    history.mkdir()
    told = deployed.run("status", code=3).stdout
    row = told.splitlines()[1]
    assert "unknown" in row
    assert "nothing" not in row
    assert f"{history}: is not a regular file" in told


def test_status_of_a_daemon_that_does_not_answer_tells_what_is_live(deployed: Site) -> None:
    (deployed.config.parent / "var").mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(deployed.config.parent / "var" / "control.sock"))
        other.listen()
        threading.Thread(target=_hang_up, args=(other,), daemon=True).start()
        status = deployed.run("status", code=1)
    assert (deployed.deploy / "current").resolve().name in status.stdout
    assert "control.sock" in status.stderr


def _hang_up(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    connection.close()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_fault(deployed: Site, closed: str) -> None:
    script = f'"$@" {closed}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *command("-c", deployed.config, "list", "products")],
        capture_output=True, text=True, check=False, timeout=120, env=ENVIRONMENT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_not_blamed_on_the_log(deployed: Site) -> None:
    log = deployed.config.parent / "daemon.log"
    log.write_text('{"event": "daemon.ready"}\n')
    deployed.config.write_text(f'[log]\nfile = "{log}"\n' + deployed.config.read_text())
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command("-c", deployed.config, "logs"),
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120, env=ENVIRONMENT,
        )  # fmt: skip
    assert done.returncode == 1
    assert "output can't be written: No space left" in done.stderr


def test_a_log_in_which_nothing_matches_says_so(deployed: Site) -> None:
    log = deployed.config.parent / "daemon.log"
    log.write_text('{"event": "daemon.ready"}\n')
    deployed.config.write_text(f'[log]\nfile = "{log}"\n' + deployed.config.read_text())
    assert deployed.run("logs").stderr == ""
    for selection in (("--rule", "nope"), ("--event", "nope")):
        silent = deployed.run("logs", *selection)
        assert silent.stdout == ""
        assert f"{log}: nothing in it is of that rule and event" in silent.stderr


def test_help_names_arguments_as_the_readme_does(site: Site) -> None:
    assert "[RELEASE]\n" in site.run("rollback", "--help").stdout
    assert "[RELEASE]...\n" in site.run("verify", "--help").stdout
    assert "--lines N" in site.run("logs", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("list", "product"), "products"),
        (("list",), "RULE"),
        (("lst", "products"), "list"),
        (("list", "products", "--jsn"), "--json"),
        (("history", "products", "--at", "1h", "--verify"), "don't go together"),
    ],
)
def test_usage_errors_exit_2_and_help(site: Site, arguments: tuple[str, ...], told: str) -> None:
    done = site.run(*arguments, code=2)
    assert done.stdout == ""
    assert told in done.stderr


def test_a_wrong_configuration_exits_2_with_its_places(site: Site) -> None:
    site.config.write_text('[[watch]]\nname = "products"\nsorce = "a"\ndeploy = "b"\n')
    done = site.run("list", "products", code=2)
    assert "daemon.toml:3:1" in done.stderr
    assert "source" in done.stderr
    site.config.unlink()
    assert "daemon.toml" in site.run("list", "products", code=2).stderr


def test_a_reader_that_goes_away_ends_it_quietly(deployed: Site) -> None:
    with start(deployed, "show", "products", "1") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def test_logs_are_read_from_a_file_or_standard_input_without_any_configuration(tmp_path: Path) -> None:
    line = (
        '{"timestamp":"2026-11-22T11:30:45Z","level":"info","event":"snapshot.unchanged","rule":"products"}\n'
    )
    (tmp_path / "old.log").write_text(line)
    for source, given in (("old.log", ""), ("-", line)):
        done = subprocess.run(
            command("logs", source),
            check=False,
            input=given,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=ENVIRONMENT,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "snapshot.unchanged products" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act in another user's folder")
def test_root_leaves_no_files_in_another_users_folder(site: Site) -> None:
    site.write(0)
    site.deploy.mkdir()
    shutil.chown(site.deploy, "nobody")
    refused = site.run("snapshot", "products", code=2)
    assert "belongs to nobody" in refused.stderr
    assert "runuser -u nobody -- spancat-daemon snapshot" in refused.stderr
    assert not list(site.deploy.iterdir())
    site.run("list", "products")  # reading is no matter
