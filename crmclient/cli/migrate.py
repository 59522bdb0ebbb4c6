"""Move an account into another by a plan, and tell of it afterwards: whatever stops it, running it again goes on."""

import asyncio
import os
import shlex
import signal
import sqlite3
import sys
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import aclosing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click
from attrs import define, field
from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from crmclient.cli.check import AGAIN, DIFFERENT, FATAL, LATER, read_plan
from crmclient.cli.plan import both, counting, lasting
from crmclient.cli.terminal import fail, harmless, json_line, nowhere_to_write, say
from crmclient.client import Client
from crmclient.clock import SYSTEM_CLOCK, Clock
from crmclient.dialect import Dialect
from crmclient.errors import AmbiguousWrite, AuthFailed, CRMError, Misconfigured, Unreadable, UsageError
from crmclient.migration.adoption import adopt
from crmclient.migration.costs import minutes
from crmclient.migration.engine import Migration
from crmclient.migration.ledger import Item, Ledger, LedgerFailed, Run, State
from crmclient.migration.move import Event
from crmclient.migration.plan import Plan, Told
from crmclient.migration.report import Report, counts_tree
from crmclient.migration.verify import Verdict
from crmclient.profiles import find, variable

# Beside those of `check`.
LOG_IN, INTERRUPTED = 3, 130
# What is said of refused rows.
_RETRY: Final = "once that is put right, `crmclient migrate … --retry` tries them once more"
# More of one kind of lines than this is for --json or the page.
_SHOWN: Final = 12
# Shows the cursor again that a live display had hidden.
_CURSOR: Final = b"\x1b[?25h\n"
# In the target, or known never to be.
_OVER: Final = (State.MADE, State.DONE, State.REJECTED, State.DOUBT)

_plan = click.option(
    "--plan",
    "file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="What `crmclient plan --out` has written, and you have read.",
)


@click.command("migrate")
@click.argument("source")
@click.argument("target")
@_plan
@click.option(
    "--ledger",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where it is written down what was done. Else beside the plan, as plan.ledger.",
)
@click.option("--yes", is_flag=True, help="Do not ask whether this is the account that is meant.")
@click.option(
    "--lanes",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="How many requests to TARGET may be under way at once, within its limits.",
)
@click.option("--retry", is_flag=True, help="Try once more what TARGET has refused, with the rows that hang on it.")
@click.option("--json", "as_json", is_flag=True, help="What came of it as one JSON object on stdout, and nothing else.")
def run_migrate(
    source: str, target: str, file: Path, path: Path | None, yes: bool, lanes: int, retry: bool, as_json: bool
) -> None:
    """Move SOURCE into TARGET, each row once, by a plan; then read both whole and compare. Both are profiles.

    Whatever stops it, the same command goes on where it was. Ctrl-C ends it after what is in flight; a second one at
    once. Nothing is doubled or lost by either. What TARGET has refused is left until it is changed in SOURCE, or until
    --retry. That is said once: whoever goes on after a stop still does it.

    Ends with 0 if all that TARGET has a place for is there; with 1 if rows differ, were refused or are in doubt, 3 if
    you have to log in again, 5 if trying again later may help, 7 if it does not, 130 if you have stopped it.

    \b
    crmclient plan old new --out plan.toml
    crmclient migrate old new --plan plan.toml
    crmclient report plan.ledger --html report.html
    """  # noqa: D301  (\b keeps click from joining lines)
    given = ["--ledger", str(path)] if path is not None else []
    given += [*(["--yes"] if yes else []), *(["--lanes", str(lanes)] if lanes != 8 else [])]
    words = ["crmclient", "migrate", source, target, "--plan", str(file), *given, *(["--json"] if as_json else [])]
    work = _Work(source, target, shlex.join(words), path or file.with_suffix(".ledger"), as_json)
    try:
        plan = read_plan(file)
        reading, writing = both(source, target, writing=True)
        if wrong := [*plan.of_others(reading, writing), *plan.outdated(reading, writing)]:
            raise Misconfigured("; ".join(wrong))
        with work.opened(plan, writing, yes) as ledger:
            asyncio.run(_moved(work, reading, writing, plan, ledger, lanes=lanes, retry=retry))
    except click.Abort:
        raise click.exceptions.Exit(INTERRUPTED) from None
    except CRMError as error:
        work.failed(error)
    except sqlite3.DatabaseError as wrong:
        work.failed(LedgerFailed(f"the ledger {work.ledger} cannot be read: {wrong}"))
    raise click.exceptions.Exit(work.close())


