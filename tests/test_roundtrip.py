"""What a codec writes it reads, and what it read it writes: for every dialect, every kind and any content."""

import asyncio
import os
from datetime import date
from decimal import Decimal
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from attrs import evolve
from hypothesis import HealthCheck, Phase, given, settings

from crmclient import FieldType, Kind, Money, Ref, UsageError, Verb, dialect_names
from crmclient.dialect import Context
from crmclient.entities import fields_emptied, filled, is_empty
from crmclient.flows import carried
from crmclient.registry import dialect
from crmclient.testing.conformance import examined
from crmclient.testing.samples import ENTITIES, VARIANTS, anything, differing, sample

# Ten of each law, and always the same ten, are for every day; `nox -s fuzz` asks for as many others as there is time for.
EXAMPLES = int(os.environ.get("CRMCLIENT_EXAMPLES", "0"))
LAWFUL = settings(
    max_examples=EXAMPLES or 10,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    # Shrinking a failure takes half a minute a test: add Phase.shrink to the one at hand.
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
ID = 4711


def reads_what_it_writes(name):
    """Whether answers have the shape of requests; where a form is answered by XML, only a server can tell of both."""
    format = dialect(name).format
    body = {"id": ID}
    return format.decode(*format.encode(body)) == body


def spoken(*verbs, field=None, both_ways=True):
    """Every dialect and kind; with verbs, those that can, verb by verb; with a field, those it survives in.

    ``both_ways`` leaves out the dialects that answer in another shape than they are asked in: their laws are the exam's.
    """
    found = []
    for name in dialect_names():
        if both_ways and not reads_what_it_writes(name):
            continue
        for entity in ENTITIES:
            resource = dialect(name).resources.get(entity)
            if resource is None or (field is not None and field not in resource.survivors(Verb.CREATE)):
                continue
            spelt = f"{name}-{entity.__name__}"
            if not verbs:
                found.append(pytest.param(name, entity, id=spelt))
            for verb in verbs:
                if dialect(name).can(entity, verb):
                    found.append(pytest.param(name, entity, verb, id=f"{spelt}-{verb}"))
    return found


WRITES = (Verb.CREATE, Verb.UPDATE)


@cache
def account(name):
    """What the pure half needs to know of an account: its words, the settings codecs ask for, and its rows as sent."""

    async def read():
        exam = examined()[f"Test{name.title()}"]()
        async with exam.opened(exam.populated()) as trial:
            rows = {entity: await trial.all(entity) for entity in ENTITIES if trial.crm.can(entity, Verb.LIST)}
            parts = {part: await trial.crm.setting(part) for part in trial.dialect.settings}
            zone = None if "account" in parts else ZoneInfo(trial.running.world.account["zone"])
            return trial.words, Context(parts, now=trial.clock.now(), given_zone=zone), rows

    return asyncio.run(read())


def under(context, row):
    """Where rows do not tell what they live under, the address they were read from does."""
    target = getattr(row, "target", None)
    return evolve(context, parent=target if target is not None else Ref(Kind.DEAL, None))


def read_back(name, row, fields):
    """The row as it would be read after these fields of it were written."""
    _, context, _ = account(name)
    resource = dialect(name).resource(type(row))
    wire = {**resource.encode(row, fields, under(context, row)), "id": ID}
    return resource.decode(wire, under(context, row))


def writes(name, entity):
    return [verb for verb in WRITES if dialect(name).can(entity, verb)]


@pytest.mark.parametrize("name, entity", spoken())
def test_what_is_written_is_what_is_read(name, entity):
    words, _, _ = account(name)
    resource = dialect(name).resource(entity)
    assert writes(name, entity)

    # The one row is tried with each verb: to draw it is what takes the time.
    @LAWFUL
    @given(anything(entity, words))
    def law(whole):
        for verb in writes(name, entity):
            row = carried(dialect(name), whole, verb)[0]
            fields = filled(row) & resource.survivors(verb)
            read = read_back(name, row, fields)
            assert read.id == ID
            assert differing(read, row, fields & resource.survivors(Verb.GET)) == {}, verb

    law()


@pytest.mark.parametrize("name, entity", spoken(both_ways=False))
def test_what_is_carried_can_be_written_and_is_carried_again_unchanged(name, entity):
    words, context, _ = account(name)
    resource = dialect(name).resource(entity)
    assert writes(name, entity)

    @LAWFUL
    @given(anything(entity, words, wild=True))
    def law(row):
        for verb in writes(name, entity):
            kept, lost = carried(dialect(name), row, verb)
            assert set(differing(kept, row)) == lost, verb
            assert carried(dialect(name), kept, verb) == (kept, frozenset()), verb
            try:
                resource.encode(kept, filled(kept), under(context, kept))
            except UsageError as refusal:
                pytest.fail(f"carried() left what encode refuses in {verb}: {refusal}")

    law()


@pytest.mark.parametrize("name, entity", spoken(field="fields"))
def test_a_day_before_the_epoch_is_the_same_day_again(name, entity):
    words, _, _ = account(name)
    row = sample(dialect(name), entity, words)
    born = tuple(evolve(value, values=(date(1968, 2, 20),)) for value in row.fields if value.type is FieldType.DATE)
    assert born
    assert read_back(name, evolve(row, fields=born), frozenset({"fields"})).fields == born


@pytest.mark.parametrize("name, entity, verb", spoken(*WRITES))
def test_what_was_emptied_is_read_as_empty(name, entity, verb):
    words, _, _ = account(name)
    resource = dialect(name).resource(entity)
    for number in range(VARIANTS):
        row = sample(dialect(name), entity, words, number, verb)
        for field in sorted(resource.survivors(verb) & resource.survivors(Verb.GET) - {"target"}):
            # A kind and the vendor's word for it are one thing in two fields.
            emptied = fields_emptied(row, {"kind", "raw_kind"} if field in ("kind", "raw_kind") else {field})
            found = getattr(read_back(name, emptied, frozenset({field})), field)
            # A note is a text and an amount is nought when nothing else is said.
            assert is_empty(found) or found == getattr(entity(), field) or found == Money(0)


@pytest.mark.parametrize("name, entity", spoken())
def test_what_a_server_sent_is_written_back_as_it_was_and_none_of_it_is_left_out(name, entity):
    words, context, rows = account(name)
    resource = dialect(name).resource(entity)
    writable = (resource.survivors(Verb.CREATE) | resource.survivors(Verb.UPDATE)) & resource.survivors(Verb.LIST)
    samples = [sample(dialect(name), entity, words, number) for number in range(VARIANTS)]
    keys = {key for row in samples for key in resource.encode(row, writable, under(context, row))}
    assert len(rows[entity]) >= 40
    for row in rows[entity]:
        # Only what the dialect says of itself that it cannot write is not asked of it.
        kept = resource.surviving(row)
        fields = filled(kept) & writable
        wire = resource.encode(evolve(kept, raw=None), fields, under(context, row))
        assert within(wire, row.raw), row.raw
        plain = {key: part for key, part in row.raw.items() if not isinstance(part, dict | list)}
        assert {key for key, part in plain.items() if key in keys and not nothing(part)} <= set(wire)
        assert differing(read_back(name, evolve(kept, raw=None), fields), kept, fields) == {}


def nothing(part):
    return part is None or part is False or part == "" or part == 0


def within(small, large):
    """Whether all of this stands in that: objects by their keys, lists in any order, numbers as numbers or as text."""
    if isinstance(small, dict):
        return isinstance(large, dict) and all(
            key in large and within(part, large[key]) for key, part in small.items() if not nothing(part)
        )
    if isinstance(small, list):
        return isinstance(large, list) and all(any(within(part, other) for other in large) for part in small)
    if isinstance(small, bool) or isinstance(large, bool):
        return small is large
    if isinstance(small, int | Decimal) or isinstance(large, int | Decimal):
        return str(small) == str(large)
    if isinstance(small, str):
        # A text may be cut into a line and the rest; that it says the same is asked when it is read back.
        return large is None or isinstance(large, str)
    return small == large


@pytest.mark.parametrize("name, entity", spoken(both_ways=False))
def test_what_was_read_reads_the_same_again(name, entity):
    _, context, rows = account(name)
    for row in rows[entity]:
        again = dialect(name).resource(entity).decode(row.raw, under(context, row))
        assert again == row
        assert again.unread == row.unread
