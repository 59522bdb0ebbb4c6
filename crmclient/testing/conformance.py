"""The exam every dialect takes: promises, not methods; it names no vendor, and skips only what a dialect says it lacks.

A third party's adapter takes the same one, over its own sandbox::

    from crmclient.testing.conformance import Conformance

    class TestMine(Conformance):
        dialect = "mine"
        expected_skips = {"Company": "the vendor has none"}

What a dialect lacks is a token: ``Company`` (no such rows), ``Deal.get`` (no such verb), ``Task.create.reference`` (no
such ability, see ``ABILITIES``), ``Contact.read.deleted`` (no row of the sandbox shows it). Each has its reason on the
list of expected skips; what is lacking and not listed fails, and so does what is listed and not lacking.
"""

# ruff: noqa: S101  it is a test suite: pytest reads the asserts

import json
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar, Final, TypeVar
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring
from zoneinfo import ZoneInfo

import httpx
import pytest
from attrs import NOTHING, evolve, fields_dict, frozen

from crmclient.client import Client, Collection, connect
from crmclient.clock import FakeClock
from crmclient.dialect import (
    Dialect,
    Filter,
    Listing,
    Made,
    Merging,
    Rate,
    Refused,
    Reply,
    Verb,
    Writing,
)
from crmclient.entities import (
    Deal,
    Id,
    Kind,
    Link,
    Money,
    NoteKind,
    Ref,
    field_names,
    filled,
    is_empty,
)
from crmclient.errors import AuthFailed, IncompleteRead, Invalid, NotFound, ReadOnly, Rejected, Unreadable, Unsupported
from crmclient.registry import dialect as dialect_named
from crmclient.registry import dialect_names
from crmclient.sandbox.server import Face, Running, face, faces, in_process
from crmclient.sandbox.world import World, populate
from crmclient.serial import cursor_from_tree, cursor_to_tree
from crmclient.session import Limits
from crmclient.testing.samples import (
    ENTITIES,
    VARIANTS,
    VOCABULARY,
    Words,
    differing,
    full,
    otherwise,
    sample,
    words_of,
)

F = TypeVar("F", bound=Callable[..., Any])

KINDS: Final = (*ENTITIES, *VOCABULARY)
FILTERS: Final = field_names(Filter)
READS: Final = frozenset({Verb.LIST, Verb.GET})
WRITES: Final = frozenset(Verb) - READS

WRONG_IDS: Final[tuple[Any, ...]] = ("1/../x", "", "1?x=1", -1, True)
NOBODY: Final = 999_999_999
_RATE: Final = Rate(7, 1)
# The variant that can be changed most freely: a note's is one whose kind needs no more than its text.
_PLAIN: Final = VARIANTS - 1
_UNKNOWN: Final = "x_of_tomorrow"
_FEW: Final = 15

# What a row cannot be without, so that emptying it is no promise. A note's params are what its kind needs.
_NEVER_EMPTY: Final = frozenset(
    {"name", "owner", "pipeline", "stage", "closed_at", "text", "type", "due", "kind", "raw_kind", "params"}
    | {"created_by", "updated_by", "created_at", "updated_at"}
)
# What a server may move along when another field is written: a name with its parts, an outcome with its stage.
_ALONG: Final[Mapping[str, frozenset[str]]] = {
    "name": frozenset({"first_name", "last_name"}),
    "first_name": frozenset({"name"}),
    "last_name": frozenset({"name"}),
    "pipeline": frozenset({"stage", "outcome", "closed_at"}),
    "stage": frozenset({"outcome", "closed_at"}),
}
_STAMPS: Final = frozenset({"updated_at", "updated_by"})


# --------------------------------------------------------------------------------------------- what a dialect can do


def _reference(resource: Any) -> str | None:
    """A field of a new row that points at another row, so that a server has something to refuse."""
    through = resource.survivors(Verb.CREATE)
    return next((name for name in ("owner", "pipeline", "target", "type", "contacts") if name in through), None)


def _reads_back(dialect: Dialect, entity: type[Any]) -> bool:
    return dialect.can(entity, Verb.GET) or dialect.can(entity, Verb.LIST)


def _can_refer(dialect: Dialect, entity: type[Any]) -> bool:
    return dialect.can(entity, Verb.CREATE) and _reference(dialect.resource(entity)) is not None


def _stamps_new(dialect: Dialect, entity: type[Any]) -> bool:
    route = dialect.resource(entity).routes.get(Verb.CREATE)
    # What is finished by a second call may be changed by it, and the server dates that.
    return isinstance(route, Writing) and not route.redates


def _changes_alone(dialect: Dialect, entity: type[Any]) -> bool:
    route = dialect.resource(entity).routes.get(Verb.UPDATE)
    return isinstance(route, Writing) or (isinstance(route, Merging) and route.read is not None)


def _fields_to_change(dialect: Dialect, entity: type[Any]) -> list[str]:
    """Fields that have nothing to do with one another."""
    resource = dialect.resource(entity)
    through = resource.survivors(Verb.UPDATE) & resource.survivors(Verb.GET)
    return [name for name in ("text", "name", "owner", "tags", "phones", "due") if name in through]


def _pages_of_its_own(dialect: Dialect, entity: type[Any]) -> bool:
    route = dialect.resource(entity).routes.get(Verb.LIST)
    return isinstance(route, Listing) and (route.nested is None or route.nested.every is not None)


def _tells_stages(dialect: Dialect, entity: type[Any]) -> bool:
    return {"pipeline", "stage"} <= dialect.resource(entity).survivors(Verb.LIST)


ABILITIES: Final[Mapping[str, Callable[[Dialect, type[Any]], bool]]] = {
    **{verb.value: (lambda dialect, entity, verb=verb: dialect.can(entity, verb)) for verb in Verb},
    # A row can be read back, one way or the other.
    "read": _reads_back,
    # A new row can point at another row.
    "create.reference": _can_refer,
    # The rows are listed page by page, and not found by opening those above them.
    "list.pages": _pages_of_its_own,
    # The rows tell their pipeline and their stage.
    "list.stages": _tells_stages,
    # Who last changed a new row, and when, is what was given.
    "create.stamps": _stamps_new,
    # An update leaves alone what somebody else has changed meanwhile.
    "update.alone": _changes_alone,
    # There is more than one field to update.
    "update.two": lambda dialect, entity: len(_fields_to_change(dialect, entity)) > 1,
}
"""What a promise may need of a dialect, each read off its routes and its declared fields."""


@frozen(kw_only=True)
class Promise:
    """What a test of the exam needs, of which kinds of rows it speaks, and the cases it has for each."""

    needs: tuple[str, ...]
    of: Callable[[type[Any]], bool]
    cases: Callable[[Dialect, type[Any]], Iterable[Any]] | None = None

    def applies(self, dialect: Dialect, entity: type[Any]) -> bool:
        """Whether it is asked of this kind. Of the vocabulary, only what the dialect does with it is asked."""
        if not self.of(entity) or entity not in dialect.resources:
            return False
        return entity in ENTITIES or not self.lacking(dialect, entity)

    def lacking(self, dialect: Dialect, entity: type[Any]) -> list[str]:
        """The tokens of what this promise needs and the dialect has not; a verb it lacks says enough."""
        gone = [need for need in self.needs if not ABILITIES[need](dialect, entity)]
        return [f"{entity.__name__}.{need}" for need in gone if need.partition(".")[0] not in gone or "." not in need]


def _rows(entity: type[Any]) -> bool:
    return True


def _entities(entity: type[Any]) -> bool:
    return entity in ENTITIES


def _tasks(entity: type[Any]) -> bool:
    return "done" in field_names(entity)


