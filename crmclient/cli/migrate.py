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

from crmclient.cli.check import read_plan
from crmclient.cli.plan import both, counting, lasting, write_new
from crmclient.cli.terminal import (
    DIFFERENT,
    FATAL,
    INTERRUPTED,
    OfAMove,
    code_of,
    counted,
    fail,
    harmless,
    json_line,
    nowhere_to_write,
    say,
)
from crmclient.client import Client
from crmclient.clock import SYSTEM_CLOCK, Clock
from crmclient.dialect import Dialect, Rate
from crmclient.errors import AuthFailed, CRMError, Misconfigured
from crmclient.migration.adoption import adopt
from crmclient.migration.costs import minutes
from crmclient.migration.engine import Migration
from crmclient.migration.ledger import Item, Ledger, LedgerFailed, State
from crmclient.migration.move import Event
from crmclient.migration.plan import Plan, Told
from crmclient.migration.report import SAID, Report, because, counts_tree, on_the_second
from crmclient.migration.verify import Verdict
from crmclient.profiles import find, variable

# What is said of refused rows.
_RETRY: Final = "once that is put right, `crmclient migrate … --retry` tries them once more"
# More of one kind of lines than this is for --json or the page.
_SHOWN: Final = 12
# Seconds between two lines that say how far it is, where no terminal shows it.
_EVERY: Final = 10
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
        with work.opened() as ledger:
            asyncio.run(_moved(work, reading, writing, plan, ledger, yes=yes, lanes=lanes, retry=retry))
    except click.Abort:
        raise click.exceptions.Exit(INTERRUPTED) from None
    except CRMError as error:
        work.failed(error)
    except sqlite3.DatabaseError as wrong:
        work.failed(LedgerFailed(f"the ledger {work.ledger} cannot be read: {wrong}"))
    raise click.exceptions.Exit(work.close())


async def _moved(
    work: "_Work", source: Client, target: Client, plan: Plan, ledger: Ledger, *, yes: bool, lanes: int, retry: bool
) -> None:
    async with source, target:
        migration = Migration(source, target, plan, ledger, lanes=lanes)
        work.migration = migration
        # Nobody is asked, or told what will be written, where it is refused.
        await (migration.prepare() if yes else migration.allowed())
        work.agree(plan, target, yes, ledger.counts())
        with _Bars(plan, source.dialect, target.dialect, silent=work.as_json) as bars, work.interruptible(bars):
            if retry:
                await migration.prepare()  # that this ledger is of this plan
                number = ledger.retry()
                one = number == 1
                tried = f"{counted(number, 'rows')} {'was' if one else 'were'} refused, or hung on such: "
                tried += f"{'it is' if one else 'they are'} tried once more"
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
    def opened(self) -> Generator[Ledger]:
        """The ledger; one that is new stays only if something has begun by it."""
        fresh, begun = not self.ledger.exists(), True
        try:
            with Ledger(self.ledger) as ledger:
                try:
                    yield ledger
                finally:
                    begun = ledger.run() is not None
        finally:
            if fresh and not begun:
                _remove(self.ledger)

    def agree(self, plan: Plan, target: Client, yes: bool, counts: Mapping[str, Mapping[State, int]]) -> None:
        """Say what will be done, and have a person agree to it."""
        what = self._told_beforehand(plan, target, counts)
        if yes:
            say(what)
        elif not sys.stdin.isatty():
            raise Misconfigured(f"{what}; there is nobody to ask whether that is meant: give --yes")
        elif not _confirmed(f"{what[0].upper()}{what[1:]}. Go on?"):
            say("nothing was written")
            raise click.exceptions.Exit(INTERRUPTED)

    def _told_beforehand(self, plan: Plan, target: Client, counts: Mapping[str, Mapping[State, int]]) -> str:
        number = sum(plan.moves.values())
        there = sum(each.get(state, 0) for each in counts.values() for state in _OVER)
        into = f"into {target.dialect.title} at {target.base_url} ({plan.target.name or plan.target.account})"
        if there and there >= number:
            dealt = f"all {counted(there, 'rows')} are dealt with by {self.ledger}"
            return f"{dealt}; only what is new or was changed since will be written {into}"
        rows = ", ".join(counted(each, kind) for kind, each in plan.moves.items() if each) or "none"
        lasts = lasting(max(plan.source_cost.minutes, plan.target_cost.minutes))
        begun = f"; {there} of them are dealt with by {self.ledger} already" if there else ""
        return f"this will write {counted(number, 'rows')} ({rows}) {into}; at best that takes {lasts}{begun}"

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
        if self._goes_on:
            say(f"nothing that was done is lost. To go on: {self.again}")

    @property
    def _goes_on(self) -> bool:
        """Whether the same command does: what is wrong with it is put right first, where nothing has begun."""
        return self.error is None or self.last is not None or code_of(self.error) != FATAL

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
            code_of(self.error)
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
            (refused, ("was refused", "were refused"), f"; {_RETRY}"),
            (doubt, ("is in doubt", "are in doubt"), ""),
            (remarks, [f"moved, and there is something to say of {each}" for each in ("it", "them")], ""),
        )
        for number, what, then in troubles:
            if number:
                told = f"{counted(number, 'rows')} {what[number != 1]}"
                say(f"{told}: crmclient report {shlex.quote(str(self.ledger))}{then}")
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
            "again": self.again if verdict is None and self._goes_on else None,
        }


