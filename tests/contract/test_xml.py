"""The contract held against the XML API: edits that must send everything, notes that live only in details.

A few routes of that dialect, written as its adapter would, over canned answers in the vocabulary of the reference.
"""

from collections.abc import Mapping
from typing import Any

import pytest
from attrs import evolve
from canned import Server

from crmclient import Contact, Email, IncompleteRead, Kind, Label, Note, NotFound, Phone, Ref, Unsupported, Verb, flows
from crmclient.auth import Bearer
from crmclient.dialect import (
    ALL,
    CREATE,
    READ,
    Call,
    Context,
    Dialect,
    Filter,
    Getting,
    Listing,
    Made,
    Merging,
    Nested,
    Rate,
    Reply,
    Resource,
    Row,
    Writing,
    by_status,
)
from crmclient.errors import CRMError, Rejected, Unreadable
from crmclient.formats import FormsInXmlOut, form
from crmclient.paging import PageNumber

FORMAT = FormsInXmlOut()
PAGES = "/private/api"


def child(element: Any, tag: str) -> Any | None:
    return next((each for each in element["children"] if each["tag"] == tag), None)


def text(element: Any, tag: str) -> str | None:
    found = child(element, tag)
    return (found["text"] or None) if found else None


def parts(element: Any, tag: str) -> list[Any]:
    found = child(element, tag)
    return found["children"] if found else []


def page(name: str, **body: Any) -> Call:
    """Reading is a POST here; it is safe all the same."""
    return Call("POST", f"{PAGES}/{name}.php", body=body, safe=True, replayable=True)


def judge(call: Call, reply: Reply) -> CRMError | None:
    if reply.ok and isinstance(reply.body, dict) and (error := child(reply.body, "error")):
        return NotFound(error["text"]) if "не найден" in error["text"] else Rejected(error["text"])
    return by_status(call, reply)


def rows_of(tag: str) -> Any:
    def rows(reply: Reply) -> list[Any]:
        if child(reply.body, tag) is None:
            raise Unreadable(f"a list was due, with <{tag}>")
        return parts(reply.body, tag)

    return rows


def pages(reply: Reply) -> int | None:
    total = text(reply.body, "totalpages")
    return int(total) if total and total.isdecimal() else None


# ------------------------------------------------------------------------------------------------- a contact's codec

LOCATIONS = {"Work": Label.WORK, "Mobile": Label.MOBILE}
WORDS = {label: word for word, label in LOCATIONS.items()}


def decode_contact(row: Any, context: Context) -> Contact:
    sections = {each["tag"] for each in row["children"]}
    return Contact(
        id=int(text(row, "id") or 0),
        name=text(row, "name"),
        position=text(row, "position"),
        phones=tuple(
            Phone(text(each, "number") or "", label=LOCATIONS.get(text(each, "location") or "Work", Label.OTHER))
            for each in parts(row, "phones")
        ),
        emails=tuple(Email(text(each, "address") or "") for each in parts(row, "emails")),
        tags=[each["text"] for each in parts(row, "tags")],
        raw=row,
        unread=frozenset({"phones", "emails", "position", "tags"} - sections),
    )


def paired(values: list[tuple[str, str]], first: str, second: str) -> list[dict[str, str]]:
    return [{name: part} for value, label in values for name, part in ((first, value), (second, label))]


def encode_contact(contact: Contact, fields: frozenset[str], context: Context) -> dict[str, Any]:
    found: dict[str, Any] = {}
    data: dict[str, Any] = {}
    if "name" in fields:
        found["person_name"] = contact.name or ""
    if "position" in fields:
        found["person_position"] = contact.position or ""
    if "tags" in fields:
        found["tags"] = ",".join(tag.name for tag in contact.tags)
    if "phones" in fields:
        pairs = [(phone.value, WORDS.get(phone.label, "Work")) for phone in contact.phones]
        data["phone_numbers"] = paired(pairs, "number", "location")
    if "emails" in fields:
        data["email_addresses"] = paired([(email.value, "Work") for email in contact.emails], "address", "location")
    return {**found, **({"contact_data": data} if data else {})}


def whole_contact(reading: Any) -> dict[str, Any]:
    """The reading as the edit wants it: what the neutral model does not know (the company, web pages) travels too."""
    known = decode_contact(reading, Context())
    whole = encode_contact(known, frozenset({"name", "position", "tags", "phones", "emails"}), Context())
    company = child(reading, "company")
    whole["person_company_id"] = text(company, "id") or "0" if company else "0"
    whole["contact_data"]["web_addresses"] = [{"url": text(each, "url") or ""} for each in parts(reading, "webs")]
    return whole


