"""The endpoint ledger: every line of the four seeds, what reaches it, and the test that proves it.

``tests/endpoints.toml`` holds the seeds' own words. ``docs/endpoints.md`` is made of it, once each row was run: the calls
against the dialects' sandboxes, and the requests looked at on their way. Make it anew with

    python tests/test_endpoints.py --write

A row says one of

- ``reach``, ``sends``: an expression over the client, and the request that it sends; ``holds`` is what is in it;
- ``reads``: what of a row's reading holds it, as Contact.name, or Contact.raw for what the neutral model does not name;
- ``status``, ``raises``: what the dialect makes of an answer (of ``body``, where it looks at that);
- ``hears``, ``action``: what the dialect makes of a delivery of its webhooks;
- ``true``: what holds of the dialect, as an expression;
- ``not``: why it is no API call, or that it is another product's.
"""

import ast
import asyncio
import importlib
import json
import re
import sys
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode
from zoneinfo import ZoneInfo

import httpx
import pytest
from attrs import fields_dict, frozen

import crmclient
from crmclient.client import Client
from crmclient.clock import FakeClock
from crmclient.dialect import Call, Context, Dialect, Reply, Survives, read
from crmclient.entities import FieldType
from crmclient.registry import dialect as dialect_named
from crmclient.sandbox.server import face, in_process
from crmclient.sandbox.world import World, populate
from crmclient.testing.conformance import examined
from crmclient.tokens import stored_as
from crmclient.webhooks import Delivery

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "endpoints.md"
SEEDS: list[dict[str, Any]] = tomllib.loads((HERE / "endpoints.toml").read_text("utf-8"))["seed"]

KEYS = {"line", "reach", "sends", "holds", "reads", "status", "raises", "body", "hears", "action", "true"}
KEYS |= {"not", "differs", "proof"}
# What each way of reaching a line has to say; the first one names it.
WAYS = {"sends": ("reach", "sends"), "reads": ("reads",), "raises": ("status", "raises")}
WAYS |= {"hears": ("hears", "action"), "true": ("true",), "not": ("not",)}


@frozen
class Line:
    """One line of a seed."""

    seed: str
    section: str
    row: dict[str, Any]

    @property
    def way(self) -> str:
        return next(iter(way for way in WAYS if way in self.row), "")

    @property
    def proof(self) -> str:
        return self.row.get("proof", "")


def _lines() -> Iterator[Line]:
    for seed in SEEDS:
        for section in seed["section"]:
            for row in section["rows"]:
                proved = {"proof": section["proof"]} if "proof" in section and "not" not in row else {}
                yield Line(seed["dialect"], section["title"], {**proved, **row})


LINES = tuple(_lines())


def of(*ways: str) -> Any:
    chosen = [pytest.param(line, id=f"{line.seed} {line.row['line']}") for line in LINES if line.way in ways]
    return pytest.mark.parametrize("line", chosen)


# --------------------------------------------------------------------------------------------------- what is sent


