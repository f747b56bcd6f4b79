"""A loaded model and who is using it."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spacy.language import Language

    from spancat_daemon.release.survey import Release
    from spancat_daemon.serving.listing import Held
    from spancat_daemon.serving.stamps import Stamp


class User:
    """One use of a model, from entering to leaving.

    Attributes:
        thread: the identity of the thread that entered: in a forked child the others are no more.
    """

    __slots__ = ("thread",)

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class Served:
    """A loaded model, which holds its release until it is let go, or garbage.

    Everything but `fading` is called with `locks.state` held.

    Attributes:
        release: which.
        stamp: how to tell it from others.
    """

    __slots__ = ("_let_go", "_nlp", "_reference", "_retired", "_users", "release", "stamp")

    def __init__(self, nlp: Language, held: Held, stamp: Stamp) -> None:
        self.release: Release = held.release
        self.stamp = stamp
        self._nlp: Language | None = nlp
        self._let_go = weakref.finalize(nlp, held.lease.release)
        self._reference = weakref.ref(nlp)
        self._users: set[User] = set()
        self._retired = False

    @property
    def in_use(self) -> bool:
        """Whether it has to stay: it is what new requests get, or somebody is using it."""
        return not self._retired or bool(self._users)

    def enter(self) -> tuple[Language, User]:
        """Begin a use; it must not be let go yet."""
        assert self._nlp is not None  # noqa: S101  # who enters has just found it to be the current one
        user = User()
        self._users.add(user)
        return self._nlp, user

    def leave(self, user: User) -> None:
        """End a use; harmless if it was ended before."""
        self._users.discard(user)

    def forget_other_threads(self) -> None:
        """End the uses of all threads but this one."""
        me = threading.get_ident()
        self._users = {user for user in self._users if user.thread == me}

    def retire(self) -> None:
        """Say that nobody will enter any more."""
        self._retired = True

    def let_go(self) -> None:
        """Give up the model and its lease; harmless if that was done before."""
        self._nlp = None
        self._let_go()

    @property
    def fading(self) -> bool:
        """Whether the model is still in memory after it was let go."""
        return self._nlp is None and self._reference() is not None
