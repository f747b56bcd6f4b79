"""Always the live release, whole, with nobody disturbed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import spacy

from spancat_daemon import HotModel
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release import lease
from spancat_daemon.serving import hot as hot_module
from spancat_daemon.serving import pulse as pulse_module
from spancat_daemon.serving.listing import unreadable
from spancat_daemon.serving.loading import read
from spancat_daemon.serving.stamps import stamp_of
from tests.integration.serving.conftest import Model, answer, answers
from tests.integration.serving.forking import Child
from tests.integration.serving.publishing import Publisher, overwrite
from tests.integration.serving.watching import PATIENCE_S
from tests.pipelines import texts
from tests.service import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spancat_daemon.release.survey import Release
    from spancat_daemon.serving.listing import Held
    from tests.integration.serving.watching import Told

Models = tuple[Model, Model]
TEXTS = texts()


def open_descriptors() -> list[str]:
    """What this process has open of releases, and of what watches for them."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own, and that of a look which has ended
            found.append(str(fd.readlink()))
    kinds = ("/releases/", "/current", "anon_inode:inotify", "anon_inode:[eventfd]")
    return sorted(name for name in found if any(kind in name for kind in kinds))


def serving(publisher: Publisher) -> list[str]:
    """What a HotModel at rest has open, as `open_descriptors` says it."""
    live = str((publisher.path / "current").resolve())
    return sorted(["anon_inode:[eventfd]", "anon_inode:inotify", live, f"{live}/release.json"])


def is_leased(publisher: Publisher, release: Release) -> bool:
    """Whether somebody holds a release that is not live."""
    return lease.is_leased(publisher.path / "releases" / release.id)


def test_it_serves_what_is_live(publisher: Publisher, models: Models, told: Told) -> None:
    first = publisher.publish(models[0].path)
    with HotModel(publisher.path, warm_up=TEXTS, **told.callbacks) as hot:
        assert answers(hot) == models[0].answers
        assert told.swap() == (first.id, None)
        second = publisher.publish(models[1].path)
        assert told.swap() == (second.id, first.id)
        assert answers(hot) == models[1].answers
        serving = hot.release
        assert serving is not None
        assert serving.manifest == second.manifest
        publisher.go_to(first)
        assert told.swap() == (first.id, second.id)
        assert [answer(hot(text)) for text in TEXTS] == models[0].answers
        pairs = hot.pipe([(text, number) for number, text in enumerate(TEXTS)], as_tuples=True)
        assert [number for _, number in pairs] == list(range(len(TEXTS)))
    assert told.errors.empty()
    assert hot.release is None
    with pytest.raises(SpancatDaemonError, match="is closed"):
        hot("text")


def test_who_began_with_the_old_one_ends_with_it(publisher: Publisher, models: Models, told: Told) -> None:
    first = publisher.publish(models[0].path)
    with HotModel(publisher.path, **told.callbacks) as hot:
        docs = hot.pipe(TEXTS, batch_size=1)
        begun = [answer(next(docs))]
        with hot.use() as nlp:
            second = publisher.publish(models[1].path)
            assert told.swap()[0] == first.id
            assert told.swap() == (second.id, first.id)
            assert [answer(nlp(text)) for text in TEXTS] == models[0].answers
            assert answers(hot) == models[1].answers
        gone = weakref.ref(nlp)
        del nlp
        assert is_leased(publisher, first)  # the iterator's
        assert begun + [answer(doc) for doc in docs] == models[0].answers
        assert not is_leased(publisher, first)
        del docs
        until(lambda: gone() is None, what="the old model stays in memory")
        publisher.publish_fake()
        publisher.publish_fake()
        assert first.id in publisher.prune()


