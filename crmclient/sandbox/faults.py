"""What goes wrong between a client and a vendor, by a script: which request, and what becomes of it.

A fault sits in front of a face and knows none by name. ``drop-after`` is the one that matters most: the vendor has acted
and nobody hears of it.
"""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final, TypeAlias

from attrs import Factory, define, field, frozen, validators

from crmclient.clock import Clock

_Message: TypeAlias = MutableMapping[str, Any]
_App: TypeAlias = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[_Message]],
        Callable[[_Message], Awaitable[None]],
    ],
    Awaitable[None],
]

_PAGE: Final = b"<!DOCTYPE html><html><head><title>Maintenance</title></head><body>We will be back soon.</body></html>"


class Action(StrEnum):
    """What becomes of a request."""

    DROP_BEFORE = "drop-before"
    """The connection ends and the vendor has not acted."""
    DROP_AFTER = "drop-after"
    """The vendor has acted and the connection ends before a byte of its answer."""
    TEAR = "tear"
    """The vendor has acted and the connection ends in the middle of its answer."""
    DELAY = "delay"
    """The answer takes ``seconds`` longer."""
    STATUS = "status"
    """An error of ``status``, and the vendor has not acted."""
    STATUS_AFTER = "status-after"
    """An error of ``status``, and the vendor has acted all the same: a gateway gave up waiting for it."""
    HTML = "html"
    """A maintenance page with ``status``, and the vendor has not acted."""
    HTML_AFTER = "html-after"
    """A maintenance page with ``status``, and the vendor has acted all the same."""
    THROTTLE = "throttle"
    """429, with ``seconds`` to wait."""
    UNAUTHORIZED = "unauthorized"
    """401, as if the token had died."""
    TWICE = "twice"
    """The request arrives a second time, as a proxy's own retry would have it; the first answer is lost."""
    LATE = "late"
    """The connection ends at once, and the request outlives its sender: it reaches the vendor as the last of so many
    further ``requests`` arrives, and before that one is answered; or, told ``requests=None``, before the first that
    comes once ``seconds`` have passed."""
    KILL_BEFORE = "kill-before"
    """``pid`` is killed with SIGKILL as the request arrives."""
    KILL_AFTER = "kill-after"
    """``pid`` is killed with SIGKILL once the vendor has acted, before it can hear of it."""
    KILL_LATE = "kill-late"
    """``pid`` is killed with SIGKILL as the request arrives, which reaches the vendor late."""


_STATUS: Final = (Action.STATUS, Action.STATUS_AFTER, Action.HTML, Action.HTML_AFTER)
_LATE: Final = (Action.LATE, Action.KILL_LATE)


@frozen(kw_only=True)
class Fault:
    """From the ``nth`` request like ``on`` (method and path, ``*`` stands for anything), ``times`` of them."""

    action: Action = field(converter=Action)
    on: str = "*"
    nth: int = field(default=1, validator=validators.ge(1))
    times: int = field(default=1, validator=validators.ge(1))
    seconds: float = field(default=1.0, validator=validators.ge(0))
    status: int = field(
        default=Factory(lambda self: 200 if self.action in (Action.HTML, Action.HTML_AFTER) else 503, takes_self=True)
    )
    requests: int | None = field(default=3, validator=validators.optional(validators.ge(1)))
    pid: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """``drop-after#3``, ``status=502 POST /api/v4/leads#2``, ``late=5`` requests, ``late=20s``.

        ValueError says what is wrong.
        """
        words, _, nth = text.partition("#")
        head, *rest = words.split(maxsplit=1) or [""]
        name, _, given = head.partition("=")
        try:
            action = Action(name)
        except ValueError:
            raise ValueError(f"{name!r} is no fault; there are {', '.join(Action)}") from None
        more: dict[str, Any] = {}
        try:
            if given and action in _STATUS:
                more["status"] = int(given)
            elif given and action in _LATE and not given.endswith("s"):
                more["requests"] = int(given)
            elif given:
                more |= {"seconds": float(given.removesuffix("s")), "requests": None if action in _LATE else 3}
            if nth:
                more["nth"] = int(nth)
            return cls(action=action, on=rest[0].strip() if rest else "*", **more)
        except ValueError:
            raise ValueError(f"{text!r} is no fault: its numbers are none, or too small") from None


class Dropped(Exception):
    """The connection ends here; ``messages`` are what had been answered by then."""

    def __init__(self, messages: Sequence[_Message] = ()) -> None:
        super().__init__("the sandbox was told to end this connection")
        self.messages = tuple(messages)


def _shoot(fault: Fault) -> None:
    if fault.pid is not None:
        os.kill(fault.pid, signal.SIGKILL)


@frozen(eq=False)
class _Late:
    """A request on its way to a vendor that nobody waits for any more."""

    arrive: Callable[[], Coroutine[Any, Any, object]]
    due: Callable[[], bool]
    loop: asyncio.AbstractEventLoop