async def _moved(
    work: "_Work", source: Client, target: Client, plan: Plan, ledger: Ledger, *, lanes: int, retry: bool
) -> None:
    async with source, target:
        migration = Migration(source, target, plan, ledger, lanes=lanes)
        work.migration = migration
        with _Bars(plan, source.dialect, target.dialect, silent=work.as_json) as bars, work.interruptible(bars):
            if retry:
                await migration.prepare()  # that this ledger is of this plan
                number = ledger.retry()
                tried = f"{number} rows were refused, or hung on such: they are tried once more"
                bars.print(tried if number else "no row was refused, so that none is tried once more")
            async with aclosing(aiter(migration)) as events:
                async for event in events:
                    work.last = event
                    bars(event)


@define
class _Work:
    """One run of the command: what it was told, and what came of it."""

    source: str
    target: str
    again: str
    ledger: Path
    as_json: bool
    migration: Migration | None = None
    last: Event | None = None
    error: CRMError | None = None
    began: float = field(factory=time.monotonic)
    interrupted: bool = False

    @contextmanager
    def opened(self, plan: Plan, target: Client, yes: bool) -> Generator[Ledger]:
        """The ledger, once a person has agreed; one that is new is not made before."""
        if not self.ledger.exists():
            self._agree(plan, target, yes, {})
            with Ledger(self.ledger) as ledger:
                yield ledger
            return
        with Ledger(self.ledger) as ledger:
            self._agree(plan, target, yes, ledger.counts())
            yield ledger

    def _agree(self, plan: Plan, target: Client, yes: bool, counts: Mapping[str, Mapping[State, int]]) -> None:
        rows = ", ".join(f"{number} {kind}" for kind, number in plan.moves.items() if number)
        named = plan.target.name or plan.target.account
        lasts = lasting(max(plan.source_cost.minutes, plan.target_cost.minutes))
        account = f"{target.dialect.title} at {target.base_url} ({named})"
        there = sum(each.get(state, 0) for each in counts.values() for state in _OVER)
        begun = f"; {there} rows are dealt with by {self.ledger} already" if there else ""
        what = f"write {sum(plan.moves.values())} rows ({rows or 'none'}) into {account}; at best that takes {lasts}{begun}"
        if yes:
            say(f"this will {what}")
        elif not sys.stdin.isatty():
            raise Misconfigured(f"this would {what}; there is nobody to ask whether that is meant: give --yes")
        elif not click.confirm(harmless(f"This will {what}. Go on?"), err=True):
            say("nothing was written")
            raise click.exceptions.Exit(INTERRUPTED)

    @contextmanager
    def interruptible(self, bars: "_Bars") -> Generator[None]:
        """The first Ctrl-C lets what is in flight end; the second ends at once: the ledger goes through that, too."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            assert self.migration is not None  # noqa: S101  it is what is run
            self.migration.stop()
            bars.print("finishing what is in flight; Ctrl-C again stops at once")

        def heard(number: int, frame: FrameType | None) -> None:
            if not self.interrupted:
                self.interrupted = True
                loop.call_soon_threadsafe(stop)
                return
            # Whatever was being written to the terminal when this came, nothing of it is waited for.
            os.write(
                2, (_CURSOR if bars.shown else b"") + harmless(f"stopped. To go on: {self.again}").encode() + b"\n"
            )
            os._exit(INTERRUPTED)

        before = {each: signal.signal(each, heard) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def failed(self, error: CRMError) -> None:
        self.error = error
        say(f"error: {error}")
        if isinstance(error, AuthFailed):
            say(f"log in again: {' or '.join(map(_login, self._locked_out(error)))}")
        # What is wrong with the command itself is put right first; and what has not begun is not gone on with.
        if self.last is not None or not isinstance(error, UsageError):
            say(f"nothing that was done is lost. To go on: {self.again}")

    def _locked_out(self, error: AuthFailed) -> list[str]:
        """Whose credentials they were: one profile, or both where nobody was asked yet."""
        both = [self.source, self.target]
        return [name for name in both if error.account is not None and find(name).stored_as == error.account] or both

    def close(self) -> int:
        """Say what came of it; the exit code."""
        counts: Mapping[str, Mapping[State, int]] = self.last.counts if self.last is not None else {}
        refused, doubt = (sum(each.get(s, 0) for each in counts.values()) for s in (State.REJECTED, State.DOUBT))
        ended = self.migration is not None and self.migration.ended
        verdict = self.migration.verdict if ended and self.migration is not None else None
        code = (
            _code(self.error)
            if self.error is not None
            else INTERRUPTED
            if verdict is None
            else 0
            if verdict.equal and not refused and not doubt
            else DIFFERENT
        )
        try:
            if self.as_json:
                click.echo(json_line(self._tree(counts, verdict, code)))
            elif verdict is not None:
                click.echo(harmless(verdict.sentence))
        except BrokenPipeError:
            nowhere_to_write()
        if self.error is None and verdict is None:
            say(f"stopped; nothing that was done is lost. To go on: {self.again}")
        remarks = 0
        if verdict is not None:
            with Report(self.ledger) as report:
                remarks = report.remarks
        troubles = (
            (refused, "were refused", f"; {_RETRY}"),
            (doubt, "are in doubt", ""),
            (remarks, "moved, and there is something to say of them", ""),
        )
        for number, what, then in troubles:
            if number:
                say(f"{number} rows {what}: crmclient report {shlex.quote(str(self.ledger))}{then}")
        return code

    def _tree(self, counts: Mapping[str, Mapping[State, int]], verdict: Verdict | None, code: int) -> dict[str, Any]:
        spent = self.last.requests if self.last is not None else (0, 0)
        return {
            "ended": verdict is not None,
            "exit": code,
            "error": str(self.error) if self.error is not None else None,
            "kinds": counts_tree(counts),
            "verdict": verdict.as_tree() if verdict is not None else None,
            "requests": dict(zip(("source", "target"), spent, strict=True)),
            "seconds": round(time.monotonic() - self.began, 2),
            "ledger": str(self.ledger),
            "again": self.again if verdict is None else None,
        }


def _login(name: str) -> str:
    """The command; a token of the environment is taken before what it keeps."""
    given = [each for each in (variable(name, "TOKEN"), "CRMCLIENT_TOKEN") if os.environ.get(each)]
    return f"`crmclient login {name}`" + (f", once {given[0]} holds a new token or none" if given else "")


def _code(error: CRMError) -> int:
    if isinstance(error, AuthFailed):
        return LOG_IN
    later = isinstance(error, (*LATER, Unreadable, AmbiguousWrite)) and getattr(error, "passing", True)
    return AGAIN if later else FATAL


# ------------------------------------------------------------------------------------------------- while it goes on


class _Bars:
    """How far it is, where there is a terminal to show it on: a bar for each kind, both limits, when it may end, and what
    it waits for; elsewhere what it waits for is said once.
    """

    def __init__(
        self, plan: Plan, source: Dialect, target: Dialect, *, silent: bool, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        console = Console(stderr=True, highlight=False)
        self.shown = console.is_terminal and not silent
        self._plan, self._limits = plan, [_limit(each) for each in (source, target)]
        self._progress = Progress(
            TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), console=console
        )
        self._line, self._clock = Text(), clock
        self._last: Event | None = None
        self._told_until: datetime | None = None
        # Asked for again each time: the seconds go by while nothing else happens.
        self._live = Live(get_renderable=self.display, console=console, transient=True, auto_refresh=self.shown)
        self._tasks: dict[str, TaskID] = {}
        self._began = time.monotonic()
        self._phase = ""

    def __enter__(self) -> "_Bars":
        if self.shown:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.shown:
            self._live.stop()

    def print(self, text: str) -> None:
        """A line that stays."""
        if self.shown:
            self._live.console.print(Text(harmless(text)), soft_wrap=True)
        else:
            say(text)

    def __call__(self, event: Event) -> None:
        if event.said is not None and event.phase != "ended":  # the sentence at the end has a place of its own
            self.print(event.said)
        self._last = event
        if not self.shown:
            if event.until is not None and event.until != self._told_until:
                say(self.waiting(event))
            self._told_until = event.until
            return
        for kind, number in self._totals(event).items():
            if kind not in self._tasks:
                self._tasks[kind] = self._progress.add_task(kind, total=number)
            done = sum(event.counts.get(kind, {}).get(state, 0) for state in _OVER)
            self._progress.update(self._tasks[kind], completed=done, total=max(number, done))
        self._line.plain = harmless(self.line(event, time.monotonic() - self._began))

    def display(self) -> Group:
        """What a terminal shows at this moment."""
        waits = [Text(harmless(said))] if self._last is not None and (said := self.waiting(self._last)) else []
        return Group(self._progress, self._line, *waits)

    def waiting(self, event: Event) -> str:
        """What stands still, until when, and how long that still is."""
        if event.until is None:
            return ""
        left = max(0.0, (event.until - self._clock.now()).total_seconds())
        return f"{event.waits_for}: {_looking(event.until, left)}"

    def _totals(self, event: Event) -> dict[str, int]:
        """The plan's numbers; more, where the source has grown since."""
        waiting = (State.PENDING, State.INTENT, *_OVER)
        known = {kind: sum(counts.get(state, 0) for state in waiting) for kind, counts in event.counts.items()}
        kinds = dict.fromkeys([*self._plan.moves, *known])
        totals = {kind: max(self._plan.moves.get(kind, 0), known.get(kind, 0)) for kind in kinds}
        return {kind: number for kind, number in totals.items() if number}

    def line(self, event: Event, elapsed: float) -> str:
        """Both limits' use, in percent, and how long it may still take."""
        told = [_PHASES.get(event.phase, event.phase)]
        for side, spent, limit in zip(("source", "target"), event.requests, self._limits, strict=True):
            used = f", {spent / elapsed / limit:.0%} of its limit" if limit and elapsed > 1 else ""
            told.append(f"{side} {spent} requests{used}")
        if event.phase == "moving" and (left := self.minutes_left(event, elapsed)) is not None:
            told.append(f"{lasting(left)} left")
        return " · ".join(told)

    def minutes_left(self, event: Event, elapsed: float) -> float | None:
        """What the plan counts on the target for the rows that are not there yet, at the pace it has gone so far."""
        cost, moves = self._plan.target_cost.requests, self._plan.moves
        left = float(cost.get("read back", 0))
        for kind, number in moves.items():
            done = sum(event.counts.get(kind, {}).get(state, 0) for state in _OVER)
            left += cost.get(f"write {kind}", 0) * max(0.0, 1 - done / number) if number else 0.0
        spent = event.requests[1]
        pace = spent / elapsed if spent >= 10 and elapsed > 1 else self._limits[1]
        return left / pace / 60 if pace else None