def promise(
    *needs: str,
    of: Callable[[type[Any]], bool] = _entities,
    cases: Callable[[Dialect, type[Any]], Iterable[Any]] | None = None,
) -> Callable[[F], F]:
    """A test that is run for each kind of rows, and for each case of it; skipped where the dialect lacks a need."""

    def decorate(test: F) -> F:
        test.__dict__["promise"] = Promise(needs=needs, of=of, cases=cases)
        return pytest.mark.asyncio(test)

    return decorate


# Cases of a kind, read off the dialect.


def _every_filter(dialect: Dialect, entity: type[Any]) -> Iterable[str]:
    told = _told(dialect, entity)
    return [name for name in FILTERS if told(name)]


def _every_other_filter(dialect: Dialect, entity: type[Any]) -> Iterable[str]:
    told = _told(dialect, entity)
    return [name for name in FILTERS if not told(name)]


def _told(dialect: Dialect, entity: type[Any]) -> Callable[[str], bool]:
    """Whether these rows tell what a filter asks."""
    readable = dialect.resource(entity).survivors(Verb.LIST)
    looked_at = {"updated_since": "updated_at", "created_since": "created_at"}

    def told(name: str) -> bool:
        if name == "ids":
            return True
        if name == "text":
            return bool(readable & {"name", "text"})
        return looked_at.get(name, name) in readable

    return told


def _fields_kept_by(verb: Verb) -> Callable[[Dialect, type[Any]], Iterable[str]]:
    def names(dialect: Dialect, entity: type[Any]) -> Iterable[str]:
        resource = dialect.resource(entity)
        return sorted(resource.survivors(verb) & resource.survivors(Verb.GET))

    return names


def _fields_lost_by(verb: Verb) -> Callable[[Dialect, type[Any]], Iterable[str]]:
    def names(dialect: Dialect, entity: type[Any]) -> Iterable[str]:
        # A row's target may say where it lives; what an update does with it is not its content.
        own = set(field_names(entity)) - ({"target"} if verb is Verb.UPDATE else set())
        return sorted(own - dialect.resource(entity).survivors(verb))

    return names


def _fields_emptied(dialect: Dialect, entity: type[Any]) -> Iterable[str]:
    resource = dialect.resource(entity)
    through = resource.survivors(Verb.UPDATE) & resource.survivors(Verb.CREATE) & resource.survivors(Verb.GET)
    route = resource.routes.get(Verb.LIST)
    nested = isinstance(route, Listing) and route.nested is not None
    # What lives under another is found there or nowhere.
    return sorted(through - _NEVER_EMPTY - ({"target"} if nested else set()))


# ------------------------------------------------------------------------------------------------- an account to try


@frozen(kw_only=True)
class Trial:
    """One account under examination: a client, the sandbox it talks to, and what new rows can point at."""

    crm: Client
    running: Running
    words: Words
    clock: FakeClock

    @property
    def dialect(self) -> Dialect:
        return self.crm.dialect

    def rows(self, entity: type[Any]) -> Collection[Any]:
        return self.crm.of(entity)

    def sample(self, entity: type[Any], number: int = 0) -> Any:
        return sample(self.dialect, entity, self.words, number)

    def full(self, entity: type[Any], number: int = 0) -> Any:
        return full(entity, self.words, number)

    def kept(self, entity: type[Any], verb: Verb = Verb.CREATE) -> frozenset[str]:
        """What travels through the verb and back."""
        resource = self.dialect.resource(entity)
        kept = resource.survivors(verb) & resource.survivors(Verb.GET)
        return kept - _STAMPS if verb is Verb.CREATE and not _stamps_new(self.dialect, entity) else kept

    async def know_the_words(self) -> None:
        """Reads every settings part, so that no codec asks for one any more."""
        for part in self.dialect.settings:
            await self.crm.setting(part)

    async def again(self, row: Any) -> Any:
        """The row as the server has it now: by its id if it can, else found in the list. Raises NotFound."""
        entity = row.__class__
        rows = self.rows(entity)
        if self.crm.can(entity, Verb.GET):
            return await rows.get(row.id, target=getattr(row, "target", None))
        route = self.dialect.route(entity, Verb.LIST)
        nested = isinstance(route, Listing) and route.nested is not None
        # Where it lives is known: no need to open every door.
        for each in await self.all(entity, ids=[row.id], **({"target": row.target} if nested else {})):
            return each
        raise NotFound(f"the list has no {entity.__name__} {row.id}")

    async def all(self, entity: type[Any], **asked: Any) -> list[Any]:
        return [row async for row in self.rows(entity).list(**asked)]

    async def made(self, entity: type[Any], number: int = 0, **changes: Any) -> Any:
        """A full row that is on the server now."""
        row = await self.rows(entity).create(evolve(self.sample(entity, number), **changes))
        self.clock.advance(60)
        return row

    async def first(self, entity: type[Any]) -> Any:
        """A row that is there, and by then all is read that is read along with rows."""
        async with aclosing(self.rows(entity).pages(prefetch=1)) as pages:
            async for page in pages:
                if page.items:
                    return page.items[0]
        raise LookupError(f"the account has no {entity.__name__}")

    @contextmanager
    def silence(self, but: int = 0) -> Generator[None]:
        """Nothing, or not more than this, is sent meanwhile."""
        before = self.running.stats.requests
        yield
        sent = self.running.stats.requests - before
        assert sent <= but, f"{sent} requests were sent, and at most {but} were due"


@cache
def _furnished(contacts: int, others: int, users: int) -> World:
    """An account as accounts are, for reading only."""
    return _new_world(contacts, others, users)


@cache
def _scratch(dialect: str) -> World:
    """An account for those who write, and look only at the rows they made."""
    return _own_world()


def _own_world() -> World:
    return _furnished(12, 12, 0).copy(clock=FakeClock())


def _new_world(contacts: int, others: int, users: int) -> World:
    world = World(clock=FakeClock())
    people = [{"name": f"Сотрудник {n}", "email": f"user{n}@roga.example"} for n in range(users)]
    world.add_many("user", people)
    populate(world, contacts=contacts, companies=others, deals=others, tasks=others, notes=others)
    for note in world.select("note", where={"kind": ["call_in", "call_out"]}):
        # What a call has in an account where telephony wrote it.
        whole = {"uniq": f"call-{note['id']}", "link": "https://calls.example/1.mp3", **note["params"]}
        world.update("note", note["id"], {"params": whole, "updated_at": note["updated_at"]})
    person = world.select("contact", limit=1)[0]["id"]
    about: dict[str, Any] = {"target_kind": "contact", "target_id": person, "created_at": 1_740_000_000}
    odd: list[dict[str, Any]] = [
        {"kind": "sms_in", "text": "Жду счёт", "params": {"phone": "+79990001122"}},
        {"kind": "message_cashier", "text": "Чек пробит", "params": {"status": "created"}},
    ]
    world.add_many("note", [{**about, **each} for each in odd])
    # A row is about any of the three.
    firm = world.select("company", limit=1)[0]["id"]
    world.add("task", {"text": "Сверка", "target_kind": "company", "target_id": firm, "due": 1_790_000_000})
    world.add("note", {"text": "Сменили адрес", "target_kind": "company", "target_id": firm})
    world.add("user", {"name": "Уволенный Сотрудник", "email": "gone@roga.example", "active": False})
    return world


def _clock_of(world: World) -> FakeClock:
    assert isinstance(world.clock, FakeClock)
    return world.clock


class Altered(httpx.AsyncBaseTransport):
    """A server whose answers are changed on the way, or come late."""

    def __init__(
        self,
        running: Running,
        alter: Callable[[bytes], bytes] | None = None,
        clock: FakeClock | None = None,
        seconds: float = 0.0,
    ) -> None:
        self._inner = running.transport()
        self._alter, self._clock, self._seconds = alter, clock, seconds

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        content = await response.aread()
        if self._clock is not None:
            await self._clock.sleep(self._seconds)
        if self._alter is not None and content:
            content = self._alter(content)
        headers = {name: part for name, part in response.headers.items() if name.lower() != "content-length"}
        return httpx.Response(response.status_code, headers=headers, stream=httpx.ByteStream(content))


