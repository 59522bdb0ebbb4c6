"""How fast a listing is read, and how much memory a walk over it takes.

    python benchmarks/listing.py [--rows N] [--rounds N] [--stream-rows N]

Nothing leaves this machine: a server of our own, in a process of its own, hands out pages that the Kommo sandbox has
once answered. The same contacts are read as dicts by bare httpx and `json.loads`, as neutral entities by crmclient with
msgspec (`crmclient[fast]`) and without it, and as models by aioamocrm, where these are installed; in turn, round after
round, none of them paced. What counts is the median over the rounds of the ratio within a round: a machine that others
use too is seldom as fast a minute later. Memory is the peak of a process that does nothing but walk.
"""

import argparse
import asyncio
import gc
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

if "--walk" in sys.argv:
    # Where click and rich happen to be installed, httpx reads in its own command line and them: 6 MB that a service,
    # which has installed neither, does not hold.
    sys.modules["httpx._main"] = None  # pyright: ignore[reportArgumentType]

import httpx

from crmclient import connect, formats
from crmclient.dialect import Rate

PAGE = 250
# So many different pages the sandbox is asked for; a longer listing goes through them again, each time under another
# first id: a page that comes a second time would end the walk as a loop.
KINDS_OF_PAGES = 20
FIRST_ID = re.compile(rb'"contacts": \[\{"id": ([0-9]+)')
# To walk with pages under way side by side, the server has to be slower than the pace: 20 ms at 400 a second are 8.
LATENCY, PACE = 0.020, Rate(400, 1)

BARE = "httpx + json.loads"
# What is due.
SHARE_OF_BARE, TIMES_AIOAMOCRM, MEGABYTES = 0.5, 1.5, 60

Reading = Callable[[str, int], Coroutine[Any, Any, int]]

# --- the server ------------------------------------------------------------------------------------------------------


async def canned() -> tuple[bytes, list[bytes]]:
    """The sandbox's own bodies: the account, and pages of contacts as our client asks for them."""
    from crmclient.clock import SystemClock
    from crmclient.sandbox.server import in_process
    from crmclient.sandbox.world import World, populate
    from crmclient_kommo.sandbox import FACE

    with World(clock=SystemClock()) as world:
        populate(world, contacts=PAGE * KINDS_OF_PAGES, companies=300, deals=PAGE * 4)
        running = in_process(FACE, world, limits=False)
        bearer = {"Authorization": f"Bearer {running.credentials['token']}"}
        async with httpx.AsyncClient(transport=running.transport(), base_url=running.origin, headers=bearer) as http:
            account = await http.get("/api/v4/account?with=datetime_settings")
            pages = [
                await http.get("/api/v4/contacts", params={"with": "leads", "limit": PAGE, "page": page})
                for page in range(1, KINDS_OF_PAGES + 1)
            ]
    return account.content, [json.dumps(page.json()["_embedded"], ensure_ascii=False).encode() for page in pages]


