"""Move an account from amoCRM's old XML API into Kommo. Whatever stops it, run it again and it goes on where it was.
The first run only plans: read plan.toml, edit it, run again. Without these variables it moves between two sandboxes.

    OLD_ACCOUNT=… OLD_LOGIN=… OLD_HASH=… NEW_ACCOUNT=… NEW_TOKEN=… python migrate_xml_to_kommo.py
"""

import asyncio
import os
import tempfile
from pathlib import Path
from zoneinfo import ZoneInfo

from crmclient import Client, Login, connect
from crmclient.clock import SYSTEM_CLOCK, Clock
from crmclient.migration.engine import Migration
from crmclient.migration.ledger import Ledger
from crmclient.migration.plan import from_toml, plan, to_toml
from crmclient.sandbox.server import face, served
from crmclient.sandbox.world import World, populate

ZONE = ZoneInfo("Europe/Moscow")  # which the XML API does not tell


async def move(source: Client, target: Client, folder: Path, *, clock: Clock = SYSTEM_CLOCK) -> bool:
    """Plan, the first time; then move and compare: whether all is there. Raises CRMError where it cannot go on."""
    file, said = folder / "plan.toml", ""
    if not file.exists():
        file.write_text(to_toml(made := await plan(source, target)), encoding="utf-8")
        losses = [f"  {loss.what} of {loss.rows}: {loss.choice}, {loss.why}" for loss in made.losses]
        print(f"{file}: what {sum(made.moves.values())} rows lose, and what is done with it", *losses, sep="\n")
        return False
    with Ledger(folder / "plan.ledger") as ledger:
        migration = Migration(source, target, from_toml(file.read_text(encoding="utf-8")), ledger, clock=clock)
        async for event in migration:
            done = sum(counts.get(state, 0) for counts in event.counts.values() for state in ("done", "made"))
            if said != (said := event.said or f"{event.phase}: {done} rows are there"):
                print(said)
    return migration.ended and migration.verdict is not None and migration.verdict.equal


async def sandboxed() -> None:
    with World(clock=SYSTEM_CLOCK) as full, World(clock=SYSTEM_CLOCK) as empty, tempfile.TemporaryDirectory() as folder:
        populate(full, contacts=4, companies=2, deals=2, tasks=3, notes=3, as_rows=False)
        with served(face("amoxml"), full) as old, served(face("kommo"), empty) as new:
            login = Login(old.credentials["login"], hash=old.credentials["hash"])
            async with connect("amoxml", base_url=old.base_url, credentials=login, zone=ZONE, read_only=True) as source:
                async with connect("kommo", base_url=new.base_url, credentials=new.credentials["token"]) as target:
                    for _ in ("plan", "move"):
                        await move(source, target, Path(folder))


async def real() -> None:
    env, login = os.environ, Login(os.environ["OLD_LOGIN"], hash=os.environ["OLD_HASH"])
    async with connect("amoxml", env["OLD_ACCOUNT"], credentials=login, zone=ZONE, read_only=True) as source:
        async with connect("kommo", env["NEW_ACCOUNT"], credentials=env["NEW_TOKEN"]) as target:
            await move(source, target, Path())


if __name__ == "__main__":
    asyncio.run(real() if "OLD_ACCOUNT" in os.environ else sandboxed())
