"""A whole move to look at: killed in the middle, gone on with, compared. It is done as you would do it.

Whoever moves is a process of its own, ``crmclient migrate`` as it is, so that SIGKILL takes it in earnest; the two accounts
are sandboxes in this one, served over HTTP and within the limits both vendors set.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import click
from attrs import define, field
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from crmclient.auth import Login
from crmclient.cli.terminal import fail, harmless, json_line, say
from crmclient.client import Client, connect
from crmclient.clock import SystemClock
from crmclient.dialect import Dialect, Row, Verb, Writing
from crmclient.entities import Company, Id, Kind, Ref
from crmclient.errors import CRMError
from crmclient.migration.ledger import SETTLED, Ledger, State
from crmclient.migration.matching import MOVED
from crmclient.migration.plan import Plan, plan, to_toml
from crmclient.profiles import opened
from crmclient.registry import dialect as dialect_named
from crmclient.registry import dialect_names
from crmclient.sandbox.faults import Action, Fault
from crmclient.sandbox.server import Face, NoSuchFace, Running, face, served
from crmclient.sandbox.world import World, populate

SIDES: Final = ("source", "target")
# How long a create whose answer was lost may still land here: a sandbox on this machine is no vendor's queue.
QUARANTINE: Final = 1.0
# More losses than this are for --json.
_SHOWN: Final = 8
# What of the environment would be taken for secrets or settings of the two profiles.
_OURS: Final = "CRMCLIENT_"


# ------------------------------------------------------------------------------------------------------- two accounts


def furnished(rows: int, seed: int, spoken: Dialect) -> World:
    """An account with so many contacts and 40 companies for each 300 of them, and deals, tasks and notes in proportion."""
    world = World(clock=SystemClock())
    share = {"companies": 40, "deals": 200, "tasks": 150, "notes": 150}
    scaled = {kind: max(1, round(rows * number / 300)) for kind, number in share.items()}
    populate(world, contacts=rows, **scaled, seed=seed, as_rows=spoken.can(Company, Verb.LIST))
    return world


def client_of(spoken: Dialect, running: Running, **more: Any) -> Client:
    """A client of a sandbox, with what its card gives to come in: a token, or else a login with its key."""
    card = running.credentials
    given = card["token"] if "token" in card else Login(card["login"], hash=card["hash"])
    # Where no page tells the account's time zone, whoever owns the account knows it.
    zone = None if "account" in spoken.settings else ZoneInfo(running.world.account["zone"])
    return connect(spoken, base_url=running.base_url, credentials=given, zone=zone, **more)


def environment(folder: Path, accounts: Mapping[str, tuple[Dialect, Running]]) -> dict[str, str]:
    """Profiles of sandboxes in a file of this folder, and the environment in which the commands find them."""
    lines, secrets = list[str](), dict[str, str]()
    for name, (spoken, running) in accounts.items():
        told = {"dialect": spoken.name, "base_url": running.base_url}
        if "token" in running.credentials:
            secrets[f"{_OURS}{name.upper()}_TOKEN"] = running.credentials["token"]
        else:
            told["login"] = running.credentials["login"]
            secrets[f"{_OURS}{name.upper()}_HASH"] = running.credentials["hash"]
        if "account" not in spoken.settings:
            told["zone"] = running.world.account["zone"]
        lines += [f"[profiles.{name}]", *(f"{key} = {json.dumps(part)}" for key, part in told.items())]
    file = folder / "crmclient.toml"
    file.write_text("\n".join(lines), encoding="utf-8")
    inherited = {name: part for name, part in os.environ.items() if not name.startswith(_OURS)}
    return {**inherited, "CRMCLIENT_CONFIG": str(file), "XDG_STATE_HOME": str(folder / "state"), **secrets}


# ------------------------------------------------------------------------------------------------------------ killing


@define
class Killer:
    """Kills a process as the target has acted on the create that takes the move beyond its middle, and has not answered."""

    target: Dialect
    running: Running
    ledger: Path
    rows: int
    """All that are to be made."""
    process: "subprocess.Popen[bytes] | None" = None
    killed: bool = False
    creates: dict[tuple[str, str], str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        prefix = self.running.face.prefix
        self.creates = {(method, prefix + path): kind for kind in MOVED for method, path in _creates(self.target, kind)}
        self.running.faults.decide = self.decide
        self.running.faults.kill = self.kill

    def decide(self, method: str, path: str, number: int) -> Fault | None:
        """Of each request as it arrives, in the thread of the target's world."""
        kind = self.creates.get((method, path))
        if self.process is None or self.killed or kind is None:
            return None
        with Ledger.read(self.ledger) as ledger:
            lost = ledger.open_batches()
        there = sum(self.running.world.count(str(MOVED[each].KIND)) for each in {*self.creates.values()})
        middle = 2 * (there + sum(len(batch.sources) for batch in lost)) >= self.rows
        return Fault(action=Action.KILL_AFTER) if middle and any(batch.kind == kind for batch in lost) else None

    def kill(self, fault: Fault) -> None:
        assert self.process is not None  # noqa: S101  nobody is shot at before
        self.killed = True
        self.process.kill()