class Shelf(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, as little of it as will do."""

    def __init__(self, account: bytes, pages: list[bytes], latency: float) -> None:
        self._account, self._pages, self._latency = account, pages, latency

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._asked = b""

    def data_received(self, data: bytes) -> None:
        self._asked += data
        *requests, self._asked = self._asked.split(b"\r\n\r\n")
        for request in requests:
            answer = self._answer(request.partition(b"\r\n")[0])
            if self._latency:
                asyncio.get_running_loop().call_later(self._latency, self._say, answer)
            else:
                self._say(answer)

    def _say(self, answer: list[bytes]) -> None:
        if isinstance(self._transport, asyncio.WriteTransport) and not self._transport.is_closing():
            self._transport.writelines(answer)

    def _answer(self, line: bytes) -> list[bytes]:
        if b"/account" in line:
            body = [self._account]
        else:
            page = int(line.partition(b"page=")[2].partition(b"&")[0].split()[0] or 1)
            if not 1 <= page <= len(self._pages):
                return [b"HTTP/1.1 204 No Content\r\n\r\n"]
            kind = self._pages[page - 1]
            found = FIRST_ID.search(kind)
            assert found is not None  # noqa: S101
            start, end = found.span(1)
            body = [self._head(page), kind[:start], b"%d" % (10_000_000 + page), kind[end:], b"}"]
        size = sum(map(len, body))
        return [b"HTTP/1.1 200 OK\r\nContent-Type: application/hal+json\r\nContent-Length: %d\r\n\r\n" % size, *body]

    def _head(self, page: int) -> bytes:
        host, port = self._transport.get_extra_info("sockname")
        there = f"http://{host}:{port}/api/v4/contacts?with=leads&limit={PAGE}&page="
        links = {"self": {"href": f"{there}{page}"}}
        if page < len(self._pages):
            links["next"] = {"href": f"{there}{page + 1}"}
        return f'{{"_page":{page},"_links":{json.dumps(links)},"_embedded":'.encode()


async def serve(rows: int, latency: float) -> None:
    account, kinds = await canned()
    pages = [kinds[page % len(kinds)] for page in range(rows // PAGE)]
    server = await asyncio.get_running_loop().create_server(lambda: Shelf(account, pages, latency), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    # Whoever started it closes its input in the end.
    await asyncio.to_thread(sys.stdin.read)


@contextmanager
def serving(rows: int, latency: float = 0.0) -> Generator[str]:
    command = [sys.executable, __file__, "--serve", str(rows), "--latency", str(latency)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603
        assert server.stdout is not None  # noqa: S101
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            assert server.stdin is not None  # noqa: S101
            server.stdin.close()


# --- the clients -----------------------------------------------------------------------------------------------------


async def bare(origin: str, rows: int) -> int:
    """The rows as dicts: httpx and `json.loads`, and nothing else."""
    found = 0
    async with httpx.AsyncClient(headers={"Authorization": "Bearer token"}) as http:
        url: str | None = f"{origin}/api/v4/contacts?with=leads&limit={PAGE}&page=1"
        while url is not None:
            answer = await http.get(url)
            tree = json.loads(answer.content)
            for _ in tree["_embedded"]["contacts"]:
                found += 1
            url = tree["_links"].get("next", {}).get("href")
    return found


async def ours(origin: str, rows: int) -> int:
    """crmclient: neutral entities."""
    found = 0
    async with connect("kommo", base_url=origin, credentials="token", rate=()) as crm:
        async for _ in crm.contacts.list():
            found += 1
    return found


async def ours_plain(origin: str, rows: int) -> int:
    """The same without the extra `fast`."""
    faster = formats._faster
    formats._faster = lambda: None
    try:
        return await ours(origin, rows)
    finally:
        formats._faster = faster


async def aioamocrm(origin: str, rows: int) -> int:
    """aioamocrm: its pydantic models, field values as it gives them."""
    from aioamocrm import AmoCRMClient, LongLivedToken

    found = 0
    async with AmoCRMClient(base_url=origin, auth=LongLivedToken("token"), rate_limit=None) as amo:
        async for _ in amo.contacts.iterate(with_=["leads"]):
            found += 1
    return found


def readings() -> dict[str, Reading]:
    found: dict[str, Reading] = {BARE: bare}
    if formats._faster() is None:
        print("msgspec is not installed, so JSON is read by the standard library alone: pip install crmclient[fast]")
    else:
        found["crmclient[fast]"] = ours
    found["crmclient"] = ours_plain
    try:
        found[f"aioamocrm {version('aioamocrm')}"] = aioamocrm
    except PackageNotFoundError:
        print("aioamocrm is not installed, so we are not compared with it: pip install aioamocrm")
    return found


# --- measuring -------------------------------------------------------------------------------------------------------


def timed(reading: Reading, origin: str, rows: int) -> tuple[float, float]:
    """Seconds by the wall clock, and of this process's own work."""
    started, worked = time.perf_counter(), time.process_time()
    found = asyncio.run(reading(origin, rows))
    taken = time.perf_counter() - started, time.process_time() - worked
    if found != rows:
        raise SystemExit(f"{found} rows were read instead of {rows}")
    return taken


def race(rows: int, rounds: int) -> bool:
    with serving(rows) as origin, serving(PAGE * 4) as small:
        contenders = readings()
        for reading in contenders.values():
            timed(reading, small, PAGE * 4)  # what is compiled or imported on the way is ready then
        gc.collect()
        gc.freeze()  # and what one of them has imported does not make the collections of the others slower
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        order = list(contenders)
        for _ in range(rounds):
            for name in order:
                times[name].append(timed(contenders[name], origin, rows))
            order.append(order.pop(0))
    print(f"\n{rows:,} contacts, {PAGE} a page, {rounds} rounds; {sys.implementation.name} {sys.version.split()[0]}")
    print(f"{'':22}{'median s':>10}{'best s':>10}{'cpu s':>10}{'rows/s':>12}{'of bare':>10}{'of its cpu':>12}")
    for name, taken in times.items():
        wall, best = median(wall for wall, _ in taken), min(wall for wall, _ in taken)
        worked = median(work for _, work in taken)
        of_bare, of_work = (ahead(times[BARE], taken, which) for which in (0, 1))
        print(f"{name:22}{wall:10.3f}{best:10.3f}{worked:10.3f}{rows / wall:12,.0f}{of_bare:9.2f}×{of_work:11.2f}×")
    # What is due is due of the faster of ours.
    judged, kept = next(name for name in times if name.startswith("crmclient")), True
    for other in times:
        if not other.startswith("crmclient"):
            ratio, due = ahead(times[other], times[judged]), SHARE_OF_BARE if other == BARE else TIMES_AIOAMOCRM
            kept = told(f"{judged} at {ratio:.2f}× {other}", ratio >= due, due) and kept
    return kept


def ahead(theirs: Sequence[tuple[float, float]], ours: Sequence[tuple[float, float]], which: int = 0) -> float:
    """How many times as fast as theirs ours is: by the wall clock (0), or by the work (1)."""
    return median(their[which] / our[which] for their, our in zip(theirs, ours, strict=True))


def told(what: str, kept: bool, due: float, unit: str = "×") -> bool:
    print(f"{'ok  ' if kept else 'MISS'} {what} (due {due:g}{unit})")
    return kept


def peak() -> float:
    """The most memory this process has ever held, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage() would count what the parent held when it forked
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)


async def walk(origin: str) -> None:
    """A child: what it holds at the start, at the most, and how many pages were under way."""
    before, found = peak(), 0
    async with connect("kommo", base_url=origin, credentials="token", rate=PACE) as crm:
        async for _ in crm.contacts.list():
            found += 1
        print(json.dumps({"rows": found, "before": before, "peak": peak(), "requests": crm.spent.requests}))


def stream(rows: int) -> bool:
    told_by: list[dict[str, float]] = []
    for each in (rows // 10, rows):
        with serving(each, LATENCY) as origin:
            command = [sys.executable, __file__, "--walk", origin]
            answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603
        if answer["rows"] != each:
            raise SystemExit(f"{answer['rows']} rows were read instead of {each}")
        print(
            f"a walk over {each:,} contacts: peak RSS {answer['peak']:.1f} MB ({answer['before']:.1f} before it began)"
        )
        told_by.append(answer)
    print(
        "     click and rich are kept out, which httpx loads where they are: a plain install of crmclient has neither"
    )
    growth = max(after["peak"] - before["peak"] for before, after in pairwise(told_by))
    print(f"     ten times the rows took {growth:+.1f} MB")
    return told(f"peak RSS {told_by[-1]['peak']:.1f} MB", told_by[-1]["peak"] <= MEGABYTES, MEGABYTES, " MB")


def main() -> int:
    asked = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    asked.add_argument("--rows", type=int, default=25_000, help="contacts to read against the clock")
    asked.add_argument("--rounds", type=int, default=7)
    asked.add_argument("--stream-rows", type=int, default=100_000, help="contacts to walk over for the memory")
    asked.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    asked.add_argument("--latency", type=float, default=0.0, help=argparse.SUPPRESS)
    asked.add_argument("--walk", help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.serve:
        asyncio.run(serve(given.serve, given.latency))
        return 0
    if given.walk:
        asyncio.run(walk(given.walk))
        return 0
    if min(given.rows, given.stream_rows // 10) < PAGE or given.rows % PAGE or given.stream_rows % (10 * PAGE):
        asked.error(f"rows come in whole pages of {PAGE}")
    kept = [race(given.rows, given.rounds), stream(given.stream_rows)]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
