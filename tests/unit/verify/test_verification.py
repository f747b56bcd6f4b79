"""What a rule asks of a snapshot, as it is told from what it asked before."""

from __future__ import annotations

import os
from pathlib import Path

from spancat_daemon.config.model import Watch
from spancat_daemon.config.terms import Gate, Verify
from spancat_daemon.verify.verification import terms_of


def watch(folder: Path, *, min_pass: float = 1.0, gate: Gate | None = None) -> Watch:
    verify = Verify.model_construct(probes=folder / "probes.jsonl", gold=None, min_pass=min_pass)
    return Watch.model_construct(
        name="products", source="runs", deploy="models", verify=verify, gate=gate or Gate()
    )


def test_terms_change_with_what_is_asked(tmp_path: Path) -> None:
    # Not UTF-8, as a match of a glob may be called.
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    (folder / "probes.jsonl").write_text('{"text": "Acme"}\n')
    first = terms_of(watch(folder), None)

    assert [probe.text for probe in first.probes] == ["Acme"]
    assert terms_of(watch(folder), None).sha256 == first.sha256
    assert terms_of(watch(folder, min_pass=0.5), None).sha256 != first.sha256
    assert terms_of(watch(folder, gate=Gate(min_step=1)), None).sha256 != first.sha256
    (folder / "probes.jsonl").write_text('{"text": "Acme."}\n')
    assert terms_of(watch(folder), None).sha256 != first.sha256
