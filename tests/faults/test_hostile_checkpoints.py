"""Checkpoints that try to get out, to show a secret, to take the memory or to write on a terminal."""

from __future__ import annotations

import json
import os
import pty
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from spancat_daemon.checkpoint.tree import Source
from spancat_daemon.errors import Moved, Rejected, Vanished
from tests.faults.judge import generation, judge, live
from tests.faults.report import tally
from tests.pipelines import build
from tests.service import ROOT, Daemon, command, configure, run

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET: Final = b"the secret of another user"
REFUSED: Final = "refused in one line, nothing outside is read or changed, the live release stays"
NOBODY: Final = 65534
IS_ROOT: Final = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="other users and devices need root")

_MOST_RSS_MB: Final = 200  # of a process that has 60 when it does nothing, and reads 18 MB twice at the most
_BATCH: Final = "import os\nfor n in range({n}): os.close(os.open(f'{{n}}', os.O_CREAT | os.O_WRONLY))"
_SWAP: Final = """
import os, sys
from itertools import count
for n in count():
    os.symlink(sys.argv[2], "link")
    os.rename("link", sys.argv[1])  # a link to the secret
    os.link("whole", "again")
    os.rename("again", sys.argv[1])  # and the file itself
"""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a release, and a checkpoint beside it that differs from it."""
    folder = tmp_path_factory.mktemp("deployed")
    build("default", folder / "runs/model-best")
    first = run("snapshot", "products", config=configure(folder))
    assert first.returncode == 0, first.stderr
    shutil.rmtree(folder / "runs/model-best")
    build("default", folder / "runs/model-best", generation=1)
    return folder


@pytest.fixture
def folder(in_memory: Path, deployed: Path) -> Path:
    """Its copy."""
    subprocess.run(["cp", "-a", f"{deployed}/.", in_memory], check=True)
    return in_memory


def refused(folder: Path, *, because: str) -> None:
    before = live(folder / "models/products")
    done = run("snapshot", "products", "--force", config=folder / "daemon.toml")
    assert done.returncode == 1, done.stdout
    assert because in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.replace("\n", "").isprintable()
    assert live(folder / "models/products") == before
    assert judge(folder / "models/products") == []


def released_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in (folder / "models").rglob("*") if path.is_file())


@needs_root
def test_a_hard_link_to_the_secret_of_another_user(folder: Path) -> None:
    checkpoint = folder / "runs/model-best"
    for path in (checkpoint, *checkpoint.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    secret = folder / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    (checkpoint / "notes").hardlink_to(secret)
    refused(folder, because="hard link to a file of another user")
    assert SECRET not in released_bytes(folder)
    secret.chmod(0o644)  # what everybody may read is no secret: others link whole trees
    assert run("snapshot", "products", config=folder / "daemon.toml").returncode == 0
    tally("hard link to the secret of another user", 1, REFUSED)


@needs_root
def test_the_system_forbids_such_links_in_the_first_place(folder: Path) -> None:
    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "1":
        pytest.skip("fs.protected_hardlinks is off here")
    secret = folder / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    folder.chmod(0o777)
    done = subprocess.run(
        ["setpriv", "--reuid=nobody", "--clear-groups", "ln", secret, folder / "mine"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Operation not permitted" in done.stderr


def races(folder: Path, rounds: int) -> int:
    """Read a file of a checkpoint that another process swaps for a link, at least so often, and until it met
    both its bytes and the gap that catches who looks first and then opens by name; returns how often."""
    checkpoint = folder / "runs/model-best"
    secret = folder / "secret"
    secret.write_bytes(SECRET)
    (checkpoint / "whole").write_bytes(b"its own bytes")
    swapping = subprocess.Popen([sys.executable, "-c", _SWAP, "model", secret], cwd=checkpoint)
    read = followed = tried = 0
    try:
        while tried < rounds or not followed or not read:
            assert tried < 1000 * rounds, "the attack never met the gap"
            tried += 1
            try:
                with Source.open(checkpoint) as source:
                    tree = source.scan()
                    if "model" in tree.by_path:
                        followed += (checkpoint / "model").read_bytes() == SECRET
                        assert source.read_small(tree.by_path["model"]) == b"its own bytes"
                        read += 1
            except (FileNotFoundError, Moved, Rejected, Vanished):
                pass
        assert swapping.poll() is None
    finally:
        swapping.kill()
        swapping.wait()
    return tried


def test_links_that_are_swapped_in_between_check_and_open(folder: Path) -> None:
    tally("links swapped in between the check and the opening", races(folder, 1_500), "no link is followed")


@pytest.mark.exhaustive
def test_links_that_are_swapped_in_all_the_time(folder: Path) -> None:
    tally("links swapped in between the check and the opening", races(folder, 50_000), "no link is followed")


@pytest.mark.exhaustive
def test_links_that_are_swapped_in_under_the_daemon(folder: Path) -> None:
    checkpoint, secret = folder / "runs/model-best", folder / "secret"
    model = checkpoint / "spancat/model"
    secret.write_bytes(SECRET + model.read_bytes())
    shutil.copy2(model, checkpoint / "spancat/whole")
    whole = [generation(checkpoint)]
    swapping = subprocess.Popen([sys.executable, "-c", _SWAP, "model", secret], cwd=checkpoint / "spancat")
    try:
        for _ in range(30):
            done = run("snapshot", "products", "--force", config=folder / "daemon.toml")
            assert "Traceback" not in done.stderr
    finally:
        swapping.kill()
        swapping.wait()
    assert SECRET not in released_bytes(folder)
    assert judge(folder / "models/products") == [], whole
    tally("links swapped in under a snapshot", 30, "no link is followed")


# A process begins with what the one that started it had at most, so a small one has to (getrusage(2)).
_PEAK: Final = (
    "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], capture_output=True); "
    "assert done.returncode == 1, done; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)"
)


def snapshot_peak_mb(folder: Path) -> int:
    """The most memory of a `snapshot` that is refused."""
    snapshot = command("-c", folder / "daemon.toml", "snapshot", "products")
    done = subprocess.run(
        [sys.executable, "-S", "-c", _PEAK, *snapshot], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def many_files(folder: Path, number: int) -> None:
    many = folder / "runs/model-best/many"
    many.mkdir()
    subprocess.run([sys.executable, "-c", _BATCH.format(n=number)], cwd=many, check=True)
    assert snapshot_peak_mb(folder) < _MOST_RSS_MB
    refused(folder, because="more than 10,000 files")
    tally(
        "a checkpoint of very many files", number, "refused in bounded time and memory, whatever their number"
    )


@pytest.mark.exhaustive
def test_a_hundred_thousand_files(folder: Path) -> None:
    many_files(folder, 100_000)


@pytest.mark.exhaustive
def test_a_million_files(folder: Path) -> None:
    many_files(folder, 1_000_000)
    believing = (
        "import resource, sys; from pathlib import Path; from spancat_daemon.checkpoint import tree; "
        "tree.MAX_FILES = 1 << 40; tree.Source.open(Path(sys.argv[1])).scan(); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)"
    )
    unprotected = subprocess.run(
        [sys.executable, "-c", believing, folder / "runs/model-best"],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert int(unprotected.stdout) > _MOST_RSS_MB


def test_folders_in_folders_beyond_any_path(folder: Path) -> None:
    dig = "import os\nfor _ in range(3000):\n    os.mkdir('deep'); os.chdir('deep')"
    subprocess.run([sys.executable, "-c", dig], cwd=folder / "runs/model-best", check=True)
    refused(folder, because="nested deeper than 16")
    tally("folders in folders beyond any path", 3_000, REFUSED)
    subprocess.run(["rm", "-rf", folder / "runs/model-best/deep"], check=True)


def test_sparse_terabytes(folder: Path) -> None:
    with (folder / "runs/model-best/huge").open("wb") as huge:
        huge.truncate(4 << 40)
    assert snapshot_peak_mb(folder) < _MOST_RSS_MB
    refused(folder, because="free")
    tally("sparse files of terabytes", 1, REFUSED)


@pytest.mark.exhaustive
def test_lists_in_meta_json_that_would_take_gigabytes(folder: Path) -> None:
    path = folder / "runs/model-best/meta.json"
    status = path.stat()
    path.write_bytes(b'{"performance":[' + b"[]," * 6_000_000 + b"1]}")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert snapshot_peak_mb(folder) < _MOST_RSS_MB
    refused(folder, because="more than 2,000,000 values")
    tally("small files that would take gigabytes to read", 1, "refused, in bounded memory")


def test_rights_and_attributes_are_not_taken_over(folder: Path) -> None:
    checkpoint = folder / "runs/model-best"
    for path in (checkpoint / "spancat/model", checkpoint / "tokenizer"):
        path.chmod(0o6777)
        try:
            os.setxattr(path, "user.hostile", b"x")
            # acl(5): version 2, and one entry that gives `nobody` all rights
            acl = bytes.fromhex("02000000" "01000700ffffffff" "02000700feff0000" "04000700ffffffff"
                                "10000700ffffffff" "20000700ffffffff")  # fmt: skip
            os.setxattr(path, "system.posix_acl_access", acl)
        except OSError as error:
            pytest.skip(f"attributes can't be set in {folder}: {error.strerror}")
    done = run("snapshot", "products", config=folder / "daemon.toml")
    assert done.returncode == 0, done.stderr
    current = (folder / "models/products/current").resolve()
    for path in (current, *current.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) in {0o444, 0o755, 0o555}, path
        assert not os.listxattr(path), path
    assert judge(folder / "models/products") == []
    tally("set-uid bits, ACLs and attributes on a checkpoint", 2, "none of it gets into a release")


ODD: Final = "a\n\x1b[31mred\x1b[0m\u202etfel\x07"


@pytest.fixture(scope="module")
def oddly_named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose live release has labels, scores and a key that write on terminals."""
    folder = tmp_path_factory.mktemp("odd")
    checkpoint = build("default", folder / "runs/model-best")
    changes: dict[str, Callable[[Any], Any]] = {"spancat/cfg": odd_cfg, "meta.json": odd_meta}
    for name, change in changes.items():
        path = checkpoint / name
        status = path.stat()
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    config = configure(folder)
    config.write_text(config.read_text() + f'[log]\nfile = "{folder}/log.jsonl"\n')
    with Daemon(config) as daemon:
        daemon.wait_for("release.published")
        done = run("snapshot", "products", "--force", config=config)
        assert done.returncode == 0, done.stderr
    return folder