def _looking(at: datetime, seconds: float) -> str:
    return f"looking at {at.astimezone():%H:%M:%S}, {seconds:.0f} s"


_PHASES: Final = {"words": "words and fields", "moving": "moving", "verifying": "reading both sides to compare"}


def _limit(spoken: Dialect) -> float:
    """Requests in a second by the narrowest of its limits; 0 where it has none."""
    each = minutes(1, spoken.rate) * 60
    return 1 / each if each else 0.0


# ---------------------------------------------------------------------------------------------------------- afterwards


_ledger = click.argument("path", metavar="LEDGER", type=click.Path(dir_okay=False, path_type=Path))


@click.command("status")
@_ledger
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, and nothing else.")
def show_status(path: Path, as_json: bool) -> None:
    """Say how the move of LEDGER stands, also while it goes on. No account is asked anything.

    Ends with 1 if the ledger contradicts itself, which it never should.
    """
    with Report(path) as report:
        holder, lost, wrong = report.holder(), report.open_batches(), report.violations()
        if as_json:
            tree = {
                "ledger": str(path),
                **(report.summary() if report.run is not None else {"run": None}),
                "process": holder,
                "unknown": [
                    {"batch": b.id, "kind": b.kind, "rows": len(b.sources), "sent_at": b.sent_at.isoformat()}
                    for b in lost
                ],
                "violations": wrong,
            }
            click.echo(json_line(tree))
        else:
            for line in _status(report.run, holder):
                click.echo(harmless(line))
            _show_counts(report)
            if number := report.number(State.REJECTED):
                click.echo(f"{number} refused: {_RETRY}")
            for batch in lost:
                click.echo(
                    f"? {len(batch.sources)} {batch.kind} sent {_at(batch.sent_at)}: not known yet what came of them"
                )
            for each in wrong:
                click.echo(harmless(f"✗ {each}"))
    raise click.exceptions.Exit(1 if wrong else 0)


