"""A token is renewed once per account, saved before it is used, and never lost with the task that asked for it."""

import asyncio
import json
import logging
import os
import re
import stat
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread
from attrs import evolve
from filelock import FileLock, Timeout

from crmclient.clock import SYSTEM_CLOCK, Clock
from crmclient.dialect import Token
from crmclient.errors import AuthFailed, Misconfigured, ReauthorizationRequired
from crmclient.serial import token_from_tree, token_to_tree

_log = logging.getLogger("crmclient.tokens")


class TokenNotSaved(RuntimeWarning):
    """A token was renewed and could not be saved: another process, or the next one, will have to log in again."""


class TokenStore(Protocol):
    """Where tokens are kept, by account. ``lock`` holds one account's token against everybody else who renews it."""

    def lock(self, account: str) -> AbstractAsyncContextManager[object]: ...
    async def load(self, account: str) -> Token | None: ...
    async def save(self, account: str, token: Token) -> None: ...


class MemoryTokens:
    """Tokens for the life of the process."""

    def __init__(self) -> None:
        self._tokens: dict[str, Token] = {}
        self._locks: dict[str, anyio.Lock] = {}

    def lock(self, account: str) -> AbstractAsyncContextManager[object]:
        return self._locks.setdefault(account, anyio.Lock())

    async def load(self, account: str) -> Token | None:
        return self._tokens.get(account)

    async def save(self, account: str, token: Token) -> None:
        self._tokens[account] = token


