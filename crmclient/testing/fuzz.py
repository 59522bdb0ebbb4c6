"""Answers spoiled on purpose: whatever a server says, a dialect reads it or raises an error of ours.

``recorded`` talks to a sandbox and keeps what it said, conversation by conversation; ``spoiled`` makes an answer worse by a
seed; ``fuzz`` goes through the conversations again with one answer of each spoiled, without a network and without waiting.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, TypeAlias

import httpx
from attrs import frozen

from crmclient import flows
from crmclient.clock import FakeClock
from crmclient.dialect import Call, Context, Dialect, Flow, Need, Receipt, Reply, Unparsed, Verb
from crmclient.entities import Company, Contact, Deal, Kind, Note, Ref, Task
from crmclient.errors import CRMError, Unreadable
from crmclient.testing.plugin import Sandboxed
from crmclient.vocabulary import Field, Pipeline, User

KINDS: Final = (Contact, Company, Deal, Task, Note, User, Pipeline, Field)


@frozen
class Answer:
    """What a server said to one call."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@frozen
class Conversation:
    """One thing a client asked for: how it is asked, and what the server said to each of its calls, in order."""

    name: str
    flow: Callable[[], Flow[Any]]
    answers: tuple[Answer, ...]
    parts: Mapping[str, Any]


@frozen
class Broken:
    """What came out that is no error of ours; ``seed`` brings it back."""

    conversation: str
    seed: int
    error: str
    answer: bytes


# ------------------------------------------------------------------------------------------------------------ recording


def page(dialect: Dialect, entity: type[Any]) -> Flow[Any]:
    """The first page of a listing, and what stands in it."""
    walk = flows.listing(dialect, entity)
    reply: Reply = yield walk.call(walk.first)
    rows = walk.rows(walk.first, reply)
    walk.after(walk.first, reply, len(rows))
    walk.last(walk.first, reply)
    return (yield from walk.items(walk.first, rows))


def _new(entity: type[Any], place: Ref, stamp: Any) -> Any:
    match entity.__name__:
        case "Contact":
            return Contact(name="Ivan", phones=["+79991234567"], emails=["i@my.test"], tags=["new"])
        case "Task":
            return Task(text="Call", due=stamp + timedelta(days=1), target=place)
        case "Note":
            return Note(text="Said yes", target=place)
        case _:
            return entity(name="Brand new")


def _asked(
    dialect: Dialect, rows: Mapping[type[Any], Any], stamp: Any
) -> Iterator[tuple[str, Callable[[], Flow[Any]]]]:
    """Everything of the neutral vocabulary that the dialect can do."""
    place = Ref(Kind.CONTACT, rows[Contact].id)
    for entity in KINDS:
        name, row = entity.__name__, rows.get(entity)
        id, under = getattr(row, "id", 1), getattr(row, "target", None)
        if dialect.can(entity, Verb.LIST):
            yield f"{name}.list", lambda entity=entity: page(dialect, entity)
        if dialect.can(entity, Verb.GET):
            yield f"{name}.get", lambda entity=entity, id=id, under=under: flows.get(dialect, entity, id, under)
        if entity not in (Contact, Company, Deal, Task, Note):
            continue
        new = _new(entity, place, stamp)
        if dialect.can(entity, Verb.CREATE):
            yield (
                f"{name}.create",
                lambda entity=entity, new=new: flows.create_many(dialect, entity, [new, new], None),
            )
        if dialect.can(entity, Verb.UPDATE):
            changed = Contact(id=id, name="Other") if entity is Contact else None
            if changed is not None:
                yield f"{name}.update", lambda changed=changed: flows.update(dialect, changed)
        if dialect.can(entity, Verb.COMPLETE):
            yield f"{name}.complete", lambda entity=entity, id=id: flows.complete(dialect, entity, id)
    for part, made in dialect.settings.items():
        yield f"settings.{part}", made


async def recorded(sandbox: Sandboxed) -> list[Conversation]:
    """What the sandbox says to everything that can be asked of it."""
    heard: list[Answer] = []
    inner = sandbox.running.transport()

    async def keep(request: httpx.Request) -> httpx.Response:
        response = await inner.handle_async_request(request)
        content = await response.aread()
        heard.append(Answer(response.status_code, dict(response.headers), content))
        return httpx.Response(response.status_code, headers=response.headers, content=content)

    found: list[Conversation] = []
    spoken, stamp = sandbox.dialect, sandbox.clock.now()
    rows: dict[type[Any], Any] = {}
    async with sandbox.connect(transport=httpx.MockTransport(keep), rate=()) as crm:
        for entity in KINDS:
            if spoken.can(entity, Verb.LIST):
                async for row in crm.of(entity).list(prefetch=1):
                    rows[entity] = row
                    break
        for name, flow in _asked(spoken, rows, stamp):
            context = await crm.run(_context())
            heard.clear()
            try:
                await crm.run(flow())
            except CRMError as refused:
                if isinstance(refused, Unreadable):
                    raise
            if heard:
                found.append(Conversation(name, flow, tuple(heard), {**context.parts}))
    return found


def _context() -> Flow[Context]:
    return (yield Need())


