"""I. The end, the command line, the fixtures. The rows are those of the fault catalogue."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import httpx
import pytest

from crmclient.cli import commands as whole
from crmclient.testing.plugin import Sandboxes

SECRET = re.compile(r"token|secret|password|hash|key|code", re.IGNORECASE)


def commands(group: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, click.Command]]:
    if not isinstance(group, click.Group):
        return [(" ".join(path), group)]
    context = click.Context(group)
    found: list[tuple[str, click.Command]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found += commands(command, (*path, name))
    return found


def test_fault_145_no_option_of_any_command_takes_a_secret() -> None:
    """What stands in a command line stands in the list of processes and in the shell's history."""
    found = commands(whole())
    assert len(found) > 5
    for name, command in found:
        for parameter in command.params:
            if getattr(parameter, "is_flag", False):
                continue  # it takes nothing
            words = " ".join((*parameter.opts, *parameter.secondary_opts))
            assert not SECRET.search(words), f"crmclient {name}: {words}"


@pytest.mark.asyncio
async def test_fault_147_a_fixtures_client_reaches_its_sandbox_and_nothing_else(
    crm_sandbox: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **more: Any) -> Any:
        raise AssertionError("a socket was asked for")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("asyncio.BaseEventLoop.create_connection", refuse)
    sandbox = crm_sandbox("kommo", contacts=2)
    async with sandbox.connect() as crm:
        assert len([contact async for contact in crm.contacts.list()]) == 2
        assert httpx.URL(crm.base_url).host == "localhost"


SCRIPT = """
import asyncio
from crmclient import Contact, connect
from crmclient.clock import SystemClock
from crmclient.sandbox.server import face, serve
from crmclient.sandbox.world import World, populate

async def main():
    with World(clock=SystemClock()) as world:
        populate(world, contacts=600)
        async with serve(face("kommo"), world, limits=False) as running:
            async with connect("kommo", base_url=running.base_url, credentials=running.credentials["token"]) as crm:
                await crm.contacts.create(Contact(name="Ivan"))
                async for contact in crm.contacts.list():
                    break
                calls = [asyncio.create_task(crm.contacts.get(contact.id)) for _ in range(5)]
                await asyncio.sleep(0)
                for call in calls[:3]:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            left = [task for task in asyncio.all_tasks() if "sandbox" not in task.get_name()]
            left.remove(asyncio.current_task())
            left = [task for task in left if "RequestResponseCycle" not in repr(task)]
            assert not left, left

asyncio.run(main(), debug=True)
print("clean")
"""


@pytest.mark.e2e
def test_fault_148_a_program_in_debug_mode_ends_without_a_complaint(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", str(script)], capture_output=True, text=True, timeout=60
    )
    complaints = [
        line
        for line in done.stderr.splitlines()
        if "Executing" not in line  # a slow machine's slow callbacks
    ]
    assert done.returncode == 0, done.stderr
    assert done.stdout == "clean\n"
    assert not complaints, done.stderr