def odd_cfg(cfg: dict[str, list[str] | str]) -> dict[str, list[str] | str]:
    labels = cfg["labels"]
    assert isinstance(labels, list)
    return {**cfg, "labels": [ODD, *labels[1:]], "spans_key": ODD}


def odd_meta(meta: dict[str, dict[str, object]]) -> dict[str, object]:
    labels = meta["labels"]["spancat"]
    assert isinstance(labels, list)
    scores = {**meta["performance"], ODD: 0.5}
    return {**meta, "labels": {**meta["labels"], "spancat": [ODD, *labels[1:]]}, "performance": scores}


SHOWING: Final = [
    ("list", "products"), ("show", "products", "@0"), ("status",), ("check",), ("history", "products"),
    ("logs",), ("verify", "products"), ("prune", "products", "--dry-run"),
]  # fmt: skip


@pytest.mark.parametrize("arguments", [("list", "products"), ("logs",), ("status",)], ids=" ".join)
def test_names_write_on_no_terminal(oddly_named: Path, arguments: tuple[str, ...]) -> None:
    shown_as_text(oddly_named, arguments, terminal=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("arguments", SHOWING, ids=" ".join)
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_names_write_nowhere(oddly_named: Path, arguments: tuple[str, ...], *, terminal: bool) -> None:
    shown_as_text(oddly_named, arguments, terminal=terminal)


def shown_as_text(oddly_named: Path, arguments: tuple[str, ...], *, terminal: bool) -> None:
    config = oddly_named / "daemon.toml"
    said = on_terminal(config, arguments) if terminal else run(*arguments, config=config).stdout
    assert said
    for bad in ("\x1b[31mred", "\x07", "\u202e"):
        assert bad not in said, said
    assert "Traceback" not in said
    tally("labels, scores and keys of escape sequences, shown by each command", 1, "shown as text")


def on_terminal(config: Path, arguments: tuple[str, ...]) -> str:
    """What a command writes on a terminal."""
    ours, theirs = pty.openpty()
    said = bytearray()

    def listen() -> None:
        try:
            while chunk := os.read(ours, 1 << 16):
                said.extend(chunk)
        except OSError:  # EIO: nobody has it open any more
            pass

    reader = threading.Thread(target=listen)
    reader.start()
    try:
        subprocess.run(
            command("-c", config, *arguments),
            stdin=theirs, stdout=theirs, stderr=theirs, check=False, timeout=120, cwd=ROOT,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
        )  # fmt: skip
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)
    return said.decode()