@define
class Faults:
    """A script that goes on. Faults may be added while the sandbox runs; each counts the requests it is about itself."""

    script: list[Fault] = field(factory=list[Fault])
    decide: Callable[[str, str, int], Fault | None] | None = None
    """Asked of every request, by method, path and its number among all of them, from 1. The script goes before."""
    kill: Callable[[Fault], object] = _shoot
    """What the killing faults do to the client. One in the same process dies of what this raises."""
    count: int = field(init=False, default=0)
    """Requests seen, whatever became of them."""
    seen: dict[int, int] = field(init=False, factory=dict[int, int])
    done: list[Fault] = field(init=False, factory=list[Fault])
    """The faults that have happened, in order."""
    late: list[_Late] = field(init=False, factory=list[_Late])

    def add(self, *faults: Fault | str) -> None:
        self.script += [Fault.parse(each) if isinstance(each, str) else each for each in faults]

    def next(self, method: str, path: str) -> Fault | None:
        """The fault of this request. Of several, the first in the script happens; the others count it all the same."""
        self.count += 1
        decided = self.decide(method, path, self.count) if self.decide else None
        due: Fault | None = None
        for place, fault in enumerate(self.script):
            if not fnmatchcase(f"{method} {path}", fault.on if fault.on == "*" or " " in fault.on else f"* {fault.on}"):
                continue
            self.seen[place] = self.seen.get(place, 0) + 1
            if due is None and fault.nth <= self.seen[place] < fault.nth + fault.times:
                due = fault
        due = due or decided
        if due is not None:
            self.done.append(due)
        return due

    async def land(self, *, due: bool = False) -> int:
        """Let the requests that are late arrive now, in order, or those that are ``due``; and say how many.

        Each is judged as if it had been sent now, its token and the vendor's limit included.
        """
        landed = 0
        while landing := [each for each in self.late if each.due() or not due]:
            each = landing[0]
            self.late.remove(each)
            if each.loop is asyncio.get_running_loop() or not each.loop.is_running():
                await each.arrive()
            else:  # The world is used from one thread.
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(each.arrive(), each.loop))
            landed += 1
        return landed


def faulty(app: _App, faults: Faults, clock: Clock) -> _App:
    """The same face, with a script of faults before it."""

    async def face(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        fault = faults.next(scope["method"], scope["path"])
        number = faults.count
        await faults.land(due=True)
        if fault is None:
            await app(scope, receive, send)
            return
        match fault.action:
            case Action.DROP_BEFORE:
                raise Dropped
            case Action.DELAY:
                await clock.sleep(fault.seconds)
                await app(scope, receive, send)
            case Action.STATUS:
                await _say(send, fault.status, b'{"status":%d,"detail":"made to fail"}' % fault.status)
            case Action.HTML:
                await _say(send, fault.status, _PAGE, "text/html; charset=utf-8")
            case Action.THROTTLE:
                body = json.dumps({"status": 429, "retry_after": fault.seconds}).encode()
                await _say(send, 429, body, after=fault.seconds)
            case Action.UNAUTHORIZED:
                await _say(send, 401, b'{"status":401,"title":"Unauthorized"}')
            case Action.KILL_BEFORE:
                faults.kill(fault)
                raise Dropped
            case Action.LATE | Action.KILL_LATE:
                body, at, more = await _whole(receive), clock.monotonic() + fault.seconds, fault.requests
                faults.late.append(
                    _Late(
                        arrive=lambda: _acted(app, scope, body),
                        due=lambda: clock.monotonic() >= at if more is None else faults.count >= number + more,
                        loop=asyncio.get_running_loop(),
                    )
                )
                if fault.action is Action.KILL_LATE:
                    faults.kill(fault)
                raise Dropped
            case Action.TWICE:
                body = await _whole(receive)
                await _acted(app, scope, body)
                for message in await _acted(app, scope, body):
                    await send(message)
            case Action.STATUS_AFTER:
                await _acted(app, scope, await _whole(receive))
                await _say(send, fault.status, b'{"status":%d,"detail":"made to fail"}' % fault.status)
            case Action.HTML_AFTER:
                await _acted(app, scope, await _whole(receive))
                await _say(send, fault.status, _PAGE, "text/html; charset=utf-8")
            case Action.DROP_AFTER | Action.TEAR | Action.KILL_AFTER:
                answered = await _acted(app, scope, await _whole(receive))
                if fault.action is Action.KILL_AFTER:
                    faults.kill(fault)
                raise Dropped(_half(answered) if fault.action is Action.TEAR else ())

    return face


async def _whole(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _acted(app: _App, scope: MutableMapping[str, Any], body: bytes) -> list[_Message]:
    """What the face answers, kept back."""
    asked: list[_Message] = [{"type": "http.request", "body": body, "more_body": False}]
    answered: list[_Message] = []

    async def receive() -> _Message:
        return asked.pop() if asked else {"type": "http.disconnect"}

    async def send(message: _Message) -> None:
        answered.append(message)

    await app({**scope}, receive, send)
    return answered


def _half(answered: Sequence[_Message]) -> list[_Message]:
    """The head and half of the body, with the length of the whole."""
    body = b"".join(message.get("body", b"") for message in answered)
    start = {**answered[0]}
    others = [(name, told) for name, told in start.get("headers", ()) if name.lower() != b"content-length"]
    start["headers"] = [*others, (b"content-length", b"%d" % max(2, len(body)))]
    return [start, {"type": "http.response.body", "body": body[: max(1, len(body) // 2)], "more_body": True}]


async def _say(
    send: Any, status: int, body: bytes, kind: str = "application/json", *, after: float | None = None
) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
    if after is not None:
        headers.append((b"retry-after", b"%g" % after))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