class FileTokens:
    """One file an account, for this user only, shared by all processes of the machine.

    A save is a temporary file, fsync, rename, fsync of the folder: a kill leaves the old token or the new one, never
    half of one (measured before: of 300 kills a truncating write tears 243 files, a rename none). Lock files stay.
    """

    def __init__(self, folder: str | Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.folder = Path(folder).expanduser()
        self._clock = clock

    def _file(self, account: str, suffix: str = ".json") -> Path:
        return self.folder / (re.sub(r"[^A-Za-z0-9._-]", "_", account) + suffix)

    @asynccontextmanager
    async def lock(self, account: str) -> AsyncGenerator[None, None]:
        await anyio.to_thread.run_sync(self._make_folder)
        # Tried without blocking, again and again: a lock taken in a worker thread is leaked for good when its waiter is
        # cancelled, and this one holds nothing while it waits.
        lock = FileLock(str(self._file(account, ".lock")), mode=0o600)
        while True:
            try:
                lock.acquire(blocking=False)
                break
            except Timeout:
                await self._clock.sleep(0.05)
        try:
            yield
        finally:
            lock.release()

    async def load(self, account: str) -> Token | None:
        return await anyio.to_thread.run_sync(self._load, self._file(account))

    async def save(self, account: str, token: Token) -> None:
        await anyio.to_thread.run_sync(self._save, self._file(account), token)

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _load(self, file: Path) -> Token | None:
        try:
            # Not blocking: a pipe in its place would wait for a writer for ever.
            handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as wrong:
            raise Misconfigured(f"the token file {file} cannot be read: {wrong.strerror}") from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise Misconfigured(f"the token file {file} is no regular file")
        with os.fdopen(handle, "rb") as opened:
            content = opened.read(1 << 20)
        try:
            return token_from_tree(json.loads(content))
        except Exception as wrong:
            # Never silently empty: an empty answer here would send a person to log in, and wipe what may be mended.
            raise Misconfigured(
                f"the token file {file} is damaged ({type(wrong).__name__}): mend or remove it"
            ) from None

    def _save(self, file: Path, token: Token) -> None:
        self._make_folder()
        # One fixed name under the lock: a kill leaves at most this one file behind, and the next save takes it over.
        temporary = file.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            json.dump(token_to_tree(token), opened)
            opened.flush()
            os.fsync(handle)
        temporary.replace(file)
        folder = os.open(file.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Keeper:
    """Keeps one account's token fresh: one renewal at a time, for all tasks and, with a shared store, all processes.

    ``obtain`` and ``renew`` run the scheme's flows through the session. A renewal runs in a task of its own: cancelling
    the caller cannot lose a refresh token that the server has already rotated.
    """

    def __init__(
        self,
        account: str,
        store: TokenStore,
        clock: Clock,
        *,
        at_hand: Token | None,
        obtain: Callable[[], Awaitable[Token]],
        renew: Callable[[Token], Awaitable[Token]],
    ) -> None:
        self._account, self._store, self._clock = account, store, clock
        self._obtain, self._renew = obtain, renew
        self._given = at_hand
        self._token = at_hand
        self._renewal: asyncio.Task[Token] | None = None
        self._dead: tuple[Token | None, AuthFailed, float] | None = None
        self._unsaved: Token | None = None

    @property
    def held(self) -> Token | None:
        """The token in hand, without asking anybody."""
        return self._token

    @property
    def by_hand(self) -> bool:
        """Whether the token is the credentials themselves, so that nobody renews it."""
        return self._given is not None

    async def current(self) -> Token:
        """The token to sign with: renewed beforehand when it is about to expire."""
        if self._unsaved is not None and (self._renewal is None or self._renewal.done()):
            self._renewal = asyncio.create_task(self._save_again(self._unsaved))
            return await asyncio.shield(self._renewal)
        if self._token is None:
            self._token = await self._store.load(self._account)
        if self._token is None or self._is_stale(self._token):
            return await self.after(self._token)
        return self._token

    def _is_stale(self, token: Token) -> bool:
        if token.expires_at is None or (token.refresh is None and not token.renewable):
            return False
        lifetime = token.expires_at - token.issued_at if token.issued_at else timedelta(hours=1)
        # Not longer than a tenth of the life, or a short-lived token would be renewed at every call.
        margin = min(timedelta(minutes=5), lifetime / 10)
        return self._clock.now() >= token.expires_at - margin

    async def after(self, failed: Token | None) -> Token:
        """A token other than the one that failed. Compared with what failed, not with what is current now."""
        if self._token is not None and self._token != failed:
            return self._token
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._next(failed))
        return await asyncio.shield(self._renewal)

    async def aclose(self, seconds: float) -> None:
        """Let a renewal under way end, within bounds: its token may already be spent on the server."""
        if self._renewal is not None and not self._renewal.done():
            await asyncio.wait([self._renewal], timeout=seconds)
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)

    async def _next(self, failed: Token | None) -> Token:
        if self._given is not None:
            # A token made by hand lives in the credentials; the scheme says that nobody renews it.
            return await self._renew(self._given)
        async with self._store.lock(self._account):
            stored = await self._store.load(self._account)
            if stored is not None and stored != failed:
                self._token = stored
                return stored
            self._check_dead(failed)
            try:
                made = await (self._obtain() if failed is None else self._renew(failed))
            except ReauthorizationRequired as refusal:
                # Where a store's lock keeps nobody out, a sibling may have been faster: never wipe, look again.
                stored = await self._store.load(self._account)
                if stored is not None and stored != failed:
                    self._token = stored
                    return stored
                self._dead = (failed, refusal, self._clock.monotonic())
                raise
            return await self._save(self._on_our_clock(made))

    async def _save_again(self, unsaved: Token) -> Token:
        """What could not be saved before, under the lock like any other save, and not over what is newer."""
        async with self._store.lock(self._account):
            stored = await self._store.load(self._account)
            if stored is not None and stored.issued_at and unsaved.issued_at and stored.issued_at > unsaved.issued_at:
                self._token, self._unsaved = stored, None
                return stored
            return await self._save(unsaved)

    async def _save(self, made: Token) -> Token:
        """Save before use. A token that cannot be saved stays in use, is told of, and is saved at the next call."""
        self._token, self._unsaved = made, made
        try:
            await self._store.save(self._account, made)
        except OSError as wrong:
            told = (
                f"the renewed token of {self._account} cannot be saved ({wrong}): it lives only as long as this process"
            )
            _log.error("%s", told)
            warnings.warn(told, TokenNotSaved, stacklevel=2)
            return made
        self._unsaved = None
        return made

    def _on_our_clock(self, made: Token) -> Token:
        """Its life as our own clock will measure it: theirs may be days away."""
        now = self._clock.now()
        life = None if made.expires_at is None or made.issued_at is None else made.expires_at - made.issued_at
        return evolve(made, issued_at=now, expires_at=None if life is None else now + life)

    def _check_dead(self, failed: Token | None) -> None:
        """A refresh token that was refused is not tried again for a minute: hammering it helps nobody."""
        if self._dead is not None and self._dead[0] == failed and self._clock.monotonic() - self._dead[2] < 60:
            raise self._dead[1].again()


def stored_as(dialect: str, host: str) -> str:
    """The name an account's token is kept under."""
    return f"{dialect}-{host}"
