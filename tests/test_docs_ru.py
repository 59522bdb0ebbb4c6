"""What the Russian first hour says is run: its programs, its commands, its files."""

import json
import re
import runpy
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import crmclient.client
from crmclient import Contact, Login, OAuthApp
from crmclient.cli import commands
from crmclient.cli.lines import csv_lines, json_lines
from crmclient.clock import FakeClock
from crmclient.profiles import load
from crmclient.sandbox.server import Running, face, in_process
from crmclient.sandbox.world import World, populate
from crmclient.serial import from_tree

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ru" / "start.md"
TEXT = PAGE.read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def commands_shown() -> list[list[str]]:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("crmclient ")]


def test_every_block_is_of_a_kind_that_is_run_here() -> None:
    assert set(re.findall(r"^```(\S+)", TEXT, re.MULTILINE)) == {"sh", "toml", "jsonl", "csv", "python"}


@pytest.mark.parametrize("program", blocks("python"), ids=range(len(blocks("python"))))
def test_a_program_runs_as_it_stands(
    program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, clock = crmclient.client.connect, FakeClock()
    sandboxes: dict[str, Running] = {}

    def connect(name: str, account: str, *, credentials: Any, **given: Any) -> Any:
        """The program's own call, at a sandbox: only where it goes and as whom is replaced."""
        assert account in ("romashka", "romashka.amocrm.ru", "vektor")
        if name not in sandboxes:
            world = World(clock=clock)
            populate(world, contacts=12, companies=3, deals=4, seed=3)
            sandboxes[name] = in_process(face(name), world, clock=clock)
        card = sandboxes[name].credentials
        issued: Any = card.get("token")
        if isinstance(credentials, OAuthApp):
            issued = OAuthApp(**{key: card[key] for key in ("client_id", "client_secret", "redirect_uri", "code")})
        if isinstance(credentials, Login):
            issued = Login(card["login"], hash=card["hash"])
        sandbox = sandboxes[name]
        here = {"base_url": sandbox.base_url, "transport": sandbox.transport(), "rate": ()}
        return real(name, credentials=issued, **here, **given)

    monkeypatch.setattr(crmclient.client, "connect", connect)
    monkeypatch.setenv("HOME", str(tmp_path))
    script = tmp_path / "program.py"
    script.write_text(program, "utf-8")
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert said.strip()
    assert "другое" not in said


@pytest.mark.parametrize("command", commands_shown(), ids=" ".join)
def test_a_command_shown_exists_with_its_options(command: list[str]) -> None:
    name, *rest = command[1:]
    told = CliRunner().invoke(commands(), [name, "--help"])
    assert told.exit_code == 0, told.output
    for option in (word for word in rest if word.startswith("--")):
        assert option in told.output


@pytest.mark.parametrize("command", commands_shown(), ids=" ".join)
def test_a_command_shown_is_one_that_makes_sense(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops for want of an account, a file or time, and not because of how it is written."""
    group: Any = commands()
    monkeypatch.chdir(tmp_path)
    with group.make_context("crmclient", command[1:]) as context:
        name, found, rest = group.resolve_command(context, command[1:])
        found.make_context(name, list(rest), parent=context)


def test_the_profiles_shown_are_read_and_are_those_the_commands_name(tmp_path: Path) -> None:
    (shown,) = blocks("toml")
    file = tmp_path / "crmclient.toml"
    file.write_text(shown, "utf-8")
    profiles = load(file)
    assert set(profiles) == set(tomllib.loads(shown)["profiles"])
    assert profiles["romashka"].address == "https://romashka.amocrm.ru"
    assert profiles["vektor"].address == "https://vektor.kommo.com"
    named = {command[2] for command in commands_shown() if command[1] in ("login", "list", "get", "export", "create")}
    assert named == set(profiles)


def test_the_files_shown_are_taken() -> None:
    (lines,), (table,) = blocks("jsonl"), blocks("csv")
    for found in (
        list(json_lines(lines.encode().splitlines(True))),
        list(csv_lines(table.encode().splitlines(True), Contact)),
    ):
        assert [line.wrong for line in found] == [None, None]
        ivan, anna = (from_tree(Contact, line.tree) for line in found)
        assert (ivan.name, ivan.phones[0].value) == ("Иван Петров", "+79991234567")
        assert all(phone.value.startswith("+7") for row in (ivan, anna) for phone in row.phones)
        assert anna.name == "Анна Смирнова"
    assert json.loads(lines.splitlines()[0])["phones"] == ["+79991234567"]


def test_every_file_it_points_to_is_there() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (PAGE.parent / path).exists(), path


def test_every_error_it_names_exists() -> None:
    rows = re.findall(r"^\| `([A-Z]\w+)", TEXT, re.MULTILINE)
    assert len(rows) >= 10
    assert all(hasattr(crmclient, name) for name in rows)