SECTIONS = ("name", "position", "phones", "emails", "webs", "tags")


def lacks(reading: Any, change: Mapping[str, Any]) -> tuple[str, ...]:
    there = {each["tag"] for each in reading["children"]}
    return tuple(section for section in SECTIONS if section not in there)


def written(reply: Reply, rows: Any) -> tuple[Made[Any]]:
    if child(reply.body, "result") is None:
        raise Unreadable("neither a result nor an error")
    id = text(reply.body, "id")
    return (Made(id=int(id) if id else None),)


def detail(ref: Ref) -> Call:
    return page("contact_detail" if ref.kind is Kind.CONTACT else "deal_detail", ID=ref.id)


ONE_CONTACT = Getting(
    call=lambda id, target: detail(Ref(Kind.CONTACT, id)), row=lambda reply: child(reply.body, "contact")
)

CONTACTS = Resource(
    entity=Contact,
    vendor="contacts",
    decode=decode_contact,
    encode=encode_contact,
    fields={"name": ALL, "position": ALL, "phones": ALL, "emails": ALL, "tags": ALL},
    routes={
        Verb.LIST: Listing(call=page("contacts"), rows=rows_of("contacts")),
        Verb.GET: ONE_CONTACT,
        Verb.UPDATE: Merging(
            read=ONE_CONTACT,
            whole=whole_contact,
            lacks=lacks,
            write=Writing(
                method="POST",
                path=lambda row: f"{PAGES}/contact_add.php",
                wrap=lambda rows: {"ACTION": "EDIT", "ID": rows[0].id, "contact": rows[0].wire},
                unwrap=written,
            ),
        ),
    },
)


def decode_note(row: Any, context: Context) -> Note:
    return Note(id=int(text(row, "id") or 0), text=text(row, "body"), target=context.parent, raw=row)


def element_type(row: Row) -> int:
    assert row.target is not None
    return 1 if row.target.kind is Kind.CONTACT else 2


NOTES = Resource(
    entity=Note,
    vendor="notes",
    decode=decode_note,
    encode=lambda note, fields, context: {"BODY": note.text},
    fields={"text": ALL, "target": READ | CREATE},
    routes={
        Verb.LIST: Listing(
            rows=lambda reply: parts(reply.body, "notes"), nested=Nested(parents=(Kind.CONTACT, Kind.DEAL), of=detail)
        ),
        Verb.CREATE: Writing(
            method="POST",
            path=lambda row: f"{PAGES}/note_add.php",
            wrap=lambda rows: {
                "ACTION": "ADD_NOTE",
                "ID": rows[0].target.id if rows[0].target else None,
                "ELEMENT_TYPE": element_type(rows[0]),
                **rows[0].wire,
            },
            unwrap=written,
        ),
    },
)

XML = Dialect(
    name="xml",
    title="XML",
    host=None,
    format=FORMAT,
    paging=PageNumber(page="PAGEN_1", limit=("ELEMENT_COUNT", "ELEMENT_CONT"), size=2, pages=pages, in_body=True),
    rate=(Rate(7, 1),),
    auth=(Bearer(),),
    judge=judge,
    resources={Contact: CONTACTS, Note: NOTES},
)

# ------------------------------------------------------------------------------------------------------ canned answers

CONTACT = """
<contact><id>{id}</id><name>Ivan <!-- the boss --></name>{position}<company><id>7</id><name>Acme</name></company>
<phones><phone><number>+7 495 1</number><location>Work</location></phone>
<phone><number>+7 499 2</number><location>Mobile</location></phone></phones>
<emails><email><address>i@example.com</address><location>Work</location></email></emails>
<webs><web><url>http://example.com</url></web></webs><tags><tag>vip</tag></tags></contact>"""
POSITION = "<position>Director</position>"
NOTE = "<note><id>{id}</id><body>{text}</body></note>"


def xml(inner: str, status: int = 200) -> Reply:
    declared = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return Reply(status, body=FORMAT.decode(f"{declared}<root>{inner}</root>".encode(), "text/xml"))


