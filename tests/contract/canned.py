"""Drives flows with canned replies: no session, no server, no loop."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from crmclient.dialect import Call, Context, Dialect, Flow, Need, Reply
from crmclient.errors import CRMError

NOW = datetime(2026, 3, 20, 10, 15, tzinfo=UTC)


class Server:
    """Answers calls by a function, keeps what was asked, and judges as a session does."""

    def __init__(self, dialect: Dialect, answer: Callable[[Call], Reply | CRMError]) -> None:
        self.dialect, self.answer, self.calls = dialect, answer, list[Call]()
        self.parts: dict[str, Any] = {}

    def run(self, flow: Flow[Any]) -> Any:
        answer: Any = None
        error: CRMError | None = None
        while True:
            try:
                step = flow.send(answer) if error is None else flow.throw(error)
            except StopIteration as stop:
                return stop.value
            answer = error = None
            if isinstance(step, Need):
                if step.part is not None and step.part not in self.parts:
                    self.parts[step.part] = self.run(self.dialect.settings[step.part]())
                answer = Context(self.parts, now=NOW, given_zone=ZoneInfo("Europe/Moscow"))
            elif isinstance(step, Call):
                answer = self._send(step)
                if isinstance(answer, CRMError):
                    answer, error = None, answer
            else:
                answer = tuple(self._send(call) for call in step)

    def walk(self, walk: Any) -> list[Any]:
        found: list[Any] = []
        cursor = walk.first
        while cursor is not None:
            reply = self._send(walk.call(cursor))
            if isinstance(reply, CRMError):
                raise reply
            rows = walk.rows(cursor, reply)
            found += self.run(walk.items(cursor, rows))
            cursor = walk.after(cursor, reply, len(rows))
        return found

    def _send(self, call: Call) -> Reply | CRMError:
        self.calls.append(call)
        reply = self.answer(call)
        return reply if isinstance(reply, CRMError) else (self.dialect.judge(call, reply) or reply)
