"""A lost ledger is made anew from what is in the target."""

from collections import Counter

from crmclient.client import Client
from crmclient.clock import SYSTEM_CLOCK, Clock
from crmclient.entities import Id
from crmclient.errors import Misconfigured
from crmclient.migration.finishing import FOLLOWING
from crmclient.migration.ledger import Ledger
from crmclient.migration.move import run_of
from crmclient.migration.plan import Plan, Told, silent
from crmclient.migration.verify import Finding, Sign, check


async def adopt(
    source: Client,
    target: Client,
    plan: Plan,
    ledger: Ledger,
    *,
    told: Told = silent,
    clock: Clock = SYSTEM_CLOCK,
) -> dict[str, int]:
    """Fill an empty ledger from what is in the target, where the one that a move went by is lost: how many rows of each
    kind were found again, by their marks or, where there are none, by what they say.

    Both sides are only read, once the plan's quarantine is over. What is not found again is made by the next run. Raises
    Misconfigured for a ledger that has begun and for a plan of other accounts.
    """
    if ledger.run() is not None or ledger.counts():
        raise Misconfigured(f"{ledger.path} is the ledger of a move that has begun: adopt into a new one")
    found, waiting = Counter[str](), list[tuple[str, Id, Id]]()
    # What the lost run has sent may still land, and what is not found now is made anew.
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
    ledger.begin(run_of(plan, clock))
    return dict(found)