def _creates(spoken: Dialect, kind: str) -> Iterable[tuple[str, str]]:
    """Method and path of the requests that make rows of a kind, whatever those hang on."""
    route = spoken.route(MOVED[kind], Verb.CREATE) if spoken.can(MOVED[kind], Verb.CREATE) else None
    if isinstance(route, Writing):
        for above in (Kind.CONTACT, Kind.COMPANY, Kind.DEAL):
            yield route.method, route.path(Row(number=0, wire={}, entity=None, target=Ref(above, 1)))


# ---------------------------------------------------------------------------------------------------------- the command


@click.command("demo")
@click.option("--from", "origin", default="amoxml", help="The dialect to move from.", show_default=True)
@click.option("--to", "goal", default="kommo", help="The dialect to move to.", show_default=True)
@click.option("--rows", default=8, type=click.IntRange(1), help="Contacts; the rest in proportion.", show_default=True)
@click.option("--seed", default=1, help="The same seed makes the same rows.", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, and nothing else.")
@click.pass_context
def run_demo(ctx: click.Context, origin: str, goal: str, rows: int, seed: int, as_json: bool) -> None:
    """Move an account between two sandboxes on this machine, kill the move with SIGKILL in the middle, and go on with it.

    Both are spoken to over HTTP, within the limits that the vendors set. Ends as `crmclient migrate` does: with 0 only if
    everything the target has a place for is there once, as it should be. `crmclient dialects` names the dialects.
    """
    reads_from, writes_to = (_known(name) for name in (origin, goal))
    began, shown = time.monotonic(), _Shown(as_json)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="crmclient-demo-") as folder,
            furnished(rows, seed, reads_from[0]) as full,
            World(clock=SystemClock()) as empty,
            served(reads_from[1], full) as source,
            served(writes_to[1], empty) as target,
        ):
            accounts = {"source": (reads_from[0], source), "target": (writes_to[0], target)}
            demo = _Demo(Path(folder), accounts, shown)
            code = demo.run()
            tree = {**demo.tree(), "exit": code, "seconds": round(time.monotonic() - began, 2)}
    except KeyboardInterrupt:
        took = f"{time.monotonic() - began:.1f} s"
        say(f"interrupted after {took}, {shown.so_far}; the process that moved and both sandboxes are stopped")
        ctx.exit(130)
    if as_json:
        click.echo(json_line(tree))
    ctx.exit(code)


def _known(name: str) -> tuple[Dialect, Face]:
    try:
        return dialect_named(name), face(name)
    except NoSuchFace as wrong:
        raise fail(f"{wrong}; dialects: {', '.join(dialect_names())}") from None


