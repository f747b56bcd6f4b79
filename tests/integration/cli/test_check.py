"""`check` on what a machine can get wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.pipelines import build
from tests.service import ROOT, command, run
from tests.spooling import Spool


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    path = tmp_path / "daemon.toml"
    path.write_text(
        '[daemon]\nmin_free = "1MiB"\n'
        '[[watch]]\nname = "products"\nsource = "runs/model-best"\ndeploy = "models"\n'
    )
    return path


def check(config: Path, code: int) -> list[dict[str, Any]]:
    done = run("check", "--json", config=config)
    assert done.returncode == code, done.stderr + done.stdout
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def bad(config: Path) -> list[tuple[str, str, str]]:
    """Level, subject and text of what `check` finds, which must be something."""
    return [
        (finding["level"], finding["about"], finding["text"])
        for finding in check(config, 4)
        if finding["level"] != "ok"
    ]


def put(config: Path, old: str, new: str) -> None:
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))


def test_a_good_machine_is_all_ok_and_left_alone(config: Path) -> None:
    before = sorted(config.parent.rglob("*"))
    assert {finding["level"] for finding in check(config, 0)} == {"ok"}
    done = run("check", config=config)
    assert done.returncode == 0
    assert all(line.startswith("ok ") for line in done.stdout.splitlines())
    assert "all well" in done.stderr
    assert sorted(config.parent.rglob("*")) == before


def test_the_shipped_configuration_fits_the_schema(config: Path) -> None:
    done = run("check", "--schema", config=config)
    schema = json.loads(done.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert "watch" in schema["properties"]


def test_the_schema_needs_no_configuration(tmp_path: Path) -> None:
    assert run("check", "--schema", config=tmp_path / "absent.toml").returncode == 0


def test_a_source_folder_that_is_not_there_is_a_warning(config: Path) -> None:
    put(config, "runs/model-best", "rnus/model-best")
    ((level, about, text),) = bad(config)
    assert (level, about) == ("warning", "products")
    assert "rnus" in text


def test_a_spool_is_looked_at_as_one(config: Path, tmp_path: Path) -> None:
    put(config, "model-best", "spool")
    put(config, "deploy", 'writer = "spool"\ngate = { min_step = 400 }\ndeploy')
    check(config, 0)  # a training makes it
    spool = Spool(tmp_path / "runs/spool")
    spool.put(build("default", tmp_path / "pipeline"), 100)
    found = check(config, 0)
    put(config, 'writer = "spool"\n', "")
    (told, *_) = bad(config)
    assert told[0] == "error"
    assert "no pipeline but a folder 'new', as a spool does" in told[2]
    (watches,) = [finding["text"] for finding in found if finding["about"] == "inotify"]
    # new/, the entry, spancat/, tok2vec/ and vocab/, and all folders above
    assert watches.startswith(f"{len(spool.new.parts) + 5} directories to watch")


def test_a_pipeline_where_a_spool_is_meant(config: Path, tmp_path: Path) -> None:
    put(config, "runs/model-best", "runs/mine")
    put(config, "deploy", 'writer = "spool"\ndeploy')
    build("default", tmp_path / "runs/mine")
    ((level, about, text),) = bad(config)
    assert (level, about) == ("error", "products")
    assert "holds a pipeline and is no spool" in text


def test_an_unusable_deployment_folder(config: Path) -> None:
    (config.parent / "models").write_text("")
    ((level, about, text),) = bad(config)
    assert (level, about) == ("error", "products")
    assert "not a directory" in text


def test_too_little_space(config: Path) -> None:
    put(config, '"1MiB"', '"900TiB"')
    ((level, about, text),) = bad(config)
    assert (level, about) == ("error", "products")
    assert "free" in text


def test_a_socket_path_that_is_taken(config: Path) -> None:
    put(config, "[daemon]", '[daemon]\ncontrol_socket = "taken"')
    taken = config.parent / "taken"
    taken.write_text("mine")
    ((level, about, text),) = bad(config)
    assert (level, about) == ("error", "daemon.control_socket")
    assert "not a socket" in text
    taken.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(taken))
        check(config, 0)


def test_a_log_file_that_can_not_be_written(config: Path) -> None:
    config.write_text('[log]\nfile = "log"\n' + config.read_text())
    check(config, 0)
    (config.parent / "log").mkdir()
    ((level, about, text),) = bad(config)
    assert (level, about) == ("error", "log.file")
    assert "not a file" in text


def test_a_limit_of_watches_below_the_number_of_directories(config: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text(encoding="ascii"))
    (told,) = [finding for finding in check(config, 0) if finding["about"] == "inotify"]
    assert str(limit) in told["text"]


def test_configuration_errors_exit_2(config: Path) -> None:
    put(config, "deploy", "depoly")
    done = run("check", config=config)
    assert done.returncode == 2
    assert "depoly" in done.stderr
    assert done.stdout == ""


def test_exchange_is_tried_and_leaves_nothing(config: Path) -> None:
    put(config, "[[watch]]", '[[watch]]\nswap = "exchange"')
    (config.parent / "models").mkdir()
    texts = [finding["text"] for finding in check(config, 0)]
    assert any("exchange" in text for text in texts)
    assert list((config.parent / "models").iterdir()) == []


@pytest.mark.root
def test_two_bind_mounts_of_one_file_system_are_found_out(config: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs root, and mount namespaces")
    models = config.parent / "models"
    for name in ("releases", ".spancat-daemon/staging"):
        (models / name).mkdir(parents=True)
    script = (
        f"mount --bind {models}/releases {models}/releases && "
        f'exec "$0" -m spancat_daemon -c {config} check --json'
    )
    assert any("renamed into place" in finding["text"] for finding in check(config, 0))
    python = str(Path(os.path.realpath("/proc/self/exe")))
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, python],
        capture_output=True, text=True, check=False, timeout=120, cwd=config.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_site_packages()])},
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    errors = [finding for finding in json.loads(done.stdout) if finding["level"] == "error"]
    assert len(errors) == 1
    assert "different mounts" in errors[0]["text"]
    assert list((models / ".spancat-daemon" / "staging").iterdir()) == []


def _site_packages() -> list[str]:

    return [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]


@pytest.mark.root
def test_another_user_is_told_what_it_lacks(config: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to take its capabilities away")
    (config.parent / "models").mkdir(mode=0o555)
    best = config.parent / "runs" / "model-best"
    best.mkdir()
    (best / "meta.json").touch(mode=0o000)
    config.parent.chmod(0o755)

    plain = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
    done = subprocess.run(
        [*plain, *command("-c", config, "check", "--json")],
        capture_output=True, text=True, check=False, timeout=120, cwd=config.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    texts = [finding["text"] for finding in json.loads(done.stdout) if finding["level"] == "error"]
    assert any("models can't be written" in text for text in texts)
    assert any("meta.json can't be read" in text for text in texts)


@pytest.mark.root
@pytest.mark.parametrize("source", ["runs/model-best", "runs/*/model-best"])
def test_a_folder_that_can_not_be_looked_into_is_a_finding(config: Path, source: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to take its capabilities away")
    put(config, '"runs/model-best"', f'"{source}"')
    put(config, '"models"', '"models/{1}"' if "*" in source else '"models"')
    closed = config.parent / "runs" / "run-1" if "*" in source else config.parent / "runs"
    closed.mkdir(exist_ok=True)
    (closed / "model-best").mkdir()
    config.parent.chmod(0o755)
    closed.chmod(0o000)
    plain = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
    try:
        done = subprocess.run(
            [*plain, *command("-c", config, "check", "--json")],
            capture_output=True, text=True, check=False, timeout=120, cwd=config.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    finally:
        closed.chmod(0o755)
    assert done.returncode == 4, done.stderr
    texts = [finding["text"] for finding in json.loads(done.stdout) if finding["level"] == "error"]
    assert any(str(closed) in text for text in texts), texts
