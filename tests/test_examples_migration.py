"""The examples of a move are run as they stand: by what they are made of, in no time, and once as a script."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from test_pairs import CLOCKS, two

from crmclient import Client, connect
from crmclient.migration.ledger import Ledger, State
from crmclient.sandbox.faults import Action, Fault

ROOT = Path(__file__).parents[1]
SMALL = {"contacts": 4, "companies": 2, "deals": 2, "tasks": 3, "notes": 3}


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.asyncio
async def test_the_first_run_plans_the_second_moves_and_the_third_finds_all_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    move = example("migrate_xml_to_kommo").move
    async with two("amoxml", "kommo", **SMALL) as (source, target, _, new):
        clock = CLOCKS[id(source)]
        assert not await move(source, target, tmp_path, clock=clock)
        assert new.world.count("contact") == 0
        assert "deal.stage of 2: drop, nothing like it there" in capsys.readouterr().out
        for _ in range(2):
            assert await move(source, target, tmp_path, clock=clock)
            assert "All 13 rows of" in capsys.readouterr().out
            assert [new.world.count(kind) for kind in ("company", "contact", "deal", "task")] == [2, 4, 2, 3]


@pytest.mark.asyncio
async def test_a_move_that_was_stopped_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("migrate_xml_to_kommo")
    async with two("amoxml", "kommo", **SMALL) as (source, target, _, new):
        clock = CLOCKS[id(source)]
        await module.move(source, target, tmp_path, clock=clock)

        class Stopping(module.Migration):
            async def __aiter__(self):
                async for event in super().__aiter__():
                    yield event
                    if event.counts.get("contacts", {}).get(State.DONE):
                        self.stop()

        with monkeypatch.context() as changed:
            changed.setattr(module, "Migration", Stopping)
            assert not await module.move(source, target, tmp_path, clock=clock)
        assert new.world.count("contact") == 4
        assert new.world.count("task") == 0
        assert await module.move(source, target, tmp_path, clock=clock)
        assert [new.world.count(kind) for kind in ("company", "contact", "deal", "task")] == [2, 4, 2, 3]


@pytest.mark.asyncio
async def test_each_round_takes_over_what_is_new_and_what_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    follow = example("delta_sync").follow
    async with two("kommo", "kommo", **SMALL) as (source, target, old, new):
        clock = CLOCKS[id(source)]
        rounds = follow(source, target, tmp_path, every=900.0, clock=clock)
        assert (await anext(rounds)).equal
        began = clock.monotonic()

        deal = old.world.select("deal")[0]
        old.world.update("deal", deal["id"], {"price": 777})
        person = old.world.add("contact", {"name": "Somebody New"})
        old.world.add("note", {"target_kind": "contact", "target_id": person, "text": "said later"})
        assert (await anext(rounds)).equal
        assert clock.monotonic() - began >= 900.0
        assert "2 rows are new in the source since, 1 were changed" in capsys.readouterr().out
        assert [row["price"] for row in new.world.select("deal", where={"name": deal["name"]})] == [777]
        (there,) = new.world.select("contact", where={"name": "Somebody New"})
        assert new.world.count("note", {"target_kind": "contact", "target_id": there["id"], "text": "said later"}) == 1

        before = {kind: new.world.count(kind) for kind in ("contact", "deal", "note")}
        assert (await anext(rounds)).equal  # nothing is new, and nothing is made
        assert before == {kind: new.world.count(kind) for kind in before}
        await rounds.aclose()
        with Ledger(tmp_path / "plan.ledger") as ledger:  # nobody holds it
            assert ledger.violations() == []


@pytest.mark.asyncio
async def test_a_round_that_meets_an_outage_is_followed_by_one_that_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    follow = example("delta_sync").follow
    async with two("kommo", "kommo", **SMALL) as (source, target, _, new):
        rounds = follow(source, target, tmp_path, every=60.0, clock=CLOCKS[id(source)])
        assert (await anext(rounds)).equal
        new.faults.add(Fault(action=Action.STATUS, on="GET *", times=40))
        assert (await anext(rounds)).equal
        assert "trying again in 60 s" in capsys.readouterr().out
        await rounds.aclose()


@pytest.mark.parametrize("name", ["amoxml", "kommo"])
def test_the_variables_it_names_are_those_it_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("migrate_xml_to_kommo")
    shown = {word.partition("=")[0] for word in (module.__doc__ or "").split() if word.endswith("=…")}
    assert shown == {"OLD_ACCOUNT", "OLD_LOGIN", "OLD_HASH", "NEW_ACCOUNT", "NEW_TOKEN"}
    for each in shown:
        monkeypatch.setenv(each, "acme" if each.endswith("ACCOUNT") else "x")
    asked: list[Client] = []

    async def moved(source: Client, target: Client, folder: Path) -> bool:
        asked.extend((source, target))
        return True

    monkeypatch.setattr(module, "move", moved)
    module.asyncio.run(module.real())
    assert {crm.dialect.name: crm.base_url for crm in asked}[name] == connect(name, "acme", credentials="x").base_url


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "last"), [("migrate_xml_to_kommo", "All 13 rows of "), ("delta_sync", "there: 6 contacts, 1 deal at 777")]
)
def test_it_runs_as_a_script_on_sandboxes_of_its_own(name: str, last: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith(last)
    assert list(tmp_path.iterdir()) == []
