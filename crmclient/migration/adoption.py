"""A lost ledger is made anew from what is in the target."""

from collections import Counter
from collections.abc import Callable
from contextlib import aclosing

from attrs import evolve

from crmclient import flows
from crmclient.client import Client
from crmclient.clock import SYSTEM_CLOCK, Clock
from crmclient.dialect import Verb
from crmclient.entities import Id
from crmclient.errors import Misconfigured
from crmclient.migration.finishing import FOLLOWING
from crmclient.migration.ledger import ADOPTED, Ledger
from crmclient.migration.matching import MOVED
from crmclient.migration.move import run_of
from crmclient.migration.plan import Plan, Told, silent
from crmclient.migration.verify import Finding, Sign, check, side_by_side


async def adopt(
    source: Client,
    target: Client,
    plan: Plan,
    ledger: Ledger,
    *,
    told: Told = silent,
    waits: Callable[[float], None] = lambda seconds: None,
    clock: Clock = SYSTEM_CLOCK,
) -> dict[str, int]:
    """Fill an empty ledger from what is in the target, where the one that a move went by is lost: how many rows of each
    kind were found again, by their marks or, where there are none, by what they say.

    Both sides are only read, once the plan's quarantine is over: ``waits`` is told its seconds, after both have answered
    one request. What is not found again is made by the next run. Raises Misconfigured, before anything is asked, for a
    ledger that has begun and for a plan of other accounts or one that is outdated.
    """
    if ledger.run() is not None or ledger.counts():
        raise Misconfigured(f"{ledger.path} is the ledger of a move that has begun: adopt into a new one")
    if wrong := [*plan.of_others(source, target), *plan.outdated(source, target)]:
        raise Misconfigured("; ".join(wrong))
    await side_by_side(_answers(source), _answers(target))
    found, waiting = Counter[str](), list[tuple[str, Id, Id]]()
    if plan.quarantine:
        # What the lost run has sent may still land, and what is not found now is made anew.
        waits(plan.quarantine)
        await clock.sleep(plan.quarantine)

    def each(finding: Finding) -> None:
        # What a killed move had not finished yet differs in nothing else; what is marked is ours whatever it says.
        known = finding.sign is Sign.SAME or finding.marked or {*finding.fields} <= FOLLOWING
        if finding.source is None or finding.target is None or not known:
            return
        waiting.append((finding.kind, finding.source, finding.target))
        if len(waiting) == 500:
            keep()

    def keep() -> None:
        found.update(kind for kind, _, _ in waiting)
        ledger.adopt(waiting)
        waiting.clear()

    await check(source, target, plan, each=each, told=told, clock=clock)
    keep()
    # Last: a ledger that knows a part of it must not be gone on with.
    ledger.begin(evolve(run_of(plan, clock), state=ADOPTED))
    return dict(found)


async def _answers(crm: Client) -> None:
    """Whoever cannot be read is told of before anybody waits."""
    listed = (
        each for each in MOVED.values() if crm.can(each, Verb.LIST) and not flows.only_on_cards(crm.dialect, each)
    )
    async with aclosing(crm.of(next(listed)).pages(prefetch=1)) as pages:
        await anext(pages, None)
