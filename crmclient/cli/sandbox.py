"""A vendor's API on this machine, for trying things: it says where it is, how to come in and what to paste."""

import asyncio
import signal
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from crmclient.cli.terminal import fail, say
from crmclient.clock import SystemClock
from crmclient.sandbox.faults import Fault
from crmclient.sandbox.server import Face, NoSuchFace, PortInUse, Running, Setting, face, serve
from crmclient.sandbox.world import World, populate

_WORDS: Final = {
    "true": True,
    "on": True,
    "yes": True,
    "1": True,
    "false": False,
    "off": False,
    "no": False,
    "0": False,
}


@click.command("sandbox")
@click.argument("name")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="0 takes any free one.", show_default=True)
@click.option("--rows", type=click.IntRange(0), help="Contacts; firms, deals, tasks and notes follow.  [default: 100]")
@click.option("--seed", default=1, help="The same seed makes the same rows.", show_default=True)
@click.option("--db", type=click.Path(dir_okay=False, path_type=Path), help="Keep the account in a file; reuse it.")
@click.option(
    "--switch", "switches", multiple=True, metavar="NAME=VALUE", help="Decide what the reference leaves open."
)
@click.option("--accept-seed-forms", is_flag=True, help="Take the forms of the vendor's short page too.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="'ACTION[=N] [METHOD PATH][#NTH]'",
    help="Make something go wrong: 'drop-after POST *#3', 'status=502 GET *', 'throttle=2#10', 'html#1', 'html-after=502',"
    " 'late POST *#3' (the vendor acts 3 requests later; 'late=5': 5; 'late=20s': after 20 seconds) … Each goes wrong"
    " once: the NTH request like that, and without #NTH the first.",
)
@click.option("--no-limits", is_flag=True, help="Answer as fast as asked.")
@click.option("--list-switches", is_flag=True, help="Show the switches and end.")
def run_sandbox(
    name: str,
    port: int,
    rows: int | None,
    seed: int,
    db: Path | None,
    switches: tuple[str, ...],
    accept_seed_forms: bool,
    faults: tuple[str, ...],
    no_limits: bool,
    list_switches: bool,
) -> None:
    """Serve a sandbox on 127.0.0.1 until Ctrl-C, with an account full of rows in it.

    \b
    crmclient sandbox kommo --rows 10000
    crmclient sandbox electrum --db electrum.db --port 8080
    """  # noqa: D301  (\b keeps click from joining lines)
    try:
        chosen = face(name)
        decided = _decided(chosen, (*switches, *(("accept-seed-forms=true",) if accept_seed_forms else ())))
        script = [Fault.parse(each) for each in faults]
    except (NoSuchFace, ValueError) as wrong:
        raise fail(str(wrong)) from None
    if list_switches:
        _show_switches(chosen)
        return
    with opened_world(db, rows, seed) as world:
        try:
            asyncio.run(_served(chosen, world, port, decided, script, limits=not no_limits))
        except PortInUse as taken:
            raise fail(str(taken.strerror)) from None
        except OSError as wrong:
            raise fail(f"port {port} cannot be listened on: {wrong.strerror}") from None


async def _served(
    chosen: Face, world: World, port: int, switches: dict[str, Setting], faults: list[Fault], *, limits: bool
) -> None:
    async with serve(chosen, world, port=port, switches=switches, limits=limits, faults=faults) as running:
        click.echo(_welcome(running))
        leaving = asyncio.Event()
        # kill ends it as properly as Ctrl-C does.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leaving.set)
        await leaving.wait()


def _welcome(running: Running) -> str:
    counts = ", ".join(f"{running.world.count(kind)} {kind}s" for kind in ("contact", "deal", "task", "note"))
    cards = "\n".join(f"{name}: {each}" for name, each in running.credentials.items())
    return (
        f"{running.face.title} ({counts})\nbase address: {running.base_url}\n{cards}\n"
        f"Ctrl-C ends it. Paste this into a file and run it:\n\n{running.script.strip()}\n"
    )


@contextmanager
def opened_world(db: Path | None, rows: int | None, seed: int) -> Generator[World]:
    """An account: a fresh one is filled; one that is there already is taken as it is."""
    there = db is not None and db.exists() and db.stat().st_size > 0
    if there and db is not None:
        _is_a_world(db)
        if rows is not None:
            say(f"{db} holds an account already: it is taken as it is, and --rows is not used")
    try:
        world = World(str(db) if db else ":memory:", clock=SystemClock())
    except sqlite3.Error as wrong:
        raise fail(f"{db} cannot be opened: {wrong}") from None
    with world:
        if not there:
            try:
                number = 100 if rows is None else rows
                firms = -(-number * 2 // 15)
                deals, half = number * 2 // 3, number // 2
                populate(world, contacts=number, companies=firms, deals=deals, tasks=half, notes=half, seed=seed)
            except BaseException:
                world.close()
                for left in (db, *(Path(f"{db}{suffix}") for suffix in ("-wal", "-shm"))):
                    if left is not None and db is not None:
                        left.unlink(missing_ok=True)
                raise
        yield world


def _is_a_world(db: Path) -> None:
    try:
        with closing(sqlite3.connect(f"{db.absolute().as_uri()}?mode=ro", uri=True)) as file:
            names = {name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as wrong:
        raise fail(f"{db} is no sandbox's database: {wrong}") from None
    if names and not {"counter", "contact", "account"} <= names:
        raise fail(f"{db} is a database, but not a sandbox's; choose another file")


def _decided(chosen: Face, given: tuple[str, ...]) -> dict[str, Setting]:
    decided: dict[str, Setting] = {}
    for each in given:
        name, equals, value = each.partition("=")
        switch = chosen.switches.get(name)
        if switch is None:
            raise ValueError(f"{chosen.name} has no switch {name!r}; there are {', '.join(chosen.switches) or 'none'}")
        setting: Any = value if equals else "true"
        if isinstance(switch.default, bool):
            setting = _WORDS.get(setting.lower(), setting)
        if setting not in switch.choices or isinstance(setting, bool) != isinstance(switch.default, bool):
            raise ValueError(f"switch {name} of {chosen.name} is one of {_choices(switch.choices)}, not {value!r}")
        decided[name] = setting
    return decided


def _choices(choices: tuple[Setting, ...]) -> str:
    return ", ".join(_word(each) for each in choices)


def _word(setting: Setting) -> str:
    return str(setting).lower() if isinstance(setting, bool) else setting


def _show_switches(chosen: Face) -> None:
    table = Table(title=f"Switches of {chosen.title}", title_justify="left")
    for heading in ("switch", "default", "choices", "why"):
        table.add_column(heading, no_wrap=heading == "switch", overflow="fold")
    for name, switch in chosen.switches.items():
        table.add_row(name, _word(switch.default), _choices(switch.choices), switch.why)
    Console(highlight=False, markup=False).print(table)
