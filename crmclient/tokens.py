"""A token is renewed once per account, saved before it is used, and never lost with the task that asked for it."""

import asyncio
import errno
import hashlib
import json
import logging
import os
import stat
import threading
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol, cast
from urllib.parse import quote

import anyio
import anyio.to_thread
from attrs import define, evolve, field, fields_dict, frozen
from filelock import lock_descriptor

from crmclient.clock import SYSTEM_CLOCK, Clock
from crmclient.dialect import Token
from crmclient.errors import (
    AmbiguousWrite,
    AuthFailed,
    ClientClosed,
    CRMError,
    RateLimited,
    ReauthorizationRequired,
    TokenStoreCorrupt,
    TokenStoreFailed,
    Unreachable,
    UsageError,
)
from crmclient.serial import to_tree, token_from_tree, token_to_tree

_log = logging.getLogger("crmclient.tokens")


class TokenNotSaved(RuntimeWarning):
    """A token was renewed and could not be saved: another process, or the next one, will have to log in again."""


class TokenExposed(UserWarning):
    """A token file could be read by others than its owner. It no longer can; whoever has read it still has the token."""


@frozen(kw_only=True)
class Spending:
    """That a refresh token was sent to be exchanged, written down before it is sent.

    ``refresh`` is a hash of it; ``at`` when it was sent, if nobody knows what became of it; ``refused_at`` when the server
    last would not take it.
    """

    refresh: str
    at: datetime | None = None
    refused_at: datetime | None = None

    @classmethod
    def of(cls, token: Token, at: datetime | None = None, refused_at: datetime | None = None) -> "Spending":
        return cls(refresh=_hashed(token), at=at, refused_at=refused_at)

    def concerns(self, token: Token) -> bool:
        """Whether it is this token's refresh token that was sent."""
        return token.refresh is not None and self.refresh == _hashed(token)


def _hashed(token: Token) -> str:
    assert token.refresh is not None  # noqa: S101  nobody spends what is not there
    return hashlib.sha256(token.refresh.reveal().encode()).hexdigest()


class TokenStore(Protocol):
    """Where tokens are kept, by account. ``lock`` holds one account's token against everybody else who renews it.

    ``mark`` keeps beside the token, and never in its place, that its refresh token is being spent; ``marked`` tells it.
    """

    def lock(self, account: str) -> AbstractAsyncContextManager[object]: ...
    async def load(self, account: str) -> Token | None: ...
    async def save(self, account: str, token: Token) -> None: ...
    async def mark(self, account: str, spending: Spending | None) -> None: ...
    async def marked(self, account: str) -> Spending | None: ...


class MemoryTokens:
    """Tokens for the life of the process."""

    def __init__(self) -> None:
        self._tokens: dict[str, Token] = {}
        self._locks: dict[str, anyio.Lock] = {}
        self._marks: dict[str, Spending | None] = {}

    def lock(self, account: str) -> AbstractAsyncContextManager[object]:
        return self._locks.setdefault(account, anyio.Lock())

    async def load(self, account: str) -> Token | None:
        return self._tokens.get(account)

    async def save(self, account: str, token: Token) -> None:
        self._tokens[account] = token

    async def mark(self, account: str, spending: Spending | None) -> None:
        self._marks[account] = spending

    async def marked(self, account: str) -> Spending | None:
        return self._marks.get(account)


# ------------------------------------------------------------------------------------------------------------- files


class Files:
    """What a token store asks of the operating system, call by call: the one thing to replace in order to fail or count it.

    Everything here may block and belongs in a worker thread.
    """

    def folder(self, path: Path) -> os.stat_result:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path.stat()

    def open(self, path: Path, flags: int) -> int:
        # Links are not followed, children get no copy, and a pipe in its place does not wait for a writer for ever.
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)

    def stat(self, handle: int) -> os.stat_result:
        return os.fstat(handle)

    def stat_path(self, path: Path) -> os.stat_result:
        return path.lstat()

    def restrict(self, handle: int) -> None:
        os.fchmod(handle, 0o600)

    def read(self, handle: int, most: int) -> bytes:
        found = b""
        while len(found) < most and (chunk := os.read(handle, most - len(found))):
            found += chunk
        return found

    def write(self, handle: int, content: bytes) -> None:
        while content:
            content = content[os.write(handle, content) :]

    def sync(self, handle: int) -> None:
        os.fsync(handle)

    def lock(self, handle: int) -> bool:
        return lock_descriptor(handle, blocking=False)

    def close(self, handle: int) -> None:
        os.close(handle)

    def replace(self, old: Path, new: Path) -> None:
        old.replace(new)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


