"""Rows go in and out by the line: what was exported comes back as it was, and no line is written that was not meant."""

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from crmclient import (
    AmbiguousWrite,
    Company,
    Contact,
    Deal,
    FieldValue,
    Invalid,
    Issue,
    Kind,
    Link,
    Made,
    Money,
    NotApplied,
    Note,
    Phone,
    Ref,
    Task,
    Unavailable,
    Unknown,
)
from crmclient.cli import commands
from crmclient.cli.lines import BadFile, Line, cells, columns, csv_lines, csv_row, guarded, json_lines, unguarded
from crmclient.clock import SystemClock
from crmclient.entities import FieldType, Label, NoteKind, Outcome
from crmclient.sandbox.server import Running, face, served
from crmclient.sandbox.world import World, populate
from crmclient.serial import from_tree, to_tree
from crmclient.testing.samples import ENTITIES, VARIANTS, Words, anything, full
from crmclient.vocabulary import Field, Option, Pipeline, Stage, User

EXACT = {"parse_float": Decimal}


def again(value: Any) -> Any:
    """Through JSON and back, as a line goes."""
    return from_tree(type(value), json.loads(json.dumps(to_tree(value)), **EXACT))


def field(id: int, type: FieldType, *options: str) -> Field:
    made = tuple(Option(id=n, value=value) for n, value in enumerate(options, 1))
    return Field(id=id, entity=Kind.CONTACT, name=f"Field {id}", type=type, options=made)


OF_A_KIND = [
    field(n, type, *(("one", "two") if type in (FieldType.SELECT, FieldType.MULTISELECT, FieldType.RADIO) else ()))
    for n, type in enumerate(FieldType, 1)
]
WORDS = Words(
    users=(Ref(Kind.USER, 1), Ref(Kind.USER, 2)),
    places=((Ref(Kind.PIPELINE, 1), Ref(Kind.STAGE, 142)), (Ref(Kind.PIPELINE, 1), Ref(Kind.STAGE, "new"))),
    contacts=(Ref(Kind.CONTACT, 5), Ref(Kind.CONTACT, 6)),
    companies=(Ref(Kind.COMPANY, 7),),
    deals=(Ref(Kind.DEAL, 8),),
    task_types=(Ref(Kind.TASK_TYPE, "CALL"),),
    fields=tuple(OF_A_KIND),
)


# -------------------------------------------------------------------------------------------------------- from a tree


@pytest.mark.parametrize("number", range(VARIANTS))
@pytest.mark.parametrize("entity", ENTITIES)
def test_every_sample_comes_back_from_its_tree(entity: type[Any], number: int) -> None:
    row = full(entity, WORDS, number)
    assert again(row) == row


@pytest.mark.once
@settings(max_examples=50, deadline=None)
@given(st.sampled_from(ENTITIES).flatmap(lambda entity: anything(entity, WORDS)))
def test_whatever_the_model_can_hold_comes_back_from_its_tree(row: Any) -> None:
    assert again(row) == row


def test_an_accounts_own_words_come_back_from_their_trees() -> None:
    stages = (Stage(id="new", name="New"), Stage(id=142, outcome=Outcome.WON, sort=3, editable=False))
    for word in (User(id=1, name="Anna", admin=True), Pipeline(id=1, main=True, stages=stages), *OF_A_KIND):
        assert again(word) == word


