"""Publishes on a file system of its own, whose power is cut at random moments; recovers and judges it.

Run as ``unshare --mount python -m tests.faults.power_cut FOLDER KIND CUT CUTS SEED``: what is mounted is
mounted for this process alone, and goes with it however it ends. Prints what came of it as JSON.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from spancat_daemon.release.durability import DURABLE
from tests.faults.crash_states import Relied
from tests.faults.crash_states_judging import FLEETING, recovered_faults
from tests.faults.crash_states_recording import Told
from tests.faults.judge import commits, generation, judge
from tests.faults.loop_device import Kind, Mounted
from tests.faults.power_protocol import Publisher, write_checkpoint

if TYPE_CHECKING:
    from spancat_daemon.release.durability import Durability
    from spancat_daemon.release.swap import Kind as Swap
    from tests.faults.judge import Generation

Cut = Literal["log lost", "log flushed", "image", "image, nothing synced"]
KINDS: Final[dict[str, Kind]] = {
    "ext4": Kind("ext4"),
    "ext4 data=writeback": Kind("ext4", ("data=writeback",)),
    "xfs": Kind("xfs"),
    "btrfs": Kind("btrfs"),
}
_MODEL_BYTES: Final = (600, 600, 1_500_000)  # beyond 1 MiB the kernel copies, and begins to write at once
_MOST_STAGED: Final = 4  # snapshots that a writer begins before its power is cut
_SOON_S: Final = 0.02
_PATIENCE_S: Final = 30
_A_ROUND: Final = 10_000  # more checkpoints than one writer writes before its power is cut


class Campaign:
    """Cuts the power of one file system again and again.

    Attributes:
        found: what was not allowed.
        actions: what recovery did, by its first word.
    """

    def __init__(self, disk: Mounted, work: Path, cut: Cut, seed: int) -> None:
        self.found: list[str] = []
        self.actions: Counter[str] = Counter()
        self._disk = disk
        self._deploy = disk.path / "models" / "products"
        self._work = work
        self._cut = cut
        self._durability: Durability = FLEETING if cut.endswith("nothing synced") else DURABLE
        self._chance = random.Random(seed)  # noqa: S311  # moments, not secrets
        self._relied = Relied()
        self._generations: dict[tuple[int, int], Generation] = {}

    def round(self, number: int) -> None:
        """Let a writer work, cut its power, recover and judge."""
        model_bytes = self._chance.choice(_MODEL_BYTES)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            self._write(writing, number, model_bytes)
        os.close(writing)
        with os.fdopen(reading, "rb") as told:
            heard = [told.readline()]
            staged = self._chance.randint(0, _MOST_STAGED)
            while staged:
                heard.append(told.readline())
                assert heard[-1], "the writer ended, see above"
                staged -= heard[-1].startswith(b'["stages"')
            time.sleep(self._chance.uniform(0, _SOON_S))
            self._cut_power(pid)
            lines = [*heard, *told.read().splitlines(keepends=True)]
        for line in lines:
            if line.endswith(b"\n"):
                self._hear(*json.loads(line), model_bytes=model_bytes)
        generations = list(self._generations.values())
        found = judge(self._deploy, generations, recovered=False) if self._deploy.exists() else []
        # Now and then recovery is left to the next writer, whose power may be cut while it is at it.
        if self._chance.random() < 0.6:
            found += recovered_faults(
                self._deploy, generations, self._relied, durability=DURABLE, did=self.actions
            )
            for record in commits(self._deploy):
                if record["kind"] == "commit":
                    self._relied = self._relied.and_(Told("commit", record["sha256"]))
        self.found += [f"cut {number}: {fault}" for fault in found]

    def _hear(self, what: str, value: str, *, model_bytes: int) -> None:
        self._relied = self._relied.and_(Told(what, value))
        if what == "stages":
            checkpoint = self._work / "generation"
            write_checkpoint(checkpoint, int(value), model_bytes=model_bytes)
            self._generations[int(value), model_bytes] = generation(checkpoint)

    def _write(self, pipe: int, number: int, model_bytes: int) -> None:
        """Publish, and whatever else there is to do, until the power is cut; never returns."""

        def tell(what: str, value: str) -> None:
            os.write(pipe, json.dumps([what, value]).encode() + b"\n")

        try:
            own = random.Random(number)  # noqa: S311  # as above
            tell("starts", str(number))
            publisher = Publisher(
                self._deploy,
                self._work / "checkpoint",
                durability=self._durability,
                told=tell,
                model_bytes=model_bytes,
                first=number * _A_ROUND,
            )
            publisher.start()
            tell("prunes", "end")  # only now: whoever began to may have left recovery to this one
            while True:
                swap: Swap = own.choice(("symlink", "exchange"))
                publisher.publish(swap)
                own.choice(
                    (
                        publisher.prune,
                        publisher.prune,
                        publisher.pin,
                        publisher.unpin,
                        publisher.reject,
                        lambda swap=swap: publisher.rollback(swap),
                    )
                )()
        except BaseException as error:  # noqa: BLE001  # its disk is gone, as a rule
            if not isinstance(error, OSError):
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
            signal.pause()  # until it is killed: it must not tell that it has ended
        os._exit(1)

    def _cut_power(self, pid: int) -> None:
        copy = self._work / "copy"
        if self._cut.startswith("image"):
            os.kill(pid, signal.SIGSTOP)
            _wait_until_stopped(pid)
            deadline = time.monotonic() + _PATIENCE_S
            while not self._disk.copy_image(copy):
                assert time.monotonic() < deadline, "the device never comes to rest"
        else:
            self._disk.shut_down(flush_log=self._cut == "log flushed")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self._disk.unmount()
        if self._cut.startswith("image"):
            self._disk.replace_image(copy)
        self._disk.mount()


def _wait_until_stopped(pid: int) -> None:
    """Until it is in no system call any more."""
    deadline = time.monotonic() + _PATIENCE_S
    while Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline, "it does not stop"
        time.sleep(0.0005)


def cut_power(folder: Path, kind: Kind, cut: Cut, cuts: int, seed: int) -> dict[str, Any]:
    """Cut the power so often; stops at the first thing that is not allowed."""
    with Mounted(folder, kind) as disk, tempfile.TemporaryDirectory(dir=folder) as work:
        campaign = Campaign(disk, Path(work), cut, seed)
        for number in itertools.count(1):
            campaign.round(number)
            if campaign.found or number == cuts:
                break
        with contextlib.suppress(FileNotFoundError):
            made = len(commits(disk.path / "models" / "products"))
        return {"cuts": number, "commits": made, "found": campaign.found, "actions": campaign.actions}


if __name__ == "__main__":
    where, name, how, times, seed_ = sys.argv[1:]
    sys.stdout.write(json.dumps(cut_power(Path(where), KINDS[name], how, int(times), int(seed_))))  # type: ignore[arg-type]
