"""What users hold: a client of one account, with a collection for each kind of row."""

import re
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import AbstractContextManager, aclosing
from datetime import datetime, tzinfo
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar
from urllib.parse import urlsplit

from attrs import evolve

from crmclient import flows
from crmclient.auth import AccessToken
from crmclient.clock import SYSTEM_CLOCK, Clock
from crmclient.dialect import (
    START,
    Call,
    Cursor,
    Dialect,
    Filter,
    Flow,
    Made,
    Page,
    Rate,
    Receipt,
    Reply,
    Scheme,
    Secret,
    Start,
    Verb,
    Walk,
)
from crmclient.entities import Company, Contact, Deal, Id, Note, Ref, Task
from crmclient.errors import Misconfigured, Unreadable
from crmclient.hooks import Hook
from crmclient.pacing import SHARED_PACERS, Pacers
from crmclient.registry import dialect as dialect_named
from crmclient.retry import Retry
from crmclient.session import Limits, Session, Setup, Spent, is_loopback
from crmclient.tokens import MemoryTokens, TokenStore, stored_as
from crmclient.vocabulary import Account, Field, KnownTag, Pipeline, Subscription, User

if TYPE_CHECKING:
    import httpx

E = TypeVar("E")
T = TypeVar("T")
Receipts: TypeAlias = list[Receipt[E]]

__all__ = ["Client", "Collection", "InsecureTransport", "Made", "Together", "connect"]


class InsecureTransport(UserWarning):
    """A token goes over plain http to another machine, where anybody on the way can read it."""


class Collection(Generic[E]):
    """All rows of one kind in the account."""

    def __init__(self, session: Session, dialect: Dialect, entity: type[E]) -> None:
        self._session, self._dialect, self._entity = session, dialect, entity

    def list(
        self,
        *,
        updated_since: datetime | None = None,
        created_since: datetime | None = None,
        ids: Iterable[Id] = (),
        owner: Ref | None = None,
        pipeline: Ref | None = None,
        stage: Ref | None = None,
        target: Ref | None = None,
        text: str | None = None,
        prefetch: int | None = None,
        on_bad: Callable[[Unreadable], None] | None = None,
    ) -> AsyncIterator[E]:
        """The rows, one by one, read page by page and ahead of you.

        Filters are the same words in every dialect. What the server cannot filter is filtered here, at the price of
        reading it; what it says it filtered is checked row by row. ``on_bad`` gets each row that cannot be read, and the
        walk goes on; without it the first one is raised. ``prefetch=1`` reads nothing ahead.
        A row that is deleted while you read, before the place you have come to, moves its neighbours up, and one of them
        may slip between two pages: what must be complete is read again, until a pass brings nobody new.

        Raises Unsupported where the dialect cannot list these rows, or they do not tell what a filter asks.
        """
        asked = Filter(
            updated_since=updated_since,
            created_since=created_since,
            ids=tuple(ids),
            owner=owner,
            pipeline=pipeline,
            stage=stage,
            target=target,
            text=text,
        )
        return self._rows(asked, prefetch, on_bad)

    async def _rows(
        self, asked: Filter, prefetch: int | None, on_bad: Callable[[Unreadable], None] | None
    ) -> AsyncIterator[E]:
        walk = flows.listing(self._dialect, self._entity, asked, on_bad)
        async with aclosing(self._session.pages(walk, START, prefetch)) as pages:
            async for page in pages:
                for row in page:
                    yield row
                del page  # it is not held while the next one comes

    def pages(
        self, start: Cursor | Start | None = START, *, asked: Filter | None = None, prefetch: int | None = None
    ) -> AsyncGenerator[Page[E], None]:
        """The pages, each with the cursor of the next: keep it to go on another day. ``pages(None)`` has ended already."""
        return self._session.pages(flows.listing(self._dialect, self._entity, asked), start, prefetch)

    async def cost(self, asked: Filter | None = None) -> int | None:
        """How many requests ``list()`` of these will spend, signing in apart; None where the server tells no number of
        pages. Asking costs one request, and where rows live under others the reading of those lists.
        """
        return await self._session.run(flows.cost(flows.listing(self._dialect, self._entity, asked)))

    def search(self, text: str, **filters: Any) -> AsyncIterator[E]:
        """Rows that hold the text, as the server understands it where it can search."""
        return self.list(text=text, **filters)

    async def get(self, id: Id, *, target: Ref | None = None) -> E:
        """One row. Raises NotFound, and Invalid for an id of the wrong shape."""
        return await self._session.run(flows.get(self._dialect, self._entity, id, target))

    async def create(self, entity: E) -> E:
        """Make a row and give it back with its id; the server's own changes are seen on reading again.

        Raises Invalid, Unsupported (nothing sent); Rejected; PartlyDone; AmbiguousWrite.
        """
        return await self._session.run(flows.create(self._dialect, entity))

    async def create_many(self, entities: Iterable[E], *, batch: int | None = None) -> Receipts[E]:
        """Make rows, many a request; one receipt a row, in order: Made, Refused, NotApplied or Unknown."""
        return await self._session.run(flows.create_many(self._dialect, self._entity, entities, batch))

    async def update(self, entity: E, *, clear: Iterable[str] = (), overwrite: bool = False) -> E:
        """Send what changed since the entity was read; one built by hand sends what it holds.

        ``clear`` names fields to empty. Raises IncompleteRead where the dialect must send everything and the reading
        lacks a part, unless ``overwrite``.
        """
        return await self._session.run(flows.update(self._dialect, entity, clear, overwrite))

    async def update_many(
        self, entities: Iterable[E], *, clear: Iterable[str] = (), overwrite: bool = False, batch: int | None = None
    ) -> Receipts[E]:
        """Update rows; one receipt a row, in order."""
        flow = flows.update_many(self._dialect, self._entity, entities, clear=clear, overwrite=overwrite, batch=batch)
        return await self._session.run(flow)

    async def delete(self, id: Id, *, target: Ref | None = None) -> None:
        """Delete a row. Raises NotFound."""
        await self._session.run(flows.delete(self._dialect, self._entity, id, target))

    async def complete(self, id: Id, *, result: str | None = None) -> None:
        """Mark a task done. Raises Unsupported for a result the dialect cannot keep."""
        await self._session.run(flows.complete(self._dialect, self._entity, id, result))