def details(position: str = POSITION, notes: str = "") -> Any:
    def answer(call: Call) -> Reply:
        body = call.body
        if call.path.endswith("_detail.php"):
            return xml(
                CONTACT.format(id=body["ID"], position=position) + f"<notes>{notes.format(on=body['ID'])}</notes>"
            )
        if call.path.endswith("_add.php"):
            return xml(f"<result>true</result><id>{body['ID']}</id>")
        number = int(body["PAGEN_1"])
        listed = "".join(f"<contact><id>{10 * number + n}</id><name>N</name></contact>" for n in (1, 2))
        return xml(
            f"<onpage>2</onpage><totalpages>2</totalpages><currpage>{number}</currpage><contacts>{listed}</contacts>"
        )

    return answer


# -------------------------------------------------------------------------------------------------------------- tests


def test_an_edit_reads_the_detail_lays_the_change_over_it_and_writes_everything() -> None:
    server = Server(XML, details())
    contact = server.run(flows.get(XML, Contact, 5))
    assert contact.name == "Ivan"
    assert contact.phones == (Phone("+7 495 1"), Phone("+7 499 2", label=Label.MOBILE))

    server.calls.clear()
    changed = server.run(flows.update(XML, evolve(contact, position="CEO")))

    asked, sent = server.calls
    assert (asked.path, asked.body) == ("/private/api/contact_detail.php", {"ID": 5})
    assert sent.body == {
        "ACTION": "EDIT",
        "ID": 5,
        "contact": {
            "person_name": "Ivan",
            "person_position": "CEO",
            "tags": "vip",
            "person_company_id": "7",
            "contact_data": {
                "phone_numbers": [
                    {"number": "+7 495 1"},
                    {"location": "Work"},
                    {"number": "+7 499 2"},
                    {"location": "Mobile"},
                ],
                "email_addresses": [{"address": "i@example.com"}, {"location": "Work"}],
                "web_addresses": [{"url": "http://example.com"}],
            },
        },
    }
    assert b"contact%5Bcontact_data%5D%5Bphone_numbers%5D%5B1%5D%5Blocation%5D=Work" in form(sent.body)
    assert changed.position == "CEO"
    assert not sent.replayable


def test_a_second_edit_of_what_was_edited_sends_only_the_new_change_over_a_new_reading() -> None:
    server = Server(XML, details())
    contact = server.run(flows.get(XML, Contact, 5))
    changed = server.run(flows.update(XML, evolve(contact, position="CEO")))
    server.calls.clear()
    server.run(flows.update(XML, changed))
    assert server.calls == []
    server.run(flows.update(XML, evolve(changed, name="Ivan II")))
    assert server.calls[-1].body["contact"]["person_name"] == "Ivan II"
    # Not ours to repeat: the detail says what the position is now.
    assert server.calls[-1].body["contact"]["person_position"] == "Director"


def test_an_edit_is_refused_when_the_detail_lacks_a_section_it_would_erase() -> None:
    server = Server(XML, details(position=""))
    with pytest.raises(IncompleteRead, match="position") as refused:
        server.run(flows.update(XML, Contact(id=5, name="Ivan II")))
    assert refused.value.sections == ("position",)
    assert [call.path for call in server.calls] == ["/private/api/contact_detail.php"]


def test_overwrite_edits_all_the_same() -> None:
    server = Server(XML, details(position=""))
    server.run(flows.update(XML, Contact(id=5, name="Ivan II"), overwrite=True))
    assert server.calls[-1].body["contact"]["person_position"] == ""


def test_a_field_the_short_list_did_not_bring_is_unread_and_an_edit_does_not_empty_it() -> None:
    server = Server(XML, details())
    short = server.walk(flows.listing(XML, Contact))[0]
    assert short.unread == {"phones", "emails", "position", "tags"}
    server.calls.clear()
    server.run(flows.update(XML, evolve(short, name="Renamed")))
    sent = server.calls[-1].body["contact"]
    assert sent["person_name"] == "Renamed"
    assert sent["contact_data"]["phone_numbers"]


def test_a_contact_that_is_gone_is_not_found() -> None:
    server = Server(XML, lambda call: xml("<error>Контакт не найден</error>"))
    with pytest.raises(NotFound):
        server.run(flows.get(XML, Contact, 5))


def test_notes_of_one_contact_are_read_from_its_detail() -> None:
    server = Server(XML, details(notes=NOTE.format(id=3, text="called") + NOTE.format(id=4, text="")))
    notes = server.walk(flows.listing(XML, Note, Filter(target=Ref(Kind.CONTACT, 5))))
    assert [(note.id, note.text, note.target) for note in notes] == [
        (3, "called", Ref(Kind.CONTACT, 5)),
        (4, None, Ref(Kind.CONTACT, 5)),
    ]
    assert len(server.calls) == 1


