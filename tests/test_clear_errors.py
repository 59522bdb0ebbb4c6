"""Whatever breaks a rule that is known here says which row, which field and which rule, and no write is sent.

Settings may be read to know a rule: an account's own stages and options are nowhere else. Nothing is written meanwhile,
and of many rows the bad one is refused and the others are made.
"""

from collections.abc import Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from attrs import evolve, frozen

from crmclient import (
    Contact,
    Deal,
    FieldType,
    FieldValue,
    Invalid,
    Kind,
    Link,
    Note,
    Ref,
    Rejected,
    Task,
    Unsupported,
    UsageError,
    Verb,
    dialect_names,
)
from crmclient.dialect import Flow, Made, Refused, Writing
from crmclient.registry import dialect
from crmclient.testing.conformance import Trial, examined
from crmclient.testing.samples import Words
from crmclient.vocabulary import Account, Field

pytestmark = pytest.mark.asyncio

NAIVE = datetime(2026, 4, 1, 9, 0)
MOMENT = FieldValue((datetime(2026, 4, 1, 9, 0, tzinfo=UTC),), field=Ref(Kind.FIELD, 1), type=FieldType.DATETIME)


# ------------------------------------------------------------------------------------------------- what was sent


class Watched(httpx.AsyncBaseTransport):
    """The sandbox, with the writes that reach it counted: what is no GET, but for pages that read by a POST."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self.writes: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        reads = request.method == "GET" or (b"USER_LOGIN" in request.content and b"ACTION" not in request.content)
        if not reads:
            self.writes.append(f"{request.method} {request.url.path}")
        return await self._inner.handle_async_request(request)


@asynccontextmanager
async def account(name: str, **options: Any) -> Any:
    """A trial of the dialect and what watches its wire."""
    exam = examined()[f"Test{name.title()}"]()
    wires: list[Watched] = []

    def watched(running: Any, clock: Any) -> Watched:
        wires.append(Watched(running.transport()))
        return wires[-1]

    async with exam.opened(transport=watched, **options) as trial:
        yield trial, wires[-1].writes


# ------------------------------------------------------------------------------------------------------ the mistakes


@frozen(kw_only=True)
class Mistake:
    """A row that cannot be, made of what the account has, and what is said of it."""

    row: Callable[[Words], Any]
    field: str
    rule: str
    error: type[UsageError] = Invalid


def field_of(words: Words, kind: Kind, type: FieldType) -> Field:
    return next(each for each in words.fields_of(kind) if each.type is type)


def held(words: Words, type: FieldType, content: Any) -> Any:
    """A value of a contact's field of that type."""
    known = field_of(words, Kind.CONTACT, type)
    return FieldValue((content,), field=known.ref, name=known.name, code=known.code, type=type)


def elsewhere(words: Words) -> Deal:
    """At a stage of another pipeline."""
    pipelines = list(dict.fromkeys(pipeline for pipeline, _ in words.places))
    own = {stage for pipeline, stage in words.places if pipeline == pipelines[0]}
    other = next(stage for pipeline, stage in words.places if pipeline == pipelines[1] and stage not in own)
    return Deal(name="Поставка", pipeline=pipelines[0], stage=other)


def of_two(words: Words) -> Deal:
    return Deal(name="Поставка", contacts=words.contacts[:2])


COMMA = Mistake(
    row=lambda words: Contact(name="Иван", tags=["hot,new"]), field="tags", rule="none holds a comma.*hot,new"
)
CENTS = Mistake(row=lambda words: Deal(name="Поставка", price="10.50"), field="price", rule=r"a whole number.*10\.50")
STAGE = Mistake(row=elsewhere, field="stage", rule="is no stage of the pipeline")
TWO = Mistake(row=of_two, field="contacts", rule="one contact, which is the main one")
OPTION = Mistake(
    row=lambda words: Contact(name="Иван", fields=[held(words, FieldType.SELECT, "нет такого")]),
    field="fields",
    rule="'нет такого'",
)
NO_TARGET = Mistake(row=lambda words: Note(text="Звонил"), field="target", rule="requires it: a note hangs on")
NAIVE_VALUE = Mistake(
    row=lambda words: Contact(name="Иван", fields=[evolve(MOMENT, values=(NAIVE,))]),
    field="fields",
    rule=r"values .*type.* a moment with its zone.*datetime\.datetime\(2026, 4, 1",
)
LINK_BY_NAME = Mistake(
    row=lambda words: Deal(name="Поставка", contacts=[Link(Ref(Kind.CONTACT, None), name="Иван")]),
    field="contacts",
    rule="by (its id|their ids)",
)
LABELLED = Mistake(
    row=lambda words: Contact(name="Иван", phones=["+7999", "+7998"]), field="phones", rule="one phone, without a label"
)

