"""THE CONTRACT: a dialect is a value made of routes and pure functions, and whoever does I/O reads it.

Nothing here awaits, waits or connects. An adapter builds one ``Dialect``; ``flows`` turns what a user asks into
generators of ``Call``; ``session`` is what sends them.
"""

import re
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from datetime import datetime, tzinfo
from decimal import Decimal
from email.utils import parsedate_to_datetime
from enum import Enum, Flag, StrEnum, auto
from math import isfinite
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeAlias, TypeGuard, TypeVar, cast
from urllib.parse import quote, urlsplit

from attrs import Factory, evolve, field, frozen, validators

from crmclient.entities import Entity, Id, Kind, Ref, field_names
from crmclient.errors import (
    AccountMoved,
    AmbiguousWrite,
    AuthFailed,
    CRMError,
    Invalid,
    Issue,
    NotFound,
    RateLimited,
    Rejected,
    Unavailable,
    Unreadable,
    Unsupported,
)
from crmclient.vocabulary import Account

T = TypeVar("T")
E = TypeVar("E")

# ------------------------------------------------------------------------------------------------ one request, one answer

Tree: TypeAlias = Any
"""What a format reads or writes: None, bool, int, Decimal, str, and lists and str-keyed dicts of them."""

Pairs: TypeAlias = tuple[tuple[str, str], ...]


@frozen
class Call:
    """One request before it has met a host, a credential or a clock.

    ``safe`` says that it only reads, ``replayable`` that sending it twice does no harm: that is what a retry after a
    lost answer asks. ``signed=False`` is for the calls that fetch a credential.
    """

    method: str
    path: str
    query: Pairs = field(default=(), repr=False)
    # Neither is shown: once signed, either may hold the credentials.
    headers: Mapping[str, str] = field(factory=dict[str, str], repr=False)
    body: Tree = field(default=None, repr=False)
    safe: bool = field(kw_only=True, default=False)
    replayable: bool = field(kw_only=True, default=False)
    signed: bool = field(kw_only=True, default=True)

    def with_query(self, *pairs: tuple[str, str]) -> "Call":
        return evolve(self, query=(*self.query, *pairs))


def read(path: str, *query: tuple[str, str]) -> Call:
    """A GET: reading twice does no harm."""
    return Call("GET", path, query, safe=True, replayable=True)


@frozen
class Unparsed:
    """A body that the dialect's format could not read: HTML where JSON was due, a cut text."""

    preview: str
    reason: str


@frozen
class Reply:
    """One answer. ``body`` is a tree, ``None`` for an empty body, or ``Unparsed``. Header names are lower case.

    ``cookies`` are those the server set for itself or for a domain of its vendor; nobody else keeps them.
    """

    status: int
    headers: Mapping[str, str] = field(factory=dict[str, str])
    body: Tree | Unparsed = None
    origin: str = ""
    cookies: Mapping[str, str] = field(factory=dict[str, str], repr=False)

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def request_id(self) -> str | None:
        return self.headers.get("x-request-id")


