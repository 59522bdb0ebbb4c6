"""A process dies at a named point. It is taken apart from outside: nothing of this is in anybody's way in production.

Count the points of one run, then run it again once for each of them::

    points = CrashPoints()
    store = FileTokens(folder, files=CrashingFiles(points))
    transport = CrashingTransport(points, transport)
    ...                                         # the run; points.passed now names them all
    CrashPoints(at=7)                           # dies at the seventh, by SimulatedCrash
    CrashPoints(at="after request", die=kill)   # dies there for good, in a process of its own
"""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx
from attrs import define, field

from crmclient.migration.ledger import Ledger
from crmclient.tokens import Files


class SimulatedCrash(BaseException):
    """The process is dead at this point. Not an Exception: a dead process handles none."""


def simulate(point: str) -> NoReturn:
    """Die as far as one can without ending the process: from here on, no point is passed."""
    raise SimulatedCrash(point)


def kill(point: str) -> NoReturn:
    """Die as if killed: no handler, no flush, no lock given back by us."""
    os._exit(137)


@define
class CrashPoints:
    """The points of a run, as they are passed. ``at`` is the one to die at: its number, from 1, or its name."""

    at: int | str | None = None
    die: Callable[[str], NoReturn] = simulate
    passed: list[str] = field(factory=list[str])
    dead: bool = False

    def __call__(self, point: str) -> None:
        """Pass a point. Raises SimulatedCrash at the chosen one and, since the dead do nothing, at every later one."""
        if self.dead:
            raise SimulatedCrash(point)
        self.passed.append(point)
        if self.at in (len(self.passed), point):
            self.dead = True
            self.die(point)


class CrashingFiles(Files):
    """A token store's calls to the operating system, each with a point before and after it.

    What the kernel does for a dead process is done: its handles are closed, and its locks given back.
    """

    def __init__(self, points: CrashPoints) -> None:
        self.points = points

    def _passing(self, name: str, path: Path | int, call: Callable[[], Any]) -> Any:
        what = f"{name} {path.name}" if isinstance(path, Path) else name
        self.points(f"before {what}")
        done = call()
        self.points(f"after {what}")
        return done

    def folder(self, path: Path) -> os.stat_result:
        return self._passing("make folder", path, lambda: super(CrashingFiles, self).folder(path))

    def open(self, path: Path, flags: int) -> int:
        self.points(f"before open {path.name}")
        handle = super().open(path, flags)
        try:
            self.points(f"after open {path.name}")
        except BaseException:
            self.close(handle)
            raise
        return handle

    def write(self, handle: int, content: bytes) -> None:
        self.points("before write")
        # Half of it reaches the disk before the rest does.
        super().write(handle, content[: len(content) // 2])
        self.points("within write")
        super().write(handle, content[len(content) // 2 :])
        self.points("after write")

    def sync(self, handle: int) -> None:
        self._passing("sync", handle, lambda: super(CrashingFiles, self).sync(handle))

    def lock(self, handle: int) -> bool:
        return self._passing("lock", handle, lambda: super(CrashingFiles, self).lock(handle))

    def replace(self, old: Path, new: Path) -> None:
        self._passing("replace", new, lambda: super(CrashingFiles, self).replace(old, new))

    def remove(self, path: Path) -> None:
        self._passing("remove", path, lambda: super(CrashingFiles, self).remove(path))


class CrashingTransport(httpx.AsyncBaseTransport):
    """A transport with a point before each request and one after its answer, which nobody has read by then."""

    def __init__(self, points: CrashPoints, inner: httpx.AsyncBaseTransport) -> None:
        self.points, self.inner = points, inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.points(f"before request {request.url.path}")
        answer = await self.inner.handle_async_request(request)
        self.points(f"after request {request.url.path}")
        return answer


class CrashingLedger(Ledger):
    """A migration's ledger with a point before each commit and one after it. What the dead had begun is not committed."""

    def __init__(self, points: CrashPoints, path: str | Path, *, durable: bool = True) -> None:
        self.points = points
        super().__init__(path, durable=durable)

    @contextmanager
    def commit(self, what: str) -> Generator[None]:
        with super().commit(what):
            yield
            self.points(f"before {what}")
        self.points(f"after {what}")