class Wire(httpx.AsyncBaseTransport):
    """What went over it, each request as (method and path, all it held)."""

    def __init__(self, inner: httpx.AsyncBaseTransport, base: str) -> None:
        self._inner, self._base = inner, httpx.URL(base).path.rstrip("/")
        self.sent: list[tuple[str, str]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = re.sub(r"/[0-9]+(?=/|$)", "/{id}", request.url.path)
        query = [f"{name}={part}" for name, part in parse_qsl(request.url.query.decode(), keep_blank_values=True)]
        headers = [f"{name}: {part}" for name, part in request.headers.items()]
        self.sent.append((f"{request.method} {path}", "\n".join((*query, *headers, *_body(request)))))
        return await self._inner.handle_async_request(request)


def _body(request: httpx.Request) -> list[str]:
    text = request.content.decode()
    if "json" in request.headers.get("content-type", ""):
        return [json.dumps(json.loads(text), ensure_ascii=False)]
    return [f"{name}={part}" for name, part in parse_qsl(text, keep_blank_values=True)]


class Account:
    """A furnished account in a sandbox, and the names that the ledger's expressions use."""

    def __init__(self, name: str, running: Any, clock: FakeClock) -> None:
        self.running, self.clock, self._name = running, clock, name
        self.wire = Wire(running.transport(), running.base_url)

    def connect(self, where: Any = ..., **given: Any) -> Client:
        settings = {"rate": (), "transport": self.wire, "clock": self.clock, "base_url": self.running.base_url}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", crmclient.InsecureTransport)
            return crmclient.connect(self._name, **(settings | given))

    def credentials(self) -> Any:
        known = self.running.credentials
        if "token" in known and self._name != "amoxml":
            return known["token"]
        return crmclient.LoginEachCall(known["login"], hash=known["hash"])

    async def names(self, crm: Client, expression: str) -> dict[str, Any]:
        """What the expression names, and no more: each is a row of the account."""
        used = {each.id for each in ast.walk(ast.parse(expression, mode="eval")) if isinstance(each, ast.Name)}
        named: dict[str, Any] = {name: getattr(crmclient, name) for name in crmclient.__all__}
        named |= {"crm": crm, "connect": self.connect, "timedelta": timedelta, "read": read, "FieldType": FieldType}
        named[self._name] = importlib.import_module(f"crmclient_{self._name}")
        # So that what the sandbox dates is older.
        named |= {"since": datetime(2020, 8, 1, 7, 7, 23, tzinfo=UTC), "due": datetime(2027, 1, 14, 14, 0, tzinfo=UTC)}
        named |= {name: self.running.credentials.get(name) for name in ("login", "hash", "password", "token")}
        kinds = {"contact": crm.contacts, "company": crm.companies, "deal": crm.deals, "task": crm.tasks}
        kinds |= {"note": crm.notes, "user": crm.users, "pipeline": crm.pipelines, "field": crm.fields}
        for name in used & set(kinds):
            rows = [row async for row in kinds[name].list()]
            named[name] = next((row for row in rows if getattr(row, "target", True)), None)
        if "note" in used and self._name == "kommo":
            named["note"] = await crm.notes.create(crmclient.Note(text="x", target=(await self._one(crm.deals)).ref))
        if "stage" in used:
            named["stage"] = next(stage for stage in (await self._one(crm.pipelines)).stages if stage.editable)
        if "tied" in used:
            rows = [row async for row in crm.contacts.list()]
            named["tied"] = next(row for row in rows if row.company and row.deals)
        if "customers" in used:
            named["customers"] = [each.id for each in await crm.run(named[self._name].customers())]
        if "address" in used:
            words = [each async for each in crm.fields.list() if each.entity is crmclient.Kind.CONTACT]
            word = next(each for each in words if each.type is FieldType.ADDRESS)
            named["address"] = crmclient.FieldValue([{"city": "Москва"}], field=word.ref, type=word.type)
        if self._name == "kommo":
            named |= await self._kommo(crm, used)
        if "owner" in used:
            named["owner"] = crmclient.Ref(crmclient.Kind.USER, self.running.world.admin["id"])
        if used & {"app", "code", "store"}:
            named |= await self._grants()
        return named

    async def _kommo(self, crm: Client, used: set[str]) -> dict[str, Any]:
        named: dict[str, Any] = {}
        if "hook" in used:
            hook = crmclient.Subscription(url="https://example.com/webhook", events=["add_lead"])
            named["hook"] = await crm.webhooks.create(hook)
        if "tag" in used:
            tag = crmclient.KnownTag(entity=crmclient.Kind.DEAL, name="доставка")
            named["tag"] = await crm.tags.create(tag)
        if "spare" in used:
            named["spare"] = await crm.pipelines.create(crmclient.Pipeline(name="Розница"))
        if "text_field" in used:
            words = [each async for each in crm.fields.list() if each.entity is crmclient.Kind.DEAL]
            word = next(each for each in words if each.type is FieldType.TEXT)
            named["text_field"] = crmclient.FieldValue(["Дополнительная информация"], field=word.ref, type=word.type)
        return named

    async def _one(self, collection: Any) -> Any:
        return await anext(aiter(collection.list()))

    async def _grants(self) -> dict[str, Any]:
        from crmclient_kommo.sandbox import grants

        card, store = grants(self.running.account).integration, crmclient.MemoryTokens()
        given = {"client_id": card.client_id, "client_secret": card.client_secret, "redirect_uri": card.redirect_uri}
        code = grants(self.running.account).mint_code()
        async with self.connect(credentials=crmclient.OAuthApp(**given, code=code), tokens=store) as crm:
            await crm.account()
        known = await store.load(stored_as("kommo", httpx.URL(self.running.base_url).netloc.decode()))
        assert known is not None
        grants(self.running.account).revoke_access(known.access.reveal())
        return {"app": given, "code": grants(self.running.account).mint_code(), "store": store}


@asynccontextmanager
async def furnished(name: str) -> Any:
    clock = FakeClock()
    with World(clock=clock) as world:
        populate(world, contacts=3, companies=3, deals=3, tasks=3, notes=3)
        world.add("field", {"entity": "contact", "name": "Адрес", "type": "smart_address", "sort": 90, "enums": []})
        account = Account(name, in_process(face(name), world, clock=clock, limits=False), clock)
        async with account.connect(credentials=account.credentials(), zone=ZoneInfo("Europe/Moscow")) as crm:
            yield account, crm


async def sent_by(line: Line) -> list[tuple[str, str]]:
    async with furnished(line.seed) as (account, crm):
        named = await account.names(crm, line.row["reach"])
        account.wire.sent.clear()
        reached = eval(line.row["reach"], named)
        if isinstance(reached, Client):
            async with reached:
                with suppress(crmclient.Unsupported):
                    await reached.account()
                _ = [row async for row in reached.contacts.list(ids=(1,))]
        elif hasattr(reached, "__aiter__"):
            _ = [row async for row in reached]
        else:
            await reached
        return account.wire.sent


@of("sends")
def test_what_a_line_is_said_to_send_is_sent(line: Line) -> None:
    sent = asyncio.run(sent_by(line))
    base = "/api/v2" if line.seed == "electrum" else ""
    asked = line.row["sends"].replace(" ", f" {base}" if not line.row["sends"].split()[1].startswith(base) else " ")
    holding = [held for what, held in sent if what == asked]
    assert holding, f"{line.row['reach']} sends {[what for what, _ in sent]}"
    for part in line.row.get("holds", ()):
        assert any(part in held for held in holding), f"{part!r} is not in {holding}"


# --------------------------------------------------------------------------------------- what is read, told and heard


@of("reads")
def test_what_a_line_is_said_to_be_read_as_is_read(line: Line) -> None:
    dialect = dialect_named(line.seed)
    for place in _each(line.row["reads"]):
        name, _, field = place.partition(".")
        entity = getattr(crmclient, name)
        if field in ("id", "raw") or entity not in dialect.resources:
            assert field in fields_dict(entity), place
        else:
            assert Survives.READ in dialect.resource(entity).fields[field], place


def _each(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


@of("raises")
def test_an_answer_of_a_line_is_the_error_it_is_said_to_be(line: Line) -> None:
    dialect = dialect_named(line.seed)
    body = line.row.get("body")
    if isinstance(body, str):
        body = dialect.format.decode(body.encode(), "text/xml" if body.startswith("<root>") else "text/html")
    verdict = dialect.judge(Call("POST", "/x"), Reply(line.row["status"], body=body))
    assert (type(verdict).__name__ if verdict else "nothing") == line.row["raises"]


@of("hears")
def test_what_a_line_tells_is_heard(line: Line) -> None:
    dialect = dialect_named(line.seed)
    (event, *_) = dialect.webhook.read(delivered(line.seed, line.row["hears"]), Context())
    assert event.problem is None
    assert event.action == line.row["action"]


def delivered(seed: str, word: str) -> Delivery:
    if seed == "electrum":
        told = {"event": word, "timestamp": "2026-03-20T14:32:00Z", "data": {f"{word.partition('.')[0]}_id": 1}}
        return Delivery(method="POST", headers={"content-type": "application/json"}, body=json.dumps(told).encode())
    above = f"{word}[0][note]" if word == "leads[note]" else f"{word}[0]"
    form = {f"{above}[id]": "1", "account[id]": "2"} | ({f"{word}[0][type]": "company"} if "@company" in word else {})
    headers = {"content-type": "application/x-www-form-urlencoded"}
    return Delivery(method="POST", headers=headers, body=urlencode(form).encode())


@of("true")
def test_what_a_line_is_said_to_be_is_true(line: Line) -> None:
    assert eval(line.row["true"], _known(line.seed))


def _known(seed: str) -> dict[str, Any]:
    dialect: Dialect = dialect_named(seed)
    named: dict[str, Any] = {name: getattr(crmclient, name) for name in crmclient.__all__}
    module = importlib.import_module(f"crmclient_{seed}")
    wire, extras = (_module(f"crmclient_{seed}.{part}") for part in ("wire", "extras"))
    named |= {"dialect": dialect, seed: module, "wire": wire, "extras": extras, "timedelta": timedelta}
    return named | {"Reply": Reply}


def _module(name: str) -> Any:
    with suppress(ModuleNotFoundError):
        return importlib.import_module(name)


# ------------------------------------------------------------------------------------------------------- the ledger


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.seed} {line.row['line']}")
def test_every_line_of_a_seed_is_reached_and_proved_or_said_to_be_no_api_call(line: Line) -> None:
    assert set(line.row) <= KEYS
    ways = [way for way in WAYS if way in line.row]
    assert len(ways) == 1, "a line is reached in one way, or is said not to be an API call"
    assert all(line.row.get(key) not in ("", []) for key in (*WAYS[ways[0]], "line"))
    assert set(WAYS[ways[0]]) <= set(line.row)
    if ways[0] == "not":
        assert len(line.row["not"].split()) > 1, "a reason"
    else:
        assert line.proof, "a test that proves it"


@pytest.mark.parametrize("proof", sorted({line.proof for line in LINES if line.proof}))
def test_every_proof_is_a_test_that_there_is(proof: str) -> None:
    path, _, name = proof.partition("::")
    assert name in known_tests(path), f"{path} has no {name}"


@cache
def known_tests(path: str) -> frozenset[str]:
    if path == "tests/test_conformance.py":
        # Its classes are made, not written.
        return frozenset(f"{name}::{test}" for name, made in examined().items() for test in dir(made))
    found: set[str] = set()
    for each in ast.walk(ast.parse((HERE.parent / path).read_text("utf-8"))):
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(each.name)
    return frozenset(found)


def test_no_line_of_a_seed_stands_twice_in_its_section() -> None:
    known = [(line.seed, line.section, line.row["line"]) for line in LINES]
    assert sorted(known) == sorted(set(known))


def test_the_ledger_is_what_its_rows_say() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: python tests/test_endpoints.py --write"


# --------------------------------------------------------------------------------------------------------- the page

_TOP = """\
# The endpoint ledger

<!-- Made by `python tests/test_endpoints.py --write` from tests/endpoints.toml. Do not edit. -->

Every line of the four seeds (the vendors' pages this project began with), what reaches it, and the test that proves it.
Each row is run by `tests/test_endpoints.py`: what it says is sent was seen on the wire, on its way to the vendor's sandbox.

| seed | lines | reached | not an API call, or another product |
|---|--:|--:|--:|
"""


def page() -> str:
    parts = [_TOP]
    for seed in SEEDS:
        mine = [line for line in LINES if line.seed == seed["dialect"]]
        no = sum(line.way == "not" for line in mine)
        parts.append(f"| [{seed['title']}](#{_anchor(seed['title'])}) | {len(mine)} | {len(mine) - no} | {no} |\n")
    for seed in SEEDS:
        parts.append(f"\n## {seed['title']}\n\n{seed['about']}\n")
        for section in seed["section"]:
            parts.append(
                f"\n### {section['title']}\n\n| the seed's line | reached by | sent, read or told | proved by |\n"
            )
            parts.append("|---|---|---|---|\n")
            rows = [line for line in LINES if (line.seed, line.section) == (seed["dialect"], section["title"])]
            parts += [_row(line) for line in rows]
    return "".join(parts)


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")


def _row(line: Line) -> str:
    row = line.row
    reached, told = _told(line)
    if "differs" in row:
        told = f"{told} **Differs:** {row['differs']}".strip()
    proof = line.proof.rpartition("::")[2].replace("_", " ").removeprefix("test ")
    path = line.proof.partition("::")[0]
    proved = f"[{proof}](../{path})" if proof else ""
    return f"| {_cell(row['line'], code=True)} | {reached} | {told} | {proved} |\n".replace("  |", " |")


def _told(line: Line) -> tuple[str, str]:
    row = line.row
    match line.way:
        case "sends":
            held = ", ".join(_cell(part, code=True) for part in row.get("holds", ()))
            return _cell(row["reach"], code=True), f"`{row['sends']}`" + (f" with {held}" if held else "")
        case "reads":
            return "reading", ", ".join(f"`{each}`" for each in _each(row["reads"]))
        case "raises":
            raised = "no error" if row["raises"] == "nothing" else f"raises `{row['raises']}`"
            return "any call", f"HTTP {row['status']}: {raised}"
        case "hears":
            return "`read` of the webhook", f"`{row['hears']}` is `Action.{row['action'].upper()}`"
        case "true":
            return "checked", _cell(row["true"], code=True)
        case _:
            return "—", f"not an API call / another product: {row['not']}"


def _cell(text: str, *, code: bool = False) -> str:
    text = text.replace("|", "\\|")
    return f"`{text}`" if code and "`" not in text else text


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), "utf-8")