def _altered(
    content: bytes, change: Callable[[dict[str, Any]], None], change_element: Callable[[Element], None]
) -> bytes:
    """An answer with each of its objects changed, or each of its elements where it is XML."""
    if content.lstrip()[:1] == b"<":
        root = fromstring(content)  # noqa: S314  it comes from the sandbox
        for element in list(root.iter()):
            change_element(element)
        return tostring(root, "utf-8", xml_declaration=True)
    try:
        tree = json.loads(content)
    except ValueError:
        return content
    for each in list(_dicts(tree)):
        change(each)
    return json.dumps(tree).encode()


def _dicts(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for part in tree.values():  # pyright: ignore[reportUnknownVariableType]
            yield from _dicts(part)
    elif isinstance(tree, list):
        for part in tree:  # pyright: ignore[reportUnknownVariableType]
            yield from _dicts(part)


def _deaf(dialect: Dialect, entity: type[Any]) -> Dialect:
    """The dialect as spoken to a server that answers 200 and ignores every filter."""

    def unheard(call: Any, asked: Filter) -> Any:
        return call

    return _listing_otherwise(
        dialect, entity, lambda route: evolve(route, filters=dict.fromkeys(route.filters, unheard))
    )


def _listing_otherwise(dialect: Dialect, entity: type[Any], change: Callable[[Listing], Listing]) -> Dialect:
    resource = dialect.resource(entity)
    route = resource.routes[Verb.LIST]
    assert isinstance(route, Listing)
    routes = {**resource.routes, Verb.LIST: change(route)}
    return evolve(dialect, resources={**dialect.resources, entity: evolve(resource, routes=routes)})


def _by_fewer(dialect: Dialect, entity: type[Any]) -> Dialect:
    """The dialect as one that asks for pages of few rows: then few rows are several pages."""

    def change(route: Listing) -> Listing:
        paging: Any = route.paging or dialect.paging
        size = getattr(paging, "size", None)
        return evolve(route, paging=evolve(paging, size=min(size, _FEW))) if size else route

    return _listing_otherwise(dialect, entity, change)


def _scant(dialect: Dialect, entity: type[Any]) -> Dialect:
    """The dialect as spoken to a server that keeps the last row of each page to itself."""

    def change(route: Listing) -> Listing:
        def scant(reply: Reply) -> Sequence[Any]:
            return route.rows(reply)[:-1]

        return evolve(route, rows=scant)

    return _listing_otherwise(dialect, entity, change)


def _asked_for(name: str, rows: list[Any]) -> Any:
    """What to ask a filter so that some of these rows are it and some are not."""
    if name in ("updated_since", "created_since"):
        moments = sorted(getattr(row, name.replace("_since", "_at")) for row in rows)
        return moments[len(moments) // 2]
    if name == "ids":
        return [rows[0].id, rows[-1].id, NOBODY]
    if name == "text":
        texts = [text for row in rows if (text := _text(row)) and len(text) > 4]
        return max(texts, key=texts.count) if len(set(texts)) == 1 else min(texts, key=texts.count)
    return next(found for row in rows if (found := getattr(row, name)) is not None)


def _text(row: Any) -> str:
    return getattr(row, "name", None) or getattr(row, "text", None) or ""


def _is_asked_for(row: Any, name: str, asked: Any) -> bool:
    if name in ("updated_since", "created_since"):
        return getattr(row, name.replace("_since", "_at")) >= asked
    if name == "ids":
        return row.id in asked
    if name == "text":
        return asked.casefold() in _text(row).casefold()
    return getattr(row, name) == asked


def _ids(rows: Iterable[Any]) -> list[Id]:
    return sorted((row.id for row in rows), key=str)


def _says(row: Any) -> frozenset[str]:
    """The fields in which it is not what a new one would be: that it was read shows in them."""
    defaults = {name: part.default for name, part in fields_dict(row.__class__).items()}
    contents = {name: getattr(row, name) for name in field_names(row.__class__)}
    return frozenset(
        name
        for name, content in contents.items()
        if content != defaults[name] and (content is False or not is_empty(content))
    )


def _emptied(content: Any) -> bool:
    """Nothing there; of an amount, nought is nothing."""
    return is_empty(content) or (isinstance(content, Money) and content.amount == 0)


# ------------------------------------------------------------------------------------------------------- the promises


class Conformance:
    """Subclass it, name the dialect, and pytest does the rest."""

    dialect: ClassVar[str | Dialect]
    face: ClassVar[Face | None] = None
    """The sandbox; without it, the installed one of the dialect's name."""
    expected_skips: ClassVar[Mapping[str, str] | None] = None
    """What the dialect lacks and why; without it, what the list that comes with the suite says."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        asked = getattr(metafunc.function, "promise", None)
        if isinstance(asked, Promise):
            names = ("entity",) if asked.cases is None else ("entity", "case")
            metafunc.parametrize(names, list(self._parameters(asked)))
        elif "verb" in metafunc.fixturenames:
            metafunc.parametrize(("entity", "verb"), list(self._verbs_lacking()))

    @classmethod
    def _verbs_lacking(cls) -> Iterator[Any]:
        for entity in KINDS:
            for verb in Verb:
                if verb not in cls.spoken().capabilities.get(entity, ()):
                    yield pytest.param(entity, verb, id=f"{entity.__name__}-{verb}")

    @classmethod
    def _parameters(cls, asked: Promise) -> Iterator[Any]:
        dialect = cls.spoken()
        for entity in KINDS:
            if not asked.applies(dialect, entity):
                continue
            reasons = [f"{token}: {cls.listed().get(token, 'NOT LISTED')}" for token in asked.lacking(dialect, entity)]
            if reasons:
                values = (entity,) if asked.cases is None else (entity, None)
                yield pytest.param(*values, marks=pytest.mark.skip(reason="; ".join(reasons)), id=entity.__name__)
            elif asked.cases is None:
                yield pytest.param(entity, id=entity.__name__)
            else:
                for case in asked.cases(dialect, entity):
                    yield pytest.param(entity, case, id=f"{entity.__name__}-{case}")

    # --- what a subclass may say otherwise

    @classmethod
    def spoken(cls) -> Dialect:
        return dialect_named(cls.dialect) if isinstance(cls.dialect, str) else cls.dialect

    @classmethod
    def listed(cls) -> Mapping[str, str]:
        """The expected skips: token to reason."""
        if cls.expected_skips is not None:
            return cls.expected_skips
        text = files("crmclient.testing").joinpath("expected_skips.json").read_text("utf-8")
        return json.loads(text).get(cls.spoken().name, {})

    def sandbox(self, world: World, clock: FakeClock) -> Running:
        """The vendor's side, without its limits: how fast is asked elsewhere."""
        return in_process(self.face or face(self.spoken().name), world, clock=clock, limits=False)

    def credentials(self, running: Running, *, wrong: bool = False) -> Any:
        """What the sandbox issued, as the dialect wants it: a token, or else what one of its schemes takes."""
        told = {**running.credentials}
        if wrong:
            told |= {name: "0" * 32 for name in ("token", "hash", "password") if name in told}
        if "token" in told:
            return told["token"]
        for scheme in self.spoken().auth:
            parts = fields_dict(scheme.credentials)
            due = [name for name, part in parts.items() if part.default is NOTHING]
            # What may be left out are other ways to say the same: a hash, or a password.
            others = [name for name in parts if name in told and name not in due]
            if set(due) <= set(told):
                return scheme.credentials(**{name: told[name] for name in (*due, *others[:1])})
        raise LookupError(f"of {', '.join(told)} no credentials can be made")

    def spoiled(self, content: bytes, id: Id) -> bytes:
        """The answer with the id of this row unreadable; of the row itself, and not of the links to it."""

        def spoil(row: dict[str, Any]) -> None:
            if str(row.get("id")) == str(id) and len(row) > 3:
                row["id"] = {"no": "id"}

        def spoil_element(row: Element) -> None:
            name = row.find("id")
            if name is not None and name.text == str(id) and len(row) > 3:
                name.text = "no id"

        return _altered(content, spoil, spoil_element)

    def enriched(self, content: bytes) -> bytes:
        """The answer with something in each of its rows that nobody knows yet."""

        def add(row: dict[str, Any]) -> None:
            if "id" in row:
                row[_UNKNOWN] = {"deep": [1, None, "ё"]}

        def add_element(row: Element) -> None:
            if row.find("id") is not None:
                SubElement(row, _UNKNOWN).text = "ё"

        return _altered(content, add, add_element)

    # --- opening an account

    @asynccontextmanager
    async def opened(
        self,
        world: World | None = None,
        *,
        transport: Callable[[Running, FakeClock], httpx.AsyncBaseTransport] | None = None,
        **options: Any,
    ) -> AsyncGenerator[Trial]:
        """A client of an account: of its own, or of a world that is shared with other tests."""
        running = self._started() if world is None else self._standing(world)
        clock = _clock_of(running.world)
        words = await self._words()
        async with self.connected(running, clock, transport=transport, **options) as crm:
            yield Trial(crm=crm, running=running, words=words, clock=clock)

    @asynccontextmanager
    async def connected(
        self,
        running: Running,
        clock: FakeClock,
        *,
        transport: Callable[[Running, FakeClock], httpx.AsyncBaseTransport] | None = None,
        **options: Any,
    ) -> AsyncGenerator[Client]:
        wrong = options.pop("wrong", False)
        given: dict[str, Any] = {"credentials": self.credentials(running, wrong=wrong), "rate": (), **options}
        dialect = given.pop("dialect", self.spoken())
        if "account" not in dialect.settings:
            # Nobody tells such a client the account's zone but its user.
            given.setdefault("zone", ZoneInfo(running.world.account["zone"]))
        through = transport(running, clock) if transport else running.transport()
        async with connect(dialect, base_url=running.base_url, transport=through, clock=clock, **given) as crm:
            yield crm

    def populated(self, entity: type[Any] | None = None) -> World:
        """An account with rows of every kind, ugly ones among them; only to be read."""
        return _furnished(8, 8, 0) if entity is not None and self._opens(entity) else _furnished(40, 40, 0)

    def _slate(self) -> World:
        return _scratch(self.spoken().name)

    def _started(self) -> Running:
        world = _own_world()
        return self.sandbox(world, _clock_of(world))

    _shared: ClassVar[dict[tuple[str, World], Running]] = {}

    def _standing(self, world: World) -> Running:
        key = (self.spoken().name, world)
        if key not in self._shared:
            self._shared[key] = self.sandbox(world, _clock_of(world))
        return self._shared[key]

    _known_words: ClassVar[dict[str, Words]] = {}

    async def _words(self) -> Words:
        """The same in every new world, so they are read once."""
        name = self.spoken().name
        if name not in self._known_words:
            running = self._standing(_furnished(12, 12, 0))
            async with self.connected(running, _clock_of(running.world)) as crm:
                self._known_words[name] = await words_of(crm)
        return self._known_words[name]

    # ----------------------------------------------------------------------------------------------------- creating

    @promise("create", "read")
    async def test_what_was_created_has_an_id_and_reads_back_equal_on_every_field_that_is_said_to_survive(
        self, entity: type[Any]
    ) -> None:
        async with self.opened(self._slate()) as trial:
            used: set[str] = set()
            for number in range(VARIANTS):
                row = trial.sample(entity, number)
                made = await trial.rows(entity).create(row)
                assert made.id is not None
                assert differing(made, row) == {}
                read = await trial.again(made)
                assert read.id == made.id
                assert differing(read, row, trial.kept(entity) & filled(row)) == {}
                used |= filled(row)
            assert used == trial.dialect.resource(entity).survivors(Verb.CREATE)

    @promise("create.stamps", "create", "read")
    async def test_who_changed_a_new_row_and_when_is_what_was_given_or_is_refused(self, entity: type[Any]) -> None:
        async with self.opened(self._slate()) as trial:
            row = trial.sample(entity)
            read = await trial.again(await trial.rows(entity).create(row))
            through = trial.dialect.resource(entity).survivors(Verb.CREATE)
            assert differing(read, row, through & _STAMPS) == {}
            for name in _STAMPS - through:
                with trial.silence(), pytest.raises(Unsupported):
                    await trial.rows(entity).create(evolve(row, **{name: getattr(trial.full(entity), name)}))

    @promise("create", cases=_fields_lost_by(Verb.CREATE))
    async def test_a_field_that_does_not_survive_a_create_is_refused_and_nothing_is_sent(
        self, entity: type[Any], case: str
    ) -> None:
        async with self.opened(_furnished(12, 12, 0)) as trial:
            row = evolve(trial.sample(entity), **{case: getattr(trial.full(entity), case)})
            row = row if case in filled(row) else evolve(row, **{case: self._stray(trial, case)})
            assert case in filled(row)
            with trial.silence(), pytest.raises(Unsupported, match=rf"\.{case}\b"):
                await trial.rows(entity).create(row)

    def _stray(self, trial: Trial, name: str) -> Any:
        """A content for a field of which the account has nothing to show: it is refused before anybody looks."""
        link = Link(Ref(Kind.DEAL, 1))
        others: dict[str, Any] = {"company": link, "raw_kind": "other", "kind": NoteKind.CALL_IN}
        kinds = {"type": Kind.TASK_TYPE, "pipeline": Kind.PIPELINE, "stage": Kind.STAGE}
        others |= {each: Ref(kind, 1) for each, kind in kinds.items()}
        return others.get(name) or (link,)

    @promise("create")
    async def test_what_a_new_row_would_lose_is_named_beforehand_and_refused_when_sent_all_the_same(
        self, entity: type[Any]
    ) -> None:
        async with self.opened(self._slate()) as trial:
            whole = trial.full(entity)
            kept, lost = trial.crm.carried(whole)
            through = trial.dialect.resource(entity).survivors(Verb.CREATE)
            assert set(differing(kept, whole)) == lost
            assert filled(whole) - through <= lost
            for name in sorted(lost & through):
                with trial.silence(), pytest.raises(Invalid) as refusal:
                    await trial.rows(entity).create(evolve(kept, **{name: getattr(whole, name)}))
                assert [(issue.field, issue.row) for issue in refusal.value.issues] == [(name, 0)]
                # Which rule, and not only that something would be lost.
                assert refusal.value.issues[0].rule.startswith(trial.dialect.resource(entity).limits[name])
            assert (await trial.rows(entity).create(kept)).id is not None

    @promise("create", "list")
    async def test_every_row_that_was_read_can_be_made_again_less_what_is_named_as_lost(
        self, entity: type[Any]
    ) -> None:
        async with self.opened() as trial:
            rows = [row for row in await trial.all(entity) if self._makeable(trial, row)]
            assert len(rows) > 5
            copies = [trial.crm.carried(row)[0] for row in rows]
            made = [receipt.made() for receipt in await trial.rows(entity).create_many(copies)]
            found = {row.id: row for row in await trial.all(entity)}
            for copy, each in zip(copies, made, strict=True):
                assert differing(found[each.id], copy, trial.kept(entity) & filled(copy)) == {}

    def _makeable(self, trial: Trial, row: Any) -> bool:
        return set(trial.dialect.resource(row.__class__).required) <= filled(row)

    @promise("create", "list")
    async def test_many_rows_are_made_with_one_receipt_a_row_in_order(self, entity: type[Any]) -> None:
        async with self.opened() as trial:
            rows = [trial.sample(entity, number) for number in range(7)]
            route = trial.dialect.route(entity, Verb.CREATE)
            assert isinstance(route, Writing)
            with trial.silence(but=30):
                receipts = await trial.rows(entity).create_many(rows, batch=min(3, route.batch))
            assert len({receipt.made().id for receipt in receipts}) == len(rows)
            found = {row.id: row for row in await trial.all(entity)}
            for row, receipt in zip(rows, receipts, strict=True):
                assert differing(found[receipt.made().id], row, trial.kept(entity) & filled(row)) == {}

    @promise("create.reference", "create", "read")
    async def test_a_row_the_server_refuses_is_named_and_the_others_are_made(self, entity: type[Any]) -> None:
        async with self.opened(self._slate()) as trial:
            rows = [trial.sample(entity, number) for number in range(5)]
            rows[2] = evolve(rows[2], **self._pointing_nowhere(trial, rows[2]))
            receipts = await trial.rows(entity).create_many(rows)
            assert [type(receipt) for receipt in receipts] == [Made, Made, Refused, Made, Made]
            refusal = receipts[2]
            assert isinstance(refusal, Refused)
            assert isinstance(refusal.error, Rejected)
            assert [issue.row for issue in refusal.error.issues] == [2] * len(refusal.error.issues) != []
            assert all(issue.rule for issue in refusal.error.issues)
            for row, receipt in zip(rows, receipts, strict=True):
                if isinstance(receipt, Made):
                    read = await trial.again(receipt.made())
                    assert differing(read, row, trial.kept(entity) & filled(row)) == {}

    def _pointing_nowhere(self, trial: Trial, row: Any) -> dict[str, Any]:
        name = _reference(trial.dialect.resource(row.__class__))
        assert name is not None
        if name == "contacts":
            return {name: (Link(Ref(Kind.CONTACT, NOBODY), main=True),)}
        return {name: evolve(getattr(row, name), id=NOBODY)}

    @promise("create", "list")
    async def test_a_row_that_breaks_a_rule_known_here_is_refused_unsent_and_the_others_are_made(
        self, entity: type[Any]
    ) -> None:
        async with self.opened() as trial:
            before = _ids(await trial.all(entity))
            rows = [trial.sample(entity, number) for number in range(3)]
            rows[1] = evolve(rows[1], id=5)
            with trial.silence(), pytest.raises(Invalid):
                await trial.rows(entity).create(rows[1])
            receipts = await trial.rows(entity).create_many(rows)
            assert [type(receipt) for receipt in receipts] == [Made, Refused, Made]
            assert len(await trial.all(entity)) == len(before) + 2

    @promise("create")
    async def test_a_batch_of_more_than_the_vendor_takes_is_refused_before_sending(self, entity: type[Any]) -> None:
        async with self.opened(_furnished(12, 12, 0)) as trial:
            route = trial.dialect.route(entity, Verb.CREATE)
            assert isinstance(route, Writing)
            for batch in (route.batch + 1, 0):
                with trial.silence(), pytest.raises(Invalid):
                    await trial.rows(entity).create_many([trial.sample(entity)], batch=batch)

    # ------------------------------------------------------------------------------------------------------ reading

    @promise("list", of=_rows)
    async def test_a_list_brings_every_row_exactly_once_over_several_pages(self, entity: type[Any]) -> None:
        async with self.opened(self._many(entity)) as trial:
            pages = [page async for page in trial.rows(entity).pages()]
            assert _ids(row for page in pages for row in page.items) == self._ids_in(trial, entity)
            assert len(pages) > 2 or entity not in ENTITIES or self._opens(entity)
            assert [page.cursor for page in pages[1:]] == [page.next for page in pages[:-1]]
            assert pages[-1].next is None

    @promise("list.pages", "list")
    async def test_a_page_that_is_not_full_is_not_the_last_one(self, entity: type[Any]) -> None:
        fewer = _scant(_by_fewer(self.spoken(), entity), entity)
        async with self.opened(self._several(entity), dialect=fewer) as trial:
            pages = [page async for page in trial.rows(entity).pages()]
            found, every = _ids(row for page in pages for row in page.items), self._ids_in(trial, entity)
            assert len(set(found)) == len(found)
            assert set(found) <= set(every)
            # Each page lacks one, but for an empty one at the end of each part.
            parts = len({page.cursor.part for page in pages})
            assert len(every) - len(pages) <= len(found) <= len(every) - len(pages) + parts

    _read: ClassVar[dict[tuple[World, str, type[Any]], list[Any]]] = {}

    async def _every(self, trial: Trial, entity: type[Any]) -> list[Any]:
        """All rows of an account that nobody writes to: they are read once."""
        key = (trial.running.world, self.spoken().name, entity)
        if key not in self._read:
            self._read[key] = await trial.all(entity)
        return self._read[key]

    def _many(self, entity: type[Any]) -> World:
        """Rows for several pages; fewer where each costs a request of its own."""
        if self._opens(entity):
            return self.populated(entity)
        number = 204 if getattr(self.spoken().paging, "size", 250) <= 100 else 504
        return _furnished(number, number, 251)

    def _several(self, entity: type[Any]) -> World:
        """Rows for several pages, where few are asked for at a time."""
        return self.populated(entity) if self._opens(entity) else _furnished(40, 40, 31)

    def _opens(self, entity: type[Any]) -> bool:
        """Whether the rows above these must be opened one by one."""
        return self.spoken().can(entity, Verb.LIST) and not _pages_of_its_own(self.spoken(), entity)

    def _ids_in(self, trial: Trial, entity: type[Any]) -> list[Id]:
        """What is in the account, asked of the account and not of the vendor's side of it."""
        route = trial.dialect.route(entity, Verb.LIST)
        assert isinstance(route, Listing)
        rows = trial.running.world.select(str(entity.KIND))
        if route.nested is not None and "target" in field_names(entity):
            rows = [row for row in rows if row["target_kind"] in route.nested.parents]
        return sorted((row["id"] for row in rows if not row.get("deleted")), key=str)

    @promise("list", of=_rows)
    async def test_a_field_is_read_if_and_only_if_it_is_said_to_be(self, entity: type[Any]) -> None:
        async with self.opened(self.populated(entity)) as trial:
            rows = await trial.all(entity)
            if trial.crm.can(entity, Verb.GET):
                rows += [await trial.again(row) for row in rows[:10]]
            declared = trial.dialect.resource(entity).survivors(Verb.LIST)
            shown = frozenset(name for row in rows for name in _says(row))
            assert shown <= declared
            unseen = {f"{entity.__name__}.read.{name}" for name in declared - shown}
            listed = {token for token in self.listed() if token.startswith(f"{entity.__name__}.read.")}
            assert unseen == listed, (
                "no row shows what is said to be read, and the list of expected skips says otherwise"
            )

    @promise("get", "list", of=_rows)
    async def test_one_row_reads_as_it_is_listed(self, entity: type[Any]) -> None:
        async with self.opened(self.populated(entity)) as trial:
            for row in (await trial.all(entity))[:5]:
                read = await trial.again(row)
                told = set(field_names(entity)) - getattr(row, "unread", frozenset[str]())
                assert read.id == row.id
                assert differing(read, row, told) == {}

    @promise("list", of=_rows, cases=_every_filter)
    async def test_a_filter_gives_the_rows_it_asks_for_whatever_the_server_does(
        self, entity: type[Any], case: str
    ) -> None:
        route = self.spoken().route(entity, Verb.LIST)
        assert isinstance(route, Listing)
        servers = [self.spoken()]
        if case not in route.trusted:
            servers.append(_deaf(self.spoken(), entity))
        for server in servers:
            async with self.opened(self.populated(entity), dialect=server) as trial:
                every = await self._every(trial, entity)
                asked = _asked_for(case, every)
                due = [row for row in every if _is_asked_for(row, case, asked)]
                assert due
                assert len(due) < len(every) or len(every) < 3
                found = await trial.all(entity, **{case: asked})
                if case in route.trusted:
                    # What the server matched beyond what a row tells only the server knows.
                    assert set(_ids(due)) <= set(_ids(found))
                    assert len(found) < len(every)
                else:
                    assert _ids(found) == _ids(due)

    @promise("list.stages", "list", of=lambda entity: entity is Deal)
    async def test_a_stage_is_asked_for_together_with_its_pipeline(self, entity: type[Any]) -> None:
        async with self.opened(self.populated(entity)) as trial:
            every = await trial.all(entity)
            one = next(row for row in every if row.pipeline and row.stage)
            due = [row for row in every if (row.pipeline, row.stage) == (one.pipeline, one.stage)]
            assert _ids(await trial.all(entity, pipeline=one.pipeline, stage=one.stage)) == _ids(due)

    @promise("list", of=_rows, cases=_every_other_filter)
    async def test_a_filter_on_what_the_rows_do_not_tell_is_unsupported_and_nothing_is_sent(
        self, entity: type[Any], case: str
    ) -> None:
        asked: dict[str, Any] = {"text": "x", "target": Ref(Kind.DEAL, 1)}
        asked |= {name: Ref(Kind(name if name != "owner" else "user"), 1) for name in ("owner", "pipeline", "stage")}
        async with self.opened(self.populated(entity)) as trial:
            with trial.silence(), pytest.raises(Unsupported):
                await trial.all(entity, **{case: asked.get(case, trial.clock.now())})

    @promise("list")
    async def test_a_time_without_a_zone_is_refused_and_nothing_is_sent(self, entity: type[Any]) -> None:
        async with self.opened(self.populated(entity)) as trial:
            for name in ("updated_since", "created_since"):
                with trial.silence(), pytest.raises((Invalid, Unsupported)):
                    await trial.all(entity, **{name: datetime(2026, 1, 1)})

    @promise("get", of=_rows)
    async def test_a_row_that_is_not_there_is_not_found(self, entity: type[Any]) -> None:
        async with self.opened(self.populated(entity)) as trial:
            with pytest.raises(NotFound):
                await trial.rows(entity).get(NOBODY, target=trial.words.deals[0])

    # -------------------------------------------------------------------------------------------------------- walks

    @promise("list", of=_rows)
    async def test_a_walk_goes_on_in_another_client_from_a_cursor_that_was_kept(self, entity: type[Any]) -> None:
        fewer = _by_fewer(self.spoken(), entity)
        async with self.opened(self._several(entity), dialect=fewer) as trial:
            pages = [page async for page in trial.rows(entity).pages()]
            assert len(pages) > 2 or entity not in ENTITIES or self._opens(entity)
            with trial.silence():
                assert [page async for page in trial.rows(entity).pages(pages[-1].next)] == []
            for page in pages[:-1][:1]:
                assert page.next is not None
                kept = cursor_from_tree(json.loads(json.dumps(cursor_to_tree(page.next))))
                async with self.connected(trial.running, trial.clock, dialect=fewer) as other:
                    rest = [each async for each in other.of(entity).pages(kept)]
                assert [each.cursor for each in rest] == [each.cursor for each in pages[1:]]
                assert [_ids(each.items) for each in rest] == [_ids(each.items) for each in pages[1:]]

    @promise("list")
    async def test_a_walk_sends_no_more_than_it_must_and_what_it_reads_ahead(self, entity: type[Any]) -> None:
        def late(running: Running, clock: FakeClock) -> httpx.AsyncBaseTransport:
            return Altered(running, clock=clock, seconds=0.9)

        fewer = _by_fewer(self.spoken(), entity)
        async with self.opened(self._several(entity), dialect=fewer, transport=late, rate=(_RATE,)) as trial:
            async with aclosing(trial.rows(entity).pages(prefetch=1)) as begun:
                await anext(begun)  # the settings are read by now
            before, start = trial.running.stats.requests, trial.clock.monotonic()
            pages = [page async for page in trial.rows(entity).pages(prefetch=1)]
            slowly = trial.clock.monotonic() - start
            assert trial.running.stats.requests - before <= len(pages) + self._opened_one_by_one(trial, entity)
            # A part may end in a page that is not full, and in an empty one that says so.
            parts = len({page.cursor.part for page in pages})
            fullest = max(len(page.items) for page in pages)
            assert len(pages) <= sum(len(page.items) for page in pages) // fullest + 2 * parts
            due = trial.running.stats.requests - before
            before, start = trial.running.stats.requests, trial.clock.monotonic()
            # A listing in several parts reads ahead in each.
            with trial.silence(but=due + Limits().prefetch * parts):
                assert _ids(await trial.all(entity)) == self._ids_in(trial, entity)
            # What was read ahead in vain has cost its turn, and nothing else.
            in_vain = trial.running.stats.requests - before - due
            assert trial.clock.monotonic() - start <= slowly + max(0, in_vain) * _RATE.seconds / _RATE.limit

    def _opened_one_by_one(self, trial: Trial, entity: type[Any]) -> int:
        """How many rows must be opened for those under them."""
        route = trial.dialect.route(entity, Verb.LIST)
        assert isinstance(route, Listing)
        if route.nested is None or route.nested.every is not None:
            return 0
        return sum(trial.running.world.count(str(kind)) for kind in route.nested.parents)

    @promise("list")
    async def test_a_row_that_cannot_be_read_is_handed_over_and_the_others_are_delivered(
        self, entity: type[Any]
    ) -> None:
        world = self.populated(entity)
        async with self.opened(world) as trial:
            every = await trial.all(entity)
        bad_id = every[len(every) // 2].id

        def spoiled(running: Running, clock: FakeClock) -> httpx.AsyncBaseTransport:
            return Altered(running, lambda content: self.spoiled(content, bad_id))

        async with self.opened(world, transport=spoiled) as trial:
            bad: list[Unreadable] = []
            rows = await trial.all(entity, on_bad=bad.append)
            assert _ids(rows) == _ids(row for row in every if row.id != bad_id)
            assert len(bad) == 1
            assert bad[0].raw is not None
            with pytest.raises(Unreadable):
                await trial.all(entity)

    @promise("list", of=_rows)
    async def test_what_nobody_knows_in_an_answer_harms_nothing_and_is_kept_in_raw(self, entity: type[Any]) -> None:
        world = self.populated(entity)
        async with self.opened(world) as trial:
            every = await trial.all(entity)

        def newer(running: Running, clock: FakeClock) -> httpx.AsyncBaseTransport:
            return Altered(running, self.enriched)

        async with self.opened(world, transport=newer) as trial:
            rows = await trial.all(entity)
            for row, other in zip(rows, every, strict=True):
                assert differing(row, other) == {}
            assert all(_UNKNOWN in json.dumps(row.raw, default=str) for row in rows)

    # ----------------------------------------------------------------------------------------------------- updating

    @promise("update", "create", "read", cases=_fields_kept_by(Verb.UPDATE))
    async def test_an_update_changes_one_field_and_leaves_the_others(self, entity: type[Any], case: str) -> None:
        async with self.opened(self._slate()) as trial:
            row = await trial.again(await trial.made(entity, 0 if case == "params" else _PLAIN))
            changes = otherwise(row, case, trial.words)
            wanted = evolve(trial.crm.carried(evolve(row, **changes), Verb.UPDATE)[0], id=row.id)
            wanted = evolve(row, **{name: getattr(wanted, name) for name in changes})
            assert set(differing(row, wanted)) == set(changes)
            told = await trial.rows(entity).update(wanted)
            # Besides, it may know by now what the answer tells: when that was.
            assert differing(told, wanted, set(field_names(entity)) - (_STAMPS - set(changes))) == {}
            read = await trial.again(told)  # it may live elsewhere by now
            assert differing(read, wanted, changes) == {}
            still = trial.kept(entity, Verb.GET) - set(changes) - _ALONG.get(case, frozenset()) - _STAMPS
            assert differing(read, row, still) == {}

    @promise("update.alone", "update", "create", "read")
    async def test_an_update_by_hand_changes_what_it_holds_and_nothing_else(self, entity: type[Any]) -> None:
        async with self.opened(self._slate()) as trial:
            row = await trial.again(await trial.made(entity, _PLAIN))
            name = "text" if "text" in field_names(entity) else "name"
            by_hand: dict[str, Any] = {"id": row.id, name: f"{getattr(row, name)} — по-новому"}
            if "target" in field_names(entity):
                by_hand["target"] = row.target
            await trial.rows(entity).update(entity(**by_hand))
            read = await trial.again(row)
            assert getattr(read, name) == by_hand[name]
            still = trial.kept(entity, Verb.GET) - {name} - _ALONG.get(name, frozenset()) - _STAMPS
            assert differing(read, row, still) == {}

    @promise("update.alone", "update.two", "update", "create", "read")
    async def test_an_update_leaves_alone_what_somebody_else_changed_meanwhile(self, entity: type[Any]) -> None:
        async with self.opened(self._slate()) as trial:
            mine = await trial.again(await trial.made(entity, _PLAIN))
            theirs = await trial.again(mine)
            one, other = _fields_to_change(trial.dialect, entity)[:2]
            theirs = await trial.rows(entity).update(evolve(theirs, **otherwise(theirs, other, trial.words)))
            trial.clock.advance(60)
            mine = await trial.rows(entity).update(evolve(mine, **otherwise(mine, one, trial.words)))
            read = await trial.again(mine)
            assert getattr(read, one) == getattr(mine, one)
            assert getattr(read, other) == getattr(theirs, other)

    @promise("update", "create", "read")
    async def test_an_update_of_nothing_sends_nothing(self, entity: type[Any]) -> None:
        async with self.opened(self._slate()) as trial:
            rows = trial.rows(entity)
            made = await trial.made(entity, _PLAIN)
            with trial.silence():
                assert differing(await rows.update(made), made) == {}
            read = await trial.again(made)
            with trial.silence():
                assert differing(await rows.update(read), read) == {}
            name = _fields_to_change(trial.dialect, entity)[0]
            changed = await rows.update(evolve(read, **otherwise(read, name, trial.words)))
            with trial.silence():
                assert differing(await rows.update(changed), changed) == {}

    @promise("update", "create", "read")
    async def test_a_row_can_be_updated_after_it_was_created_and_again_after_it_was_updated(
        self, entity: type[Any]
    ) -> None:
        async with self.opened(self._slate()) as trial:
            row = first = await trial.made(entity, _PLAIN)
            names = _fields_to_change(trial.dialect, entity)[:2]
            for name in names:
                row = await trial.rows(entity).update(evolve(row, **otherwise(row, name, trial.words)))
                trial.clock.advance(60)
            row = await trial.rows(entity).update(evolve(row, **{names[0]: getattr(first, names[0])}))
            read = await trial.again(row)
            assert differing(read, row, names) == {}
            along = _STAMPS.union(*(_ALONG.get(name, frozenset()) for name in names))
            assert set(differing(read, first, trial.kept(entity) - along)) == set(names[1:])

    @promise("update", "create", "read")
    async def test_many_rows_are_updated_with_one_receipt_a_row_in_order(self, entity: type[Any]) -> None:
        async with self.opened(self._slate()) as trial:
            rows = [await trial.made(entity, _PLAIN) for _ in range(3)]
            name = _fields_to_change(trial.dialect, entity)[0]
            wanted = [evolve(row, **otherwise(rows[0], name, trial.words)) for row in rows]
            receipts = await trial.rows(entity).update_many([*wanted[:1], evolve(wanted[1], id=-1), *wanted[2:]])
            assert [type(receipt) for receipt in receipts] == [Made, Refused, Made]
            for place in (0, 2):
                assert receipts[place].made().id == rows[place].id
                assert getattr(await trial.again(rows[place]), name) == getattr(wanted[place], name)
            assert getattr(await trial.again(rows[1]), name) == getattr(rows[1], name)

    @promise("update", "create", "read", cases=_fields_emptied)
    async def test_a_field_is_emptied_only_on_purpose(self, entity: type[Any], case: str) -> None:
        async with self.opened(self._slate()) as trial:
            row = await trial.again(await trial.made(entity, _PLAIN))
            assert case in filled(row)
            told = await trial.rows(entity).update(row, clear={case})
            assert case not in filled(told)
            read = await trial.again(row)
            assert _emptied(getattr(read, case))
            still = trial.kept(entity, Verb.GET) - {case} - _ALONG.get(case, frozenset()) - _STAMPS
            assert differing(read, row, still) == {}

    @promise("update", "list", cases=_fields_lost_by(Verb.UPDATE))
    async def test_a_field_that_does_not_survive_an_update_is_refused_and_nothing_is_sent(
        self, entity: type[Any], case: str
    ) -> None:
        async with self.opened(_furnished(12, 12, 0)) as trial:
            held = await trial.first(entity)
            others = [getattr(trial.full(entity, number), case) for number in range(VARIANTS)]
            other = next((each for each in others if each != getattr(held, case)), None) or self._stray(trial, case)
            with trial.silence(), pytest.raises(Unsupported, match=rf"\.{case}\b"):
                await trial.rows(entity).update(evolve(held, **{case: other}))
            with trial.silence(), pytest.raises(Unsupported, match=rf"\.{case}\b"):
                await trial.rows(entity).update(held, clear={case})

    @promise("update", "create", "list")
    async def test_an_update_without_an_id_or_of_a_field_that_is_none_is_refused_and_nothing_is_sent(
        self, entity: type[Any]
    ) -> None:
        async with self.opened(_furnished(12, 12, 0)) as trial:
            held = await trial.first(entity)
            with trial.silence(), pytest.raises(Invalid):
                await trial.rows(entity).update(trial.sample(entity))
            with trial.silence(), pytest.raises(Invalid, match="no_such_field"):
                await trial.rows(entity).update(held, clear={"no_such_field"})

    @promise("update")
    async def test_an_update_of_a_row_that_is_not_there_says_so(self, entity: type[Any]) -> None:
        async with self.opened(self._slate()) as trial:
            row = evolve(sample(trial.dialect, entity, trial.words, _PLAIN, Verb.UPDATE), id=NOBODY)
            if "target" in field_names(entity):
                row = evolve(row, target=trial.words.contacts[0])
            how: dict[str, Any] = {} if _changes_alone(trial.dialect, entity) else {"overwrite": True}
            with pytest.raises((NotFound, Rejected)) as refusal:
                await trial.rows(entity).update(row, **how)
            self._says_there_is_no_such_row(refusal.value)

    def _says_there_is_no_such_row(self, error: NotFound | Rejected) -> None:
        """A batch is refused as a whole, and then it is the id that is complained of."""
        assert isinstance(error, NotFound) or [issue.field for issue in error.issues] == ["id"]

    # ------------------------------------------------------------------------------------------ deleting, completing

    @promise("delete", "create", "list")
    async def test_what_was_deleted_is_gone(self, entity: type[Any]) -> None:
        async with self.opened() as trial:
            before = _ids(await trial.all(entity))
            made = await trial.made(entity)
            assert made.id in _ids(await trial.all(entity))
            await trial.rows(entity).delete(made.id, target=getattr(made, "target", None))
            assert _ids(await trial.all(entity)) == before
            with pytest.raises(NotFound):
                await trial.again(made)

    @promise("delete")
    async def test_deleting_what_is_not_there_says_so(self, entity: type[Any]) -> None:
        async with self.opened(self._slate()) as trial:
            with pytest.raises(NotFound):
                await trial.rows(entity).delete(NOBODY, target=trial.words.deals[0])

    @promise("complete", "create", "read", of=_tasks)
    async def test_a_task_is_completed_and_nothing_else_of_it_changes(self, entity: type[Any]) -> None:
        async with self.opened(self._slate()) as trial:
            row = await trial.again(await trial.made(entity, done=False))
            assert not row.done
            await trial.rows(entity).complete(row.id)
            read = await trial.again(row)
            assert read.done
            assert differing(read, row, trial.kept(entity, Verb.GET) - {"done"} - _STAMPS) == {}

    @promise("complete", "create", "read", of=_tasks)
    async def test_a_result_is_kept_or_refused_and_never_dropped(self, entity: type[Any]) -> None:
        async with self.opened(self._slate()) as trial:
            row = await trial.made(entity, done=False)
            if "result" in trial.dialect.resource(entity).survivors(Verb.COMPLETE):
                await trial.rows(entity).complete(row.id, result="Договорились")
                read = await trial.again(row)
                assert (read.done, read.result) == (True, "Договорились")
            else:
                with trial.silence(), pytest.raises(Unsupported):
                    await trial.rows(entity).complete(row.id, result="Договорились")
                assert not (await trial.again(row)).done

    @promise("complete", of=_tasks)
    async def test_completing_what_is_not_there_says_so(self, entity: type[Any]) -> None:
        async with self.opened(self._slate()) as trial:
            with pytest.raises((NotFound, Rejected)) as refusal:
                await trial.rows(entity).complete(NOBODY)
            self._says_there_is_no_such_row(refusal.value)

    # ---------------------------------------------------------------------------------------- what is never sent

    @pytest.mark.asyncio
    async def test_a_verb_that_is_not_in_the_routes_is_unsupported_and_nothing_is_sent(
        self, entity: type[Any], verb: Verb
    ) -> None:
        async with self.opened(_furnished(12, 12, 0)) as trial:
            assert not trial.crm.can(entity, verb)
            with trial.silence(), pytest.raises(Unsupported):
                await self._tried(trial, entity, verb)

    async def _tried(self, trial: Trial, entity: type[Any], verb: Verb) -> None:
        rows = trial.rows(entity)
        given: dict[str, Any] = (
            {"entity": Kind.CONTACT} if entity not in ENTITIES and "entity" in field_names(entity) else {}
        )
        match verb:
            case Verb.LIST:
                await trial.all(entity)
            case Verb.GET:
                await rows.get(NOBODY)
            case Verb.CREATE:
                await rows.create(entity(**given))
            case Verb.UPDATE:
                await rows.update(entity(id=NOBODY, **given))
            case Verb.DELETE:
                await rows.delete(NOBODY)
            case Verb.COMPLETE:
                await rows.complete(NOBODY)

    @promise(of=_rows, cases=lambda dialect, entity: WRONG_IDS)
    async def test_an_id_of_the_wrong_shape_is_refused_and_nothing_is_sent(self, entity: type[Any], case: Any) -> None:
        async with self.opened(self.populated(entity)) as trial:
            rows, target = trial.rows(entity), trial.words.deals[0]
            tries: dict[Verb, Callable[[], Any]] = {
                Verb.GET: lambda: rows.get(case, target=target),
                Verb.DELETE: lambda: rows.delete(case, target=target),
                Verb.COMPLETE: lambda: rows.complete(case),
                Verb.UPDATE: lambda: rows.update(self._by_id(trial, entity, case)),
            }
            for verb in tries:
                if trial.crm.can(entity, verb):
                    with trial.silence(), pytest.raises(Invalid):
                        await tries[verb]()

    def _by_id(self, trial: Trial, entity: type[Any], id: Any) -> Any:
        if entity in ENTITIES:
            return evolve(trial.sample(entity), id=id)
        return entity(id=id, name="x", **({"entity": Kind.CONTACT} if "entity" in field_names(entity) else {}))

    @promise("list", of=_rows)
    async def test_a_token_that_is_not_accepted_is_said_to_be_so(self, entity: type[Any]) -> None:
        async with self.opened(self.populated(entity), wrong=True) as trial:
            with pytest.raises(AuthFailed):
                await trial.all(entity)
            if entity in ENTITIES and trial.crm.can(entity, Verb.CREATE):
                with pytest.raises(AuthFailed):
                    await trial.rows(entity).create(trial.sample(entity))

    @promise("create", "list")
    async def test_a_client_opened_to_read_only_reads_and_writes_nothing(self, entity: type[Any]) -> None:
        async with self.opened(read_only=True) as trial:
            rows, world = trial.rows(entity), trial.running.world
            await trial.know_the_words()
            row = await trial.first(entity)
            before = world.select(str(entity.KIND))
            target = getattr(row, "target", None)
            tries: dict[Verb, Callable[[], Any]] = {
                Verb.CREATE: lambda: rows.create(trial.sample(entity)),
                Verb.UPDATE: lambda: rows.update(
                    evolve(row, **otherwise(row, "text" if hasattr(row, "text") else "name", trial.words))
                ),
                Verb.DELETE: lambda: rows.delete(row.id, target=target),
                Verb.COMPLETE: lambda: rows.complete(row.id),
            }
            for verb in tries:
                if trial.crm.can(entity, verb):
                    # Before an edit that must send everything, the row is read.
                    reads = 1 if isinstance(trial.dialect.route(entity, verb), Merging) else 0
                    with trial.silence(but=reads), pytest.raises((ReadOnly, IncompleteRead)):
                        await tries[verb]()
            with trial.silence(), pytest.raises(ReadOnly):
                (await rows.create_many([trial.sample(entity)]))[0].made()
            assert world.select(str(entity.KIND)) == before

    @pytest.mark.asyncio
    async def test_the_account_and_the_user_are_told_or_unsupported_and_then_nothing_is_sent(self) -> None:
        async with self.opened(_furnished(12, 12, 0)) as trial:
            for part, ask in (("account", trial.crm.account), ("me", trial.crm.me)):
                if part in trial.dialect.settings:
                    told = await ask()
                    assert (
                        told.id
                        == (trial.running.world.account if part == "account" else trial.running.world.admin)["id"]
                    )
                    with trial.silence():
                        assert await ask() == told
                else:
                    with trial.silence(), pytest.raises(Unsupported):
                        await ask()

    # ----------------------------------------------------------------------------------------------------- the list

    def test_what_is_skipped_is_what_was_expected_to_be(self) -> None:
        dialect = self.spoken()
        lacking = {entity.__name__ for entity in KINDS if entity not in dialect.resources}
        for each in vars(Conformance).values():
            asked = getattr(each, "promise", None)
            if isinstance(asked, Promise):
                for entity in KINDS:
                    if asked.applies(dialect, entity):
                        lacking |= set(asked.lacking(dialect, entity))
        # What no row shows is found by reading, and its test compares it with the list.
        listed = {token for token in self.listed() if ".read." not in token}
        assert lacking - listed == set(), "lacking, and not on the list of expected skips"
        assert listed - lacking == set(), "on the list of expected skips, and not lacking"
        assert all(reason.strip() for reason in self.listed().values())


def examined() -> dict[str, type[Conformance]]:
    """A test class for each installed dialect: ``globals().update(examined())``. Raises for one without a sandbox."""
    blind = sorted(set(dialect_names()) - set(faces()))
    if blind:
        raise LookupError(f"no sandbox is installed to examine {', '.join(blind)} in")
    return {
        f"Test{name.title()}": type(f"Test{name.title()}", (Conformance,), {"dialect": name})
        for name in dialect_names()
    }