def test_what_a_person_writes_is_enough() -> None:
    contact = from_tree(
        Contact,
        {
            "name": "Ivan",
            "phones": ["+79991234567"],
            "emails": "i@x.example",
            "tags": ["new"],
            "company": 5,
            "owner": 7,
        },
    )
    assert contact == Contact(
        name="Ivan", phones=["+79991234567"], emails=["i@x.example"], tags=["new"], company=5, owner=7
    )
    assert from_tree(Contact, {"company": "ООО «Ромашка»"}) == Contact(company="ООО «Ромашка»")
    phones = [{"value": "+7", "label": "mobile"}, "+8"]
    assert from_tree(Contact, {"phones": phones}).phones == (Phone("+7", label=Label.MOBILE), Phone("+8"))
    deal = from_tree(Deal, {"price": "12.50", "stage": "new", "pipeline": 3, "contacts": [5, 6]})
    assert deal == Deal(price="12.50", stage="new", pipeline=3, contacts=[5, 6])
    assert from_tree(Deal, {"price": 12}).price == Money(12)
    assert from_tree(Deal, {"price": {"amount": "0.10", "currency": "EUR"}}).price == Money("0.10", currency="EUR")
    task = from_tree(Task, {"text": "call", "due": "2026-03-01T09:00:00+03:00", "target": "deal:7", "type": 1})
    assert task.due == datetime(2026, 3, 1, 6, tzinfo=UTC)
    assert (task.target, task.type) == (Ref(Kind.DEAL, 7), Ref(Kind.TASK_TYPE, 1))
    assert from_tree(Task, {"duration": 1800}).duration == timedelta(minutes=30)
    assert from_tree(Note, {"kind": "call_in", "target": {"kind": "deal", "id": 7}}).kind is NoteKind.CALL_IN
    values = [
        {"field": 5, "values": "Казань"},
        {"code": "AGE", "values": [12], "type": "number"},
        {"code": "BORN", "values": ["1968-02-20"], "type": "birthday"},
        {"code": "VIP", "values": [True], "type": "bool"},
    ]
    assert from_tree(Company, {"fields": values}).fields == (
        FieldValue("Казань", field=Ref(Kind.FIELD, 5)),
        FieldValue(Decimal(12), code="AGE", type=FieldType.NUMBER),
        FieldValue(date(1968, 2, 20), code="BORN", type=FieldType.BIRTHDAY),
        FieldValue(True, code="VIP", type=FieldType.BOOL),
    )


