"""Records the ledger that tests/faults/test_migration.py resumes: ``python tests/ledgers/record.py``, once a version.

What it prints as OLD goes into that file. A ledger of a version that was released is never recorded again.
"""

import asyncio
import sqlite3
import sys
import tempfile
from contextlib import closing, suppress
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "faults")]

from test_migration import KILLED_AT, Move, dying, in_worlds, of_old  # noqa: E402

from crmclient.clock import FakeClock  # noqa: E402
from crmclient.migration.ledger import VERSION  # noqa: E402
from crmclient.sandbox.faults import Action  # noqa: E402
from crmclient.sandbox.world import World  # noqa: E402


async def record(folder: Path) -> None:
    clock = FakeClock()
    with World(clock=clock) as full, World(clock=clock) as empty, World(clock=clock) as nowhere:
        of_old(full, nowhere)
        move = Move(
            origin="kommo",
            goal="kommo",
            clock=clock,
            path=folder / "ledger",
            **in_worlds("kommo", "kommo", full, empty),
        )
        plan = await move.planned(marker="off")
        dying(move.target, Action.KILL_AFTER, KILLED_AT)
        with suppress(BaseException):
            await move.run(plan, lanes=1)
        both = [[row["id"] for kind in ("contact", "deal") for row in world.select(kind)] for world in (full, empty)]
        print("OLD =", dict(zip(*both, strict=True)))
    with closing(sqlite3.connect(folder / "ledger")) as db:
        pragmas = [
            f"PRAGMA {name} = {db.execute(f'PRAGMA {name}').fetchone()[0]};"
            for name in ("application_id", "user_version")
        ]
        db.execute("UPDATE run SET plan = 'PLAN', plan_hash = 'PLAN_HASH', caps_hash = 'CAPS'")
        (HERE / f"v{VERSION}.sql").write_text("\n".join([*pragmas, *db.iterdump(), ""]), "utf-8")


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(record(Path(folder)))
