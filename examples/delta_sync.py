"""Keep one account following another: the same move again and again, over the same ledger. Only what is new or was changed
in the source goes over; what was changed on both sides is told and left as it is; nothing is deleted.

    python delta_sync.py    shows it on two sandboxes, with a source that changes between the rounds

Point ``follow`` at two clients of your own: in a service it runs as a task, and is cancelled or killed like any other.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from crmclient import Client, connect
from crmclient.clock import SYSTEM_CLOCK, Clock
from crmclient.errors import RateLimited, TransportError, Unavailable
from crmclient.migration.engine import Migration
from crmclient.migration.ledger import Ledger
from crmclient.migration.plan import from_toml, plan, to_toml
from crmclient.migration.verify import Verdict
from crmclient.sandbox.server import face, served
from crmclient.sandbox.world import World, populate


async def follow(
    source: Client, target: Client, folder: Path, *, every: float = 900.0, clock: Clock = SYSTEM_CLOCK
) -> AsyncIterator[Verdict]:
    """Moves what is new, gives the verdict of the round, waits ``every`` seconds, and so on for ever.

    What passes by itself is tried again in the next round; whatever else goes wrong is raised.
    """
    file = folder / "plan.toml"
    if not file.exists():
        file.write_text(to_toml(await plan(source, target)), encoding="utf-8")
    made = from_toml(file.read_text(encoding="utf-8"))
    while True:
        # The ledger is closed between the rounds, so that `crmclient report` and others can have it.
        with Ledger(folder / "plan.ledger") as ledger:
            migration = Migration(source, target, made, ledger, clock=clock)
            try:
                async for event in migration:
                    if event.said:
                        print(event.said)
            except (RateLimited, Unavailable, TransportError) as passing:
                print(f"{passing}: trying again in {every:g} s")
        if migration.verdict is not None:
            yield migration.verdict
        await clock.sleep(every)


async def main() -> None:
    with World(clock=SYSTEM_CLOCK) as full, World(clock=SYSTEM_CLOCK) as empty, tempfile.TemporaryDirectory() as folder:
        populate(full, contacts=5, companies=2, deals=3)
        with served(face("kommo"), full) as old, served(face("kommo"), empty) as new:
            sides = [
                connect("kommo", base_url=each.base_url, credentials=each.credentials["token"]) for each in (old, new)
            ]
            async with sides[0] as source, sides[1] as target:
                rounds = follow(source, target, Path(folder), every=1.0)
                await anext(rounds)
                person = full.add("contact", {"name": "Somebody New"})
                full.update("deal", full.select("deal")[0]["id"], {"price": 777})
                print(f"meanwhile contact {person} came and a deal's price became 777")
                await anext(rounds)
                print(f"there: {empty.count('contact')} contacts, {empty.count('deal', {'price': 777})} deal at 777")
                await rounds.aclose()


if __name__ == "__main__":
    asyncio.run(main())
