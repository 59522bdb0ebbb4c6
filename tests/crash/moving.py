"""The process that is killed: it moves one account into another by a plan and a ledger, and knows nothing of its fate.

It is told ``source`` and ``target`` (dialect, base_url, zone, and a token or a login and hash), and the paths ``plan``,
``ledger`` and ``said``.
"""

import asyncio
import sys
import traceback
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from crmclient import Client, connect
from crmclient.auth import Login
from crmclient.migration.engine import Migration
from crmclient.migration.ledger import Ledger
from crmclient.migration.plan import Plan, from_toml


def client(told: dict[str, Any]) -> Client:
    credentials = told["token"] if "token" in told else Login(told["login"], hash=told["hash"])
    zone = ZoneInfo(told["zone"]) if told["zone"] else None
    return connect(told["dialect"], base_url=told["base_url"], credentials=credentials, zone=zone, rate=())


async def move(told: dict[str, Any], plan: Plan) -> str:
    async with client(told["source"]) as source, client(told["target"]) as target:
        with Ledger(told["ledger"]) as ledger:
            migration = Migration(source, target, plan, ledger)
            async for _ in migration:
                pass
            assert migration.ended
            assert migration.verdict is not None
            return "equal" if migration.verdict.equal else migration.verdict.sentence


def run(told: dict[str, Any]) -> None:
    """What the process does. It leaves what it has to say in a file: whoever is killed leaves none."""
    try:
        said = asyncio.run(move(told, from_toml(Path(told["plan"]).read_text("utf-8"))))
    except BaseException:
        said = traceback.format_exc()
    Path(told["said"]).write_text(said, "utf-8")
    sys.exit(0 if said == "equal" else 1)