def _status(run: Run | None, holder: str | None) -> Iterable[str]:
    if run is None:
        yield f"no move has begun{f'; {holder} works by it' if holder else ''}"
        return
    yield f"{run.source} → {run.target}"
    yield f"begun    {_at(run.started_at)}, by plan {run.plan_hash}"
    if run.ended_at is not None:
        yield f"ended    {_at(run.ended_at)}"
    elif holder is not None:
        yield f"running  {holder}"
    elif run.state == "running":
        yield "killed   no process works by it: the same command as before goes on"
    else:
        yield f"{run.state}: the same command as before goes on"


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} {moment.tzname() or ''}".strip()


def _show_counts(report: Report) -> None:
    used = [state for state in State if report.number(state)]
    if not used:
        return
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("", no_wrap=True)
    for state in used:
        table.add_column(str(state), justify="right", no_wrap=True)
    for kind, counts in report.counts.items():
        table.add_row(Text(harmless(kind)), *(str(counts[state] or "-") for state in used))
    Console(highlight=False).print(table)


@click.command("report")
@_ledger
@click.option(
    "--html",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write one page for people who have not followed it.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, and nothing else.")
@click.option("--all", "every", is_flag=True, help="With --json: list the rows that moved, too, with both ids.")
def show_report(path: Path, page: Path | None, as_json: bool, every: bool) -> None:
    """Tell what the move of LEDGER has come to: what moved, was folded, kept, left out, refused, or is in doubt.

    It holds names of people and what they said: the page is for those who may read the accounts.

    \b
    crmclient report plan.ledger --html report.html
    crmclient report plan.ledger --json --all | jq -r '.rows[] | [.kind, .source, .target] | @tsv'
    """  # noqa: D301  (\b keeps click from joining lines)
    if every and not as_json:
        raise click.UsageError("--all goes with --json")
    with Report(path) as report:
        report.begun()
        if page is not None:
            _write_page(page, report)
            say(f"written to {page}")
        if as_json:
            # Not by click.echo, which has each piece on its way before it takes the next.
            sys.stdout.writelines(report.json(every=every, dumps=json_line))
            click.echo()
        elif page is None:
            _show(report)


def _write_page(file: Path, report: Report) -> None:
    """Whole or not at all, and only over another page: the name of a plan or of the ledger is easily given by mistake."""
    try:
        if file.exists() and not _is_page(file):
            raise fail(f"{file} is there already and is no page of this: choose another name, or remove it")
        part = file.with_name(f"{file.name}.part")
        with part.open("w", encoding="utf-8") as out:
            out.writelines(report.html())
        part.replace(file)
    except OSError as wrong:
        raise fail(f"{file} cannot be written: {wrong.strerror}") from None


def _is_page(file: Path) -> bool:
    with file.open("rb") as there:
        return there.read(15).lower() in (b"<!doctype html>", b"")


def _show(report: Report) -> None:
    run = report.begun()
    click.echo(harmless(f"{run.source} → {run.target}"))
    _show_counts(report)
    _few("refused", report.number(State.REJECTED), (f"{'  ' * depth}{_row(each)}" for depth, each in report.refused()))
    if report.number(State.REJECTED):
        click.echo(f"  {_RETRY}")
    for title, state in (("in doubt", State.DOUBT), ("left out", State.SKIPPED), ("folded", State.FOLDED)):
        _few(title, report.number(state), map(_row, report.items(state)))
    click.echo(harmless(report.sentences))


def _row(item: Item) -> str:
    ids = f"{item.source}" if item.target is None else f"{item.source} → {item.target}"
    return f"{item.kind} {ids}{f'  {item.name}' if item.name else ''}: {item.error or 'no reason was given'}"


def _few(title: str, number: int, lines: Iterable[str]) -> None:
    if not number:
        return
    click.echo(f"{title}: {number}")
    for count, line in enumerate(lines):
        if count == _SHOWN:
            click.echo(f"  and {number - _SHOWN} more; --json lists all")
            break
        click.echo(harmless(f"  {line}"))


# ------------------------------------------------------------------------------------------------- a ledger made anew


@click.command("adopt")
@click.argument("source")
@click.argument("target")
@_plan
@click.option(
    "--ledger",
    "path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="NEW",
    help="The ledger to make. It must not be there yet.",
)
@click.option("--json", "as_json", is_flag=True, help="Rows by kind as one JSON object on stdout, and nothing else.")
def run_adopt(source: str, target: str, file: Path, path: Path, as_json: bool) -> None:
    """Make the lost ledger of a move anew from what is in TARGET: by the rows' marks, or else by what they say.

    Both accounts are only read. `crmclient migrate` goes on by it then, with the same plan.

    Ends with 3 if you have to log in again, 5 if trying again later may help, 7 if it does not.
    """
    # Half of it would be worse than none: what it lacks would be made again.
    part = path.with_name(f"{path.name}.part")
    try:
        if path.exists():
            raise Misconfigured(f"{path} is there already: go on by it, or choose another name")
        plan = read_plan(file)
        reading, looked_at = both(source, target)
        with _new_ledger(part) as ledger, counting(as_json) as told:
            adopted = asyncio.run(_adopted(reading, looked_at, plan, ledger, told))
        part.replace(path)
        part.with_name(f"{part.name}.lock").unlink(missing_ok=True)
    except CRMError as error:
        say(f"error: {error}")
        raise click.exceptions.Exit(_code(error)) from None
    if as_json:
        click.echo(json_line(adopted))
        return
    for kind, number in adopted.items():
        click.echo(harmless(f"{number:>9} {kind}"))
    again = shlex.join(["crmclient", "migrate", source, target, "--plan", str(file), "--ledger", str(path)])
    say(f"written to {path}. To go on: {again}")


@contextmanager
def _new_ledger(path: Path) -> Generator[Ledger]:
    """An empty one, also where an earlier attempt has left its part of one."""
    with Ledger(path) as left:
        empty = left.run() is None and not left.counts()
        if empty:
            yield left
            return
    path.unlink()
    with Ledger(path) as ledger:
        yield ledger


async def _adopted(source: Client, target: Client, plan: Plan, ledger: Ledger, told: Told) -> dict[str, int]:
    if plan.quarantine:
        until = SYSTEM_CLOCK.now() + timedelta(seconds=plan.quarantine)
        say(f"what the lost move has sent may still land: {_looking(until, plan.quarantine)}")
    async with source, target:
        return await adopt(source, target, plan, ledger, told=told)