def _confirmed(question: str) -> bool:
    """Raises Abort for Ctrl-C, which an event loop would keep to itself."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return click.confirm(harmless(question), err=True)
    finally:
        signal.signal(signal.SIGINT, before)


def _remove(ledger: Path) -> None:
    """All that there is of it."""
    for end in ("", "-wal", "-shm", ".lock"):
        ledger.with_name(f"{ledger.name}{end}").unlink(missing_ok=True)


def _login(name: str) -> str:
    """How to come in again; a secret of the environment is taken before what the command keeps."""
    profile = find(name)
    kinds = ("HASH", "PASSWORD") if profile.logs_in else ("TOKEN",)
    given = [each for kind in kinds for each in (variable(name, kind), f"CRMCLIENT_{kind}") if os.environ.get(each)]
    if profile.logs_in:
        return f"see that {' or '.join(given) or variable(name, 'HASH')} is that of {profile.login} in {name}"
    return f"`crmclient login {name}`" + (f", once {given[0]} holds a new token or none" if given else "")


# ------------------------------------------------------------------------------------------------- while it goes on


class _Bars:
    """How far it is, where there is a terminal to show it on: a bar for each kind, both limits, when it may end, and what
    it waits for; elsewhere a line now and then, and what it waits for once.
    """

    def __init__(
        self, plan: Plan, source: Dialect, target: Dialect, *, silent: bool, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        console = Console(stderr=True, highlight=False)
        self.shown = console.is_terminal and not silent
        self._plan, self._rates = plan, (source.rate, target.rate)
        self._progress = Progress(
            TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), console=console
        )
        self._line, self._clock = Text(), clock
        self._last: Event | None = None
        self._told_until: datetime | None = None
        # Asked for again each time: the seconds go by while nothing else happens.
        self._live = Live(get_renderable=self.display, console=console, transient=True, auto_refresh=self.shown)
        self._tasks: dict[str, TaskID] = {}
        self._began = self._told_at = clock.monotonic()

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
            self._tell_now_and_then(event)
            return
        for kind, number in self._totals(event).items():
            if kind not in self._tasks:
                self._tasks[kind] = self._progress.add_task(kind, total=number)
            done = _done(event, kind)
            self._progress.update(self._tasks[kind], completed=done, total=max(number, done))
        self._line.plain = harmless(self.line(event, self._clock.monotonic() - self._began))

    def _tell_now_and_then(self, event: Event) -> None:
        now, totals = self._clock.monotonic(), self._totals(event)
        if event.phase == "ended" or now - self._told_at < _EVERY:
            return
        self._told_at = now
        done = sum(_done(event, kind) for kind in totals)
        say(f"{done} of {counted(sum(totals.values()), 'rows')} · {self.line(event, now - self._began)}")

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
        for side, spent, rates in zip(("source", "target"), event.requests, self._rates, strict=True):
            used = f", {_share(spent, elapsed, rates):.0%} of its limit" if rates else ""
            told.append(f"{side} {counted(spent, 'requests')}{used}")
        if event.phase == "moving" and (left := self.minutes_left(event, elapsed)) is not None:
            told.append(f"{lasting(left)} left")
        return " · ".join(told)

    def minutes_left(self, event: Event, elapsed: float) -> float | None:
        """What the plan counts on the target for the rows that are not there yet, at the pace it has gone so far."""
        cost, moves = self._plan.target_cost.requests, self._plan.moves
        left = float(cost.get("read back", 0))
        for kind, number in moves.items():
            done = _done(event, kind)
            left += cost.get(f"write {kind}", 0) * max(0.0, 1 - done / number) if number else 0.0
        spent, fewest = event.requests[1], minutes(1, self._rates[1])
        # A burst is no pace that lasts: never less than the limit takes.
        each = max(elapsed / spent / 60, fewest) if spent >= 10 and elapsed > 1 else fewest
        return left * each if each else None


def _looking(at: datetime, seconds: float) -> str:
    return f"waiting {seconds:.0f} s, then looking again ({at.astimezone():%H:%M:%S})"


def _done(event: Event, kind: str) -> int:
    return sum(event.counts.get(kind, {}).get(state, 0) for state in _OVER)


def _share(spent: int, elapsed: float, rates: Iterable[Rate]) -> float:
    """Of what the narrowest limit lets through in the windows that have begun by now."""
    return min(1.0, spent / min(each.limit * (elapsed // each.seconds + 1) for each in rates))


_PHASES: Final = {"words": "words and fields", "moving": "moving", "verifying": "reading both sides to compare"}


# ---------------------------------------------------------------------------------------------------------- afterwards


_ledger = click.argument("path", metavar="LEDGER", type=click.Path(dir_okay=False, path_type=Path))


@click.command("status", cls=OfAMove)
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
            for line in _status(report):
                click.echo(harmless(line))
            _show_counts(report)
            if number := report.number(State.REJECTED):
                click.echo(f"{number} refused: {_RETRY}")
            for batch in lost:
                sent = f"{len(batch.sources)} {batch.kind} sent {on_the_second(batch.sent_at)}"
                click.echo(f"? {sent}: not known yet what came of them")
            for each in wrong:
                click.echo(harmless(f"✗ {each}"))
    raise click.exceptions.Exit(1 if wrong else 0)


def _status(report: Report) -> Iterable[str]:
    run = report.run
    if run is None:
        holder = report.holder()
        yield f"no move has begun{f'; {holder} works by it' if holder else ''}"
        return
    yield f"{run.source} → {run.target}"
    yield f"begun    {on_the_second(run.started_at)}, by plan {run.plan_hash}"
    word, said, why = report.standing
    yield f"{word:<8} {said}"
    if why:
        yield f"because  {why}"


def _show_counts(report: Report) -> None:
    used = [state for state in State if report.number(state)]
    if not used:
        return
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("", no_wrap=True)
    for state in used:
        table.add_column(SAID[state], justify="right", no_wrap=True)
    for kind, counts in report.counts.items():
        table.add_row(Text(harmless(kind)), *(str(counts[state] or "-") for state in used))
    Console(highlight=False).print(table)


@click.command("report", cls=OfAMove)
@_ledger
@click.option(
    "--html",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write one page for people who have not followed it.",
)
@click.option(
    "--plan",
    "out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="OUT",
    help="Write the plan that the move goes by, for where its file was edited since or is lost.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, and nothing else.")
@click.option("--all", "every", is_flag=True, help="With --json: list the rows that moved, too, with both ids.")
def show_report(path: Path, page: Path | None, out: Path | None, as_json: bool, every: bool) -> None:
    """Tell what the move of LEDGER has come to: what moved, was folded, kept, left out, refused, or is in doubt.

    It holds names of people and what they said: the page is for those who may read the accounts.

    \b
    crmclient report plan.ledger --html report.html
    crmclient report plan.ledger --json --all | jq -r '.rows[] | [.kind, .source, .target] | @tsv'
    """  # noqa: D301  (\b keeps click from joining lines)
    if every and not as_json:
        raise click.UsageError("--all goes with --json")
    with Report(path) as report:
        run = report.begun()
        if page is not None:
            _write_page(page, report)
            say(f"written to {page}")
        if out is not None:
            write_new(out, run.plan)
            given = shlex.join(["--plan", str(out), "--ledger", str(path)])
            say(f"written to {out}. To go on by it: crmclient migrate SOURCE TARGET {given}")
        if as_json:
            # Not by click.echo, which has each piece on its way before it takes the next.
            sys.stdout.writelines(report.json(every=every, dumps=json_line))
            click.echo()
        elif page is None and out is None:
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
    return f"{item.kind} {ids}{f'  {item.name}' if item.name else ''}: {because(item) or 'no reason was given'}"


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


@click.command("adopt", cls=OfAMove)
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
    if path.exists():
        raise Misconfigured(f"{path} is there already: go on by it, or choose another name")
    plan = read_plan(file)
    reading, looked_at = both(source, target)
    with _new_ledger(path) as ledger, counting(as_json) as told:
        adopted = asyncio.run(_adopted(reading, looked_at, plan, ledger, told))
    if as_json:
        click.echo(json_line(adopted))
        return
    for kind, number in adopted.items():
        click.echo(harmless(f"{number:>9} {kind}"))
    again = shlex.join(["crmclient", "migrate", source, target, "--plan", str(file), "--ledger", str(path)])
    say(f"written to {path}. To go on: {again}")


@contextmanager
def _new_ledger(path: Path) -> Generator[Ledger]:
    """Whole or none: what half of one lacks would be made again."""
    part = path.with_name(f"{path.name}.part")
    Ledger(part).close()  # raises where another process is at it, or where it is something else
    try:
        _remove(part)  # what one that was killed has left
        with Ledger(part) as ledger:
            yield ledger
        part.replace(path)
    finally:
        _remove(part)


async def _adopted(source: Client, target: Client, plan: Plan, ledger: Ledger, told: Told) -> dict[str, int]:
    def waits(seconds: float) -> None:
        until = SYSTEM_CLOCK.now() + timedelta(seconds=seconds)
        say(f"what the lost move has sent may still land: {_looking(until, seconds)}")

    async with source, target:
        return await adopt(source, target, plan, ledger, told=told, waits=waits)