@pytest.mark.parametrize("end", ["closed", "dropped"])
def test_an_iterator_that_is_given_up(publisher: Publisher, models: Models, told: Told, end: str) -> None:
    first = publisher.publish(models[0].path)
    with HotModel(publisher.path, **told.callbacks) as hot:
        docs: Any = hot.pipe(TEXTS, batch_size=1)
        next(docs)
        publisher.publish(models[1].path)
        told.swap(), told.swap()
        assert is_leased(publisher, first)
        if end == "closed":
            docs.close()
        else:
            del docs
        assert not is_leased(publisher, first)


def test_threads_never_see_half_a_swap(publisher: Publisher, models: Models, told: Told) -> None:
    releases = [publisher.publish(model.path) for model in models]
    seen: list[set[int]] = [set() for _ in range(4)]
    wrong: list[Any] = []
    over = threading.Event()

    def ask(found: set[int]) -> None:
        try:
            while not over.is_set():
                given = answers(hot)
                which = [number for number in (0, 1) if given == models[number].answers]
                found.update(which) if which else wrong.append(given)
        except BaseException as error:
            wrong.append(error)
            raise

    with HotModel(publisher.path, **told.callbacks) as hot:
        told.swap()
        threads = [threading.Thread(target=ask, args=(found,)) for found in seen]
        for thread in threads:
            thread.start()
        for number in range(4):
            publisher.go_to(releases[number % 2])
            assert told.swap()[0] == releases[number % 2].id
        over.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert wrong == []
    assert set.union(*seen) == {0, 1}
    assert not lease.is_leased(publisher.path / "current")
    assert not any(is_leased(publisher, release) for release in releases)


@pytest.fixture
def _no_other_collection() -> Iterator[None]:
    """Only who asks for it gets the garbage collector to run."""
    before = gc.get_threshold()
    gc.set_threshold(0)
    yield
    gc.set_threshold(*before)


@pytest.mark.usefixtures("_no_other_collection")
def test_swaps_leave_nothing_behind(publisher: Publisher, models: Models, told: Told) -> None:
    releases = [publisher.publish(model.path) for model in models]
    gone: list[weakref.ref[Any]] = []
    before = open_descriptors()
    with HotModel(publisher.path, **told.callbacks) as hot:
        told.swap()
        for number in range(5):
            with hot.use() as nlp:
                gone.append(weakref.ref(nlp))
                vars(nlp)["itself"] = nlp  # as a component does that keeps its pipeline
            del nlp
            publisher.go_to(releases[number % 2])
            told.swap()
            until(lambda: gone[-1]() is None, what="the old model stays in memory")
            until(lambda: open_descriptors() == before + serving(publisher), what="others stay open")
    assert open_descriptors() == before


