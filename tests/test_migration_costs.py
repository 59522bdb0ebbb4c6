"""A move in which nothing goes wrong costs the fewest requests that it can, and whatever it costs beside them has a name."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_pairs import PAIRS, after, once, two

from crmclient import Client, Verb, flows
from crmclient.entities import Task
from crmclient.migration.costs import reads, under, writes
from crmclient.migration.engine import Migration
from crmclient.migration.ledger import Ledger
from crmclient.migration.matching import MOVED, kind_of
from crmclient.migration.plan import Plan, plan
from crmclient.sandbox.faults import Action, Fault

# Kinds of rows of which one may have fields, each with a list of its own.
FIELDS = 3
# Requests for parts of the target's settings once the move begins; the plan has read others, with the same client.
SETTINGS = {
    # Fields are looked at again once ours are made. Whoever makes a word of the account forgets all that was known of it:
    # the account and its pipelines are asked for again where dates and stages are written.
    ("amocrm", "kommo"): FIELDS + 2,
    ("amoxml", "kommo"): FIELDS,
    # Electrum has no fields that could mean anything there: the plan has not asked for the target's. Pipelines again.
    ("electrum", "kommo"): 2 * FIELDS + 1,
    ("kommo", "kommo"): FIELDS + 2,
    # The account's time zone.
    ("electrum", "amocrm"): 1,
}


async def told(crm: Client) -> dict[str, Counter[Any]]:
    """What an account holds: rows by kind, those that hang on something, and what follows some of them."""
    rows, more = Counter[Any](), Counter[Any]()
    kinds = [kind for kind, entity in MOVED.items() if crm.can(entity, Verb.LIST)]
    async for row in crm.together(*(MOVED[kind] for kind in kinds)):
        kind = kind_of(row)
        rows[kind] += 1
        if getattr(row, "target", None) is not None:
            rows[under(kind, row.target)] += 1
        more["ties"] += kind == "contacts" and row.company is not None
        more["done"] += kind == "tasks" and row.done
        more["results"] += kind == "tasks" and row.result is not None
    return {"rows": rows, "more": more}


def written(source: Client, target: Client, drawn: Plan, there: dict[str, Counter[Any]]) -> int:
    """The fewest requests that make what is there now, so many at once as the plan says."""
    rows, more = there["rows"], there["more"]
    made = target.dialect.resource(Task).survivors(Verb.CREATE)
    # What completing says and making does not: a result says that it is done.
    completed = more["done"] if "done" not in made else more["results"] if "result" not in made else 0
    if flows.finishes(target.dialect, Task):
        completed = more["results"]  # each is a row of its own there
    return sum(
        writes(
            source.dialect,
            target.dialect,
            kind,
            number,
            apart=[of for name, of in rows.items() if name.startswith(f"{kind} of ")],
            completed=completed if kind == "tasks" else 0,
            ties=more["ties"],
            size=drawn.target_cost.batches[kind],
        )
        for kind, number in drawn.moves.items()
    )


def first_pages(crm: Client) -> int:
    """Requests that tell whether there is anything in an account, as far as lists tell it."""
    listed = [each for each in MOVED.values() if crm.can(each, Verb.LIST)]
    return sum(
        len(flows.listing(crm.dialect, each).firsts) for each in listed if not flows.only_on_cards(crm.dialect, each)
    )


@pytest.mark.parametrize("origin, goal", PAIRS)
@pytest.mark.asyncio
async def test_a_move_without_faults_costs_the_least_and_what_is_named(origin: str, goal: str) -> None:
    stood = await once(origin, goal)
    done, drawn = stood.done, stood.done.plan
    assert done.verdict.equal, done.verdict.sentence
    spent, settings = done.requests, done.aside
    # What the clients say they have sent has arrived, and nothing else.
    assert stood.spent == tuple(side.requests for side in stood.stats)
    assert [side.refused for side in stood.stats] == [0, 0]
    async with after(stood) as (reading, writing, *_):
        listed = [kind for kind, entity in MOVED.items() if reading.can(entity, Verb.LIST)]
        here, there = await told(reading), await told(writing)
        # The source is read twice: to move it, and to see what has become of it meanwhile.
        assert spent[0] == 2 * reads(reading.dialect, listed, here["rows"])
        assert settings[0] == 0

        back = [kind for kind in done.verdict.kinds if drawn.moves.get(kind)]
        least = written(reading, writing, drawn, there) + reads(writing.dialect, back, there["rows"])
        extra = {
            "is it empty": first_pages(writing),
            "fields of ours": FIELDS if drawn.marker == "field" else 0,
            # Where nobody tells who we are, the first page that shows a row of ours does.
            "who we are": 1 if goal == "amoxml" else 0,
            "settings": settings[1],
        }
        assert spent[1] == least + sum(extra.values()), (least, extra, dict(stood.stats[1].calls))
        assert settings[1] == SETTINGS.get((origin, goal), 0)


@pytest.mark.parametrize("origin, n", [("kommo", 25), ("amocrm", 50)])
@pytest.mark.asyncio
async def test_a_move_is_as_fast_as_the_limits_allow(origin: str, n: int, tmp_path: Path) -> None:
    """Of the pace only: in this time work takes none. What it takes is measured by benchmarks/migration.py."""
    slow = Fault(action=Action.DELAY, seconds=0.05, times=1_000_000)
    rows = two(origin, "kommo", contacts=4 * n, companies=n, deals=3 * n, tasks=3 * n, notes=6 * n)
    async with rows as (reading, writing, source, target):
        for side in (source, target):
            side.faults.add(slow)
        drawn = await plan(reading, writing)
        before = source.stats.requests, target.stats.requests
        with Ledger(tmp_path / "ledger", durable=False) as ledger:
            migration = Migration(reading, writing, drawn, ledger, clock=source.account.clock)
            async for _ in migration:
                pass
        arrived = [side.stats.arrivals[n:] for side, n in zip((source, target), before, strict=True)]
        fewest = max(len(each) for each in arrived) / 7
        assert max(map(max, arrived)) - min(map(min, arrived)) <= 1.05 * fewest
        assert source.stats.over(7, 1.0) == target.stats.over(7, 1.0) == 0
        assert migration.verdict is not None
        assert migration.verdict.equal
