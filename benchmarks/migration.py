"""How near a whole move comes to the pace both accounts allow, by the servers' own count, and what memory it takes.

    python benchmarks/migration.py [--runs N] [--latency S] [--only WORD ...] [--detail]
    python benchmarks/migration.py --memory [--rows N]

Nothing leaves this machine. 2,000 contacts, 300 companies, 1,500 deals, 3,000 notes and 1,500 tasks move between two
sandboxes, limits on, each in a process of its own that answers after so many seconds; a third process moves them, with a
ledger on disk that waits for the disk. All times are stamps of the sandboxes, from the first request that arrives to the
last, and the fewest seconds are

    max(requests at the source / its limit, requests at the target / its limit)

with the same requests, whatever they were for. It is told twice. The move is what `crmclient migrate` does: what it asks
before it writes, the reading, the writing and the verifying, which reads both sides again; that is judged. The other is
of both commands as if nobody had looked at the plan in between: `crmclient plan` reads the source whole first, and the
target has nothing to do meanwhile. Over is how many requests came when as many as the limit had come within the second
before; least is how many requests would have done (`crmclient.migration.costs`), and what is named beside them.

A run whose server loop lagged counted late: it is void and is made again, as often as there were runs. The server whose
requests make the fewest seconds may be 30 ms late, the other one 100 ms: it writes a page of 500 rows in one piece, and of
its stamps none but the first, the last and those over a limit are in any figure.

Memory is the peak of a process that moves 10,000 rows, and of one that moves 1,000,000: every row is read, written down
in a ledger on disk, sent, settled, read back and compared. A million rows over HTTP would take hours, so both accounts are
made up in the same process as they are asked for: a dialect of contacts that have a name and nothing else, 1,000 a
page and 1,000 a request, no limits. So it shows that nothing grows with the number of rows, and not what rows of a
real account weigh: pages of those are held too, but as many of them however many rows there are.
"""

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from zoneinfo import ZoneInfo

import httpx
from attrs import frozen

from crmclient import Client, Contact, connect
from crmclient.auth import Bearer, Login
from crmclient.clock import SystemClock
from crmclient.dialect import ALL, Dialect, Listing, Made, Resource, Verb, Writing, by_status, mapping, read
from crmclient.formats import Json
from crmclient.migration.costs import reads
from crmclient.migration.engine import Migration
from crmclient.migration.ledger import Ledger, State
from crmclient.migration.matching import KINDS, MOVED
from crmclient.migration.plan import draft, plan
from crmclient.paging import PageNumber
from crmclient.registry import dialect

NUMBERS = {"contacts": 2_000, "companies": 300, "deals": 1_500, "tasks": 1_500, "notes": 3_000}
PAIRS = [("kommo", "kommo"), ("amocrm", "kommo")]
REQUIRED = 1.05
# Seconds: a server loop that lags more stamps arrivals that did not happen then. The narrow side, and the other.
LAGS = (0.030, 0.100)
SIDES = ("source", "target")

# --- the servers -----------------------------------------------------------------------------------------------------