def test_what_fails_changes_nothing_and_is_told_once(
    publisher: Publisher, models: Models, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = threading.Semaphore(0)

    def counted(fd: int) -> Any:
        looks.release()
        return stamp_of(fd)

    tried: list[str] = []

    def noted(held: Held, **options: Any) -> Any:
        tried.append(held.release.id)
        return read(held, **options)

    monkeypatch.setattr(hot_module, "stamp_of", counted)
    monkeypatch.setattr(hot_module, "read", noted)
    first = publisher.publish(models[0].path)
    torn = tmp_path / "torn"
    spacy.load(models[1].path).to_disk(torn)
    whole = (torn / "spancat/model").read_bytes()
    (torn / "spancat/model").write_bytes(whole[:-1000])
    with HotModel(publisher.path, **told.callbacks) as hot:
        told.swap()
        second = publisher.publish(torn)
        assert "can't be loaded: ValueError: Unpack failed: incomplete input" in told.error()
        assert answers(hot) == models[0].answers
        assert gc.isenabled()
        while looks.acquire(blocking=False):
            pass
        for _ in range(4):
            hot._pulse.wake()
            assert looks.acquire(timeout=PATIENCE_S)
        assert told.errors.empty()
        assert tried == [first.id, second.id]
        assert hot.release is not None
        assert hot.release.id == first.id
        overwrite(second.path / "spancat/model", whole)
        assert told.swap() == (second.id, first.id)
        assert answers(hot) == models[1].answers
    assert told.errors.empty()


def test_a_warm_up_that_fails(linking: Publisher, models: Models, told: Told) -> None:
    linking.publish(models[0].path)
    bad: Any = [5]
    with HotModel(linking.path, warm_up=bad, **told.callbacks) as hot:
        assert "fails to predict the warm-up texts: " in told.error()
        with pytest.raises(SpancatDaemonError, match="fails to predict the warm-up texts"):
            hot("text")
        assert not lease.is_leased(linking.path / "current")


def test_before_the_first_release(linking: Publisher, models: Models, told: Told) -> None:
    with HotModel(linking.path, **told.callbacks) as hot:
        with pytest.raises(SpancatDaemonError, match="there is no release yet"):
            hot("text")
        with pytest.raises(SpancatDaemonError, match="there is no release yet"):
            asyncio.run(hot.ready())
        waiting = asyncio.Event()

        async def serve() -> tuple[Release, bool]:
            ready = asyncio.create_task(hot.ready(patience_s=PATIENCE_S))
            asyncio.get_running_loop().call_soon(waiting.set)
            await waiting.wait()  # the loop is free meanwhile
            free = not ready.done()
            linking.publish(models[0].path)
            return await ready, free

        release, free = asyncio.run(serve())
        assert free
        assert release.id == hot.wait().id == told.swap()[0]
    assert "there is no release yet" in told.error()


def test_who_waits_is_told_of_the_end(linking: Publisher) -> None:
    hot = HotModel(linking.path, on_error=lambda _: None)
    with pytest.raises(SpancatDaemonError):
        hot.wait()
    said: list[str] = []

    def wait() -> None:
        try:
            hot.wait(patience_s=None)
        except SpancatDaemonError as error:
            said.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    hot.close()
    hot.close()
    thread.join(PATIENCE_S)
    assert said == [f"{linking.path}: is closed"]


def test_a_folder_that_goes_and_comes_back(
    linking: Publisher, models: Models, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = threading.Semaphore(0)

    def counted(folder: Path, error: OSError) -> SpancatDaemonError:
        looks.release()
        return unreadable(folder, error)

    monkeypatch.setattr(hot_module, "unreadable", counted)
    first = linking.publish(models[0].path)
    with HotModel(linking.path, **told.callbacks) as hot:
        told.swap()
        linking.path.rename(tmp_path / "away")
        assert "there is no such folder" in told.error()
        for _ in range(4):
            hot._pulse.wake()
            assert looks.acquire(timeout=PATIENCE_S)
        assert told.errors.empty()
        assert answers(hot) == models[0].answers
        another = Publisher(linking.path)
        second = another.publish(models[1].path)
        new, old = told.swap()
        assert (new, old) == (second.id, first.id)
        third = another.publish(models[0].path)  # the new one is watched as the old one was
        assert told.swap()[0] == third.id
        assert answers(hot) == models[0].answers


def test_a_swap_is_noticed_by_its_event(
    publisher: Publisher, models: Models, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse_module, "TICK_S", 1000.0)
    publisher.publish(models[0].path)
    with HotModel(publisher.path, **told.callbacks):
        told.swap()
        second = publisher.publish(models[1].path)
        assert told.swap()[0] == second.id


@pytest.mark.parametrize("lacking", ["inotify_init", "inotify_add_watch"])
def test_a_swap_is_noticed_without_events(
    linking: Publisher, models: Models, told: Told, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """As where max_user_instances, or max_user_watches, is reached."""
    monkeypatch.setattr(pulse_module, lacking, lambda *_: -1)
    linking.publish(models[0].path)
    with HotModel(linking.path, **told.callbacks):
        told.swap()
        second = linking.publish(models[1].path)
        assert told.swap()[0] == second.id


def test_a_fork_watches_for_itself(publisher: Publisher, models: Models, told: Told) -> None:
    first = publisher.publish(models[0].path)
    with HotModel(publisher.path, **told.callbacks) as hot:
        told.swap()

        def work(tell: Callable[[Any], None]) -> Any:
            tell(answers(hot) == models[0].answers)
            tell(told.swap())
            tell(answers(hot) == models[1].answers)
            return hot

        with Child(work) as child, Child(work) as other:
            assert child.told()
            assert other.told()
            second = publisher.publish(models[1].path)
            for swap in (told.swap(), child.told(), other.told()):
                assert swap == (second.id, first.id)
            assert child.told()
            assert other.told()
            assert not is_leased(publisher, first)


def test_a_fork_forgets_who_was_at_it(linking: Publisher, models: Models, told: Told) -> None:
    first = linking.publish(models[0].path)
    entered, leave = threading.Event(), threading.Event()
    with HotModel(linking.path, **told.callbacks) as hot:

        def stay() -> None:
            with hot.use():
                entered.set()
                leave.wait(PATIENCE_S)

        thread = threading.Thread(target=stay)
        thread.start()
        assert entered.wait(PATIENCE_S)
        linking.publish(models[1].path)
        told.swap(), told.swap()

        def work(tell: Callable[[Any], None]) -> Any:
            tell(answers(hot) == models[1].answers)
            return hot

        with Child(work) as child:
            assert child.told()
            assert is_leased(linking, first)
            leave.set()
            thread.join(PATIENCE_S)
            assert not is_leased(linking, first)  # the child would hold it for ever


def test_a_fork_waits_for_a_load(
    linking: Publisher, models: Models, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    linking.publish(models[0].path)
    loading, go_on = threading.Event(), threading.Event()
    load = spacy.load

    def slow(*args: Any, **kwargs: Any) -> Any:
        loading.set()
        assert go_on.wait(PATIENCE_S)
        return load(*args, **kwargs)

    with HotModel(linking.path, **told.callbacks) as hot:
        told.swap()
        monkeypatch.setattr(spacy, "load", slow)
        second = linking.publish(models[1].path)
        assert loading.wait(PATIENCE_S)
        threading.Timer(0.2, go_on.set).start()
        assert answers(hot) == models[0].answers  # the others go on

        def work(tell: Callable[[Any], None]) -> Any:
            tell((go_on.is_set(), hot.release and hot.release.id))
            return hot

        with Child(work) as child:
            assert child.told() == (True, second.id)


def test_it_ends_when_nobody_wants_it_any_more(linking: Publisher, models: Models) -> None:
    linking.publish(models[0].path)
    hot: HotModel | None = HotModel(linking.path)
    assert hot is not None
    hot.wait()
    thread = hot._thread
    hot = None
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    gc.collect()
    assert not lease.is_leased(linking.path / "current")


def test_closing_waits_for_no_user_and_takes_nothing_from_one(linking: Publisher, models: Models) -> None:
    linking.publish(models[0].path)
    hot = HotModel(linking.path)
    with hot.use() as nlp:
        hot.close()
        assert lease.is_leased(linking.path / "current")
        assert [answer(nlp(text)) for text in TEXTS] == models[0].answers
    assert not lease.is_leased(linking.path / "current")


def test_callbacks_that_fail_are_logged(
    linking: Publisher, models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    linking.publish(models[0].path)

    def fail(*_: Any) -> None:
        raise ValueError("the application's own")

    with HotModel(linking.path, on_swap=fail) as hot:
        until(lambda: "the application's own" in caplog.text)
        second = linking.publish(models[1].path)
        until(lambda: hot.release is not None and hot.release.id == second.id)
    with HotModel(linking.path / "typo"), caplog.at_level(logging.ERROR):
        until(lambda: "what is live can't be served: " in caplog.text)


def test_a_vocab_is_not_shared(linking: Publisher) -> None:
    with pytest.raises(TypeError, match="a vocab of its own"):
        HotModel(linking.path, vocab=spacy.blank("en").vocab)
