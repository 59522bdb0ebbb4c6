"""What a move would do, before anybody does it: both accounts are only read, and the plan is the one thing written."""

import asyncio
import csv
import os
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from crmclient.cli.read import as_id
from crmclient.cli.terminal import OfAMove, ask, counted, harmless, json_line, say
from crmclient.client import Client
from crmclient.entities import Id
from crmclient.errors import Misconfigured
from crmclient.migration.losses import CHOICES
from crmclient.migration.matching import KINDS
from crmclient.migration.plan import (
    ALLOWABLE,
    MARKERS,
    Cost,
    Plan,
    Side,
    StageMatch,
    Told,
    TypeMatch,
    UserMatch,
    plan,
    to_toml,
)
from crmclient.profiles import connected, credentials, find, stored_token
from crmclient.serial import to_tree

# More of one kind of lines than this is for the file, or for --json.
_SHOWN: Final = 12
_THERE: Final = "is there already, and may have been edited: choose another name, or remove it"


@click.command("plan", cls=OfAMove)
@click.argument("source")
@click.argument("target")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the plan there, to edit and keep.")
@click.option(
    "--users",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    metavar="CSV",
    help="Who is who: lines of source,target, each an id, an e-mail or a name.",
)
@click.option(
    "--unmatched",
    type=as_id,
    default="me",
    show_default=True,
    metavar="WHO",
    help="Whose the rows of users without a like are: me (the owner of the credentials), a user's id, or refuse.",
)
@click.option(
    "--marker",
    type=click.Choice(MARKERS),
    help="How rows say where they came from: in a custom field, by a tag, or not at all. Else the best TARGET can do.",
)
@click.option(
    "--allow", type=click.Choice(ALLOWABLE), multiple=True, help="Move all the same where this would stop it."
)
@click.option(
    "--quarantine",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long a create whose answer was lost may still land. Else what is known of TARGET.",
)
@click.option(
    "--choose",
    multiple=True,
    metavar="WHAT=CHOICE",
    help="What is done with what is lost: deal.price=fold, 'contact.*=archive'; field, fold, archive or drop.",
)
@click.option("--json", "as_json", is_flag=True, help="The plan as one JSON object on stdout, and nothing else.")
def run_plan(
    source: str,
    target: str,
    out: Path | None,
    users: Path | None,
    unmatched: Id,
    marker: str | None,
    allow: tuple[str, ...],
    quarantine: float | None,
    choose: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what moving SOURCE into TARGET would do: rows, users, stages, fields, what is lost, how long it takes.

    Both are profiles of crmclient.toml. SOURCE is read whole, TARGET is looked at; nothing is written to either. Edit
    the file that --out writes and give it to `crmclient check`.

    Ends with 1 where there are users without a like and --unmatched is refuse, 3 if you have to log in again, 5 if trying
    again later may help, 7 if it does not.

    \b
    crmclient plan old new --out plan.toml
    crmclient plan old new --json | jq .losses
    """  # noqa: D301  (\b keeps click from joining lines)
    if out is not None:
        _writable(out)
    people = {} if users is None else _people(users)
    reading, looked_at = both(source, target)
    ways: dict[str, Any] = {"unmatched": unmatched, "marker": marker, "allow": allow, "quarantine": quarantine}
    ways["choose"] = dict(_choice(each) for each in choose)
    with counting(as_json) as told:
        made = asyncio.run(_planned(reading, looked_at, told, people=people, **ways))
    if out is not None:
        write_new(out, to_toml(made))
    if as_json:
        derived = {"digest": made.digest, "refused": made.refused, "hindrances": made.hindrances()}
        click.echo(json_line({**to_tree(made), **derived}))
    else:
        _show(made)
        say(f"written to {out}" if out is not None else "nothing is kept of this; --out plan.toml writes it down")
    if made.refused:
        raise click.exceptions.Exit(1)


async def _planned(source: Client, target: Client, told: Told, **ways: Any) -> Plan:
    async with source, target:
        return await plan(source, target, told=told, **ways)


def _people(file: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            for line in (rows := csv.reader(lines)):
                if not any(line) or line[0].lstrip().startswith("#"):
                    continue
                if len(line) != 2 or not all(part.strip() for part in line) or line[0].strip() in found:
                    raise Misconfigured(
                        f"{file}, line {rows.line_num}: each line is source,target, and each source is there once"
                    )
                found[line[0].strip()] = line[1].strip()
    except (OSError, UnicodeDecodeError, csv.Error) as wrong:
        raise Misconfigured(f"{file} cannot be read: {getattr(wrong, 'strerror', None) or wrong}") from None
    return found


def _choice(said: str) -> tuple[str, str]:
    what, _, to = said.rpartition("=")
    if not what or to not in CHOICES:
        raise Misconfigured(f"--choose is WHAT=CHOICE, and a choice is {', '.join(CHOICES)}: not {said}")
    return what, to


def _writable(out: Path) -> None:
    """Asked before anything is read, which takes long."""
    folder = out.absolute().parent
    if out.exists():
        raise Misconfigured(f"{out} {_THERE}")
    if not os.access(folder, os.W_OK | os.X_OK):
        why = "its folder may not be written to" if folder.is_dir() else f"there is no folder {folder}"
        raise Misconfigured(f"{out} cannot be written: {why}")


def write_new(out: Path, plan: str) -> None:
    """A plan's text, and never over another, which may have been edited."""
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(plan)
    except FileExistsError:
        raise Misconfigured(f"{out} {_THERE}") from None
    except OSError as wrong:
        raise Misconfigured(f"{out} cannot be written: {wrong.strerror}") from None


# ---------------------------------------------------------------------------------------------- shared with `check`


def both(source: str, target: str, *, writing: bool = False) -> tuple[Client, Client]:
    """Clients of two profiles that cannot write, save ``writing`` to the target. Raises Misconfigured for one account."""
    profiles = [find(where) for where in (source, target)]
    if profiles[0].address.lower() == profiles[1].address.lower():  # whatever the dialect, and whoever logs in
        raise Misconfigured(f"{source} and {target} are the same account: {profiles[0].address}")
    # Before any event loop runs: a prompt inside one would swallow Ctrl-C.
    given = [credentials(each, asyncio.run(stored_token(each)), ask=ask()) for each in profiles]
    reading, there = (
        connected(profile, each, read_only=profile is profiles[0] or not writing)
        for profile, each in zip(profiles, given, strict=True)
    )
    return reading, there


@contextmanager
def counting(silent: bool) -> Generator[Told]:
    """How far the reading is, on stderr where a person looks."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=silent or not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}
        read: dict[str, dict[str, int]] = {}

        def told(side: str, kind: str, rows: int) -> None:
            read.setdefault(side, {})[kind] = rows
            said = f"reading the {side}: {', '.join(f'{number} {name}' for name, number in read[side].items())}"
            if side not in tasks:
                tasks[side] = bars.add_task(said, total=None)
            bars.update(tasks[side], description=said)

        yield told


# ------------------------------------------------------------------------------------------------------- for people


def _show(made: Plan) -> None:
    console = Console(highlight=False)
    console.print(Text(harmless(f"{_named(made.source)} → {_named(made.target)}"), style="bold"), soft_wrap=True)
    console.print(_rows(made))
    for title, lines in _matches(made):
        console.print(Text(harmless(f"{title:<11} {lines}")), soft_wrap=True)
    if made.losses:
        console.print(_losses(made))
    else:
        console.print("\nnothing is lost")
    for each in made.inventions:
        console.print(Text(harmless(f"made up     {each.what} of {each.rows}: {each.how}")), soft_wrap=True)
    for side, cost in (("source", made.source_cost), ("target", made.target_cost)):
        console.print(Text(f"{side:<11} {_cost(cost)}"), soft_wrap=True)
    stopping = made.hindrances()
    for warning in made.warnings:
        if not any(each.startswith(warning) for each in stopping):
            console.print(Text(harmless(f"! {warning}")), soft_wrap=True)
    for each in stopping:
        console.print(Text(harmless(f"✗ {each}")), soft_wrap=True)


def _named(side: Side) -> str:
    place = side.address.partition("://")[2]
    return f"{side.dialect} {place}" + (f" ({side.name})" if side.name else "")


def _rows(made: Plan) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("in the source", "unreadable", "to be made", "there already"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind in KINDS:
        counts = made.source.rows, made.source.unreadable, made.moves, made.target.rows
        if any(kind in each for each in counts):
            there = f"{made.target.rows.get(kind, '-')}{'+' if kind in made.target.at_least else ''}"
            read = str(made.source.rows.get(kind, "-"))
            table.add_row(kind, read, str(counts[1].get(kind, 0) or "-"), str(made.moves.get(kind, 0)), there)
    return table


def _matches(made: Plan) -> Iterable[tuple[str, str]]:
    for title, matches in (("users", made.users), ("stages", made.stages), ("task types", made.task_types)):
        used = [each for each in matches if each.rows]
        if not used:
            continue
        found = Counter(each.how for each in used if each.how)
        said = [f"{number} by {how}" for how, number in found.items()]
        lost = [f"{each.name or _plain(each)} ({counted(each.rows, 'rows')})" for each in used if not each.how]
        yield title, "; ".join([*said, *([f"no like: {_few(lost)}"] if lost else [])])
    used = [each for each in made.fields if each.rows]
    if used:
        found = Counter(each.how for each in used if each.found)
        said = [f"{number} by {how}" for how, number in found.items()]
        lost = len(used) - found.total()
        yield "fields", "; ".join([*said, *([f"{lost} without a like"] if lost else [])])
    if made.tags:
        yield "tags", f"{made.tags.get('different', 0)} different ones, by their names"


def _plain(match: UserMatch | StageMatch | TypeMatch) -> str:
    """A stage without a pipeline, which some vendors have, is known by itself."""
    parts = match.key if isinstance(match, StageMatch) else (match.key,)
    return " / ".join(str(each) for each in parts if each is not None)


def _few(said: list[str]) -> str:
    return ", ".join(said[:_SHOWN]) + (f" and {len(said) - _SHOWN} more" if len(said) > _SHOWN else "")


def _losses(made: Plan) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("lost", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("choice", no_wrap=True)
    table.add_column("because")
    for loss in made.losses:
        table.add_row(*(Text(harmless(part)) for part in (loss.what, str(loss.rows), loss.choice, loss.why or "")))
    return table


def _cost(cost: Cost) -> str:
    requests = ", ".join(f"{name} {number}" for name, number in cost.requests.items())
    sizes = ", ".join(counted(number, kind) for kind, number in cost.batches.items())
    most = f"; a request makes at most {sizes}" if sizes else ""
    total = sum(cost.requests.values())
    return f"{total} requests ({requests}), at {cost.rate}: {lasting(cost.minutes)}{most}"


def lasting(minutes: float) -> str:
    if minutes < 1:
        return "less than a minute"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