# ------------------------------------------------------------------------------------------------------------- spoiling

_OTHERS: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, -1, 1.9, 10**30, "", "abc", "false", "0", [], {}, [[]], [None], {"id": None}),
    *("1" * 5000, "\x00", "9999-99-99", "2026-02-30T25:61:00Z", {"a": {"b": [1]}}, [1, "a", None]),
)


def spoiled(answer: Answer, chance: random.Random) -> Answer:
    """The same answer, made worse in one to three ways: bytes, types, cuts, the status, the label."""
    status, headers, content = answer.status, dict(answer.headers), answer.content
    for _ in range(chance.randint(1, 3)):
        match chance.randrange(9):
            case 0 | 1 | 2 | 3:
                content = _otherwise(content, chance)
            case 4 | 5:
                content = _flipped(content, chance)
            case 6:
                content = content[: chance.randrange(len(content) + 1)]
            case 7:
                where = chance.randrange(len(content) + 1)
                content = content[:where] + content[: chance.randrange(200)] + content[where:]
            case _:
                if chance.random() < 0.5:
                    status = chance.choice((200, 201, 202, 204, 207, 302, 400, 401, 402, 403, 404, 409, 422, 429, 500))
                else:
                    headers["content-type"] = chance.choice(("text/html", "application/xml", "", "application/json"))
    return Answer(status, headers, content)


def _flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randint(1, 8) if changed else 0):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _otherwise(content: bytes, chance: random.Random) -> bytes:
    """Of a tree, one value or key is another one; what is no JSON is cut and pasted where its marks are."""
    try:
        tree = json.loads(content)
    except ValueError:
        pieces = content.split(b">")
        if len(pieces) > 3:
            one, other = chance.randrange(len(pieces)), chance.randrange(len(pieces))
            match chance.randrange(3):
                case 0:
                    pieces[one], pieces[other] = pieces[other], pieces[one]
                case 1:
                    del pieces[one]
                case _:
                    text, mark, tag = pieces[one].partition(b"<")
                    word = chance.choice((b"", b"abc", b"-1", b"1.9", b"&amp;", b"31.02.2026 25:00:00", b"\xff"))
                    pieces[one] = word + mark + tag if mark else text
        return b">".join(pieces)
    places = list(_places(tree))
    if not places:
        return content
    holder, key = chance.choice(places)
    match chance.randrange(4):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[f"{key}x"] = holder[key]
            del holder[key]
        case _:
            holder[key] = chance.choice(_OTHERS)
    return json.dumps(tree).encode()


_Place: TypeAlias = tuple[Any, Any]


def _places(tree: Any) -> Iterator[_Place]:
    keys: Any = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


# -------------------------------------------------------------------------------------------------------------- playing


def play(dialect: Dialect, conversation: Conversation, answers: Sequence[Answer]) -> Any:
    """One conversation with these answers, as the session would have it, but at once and in no time."""
    told = iter((*answers, *[answers[-1]] * 50))
    parts = {**conversation.parts}
    now = FakeClock().now()

    def reply(call: Call) -> Reply:
        answer = next(told, None)
        if answer is None:
            raise Unreadable("the conversation does not end")
        content = answer.content if answer.status != 204 else b""
        body = dialect.format.decode(content, answer.headers.get("content-type", "")) if content.strip() else None
        made = Reply(answer.status, answer.headers, body, "http://localhost")
        if made.ok and isinstance(body, Unparsed):
            raise Unreadable(body.reason)
        if (verdict := dialect.judge(call, made)) is not None:
            raise verdict
        return made

    def one(call: Call) -> Reply | CRMError:
        try:
            return reply(call)
        except CRMError as error:
            return error

    def run(flow: Flow[Any]) -> Any:
        step: Any = None
        error: CRMError | None = None
        while True:
            try:
                asked = flow.send(step) if error is None else flow.throw(error)
            except StopIteration as stop:
                return stop.value
            step = error = None
            try:
                if isinstance(asked, Call):
                    step = reply(asked)
                elif isinstance(asked, tuple):
                    step = tuple(one(call) for call in asked)
                else:
                    if asked.part is not None and asked.part not in parts:
                        parts[asked.part] = run(dialect.settings[asked.part]())
                    step = Context(parts, now=now, given_zone=now.tzinfo)
            except CRMError as raised:
                error = raised

    return run(conversation.flow())


def fuzz(dialect: Dialect, conversations: Sequence[Conversation], seeds: range) -> Iterator[Broken]:
    """Play as many conversations as there are seeds, each with one answer spoiled, and tell which came out wrong."""
    for seed in seeds:
        chance = random.Random(seed)  # noqa: S311  a mutation is no secret
        conversation = conversations[seed % len(conversations)]
        answers = list(conversation.answers)
        which = chance.randrange(len(answers))
        answers[which] = spoiled(answers[which], chance)
        try:
            found: Receipt[Any] | Any = play(dialect, conversation, answers)
            repr(found)
        except CRMError:
            continue
        except Exception as error:
            yield Broken(conversation.name, seed, f"{type(error).__name__}: {error}", answers[which].content[:2000])