@pytest.mark.parametrize(
    "kind, tree, path, rule",
    [
        (Contact, {"phone": "+7"}, "phone", "no such field; it has id, owner"),
        (Contact, {"phones": [{"value": "+7", "number": 1}]}, "phones.0.number", "Phone has no such field"),
        (Contact, {"phones": [{"label": "work"}]}, "phones.0", "lacks value"),
        (Contact, {"phones": [79991234567]}, "phones.0", "expected str"),
        (Contact, {"phones": [{"value": "+7", "label": "skype"}]}, "phones.0.label", "none of work, work_direct"),
        (Contact, {"name": 5}, "name", "expected str"),
        (Contact, {"company": True}, "company", "expected int or str"),
        (Contact, {"owner": {"kind": "deal", "id": 5}}, "owner", "points at a user"),
        (Contact, {"written": {}}, "written", "no such field"),
        (Contact, {"tags": [None]}, "tags.0", "lacks name"),
        (Contact, "Ivan", "", "expected an object"),
        (Deal, {"price": 12.5}, "price", "money is exact"),
        (Deal, {"price": "much"}, "price", "'much' is no number"),
        (Deal, {"outcome": "done"}, "outcome", "none of open, won"),
        (Task, {"due": "2026-03-01T09:00:00"}, "due", "no time zone"),
        (Task, {"due": "tomorrow"}, "due", "tomorrow"),
        (Task, {"target": 7}, "target", "expected str"),
        (Task, {"target": "lead:7"}, "target", "no kind:id, like deal:7"),
        (Task, {"done": "yes"}, "done", "expected bool"),
        (Task, {"duration": "long"}, "duration", "expected int"),
        (Note, {"params": []}, "params", "expected dict"),
        (Contact, {"fields": [{"values": [1.5]}]}, "fields.0.values.0", "a number is exact"),
        (Contact, {"fields": [{"type": "datetime", "values": ["2026-03-01T09:00:00"]}]}, "fields.0.values.0", "zone"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(kind: type[Any], tree: Any, path: str, rule: str) -> None:
    with pytest.raises(Invalid) as refused:
        from_tree(kind, tree)
    assert kind.__name__.lower() in str(refused.value)
    (issue,) = refused.value.issues
    assert (issue.field or "") == path
    assert rule in issue.rule


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(Invalid) as refused:
        from_tree(Contact, {"nmae": "Ivan", "owner": 1.5, "emails": [5], "created_at": "x"})
    assert [issue.field for issue in refused.value.issues] == ["nmae", "owner", "emails.0", "created_at"]


# ------------------------------------------------------------------------------------------------------- lines and CSV


def through_csv(rows: list[Any], **more: Any) -> list[Any]:
    kind: Any = type(rows[0])
    written = csv_row(columns(kind)) + "".join(csv_row(cells(row, **more)) for row in rows)
    found = list(csv_lines(written.encode().splitlines(keepends=True), kind, **more))
    assert [line.wrong for line in found] == [None] * len(rows)
    return [from_tree(kind, line.tree) for line in found]


@pytest.mark.once
@settings(max_examples=30, deadline=None)
@given(st.sampled_from(ENTITIES).flatmap(lambda entity: st.lists(anything(entity, WORDS), min_size=1, max_size=3)))
def test_whatever_is_exported_as_csv_comes_back(rows: list[Any]) -> None:
    assert through_csv(rows) == rows


@pytest.mark.parametrize("raw_cells", [False, True])
@pytest.mark.parametrize("entity", ENTITIES)
def test_every_sample_comes_back_from_csv(entity: type[Any], raw_cells: bool) -> None:
    rows = [full(entity, WORDS, number) for number in range(VARIANTS)]
    assert through_csv(rows, raw_cells=raw_cells) == rows


@settings(deadline=None)
@given(st.text(st.sampled_from("'=+-@\t\r\n;,\"ab \u2028"), min_size=1, max_size=8))
def test_a_guard_is_never_lost_and_never_too_many(text: str) -> None:
    assert unguarded(guarded(text)) == text
    assert not guarded(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert through_csv([Contact(name=text)]) == [Contact(name=text)]


def test_a_cell_is_what_a_person_would_write() -> None:
    contact = Contact(
        id=5,
        name="=HYPERLINK(1)",
        phones=["+7 999", Phone("+7 812", label=Label.MOBILE)],
        company=Link(Ref(Kind.COMPANY, 7), name="ООО «Ромашка»"),
        deals=[Link(Ref(Kind.DEAL, 8), main=True), 9],
        tags=["a", "b"],
        owner=3,
        created_at=datetime(2026, 3, 1, 9, tzinfo=UTC),
    )
    told = dict(zip(columns(Contact), cells(contact), strict=True))
    assert {name: cell for name, cell in told.items() if cell} == {
        "id": "5",
        "owner": "3",
        "created_at": "2026-03-01T09:00:00+00:00",
        "deleted": "false",
        "name": "'=HYPERLINK(1)",
        "phones": "'+7 999; +7 812 (mobile)",
        "company": "7",
        "company_name": "ООО «Ромашка»",
        "deals": "8 (main); 9",
        "tags": "a; b",
    }
    deal = dict(zip(columns(Deal), cells(Deal(price=Money("-12.50", currency="EUR"), stage="new")), strict=True))
    assert (deal["price"], deal["stage"]) == ("'-12.50 EUR", "new")
    task = Task(target=Ref(Kind.DEAL, 7), duration=timedelta(minutes=30))
    told = dict(zip(columns(Task), cells(task), strict=True))
    assert (told["target"], told["duration"]) == ("deal:7", "1800")


def test_what_a_cell_cannot_say_plainly_is_json() -> None:
    odd = Contact(
        name="[not json]",
        tags=["a; b", "[x]"],
        phones=[Phone("+7 (mobile)"), Phone("x", label=Label.OTHER, raw_label="SKYPE")],
        company=Link(Ref(Kind.COMPANY, "7"), name="Acme", main=True),
        owner="5",
        deals=[Link(Ref(Kind.DEAL, None), name="by name")],
    )
    told = dict(zip(columns(Contact), cells(odd), strict=True))
    assert told["name"] == "[not json]"
    assert all(told[name].startswith("[{") for name in ("tags", "phones", "deals"))
    assert (told["company"][0], told["company_name"]) == ("{", "")
    assert through_csv([odd]) == [odd]


def lines_of(text: str, kind: type[Any] = Contact) -> list[Line]:
    return list(csv_lines(text.encode().splitlines(keepends=True), kind))


def test_a_spreadsheets_own_ways_are_understood() -> None:
    for text in (
        "\ufeffname;tags;deleted\r\nИван;a;ЛОЖЬ\r\n;;\r\n",
        'name,tags,deleted\n"Иван",a,FALSE\n',
        "name\ttags\tdeleted\t\nИван\ta\tfalse\t\n",
    ):
        (line,) = lines_of(text)
        assert line.number == 2
        assert from_tree(Contact, line.tree) == Contact(name="Иван", tags=["a"])


def test_a_line_that_is_wrong_says_where_and_the_others_stand() -> None:
    text = 'name,deleted,company,company_name\n"two\nlines",,,\nOnly\nx,maybe,,\ny,,Acme,Acme\nz,,7,Acme\n'
    two, only, maybe, twice, fine = lines_of(text)
    assert (two.number, two.tree) == (2, {"name": "two\nlines"})
    assert (only.number, only.wrong) == (4, "it has 1 cells for 4 columns")
    assert maybe.wrong == "deleted: expected true or false, got 'maybe'"
    assert twice.wrong == "company says 'Acme' already, and company_name 'Acme'"
    assert from_tree(Contact, fine.tree).company == Link(Ref(Kind.COMPANY, 7), name="Acme")


@pytest.mark.parametrize(
    "text, said",
    [
        ("name,phone\n", "'phone' is no column; the columns of a contact are id, name"),
        ("name,name\n", "a column is there twice"),
        ("name\n\xff\n", "line 2 is no UTF-8"),
    ],
)
def test_a_file_of_other_columns_is_refused_before_its_rows(text: str, said: str) -> None:
    with pytest.raises(BadFile, match=said):
        list(csv_lines(text.encode("latin-1").splitlines(keepends=True), Contact))


def test_json_lines_are_read_one_by_one() -> None:
    text = '\ufeff{"name": "a"}\n\n[]\n{"a": 1, "a": 2}\n{"price": NaN}\n{"price": 0.10}\nnonsense\n' + "[" * 100_000
    found = list(json_lines([*text.encode().splitlines(keepends=True), b"\xff\n"]))
    assert [line.number for line in found] == [1, 3, 4, 5, 6, 7, 8, 9]
    assert found[0].tree == {"name": "a"}
    assert found[4].tree == {"price": Decimal("0.10")}
    for place, said in (
        (1, "an object"),
        (2, "'a' is there twice"),
        (3, "NaN"),
        (5, "no JSON"),
        (6, "brackets"),
        (7, "UTF-8"),
    ):
        assert said in (found[place].wrong or "")


# ------------------------------------------------------------------------------------------------------- the commands


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's own profiles, tokens or secrets are in the way."""
    for name in [name for name in os.environ if name.startswith("CRMCLIENT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def kommo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    # Each command has a pace of its own, and a test gives many of them a second.
    with World(clock=SystemClock()) as world, served(face("kommo"), world, limits=False) as running:
        monkeypatch.setenv("CRMCLIENT_TOKEN", running.credentials["token"])
        yield running


def invoke(running: Running, *words: str, stdin: str | bytes | None = None) -> Result:
    name, entity, *rest = words
    line = [name, running.face.name, entity, "--base-url", running.base_url, *rest]
    return CliRunner().invoke(commands(), line, input=stdin, catch_exceptions=False)


def outcomes(done: Result) -> list[Any]:
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.e2e
def test_each_line_has_its_outcome_and_the_others_go_on(kommo: Running) -> None:
    text = (
        '{"name": "Ivan", "phones": ["+7999"]}\n{"nmae": "x"}\n\n{"name": "Anna", "owner": 99999999}\n{"name": "Zoë"}\n'
    )
    done = invoke(kommo, "create", "contacts", "--yes", stdin=text)
    assert done.exit_code == 1
    ivan, unknown, anna, zoe = outcomes(done)
    assert (ivan["line"], ivan["outcome"]) == (1, "made")
    assert (unknown["line"], unknown["outcome"]) == (2, "refused")
    assert unknown["error"] == "line 2: this is no contact"
    assert unknown["issues"][0]["field"] == "nmae"
    assert (anna["line"], anna["outcome"], anna["issues"][0]["field"]) == (4, "refused", "owner")
    assert (zoe["line"], zoe["outcome"]) == (5, "made")
    assert {row["id"]: row["name"] for row in kommo.world.select("contact")} == {ivan["id"]: "Ivan", zoe["id"]: "Zoë"}
    assert f"create contacts: Kommo at {kommo.base_url} (Рога и Копыта)" in done.stderr
    assert "2 made, 2 refused" in done.stderr


@pytest.mark.e2e
def test_nothing_is_written_unless_somebody_says_so(kommo: Running) -> None:
    done = invoke(kommo, "create", "contacts", stdin='{"name": "Ivan"}\n')
    assert (done.exit_code, done.stdout) == (1, "")
    assert "Рога и Копыта" in done.stderr
    assert "--yes" in done.stderr
    checked = invoke(kommo, "create", "contacts", "--dry-run", stdin='{"name": "Ivan"}\n{"id": 5}\n{"due": 1}\n')
    assert [each["outcome"] for each in outcomes(checked)] == ["checked", "refused", "refused"]
    assert "--without id" in outcomes(checked)[1]["error"]
    assert kommo.world.count("contact") == 0
    assert not [call for call in kommo.stats.calls if not call.startswith("GET")]


@pytest.mark.e2e
@pytest.mark.skipif(os.name == "nt", reason="there are no such terminals there")
@pytest.mark.parametrize("answer, made", [("y", 1), ("n", 0)])
def test_a_person_is_asked_with_the_name_of_the_account(kommo: Running, answer: str, made: int, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("name,phones\nИван,'+7999; +7812 (mobile)\n", "utf-8")
    main, terminal = pty.openpty()
    words = [sys.executable, "-m", "crmclient", "create", "kommo", "contacts", "rows.csv", "--base-url", kommo.base_url]
    asked = subprocess.Popen(words, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal, start_new_session=True)
    os.close(terminal)
    seen = b""
    while b"[y/N]" not in seen:
        seen += os.read(main, 4096)
    os.write(main, f"{answer}\n".encode())
    out, _ = asked.communicate(timeout=20)
    os.close(main)
    assert "Рога и Копыта" in seen.decode()
    assert asked.returncode == 1 - made
    assert out.count(b'"made"') == made == kommo.world.count("contact")
    if made:
        phones = kommo.world.select("contact")[0]["phones"]
        assert [phone["value"] for phone in phones] == ["+7999", "+7812"]


@pytest.mark.e2e
def test_an_update_sends_the_fields_of_its_line_and_nothing_else(kommo: Running) -> None:
    populate(kommo.world, contacts=3, tasks=2, seed=2)
    first, second, third = kommo.world.select("contact")
    kommo.world.update("contact", third["id"], {"tags": ["a"], "position": "Director"})
    third = kommo.world.row("contact", third["id"])
    text = (
        f'{{"id": {first["id"]}, "name": "New"}}\n{{"name": "nobody"}}\n{{"id": 99999999, "name": "x"}}\n'
        f'{{"id": {third["id"]}, "tags": [], "position": null}}\n{{"id": {first["id"]}, "name": "Newer"}}\n'
    )
    done = invoke(kommo, "update", "contacts", "--yes", stdin=text)
    assert [each["outcome"] for each in outcomes(done)] == ["updated", "refused", "refused", "updated", "updated"]
    assert [each["line"] for each in outcomes(done)] == [1, 2, 3, 4, 5]
    assert done.exit_code == 1
    after = kommo.world.select("contact")
    stamps = {"updated_at", "updated_by"}
    for before, now, changes in zip(
        (first, second, third), after, ({"name": "Newer"}, {}, {"tags": [], "position": ""}), strict=True
    ):
        changed = {key: now[key] for key in now if key not in stamps and now[key] != before[key]}
        assert {key: part or "" for key, part in changed.items()} == {key: part or "" for key, part in changes.items()}
    task = next(task for task in kommo.world.select("task"))
    kommo.world.update("task", task["id"], {"done": True})
    reopened = invoke(kommo, "update", "tasks", "--yes", stdin=f'{{"id": {task["id"]}, "done": false}}\n')
    assert reopened.exit_code == 0
    assert kommo.world.row("task", task["id"])["done"] is False
    cells = f"id,name,tags\n{first['id']},Last,\n"
    done = invoke(kommo, "update", "contacts", "--yes", "--format", "csv", stdin=cells)
    assert done.exit_code == 0, done.output
    last = kommo.world.row("contact", first["id"])
    assert (last["name"], last["tags"]) == ("Last", first["tags"])


def name_and_phone(row: Any) -> tuple[str, list[str]]:
    return row["name"], [phone["value"] for phone in row["phones"][:1]]


@pytest.mark.e2e
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_what_is_exported_goes_into_another_account(
    kommo: Running, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    populate(kommo.world, contacts=60, companies=3, seed=4)
    file = tmp_path / f"contacts.{form}"
    done = invoke(kommo, "export", "contacts", "--output", str(file), *(["--bom"] if form == "csv" else []))
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    assert file.read_bytes().startswith("\ufeffid".encode() if form == "csv" else b'{"id"')
    assert [each.name for each in tmp_path.iterdir() if each.name != "state"] == [file.name]
    piped = invoke(kommo, "export", "contacts", "--format", form)
    assert piped.stdout_bytes == file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    with World(clock=SystemClock()) as world, served(face("electrum"), world, limits=False) as other:
        monkeypatch.setenv("CRMCLIENT_TOKEN", other.credentials["token"])
        made = invoke(other, "create", "contacts", str(file), "--yes", "--dry-run")
        assert {each["outcome"] for each in outcomes(made)} == {"refused"}
        made = invoke(other, "create", "contacts", str(file), "--yes", "--lossy")
        kept = [row for row in kommo.world.select("contact") if row["name"]]
        assert sum(each["outcome"] == "made" for each in outcomes(made)) == len(kept)
        assert "owner" in outcomes(made)[0]["lost"]
        assert sorted(map(name_and_phone, world.select("contact"))) == sorted(map(name_and_phone, kept))


@pytest.mark.e2e
@pytest.mark.parametrize("entity", ["companies", "deals", "tasks", "notes", "users", "pipelines", "fields"])
def test_every_kind_of_row_is_exported(kommo: Running, entity: str) -> None:
    populate(kommo.world, contacts=5, companies=3, deals=4, tasks=4, notes=4, seed=4)
    kind = {"companies": "company"}.get(entity, entity[:-1])
    machine = outcomes(invoke(kommo, "export", entity))
    assert len(machine) == kommo.world.count(kind)
    rows = list(csv.reader(io.StringIO(invoke(kommo, "export", entity, "--format", "csv").stdout)))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert [row[0] for row in rows[1:]] == [str(each["id"]) for each in machine]


@pytest.mark.e2e
def test_fault_114_115_an_export_runs_no_formula_and_steers_no_terminal(kommo: Running) -> None:
    kommo.world.add("contact", {"name": "=cmd()", "position": "\x1b[31m"})
    done = invoke(kommo, "export", "contacts", "--format", "csv", "--delimiter", ";")
    assert "'=cmd()" in done.stdout
    assert done.stdout.startswith("id;name;")
    assert ";=cmd()" in invoke(kommo, "export", "contacts", "--format", "csv", "--delimiter", ";", "--raw-cells").stdout


@pytest.mark.e2e
def test_fault_144_a_reader_that_has_enough_ends_an_export_quietly(kommo: Running) -> None:
    populate(kommo.world, contacts=600, seed=4)
    words = f"{sys.executable} -m crmclient export kommo contacts --base-url {kommo.base_url}"
    done = subprocess.run(
        ["/bin/bash", "-c", f"{words} | head -1; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"


@pytest.mark.e2e
def test_fault_144_a_reader_that_leaves_stops_what_is_made_and_is_told_of_as_an_error(
    kommo: Running, tmp_path: Path
) -> None:
    (tmp_path / "many.jsonl").write_text("".join(f'{{"name": "n{n}"}}\n' for n in range(1300)))
    words = ["create", "kommo", "contacts", "many.jsonl", "--base-url", kommo.base_url, "--yes"]
    with subprocess.Popen(
        [sys.executable, "-m", "crmclient", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as making:
        assert making.stdout is not None
        assert making.stderr is not None
        making.stdout.readline()
        making.stdout.close()
        said = making.stderr.read()
    made = kommo.world.count("contact")
    assert (making.returncode, made < 1300) == (1, True)
    assert f"the outcomes cannot be written: Broken pipe\nstopped: {made} made; the last line sent is {made}\n" in said


@pytest.mark.e2e
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk is full here")
@pytest.mark.parametrize("name", ["export", "list"])
def test_a_full_disk_is_one_line(kommo: Running, name: str) -> None:
    populate(kommo.world, contacts=30, seed=4)
    words = [sys.executable, "-m", "crmclient", name, "kommo", "contacts", "--base-url", kommo.base_url]
    with Path("/dev/full").open("w") as full_disk:
        done = subprocess.run(words, stdout=full_disk, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")


@pytest.mark.e2e
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent another way there")
def test_ctrl_c_ends_what_is_under_way_and_says_how_many_were_made(kommo: Running, tmp_path: Path) -> None:
    (tmp_path / "many.jsonl").write_text("".join(f'{{"name": "n{n}"}}\n' for n in range(4000)))
    words = ["create", "kommo", "contacts", "many.jsonl", "--base-url", kommo.base_url, "--yes"]
    making = subprocess.Popen(
        [sys.executable, "-m", "crmclient", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while kommo.world.count("contact") < 500:
        time.sleep(0.02)
    making.send_signal(signal.SIGINT)
    out, err = making.communicate(timeout=30)
    made = [json.loads(line) for line in out.splitlines()]
    assert making.returncode == 130
    assert "Traceback" not in err
    assert 500 <= len(made) < 4000
    assert f"interrupted: {len(made)} made; the last line sent is {len(made)}" in err
    assert {row["id"] for row in kommo.world.select("contact")} == {each["id"] for each in made}


@pytest.mark.e2e
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent another way there")
def test_ctrl_c_while_it_waits_for_a_line_ends_it_at_once(kommo: Running) -> None:
    words = ["create", "kommo", "contacts", "--base-url", kommo.base_url, "--yes"]
    making = subprocess.Popen(
        [sys.executable, "-m", "crmclient", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert making.stderr is not None
    assert making.stderr.readline().startswith("create contacts: Kommo")
    time.sleep(0.3)
    making.send_signal(signal.SIGINT)
    assert making.wait(timeout=20) == 130
    assert making.communicate() == ("", "interrupted: none made\n")


@pytest.mark.e2e
def test_an_account_that_takes_nothing_is_not_asked_again(kommo: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f'{{"name": "n{n}"}}\n' for n in range(900))
    monkeypatch.setenv("CRMCLIENT_TOKEN", "wrong")
    done = invoke(kommo, "create", "contacts", "--yes", stdin=text)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert kommo.stats.requests < 5


@pytest.mark.e2e
def test_what_makes_no_sense_is_said_before_anything_is_read(kommo: Running, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("name,phone\nx,y\n")
    for words, said in (
        (("create", "contacts", "nowhere.jsonl", "--yes"), "nowhere.jsonl cannot be read"),
        (("create", "contacts", "bad.csv", "--yes"), "line 1: 'phone' is no column"),
        (("create", "contacts", "--without", "phone", "--yes"), "a contact has no phone"),
    ):
        done = invoke(kommo, *words, stdin="")
        assert done.exit_code == 1
        assert said in done.stderr
    assert not invoke(kommo, "create", "contacts", "--yes", stdin="").exit_code
    assert CliRunner().invoke(commands(), ["create", "kommo", "users", "--account", "a"]).exit_code == 2
    with World(clock=SystemClock()) as world, served(face("electrum"), world, limits=False) as other:
        done = invoke(other, "create", "notes", "--yes", stdin='{"text": "x"}\n')
        assert done.exit_code == 1
        assert "Electrum has no note rows" in done.stderr
        assert other.stats.requests == 0


@pytest.mark.e2e
@pytest.mark.parametrize(
    "receipt, outcome",
    [
        (NotApplied(error=Unavailable("the server failed", status=503)), "not_applied"),
        (Unknown(error=AmbiguousWrite("the answer was lost")), "unknown"),
        (Made(id=7, issues=(Issue(field="company", rule="not done"),)), "partly_made"),
    ],
)
def test_whatever_became_of_a_row_is_said(
    kommo: Running, monkeypatch: pytest.MonkeyPatch, receipt: Any, outcome: str
) -> None:
    sent: list[int] = []

    async def create_many(self: Any, entities: list[Any], **more: Any) -> list[Any]:
        sent.append(len(entities))
        return [receipt] * len(entities)

    monkeypatch.setattr("crmclient.client.Collection.create_many", create_many)
    done = invoke(kommo, "create", "contacts", "--yes", stdin="".join(f'{{"name": "n{n}"}}\n' for n in range(900)))
    assert done.exit_code == 1
    assert {each["outcome"] for each in outcomes(done)} == {outcome}
    if outcome == "not_applied":
        # Nothing of a whole batch was taken: the next one would not be either.
        assert sent == [400]
        assert "error: the server failed [HTTP 503]" in done.stderr
        assert "stopped after line 400" in done.stderr
    else:
        assert sent == [400, 400, 100]
        assert f"900 {outcome.replace('_', ' ')}" in done.stderr