async def serve(name: str, full: bool, latency: float) -> None:
    """Print where we are, wait for a line, print what came."""
    from crmclient.sandbox import server
    from crmclient.sandbox.faults import Action, Fault
    from crmclient.sandbox.world import World, populate

    worst, loop = 0.0, asyncio.get_running_loop()

    def beat(due: float, stats: server.Stats) -> None:
        nonlocal worst
        now = loop.time()
        # Before the first request there is nothing to stamp.
        worst = max(worst, now - due) if stats.arrivals else 0.0
        loop.call_at(now + 0.005, beat, now + 0.005, stats)

    slow = [Fault(action=Action.DELAY, seconds=latency, times=1_000_000)] if latency else []
    with World(clock=SystemClock()) as world:
        if full:
            populate(
                world,
                contacts=NUMBERS["contacts"],
                companies=NUMBERS["companies"],
                deals=NUMBERS["deals"],
                tasks=NUMBERS["tasks"],
                notes=NUMBERS["notes"],
            )
        face = server.face(name)
        # A 429 is a miss in any case; Kommo's own wish of 300 s would only make the run long.
        switches = {"retry-after": "1"} if "retry-after" in face.switches else None
        async with server.serve(face, world, switches=switches, faults=slow) as running:
            place = {
                "dialect": name,
                "base_url": running.base_url,
                "card": dict(running.credentials),
                "zone": world.account["zone"],
            }
            print(json.dumps(place, default=str), flush=True)
            gc.collect()
            gc.freeze()
            gc.disable()  # a full collection stops the loop that stamps for as long as a run may lag
            beat(loop.time(), running.stats)
            await asyncio.to_thread(sys.stdin.readline)
            stats = running.stats
            told = {
                "arrivals": stats.arrivals,
                "calls": stats.calls,
                "lag": worst,
                "refused": stats.refused,
                "banned": stats.banned,
                "rows": {kind: world.count(str(MOVED[kind].KIND)) for kind in KINDS} | hanging(world),
            }
            print(json.dumps(told), flush=True)
            os._exit(0)  # connections are still open on both sides, and nobody needs them


def hanging(world: Any) -> Counter[str]:
    """How many tasks and notes hang on what, as ``costs`` names them."""
    found: Counter[str] = Counter()
    for kind in ("tasks", "notes"):
        for row in world.select(str(MOVED[kind].KIND)):
            if row.get("target_kind"):
                found[f"{kind} of a {row['target_kind']}"] += 1
    return found


# --- the mover -------------------------------------------------------------------------------------------------------


def client(place: dict[str, Any]) -> Any:
    spoken, card = dialect(place["dialect"]), place["card"]
    given = card["token"] if "token" in card else Login(card["login"], hash=card["hash"])
    zone = None if "account" in spoken.settings else ZoneInfo(place["zone"])
    return connect(spoken, base_url=place["base_url"], credentials=given, zone=zone)


async def move(places: list[dict[str, Any]], folder: str) -> dict[str, Any]:
    """Plan and move; when each part began, by the machine's own seconds, which the servers' are too."""
    marks: dict[str, float] = {}
    spent: dict[str, list[int]] = {}
    worked: dict[str, float] = {}
    lines: list[str] = []

    def mark(phase: str) -> None:
        if phase not in marks:
            marks[phase], worked[phase] = time.monotonic(), time.process_time()
            spent[phase] = [source.spent.requests, target.spent.requests]

    async with client(places[0]) as source, client(places[1]) as target:
        mark("plan")
        drawn = await plan(source, target)
        aside = [source.spent.aside, target.spent.aside]
        with Ledger(Path(folder) / "ledger") as ledger:
            mark("words")
            migration = Migration(source, target, drawn, ledger)
            async for event in migration:
                mark(event.phase)
                lines += [event.said] if event.said else []
            wrong = ledger.violations()
        mark("ended")
        assert migration.verdict is not None  # noqa: S101  it has ended
        return {
            "marks": marks,
            "spent": spent,
            "worked": worked,
            "aside": aside,
            "aside_after": [source.spent.aside, target.spent.aside],
            "writes": sum(number for what, number in drawn.target_cost.requests.items() if what.startswith("write ")),
            "equal": migration.verdict.equal and not wrong,
            "sentence": migration.verdict.sentence,
            "lines": lines,
        }


# --- one run ---------------------------------------------------------------------------------------------------------


@frozen
class Part:
    """Requests on both sides and the seconds from the first to the last, the two sides together."""

    wall: float
    requests: tuple[int, int]
    bound: float

    @property
    def ratio(self) -> float:
        return self.wall / self.bound


@frozen
class Run:
    names: tuple[str, str]
    whole: Part
    moved: Part
    least: tuple[int, int]
    over: int
    refused: int
    lag: tuple[float, float]
    """Of the side that makes the fewest seconds, and of the other."""
    cpu: float
    said: dict[str, Any]
    servers: list[dict[str, Any]]

    @property
    def void(self) -> bool:
        return any(lag > most for lag, most in zip(self.lag, LAGS, strict=True))


