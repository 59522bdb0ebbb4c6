"""What goes wrong between a client and a vendor, by a script: which request, and what becomes of it.

A fault sits in front of a face and knows none by name. ``drop-after`` is the one that matters most: the vendor has acted
and nobody hears of it.
"""

import json
import os
import signal
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final, TypeAlias

from attrs import define, field, frozen, validators

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
    """A maintenance page with 200."""
    THROTTLE = "throttle"
    """429, with ``seconds`` to wait."""
    UNAUTHORIZED = "unauthorized"
    """401, as if the token had died."""
    TWICE = "twice"
    """The request arrives a second time, as a proxy's own retry would have it; the first answer is lost."""
    KILL_BEFORE = "kill-before"
    """``pid`` is killed with SIGKILL as the request arrives."""
    KILL_AFTER = "kill-after"
    """``pid`` is killed with SIGKILL once the vendor has acted, before it can hear of it."""


@frozen(kw_only=True)
class Fault:
    """From the ``nth`` request like ``on`` (method and path, ``*`` stands for anything), ``times`` of them."""

    action: Action = field(converter=Action)
    on: str = "*"
    nth: int = field(default=1, validator=validators.ge(1))
    times: int = field(default=1, validator=validators.ge(1))
    seconds: float = field(default=1.0, validator=validators.ge(0))
    status: int = 503
    pid: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """``drop-after``, ``drop-after#3``, ``status=502 POST /api/v4/leads#2``. ValueError says what is wrong."""
        words, _, nth = text.partition("#")
        head, *rest = words.split(maxsplit=1) or [""]
        name, _, given = head.partition("=")
        try:
            action = Action(name)
        except ValueError:
            raise ValueError(f"{name!r} is no fault; there are {', '.join(Action)}") from None
        more: dict[str, Any] = {}
        try:
            if given:
                key = "status" if action in (Action.STATUS, Action.STATUS_AFTER) else "seconds"
                more[key] = int(given) if key == "status" else float(given)
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


@define
class Faults:
    """A script that goes on. Faults may be added while the sandbox runs; each counts the requests it is about itself."""

    script: list[Fault] = field(factory=list[Fault])
    seen: dict[int, int] = field(init=False, factory=dict[int, int])
    done: list[Fault] = field(init=False, factory=list[Fault])
    """The faults that have happened, in order."""

    def add(self, *faults: Fault | str) -> None:
        self.script += [Fault.parse(each) if isinstance(each, str) else each for each in faults]

    def next(self, method: str, path: str) -> Fault | None:
        """The fault of this request. Of several, the first in the script happens; the others count it all the same."""
        due: Fault | None = None
        for place, fault in enumerate(self.script):
            if not fnmatchcase(f"{method} {path}", fault.on if fault.on == "*" or " " in fault.on else f"* {fault.on}"):
                continue
            self.seen[place] = self.seen.get(place, 0) + 1
            if due is None and fault.nth <= self.seen[place] < fault.nth + fault.times:
                due = fault
        if due is not None:
            self.done.append(due)
        return due


def faulty(app: _App, faults: Faults, clock: Clock) -> _App:
    """The same face, with a script of faults before it."""

    async def face(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        fault = faults.next(scope["method"], scope["path"]) if scope["type"] == "http" else None
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
                await _say(send, 200, _PAGE, "text/html; charset=utf-8")
            case Action.THROTTLE:
                body = json.dumps({"status": 429, "retry_after": fault.seconds}).encode()
                await _say(send, 429, body, after=fault.seconds)
            case Action.UNAUTHORIZED:
                await _say(send, 401, b'{"status":401,"title":"Unauthorized"}')
            case Action.KILL_BEFORE:
                _kill(fault)
                raise Dropped
            case Action.TWICE:
                body = await _whole(receive)
                await _acted(app, scope, body)
                for message in await _acted(app, scope, body):
                    await send(message)
            case Action.DROP_AFTER | Action.TEAR | Action.STATUS_AFTER | Action.KILL_AFTER:
                answered = await _acted(app, scope, await _whole(receive))
                if fault.action is Action.STATUS_AFTER:
                    await _say(send, fault.status, b'{"status":%d,"detail":"made to fail"}' % fault.status)
                    return
                if fault.action is Action.KILL_AFTER:
                    _kill(fault)
                raise Dropped(_half(answered) if fault.action is Action.TEAR else ())

    return face


def _kill(fault: Fault) -> None:
    if fault.pid is not None:
        os.kill(fault.pid, signal.SIGKILL)


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