def test_all_notes_are_read_by_walking_the_parents_and_opening_each_once() -> None:
    server = Server(XML, details(notes="<note><id>1{on}</id><body>on {on}</body></note>"))
    notes = server.walk(flows.listing(XML, Note))
    assert [(note.text, note.target.id) for note in notes] == [
        ("on 11", 11),
        ("on 12", 12),
        ("on 21", 21),
        ("on 22", 22),
    ]
    opened = [call.body["ID"] for call in server.calls if call.path.endswith("_detail.php")]
    assert opened == [11, 12, 21, 22]
    # The list says how many pages there are, and what lies beyond the last is the last again: it is never asked for.
    assert [call.body["PAGEN_1"] for call in server.calls if call.path.endswith("contacts.php")] == ["1", "2"]


def both(server: Server, dialect: Dialect = XML, **more: Any) -> list[Any]:
    return server.walk(flows.together(dialect, (Contact, Note), **more))


def test_parents_and_what_is_under_them_come_from_one_opening_of_each() -> None:
    server = Server(XML, details(notes="<note><id>1{on}</id><body>on {on}</body></note>"))
    found = both(server)
    assert [row.ref for row in found[:4]] == [
        Ref(Kind.CONTACT, 11),
        Ref(Kind.NOTE, 111),
        Ref(Kind.CONTACT, 12),
        Ref(Kind.NOTE, 112),
    ]
    # As the card tells them and not the list, which tells names only.
    assert all(row.phones and not row.unread for row in found if isinstance(row, Contact))
    opened = [call.body["ID"] for call in server.calls if call.path.endswith("_detail.php")]
    assert opened == [11, 12, 21, 22]
    assert server.run(flows.cost(flows.together(XML, (Contact, Note)))) == 2 + 4


def test_a_parent_that_opening_does_not_tell_comes_as_it_was_listed() -> None:
    elsewhere = evolve(NOTES.routes[Verb.LIST], nested=Nested(parents=(Kind.CONTACT,), of=lambda ref: detail(ref)))
    apart = evolve(ONE_CONTACT, call=lambda id, target: page("contact_card", ID=id))
    dialect = evolve(
        XML,
        resources={
            Contact: evolve(CONTACTS, routes={**CONTACTS.routes, Verb.GET: apart}),
            Note: evolve(NOTES, routes={**NOTES.routes, Verb.LIST: elsewhere}),
        },
    )
    server = Server(dialect, details(notes="<note><id>1{on}</id></note>"))
    people = [row for row in both(server, dialect) if isinstance(row, Contact)]
    assert [(row.id, bool(row.unread)) for row in people] == [(11, True), (12, True), (21, True), (22, True)]
    assert not any("contact_card" in call.path for call in server.calls)


def test_one_parent_and_what_is_under_it_is_one_opening() -> None:
    server = Server(XML, details(notes=NOTE.format(id=3, text="called")))
    assert [row.ref for row in both(server, target=Ref(Kind.CONTACT, 5))] == [Ref(Kind.CONTACT, 5), Ref(Kind.NOTE, 3)]
    assert len(server.calls) == 1


def test_a_parent_deleted_meanwhile_takes_its_notes_with_it() -> None:
    canned = details(notes=NOTE.format(id=3, text="called"))

    def answer(call: Call) -> Reply:
        gone = call.path.endswith("_detail.php") and call.body["ID"] == 11
        return xml("<error>Контакт не найден</error>") if gone else canned(call)

    notes = Server(XML, answer).walk(flows.listing(XML, Note))
    assert [note.target.id for note in notes] == [12, 21, 22]


def test_a_note_says_what_it_hangs_on_when_it_is_written() -> None:
    server = Server(XML, lambda call: xml("<result>true</result><id>9</id>"))
    note = server.run(flows.create(XML, Note(text="called", target=Ref(Kind.DEAL, 7))))
    assert note.id == 9
    assert server.calls[0].body == {"ACTION": "ADD_NOTE", "ID": 7, "ELEMENT_TYPE": 2, "BODY": "called"}


def test_notes_under_what_the_dialect_has_no_notes_of_are_refused_before_anything_is_sent() -> None:
    server = Server(XML, details())
    with pytest.raises(Unsupported, match="contact, deal"):
        server.walk(flows.listing(XML, Note, Filter(target=Ref(Kind.COMPANY, 5))))
    assert server.calls == []


def test_one_note_cannot_be_read_alone() -> None:
    with pytest.raises(Unsupported, match="cannot get notes"):
        Server(XML, details()).run(flows.get(XML, Note, 5))