def mapping(tree: Tree) -> dict[str, Any]:
    """A tree that should be an object, as one; anything else is an empty one, so that asking it answers None."""
    return tree if isinstance(tree, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def array(tree: Tree) -> list[Any]:
    """A tree that should be a list, as one; anything else is an empty one."""
    return tree if isinstance(tree, list) else []  # pyright: ignore[reportUnknownVariableType]


def is_mapping(part: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether it is an object of a tree, or what a caller gave for one."""
    return isinstance(part, Mapping)


def is_tree(part: object) -> bool:
    """Whether it can stand in a tree: no number that is none, no key that is no text, nothing else but plain values."""
    if is_mapping(part):
        return all(type(key) is str and is_tree(each) for key, each in part.items())
    if isinstance(part, list | tuple):
        return all(is_tree(each) for each in cast("Sequence[object]", part))
    if isinstance(part, float | Decimal):
        return isfinite(part)
    return part is None or isinstance(part, str | int)


def at_path(template: str, **parts: Id | None) -> str:
    """Fill a path template with ids, quoted so that an id stays one segment whatever it holds.

    Raises Invalid for an id that cannot be one segment: empty, ``.``, ``..`` or with control characters.
    """
    quoted: dict[str, str] = {}
    for name, part in parts.items():
        text = "" if part is None else str(part)
        if text in ("", ".", "..") or any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
            raise Invalid(f"{part!r} is no {name}: it cannot stand in the path {template}")
        quoted[name] = quote(text, safe="")
    return template.format(**quoted)


_WHOLE = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)


def whole_number(given: object) -> int:
    """An id of the kind most dialects use: a positive whole number, digits in a str taken too. ValueError otherwise."""
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return given
    if isinstance(given, str) and _WHOLE.fullmatch(given):
        return int(given)
    raise ValueError(f"an id is a positive whole number, not {given!r}")


# --------------------------------------------------------------------------------------------------- conversations


class MissingPart(Exception):
    """A pure function found that it needs a settings part that was not read yet. Flows catch it; nobody else does."""

    def __init__(self, part: str, optional: bool = False) -> None:
        super().__init__(part)
        self.part, self.optional = part, optional


class Absent(Enum):
    """Stands for a settings part that these credentials may not read."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT


@frozen
class Context:
    """What a codec may know beyond the row: the settings parts read so far, the server's time, the account's zone.

    ``parent`` is what the row lives under, where its own bytes do not say; its id is None in a listing over many.
    """

    parts: Mapping[str, Any] = field(factory=dict[str, Any])
    now: datetime | None = None
    given_zone: tzinfo | None = None
    parent: Ref | None = None

    def part(self, name: str) -> Any:
        """A settings part; the flow reads it first if it was not read yet, and raises AuthFailed where it may not."""
        found = self.parts.get(name, ABSENT)
        if found is ABSENT:
            raise MissingPart(name)
        return found

    def part_if_allowed(self, name: str) -> Any:
        """A settings part that one can do without: None where these credentials may not read it (403)."""
        if name not in self.parts:
            raise MissingPart(name, optional=True)
        found = self.parts[name]
        return None if found is ABSENT else found

    @property
    def zone(self) -> tzinfo:
        """The account's time zone: as given to connect(), else from its settings.

        Raises Invalid where neither tells.
        """
        if self.given_zone is not None:
            return self.given_zone
        account = self.part("account")
        if not isinstance(account, Account) or account.zone is None:
            raise Invalid("this account does not tell its time zone: give connect(zone=…) to read and write its dates")
        return account.zone


@frozen
class Need:
    """Asks the driver for a Context; with a part, for one that holds it, read at most ``fresh`` seconds ago.

    ``optional``: a part that may not be read (403) is ABSENT in it, and is not asked for again. ``fresh`` without a part
    is 0: every part is forgotten, because words of the account have just been written. ``turn``: there is more to compute,
    and whoever waits for the event loop goes first
    (by itself: it names no part).
    """

    part: str | None = None
    fresh: float | None = None
    optional: bool = False
    turn: bool = False


Step: TypeAlias = Call | tuple[Call, ...] | Need
Flow: TypeAlias = Generator[Step, Any, T]
"""A generator of steps that returns T.

A ``Call`` is answered with a Reply, or the error is thrown in. A tuple of independent Calls is sent side by side and
answered with a tuple that holds a Reply or a CRMError for each, in order. A ``Need`` is answered with a Context.
"""


class Start(Enum):
    """Where a walk begins. Not None: None is where a walk has ended."""

    START = "start"


START = Start.START


@frozen
class Cursor:
    """Where a walk stands: a value that can be kept and gone on from. ``part`` counts the walks that are chained."""

    at: int | str
    part: int = 0


@frozen(kw_only=True)
class Walk(Generic[T]):
    """A listing as a value, so that pages stream and can be read ahead.

    ``ahead(cursor, n)`` is the cursor n pages further where it can be computed, else None. ``last(reply)`` is the last
    page where the answer tells it. ``after`` gets the number of raw rows and says None at the end. ``firsts`` is where
    each of the listings that are walked one after another begins; ``opens`` is how many calls each of its rows costs.
    """

    first: Cursor
    call: Callable[[Cursor], Call]
    rows: Callable[[Cursor, Reply], Sequence[Any]]
    after: Callable[[Cursor, Reply, int], Cursor | None]
    ahead: Callable[[Cursor, int], Cursor | None]
    last: Callable[[Cursor, Reply], Cursor | None]
    items: Callable[[Cursor, Sequence[Any]], Flow[tuple[T, ...]]]
    firsts: tuple[Cursor, ...] = field(default=Factory(lambda walk: (walk.first,), takes_self=True))
    # The kinds of rows that each of these listings brings.
    brings: tuple[frozenset[type[Any]], ...] = ()
    opens: Callable[[Cursor], int] = lambda cursor: 0


@frozen(kw_only=True)
class Page(Generic[T]):
    """One page of a walk. Keep ``next`` to go on later; it is None after the last."""

    items: tuple[T, ...]
    cursor: Cursor
    next: Cursor | None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)


# --------------------------------------------------------------------------------------------------- filters


@frozen(kw_only=True)
class Filter:
    """The same words in every dialect. What the server cannot filter is filtered here; what it can is checked here."""

    updated_since: datetime | None = None
    created_since: datetime | None = None
    ids: tuple[Id, ...] = ()
    owner: Ref | None = None
    pipeline: Ref | None = None
    stage: Ref | None = None
    target: Ref | None = None
    text: str | None = None

    def asked(self) -> dict[str, Any]:
        """The filters in use, by name."""
        named = {name: getattr(self, name) for name in field_names(Filter)}
        return {name: given for name, given in named.items() if given is not None and given != ()}


# --------------------------------------------------------------------------------------------------- outcomes of writes


@frozen(kw_only=True)
class Made(Generic[E]):
    """Applied. ``entity`` has its id. ``issues`` name what was asked for beside the row and was not done (a link): in
    ``entity`` that is as it was before.

    ``known`` are the neutral fields the answer itself tells; ``entity`` has them.
    """

    id: Id | None = None
    entity: E | None = None
    issues: tuple[Issue, ...] = ()
    known: Mapping[str, Any] = field(factory=dict[str, Any])

    def made(self) -> E:
        if self.entity is None:
            raise TypeError("this receipt holds no entity")
        return self.entity


@frozen(kw_only=True)
class _NotMade:
    error: CRMError

    def made(self) -> Any:
        raise self.error


@frozen(kw_only=True)
class Refused(_NotMade):
    """The server, or our own check before sending, refused this row.

    ``error`` is Rejected or Invalid, with issues, or NotFound.
    """


@frozen(kw_only=True)
class NotApplied(_NotMade):
    """Certainly not applied, through no fault of this row's."""


@frozen(kw_only=True)
class Unknown(_NotMade):
    """May or may not be applied; ``error`` is AmbiguousWrite. Look before repeating."""


Receipt: TypeAlias = Made[E] | Refused | NotApplied | Unknown
"""What became of one row. ``receipt.made()`` gives the entity or raises what happened to it."""


def lost(error: CRMError, what: str) -> AmbiguousWrite:
    """The error of a write whose outcome is unknown, told from what was seen of it."""
    told = AmbiguousWrite(
        f"it is unknown whether {what} was applied; look before repeating it. {error.message}",
        status=error.status,
        request_id=error.request_id,
        code=error.code,
        detail=error.detail,
    )
    told.__cause__ = error
    return told


# --------------------------------------------------------------------------------------------------- routes


class Verb(StrEnum):
    """What can be asked of a kind of row."""

    LIST = "list"
    GET = "get"
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    COMPLETE = "complete"


@frozen(kw_only=True)
class Row:
    """One row of a write. ``number`` is its place in what the caller gave, and ``request_id`` goes along on the wire.

    ``whole`` says that ``wire`` is all there is of the row, and not a change of it. ``before`` is the row of an update as
    it was last known; None for a new one, and where nobody knows.
    """

    number: int
    wire: dict[str, Any]
    entity: Any
    id: Id | None = None
    target: Ref | None = None
    whole: bool = False
    before: Any = None

    @property
    def request_id(self) -> int:
        """Unique in the batch and never 0: a vendor that was given none answers 0."""
        return self.number + 1


def row_number(request_id: object) -> int | None:
    """The row a vendor speaks of by the request id it was given, as a number or as its digits."""
    text = str(request_id)
    return int(text) - 1 if text.isascii() and text.isdecimal() and int(text) > 0 else None


class Paging(Protocol):
    """How a listing goes on: stateless, a position is a value."""

    @property
    def first(self) -> int | str: ...
    def at(self, call: Call, position: int | str) -> Call: ...
    def after(self, position: int | str, reply: Reply, count: int) -> int | str | None: ...
    def ahead(self, position: int | str, n: int) -> int | str | None: ...
    def last(self, reply: Reply) -> int | str | None: ...


@frozen(kw_only=True)
class Nested:
    """Rows that live under others. ``of`` reads one parent's; ``every`` lists all under one kind of parent.

    Where there is no ``every``, ``of`` opens the parent and shows all its rows at once; to list all rows the parents are
    walked and opened, their details side by side.
    """

    parents: tuple[Kind, ...]
    of: Callable[[Ref], Call]
    every: Callable[[Kind], Call] | None = None


Narrow: TypeAlias = Callable[[Call, Filter], Call]


@frozen(kw_only=True)
class Listing:
    """Reads many. ``filters`` are the neutral filters the server knows, each as what it does to the call.

    A filter named in ``trusted`` is not checked row by row, because only the server knows what it matched.
    ``paged`` is another paging where what is asked for calls for one, else None.
    """

    rows: Callable[[Reply], Sequence[Any]]
    call: Call | None = None
    nested: Nested | None = None
    paging: Paging | None = None
    filters: Mapping[str, Narrow] = field(factory=dict[str, Narrow])
    trusted: frozenset[str] = frozenset()
    paged: Callable[[Filter], Paging | None] = lambda asked: None


@frozen(kw_only=True)
class Getting:
    """Reads one. ``row`` gives None where the answer says there is none."""

    call: Callable[[Id, Ref | None], Call]
    row: Callable[[Reply], Any | None]


@frozen(kw_only=True)
class FollowUp:
    """A call that finishes rows already made (a link). If it fails, they stay made and their receipts say so.

    Those of one row are sent one after the other, in the order given; after one that failed, no more of its ``field``.
    ``refused`` knows errors that sit inside a 200.
    """

    call: Call
    field: str
    rows: tuple[int, ...]
    refused: Callable[[Reply], CRMError | None] = lambda reply: None


@frozen(kw_only=True)
class Mending:
    """A second try for rows that were refused for want of what only the stored row tells.

    ``wanted`` knows such a refusal; ``read`` reads the stored rows, and ``mended`` gives the rows that go once more.
    """

    wanted: Callable[[Row, CRMError], bool]
    read: Callable[[Sequence[Row]], Call]
    mended: Callable[[Sequence[Row], Reply], Sequence[Row]]


@frozen(kw_only=True)
class Writing:
    """Writes rows: the envelope, and nothing about entities.

    ``unwrap`` knows errors that sit inside a 200, row by row; it gives one receipt a row, in the rows' order.
    ``batch`` is the vendor's limit, ``advised_batch`` what it advises. ``atomic``: one bad row refuses the whole batch.
    ``group_by``: rows of one call agree on it. ``mending``: what gives refused rows a second try. ``then``: what
    finishes the rows once they are made; ``redates``: it dates them anew, whatever they were given. ``says``: whether the
    row's own request has anything to say: where it has not, only what ``then`` gives is sent. ``find``: under which
    filter a row is looked for that was made and whose id the answer did not tell; None where there is no such filter.
    ``quiet``: the wire row as one that starts nothing at the vendor's, where that can be said.
    """

    method: str
    path: Callable[[Row], str]
    unwrap: Callable[[Reply, Sequence[Row]], Sequence[Receipt[Any]]]
    wrap: Callable[[Sequence[Row]], Tree] = lambda rows: rows[0].wire
    batch: int = 1
    advised_batch: int | None = None
    atomic: bool = False
    replayable: bool = False
    group_by: Callable[[Row], Hashable] | None = None
    mending: Mending | None = None
    then: Callable[[Sequence[Row]], Sequence[FollowUp]] | None = None
    redates: bool = False
    says: Callable[[Row], bool] = lambda row: True
    find: Callable[[Any], Filter | None] | None = None
    quiet: Callable[[Any], Any] | None = None

    def call(self, rows: Sequence[Row]) -> Call:
        return Call(self.method, self.path(rows[0]), body=self.wrap(rows), replayable=self.replayable)


@frozen(kw_only=True)
class Merging:
    """An edit that must send everything: read the row, lay the change over it, write the whole.

    ``read`` is None where one row cannot be read; then the reading the entity came with is used.
    ``whole`` is a reading in the form the write wants; ``lacks(reading, change)`` names the writable sections that neither
    the reading brings nor the change, which is the wire row of the fields that changed.
    """

    write: Writing
    whole: Callable[[Any], dict[str, Any]]
    lacks: Callable[[Any, Mapping[str, Any]], Sequence[str]]
    read: Getting | None = None


Route: TypeAlias = Listing | Getting | Writing | Merging


# -------------------------------------------------------------------------------- what a write whose answer was lost did


@frozen(kw_only=True)
class NewestFirst:
    """Rows are listed by falling ids once asked with this paging, so that the new ones come first: no filter, no index."""

    paging: Paging


@frozen(kw_only=True)
class ChangedSince:
    """The listing can be narrowed to what was changed since. ``slack`` is by how many seconds clocks may disagree."""

    slack: float = 60.0


@frozen(kw_only=True)
class LastPages:
    """Rows are listed by growing ids and each answer tells the number of pages: the new ones are on the last."""


@frozen(kw_only=True)
class Sought:
    """A row is looked for by the filter that ``Writing.find`` gives: by what it says, or on the card it hangs on."""


Evidence: TypeAlias = NewestFirst | ChangedSince | LastPages | Sought


class Survives(Flag):
    """Through which verbs a neutral field travels."""

    READ = auto()
    CREATE = auto()
    UPDATE = auto()
    COMPLETE = auto()


READ = Survives.READ
CREATE = Survives.CREATE
UPDATE = Survives.UPDATE
COMPLETE = Survives.COMPLETE
ALL = READ | CREATE | UPDATE

_NEEDS: Mapping[Verb, Survives] = {Verb.CREATE: CREATE, Verb.UPDATE: UPDATE, Verb.COMPLETE: COMPLETE}


def _no_check(entity: Any, fields: frozenset[str], context: Context) -> None:
    """Nothing is known here that the account's own words could be held against."""


def _no_encoding(entity: Any, fields: frozenset[str], context: Context) -> dict[str, Any]:
    raise Unsupported(f"{type(entity).__name__} is read-only in this dialect")


@frozen(kw_only=True)
class Resource(Generic[E]):
    """One kind of row in one dialect: its codec, its routes, and the neutral fields that survive it.

    ``encode(entity, fields, context)`` gives the wire row of just these fields; an empty one among them empties it.
    ``check`` refuses, with Invalid, what only the account's own words tell to be wrong: an option that a field does not
    have. ``surviving(entity)`` is what of it the dialect can express (one phone of three); what differs is refused, and
    ``flows.carried`` cuts it off and says so. ``limits`` is the rule, field by field, by which it does, in words that can
    follow a field's name. ``names(path, wire)`` is the neutral field a vendor's complaint is about. ``required`` names
    what a create must hold, ``id`` checks and converts an id, ``vendor`` is the vendor's word. ``beside`` are keys of its
    rows that no neutral field says.
    """

    entity: type[E]
    vendor: str
    routes: Mapping[Verb, Route]
    decode: Callable[[Any, Context], E]
    encode: Callable[[E, frozenset[str], Context], dict[str, Any]] = _no_encoding
    fields: Mapping[str, Survives] = field(factory=dict[str, Survives])
    required: tuple[str, ...] = ()
    check: Callable[[E, frozenset[str], Context], None] = _no_check
    surviving: Callable[[E], E] = lambda entity: entity
    limits: Mapping[str, str] = field(factory=dict[str, str])
    names: Callable[[str, Mapping[str, Any]], str | None] = lambda path, wire: None
    id: Callable[[object], Id] = whole_number
    evidence: Evidence | None = None
    beside: tuple[str, ...] = ()
    # Asked for every row.
    _through: dict[Verb, frozenset[str]] = field(init=False, factory=dict["Verb", frozenset[str]], eq=False, repr=False)

    @property
    def name(self) -> str:
        return self.entity.__name__

    def survivors(self, verb: Verb) -> frozenset[str]:
        """The neutral fields that travel through a verb; for reading verbs, those that are read."""
        known = self._through.get(verb)
        if known is None:
            need = _NEEDS.get(verb, READ)
            known = frozenset(name for name, through in self.fields.items() if need in through)
            self._through[verb] = known
        return known

    def row_id(self, given: object) -> Id:
        """Check and convert an id. Raises Invalid for one of the wrong shape."""
        try:
            return self.id(given)
        except ValueError as wrong:
            raise Invalid(f"{self.name} id: {wrong}") from None


# --------------------------------------------------------------------------------------------------- credentials


class Secret:
    """A string that shows itself only when asked: not in a repr, a log, a traceback or a pickle."""

    __slots__ = ("_hidden",)
    _hidden: str

    def __init__(self, hidden: "str | Secret") -> None:
        self._hidden = hidden.reveal() if isinstance(hidden, Secret) else hidden

    def reveal(self) -> str:
        return self._hidden

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._hidden)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._hidden == self._hidden

    def __hash__(self) -> int:
        return hash(self._hidden)

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a secret is not pickled")