MISTAKES: dict[str, dict[str, Mistake]] = {
    "amocrm": {
        "a tag with a comma": COMMA,
        "a price with cents": CENTS,
        "a stage of another pipeline": STAGE,
        "an option the field has not": OPTION,
        "a note without a target": NO_TARGET,
        "a time without a zone in a custom field": NAIVE_VALUE,
        "a link by name alone": LINK_BY_NAME,
    },
    "amoxml": {
        "a tag with a comma": COMMA,
        "two contacts": TWO,
        "a note without a target": NO_TARGET,
        "a link by name alone": LINK_BY_NAME,
    },
    "electrum": {
        "a stage of another pipeline": STAGE,
        "two contacts": TWO,
        "two phones": LABELLED,
        "a link by name alone": LINK_BY_NAME,
    },
    "kommo": {
        "a price with cents": CENTS,
        "a stage of another pipeline": STAGE,
        "an option the field has not": OPTION,
        "a note without a target": NO_TARGET,
        "a time without a zone in a custom field": NAIVE_VALUE,
        "a link by name alone": LINK_BY_NAME,
    },
}
# What a dialect has no field or no rows for is another mistake: there is nothing to say a rule about.
LACKS: dict[str, dict[str, Mistake]] = {
    "amoxml": {
        "a stage of another pipeline": Mistake(
            row=lambda words: Deal(name="A", pipeline=1), field="Deal.pipeline", rule="cannot create", error=Unsupported
        ),
    },
    "electrum": {
        "a note without a target": Mistake(
            row=lambda words: Note(text="A"), field="note", rule="has no note rows", error=Unsupported
        ),
        "a custom field": Mistake(
            row=lambda words: Contact(name="A", fields=[FieldValue("x", code="Y")]),
            field="Contact.fields",
            rule="cannot create",
            error=Unsupported,
        ),
    },
}


def each(table: dict[str, dict[str, Mistake]]) -> list[Any]:
    return [
        pytest.param(name, mistake, id=f"{name}-{what}")
        for name, found in table.items()
        for what, mistake in found.items()
    ]


async def test_every_dialect_is_tried() -> None:
    assert set(MISTAKES) == set(dialect_names())


@pytest.mark.parametrize("name, mistake", each(MISTAKES))
async def test_a_mistake_is_told_with_its_row_its_field_and_its_rule_and_nothing_is_written(
    name: str, mistake: Mistake
) -> None:
    async with account(name) as (trial, writes):
        row = mistake.row(trial.words)
        with pytest.raises(mistake.error, match=mistake.rule) as told:
            await trial.rows(type(row)).create(row)
        assert [(issue.field, issue.row) for issue in told.value.issues] == [(mistake.field, 0)]
        assert type(row).__name__ in told.value.message
        assert trial.dialect.title in str(told.value)
        assert writes == []


@pytest.mark.parametrize("name, mistake", each(LACKS))
async def test_what_a_dialect_lacks_is_named_and_nothing_is_sent_at_all(name: str, mistake: Mistake) -> None:
    async with account(name) as (trial, writes):
        row = mistake.row(trial.words)
        with trial.silence(), pytest.raises(mistake.error, match=mistake.rule) as told:
            await trial.rows(type(row)).create(row)
        assert mistake.field in told.value.message
        assert writes == []


@pytest.mark.parametrize("name, mistake", each(MISTAKES))
async def test_among_many_rows_the_mistaken_one_is_refused_and_the_others_are_made(name: str, mistake: Mistake) -> None:
    async with account(name) as (trial, writes):
        bad = mistake.row(trial.words)
        entity = type(bad)
        good = [trial.sample(entity, number) for number in (0, 1)]
        receipts = await trial.rows(entity).create_many([good[0], bad, good[1]])
        assert [type(receipt) for receipt in receipts] == [Made, Refused, Made]
        assert [(issue.field, issue.row) for issue in receipts[1].error.issues] == [(mistake.field, 1)]
        assert writes


@pytest.mark.parametrize("name, mistake", [part for part in each(MISTAKES) if "target" not in str(part.id)])
async def test_an_update_is_held_to_the_same_rules(name: str, mistake: Mistake) -> None:
    async with account(name) as (trial, writes):
        bad = mistake.row(trial.words)
        made = await trial.made(type(bad))
        writes.clear()
        content = getattr(bad, mistake.field)
        pipeline = {"pipeline": bad.pipeline} if mistake is STAGE else {}
        with pytest.raises(Invalid, match=mistake.rule) as told:
            await trial.rows(type(bad)).update(evolve(made, **{mistake.field: content}, **pipeline))
        assert [issue.field for issue in told.value.issues] == [mistake.field]
        assert writes == []


