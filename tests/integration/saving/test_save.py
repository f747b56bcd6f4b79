"""What a notebook does with `save`, and what it may do wrong."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
import spacy
from spacy.language import Language

from spancat_daemon import save
from spancat_daemon.errors import Rejected, SpancatDaemonError, UsageError
from spancat_daemon.release.folder import DeploymentFolder, FolderBusy
from spancat_daemon.release.history import History
from spancat_daemon.release.survey import names_in
from spancat_daemon.saving import publication
from spancat_daemon.saving.interruptible import Work
from tests.faults.judge import commits, judge
from tests.integration.serving.forking import Child
from tests.judgement import sound
from tests.pipelines import build, predictions, texts
from tests.service import Daemon, configure, run, until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from spancat_daemon.release.history import Record


def test_a_pipeline_in_memory_goes_live(
    nlp: Language, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    before = nlp.to_bytes()
    monkeypatch.chdir(tmp_path)
    made = save(nlp, "models/products")
    monkeypatch.chdir("/")
    deploy = tmp_path / "models/products"
    assert predictions(made.path, texts()) == predictions(checkpoint, texts())
    assert nlp.to_bytes() == before
    manifest = made.manifest
    assert (manifest.rule, manifest.trigger, manifest.forced) == ("products", "manual", True)
    assert manifest.verification["level"] == "load"
    assert manifest.source.startswith("save() in ")
    assert "incoming" not in manifest.source
    assert made.live
    assert sound(deploy)["id"] == made.id
    assert capfd.readouterr() == ("", "")


def test_the_weights_are_those_that_it_has_at_the_moment(nlp: Language, deploy: Path) -> None:
    tok2vec: Any = nlp.get_pipe("tok2vec")
    node = next(node for node in tok2vec.model.walk() if node.param_names and node.has_param("W"))
    average = node.get_param("W") * 0
    with nlp.use_params({(node.id, "W"): average}):
        made = save(nlp, deploy, verify="structure")
        averaged = tok2vec.model.to_bytes()
    assert (made.path / "tok2vec/model").read_bytes() == averaged != tok2vec.model.to_bytes()


def _no_pipeline(_nlp: Language) -> Any:
    return "runs/model-best"


def _no_spancat(_nlp: Language) -> Any:
    return spacy.blank("en")


def _untrained(_nlp: Language) -> Any:
    nlp = spacy.blank("en")
    nlp.add_pipe("spancat")
    return nlp


def _without(*names: str) -> Callable[[Language], Any]:
    def disable(nlp: Language) -> Any:
        nlp = spacy.load(nlp.path)
        for name in names:
            nlp.disable_pipe(name)
        return nlp

    return disable


@pytest.mark.parametrize(
    ("made", "settings", "reason"),
    [
        (_no_pipeline, {}, "nlp must be a pipeline of spaCy"),
        (_no_spancat, {}, "has no span categorizer; it has no components"),
        (_untrained, {}, "'spancat' was never initialised"),
        (_without("spancat"), {}, "'spancat' is disabled.*enable_pipe"),
        (_without("tok2vec"), {}, "'tok2vec' is disabled, and 'spancat' listens to it"),
        (None, {"component": "tok2vec"}, "'tok2vec' is no span categorizer.*one of: spancat"),
        (None, {"contents": "everything"}, "contents = 'everything' is none of 'pipeline'"),
        (None, {"verify": "probes"}, "verify = 'probes' is none of"),
        (None, {"keep": {"lust": 5}}, "keep: lust: .*its keys are last, within"),
        (None, {"keep": {"last": -1}}, "keep: last: .*greater than or equal to 0"),
    ],
)
def test_what_is_no_use_is_refused_before_anything_is_made(
    nlp: Language,
    deploy: Path,
    made: Callable[[Language], Any] | None,
    settings: Mapping[str, Any],
    reason: str,
) -> None:
    with pytest.raises((SpancatDaemonError, TypeError), match=reason):
        save(made(nlp) if made else nlp, deploy, **settings)
    assert not deploy.exists()


def test_what_is_no_deployment_folder_stays_as_it_is(nlp: Language, checkpoint: Path, deploy: Path) -> None:
    made = save(nlp, deploy, verify="structure")
    for folder, reason in ((checkpoint, "is a pipeline of spaCy"), (deploy / "current", "is a release")):
        before = names_in(folder)
        with pytest.raises(UsageError, match=reason):
            save(nlp, folder)
        assert names_in(folder) == before
    file, link = deploy.with_name("file"), deploy.with_name("link")
    file.touch()
    link.symlink_to("nowhere")
    for folder in (file, link):
        with pytest.raises(UsageError, match="is not a directory"):
            save(nlp, folder)
    with pytest.raises(SpancatDaemonError, match="Not a directory"):
        save(nlp, file / "below")
    with pytest.raises(SpancatDaemonError, match="File name too long"):
        save(nlp, deploy / ("long" * 100))
    with pytest.raises(UsageError, match="no folder is given"):
        save(nlp, "")
    assert sound(deploy)["id"] == made.id


@pytest.mark.parametrize(
    "part", ["current/vocab", "releases", ".spancat-daemon", ".spancat-daemon/staging/x"]
)
def test_a_deployment_folder_has_none_inside(nlp: Language, deploy: Path, part: str) -> None:
    made = save(nlp, deploy, verify="structure")
    with pytest.raises(SpancatDaemonError, match="lies inside of"):
        save(nlp, deploy / part, verify="structure")
    assert sound(deploy)["id"] == made.id
    assert save(nlp, deploy / "beside", verify="structure").sequence == 1


def test_a_python_that_is_none(nlp: Language, deploy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a web server has Python inside of it."""
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(SpancatDaemonError, match='verify="structure" needs no process'):
        save(nlp, deploy)


