"""Rows go in and out by the line: what was exported comes back as it was, and no line is written that was not meant."""

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmclient import Company, Contact, Deal, FieldValue, Invalid, Kind, Link, Money, Note, Phone, Ref, Task
from crmclient.cli.lines import BadFile, Line, cells, columns, csv_lines, csv_row, guarded, json_lines, unguarded
from crmclient.entities import FieldType, Label, NoteKind, Outcome
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


@settings(max_examples=100, deadline=None)
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


@settings(max_examples=60, deadline=None)
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
        ("name,phone\n", "'phone' is no column; the columns of a contact are id, owner"),
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
