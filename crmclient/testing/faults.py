"""A network that misbehaves on purpose, on loopback: a server that says bytes, a relay with toxics, a look for leaks."""

import asyncio
import contextlib
import gc
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from attrs import define, field, frozen

from crmclient.clock import SYSTEM_CLOCK, Clock

# ------------------------------------------------------------------------------------------------- a server of bytes


@frozen
class Say:
    """What to do with one request: wait, say these bytes, piece by piece, and then end it as told.

    ``then``: ``keep`` the connection, ``close`` it, ``reset`` it, or ``hang``: say nothing more and never end.
    """

    content: bytes = b""
    wait: float = 0.0
    piece: int = 0
    between: float = 0.0
    then: str = "keep"


def http(
    body: bytes | str = b"{}",
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    *,
    length: int | None = -1,
    **how: Any,
) -> Say:
    """An answer of HTTP/1.1. ``length=None`` tells none, and a number tells that one, whatever is true."""
    content = body.encode() if isinstance(body, str) else body
    told = {"Content-Type": "application/json", **(headers or {})}
    if length is not None:
        told["Content-Length"] = str(len(content) if length < 0 else length)
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return Say(f"HTTP/1.1 {status} Told\r\n{head}\r\n".encode() + content, **how)


Answering: TypeAlias = Callable[["RawServer", str, bytes], Say | Awaitable[Say]]


@define(eq=False)
class RawServer:
    """Says what it is told, byte by byte: ``script`` first, one a request, then ``always``."""

    script: list[Say] = field(factory=list[Say])
    always: Say | Answering = field(factory=http)
    heads: list[bytes] = field(init=False, factory=list[bytes])
    bodies: list[bytes] = field(init=False, factory=list[bytes])
    connections: int = field(init=False, default=0)
    origin: str = field(init=False, default="")
    _open: set[asyncio.StreamWriter] = field(init=False, factory=set[asyncio.StreamWriter])
    _news: asyncio.Event = field(init=False, factory=asyncio.Event)

    async def heard(self, requests: int) -> None:
        """Wait until so many requests have come."""
        while len(self.heads) < requests:
            self._news.clear()
            await self._news.wait()

    @property
    def requests(self) -> list[str]:
        """Method and target of each request."""
        return [head.split(b" HTTP/", 1)[0].decode("latin-1") for head in self.heads]

    @asynccontextmanager
    async def running(self, *, tls: Any = None) -> AsyncGenerator["RawServer"]:
        """Listen on a free port of loopback while the block runs."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        scheme = "http" if tls is None else "https"
        self.origin = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for writer in self._open:
                writer.transport.abort()
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        # The other side may go away at any moment; that is what this server is for.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        self._open.discard(writer)
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        body = await reader.readexactly(length)
        self.heads.append(head)
        self.bodies.append(body)
        self._news.set()
        say = self.script.pop(0) if self.script else self.always
        if not isinstance(say, Say):
            told = say(self, self.requests[-1], body)
            say = told if isinstance(told, Say) else await told
        await asyncio.sleep(say.wait)
        size = say.piece or max(1, len(say.content))
        for start in range(0, len(say.content), size):
            writer.write(say.content[start : start + size])
            await writer.drain()
            await asyncio.sleep(say.between)
        if say.then == "hang":
            await reader.read()
        if say.then == "reset":
            writer.transport.abort()
        return say.then == "keep"


# ------------------------------------------------------------------------------------------------------------ a relay


@define(eq=False)
class FaultProxy:
    """A relay to a server on loopback, with toxics that may be changed while it runs.

    ``latency`` and ``jitter`` seconds are added to each piece of an answer; ``down`` refuses new connections; ``silent``
    passes nothing on; ``reset_after`` ends a connection with RST after so many bytes of answers; ``slice`` cuts them small.
    """

    upstream: str
    latency: float = 0.0
    jitter: float = 0.0
    down: bool = False
    silent: bool = False
    reset_after: int | None = None
    slice: int = 0
    chance: Callable[[], float] = field(default=lambda: 0.5)
    clock: Clock = SYSTEM_CLOCK
    origin: str = field(init=False, default="")
    connections: int = field(init=False, default=0)
    _tasks: set[asyncio.Task[Any]] = field(init=False, factory=set[asyncio.Task[Any]])

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["FaultProxy"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        self._tasks.add(task)
        self.connections += 1
        try:
            if not self.down:
                await self._relay(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        where = urlsplit(self.upstream)
        there, to = await asyncio.open_connection(where.hostname, where.port)
        going = asyncio.create_task(self._pass(reader, to, answers=False))
        coming = asyncio.create_task(self._pass(there, writer, answers=True))
        try:
            await asyncio.wait((going, coming), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (going, coming):
                task.cancel()
            await asyncio.gather(going, coming, return_exceptions=True)
            to.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        passed = 0
        while piece := await reader.read(self.slice or 1 << 16):
            if self.silent:
                await asyncio.Event().wait()
            if answers and (self.latency or self.jitter):
                await self.clock.sleep(self.latency + self.jitter * self.chance())
            passed += len(piece)
            if answers and self.reset_after is not None and passed > self.reset_after:
                writer.transport.abort()
                return
            writer.write(piece)
            await writer.drain()


# --------------------------------------------------------------------------------------------------------------- leaks


@frozen
class Left:
    """What was there afterwards and not before."""

    tasks: tuple[str, ...] = ()
    files: int = 0
    threads: int = 0

    def __bool__(self) -> bool:
        return bool(self.tasks or self.files > 0 or self.threads > 0)


@contextmanager
def leaks() -> Generator[Callable[[], Left]]:
    """Tells what is left of this loop's tasks, open files and threads.

    ``with leaks() as left: …`` and then ``assert not left()``. Linux and macOS.
    """
    before, files, threads = _tasks(), _files(), threading.active_count()

    def left() -> Left:
        gc.collect()
        now = _tasks() - before
        return Left(
            tasks=tuple(sorted(task.get_name() for task in now)),
            files=_files() - files,
            threads=threading.active_count() - threads,
        )

    yield left


def _tasks() -> set[asyncio.Task[Any]]:
    try:
        return {task for task in asyncio.all_tasks() if not task.done()}
    except RuntimeError:
        return set()


def _files() -> int:
    return len(os.listdir("/dev/fd"))
