"""What a session tells of its work, attempt by attempt: values that hold no secret, told to whoever listens.

A logical call (one request asked for) has a number; its attempts count from 1. A hook is called in the event loop, between
two steps: it must not wait. What it raises is logged and harms nobody.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

from attrs import frozen

_log = logging.getLogger("crmclient.hooks")


@frozen(kw_only=True)
class Happening:
    """``account`` is the name its tokens are kept under; ``at`` is in monotonic seconds of the session's clock."""

    account: str
    at: float


@frozen(kw_only=True)
class AttemptStarted(Happening):
    """A request has its turn and leaves now. ``path`` is without the query, which may hold a key."""

    call: int
    attempt: int
    method: str
    path: str


@frozen(kw_only=True)
class AttemptEnded(AttemptStarted):
    """The answer, or what came instead: ``status`` where there was one, ``error`` the name of what it means.

    ``seconds`` from the turn to the last byte.
    """

    seconds: float
    status: int | None = None
    error: str | None = None


@frozen(kw_only=True)
class RetryPlanned(AttemptStarted):
    """Attempt number ``attempt`` failed by ``error``; the next one begins in ``wait`` seconds at the earliest."""

    error: str
    wait: float


@frozen(kw_only=True)
class AccountPaused(Happening):
    """The server said 429: nobody of this account is sent for so many seconds."""

    seconds: float


@frozen(kw_only=True)
class TokenRenewed(Happening):
    """A renewal has ended, after so many seconds; ``error`` names why it failed."""

    seconds: float
    error: str | None = None


Hook: TypeAlias = Callable[[Happening], object]


def tell(hooks: Sequence[Hook], happening: Happening) -> None:
    """Call each hook; one that raises is reported and does not stop the others."""
    for hook in hooks:
        try:
            hook(happening)
        except Exception:
            _log.exception("a hook failed at %s", type(happening).__name__)
