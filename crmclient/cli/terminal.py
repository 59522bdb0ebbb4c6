"""What comes from outside is shown, never obeyed: no row, reply or error steers the terminal or ends in a traceback."""

import getpass
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final, TypeVar

import click

from crmclient.errors import (
    AmbiguousWrite,
    AuthFailed,
    CRMError,
    DeadlineExceeded,
    RateLimited,
    TransportError,
    Unavailable,
)

F = TypeVar("F", bound=Callable[..., Any])

# C0, DEL, C1, what turns the direction of text, what ends a line, and half of a pair: none of them may be obeyed.
_STEERING: Final = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff\\ud800-\\udfff]"
)


def harmless(text: str, *, lines: bool = False) -> str:
    """A text with its control characters made visible. ``lines`` keeps line ends."""
    return _STEERING.sub(lambda found: found[0] if lines and found[0] == "\n" else _picture(found[0]), text)


def _picture(letter: str) -> str:
    code = ord(letter)
    if letter == "\n":
        return "⏎"
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else "\ufffd"


def json_line(tree: Any) -> str:
    """JSON on one line, readable in any script; what could steer a terminal is escaped, which changes no value."""
    text = json.dumps(tree, ensure_ascii=False, default=str)
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(text: str) -> None:
    """A remark for the person, on stderr: stdout is for what was asked for."""
    click.echo(harmless(text, lines=True), err=True)


def nowhere_to_write() -> None:
    """Stdout is closed or full: what is still buffered goes nowhere, and no traceback is made of that at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def hidden(question: str) -> str:
    """Ask for a secret without an echo."""
    while True:
        given = getpass.getpass(f"{question}: ").strip()
        if given:
            return given


def ask() -> Callable[[str], str] | None:
    """How to ask for a secret, where a person sits at a terminal; else None."""
    return hidden if sys.stdin.isatty() else None


class Commands(click.Group):
    """Commands by name, imported when they are run; every way a command can end has its line and its exit code."""

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._table:
            return None
        module = import_module(self._table[cmd_name][0])
        # ``list`` is a builtin and ``get`` says little: a command's function is named for what it does.
        return next(each for each in vars(module).values() if isinstance(each, click.Command) and each.name == cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in self._table.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CRMError as error:
            say(f"error: {error}")
            ctx.exit(1)
        except BrokenPipeError:
            # Whoever read has what they wanted (| head).
            nowhere_to_write()
            ctx.exit(0)
        except OSError as error:
            nowhere_to_write()
            say(f"error: {error}")
            ctx.exit(1)
        except ImportError as error:
            say(f"error: {error}")
            ctx.exit(1)
        except KeyboardInterrupt:
            say("interrupted")
            ctx.exit(130)
        except EOFError:
            say("error: the input ended before it was given")
            ctx.exit(1)


# How the commands of a move end: rclone's codes, as far as they mean something here.
DIFFERENT, LOG_IN, AGAIN, FATAL, TOO_LATE, INTERRUPTED = 1, 3, 5, 7, 10, 130
_LATER: Final = (RateLimited, Unavailable, TransportError, DeadlineExceeded, AmbiguousWrite)


def code_of(error: CRMError) -> int:
    """What can be done about it: log in again, try again later, or put something right first."""
    if isinstance(error, AuthFailed):
        return LOG_IN
    return AGAIN if getattr(error, "passing", isinstance(error, _LATER)) else FATAL


class OfAMove(click.Command):
    """A command that ends by ``code_of`` whatever stops it."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CRMError as error:
            say(f"error: {error}")
            ctx.exit(code_of(error))


def counted(number: int, things: str) -> str:
    """``1 company``, ``2 companies``."""
    one = f"{things.removesuffix('ies')}y" if things.endswith("ies") else things.removesuffix("s")
    return f"{number} {one if number == 1 else things}"


def fail(text: str) -> "click.exceptions.Exit":
    """Say what is wrong, and give what to raise."""
    say(f"error: {text}")
    return click.exceptions.Exit(1)


def account_options(command: F) -> F:
    """``--account`` and ``--base-url``, where a dialect's name stands for a profile."""
    for option in (
        click.option("--base-url", metavar="URL", help="The base address, where the vendor has no public host."),
        click.option("--account", metavar="NAME", help="The account's subdomain or host, with a dialect's name."),
    ):
        command = option(command)
    return command