def climbing(checkpoint: Path, name: str) -> None:
    path = checkpoint / "config.cfg"
    status = path.stat()
    text = path.read_text().replace('"tok2vec","spancat"', f'{json.dumps(name)},"spancat"')
    path.write_text(text.replace("[components.tok2vec", f"[components.{name}"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


OUTSIDE: Final = [
    pytest.param("../../secret", id="climbs"),
    pytest.param("a\0b", id="NUL"),
    pytest.param("..", id="parent", marks=pytest.mark.exhaustive),
    pytest.param(".", id="itself", marks=pytest.mark.exhaustive),
    pytest.param("/etc/passwd", id="absolute", marks=pytest.mark.exhaustive),
    pytest.param("a\nb", id="newline", marks=pytest.mark.exhaustive),
    pytest.param("\x1b[31m", id="ANSI", marks=pytest.mark.exhaustive),
    pytest.param("\u202ex", id="bidi", marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_component_names_that_lead_elsewhere(folder: Path, name: str) -> None:
    climbing(folder / "runs/model-best", name)
    refused(folder, because="config.cfg")
    tally("names of components that lead elsewhere", 1, REFUSED)


def spool_of(folder: Path, change: Callable[[dict[str, object], Path], str]) -> str:
    """A spool with one entry that is changed; returns the entry's name."""
    import hashlib  # noqa: PLC0415

    name = "20261122T113045.000000Z-000000003-77"
    entry = folder / "runs/spool/new" / name
    entry.parent.mkdir(parents=True)
    (folder / "runs/model-best").rename(entry)
    files: dict[str, object] = {
        str(path.relative_to(entry)): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in entry.rglob("*")
        if path.is_file()
    }
    because = change(files, entry)
    told = {"schema": 1, "step": 3, "time": "2026-11-22T11:30:45Z", "files": files}
    (entry / "entry.json").write_text(json.dumps(told))
    configure(folder, source="runs/spool", writer="spool")
    return because


def climbs(files: dict[str, object], entry: Path) -> str:
    files["../../../../secret"] = {"sha256": "0" * 64, "bytes": 1}
    return "secret"


def absolute(files: dict[str, object], entry: Path) -> str:
    files["/etc/passwd"] = {"sha256": "0" * 64, "bytes": 1}
    return "etc/passwd"


def escapes(files: dict[str, object], entry: Path) -> str:
    files["a\0\n\x1b[31m"] = {"sha256": "0" * 64, "bytes": 1}
    return "x1b"


def is_a_link(files: dict[str, object], entry: Path) -> str:
    elsewhere = entry.parents[2] / "elsewhere"
    entry.rename(elsewhere)
    entry.symlink_to(elsewhere)
    return "links are not followed"


SPOILT: Final = [
    is_a_link,
    pytest.param(climbs, marks=pytest.mark.exhaustive),
    pytest.param(absolute, marks=pytest.mark.exhaustive),
    pytest.param(escapes, marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize("change", SPOILT)
def test_entries_of_a_spool_that_lead_elsewhere(
    folder: Path, change: Callable[[dict[str, object], Path], str]
) -> None:
    refused(folder, because=spool_of(folder, change))
    tally("entries of a spool that lead elsewhere", 1, REFUSED)


@needs_root
def test_an_unprivileged_daemon_and_the_checkpoint_of_another_user() -> None:
    """It publishes what it may read, names what it may not, and goes on with its other rule."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:  # a fresh folder in it
        folder = Path(name)
        folder.chmod(0o755)
        other = build("default", folder / "other/model-best")
        checkpoint = build("default", folder / "runs/model-best")
        for theirs in ("models", "var"):
            (folder / theirs).mkdir()
            os.chown(folder / theirs, NOBODY, NOBODY)
        more = '[[watch]]\nname = "others"\nsource = "other/model-best"\ndeploy = "models/others"\n'
        config = configure(folder, rules=more + 'verify = { level = "structure" }\n')
        daemon = Daemon(config)
        as_nobody(daemon)
        with daemon:
            daemon.wait_for("release.published", count=2)
            fresh = build("default", folder / "next", generation=1)
            (fresh / "tok2vec/model").chmod(0)
            since = len(daemon.events)
            checkpoint.rename(folder / "old")
            fresh.rename(checkpoint)
            (said,) = daemon.wait_for("snapshot.rejected", since=since)
            assert "Permission denied" in said["reason"]
            assert said["path"].endswith("tok2vec/model")
            other.rename(folder / "older")
            build("default", folder / "fresh", generation=1).rename(other)
            daemon.wait_for("release.overwrite", since=since)
        for rule in ("products", "others"):
            assert judge(folder / "models" / rule) == []
        assert {path.stat().st_uid for path in checkpoint.rglob("*")} == {0}
    tally(
        "an unprivileged daemon, the checkpoint another user's",
        1,
        "publishes what it may read, names the rest",
    )


def as_nobody(daemon: Daemon) -> None:
    """Let a daemon of the tests run as another user."""
    from tests import service  # noqa: PLC0415

    real = service.command
    python = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
    original = daemon.start

    def start(*, ready: bool = True) -> Daemon:
        service.command = lambda *arguments: [*python, *real(*arguments)]
        try:
            return original(ready=ready)
        finally:
            service.command = real

    daemon.start = start  # type: ignore[method-assign]


@needs_root
def test_files_that_nobody_can_change(tmp_path: Path) -> None:
    checkpoint = build("default", tmp_path / "runs/model-best")
    fixed = [path for path in checkpoint.rglob("*") if path.is_file()]
    done = subprocess.run(["chattr", "+i", *fixed], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"files can't be made immutable here: {done.stderr.strip()[:100]}")
    try:
        config = configure(tmp_path)
        for _ in range(2):
            made = run("snapshot", "products", "--force", config=config)
            assert made.returncode == 0, made.stderr
        assert judge(tmp_path / "models/products", [generation(checkpoint)]) == []
    finally:
        subprocess.run(["chattr", "-i", *fixed], check=True)
    tally("immutable files in a checkpoint", len(fixed), "copied as any others; the copies can be removed")
