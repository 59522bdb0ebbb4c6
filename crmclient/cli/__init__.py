"""The command line says what there is before it loads any of it: a command is imported when it is run.

Exit codes: 0 well, 1 what the CRM or the configuration refuses, 2 a command line that makes no sense, 130 Ctrl-C. The
commands of a move tell apart what can be done about it (``terminal.code_of``).
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import click

# Name, where it lives, and what it does: enough for --help without importing anything.
COMMANDS: Final = {
    "demo": ("crmclient.cli.demo", "Move an account between two sandboxes and prove that it arrived."),
    "dialects": ("crmclient.cli.dialects", "What each dialect can do, and which fields it carries."),
    "sandbox": ("crmclient.cli.sandbox", "Serve a vendor's API on this machine until Ctrl-C."),
    "login": ("crmclient.cli.login", "Get a token, check it and keep it for the other commands."),
    "doctor": ("crmclient.cli.doctor", "Say what is wrong with an account, and what to do about it."),
    "list": ("crmclient.cli.read", "List rows: a table for people, JSON lines for machines."),
    "get": ("crmclient.cli.read", "Show one row."),
    "create": ("crmclient.cli.rows", "Make rows of the lines of a file: JSON lines or CSV."),
    "update": ("crmclient.cli.rows", "Change the rows that the lines of a file name by their id."),
    "export": ("crmclient.cli.rows", "Write every row as a line of JSON or CSV."),
    "plan": ("crmclient.cli.plan", "Say what a move between two accounts would do, lose and take."),
    "migrate": ("crmclient.cli.migrate", "Carry out a plan, or go on with it: each row once."),
    "status": ("crmclient.cli.migrate", "Say how a move stands, also while it goes on."),
    "report": ("crmclient.cli.migrate", "Tell what a move has come to, for people or for machines."),
    "adopt": ("crmclient.cli.migrate", "Make a lost ledger anew from what is in the target."),
    "check": ("crmclient.cli.check", "Compare two accounts, row by row and field by field."),
}


def commands() -> "click.Group":
    """The whole command line, as click has it."""
    from crmclient.cli.terminal import Commands

    return Commands(name="crmclient", help=_ABOUT, table=COMMANDS)


_ABOUT: Final = """One client for several CRM dialects.

Accounts are profiles of crmclient.toml, or a dialect's name with --account or --base-url. Secrets come from the
environment (CRMCLIENT_TOKEN, CRMCLIENT_<PROFILE>_TOKEN), from `crmclient login` or from a prompt; never from here.
"""


def main() -> None:
    """The ``crmclient`` command."""
    try:
        for needed in ("click", "rich"):
            import_module(needed)
        group = commands()
    except ImportError:
        print("error: the command line needs click and rich: pip install 'crmclient[cli]'", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    try:
        group(prog_name="crmclient")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