def part(names: tuple[str, str], arrivals: list[list[float]], since: float) -> Part:
    stamps = [[at for at in each if at >= since] for each in arrivals]
    together = [at for each in stamps for at in each]
    needed = [len(each) / rate(name) for name, each in zip(names, stamps, strict=True)]
    return Part(max(together) - min(together), (len(stamps[0]), len(stamps[1])), max(needed))


def rate(name: str) -> float:
    """Requests a second that the narrowest of a vendor's limits allows."""
    return min(each.limit / each.seconds for each in dialect(name).rate)


def over(name: str, arrivals: list[float]) -> int:
    limit = dialect(name).rate[0]
    return sum(sum(at - limit.seconds < early <= at for early in arrivals) > limit.limit for at in arrivals)


def lags(names: tuple[str, str], servers: list[dict[str, Any]]) -> tuple[float, float]:
    source, target = servers
    in_source, in_target = (len(each["arrivals"]) / rate(name) for name, each in zip(names, servers, strict=True))
    narrow, other = (source, target) if in_source > in_target else (target, source)
    return narrow["lag"], other["lag"]


def least(names: tuple[str, str], servers: list[dict[str, Any]], writes: int) -> tuple[int, int]:
    """Of a move: the source read twice, the target written and read once."""
    spoken = [dialect(name) for name in names]
    kinds = [
        [kind for kind, entity in MOVED.items() if each.can(entity, Verb.LIST) and spoken[1].can(entity, Verb.CREATE)]
        for each in spoken
    ]
    reading = [reads(each, which, told["rows"]) for each, which, told in zip(spoken, kinds, servers, strict=True)]
    return 2 * reading[0], writes + reading[1]


