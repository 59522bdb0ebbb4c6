"""What the README says is run: its snippets, its commands, its table."""

import re
import runpy
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import crmclient.client
from crmclient import OAuthApp
from crmclient.cli import commands
from crmclient.clock import FakeClock
from crmclient.profiles import load
from crmclient.sandbox.faults import Faults
from crmclient.sandbox.server import Running, face, in_process
from crmclient.sandbox.world import World, populate
from crmclient.testing.plugin import Sandboxes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands_shown() -> list[list[str]]:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("crmclient ")]


@pytest.fixture
def sandbox() -> Running:
    clock = FakeClock()
    world = World(clock=clock)
    populate(world, contacts=30, companies=5, deals=10, seed=3)
    return in_process(face("kommo"), world, clock=clock)


@pytest.mark.parametrize("snippet", [block for block in blocks("python") if "asyncio.run" in block])
def test_a_snippet_runs_as_it_stands(
    snippet: str, sandbox: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = crmclient.client.connect

    def connect(dialect: str, account: str, *, credentials: Any, **given: Any) -> Any:
        """The snippet's own call, at the sandbox: only where it goes and as whom is replaced."""
        assert account == "acme"
        issued = sandbox.credentials
        if isinstance(credentials, OAuthApp):
            known = {name: issued[name] for name in ("client_id", "client_secret", "redirect_uri", "code")}
            credentials = OAuthApp(**known)
        else:
            credentials = issued["token"]
        return real(
            dialect,
            base_url=sandbox.base_url,
            credentials=credentials,
            transport=sandbox.transport(),
            rate=(),
            **given,
        )

    monkeypatch.setattr(crmclient.client, "connect", connect)
    monkeypatch.setenv("HOME", str(tmp_path))
    script = tmp_path / "snippet.py"
    script.write_text(snippet, "utf-8")
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_exam_for_third_parties_is_taken_as_it_is_shown() -> None:
    (shown,) = [block for block in blocks("python") if "Conformance" in block]
    taken: dict[str, Any] = {}
    exec(shown.replace('"mine"', '"electrum"'), taken)
    assert [name for name in dir(taken["TestMine"]) if name.startswith("test_")]


@pytest.mark.asyncio
async def test_the_test_shown_passes(crm_sandbox: Sandboxes, crm_faults: Faults) -> None:
    (shown,) = [block for block in blocks("python") if "crm_sandbox" in block]
    given: dict[str, Any] = {}
    exec(shown, given)
    await given["test_a_lost_answer"](crm_sandbox, crm_faults)
    assert len(crm_faults.done) == 1


@pytest.mark.parametrize("command", commands_shown(), ids=" ".join)
def test_a_command_shown_exists_with_its_options(command: list[str]) -> None:
    name, *rest = command[1:]
    told = CliRunner().invoke(commands(), [name, "--help"])
    assert told.exit_code == 0, told.output
    for option in (word for word in rest if word.startswith("--")):
        assert option in told.output


def test_the_profiles_shown_are_read(tmp_path: Path) -> None:
    (shown,) = blocks("toml")
    file = tmp_path / "crmclient.toml"
    file.write_text(shown, "utf-8")
    assert set(load(file)) == set(tomllib.loads(shown)["profiles"])


def test_the_two_commands_set_up_a_fresh_machine_and_use_nox() -> None:
    run = [block.strip() for block in blocks("sh") if "nox" in block]
    start = "python3 -m venv .venv && .venv/bin/pip install -q nox && .venv/bin/nox"
    assert run == [f"{start} -s demo", start]


def test_ci_runs_the_command_the_readme_gives() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "python3 -m venv .venv" in script
    assert re.search(r"^\.venv/bin/nox$", script, re.MULTILINE)


def test_the_table_of_dialects_is_the_one_the_code_gives() -> None:
    (shown,) = re.findall(r"<!-- dialects -->\n(.*?)<!-- /dialects -->", README, re.DOTALL)
    told = CliRunner().invoke(commands(), ["dialects", "--markdown"])
    assert told.exit_code == 0, told.output
    assert shown == told.output


def test_every_file_it_points_to_is_there() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