@frozen(kw_only=True)
class Token:
    """What signs calls. ``expires_at`` is None where the vendor does not tell.

    ``renewable`` says that another is to be had without a refresh token: by logging in again.
    """

    access: Secret
    refresh: Secret | None = None
    renewable: bool = False
    issued_at: datetime | None = None
    expires_at: datetime | None = None


class Scheme(Protocol):
    """How calls are signed and a token is renewed; chosen by the type of the credentials."""

    @property
    def credentials(self) -> type[Any]: ...
    def sign(self, call: Call, token: Token) -> Call: ...
    def at_hand(self, credentials: Any) -> Token | None:
        """The token that the credentials themselves are, if any."""
        ...

    def obtain(self, credentials: Any) -> Flow[Token]:
        """The first token. Raises ReauthorizationRequired where a person has to act."""
        ...

    def renew(self, credentials: Any, token: Token) -> Flow[Token]: ...


class Format(Protocol):
    """Bytes to trees and back."""

    def encode(self, body: Tree) -> tuple[bytes, str]: ...
    def decode(self, content: bytes, content_type: str) -> Tree | Unparsed: ...
    @property
    def accept(self) -> str: ...


# --------------------------------------------------------------------------------------------------- limits


@frozen(kw_only=True)
class Rate:
    """``limit`` requests in any ``seconds``. A vendor counts each integration, or the whole account, on its own."""

    limit: int = field(kw_only=False, validator=validators.ge(1))
    seconds: float = field(kw_only=False, validator=validators.and_(validators.gt(0), validators.lt(float("inf"))))
    scope: str = "integration"