class Together:
    """Rows of several kinds in one walk, in which nothing is asked for twice. Made by ``Client.together``."""

    def __init__(self, session: Session, walk: Walk[Any], prefetch: int | None) -> None:
        self._session, self._walk, self._prefetch = session, walk, prefetch

    async def __aiter__(self) -> AsyncIterator[Any]:
        async with aclosing(self.pages()) as pages:
            async for page in pages:
                for row in page:
                    yield row

    def pages(self, start: Cursor | Start | None = START) -> AsyncGenerator[Page[Any], None]:
        """The pages, each with the cursor of the next: keep it to go on another day."""
        return self._session.pages(self._walk, start, self._prefetch)

    def coming(self, cursor: Cursor | Start | None = START) -> frozenset[type[Any]]:
        """The kinds of rows that may still come from here on: none from None."""
        if cursor is None:
            return frozenset()
        part = 0 if isinstance(cursor, Start) else cursor.part
        return frozenset[type[Any]]().union(*self._walk.brings[part:])

    async def cost(self) -> int | None:
        """How many requests the walk will spend, signing in apart; None where the server tells no number of pages.
        Asking costs a request a kind, and where rows live under others the reading of those lists.
        """
        return await self._session.run(flows.cost(self._walk))


class Client:
    """One account of one vendor. Made by ``connect``; use it as an async context manager, or ``aclose()`` it.

    Many tasks may share it. It opens no connection before its first call.
    """

    def __init__(self, setup: Setup) -> None:
        self.dialect = setup.dialect
        self.base_url, self.zone = setup.base_url, setup.zone
        self._session = Session(setup)
        self.contacts = self._collection(Contact)
        self.companies = self._collection(Company)
        self.deals = self._collection(Deal)
        self.tasks = self._collection(Task)
        self.notes = self._collection(Note)
        self.users = self._collection(User)
        self.pipelines = self._collection(Pipeline)
        self.fields = self._collection(Field)
        self.tags = self._collection(KnownTag)
        self.webhooks = self._collection(Subscription)

    def _collection(self, entity: type[E]) -> Collection[E]:
        return Collection(self._session, self.dialect, entity)

    def of(self, entity: type[E]) -> Collection[E]:
        """The collection of an entity class."""
        return self._collection(entity)

    def together(
        self,
        *entities: type[Any],
        target: Ref | None = None,
        on_bad: Callable[[type[Any], Unreadable], None] | None = None,
        prefetch: int | None = None,
    ) -> Together:
        """Rows of several kinds in one walk: ``async for row in crm.together(Contact, Deal, Task, Note)``.

        Where a vendor shows tasks and notes only on the card of what they hang on, each card is opened once for all the
        kinds asked for, and the contact or deal comes before them as its card tells it. With ``target`` just that row
        and what hangs on it. ``on_bad`` gets the kind and the error of what cannot be read, and the walk goes on.

        Raises Unsupported for a kind the dialect cannot list.
        """
        return Together(self._session, flows.together(self.dialect, entities, target, on_bad), prefetch)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._session.aclose()

    def can(self, entity: type[Any], verb: Verb) -> bool:
        """Whether the dialect has a route for it: asked, not tried."""
        return self.dialect.can(entity, verb)

    def carried(self, entity: T, verb: Verb = Verb.CREATE) -> tuple[T, frozenset[str]]:
        """What of an entity this dialect can carry as a new row, and the names of the fields it loses."""
        return flows.carried(self.dialect, entity, verb)

    async def setting(self, part: str) -> Any:
        """A part of the account's settings, read once: ``account``, ``me``, ``pipelines`` … Raises Unsupported."""
        return (await self._session.context(part)).part(part)

    def forget(self) -> None:
        """The account's settings may have changed: they are read again when they are needed again."""
        self._session.forget()

    async def account(self) -> Account:
        """The account. Raises Unsupported where the dialect tells nothing of it."""
        return await self.setting("account")

    async def me(self) -> User:
        """The user whose credentials these are. Raises Unsupported where the dialect does not tell."""
        return await self.setting("me")

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """All that is called inside has to be done in so many seconds, or raises DeadlineExceeded.

        A write that had left by then raises AmbiguousWrite. ``with crm.within(seconds=5): await crm.contacts.get(1)``.
        """
        return self._session.within(seconds)

    async def run(self, flow: Flow[T]) -> T:
        """Run an adapter's own flow, for what the neutral client does not name."""
        return await self._session.run(flow)

    async def call(self, call: Call) -> Reply:
        """Send one call: the last resort."""
        return await self._session.send(call)

    @property
    def spent(self) -> Spent:
        """Requests, retries, 429s and renewals so far."""
        return evolve(self._session.spent)

    def __repr__(self) -> str:
        return f"<Client {self.dialect.name} {self.base_url}>"