def test_two_span_categorizers_need_a_word(tmp_path: Path, deploy: Path) -> None:
    nlp = spacy.load(build("two", tmp_path / "two"))
    with pytest.raises(SpancatDaemonError, match="give `component` one of: spancat, second"):
        save(nlp, deploy)
    assert save(nlp, deploy, component="second", verify="structure").manifest.component == "second"


def test_code_of_this_program_is_what_a_release_can_not_have(checkpoint: Path, deploy: Path) -> None:
    nlp = spacy.load(checkpoint)
    first = save(nlp, deploy, verify="structure")

    @Language.component("made_in_this_program")
    def made_here(doc: Any) -> Any:
        return doc

    nlp.add_pipe("made_in_this_program")
    with pytest.raises(Rejected, match=r"E002.*install that as a package.*verify=\"structure\""):
        save(nlp, deploy)
    assert sound(deploy)["id"] == first.id
    assert "made_in_this_program" in save(nlp, deploy, verify="structure").manifest.pipeline


def test_without_force_what_is_live_stays(nlp: Language, deploy: Path) -> None:
    first = save(nlp, deploy, verify="structure", force=False)
    assert save(nlp, deploy, verify="structure", force=False) == first
    assert save(nlp, deploy, verify="structure").sequence == 2


def test_nothing_goes_that_nobody_said_should_go(nlp: Language, deploy: Path) -> None:
    for _ in range(8):
        save(nlp, deploy, verify="structure")
    assert len(names_in(deploy / "releases")) == 8
    last = save(nlp, deploy, verify="structure", keep={"last": 3})
    # Of equal contents the newest counts; and what was live before stays
    assert [int(name[:6]) for name in names_in(deploy / "releases")] == [last.sequence - 1, last.sequence]


def test_contents_and_kind_of_swap_are_as_they_were(nlp: Language, tmp_path: Path) -> None:
    build("default", tmp_path / "runs/model-best")
    config = configure(tmp_path, contents="component", swap="exchange")
    assert run("snapshot", "products", config=config).returncode == 0
    deploy = tmp_path / "models/products"
    made = save(nlp, deploy, verify="structure")
    assert made.manifest.contents == "component"
    assert made.path == deploy / "current"
    assert not made.path.is_symlink()
    sound(deploy)