# --------------------------------------------------------------------------------------------------- the dialect


def _kept(given: Mapping[type[Any], Resource[Any]]) -> Mapping[type[Any], Resource[Any]]:
    return MappingProxyType(dict(given))


@frozen(kw_only=True)
class Dialect:
    """A vendor's API as a value.

    ``host`` is a template with ``{account}``, or None where the vendor has no public host; ``domains`` are the suffixes
    an account's host may have. ``settings`` are the parts of the account a codec may need, each a flow, read once when
    first needed; those the core knows by name are ``account``, ``me`` and ``pipelines`` (a tuple of
    Pipeline). ``judge`` turns a whole-request failure into an error. ``quarantine`` is how many seconds after its answer
    was lost a request may still be applied, by a gateway that works on. ``zoned``: times are by the account's own clock, and
    no page tells its zone. ``warnings`` are for whoever is about to make many rows.
    """

    name: str
    title: str
    host: str | None
    format: Format
    paging: Paging
    rate: tuple[Rate, ...]
    auth: tuple[Scheme, ...]
    judge: Callable[[Call, Reply], CRMError | None]
    resources: Mapping[type[Any], Resource[Any]] = field(converter=_kept)
    settings: Mapping[str, Callable[[], Flow[Any]]] = field(factory=dict[str, Callable[[], Flow[Any]]])
    domains: tuple[str, ...] = ()
    # A crmclient.webhooks.Webhook, where the vendor sends any; that module stands above this one.
    webhook: Any = None
    quarantine: float = 60.0
    zoned: bool = False
    warnings: tuple[str, ...] = ()

    def resource(self, entity: type[E]) -> Resource[E]:
        """The resource of an entity class. Raises Unsupported where the dialect has none."""
        found = self.resources.get(entity)
        if found is None:
            raise Unsupported(f"{self.title} has no {entity.__name__.lower()} rows")
        return found

    def route(self, entity: type[Any], verb: Verb) -> Route:
        """The route of a verb. Raises Unsupported, before anything is sent, where there is none."""
        resource = self.resource(entity)
        found = resource.routes.get(verb)
        if found is None:
            raise Unsupported(f"{self.title} cannot {verb} {resource.vendor}")
        return found

    def can(self, entity: type[Any], verb: Verb) -> bool:
        resource = self.resources.get(entity)
        return resource is not None and verb in resource.routes

    @property
    def capabilities(self) -> Mapping[type[Any], frozenset[Verb]]:
        """What can be asked of what, read off the routes."""
        return {entity: frozenset(resource.routes) for entity, resource in self.resources.items()}

    def entity_of(self, kind: Kind) -> type[Entity] | None:
        """The entity class of a kind, where the dialect has it."""
        for entity in self.resources:
            if issubclass(entity, Entity) and kind == entity.KIND:
                return entity
        return None


