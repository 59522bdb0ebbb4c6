"""Whether what was moved is there: both accounts are read whole, and nothing is written anywhere."""

import asyncio
import os
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from crmclient.cli.plan import both, counting
from crmclient.cli.terminal import DIFFERENT, FATAL, TOO_LATE, OfAMove, harmless, json_line, say
from crmclient.client import Client
from crmclient.errors import DeadlineExceeded, Misconfigured
from crmclient.migration.plan import Plan, Told, from_toml
from crmclient.migration.verify import Finding, Sign, Verdict, check
from crmclient.serial import to_tree

_NAME: Final = 40


@click.command("check", cls=OfAMove)
@click.argument("source")
@click.argument("target")
@click.option(
    "--plan",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Compare by this plan; without it, users, stages and fields are matched as a new one would.",
)
@click.option("--show", type=click.Choice(("differs", "all")), help="Name the rows that differ, or every row.")
@click.option("--within", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Stop after so long.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines: a row each with --show, and the verdict last.")
def run_check(
    source: str, target: str, file: Path | None, show: str | None, within: float | None, as_json: bool
) -> None:
    """Compare two accounts field by field, through what TARGET cannot carry of SOURCE. Both are profiles.

    \b
    = the same    * differs    + missing in TARGET    - only in TARGET    ! cannot be read

    Ends with 0 only if everything that TARGET has a place for is there as it should be and nothing else is; with 1 if
    not, 3 if you have to log in again, 5 if trying again later may help, 7 if it does not, 10 if --within has passed.

    \b
    crmclient check old new --plan plan.toml --show differs
    """  # noqa: D301  (\b keeps click from joining lines)

    def each(finding: Finding) -> None:
        if show == "all" or (show is not None and finding.sign is not Sign.SAME):
            click.echo(json_line(_tree(finding)) if as_json else in_words(finding))

    try:
        plan = None if file is None else read_plan(file)
        reading, compared = both(source, target)
        for said in plan.outdated(reading, compared) if plan is not None else ():
            say(f"warning: {said}")
        with counting(as_json) as told:
            verdict = asyncio.run(_checked(reading, compared, plan, each, told, within))
    except DeadlineExceeded:
        if within is None:
            raise
        say(f"error: both accounts could not be read in {within:g} s")
        raise click.exceptions.Exit(TOO_LATE) from None
    except BrokenPipeError:
        # Whoever read has gone, and nobody knows whether all is equal.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(FATAL) from None
    if as_json:
        click.echo(json_line(verdict.as_tree()))
    else:
        _show(verdict)
    raise click.exceptions.Exit(0 if verdict.equal else DIFFERENT)


async def _checked(
    source: Client, target: Client, plan: Plan | None, each: Callable[[Finding], None], told: Told, within: float | None
) -> Verdict:
    async with source, target:
        with ExitStack() as bounds:
            if within is not None:
                bounds.enter_context(source.within(within))
            return await check(source, target, plan, each=each, told=told)


def read_plan(file: Path) -> Plan:
    """The plan of a file. Raises Misconfigured."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as wrong:
        said = getattr(wrong, "strerror", None) or "it is no UTF-8"
        raise Misconfigured(f"{file} cannot be read: {said}") from None
    if not re.search(r"^\s*version\s*=", text, re.MULTILINE):
        raise Misconfigured(f"{file} is no plan: make one with `crmclient plan … --out`")
    return from_toml(text, str(file))


def _tree(finding: Finding) -> dict[str, Any]:
    return {name: part for name, part in to_tree(finding).items() if name not in ("marked", "there")}


def in_words(finding: Finding) -> str:
    """A row on a line: its sign, its ids, what it is called, and what differs."""
    ids = " → ".join("?" if id is None else str(id) for id in (finding.source, finding.target))
    if finding.sign in (Sign.MISSING, Sign.EXTRA, Sign.UNREADABLE):
        ids = str(next((id for id in (finding.source, finding.target) if id is not None), "?"))
    name = finding.name or ""
    called = f"  {name[:_NAME]}{'…' if len(name) > _NAME else ''}" if name else ""
    told = f"  {', '.join(finding.fields)}" if finding.fields else f"  {finding.said}" if finding.said else ""
    return harmless(f"{finding.sign} {finding.kind} {ids}{called}{told}")


def _show(verdict: Verdict) -> None:
    console = Console(highlight=False)
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("", no_wrap=True)
    words = ("same", "differ", "missing", "extra", "unreadable")
    for sign, word in zip(Sign, words, strict=True):
        table.add_column(f"{sign} {word}", justify="right", no_wrap=True)
    for kind, counts in verdict.kinds.items():
        table.add_row(kind, *(str(counts.get(sign, 0)) for sign in Sign))
    console.print(table)
    for title, counts in (
        ("no place", verdict.no_place),
        ("dropped", verdict.dropped),
        ("folded", verdict.folded),
        ("in fields", verdict.in_fields),
        ("archived", verdict.archived),
        ("dated anew", verdict.restamped),
    ):
        if counts:
            told = ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
            console.print(harmless(f"{title:<11} {told}"), markup=False, soft_wrap=True)
    console.print(harmless(verdict.sentence), markup=False, soft_wrap=True)