def test_weights_that_change_meanwhile_are_of_no_generation(
    checkpoint: Path, deploy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by another thread that trains, whose update comes after tok2vec was written, and before spancat."""
    nlp = spacy.load(checkpoint)
    tok2vec: Any = nlp.get_pipe("tok2vec")
    node = next(node for node in tok2vec.model.walk() if node.param_names and node.has_param("W"))
    write, updates = Language.to_disk, iter([True])

    def writing(self: Language, path: Path) -> None:
        write(self, path)
        if next(updates, False):
            node.set_param("W", node.get_param("W") * 2)

    monkeypatch.setattr(Language, "to_disk", writing)
    with pytest.raises(SpancatDaemonError, match=r"'tok2vec' changed while .*between two updates"):
        save(nlp, deploy, verify="structure")
    assert names_in(deploy / "releases") == names_in(deploy / ".spancat-daemon/incoming") == []
    made = save(nlp, deploy, verify="structure")
    assert (made.path / "tok2vec/model").read_bytes() == tok2vec.model.to_bytes()


def test_others_are_waited_for(nlp: Language, deploy: Path) -> None:
    folder = DeploymentFolder(deploy)
    folder.prepare()
    with folder.lock("a long command"):
        with pytest.raises(FolderBusy, match="a long command"):
            save(nlp, deploy, verify="structure", timeout_s=0)
        assert names_in(folder.incoming_path) == []
        results: list[Any] = []
        saving = threading.Thread(target=lambda: results.append(save(nlp, deploy, verify="structure")))
        saving.start()
        until(lambda: bool(list(folder.incoming_path.glob("*/vocab/lookups.bin"))))
    saving.join(60)
    assert results[0].sequence == 1


def test_an_interrupt_leaves_nothing(nlp: Language, deploy: Path) -> None:
    folder = DeploymentFolder(deploy)
    folder.prepare()

    def interrupt() -> None:
        until(lambda: bool(list(folder.incoming_path.glob("*/vocab/lookups.bin"))))
        os.kill(os.getpid(), signal.SIGINT)

    with folder.lock("a long command"):
        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            save(nlp, deploy, verify="structure")
        interrupting.join()
        assert names_in(folder.incoming_path) == []
    assert save(nlp, deploy, verify="structure").sequence == 1
    sound(deploy)


def test_an_interrupt_that_comes_too_late_changes_nothing() -> None:
    stopped: list[bool] = []

    def do() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: bool(stopped))
        return "live"

    assert Work(do, lambda: stopped.append(True)).result() == "live"


def test_what_is_live_is_returned_whatever_fails_then(
    nlp: Language, deploy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = History.append

    def failing(history: History, kind: str, data: Mapping[str, Any]) -> Record:
        if kind == "commit" and "recovered" not in data:
            raise OSError(5, "a failing disk")
        return append(history, kind, data)

    monkeypatch.setattr(History, "append", failing)
    made = save(nlp, deploy, verify="structure")
    assert [line["release"] for line in commits(deploy)] == [made.id]
    sound(deploy)


def test_a_fork_in_the_midst_keeps_nothing_held(nlp: Language, deploy: Path) -> None:
    folder = DeploymentFolder(deploy)
    folder.prepare()

    def living(tell: Callable[[Any], None]) -> None:
        tell("lives")

    with folder.lock("save()"):
        child = Child(living)
        assert child.told() == "lives"
    with child:
        assert save(nlp, deploy, verify="structure", timeout_s=0).sequence == 1


def test_through_the_daemon_on_the_terms_of_its_rule(
    nlp: Language, tmp_path: Path, deploy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = build("default", tmp_path / "runs/model-best", generation=1)
    config = configure(tmp_path, more="keep = { last = 1 }")
    with Daemon(config) as daemon:
        daemon.wait_for("release.published")
        (tmp_path / "link").symlink_to(deploy)
        made = save(nlp, tmp_path / "link")
        assert sound(deploy)["id"] == made.id
        assert made.manifest.rule == "products"
        assert made.manifest.verification["level"] == "structure"
        (told,) = daemon.wait_for("release.overwrite")
        assert (told["release"], told["source"]) == (made.id, made.manifest.source)
        for settings in ({"keep": {"last": 9}}, {"verify": "none"}):
            with pytest.raises(UsageError, match="so its rule says what holds, and not"):
                save(nlp, deploy, **settings)
        with monkeypatch.context() as patched:
            patched.setattr(publication, "SAVE", "/v2/save")
            with pytest.raises(SpancatDaemonError, match="is of another version"):
                save(nlp, deploy)
        save(nlp, deploy)
        assert len(names_in(deploy / "releases")) == 2
        # What it replaced does not come back by itself
        os.utime(checkpoint / "vocab/lookups.bin")
        (refused,) = daemon.wait_for("snapshot.rejected")
        assert "replaced by save()" in refused["reason"]
    with daemon:
        daemon.wait_for("snapshot.rejected", count=2)
    assert judge(deploy, log=daemon.events) == []


def test_a_daemon_tells_what_was_saved_without_it(nlp: Language, tmp_path: Path, deploy: Path) -> None:
    made = [save(nlp, deploy, verify="structure").id for _ in range(3)]
    daemon = Daemon(configure(tmp_path))
    build("default", tmp_path / "runs/model-best", generation=1)
    with daemon:
        told = daemon.wait_for("release.overwrite", count=3)
    assert [event["release"] for event in told[:2]] == made[1:]
    assert judge(deploy, log=daemon.events) == []