def by_status(call: Call, reply: Reply) -> CRMError | None:
    """What HTTP itself says of a reply; an adapter's judge asks it for what its vendor adds nothing to."""
    if reply.ok:
        return None
    status, what = reply.status, f"{call.method} {call.path}"
    vendor: dict[str, Any] = {"status": status, "request_id": reply.request_id}
    if status == 401:
        return AuthFailed("the credentials were not accepted", **vendor)
    if status in (402, 403):
        return AuthFailed(f"{what} is not allowed to these credentials", **vendor)
    if status == 404:
        return NotFound(f"{what}: no such thing", **vendor)
    if status == 429:
        return RateLimited("too many requests", after=_retry_after(reply.headers), **vendor)
    if status >= 500:
        return Unavailable(f"the server failed at {what}", **vendor)
    if 300 <= status < 400:
        return Unreadable(f"{what} was redirected; redirects are not followed", **vendor)
    return Rejected(f"{what} was refused", **vendor)


def moved(reply: Reply, domains: Sequence[str]) -> AccountMoved | None:
    """Whether the answer says that the account is at another host of its vendor's for good: named, and never followed."""
    if reply.status not in (301, 308):
        return None
    try:
        there = urlsplit(reply.headers.get("location", "")).hostname or ""
    except ValueError:
        return None
    name, _, domain = there.partition(".")
    if domain not in domains or not re.fullmatch(r"[a-z0-9-]{1,63}", name) or there == urlsplit(reply.origin).hostname:
        return None
    return AccountMoved(
        f"the account is at {there} now; nothing was sent there. Connect to it there, and log in again if its tokens "
        "are not taken",
        host=there,
        status=reply.status,
        request_id=reply.request_id,
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds (RFC 9110 §10.2.3); a date means something beside the server's own only. Nonsense is None."""
    said = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", said):
        return float(said)
    try:
        when, now = (parsedate_to_datetime(each) for each in (said, headers["date"]))
        seconds = (when - now).total_seconds()
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    return max(0.0, seconds) if seconds < 10**6 else None
