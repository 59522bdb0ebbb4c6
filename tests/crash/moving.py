"""The process that is killed: it moves one account into another by a plan and a ledger, and knows nothing of its fate.

Its only argument is JSON: ``source`` and ``target`` (dialect, base_url, and a token or a login and hash, with a zone), the
paths ``plan`` and ``ledger``.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from crmclient import Client, connect
from crmclient.auth import Login
from crmclient.migration.engine import Migration
from crmclient.migration.ledger import Ledger
from crmclient.migration.plan import from_toml


def client(told: dict[str, Any]) -> Client:
    credentials = told["token"] if "token" in told else Login(told["login"], hash=told["hash"])
    zone = ZoneInfo(told["zone"]) if told["zone"] else None
    return connect(told["dialect"], base_url=told["base_url"], credentials=credentials, zone=zone, rate=())


async def move(told: dict[str, Any]) -> bool:
    plan = from_toml(Path(told["plan"]).read_text("utf-8"))
    async with client(told["source"]) as source, client(told["target"]) as target:
        with Ledger(told["ledger"]) as ledger:
            migration = Migration(source, target, plan, ledger)
            async for _ in migration:
                pass
            assert migration.verdict is not None
            print(migration.verdict.sentence)
            return migration.ended and migration.verdict.equal


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(move(json.loads(sys.argv[1]))) else 1)