@define
class _Demo:
    folder: Path
    accounts: Mapping[str, tuple[Dialect, Running]]
    shown: "_Shown"
    plan: Plan = field(init=False)
    spent: dict[str, dict[str, int]] = field(factory=dict[str, dict[str, int]])
    """Requests that each sandbox has counted, by what they were for."""
    at_the_kill: dict[str, Counter[State]] = field(init=False)
    lost: list[tuple[str, Id]] = field(init=False)
    """Rows of which nobody knows, after the kill, whether they are in the target."""
    again: Counter[str] = field(factory=Counter[str])
    """Of those, the ones that were not there and were sent once more."""
    result: dict[str, Any] = field(factory=dict[str, Any])

    @property
    def ledger(self) -> Path:
        return self.folder / "plan.ledger"

    def run(self) -> int:
        """Plan, move, kill, move on; the last exit code. Raises Exit with it where there is nothing to compare."""
        env = environment(self.folder, self.accounts)
        self.plan = asyncio.run(_planned(env))
        (self.folder / "plan.toml").write_text(to_toml(self.plan), encoding="utf-8")
        self._count("plan")
        self.shown.planned(self.plan, self.accounts)
        target = self.accounts["target"]
        killer = Killer(*target, self.ledger, sum(self.plan.moves.values()))
        code = self._moved(env, killer)
        if not killer.killed:
            say(f"{self._said()}\nerror: the move ended with {code} before it could be killed")
            raise click.exceptions.Exit(code or 1)
        self._count("until the kill")
        with Ledger.read(self.ledger) as ledger:
            self.at_the_kill = ledger.counts()
            self.lost = [(item.kind, item.source) for item in ledger.items(State.INTENT)]
        self.shown.killed(self.at_the_kill, self.plan)
        code = self._moved(env)
        self._count("after it")
        said = (self.folder / "stdout").read_text(encoding="utf-8")
        self.result = json.loads(said) if said.strip() else {}
        if self.result.get("verdict") is None:
            say(self._said())
            raise click.exceptions.Exit(code)
        with Ledger.read(self.ledger) as ledger:
            for kind, source in self.lost:
                item = ledger.item(kind, source)
                self.again[kind] += item is not None and item.attempts > 1
        self.shown.ended(self)
        return code

    def _moved(self, env: Mapping[str, str], killer: Killer | None = None) -> int:
        """Run the move in a process of its own until it ends, or is ended."""
        words = ["migrate", *SIDES, "--plan", str(self.folder / "plan.toml"), "--yes", "--json"]
        with (self.folder / "stdout").open("wb") as out, (self.folder / "stderr").open("wb") as err:
            # In a session of its own: Ctrl-C is meant for this one, which ends the other.
            process = subprocess.Popen(  # noqa: S603  our own command, and no shell
                [sys.executable, "-m", "crmclient", *words],
                env={**env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            if killer is not None:
                killer.process = process
            try:
                with self.shown.moving(self.plan, self.ledger) as progress:
                    while process.poll() is None:
                        progress()
                        time.sleep(0.05)
            finally:
                process.kill()
                process.wait()
        return process.returncode

    def _said(self) -> str:
        return (self.folder / "stderr").read_text(encoding="utf-8", errors="replace").strip() or "it said nothing"

    def _count(self, what: str) -> None:
        for side, (_, running) in self.accounts.items():
            before = sum(self.spent.get(side, {}).values())
            self.spent.setdefault(side, {})[what] = running.stats.requests - before

    @property
    def least(self) -> dict[str, int]:
        """The fewest requests such a move can cost: the source is read for the plan, to be moved, and to be compared."""
        costs = self.plan.source_cost.requests, self.plan.target_cost.requests
        return {"source": 3 * sum(costs[0].values()), "target": sum(costs[1].values())}

    def kinds(self) -> dict[str, dict[str, int]]:
        """What became of the rows, by kind."""
        same, lost = self.result["verdict"]["kinds"], Counter(kind for kind, _ in self.lost)
        moved = {
            kind: counts[State.DONE] + counts[State.MADE] for kind, counts in self.at_the_kill.items() if kind in MOVED
        }
        return {
            kind: {
                "source": self.plan.source.rows.get(kind, 0),
                "moves": number,
                "at_the_kill": moved.get(kind, 0),
                "in_doubt": lost[kind],
                "found_again": lost[kind] - self.again[kind],
                "sent_again": self.again[kind],
                "same": same.get(kind, {}).get("same", 0),
            }
            for kind, number in self.plan.moves.items()
        }

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        sides = {side: running for side, (_, running) in self.accounts.items()}
        return {
            "from": sides["source"].face.title,
            "to": sides["target"].face.title,
            "equal": self.result["verdict"]["equal"],
            "kinds": self.kinds(),
            "losses": {loss.what: loss.rows for loss in self.plan.losses},
            "requests": {side: {**each, "least": self.least[side]} for side, each in self.spent.items()},
            "refused_429": {side: running.stats.refused for side, running in sides.items()},
            "quarantine": QUARANTINE,
            "verdict": self.result["verdict"],
        }


async def _planned(env: Mapping[str, str]) -> Plan:
    async with opened("source", environ=env, read_only=True) as source, opened("target", environ=env) as target:
        return await plan(source, target, quarantine=QUARANTINE)


# ---------------------------------------------------------------------------------------------------------- to look at


class _Shown:
    """What a person sees: what is done on stdout as it comes, how far it is on stderr where there is a terminal."""

    def __init__(self, silent: bool) -> None:
        self.so_far = "with nothing moved"
        self._silent = silent
        self._console = Console(highlight=False)
        self._bars = sys.stderr.isatty() and not silent

    def line(self, text: str) -> None:
        if not self._silent:
            self._console.print(harmless(text), markup=False, soft_wrap=True)

    def planned(self, made: Plan, accounts: Mapping[str, tuple[Dialect, Running]]) -> None:
        titles = " → ".join(running.face.title for _, running in accounts.values())
        moves = ", ".join(f"{number} {kind}" for kind, number in made.moves.items())
        self.line(f"{titles}: {sum(made.moves.values())} rows ({moves}), over HTTP, within both limits")
        lost = [f"{loss.what} {loss.rows}" for loss in made.losses]
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        self.line(f"plan      {'lost: ' + ', '.join(lost[:_SHOWN]) + more if lost else 'nothing is lost'}")
        self.line("migrate   crmclient migrate source target --plan plan.toml --yes")

    @contextmanager
    def moving(self, made: Plan, file: Path) -> Generator[Callable[[], None]]:
        """Gives what looks into the ledger and moves the bar."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console, total = Console(stderr=True), sum(made.moves.values())
        with Progress(*columns, console=console, disable=not self._bars, transient=True) as bars:
            task = bars.add_task("moving", total=total)

            def look() -> None:
                with suppress(CRMError), Ledger.read(file) as ledger:  # until there is one
                    counts = ledger.counts()
                    over = sum(counts[kind][each] for kind in made.moves if kind in counts for each in SETTLED)
                    self.so_far = f"with {over} of {total} rows moved"
                    bars.update(task, completed=over)

            yield look

    def killed(self, at_the_kill: Mapping[str, Counter[State]], made: Plan) -> None:
        total, counts = sum(made.moves.values()), sum(at_the_kill.values(), Counter[State]())
        moved = sum(at_the_kill.get(kind, Counter())[each] for kind in made.moves for each in (State.MADE, State.DONE))
        self.line(
            f"SIGKILL   before the target could say that it had made a request's rows: {moved} of {total} rows are known to "
            f"be there, {counts[State.INTENT]} are in doubt"
        )
        wait = f"a create may still land for {made.quarantine:g} s here, with vendors for longer"
        self.line(f"migrate   the same command again; {wait}")

    def ended(self, demo: "_Demo") -> None:
        if self._silent:
            return
        table = Table(box=SIMPLE, pad_edge=False)
        table.add_column("", no_wrap=True)
        for heading in ("read", "at the kill", "in doubt", "found again", "sent again", "same"):
            table.add_column(heading, justify="right", no_wrap=True)
        for kind, told in demo.kinds().items():
            named = ("source", "at_the_kill", "in_doubt", "found_again", "sent_again", "same")
            table.add_row(kind, *(str(told[name] or "-") for name in named))
        self._console.print(table)
        for side, spent in demo.spent.items():
            parts = ", ".join(f"{what} {number}" for what, number in spent.items())
            least = demo.least[side]
            self.line(f"{side:<9} {sum(spent.values())} requests ({parts}); without the kill {least} at the least")
        refused = " and ".join(f"{running.stats.refused} by the {side}" for side, (_, running) in demo.accounts.items())
        self.line(f"429s      {refused}")
        self.line(demo.result["verdict"]["sentence"])