@pytest.mark.parametrize("name", dialect_names())
async def test_a_batch_beyond_the_vendors_limit_is_told_and_nothing_is_sent(name: str) -> None:
    async with account(name) as (trial, _):
        for entity, verbs in trial.dialect.capabilities.items():
            for verb in {Verb.CREATE, Verb.UPDATE} & verbs:
                route = trial.dialect.route(entity, verb)
                most = (route if isinstance(route, Writing) else route.write).batch
                rows = trial.rows(entity)
                send = rows.create_many if verb is Verb.CREATE else rows.update_many
                with trial.silence(), pytest.raises(Invalid, match=rf"1 to {most} .* not {most + 1}") as told:
                    await send([], batch=most + 1)
                assert [issue.field for issue in told.value.issues] == ["batch"]
                assert entity.__name__ in told.value.message


# ------------------------------------------------------------------------------------- what one may not look up


class WithoutPipelines(Watched):
    """The sandbox, for a user who may not see the pipelines."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if "pipelines" in request.url.path:
            self.writes.append("refused")
            return httpx.Response(403, json={}, request=request)
        return await super().handle_async_request(request)


@pytest.mark.parametrize("name", [name for name in dialect_names() if "pipelines" in dialect(name).settings])
async def test_deals_are_read_and_written_by_who_may_not_see_the_pipelines(name: str) -> None:
    exam = examined()[f"Test{name.title()}"]()
    wires: list[WithoutPipelines] = []

    def blind(running: Any, clock: Any) -> WithoutPipelines:
        wires.append(WithoutPipelines(running.transport()))
        return wires[-1]

    async with exam.opened(transport=blind) as trial:
        assert len([row async for row in trial.crm.deals.list()]) > 5
        for number in range(2):
            assert (await trial.crm.deals.create(trial.sample(Deal, number))).id is not None
    assert wires[-1].writes.count("refused") == 1


# --------------------------------------------------------------------------------------------------------- times


@pytest.mark.parametrize(
    "make, where",
    [
        (lambda: Task(text="A", due=NAIVE), r"Task\.due"),
        (lambda: Deal(name="A", closed_at=NAIVE), r"Deal\.closed_at"),
        (lambda: Contact(name="A", created_at=NAIVE), r"Contact\.created_at"),
        (lambda: evolve(Task(text="A"), due=NAIVE), r"Task\.due"),
    ],
)
async def test_a_time_without_a_zone_never_becomes_a_row(make: Callable[[], Any], where: str) -> None:
    with pytest.raises(ValueError, match=rf"{where} has no time zone: write datetime\(…, tzinfo=UTC\)"):
        make()


def nameless() -> Flow[Account]:
    yield from ()
    return Account(id=1)


@pytest.mark.parametrize(
    "name, row, field",
    [
        ("amoxml", lambda trial: trial.sample(Task), "due"),
        ("amocrm", lambda trial: Contact(name="Иван", fields=[MOMENT]), "fields"),
        ("kommo", lambda trial: born(trial), "fields"),
    ],
)
async def test_a_date_of_an_account_that_tells_no_zone_is_refused_with_the_way_to_give_one(
    name: str, row: Callable[[Trial], Any], field: str
) -> None:
    spoken = dialect(name)
    told = {"account": nameless} if "account" in spoken.settings else {}
    silent = evolve(spoken, settings={**spoken.settings, **told})
    async with account(name, dialect=silent, zone=None) as (trial, writes):
        bad = row(trial)
        with pytest.raises(Invalid, match=r"give connect\(zone=") as refusal:
            await trial.rows(type(bad)).create(bad)
        assert [(issue.field, issue.row) for issue in refusal.value.issues] == [(field, 0)]
        assert type(bad).__name__ in refusal.value.message
        assert writes == []


def born(trial: Trial) -> Contact:
    day = next(value for value in trial.full(Contact).fields if value.type is FieldType.DATE)
    return Contact(name="Иван", fields=[day])


async def test_an_error_keeps_our_sentence_and_the_servers_apart() -> None:
    refused = Rejected("the account is not paid", detail="Payment required", status=402)
    assert str(refused) == "the account is not paid; the server said: Payment required [HTTP 402]"
    assert str(Rejected("Payment required", detail="Payment required")) == "Payment required"
