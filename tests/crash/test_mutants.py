"""Each rule that keeps rows single is taken away from the engine: the trials must notice, or they prove nothing.

``nox -s mutants`` runs it.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextvars import ContextVar
from copy import copy
from datetime import datetime
from typing import Any

import pytest
from attrs import evolve, frozen
from trials import Decide, Point, Score, Stage, Way, just, silenced, stage_of, trial, twins

from crmclient.dialect import Flow
from crmclient.entities import Id
from crmclient.migration import engine, ledger
from crmclient.migration.engine import Migration
from crmclient.migration.ledger import Batch, Ledger
from crmclient.migration.reconcile import Found, Prints
from crmclient.sandbox.world import World

Patch = pytest.MonkeyPatch


def as_it_is(patch: Patch, stage: Stage) -> None:
    pass


def no_write_ahead(patch: Patch, stage: Stage) -> None:
    """Nothing is on disk before a request leaves."""

    def intend(_: Ledger, kind: str, sources: Sequence[Id], watermark: int, at: datetime, body: object = None) -> Batch:
        return Batch(id=-1, kind=kind, sources=tuple(sources), sent_at=at, watermark=watermark)

    patch.setattr(Ledger, "intend", intend)


def no_looking(patch: Patch, stage: Stage) -> None:
    """What was open is sent again."""

    def nothing_seen(*_: Any, **__: Any) -> Flow[Found]:
        return Found(rows=())
        yield

    patch.setattr(engine, "seek", nothing_seen)


def no_quarantine(patch: Patch, stage: Stage) -> None:
    """The first look is believed."""
    stage.plan = evolve(stage.plan, quarantine=0.0)


def no_row_check(patch: Patch, stage: Stage) -> None:
    """A row is taken for what is looked for whoever owns it, and however long it has been there."""
    no_watermark(patch, stage)
    seen, owned, looking = Migration._seen, Ledger.owned, ContextVar("looking", default=False)

    async def blindly(migration: Migration, *what: Any, **more: Any) -> Any:
        looking.set(True)
        try:
            return await seen(migration, *what, **more)
        finally:
            looking.set(False)

    patch.setattr(Migration, "_seen", blindly)
    patch.setattr(Ledger, "owned", lambda *about: not looking.get() and owned(*about))


def no_watermark(patch: Patch, stage: Stage) -> None:
    """A row is taken for ours that was there before."""
    intend = Ledger.intend

    def from_the_beginning(mine: Ledger, kind: str, sources: Any, watermark: int, *more: Any) -> Batch:
        return intend(mine, kind, sources, 0, *more)

    patch.setattr(Ledger, "intend", from_the_beginning)


def no_multiset(patch: Patch, stage: Stage) -> None:
    """One row that is found stands for all that are like it."""
    matched = Prints.matched

    def each_alone(prints: Prints, sent: Any, found: Any) -> dict[Id, Id]:
        rows, pairs = list(found), dict[Id, Id]()
        for source, row in sent.items():
            pairs |= matched(prints, {source: row}, rows)
        return pairs

    patch.setattr(Prints, "matched", each_alone)


def no_exclusion(patch: Patch, stage: Stage) -> None:
    """Rows that cannot be told apart are under way in two lanes at once."""
    patch.setattr(Migration, "_free", lambda *_: True)


def no_exclusion_and_no_index(patch: Patch, stage: Stage) -> None:
    """The same, and the ledger does not mind two rows with one target."""
    no_exclusion(patch, stage)
    patch.setattr(
        ledger, "_SCHEMA", ledger._SCHEMA.replace("CREATE UNIQUE INDEX one_target", "CREATE INDEX one_target")
    )


MUTANTS: tuple[Callable[[Patch, Stage], None], ...] = (
    *(no_write_ahead, no_looking, no_quarantine),
    *(no_row_check, no_watermark, no_multiset, no_exclusion, no_exclusion_and_no_index),
)


def a_namesake(world: World) -> None:
    """Somebody who was there before, and looks like one of those who come."""
    world.add("contact", {"name": "Ann Lee", "first_name": "Ann", "last_name": "Lee"})


@frozen(kw_only=True)
class Setting:
    """Moves that are tried: by what way, of what accounts, and what happens at which of the requests that make rows."""

    pair: tuple[str, str]
    stage: dict[str, Any]
    way: Way = Way()
    acts: tuple[str, ...] = ("kill-after", "drop-after", "drop-before", "late", "kill-late")


SETTINGS = (
    Setting(pair=("amoxml", "kommo"), stage={}),
    Setting(pair=("amoxml", "kommo"), stage={"furnish": twins, "marker": "off"}),
    Setting(pair=("kommo", "amoxml"), stage={"furnish": twins, "marker": "off"}),
    Setting(pair=("kommo", "electrum"), stage={"furnish": twins, "marker": "off", "already": a_namesake}),
    Setting(pair=("kommo", "electrum"), stage={"furnish": twins, "marker": "off"}, way=Way(lanes=3, latency=0.4)),
)


async def trials(change: Callable[[Patch, Stage], None]) -> AsyncIterator[tuple[str, Score]]:
    silenced()
    for setting in SETTINGS:
        known = await stage_of(*setting.pair, **setting.stage)
        for what, decide in happenings(known, setting.acts):
            stage = copy(known)
            with pytest.MonkeyPatch.context() as patch:
                change(patch, stage)
                yield f"{'-'.join(setting.pair)} {what}", await trial(stage, decide, setting.way)


def happenings(stage: Stage, acts: Sequence[str]) -> Iterator[tuple[str, Decide]]:
    for number, what in enumerate(stage.points["target"], 1):
        if what.startswith("POST") and not what.endswith(("custom_fields", "auth.php", "_detail.php")):
            for act in acts:
                point = Point(1, "target", number)
                yield f"{point} {act} ({what})", just({point: act})


@pytest.mark.asyncio
async def test_with_every_rule_in_its_place_all_of_it_is_right() -> None:
    wrong = {what: score.wrong async for what, score in trials(as_it_is) if score.wrong}
    assert not wrong


@pytest.mark.parametrize("change", MUTANTS, ids=lambda change: change.__name__)
@pytest.mark.asyncio
async def test_a_rule_that_is_taken_away_is_missed(change: Callable[[Patch, Stage], None]) -> None:
    async for what, score in trials(change):
        # One target for two rows is refused by the ledger: then nothing is doubled, but the move stops for no reason.
        stopped = change is no_exclusion and any("LedgerFailed" in error for error in score.raised)
        if score.duplicates or score.lost or score.links or stopped:
            print(f"{change.__name__}: {what}: {'; '.join([*score.wrong, *score.raised])}")
            return
    pytest.fail(f"nothing is doubled or lost with {change.__name__}: the trials do not see what it is for")