FILES: Final = Files()

_VERSION: Final = 1
_MOST: Final = 1 << 20
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

# A fork gives the child a copy of every handle, and a lock lives as long as any copy: the child closes its own.
_HELD: set[int] = set()


def _let_go_in_child() -> None:
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


@define(eq=False)
class _Grip:
    """A lock file's handle on its way out of a worker thread: closed whoever comes last, the thread or a cancelled task."""

    files: Files
    handle: int | None = None
    over: bool = False
    guard: threading.Lock = field(factory=threading.Lock)

    def keep(self, handle: int) -> bool:
        with self.guard:
            if self.over:
                self.files.close(handle)
                return False
            self.handle = handle
            _HELD.add(handle)
            return True

    def release(self) -> None:
        with self.guard:
            self.over = True
            if self.handle is not None:
                handle, self.handle = self.handle, None
                _HELD.discard(handle)
                self.files.close(handle)


class FileTokens:
    """One file an account, for this user only, shared by all processes of the machine.

    A save is a temporary file, fsync, rename, fsync of the folder: a kill leaves the old token or the new one, never
    half of one (measured before: of 300 kills a truncating write tears 243 files, a rename none). Lock files stay.
    Whoever waits for a lock waits ``patience`` seconds and never breaks one: the kernel frees that of a dead process.

    Raises TokenStoreFailed where the folder cannot be used or others may write to it, where a file is a link, a pipe or
    somebody else's, and where locks are not supported; TokenStoreCorrupt where a file holds no token.
    """

    def __init__(
        self, folder: str | Path, *, clock: Clock = SYSTEM_CLOCK, files: Files = FILES, patience: float = 120.0
    ) -> None:
        self.folder = Path(folder).expanduser()
        self._clock, self._files, self._patience = clock, files, patience

    def _file(self, account: str, suffix: str = ".json") -> Path:
        return self.folder / (quote(account, safe="") + suffix)

    @asynccontextmanager
    async def lock(self, account: str) -> AsyncGenerator[None, None]:
        file, until = self._file(account, ".lock"), self._clock.monotonic() + self._patience
        # Tried without blocking, again and again: a lock waited for in a worker thread is leaked for good when its waiter
        # is cancelled, and this one holds nothing while it waits.
        while True:
            grip = _Grip(self._files)
            try:
                if await anyio.to_thread.run_sync(self._take, file, grip):
                    break
            except BaseException:
                grip.release()
                raise
            if self._clock.monotonic() >= until:
                raise TokenStoreFailed(
                    f"{file} has been locked for {self._patience:g} s: another process is renewing this token, or hangs"
                )
            await self._clock.sleep(0.05)
        try:
            yield
        finally:
            try:
                await anyio.to_thread.run_sync(grip.release)
            finally:
                grip.release()

    async def load(self, account: str) -> Token | None:
        return await anyio.to_thread.run_sync(self._load, self._file(account))

    async def save(self, account: str, token: Token) -> None:
        """Keep a token, on the disk when this returns. Hold the lock meanwhile."""
        await anyio.to_thread.run_sync(self._save, self._file(account), token)

    async def mark(self, account: str, spending: Spending | None) -> None:
        await anyio.to_thread.run_sync(self._mark, self._file(account, ".spent"), spending)

    async def marked(self, account: str) -> Spending | None:
        return await anyio.to_thread.run_sync(self._marked, self._file(account, ".spent"))

    def _take(self, file: Path, grip: _Grip) -> bool:
        """The lock, if it is free now."""
        self._check_folder()
        with _saying(f"the lock file {file} cannot be opened"):
            handle = self._files.open(file, os.O_RDWR | os.O_CREAT)
        taken = False
        try:
            ours = self._ours(file, handle)
            if ours is None:
                return False
            try:
                taken = self._files.lock(handle)
            except OSError as wrong:
                if wrong.errno in _NO_LOCKS:
                    raise TokenStoreFailed(
                        f"{self.folder} is on a file system without locks ({wrong.strerror}), and without them two "
                        "processes spend one token twice: keep tokens on a local disk"
                    ) from None
                raise TokenStoreFailed(f"{file} cannot be locked: {wrong.strerror}") from None
            if taken:
                # Somebody may have removed the file meanwhile: a lock on what has no name keeps nobody out.
                try:
                    there = self._files.stat_path(file)
                except FileNotFoundError:
                    taken = False
                else:
                    taken = (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
        finally:
            if not taken:
                self._files.close(handle)
        return taken and grip.keep(handle)

    def _check_folder(self) -> None:
        with _saying(f"the token folder {self.folder} cannot be made"):
            found = self._files.folder(self.folder)
        if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
            raise TokenStoreFailed(
                f"others may write to {self.folder}, and so replace what it holds: keep tokens in a folder of their own, "
                "which is made as it should be, or take the right away (chmod 700)"
            )

    def _ours(self, file: Path, handle: int) -> os.stat_result | None:
        """What the handle is of. None for a file that was removed meanwhile."""
        found = self._files.stat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise TokenStoreFailed(f"{file} is no regular file")
        if found.st_uid != os.geteuid():
            raise TokenStoreFailed(f"{file} belongs to another user (uid {found.st_uid})")
        if found.st_nlink > 1:
            raise TokenStoreFailed(f"{file} has another name too (a hard link): remove that one")
        if found.st_mode & 0o077:
            self._files.restrict(handle)
        return found if found.st_nlink else None

    def _load(self, file: Path) -> Token | None:
        found = self._read(file)
        return None if found is None else token_from_tree(found)

    def _content(self, file: Path) -> bytes | None:
        try:
            handle = self._files.open(file, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as wrong:
            raise TokenStoreFailed(f"{file} cannot be read: {_reason(wrong)}") from None
        try:
            with _saying(f"{file} cannot be read"):
                found = self._ours(file, handle)
                content = self._files.read(handle, _MOST + 1)
        finally:
            self._files.close(handle)
        if found is not None and found.st_mode & 0o077:
            told = f"{file} could be read by others until now (mode {stat.S_IMODE(found.st_mode):o})"
            _log.warning("%s", told)
            warnings.warn(told, TokenExposed, stacklevel=2)
        return content

    def _read(self, file: Path) -> dict[str, Any] | None:
        """What a token file holds, once it is known to be a token."""
        content = self._content(file)
        if content is None:
            return None
        try:
            if len(content) > _MOST:
                raise ValueError("it is larger than any token")
            tree = json.loads(content)
            version = tree.get("version", _VERSION)
            if type(version) is not int or version < 1:
                raise ValueError("it is of no version")
            if version <= _VERSION:
                token_from_tree(tree)
        except Exception as wrong:
            # Never silently empty: an empty answer would send a person to log in, and wipe what may be mended.
            raise TokenStoreCorrupt(
                f"the token file {file} is damaged ({type(wrong).__name__}): mend it, or log in again, which moves it aside"
            ) from None
        if version > _VERSION:
            raise TokenStoreFailed(
                f"the token file {file} was written by a newer crmclient (its version is {version}, and {_VERSION} is "
                "known here): upgrade this one"
            )
        return cast("dict[str, Any]", tree)

    def _save(self, file: Path, token: Token) -> None:
        self._check_folder()
        # What a newer version keeps beside the token stays.
        others = {name: part for name, part in self._replaced(file).items() if name not in fields_dict(Token)}
        self._write(file, {**others, "version": _VERSION, **token_to_tree(token)})

    def _replaced(self, file: Path) -> dict[str, Any]:
        """What stands where a token is about to be kept. What is no token is moved aside, for a person to look at."""
        try:
            return self._read(file) or {}
        except TokenStoreCorrupt:
            aside = file.with_name(f"{file.name}.corrupt-{self._clock.now():%Y%m%dT%H%M%S.%fZ}")
            with _saying(f"the damaged token file {file} cannot be moved aside"):
                self._files.replace(file, aside)
            _log.warning("the damaged token file %s was moved to %s", file, aside.name)
            return {}

    def _write(self, file: Path, tree: dict[str, Any]) -> None:
        with _saying(f"{file} cannot be written"):
            # One fixed name under the lock: a kill leaves at most this one file behind, and the next save takes it over.
            temporary = file.with_suffix(".new")
            self._files.remove(temporary)
            handle = self._files.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                self._files.write(handle, json.dumps(tree).encode())
                self._files.sync(handle)
            finally:
                self._files.close(handle)
            self._files.replace(temporary, file)
            folder = self._files.open(self.folder, os.O_RDONLY)
            try:
                self._files.sync(folder)
            finally:
                self._files.close(folder)

    def _mark(self, file: Path, spending: Spending | None) -> None:
        if spending is None:
            with _saying(f"{file} cannot be removed"):
                self._files.remove(file)
            return
        self._check_folder()
        self._write(file, {"version": _VERSION, **to_tree(spending)})

    def _marked(self, file: Path) -> Spending | None:
        content = self._content(file)
        if content is None:
            return None
        try:
            tree = json.loads(content)
            at, refused_at = (_moment(tree.get(name)) for name in ("at", "refused_at"))
            return Spending(refresh=str(tree["refresh"]), at=at, refused_at=refused_at)
        except Exception:
            # It only says more than is known without it.
            _log.warning("%s is damaged and not used", file)
            return None


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC)


@contextmanager
def _saying(what: str) -> Generator[None]:
    """An error of the operating system becomes one that says what could not be done."""
    try:
        yield
    except OSError as wrong:
        raise TokenStoreFailed(f"{what}: {_reason(wrong)}") from None


def _reason(wrong: OSError) -> str:
    return "it is a symbolic link" if wrong.errno == errno.ELOOP else wrong.strerror or type(wrong).__name__


# ------------------------------------------------------------------------------------------------------------- keeper

# A refresh token that was refused is not tried again for so long; one that the server could not be asked about, for so
# long. In seconds.
_REFUSED: Final = 60.0
_COOL_DOWN: Final = 30.0
# Between a renewal whose answer was lost and the one more try, and between two tries to save what could not be saved.
_ONCE_MORE: Final = 1.0
_SAVE_AGAIN: Final = 5.0


@frozen
class _Failure:
    """Why a token could not be renewed, and until when nobody asks again."""

    of: Token | None
    error: CRMError
    until: float


class Keeper:
    """Keeps one account's token fresh: one renewal at a time, for all tasks and, with a shared store, all processes.

    ``obtain`` and ``renew`` run the scheme's flows through the session. A renewal runs in a task of its own: cancelling
    the caller cannot lose a refresh token that the server has already rotated. Before a refresh token is sent, the store
    holds when; so it tells the next process what became of it, wherever this one is killed. ``told`` hears how a renewal
    ended, in seconds and with what went wrong, once its lock is free.
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
        told: Callable[[float, CRMError | None], None] | None = None,
    ) -> None:
        self._account, self._store, self._clock = account, store, clock
        self._obtain, self._renew, self._told = obtain, renew, told
        self._given = at_hand
        self._token = at_hand
        self._renewal: asyncio.Task[Token] | None = None
        self._failure: _Failure | None = None
        self._unsaved: Token | None = None
        self._save_after = 0.0
        self._asked = False

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
        if self._unsaved is not None and not self._renewing and self._clock.monotonic() >= self._save_after:
            self._renewal = asyncio.create_task(self._save_again(self._unsaved))
            return await asyncio.shield(self._renewal)
        if self._token is None:
            self._token = await self._store.load(self._account)
        token = self._token
        if token is not None and not self._is_stale(token):
            return token
        try:
            return await self.after(token)
        except ClientClosed:
            raise
        except CRMError as failed:
            if token is None or token.expires_at is None or self._clock.now() >= token.expires_at:
                raise
            # It lives, so it signs: what ails the renewal may be over before it ends.
            _log.warning("%s: the token is used to its end: %s", self._account, type(failed).__name__)
            return token

    @property
    def _renewing(self) -> bool:
        return self._renewal is not None and not self._renewal.done()

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
        if self._unsaved is not None and not self._renewing:
            self._renewal = asyncio.create_task(self._save_again(self._unsaved))
        if self._renewal is not None and not self._renewal.done():
            await asyncio.wait([self._renewal], timeout=seconds)
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)

    # ----------------------------------------------------------------------------------------------- renewing

    async def _next(self, failed: Token | None) -> Token:
        if self._given is not None:
            # A token made by hand lives in the credentials; the scheme says that nobody renews it.
            return await self._renew(self._given)
        begun, wrong, self._asked = self._clock.monotonic(), None, False
        try:
            return await self._locked(failed)
        except CRMError as raised:
            wrong = raised
            raise
        finally:
            if self._asked and self._told is not None:
                self._told(self._clock.monotonic() - begun, wrong)

    async def _locked(self, failed: Token | None) -> Token:
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._store.lock(self._account))
            except TokenStoreFailed:
                if (newer := await self._newer(failed)) is not None:
                    return newer
                raise
            if (newer := await self._newer(failed)) is not None:
                return newer
            token = self._unsaved or await self._store.load(self._account) or failed
            self._check_failure(token)
            try:
                return await self._save(self._on_our_clock(await self._ask(token)))
            except CRMError as error:
                if isinstance(error, AuthFailed) and (newer := await self._newer(token)) is not None:
                    # Where a store's lock keeps nobody out, a sibling may have been faster: never wipe, look again.
                    return newer
                self._fail(token, error)
                raise

    async def _newer(self, failed: Token | None) -> Token | None:
        """What a sibling has put into the store instead of the token that failed."""
        stored = await self._store.load(self._account)
        if stored is None or stored == failed or self._is_stale(stored):
            return None
        if self._unsaved is not None and not _later(stored, self._unsaved):
            return None  # what ours is to replace, as soon as it can be saved
        self._token, self._unsaved = stored, None
        return stored

    async def _ask(self, token: Token | None) -> Token:
        if token is None:
            return await self._twice(self._obtain, [])
        self._asked = True
        if token.refresh is None:
            return await self._twice(lambda: self._renew(token), [])
        return await self._exchanged(token)

    async def _exchanged(self, token: Token) -> Token:
        """Another token for this one, whose refresh token may be taken only once."""
        now, known = self._clock.now(), await self._store.marked(self._account)
        if known is None or not known.concerns(token):
            known = Spending.of(token)
        if known.refused_at is not None and timedelta() <= now - known.refused_at < timedelta(seconds=_REFUSED):
            self._asked = False
            raise _spent(known) or ReauthorizationRequired(
                f"the refresh token was refused at {_at(known.refused_at)}: log in again (`crmclient login`)"
            )
        # Before anything is sent: whatever kills this process from here on, the next one knows when it was spent. And a
        # store that cannot keep this would not keep the successor either.
        marked = evolve(known, at=known.at or now)
        try:
            await self._store.mark(self._account, marked)
        except (OSError, TokenStoreFailed) as wrong:
            raise TokenStoreFailed(
                f"the token of {self._account} was not renewed, since the next one could not be kept: {_why(wrong)}"
            ) from None
        doubts: list[CRMError] = []
        try:
            return await self._twice(lambda: self._renew(token), doubts)
        except ReauthorizationRequired as refusal:
            if await self._newer(token) is None:
                known = evolve(marked if doubts else known, refused_at=now)
                await self._note(known)
            raise _spent(known, refusal) or refusal from None
        except (AuthFailed, Unreachable, RateLimited, UsageError):
            if not doubts and known.at is None:
                await self._note(None)  # certainly not taken, so nothing became of it
            raise

    async def _twice(self, ask: Callable[[], Awaitable[Token]], doubts: list[CRMError]) -> Token:
        """Ask, and once more where the answer was lost.

        That does no harm: if the first was obeyed, its answer is lost with whatever it held. Some vendors even promise
        that the old refresh token works until the new one is first used.
        """
        try:
            return await ask()
        except AmbiguousWrite as lost:
            doubts.append(lost)
        await self._clock.sleep(_ONCE_MORE)
        try:
            return await ask()
        except AmbiguousWrite as lost:
            # Whether a write was applied is the wrong question here: what ails the server is the right one.
            raise lost.__cause__ or lost from None

    async def _note(self, spending: Spending | None) -> None:
        """Keep what is known of a refresh token. It is worth no failure of its own."""
        try:
            await self._store.mark(self._account, spending)
        except (OSError, TokenStoreFailed) as wrong:
            _log.warning("what became of the refresh token of %s cannot be kept: %s", self._account, _why(wrong))

    def _check_failure(self, failed: Token | None) -> None:
        """What was refused is not tried again for a minute, what could not be asked not for a while."""
        known = self._failure
        if known is not None and known.of == failed and self._clock.monotonic() < known.until:
            raise known.error.again()

    def _fail(self, failed: Token | None, error: CRMError) -> None:
        if isinstance(error, Unreachable | UsageError):
            return  # nothing arrived anywhere, so nobody is hammered
        wait = _REFUSED if isinstance(error, AuthFailed) else _COOL_DOWN
        self._failure = _Failure(failed, error, self._clock.monotonic() + wait)

    # ------------------------------------------------------------------------------------------------- saving

    async def _save_again(self, unsaved: Token) -> Token:
        """What could not be saved before, under the lock like any other save, and not over what is newer."""
        try:
            async with self._store.lock(self._account):
                return await self._newer(unsaved) or await self._save(unsaved)
        except (OSError, TokenStoreFailed) as wrong:
            return self._cannot_save(unsaved, wrong)

    async def _save(self, made: Token) -> Token:
        """Save before use. A token that cannot be saved stays in use, is told of, and is saved at a later call."""
        self._unsaved = made
        try:
            await self._store.save(self._account, made)
        except Exception as wrong:
            # Whatever it is: the server has spent the old one, and this one must not go the same way.
            return self._cannot_save(made, wrong)
        self._token, self._unsaved = made, None
        if made.refresh is not None:
            await self._note(None)
        return made

    def _cannot_save(self, made: Token, wrong: Exception) -> Token:
        self._token, self._save_after = made, self._clock.monotonic() + _SAVE_AGAIN
        told = f"the renewed token of {self._account} cannot be saved ({_why(wrong)}): it lives only as long as this process"
        _log.error("%s", told)
        warnings.warn(told, TokenNotSaved, stacklevel=3)
        return made

    def _on_our_clock(self, made: Token) -> Token:
        """Its life as our own clock will measure it: theirs may be days away."""
        now = self._clock.now()
        life = None if made.expires_at is None or made.issued_at is None else made.expires_at - made.issued_at
        return evolve(made, issued_at=now, expires_at=None if life is None else now + life)


def _later(one: Token, other: Token) -> bool:
    return one.issued_at is not None and (other.issued_at is None or one.issued_at > other.issued_at)


def _spent(known: Spending, refusal: CRMError | None = None) -> ReauthorizationRequired | None:
    if known.at is None:
        return None
    told = ReauthorizationRequired(
        f"the refresh token was spent at {_at(known.at)}; re-authorise (`crmclient login`): the answer with the next one "
        "never came, or was never kept"
    )
    if refusal is not None:
        told.status, told.code, told.detail = refusal.status, refusal.code, refusal.detail
    return told


def _at(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def _why(wrong: Exception) -> str:
    """What went wrong with a store. Of errors nobody here knows, only the name: their words may hold a secret."""
    if isinstance(wrong, CRMError):
        return str(wrong)
    return _reason(wrong) if isinstance(wrong, OSError) else type(wrong).__name__


def stored_as(dialect: str, host: str, login: str | None = None) -> str:
    """The name an account's token is kept under; a login's session is that user's alone, with that user's rights."""
    whose = f"-{login.lower()}" if login is not None else ""
    return f"{dialect}-{host.lower()}{whose}"