@contextmanager
def serving(name: str, full: bool, latency: float) -> Generator["subprocess.Popen[str]"]:
    asked = [sys.executable, __file__, "--serve", name, "--latency", str(latency), *(["--full"] if full else [])]
    process = subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603  ourselves
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def told(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None  # noqa: S101  it was asked for
    return json.loads(process.stdout.readline())


def run(names: tuple[str, str], latency: float) -> Run:
    with serving(names[0], True, latency) as first, serving(names[1], False, latency) as second:
        both = (first, second)
        places = json.dumps([told(each) for each in both])
        with tempfile.TemporaryDirectory() as folder:
            asked = [sys.executable, __file__, "--move", folder]
            # Ourselves, in a process of its own.
            moving = subprocess.run(asked, input=places, stdout=subprocess.PIPE, text=True, check=True, timeout=550)  # noqa: S603
        said = json.loads(moving.stdout)
        for each in both:
            assert each.stdin is not None  # noqa: S101  it was asked for
            each.stdin.write("\n")
            each.stdin.flush()
        servers = [told(each) for each in both]
    if not said["equal"]:
        raise SystemExit(f"{names[0]} -> {names[1]}: {said['sentence']}")
    arrivals = [sorted(each["arrivals"]) for each in servers]
    return Run(
        names,
        whole=part(names, arrivals, 0.0),
        moved=part(names, arrivals, said["marks"]["words"]),
        least=least(names, servers, said["writes"]),
        over=sum(over(name, each) for name, each in zip(names, arrivals, strict=True)),
        refused=sum(each["refused"] + each["banned"] for each in servers),
        lag=lags(names, servers),
        cpu=said["worked"]["ended"] - said["worked"]["words"],
        said=said,
        servers=servers,
    )


def detail(done: Run) -> None:
    """Where the seconds went: what arrived on each side in each second of the run."""
    marks = done.said["marks"]
    start = min(at for each in done.servers for at in each["arrivals"])
    print("   phases " + ", ".join(f"{name} from {at - start:.1f} s" for name, at in marks.items()), flush=True)
    print(f"   spent by then {done.said['spent']}, cpu { ({k: round(v, 1) for k, v in done.said['worked'].items()}) }")
    print("".join(f"   {line}\n" for line in done.said["lines"]), end="")
    for side, each in zip(SIDES, done.servers, strict=True):
        seconds = Counter(int(at - start) for at in each["arrivals"])
        print(f"   {side} a second: " + " ".join(str(seconds[n]) for n in range(max(seconds) + 1)))
        print(f"   {side} calls: {each['calls']}")


def tell(done: Run) -> str:
    told = "".join(
        f"{each.wall:8.2f}{each.bound:8.2f}{each.ratio:7.3f}{each.requests[0]:6}{each.requests[1]:6}"
        for each in (done.moved, done.whole)
    )
    return (
        f"{' -> '.join(done.names):18}{told}{done.least[0]:7}{done.least[1]:6}{done.over:6}{done.refused:5}"
        f"{done.cpu:7.1f}{1000 * done.lag[0]:7.0f}{1000 * done.lag[1]:4.0f}{'  VOID' if done.void else ''}"
    )


HEADS = (
    f"{'':18}{'move s':>8}{'fewest':>8}{'ratio':>7}{'reads':>6}{'there':>6}{'+plan s':>8}{'fewest':>8}{'ratio':>7}"
    f"{'reads':>6}{'there':>6}{'least':>7}{'':>6}{'over':>6}{'429':>5}{'cpu s':>7}{'lag ms':>7}"
)


def race(pairs: list[tuple[str, str]], runs: int, latency: float, detailed: bool) -> bool:
    print(
        f"{sum(NUMBERS.values()):,} rows, {1000 * latency:g} ms at the servers, {runs} run(s); {time.strftime('%F %T')}"
    )
    print(HEADS, flush=True)
    kept = True
    for names in pairs:
        good, void = list[Run](), list[Run]()
        while len(good) < runs and len(good) + len(void) < 2 * runs:
            done = run(names, latency)
            (void if done.void else good).append(done)
            print(tell(done), flush=True)
            if detailed:
                detail(done)
        if len(good) < runs:
            print(f"VOID too busy a machine to count every run (a server loop more than {LAGS[0] * 1000:.0f} ms late)")
        if not good:
            kept = False
            continue
        ratio, broken = median(each.moved.ratio for each in good), sum(each.over + each.refused for each in good)
        kept = kept and ratio <= REQUIRED and not broken
        print(
            f"{'ok  ' if ratio <= REQUIRED else 'MISS'} {' -> '.join(names)} at {ratio:.3f}× the fewest seconds, "
            f"median of {len(good)} (due {REQUIRED:g}×)"
        )
        print(f"{'MISS' if broken else 'ok  '} {' -> '.join(names)}: {broken} requests over a limit")
    return kept


# --- memory ----------------------------------------------------------------------------------------------------------

PER_PAGE = 1_000
MEGABYTES = 30.0
FIRST_THERE = 10_000_000


def _contact(row: Any, context: Any) -> Contact:
    return Contact(id=row["id"], name=row["name"], raw=row)


NAMED = Resource(
    entity=Contact,
    vendor="contacts",
    decode=_contact,
    encode=lambda contact, fields, context: {"name": contact.name},
    fields={"name": ALL},
    routes={
        Verb.LIST: Listing(call=read("/contacts"), rows=lambda reply: mapping(reply.body)["rows"]),
        Verb.CREATE: Writing(
            method="POST",
            path=lambda row: "/contacts",
            wrap=lambda rows: [row.wire for row in rows],
            unwrap=lambda reply, rows: tuple(Made(id=id) for id in mapping(reply.body)["ids"]),
            batch=PER_PAGE,
        ),
    },
)
MADE_UP = Dialect(
    name="madeup",
    title="Made up",
    host=None,
    format=Json(),
    paging=PageNumber(size=PER_PAGE, pages=lambda reply: mapping(reply.body)["pages"]),
    rate=(),
    auth=(Bearer(),),
    judge=by_status,
    resources={Contact: NAMED},
)


def account(place: str, first: int, rows: int) -> Client:
    """An account of so many contacts with ids from ``first`` on, that makes up each page as it is asked for.

    What is created gets the id that goes with its name, so that nothing has to be kept but how many there are.
    """
    there = rows

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal there
        if request.method == "POST":
            ids = [first + int(row["name"].rpartition(" ")[2]) for row in json.loads(request.content)]
            there += len(ids)
            body: dict[str, Any] = {"ids": ids}
        else:
            start = (int(request.url.params["page"]) - 1) * PER_PAGE
            page = [{"id": first + n, "name": f"Contact {n}"} for n in range(start, min(start + PER_PAGE, there))]
            body = {"rows": page, "pages": max(1, -(-there // PER_PAGE))}
        return httpx.Response(200, json=body)

    return connect(MADE_UP, base_url=place, credentials="token", transport=httpx.MockTransport(answer))


async def move_many(rows: int, folder: str) -> None:
    """A child: its most memory before it begins, with all rows in the target, and once both sides are compared."""
    source, target = account("http://127.0.0.1:9/a", 1, rows), account("http://127.0.0.1:9/b", FIRST_THERE, 0)
    told: dict[str, Any] = {"before": peak()}
    async with source, target:
        drawn = await draft(source, target)
        with Ledger(Path(folder) / "ledger") as ledger:
            migration = Migration(source, target, drawn, ledger)
            async for event in migration:
                told.setdefault(event.phase, peak())
            told["peak"] = peak()
            told["rows"] = ledger.counts()["contacts"][State.DONE]
        assert migration.verdict is not None  # noqa: S101  it has ended
        told |= {"equal": migration.verdict.equal, "cpu": time.process_time()}
    print(json.dumps(told))


def peak() -> float:
    """The most memory this process has ever held, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage() would count what the parent held when it forked
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def flat(few: int, many: int) -> bool:
    peaks: list[float] = []
    for rows in (few, many):
        with tempfile.TemporaryDirectory() as folder:
            asked = [sys.executable, __file__, "--move-many", str(rows), "--folder", folder]
            # Ourselves, in a process of its own.
            said = json.loads(subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True).stdout)  # noqa: S603
            size = (Path(folder) / "ledger").stat().st_size / (1 << 20)
        if not said["equal"] or said["rows"] != rows:
            raise SystemExit(f"{said['rows']} of {rows} rows were moved, equal: {said['equal']}")
        print(
            f"{rows:>9,} rows: peak RSS {said['peak']:.1f} MB ({said['before']:.1f} before, "
            f"{said['verifying']:.1f} when all were moved), ledger {size:.0f} MB, {said['cpu']:.0f} s of work",
            flush=True,
        )
        peaks.append(said["peak"])
    growth = peaks[1] - peaks[0]
    print(f"{'ok  ' if growth <= MEGABYTES else 'MISS'} {growth:+.1f} MB (due {MEGABYTES:g} MB)")
    return growth <= MEGABYTES


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--runs", type=int, default=3)
    asked.add_argument("--latency", type=float, default=0.05, help="seconds that a server takes to answer")
    asked.add_argument("--only", nargs="*", default=[], help="pairs whose name has this word")
    asked.add_argument("--detail", action="store_true", help="what arrived in each second")
    asked.add_argument("--memory", action="store_true", help="how memory grows with the rows, and nothing else")
    asked.add_argument("--rows", type=int, default=1_000_000, help="rows that are to take no more memory than 10,000")
    for hidden in ("--serve", "--move", "--folder"):
        asked.add_argument(hidden, help=argparse.SUPPRESS)
    asked.add_argument("--move-many", type=int, help=argparse.SUPPRESS)
    asked.add_argument("--full", action="store_true", help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.serve:
        asyncio.run(serve(given.serve, given.full, given.latency))
        return 0
    if given.move:
        print(json.dumps(asyncio.run(move(json.loads(sys.stdin.readline()), given.move))))
        return 0
    if given.move_many:
        asyncio.run(move_many(given.move_many, given.folder))
        return 0
    if given.memory:
        return 0 if flat(10_000, given.rows) else 1
    pairs = [pair for pair in PAIRS if not given.only or any(word in " -> ".join(pair) for word in given.only)]
    return 0 if race(pairs, given.runs, given.latency, given.detail) else 1


if __name__ == "__main__":
    raise SystemExit(main())