def connect(
    dialect: str | Dialect,
    account: str | None = None,
    *,
    base_url: str | None = None,
    credentials: Any = None,
    tokens: TokenStore | None = None,
    pacer: Pacers | None = None,
    zone: tzinfo | None = None,
    rate: Rate | Iterable[Rate] | None = None,
    read_only: bool = False,
    transport: "httpx.AsyncBaseTransport | None" = None,
    clock: Clock | None = None,
    retry: Retry | None = None,
    limits: Limits | None = None,
    deadline: float | None = None,
    hooks: Hook | Iterable[Hook] = (),
) -> Client:
    """A client of one account. It never touches the network itself.

    ``account`` is the account's subdomain (or whole host) where the vendor has a public host; else give ``base_url``.
    ``credentials`` are a token (str, Secret or AccessToken) or an OAuthApp whose tokens are kept in ``tokens``.
    ``zone`` stands in where the vendor does not tell the account's time zone. ``rate`` replaces the vendor's limits.
    ``pacer`` is a FilePacer where other processes of this host use the account too: they share its limits.
    ``read_only`` refuses every call that would write. ``deadline`` bounds each call, with its waits and tries, in seconds;
    ``crm.within(seconds)`` bounds several together. ``hooks`` are told of each attempt (``crmclient.hooks``).

    Raises UnknownDialect and Misconfigured, which say what is missing.
    """
    spoken = dialect_named(dialect) if isinstance(dialect, str) else dialect
    where = address(spoken, account, base_url)
    given = AccessToken(credentials) if isinstance(credentials, str | Secret) else credentials
    scheme = _scheme(spoken, given)
    if isinstance(given, AccessToken) and not given.token:
        raise Misconfigured(f"{spoken.title}: the token is empty")
    parts = urlsplit(where)
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        warnings.warn(
            f"the credentials go to {parts.netloc} over plain http: anybody on the way can read them",
            InsecureTransport,
            stacklevel=2,
        )
    if deadline is not None and not 0 < deadline < float("inf"):
        raise Misconfigured(f"deadline is a positive number of seconds, not {deadline}")
    rates = spoken.rate if rate is None else ((rate,) if isinstance(rate, Rate) else tuple(rate))
    setup = Setup(
        dialect=spoken,
        base_url=where,
        scheme=scheme,
        credentials=given,
        store=tokens or MemoryTokens(),
        account=stored_as(spoken.name, parts.netloc),
        kept_as=stored_as(spoken.name, parts.netloc, getattr(given, "login", None)),
        rates=rates,
        pacer=pacer or SHARED_PACERS,
        clock=clock or SYSTEM_CLOCK,
        zone=zone,
        read_only=read_only,
        retry=retry or Retry(),
        limits=limits or Limits(),
        transport=transport,
        deadline=deadline,
        hooks=(hooks,) if callable(hooks) else tuple(hooks),
    )
    return Client(setup)


_SUBDOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)


def address(dialect: Dialect, account: str | None, base_url: str | None) -> str:
    """Where an account's API is. Raises Misconfigured, which says what is missing."""
    if base_url is not None:
        return _checked_url(base_url)
    if dialect.host is None:
        raise Misconfigured(f"{dialect.title} has no public host: give connect(base_url='http://…')")
    if not account:
        raise Misconfigured(f"{dialect.title} needs an account: its subdomain, as in {dialect.host}")
    if _SUBDOMAIN.fullmatch(account):
        return dialect.host.format(account=account)
    subdomain, _, domain = account.partition(".")
    if _SUBDOMAIN.fullmatch(subdomain) and domain.lower() in dialect.domains:
        return f"https://{subdomain}.{domain}"
    known = ", ".join(f"*.{domain}" for domain in dialect.domains)
    raise Misconfigured(f"{account!r} is no account of {dialect.title}: a subdomain, or a host of {known}")


def _checked_url(given: str) -> str:
    # What was given is never shown: it may hold a secret.
    if not given.isprintable() or " " in given:
        raise Misconfigured("base_url holds blanks or control characters")
    try:
        parts = urlsplit(given)
        well = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        if re.fullmatch(r"[0-9.]+", parts.hostname or ""):
            ip_address(parts.hostname or "")
    except ValueError:
        raise Misconfigured("base_url is no address: it is http://host… or https://host…") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise Misconfigured("base_url holds a user, a password, a query or a fragment: none belongs there")
    if not well:
        raise Misconfigured("base_url is no address: it is http://host… or https://host…")
    return given.rstrip("/")


def _scheme(dialect: Dialect, credentials: Any) -> Scheme:
    kinds = " or ".join(scheme.credentials.__name__ for scheme in dialect.auth)
    if credentials is None:
        raise Misconfigured(f"{dialect.title} needs credentials: {kinds}")
    for scheme in dialect.auth:
        if type(credentials) is scheme.credentials:
            return scheme
    raise Misconfigured(f"{dialect.title} takes {kinds}, not {type(credentials).__name__}")
