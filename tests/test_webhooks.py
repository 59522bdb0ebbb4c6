"""What vendors send is verified in constant time and read into partial entities; what is no delivery is refused."""

import hmac
import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from importlib import import_module

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from crmclient import (
    AuthFailed,
    Contact,
    Deal,
    FieldType,
    IncompleteRead,
    Kind,
    Label,
    Link,
    Money,
    NoteKind,
    Outcome,
    Ref,
    Secret,
    Tag,
    Unreadable,
    flows,
)
from crmclient.dialect import Context, MissingPart, Need
from crmclient.entities import field_names
from crmclient.formats import form
from crmclient.vocabulary import Account, Field, Option
from crmclient.webhooks import (
    Action,
    Delivery,
    Secrets,
    Word,
    amount,
    by_token,
    form_of,
    json_of,
    lifted,
    partial,
    rows_of,
    text,
    whole,
)
from crmclient_amocrm.webhooks import WEBHOOK as AMOCRM
from crmclient_electrum.webhooks import EVENTS
from crmclient_electrum.webhooks import WEBHOOK as ELECTRUM
from crmclient_kommo.webhooks import WEBHOOK as KOMMO

FORM = {"content-type": "application/x-www-form-urlencoded"}
JSON = {"content-type": "application/json; charset=utf-8"}
ACCOUNT = {"account": {"subdomain": "acme", "id": 300, "_links": {"self": "https://acme.kommo.com"}}}

# Both read the same deliveries; what differs is the words of the entities' params.
BOTH = pytest.mark.parametrize("webhook", [KOMMO, AMOCRM], ids=["kommo", "amocrm"])


def posted(tree, headers=FORM):
    body = json.dumps(tree).encode() if headers is JSON else form(tree)
    return Delivery(method="POST", headers=headers, body=body)


def raw(body: str):
    return Delivery(method="POST", headers=FORM, body=body.replace("\n", "&").encode())


def events(webhook, tree, headers=FORM, context=None):
    return webhook.read(posted(tree, headers), context or Context())


def one(webhook, tree, headers=FORM, context=None):
    (event,) = events(webhook, tree, headers, context)
    assert event.problem is None, event.problem
    return event


def told(entity):
    """The neutral fields the delivery brought."""
    return {name: getattr(entity, name) for name in field_names(type(entity)) if name not in entity.unread}


def at(epoch):
    return datetime.fromtimestamp(epoch, UTC)


def user(id):
    return Ref(Kind.USER, id)


LEAD = {
    "id": 15,
    "name": "Крыша",
    "status_id": 67,
    "price": 1000,
    "responsible_user_id": 9,
    "last_modified": 1726572758,
    "modified_user_id": 8,
    "created_user_id": 7,
    "date_create": 1726572752,
    "pipeline_id": 85,
    "account_id": 300,
    "created_at": 1726572752,
    "updated_at": 1726572758,
}
CONTACT = {
    "id": 17,
    "name": "Иван",
    "responsible_user_id": 9,
    "date_create": 1726573127,
    "last_modified": 1726573127,
    "created_user_id": 7,
    "modified_user_id": 7,
    "account_id": 300,
    "created_at": 1726573127,
    "updated_at": 1726573127,
    "type": "contact",
}
TASK = {
    "id": 156,
    "element_id": 15,
    "element_type": 2,
    "task_type": 1,
    "date_create": "2024-09-17 13:07:29",
    "text": "Позвонить",
    "status": 0,
    "account_id": 300,
    "created_user_id": 7,
    "last_modified": "2024-09-17 13:07:29",
    "responsible_user_id": 9,
    "complete_till": "2025-10-02 20:59:00",
    "created_at": 1726578449,
    "updated_at": 1726578449,
    "complete_before": 1759438740,
}
NOTE = {
    "text": "сказал «да»",
    "attachement": "",
    "date_create": "2024-09-17 16:38:11",
    "note_type": 4,
    "element_type": 2,
    "element_id": 15,
    "catalog_id": 0,
    "group_id": 0,
    "timestamp_x": "2024-09-17 16:38:49",
    "account_id": 300,
    "metadata": '{"event_source":{"id":7,"author_name":"N","type":1}}',
    "created_by": 7,
    "modified_by": 8,
    "main_user_id": 9,
    "id": 460,
    "created_at": 1726580291,
    "updated_at": 1726580329,
}

# ---------------------------------------------------------------------------------------------------------- verifying


@pytest.mark.parametrize(
    "delivery",
    [
        Delivery(method="POST", path="/hooks/s3cret"),
        Delivery(method="POST", path="/hooks/s3cret/"),
        Delivery(method="POST", path="/hooks/kommo", query={"token": "s3cret"}),
        Delivery(method="POST", path="/hooks/новый"),
    ],
)
def test_a_token_stands_in_the_path_or_the_query(delivery):
    by_token(delivery, Secrets(token=["s3cret", Secret("новый")]))


@pytest.mark.parametrize(
    "delivery",
    [
        Delivery(method="POST"),
        Delivery(method="POST", path="/"),
        Delivery(method="POST", path="/hooks/s3cre"),
        Delivery(method="POST", path="/hooks/S3CRET"),
        Delivery(method="POST", path="/hooks/s3cret "),
        Delivery(method="POST", path="/s3cret/hooks"),
        Delivery(method="POST", path="/hooks/\ud800"),
        Delivery(method="POST", query={"token": ""}),
        Delivery(method="POST", query={"Token": "s3cret"}),
    ],
)
def test_a_wrong_token_is_refused_without_details(delivery):
    with pytest.raises(AuthFailed) as refused:
        by_token(delivery, Secrets(token="s3cret"))
    assert str(refused.value) == "the delivery does not prove where it comes from"


@pytest.mark.parametrize("secrets", [Secrets(), Secrets(token=""), Secrets(signing="s3cret"), Secrets(token=["", ""])])
@pytest.mark.parametrize("path", ["", "/", "/hooks/s3cret"])
def test_without_a_token_of_ours_nothing_is_verified(secrets, path):
    with pytest.raises(AuthFailed):
        by_token(Delivery(method="POST", path=path), secrets)


def test_secrets_and_bodies_show_themselves_in_no_repr():
    shown = repr((Secrets(token="s3cret", signing="s3cret"), Delivery(method="POST", query={"token": "s3cret"})))
    assert "s3cret" not in shown


@pytest.mark.parametrize("webhook", [KOMMO, AMOCRM, ELECTRUM], ids=["kommo", "amocrm", "electrum"])
def test_a_post_is_proved_by_its_token_and_by_no_signature(webhook):
    webhook.verify(Delivery(method="POST", path="/in/t"), Secrets(token="t"))
    signed = Delivery(method="POST", query=switched_off("secret").query)
    with pytest.raises(AuthFailed):
        webhook.verify(signed, Secrets(token="t", signing="secret"))


CLIENT = "00000000-0000-4000-8000-000000000000"


def switched_off(secret, **changed):
    signature = hmac.new(secret.encode(), f"{CLIENT}|30000001".encode(), "sha256").hexdigest()
    return Delivery(
        method="GET", query={"client_uuid": CLIENT, "account_id": "30000001", "signature": signature, **changed}
    )


def test_kommo_signs_that_an_integration_was_switched_off():
    known = "1b25ddd5a655cc8d711c4b66cc8cebd6093b5b221f81c65f08d93bf09384c256"
    delivery = switched_off("secret")
    assert delivery.query["signature"] == known
    KOMMO.verify(delivery, Secrets(signing="secret"))
    KOMMO.verify(delivery, Secrets(signing=["newer", "secret"]))
    (event,) = KOMMO.read(delivery, Context())
    assert (event.action, event.word, event.account) == (Action.OTHER, "integration.disabled", 30000001)
    assert event.entity is None
    assert event.ref is None


@pytest.mark.parametrize(
    "delivery",
    [
        switched_off("another"),
        switched_off("secret", account_id="30000002"),
        switched_off("secret", client_uuid=CLIENT.replace("4", "5")),
        switched_off("secret", signature=""),
        switched_off("secret", signature=switched_off("secret").query["signature"].upper()),
        switched_off("secret", signature=" " + switched_off("secret").query["signature"]),
        switched_off("secret", signature="я"),
        switched_off("secret", account_id=""),
        Delivery(method="GET"),
        Delivery(method="GET", query={"token": "secret"}),
        Delivery(method="GET", path="/in/secret"),
    ],
)
def test_a_forged_signature_is_refused(delivery):
    with pytest.raises(AuthFailed):
        KOMMO.verify(delivery, Secrets(signing="secret", token="secret"))


def test_without_a_signing_secret_no_signature_is_right():
    empty = hmac.new(b"", f"{CLIENT}|30000001".encode(), "sha256").hexdigest()
    for secrets in (Secrets(), Secrets(signing=""), Secrets(token="secret")):
        with pytest.raises(AuthFailed):
            KOMMO.verify(switched_off("secret"), secrets)
        with pytest.raises(AuthFailed):
            KOMMO.verify(switched_off("secret", signature=empty), secrets)


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("webhook", [KOMMO, AMOCRM, ELECTRUM], ids=["kommo", "amocrm", "electrum"])
@pytest.mark.parametrize(
    "delivery",
    [
        Delivery(method="POST"),
        Delivery(method="POST", headers=FORM),
        Delivery(method="POST", headers=JSON),
        Delivery(method="PUT", headers=FORM, body=b"leads[add][0][id]=1"),
        Delivery(method="GET", headers=JSON, body=b'{"event":"deal.won"}'),
        Delivery(method="POST", headers={"content-type": "multipart/form-data"}, body=b"leads[add][0][id]=1"),
        Delivery(method="POST", headers={"content-type": "text/plain"}, body=b'{"event":"deal.won"}'),
        Delivery(method="POST", headers={**FORM, "content-encoding": "gzip"}, body=b"leads[add][0][id]=1"),
        Delivery(method="POST", headers=FORM, body="leads[add][0][name]=Иван".encode("cp1251")),
        Delivery(method="POST", headers=FORM, body=b"leads=1&leads[add][0][id]=1"),
        Delivery(method="POST", headers=FORM, body=b"leads" + b"[x]" * 50_000 + b"=1"),
        Delivery(method="POST", headers=FORM, body=b"account[id]=1&account[subdomain]=acme"),
        Delivery(method="POST", headers=JSON, body=b"[]"),
        Delivery(method="POST", headers=JSON, body=b"<html>"),
        Delivery(method="POST", headers=JSON, body=b'{"event":NaN}'),
        Delivery(method="POST", headers=JSON, body=b'{"a":' * 50 + b"1" + b"}" * 50),
        Delivery(method="POST", headers=JSON, body=b"[" * 100_000),
        Delivery(method="POST", headers=JSON, body=b'{"a":"' + b"x" * (1 << 20) + b'"}'),
    ],
)
def test_what_is_no_delivery_is_unreadable(webhook, delivery):
    with pytest.raises(Unreadable):
        webhook.read(delivery, Context())


def test_the_body_of_a_delivery_is_of_the_type_that_was_due():
    assert form_of(raw("a[b]=1")) == {"a": {"b": "1"}}
    assert json_of(Delivery(method="POST", headers=JSON, body=b'{"a":[{"b":1.5}]}')) == {"a": [{"b": Decimal("1.5")}]}
    with pytest.raises(Unreadable, match=r"application/x-www-form-urlencoded was due, not of application/json"):
        form_of(Delivery(method="POST", headers=JSON, body=b"{}"))
    with pytest.raises(Unreadable, match="no type"):
        json_of(Delivery(method="POST", body=b"{}"))


trees = st.recursive(
    st.sampled_from(["", "0", "1", "142", "-5", "x", "99999999999999999999", "9999999999999999", "я", "drive/a/b/c"]),
    lambda below: st.dictionaries(
        st.sampled_from(["0", "1", "id", "values", "value", "enum", "code", "tags", "note", "type", "ID", "subtype"]),
        below,
        max_size=4,
    ),
    max_leaves=8,
)
hook_words = st.sampled_from(
    [
        *("id", "name", "price", "status_id", "created_at", "updated_at", "tags", "custom_fields", "linked_leads_id"),
        *("linked_company_id", "element_type", "element_id", "note_type", "text", "attachement", "note", "result"),
        *("main_user", "old_responsible_user_id", "responsible_user_id", "complete_before", "status", "action_close"),
        "type",
    ]
)
hooks = st.dictionaries(
    st.sampled_from(["leads", "contacts", "task", "unsorted", "account", "companies", "notes", "add"]),
    st.dictionaries(
        st.sampled_from(["add", "update", "delete", "note", "status", "0", "chat"]),
        st.one_of(st.dictionaries(st.sampled_from(["0", "7"]), st.dictionaries(hook_words, trees)), trees),
    ),
    max_size=3,
)


@BOTH
@settings(max_examples=60)
@given(hooks)
def test_whatever_a_form_holds_it_is_read_or_refused(webhook, tree):
    try:
        found = webhook.read(posted(tree), Context(parts={"fields:deal": DEFINED, "account": HERE}))
    except Unreadable:
        return
    for event in found:
        assert event.raw is not None
        assert (event.entity is None) or event.ref == event.entity.ref
        assert event.problem is None or event.entity is None
        if event.kind is not None:
            assert event.entity is not None or event.problem is not None


# --------------------------------------------------------------------------------------------- leads, contacts, companies


@BOTH
def test_a_lead_that_was_added_brings_what_came_and_the_rest_is_unread(webhook):
    event = one(webhook, {**ACCOUNT, "leads": {"add": [LEAD]}})
    assert (event.action, event.word, event.kind, event.ref) == (
        Action.ADDED,
        "leads.add",
        Kind.DEAL,
        Ref(Kind.DEAL, 15),
    )
    assert (event.account, event.at) == (300, at(1726572758))
    assert told(event.entity) == {
        "name": "Крыша",
        "price": Money(1000),
        "pipeline": Ref(Kind.PIPELINE, 85),
        "stage": Ref(Kind.STAGE, 67),
        "outcome": Outcome.OPEN,
        "owner": user(9),
        "created_by": user(7),
        "updated_by": user(8),
        "created_at": at(1726572752),
        "updated_at": at(1726572758),
    }
    assert {"contacts", "company", "tags", "fields", "closed_at", "deleted"} <= event.entity.unread
    assert event.entity.raw["name"] == "Крыша"
    assert event.raw["id"] == "15"


@BOTH
def test_an_empty_name_is_read_and_empty(webhook):
    entity = one(webhook, {"leads": {"add": [{**LEAD, "name": ""}]}}).entity
    assert entity.name is None
    assert "name" not in entity.unread


@BOTH
def test_a_hook_of_2016_has_its_dates_under_older_names_and_the_account_in_the_row(webhook):
    old = {name: part for name, part in LEAD.items() if name not in ("created_at", "updated_at")}
    event = one(webhook, {"leads": {"add": [old]}, "account": {"subdomain": "acme"}})
    assert told(event.entity)["created_at"] == at(1726572752)
    assert event.at == at(1726572758)
    assert event.account == 300
    bare = one(webhook, {"leads": {"delete": [{"id": 42}]}, "account": {"subdomain": "acme"}})
    assert bare.account == "acme"
    assert bare.at is None


@BOTH
@pytest.mark.parametrize(
    "action, row, expected, extra",
    [
        ("update", {}, Action.UPDATED, {}),
        ("update", {"old_status_id": 66}, Action.UPDATED, {"old_stage": Ref(Kind.STAGE, 66)}),
        ("restore", {}, Action.RESTORED, {}),
        ("status", {"old_status_id": 66}, Action.STAGE_CHANGED, {"old_stage": Ref(Kind.STAGE, 66)}),
        ("status", {"status_id": 142, "old_status_id": 66}, Action.WON, {"old_stage": Ref(Kind.STAGE, 66)}),
        ("status", {"status_id": 143}, Action.LOST, {}),
        (
            "responsible",
            {"old_responsible_user_id": 5, "old_status_id": 66},
            Action.RESPONSIBLE_CHANGED,
            {"old_owner": user(5), "old_stage": Ref(Kind.STAGE, 66)},
        ),
        ("chat", {}, Action.OTHER, {}),
    ],
)
def test_what_happened_to_a_lead(webhook, action, row, expected, extra):
    event = one(webhook, {"leads": {action: [{**LEAD, **row}]}})
    assert (event.action, event.word, event.extra) == (expected, f"leads.{action}", extra)
    assert told(event.entity).get("deleted") is (False if action == "restore" else None)


@BOTH
def test_a_deleted_lead_has_three_ids_and_is_deleted(webhook):
    event = one(webhook, {"leads": {"delete": [{"id": 15, "status_id": 67, "pipeline_id": 85}]}})
    assert event.action is Action.DELETED
    assert set(told(event.entity)) == {"pipeline", "stage", "outcome", "deleted"}
    assert event.entity.deleted


@BOTH
def test_a_hook_of_a_stage_brings_ids_only(webhook):
    row = {"id": 9, "status_id": 45, "pipeline_id": 50, "old_status_id": 44, "old_pipeline_id": 51}
    event = one(webhook, {"leads": {"status": [row]}, **ACCOUNT})
    assert event.extra == {"old_stage": Ref(Kind.STAGE, 44), "old_pipeline": Ref(Kind.PIPELINE, 51)}
    assert set(told(event.entity)) == {"pipeline", "stage", "outcome"}


@BOTH
def test_companies_come_under_contacts_and_say_so(webhook):
    linked = {"linked_leads_id": {7480: {"ID": 7480}, 7481: {"ID": 7481}}}
    event = one(webhook, {"contacts": {"update": [{**CONTACT, **linked, "type": "company"}]}})
    assert event.ref == Ref(Kind.COMPANY, 17)
    assert event.entity.deals == (Link(Ref(Kind.DEAL, 7480)), Link(Ref(Kind.DEAL, 7481)))
    assert {"contacts", "phones", "fields"} <= event.entity.unread
    assert one(webhook, {"contacts": {"delete": [{"id": 1, "type": "company"}]}}).ref == Ref(Kind.COMPANY, 1)
    assert one(webhook, {"contacts": {"delete": [{"id": 1, "type": "contact"}]}}).ref == Ref(Kind.CONTACT, 1)


@BOTH
def test_a_contact_brings_its_company_its_leads_and_its_tags(webhook):
    row = {
        **CONTACT,
        "company_name": "Рога",
        "linked_company_id": 108,
        "tags": [{"id": 1, "name": "новый"}, {"id": 2, "name": "тёплый"}],
        "linked_leads_id": {75: {"ID": 75}},
    }
    entity = one(webhook, {"contacts": {"add": [row]}}).entity
    assert isinstance(entity, Contact)
    assert entity.company == Link(Ref(Kind.COMPANY, 108))
    assert entity.deals == (Link(Ref(Kind.DEAL, 75)),)
    assert entity.tags == (Tag("новый"), Tag("тёплый"))
    assert {"first_name", "last_name", "phones", "emails", "position"} <= entity.unread
    assert not entity.unread & {"name", "company", "deals", "tags"}


@BOTH
def test_a_new_owner_arrives_as_an_update_with_the_old_one_beside(webhook):
    event = one(webhook, {"contacts": {"update": [{**CONTACT, "old_responsible_user_id": 5}]}})
    assert (event.action, event.extra) == (Action.RESPONSIBLE_CHANGED, {"old_owner": user(5)})
    same = one(webhook, {"contacts": {"update": [{**CONTACT, "old_responsible_user_id": 9}]}})
    assert same.action is Action.UPDATED


@BOTH
def test_several_rows_and_families_share_one_delivery_in_their_order(webhook):
    found = webhook.read(
        raw(
            "account[id]=987\nleads[update][10][id]=3\nleads[update][2][id]=2\nleads[update][0][id]=1\n"
            "contacts[add][0][id]=456\nleads[add][0][id]=4\ntask[delete][0][id]=5"
        ),
        Context(),
    )
    assert [event.ref for event in found] == [
        *(Ref(Kind.DEAL, id) for id in (1, 2, 3, 4)),
        Ref(Kind.CONTACT, 456),
        Ref(Kind.TASK, 5),
    ]
    assert {event.account for event in found} == {987}


@BOTH
def test_a_bad_row_costs_the_others_nothing(webhook):
    first, second, third, fourth = events(
        webhook,
        {
            "leads": {
                "update": [{**LEAD, "price": "много"}, LEAD, {"name": "без id"}, {**LEAD, "tags": {"0": {"id": "x"}}}]
            }
        },
    )
    assert first.ref == fourth.ref == Ref(Kind.DEAL, 15)
    assert first.entity is fourth.entity is third.ref is None
    assert "price" in str(first.problem)
    assert first.raw["price"] == "много"
    assert second.entity.price == Money(1000)
    assert "does not say which deal" in str(third.problem)


@BOTH
def test_an_option_that_is_no_option_is_a_problem_of_its_row(webhook):
    (event,) = webhook.read(
        raw(
            "contacts[add][0][id]=1\ncontacts[add][0][custom_fields][0][id]=2\n"
            "contacts[add][0][custom_fields][0][code]=PHONE\n"
            "contacts[add][0][custom_fields][0][values][0][value]=7\n"
            "contacts[add][0][custom_fields][0][values][0][enum][x]=1"
        ),
        Context(),
    )
    assert event.ref == Ref(Kind.CONTACT, 1)
    assert "enum" in str(event.problem)


@BOTH
@pytest.mark.parametrize("body", ["leads[add]=1", "leads[add][0]=1", "leads[add][0][]=1", "leads[add][id]="])
def test_a_row_that_is_none_is_an_event_with_its_problem(webhook, body):
    (event,) = webhook.read(raw(body), Context())
    assert event.problem is not None
    assert event.ref is None


@BOTH
def test_a_row_without_a_list_around_it_is_read(webhook):
    (event,) = webhook.read(raw("leads[status][id]=25\nleads[status][status_id]=142"), Context())
    assert (event.action, event.ref) == (Action.WON, Ref(Kind.DEAL, 25))


@BOTH
@pytest.mark.parametrize(
    "body, word",
    [
        ("unsorted[delete][0][action]=accept\nunsorted[delete][0][uid]=f5\nunsorted[delete][0][category]=mail", None),
        ("talk[add][0][talk_id]=191\ntalk[add][0][created_at]=1726581298", None),
        ("message[add][0][id]=d3-00\nmessage[add][0][author][type]=external", None),
        ("catalogs[add][0][id]=347\ncatalogs[add][0][catalog_id]=32", None),
        ("customers[note][0][note][id]=1", None),
        ("add[0][id]=6955\nadd[0][type]=waba", "add"),
        ("something[new][0][id]=1", None),
    ],
)
def test_what_the_model_does_not_name_is_told_and_kept(webhook, body, word):
    (event,) = webhook.read(raw(body + "\naccount[id]=300"), Context())
    assert (event.action, event.kind, event.ref, event.entity) == (Action.OTHER, None, None, None)
    assert event.word == (word or body.partition("[0]")[0].replace("[", ".").replace("]", ""))
    assert event.raw
    assert event.account == 300


# ------------------------------------------------------------------------------------------------------- custom fields

SHAPES = [
    {"id": 1, "name": "Текст", "values": [{"value": "слово"}]},
    {"id": 2, "name": "Число", "values": [{"value": "12.50"}]},
    {"id": 3, "name": "Флаг", "values": [{"value": "1"}]},
    {"id": 4, "name": "Список", "values": [{"value": "два", "enum": "908"}]},
    {"id": 5, "name": "Дата", "values": ["1729717200"]},
    {"id": 6, "name": "Выбор", "values": {"value": "2", "enum": "566"}},
    {"id": 7, "name": "Рождение", "values": [{"value": "12.01.1980"}]},
    {"id": 8, "name": "Много", "values": [{"value": "а", "enum": "1"}, {"value": "б", "enum": "2"}]},
]
TYPES = {
    1: ("text", 1, FieldType.TEXT),
    2: ("numeric", 2, FieldType.NUMBER),
    3: ("checkbox", 3, FieldType.BOOL),
    4: ("select", 4, FieldType.SELECT),
    5: ("date", 6, FieldType.DATE),
    6: ("radiobutton", 10, FieldType.RADIO),
    7: ("birthday", 14, FieldType.BIRTHDAY),
    8: ("multiselect", 5, FieldType.MULTISELECT),
}
DEFINED = {
    id: Field(id=id, entity=Kind.DEAL, name=word, type=type, raw_type=word) for id, (word, _, type) in TYPES.items()
}
HERE = Account(id=300, zone=timezone(timedelta(hours=3)))


@BOTH
def test_without_the_accounts_fields_values_stay_text_and_nothing_is_guessed(webhook):
    entity = one(webhook, {"leads": {"add": [{**LEAD, "custom_fields": SHAPES}]}}).entity
    assert "fields" not in entity.unread
    assert [value.field for value in entity.fields] == [Ref(Kind.FIELD, id) for id in range(1, 9)]
    assert [value.values for value in entity.fields] == [
        ("слово",),
        ("12.50",),
        ("1",),
        ("два",),
        ("1729717200",),
        ("2",),
        ("12.01.1980",),
        ("а", "б"),
    ]


def test_where_the_shape_tells_the_type_it_is_told():
    entity = one(KOMMO, {"leads": {"add": [{**LEAD, "custom_fields": SHAPES}]}}).entity
    shown = {value.name: value.type for value in entity.fields if value.type is not FieldType.OTHER}
    assert shown == {
        "Список": FieldType.SELECT,
        "Выбор": FieldType.RADIO,
        "Много": FieldType.MULTISELECT,
    }


@BOTH
def test_with_the_accounts_fields_values_are_what_the_api_gives(webhook):
    context = Context(parts={"fields:deal": DEFINED, "account": HERE})
    entity = one(webhook, {"leads": {"add": [{**LEAD, "custom_fields": SHAPES}]}}, context=context).entity
    assert {value.field.id: (value.type, value.values) for value in entity.fields} == {
        1: (FieldType.TEXT, ("слово",)),
        2: (FieldType.NUMBER, (Decimal("12.50"),)),
        3: (FieldType.BOOL, (True,)),
        4: (FieldType.SELECT, ("два",)),
        # Midnight of the account's zone, which is the day before in UTC.
        5: (FieldType.DATE, (date(2024, 10, 24),)),
        6: (FieldType.RADIO, ("2",)),
        7: (FieldType.BIRTHDAY, (date(1980, 1, 12),)),
        8: (FieldType.MULTISELECT, ("а", "б")),
    }


@BOTH
def test_a_day_asks_for_the_accounts_zone(webhook):
    with pytest.raises(MissingPart) as missing:
        events(
            webhook,
            {"leads": {"add": [{**LEAD, "custom_fields": SHAPES}]}},
            context=Context(parts={"fields:deal": DEFINED}),
        )
    assert missing.value.part == "account"


REACHABLE = [
    {"id": 71, "name": "Телефон", "values": [{"value": "+7900", "enum": "552"}], "code": "PHONE"},
    {"id": 72, "name": "Email", "values": [{"value": "i@example.com", "enum": "553"}], "code": "EMAIL"},
    {"id": 73, "name": "Должность", "values": [{"value": "директор"}], "code": "POSITION"},
]


@BOTH
def test_phones_emails_and_the_position_are_their_own_fields(webhook):
    entity = one(webhook, {"contacts": {"add": [{**CONTACT, "custom_fields": REACHABLE}]}}).entity
    assert [(phone.value, phone.label, phone.raw_label) for phone in entity.phones] == [("+7900", Label.OTHER, "552")]
    assert [email.value for email in entity.emails] == ["i@example.com"]
    assert entity.position == "директор"
    assert "fields" in entity.unread
    assert not entity.unread & {"phones", "emails", "position"}
    only = one(webhook, {"contacts": {"add": [{**CONTACT, "custom_fields": REACHABLE[:1]}]}}).entity
    assert {"emails", "position"} <= only.unread


@BOTH
def test_labels_are_known_where_the_accounts_fields_are(webhook):
    options = (Option(id=551, value="WORK", code="WORK"), Option(id=552, value="MOB", code="MOB"))
    known = {71: Field(id=71, entity=Kind.CONTACT, code="PHONE", type=FieldType.MULTITEXT, options=options)}
    context = Context(parts={"fields:contact": known})
    entity = one(webhook, {"contacts": {"add": [{**CONTACT, "custom_fields": REACHABLE[:1]}]}}, context=context).entity
    assert [phone.label for phone in entity.phones] == [Label.MOBILE]


# --------------------------------------------------------------------------------------------------------------- tasks


@BOTH
def test_a_task_is_singular_and_its_text_dates_are_never_read(webhook):
    event = one(webhook, {"task": {"add": [TASK]}, **ACCOUNT})
    assert (event.action, event.word, event.ref) == (Action.ADDED, "task.add", Ref(Kind.TASK, 156))
    assert told(event.entity) == {
        "text": "Позвонить",
        "type": Ref(Kind.TASK_TYPE, 1),
        "due": at(1759438740),
        "done": False,
        "target": Ref(Kind.DEAL, 15),
        "owner": user(9),
        "created_by": user(7),
        "created_at": at(1726578449),
        "updated_at": at(1726578449),
    }
    old = {name: part for name, part in TASK.items() if name not in ("created_at", "updated_at", "complete_before")}
    event = one(webhook, {"task": {"add": [old]}})
    assert {"due", "created_at", "updated_at"} <= event.entity.unread
    assert event.at is None


@BOTH
@pytest.mark.parametrize(
    "row, action, extra",
    [
        ({"action_close": 0, "old_text": "Написать"}, Action.UPDATED, {"old_text": "Написать"}),
        ({"action_close": 1, "status": 1, "old_text": "то же"}, Action.COMPLETED, {"old_text": "то же"}),
        ({"action_close": 0, "status": 1, "result": {"id": 46, "text": "ответил"}}, Action.UPDATED, {}),
        ({"old_responsible_user_id": 5}, Action.RESPONSIBLE_CHANGED, {"old_owner": user(5)}),
        ({"old_responsible_user_id": 9}, Action.UPDATED, {"old_owner": user(9)}),
        ({"old_responsible_user_id": 9, "main_user": 4}, Action.RESPONSIBLE_CHANGED, {"old_owner": user(9)}),
    ],
)
def test_what_happened_to_a_task(webhook, row, action, extra):
    event = one(webhook, {"task": {"update": [{**TASK, **row}]}})
    assert (event.action, event.extra) == (action, extra)
    assert event.entity.done is (row.get("status") == 1)
    assert event.entity.result == row.get("result", {}).get("text")


@BOTH
def test_where_a_hand_over_names_two_users_the_owner_is_unread(webhook):
    clear = one(webhook, {"task": {"update": [{**TASK, "old_responsible_user_id": 5, "main_user": 9}]}}).entity
    torn = one(webhook, {"task": {"update": [{**TASK, "old_responsible_user_id": 9, "main_user": 4}]}}).entity
    assert "owner" not in clear.unread
    assert "owner" in torn.unread


@BOTH
def test_a_task_of_a_customer_has_a_target_the_model_does_not_name(webhook):
    entity = one(webhook, {"task": {"add": [{**TASK, "element_type": 12}]}}).entity
    assert entity.target is None
    assert "target" in entity.unread


@BOTH
def test_a_deleted_task_has_its_id_only(webhook):
    event = one(webhook, {"task": {"delete": [{"id": 156}]}})
    assert told(event.entity) == {"deleted": True}


# --------------------------------------------------------------------------------------------------------------- notes


@BOTH
def test_a_note_stands_one_level_deeper(webhook):
    event = one(webhook, {"leads": {"note": [{"note": NOTE}]}, **ACCOUNT})
    assert (event.action, event.word, event.ref) == (Action.ADDED, "leads.note", Ref(Kind.NOTE, 460))
    assert event.at == at(1726580329)
    assert told(event.entity) == {
        "kind": NoteKind.TEXT,
        "raw_kind": None,
        "text": "сказал «да»",
        "params": {},
        "target": Ref(Kind.DEAL, 15),
        "owner": user(9),
        "created_by": user(7),
        "updated_by": user(8),
        "created_at": at(1726580291),
        "updated_at": at(1726580329),
    }


@BOTH
@pytest.mark.parametrize(
    "row, target",
    [
        ({"note": {**NOTE, "element_type": 1}, "type": "contact"}, Ref(Kind.CONTACT, 15)),
        ({"note": {**NOTE, "element_type": 3}, "type": "company"}, Ref(Kind.COMPANY, 15)),
        ({"note": {"id": 1, "element_id": 15}, "type": "company"}, Ref(Kind.COMPANY, 15)),
        ({"note": {"id": 1, "element_id": 15}}, Ref(Kind.CONTACT, 15)),
        ({"note": {"id": 1}}, None),
    ],
)
def test_a_note_hangs_on_what_its_row_or_the_row_beside_it_says(webhook, row, target):
    entity = one(webhook, {"contacts": {"note": [row]}}).entity
    assert entity.target == target
    assert ("target" in entity.unread) is (target is None)


@BOTH
def test_a_key_that_is_a_text_and_holds_others_does_not_cost_the_note(webhook):
    (event,) = webhook.read(
        raw(
            "contacts[note][0][note][id]=60\ncontacts[note][0][note][type]=3\n"
            "contacts[note][0][note][type][message_uuid]=70f3\ncontacts[note][0][note][element_id]=40\n"
            "account[subdomain]=acme"
        ),
        Context(),
    )
    assert event.ref == Ref(Kind.NOTE, 60)
    assert event.entity.target == Ref(Kind.CONTACT, 40)
    assert {"kind", "text"} <= event.entity.unread
    assert event.raw["note"]["type"] == {"": "3", "message_uuid": "70f3"}


CALL = '{"UNIQ":"call-1","LINK":"https://example.com/rec.mp3","DURATION":33}'


@BOTH
@pytest.mark.parametrize("number, kind", [(10, NoteKind.CALL_IN), (11, NoteKind.CALL_OUT)])
def test_a_call_is_a_json_text_inside_the_note(webhook, number, kind):
    entity = one(webhook, {"leads": {"note": [{"note": {**NOTE, "note_type": number, "text": CALL}}]}}).entity
    assert entity.kind is kind
    assert {name.lower(): part for name, part in entity.params.items()} == {
        "uniq": "call-1",
        "link": "https://example.com/rec.mp3",
        "duration": 33,
    }
    assert entity.text is None
    assert "params" not in entity.unread


@BOTH
@pytest.mark.parametrize("said", ["{", "просто слова", "[]", "[" * 5_000, "NaN"])
def test_a_call_whose_text_is_no_json_keeps_it_as_text(webhook, said):
    entity = one(webhook, {"leads": {"note": [{"note": {**NOTE, "note_type": 10, "text": said}}]}}).entity
    assert entity.text == said
    assert "params" in entity.unread


def test_kommo_names_the_file_of_a_note():
    note = {**NOTE, "note_type": 5, "text": "p.jpg", "attachement": "drive/f-1/v-2/p/q.jpg"}
    entity = one(KOMMO, {"leads": {"note": [{"note": note}]}}).entity
    assert (entity.kind, entity.text) == (NoteKind.FILE, "p.jpg")
    assert entity.params == {"file_uuid": "f-1", "version_uuid": "v-2", "file_name": "p/q.jpg"}
    older = one(KOMMO, {"leads": {"note": [{"note": {**note, "attachement": "abc_p.jpg"}}]}}).entity
    assert "params" in older.unread


@BOTH
def test_a_kind_of_note_the_model_does_not_name_keeps_its_number(webhook):
    entity = one(webhook, {"leads": {"note": [{"note": {**NOTE, "note_type": 3}}]}}).entity
    assert (entity.kind, entity.raw_kind) == (NoteKind.OTHER, "3")


# --------------------------------------------------------------------------------------------------- the seed's JSON


SEED_LEAD = {
    "id": 123,
    "name": "Новая сделка",
    "status_id": 456,
    "old_status_id": 0,
    "price": 50000,
    "responsible_user_id": 789,
    "last_modified": 1609459200,
    "modified_user_id": 789,
    "created_user_id": 789,
    "date_create": 1609459200,
    "pipeline_id": 321,
    "account_id": 12345,
}


def test_kommo_is_read_in_the_seeds_json_too():
    body = {"account_id": 12345, "timestamp": 1609459201, "leads": {"add": [SEED_LEAD]}}
    event = one(KOMMO, body, JSON)
    assert (event.action, event.ref, event.account) == (Action.ADDED, Ref(Kind.DEAL, 123), 12345)
    assert event.at == at(1609459200)
    assert event.entity.price == Money(50000)
    assert event.extra == {}
    assert told(event.entity)["created_at"] == at(1609459200)
    bare = one(KOMMO, {"account_id": 1, "timestamp": 1609459201, "leads": {"delete": [{"id": 1}]}}, JSON)
    assert bare.at == at(1609459201)


@pytest.mark.parametrize(
    "family, action, row, expected, ref",
    [
        ("companies", "add", {"id": 1, "name": "Рога"}, Action.ADDED, Ref(Kind.COMPANY, 1)),
        ("companies", "responsible", {"id": 1}, Action.RESPONSIBLE_CHANGED, Ref(Kind.COMPANY, 1)),
        ("tasks", "complete", {"id": 2}, Action.COMPLETED, Ref(Kind.TASK, 2)),
        ("notes", "delete", {"id": 3}, Action.DELETED, Ref(Kind.NOTE, 3)),
        (
            "notes",
            "add",
            {"id": 3, "note_type": 4, "text": "да", "element_type": 2, "element_id": 5},
            Action.ADDED,
            None,
        ),
    ],
)
def test_the_seeds_families_are_read_by_their_own_names(family, action, row, expected, ref):
    event = one(KOMMO, {"account_id": 1, "timestamp": 2, family: {action: [row]}}, JSON)
    assert event.action is expected
    assert event.ref == (ref or Ref(Kind.NOTE, 3))
    if action == "delete":
        assert told(event.entity) == {"deleted": True}
    if action == "complete":
        assert told(event.entity)["done"] is True
    if ref is None:
        assert (event.entity.text, event.entity.target) == ("да", Ref(Kind.DEAL, 5))


# ------------------------------------------------------------------------------------------------------------ Electrum


def electrum(event, data, **more):
    return one(ELECTRUM, {"event": event, "timestamp": "2026-03-20T14:32:00Z", "data": data, **more}, JSON)


def test_a_deal_that_was_won_brings_its_amount_and_its_contact():
    event = electrum("deal.won", {"deal_id": 1092, "amount": 250000, "contact_id": 4821})
    assert (event.action, event.word, event.ref) == (Action.WON, "deal.won", Ref(Kind.DEAL, 1092))
    assert event.at == datetime(2026, 3, 20, 14, 32, tzinfo=UTC)
    assert event.account is None
    assert isinstance(event.entity, Deal)
    assert event.entity.id == 1092
    assert told(event.entity) == {
        "price": Money(250000),
        "contacts": (Link(Ref(Kind.CONTACT, 4821), main=True),),
        "outcome": Outcome.WON,
    }
    assert event.entity.raw == {"deal_id": 1092, "amount": 250000, "contact_id": 4821}


@pytest.mark.parametrize("word", list(EVENTS))
def test_all_seven_events_are_read(word):
    kind, action = EVENTS[word]
    event = electrum(word, {f"{kind}_id": 7})
    assert (event.kind, event.action, event.ref) == (kind, action, Ref(kind, 7))
    assert event.entity.unread >= {"owner", "created_at"}


def test_a_contact_may_be_named_by_its_own_id():
    entity = electrum("contact.created", {"id": 7, "name": "Иван", "phone": "", "tags": ["a"]}).entity
    assert told(entity) == {"name": "Иван", "phones": (), "tags": (Tag("a"),)}


def test_a_completed_task_is_done_and_its_title_may_have_another_name():
    entity = electrum("task.completed", {"task_id": 3, "text": "Позвонить", "deal_id": 1092, "deadline": None}).entity
    assert told(entity) == {"text": "Позвонить", "target": Ref(Kind.DEAL, 1092), "done": True, "due": None}


def test_a_stage_that_was_left_is_told_where_it_came():
    event = electrum("deal.stage_changed", {"deal_id": 1, "stage": "talks", "old_stage": "new"})
    assert event.extra == {"old_stage": Ref(Kind.STAGE, "new")}
    assert told(event.entity) == {"stage": Ref(Kind.STAGE, "talks")}
    assert "outcome" in event.entity.unread


def test_an_event_that_is_not_one_of_the_seven_is_other_and_kept():
    event = electrum("deal.deleted", {"deal_id": 1})
    assert (event.action, event.word, event.ref) == (Action.OTHER, "deal.deleted", Ref(Kind.DEAL, 1))
    event = electrum("invoice.paid", {"invoice_id": 1})
    assert (event.action, event.kind, event.ref, event.entity) == (Action.OTHER, None, None, None)
    assert event.raw["data"] == {"invoice_id": 1}


@pytest.mark.parametrize("data", [None, [], "x", {}, {"deal_id": "1"}, {"deal_id": True}, {"contact_id": 1}])
def test_an_event_that_does_not_name_its_row_has_a_problem(data):
    (event,) = events(ELECTRUM, {"event": "deal.won", "data": data}, JSON)
    assert event.ref is None
    assert "which deal" in str(event.problem)
    assert event.at is None


def test_a_row_of_another_shape_is_a_problem_and_its_id_is_known():
    (event,) = events(ELECTRUM, {"event": "deal.won", "data": {"deal_id": 1, "amount": "много"}}, JSON)
    assert (event.ref, event.entity) == (Ref(Kind.DEAL, 1), None)
    assert "amount" in str(event.problem)


@pytest.mark.parametrize("body", [{}, {"event": 1}, {"event": None, "data": {}}, {"event": "deal.won", "timestamp": 1}])
def test_what_is_no_event_of_electrums_is_unreadable(body):
    with pytest.raises(Unreadable):
        events(ELECTRUM, body, JSON)


def test_a_time_without_a_zone_is_unreadable():
    with pytest.raises(Unreadable, match=r"event\.timestamp"):
        events(ELECTRUM, {"event": "deal.won", "timestamp": "2026-03-20T14:32:00", "data": {"deal_id": 1}}, JSON)


# ---------------------------------------------------------------------------------------------------------- the parts


def test_a_partial_entity_is_compared_with_itself_and_not_with_its_row():
    entity = partial(Deal(id=1, name="a"), ["name"], {"anything": "else"})
    assert entity.unread == set(field_names(Deal)) - {"name"}
    assert entity.written == evolve(entity, written=None)
    assert entity.raw == {"anything": "else"}


def driven(flow, context):
    """The calls of a flow until the first one."""
    step = next(flow)
    while isinstance(step, Need):
        step = flow.send(context)
    return step[0] if isinstance(step, tuple) else step


@pytest.mark.parametrize("webhook, dialect", [(KOMMO, "kommo"), (AMOCRM, "amocrm")])
def test_an_update_of_what_a_hook_told_sends_what_was_changed_and_nothing_unread(webhook, dialect):
    entity = one(webhook, {"contacts": {"add": [{**CONTACT, "custom_fields": REACHABLE}]}}).entity
    module = import_module(f"crmclient_{dialect}")
    known = {f"fields:{kind}": {} for kind in ("contact", "company", "deal")}
    context = Context(parts={"account": HERE, **known}, now=at(1726573200))
    flow = flows.update(module.DIALECT, evolve(entity, name="Пётр"))
    sent = json.dumps(driven(flow, context).body, ensure_ascii=False)
    assert "Пётр" in sent
    for unsent in ("7900", "example.com", "директор", "responsible_user_id", "tags"):
        assert unsent not in sent


def test_an_update_of_what_electrum_told_asks_for_the_whole_row_first():
    entity = electrum("deal.won", {"deal_id": 1092, "amount": 250000, "contact_id": 4821}).entity
    flow = flows.update(import_module("crmclient_electrum").DIALECT, evolve(entity, price=Money(1)))
    with pytest.raises(IncompleteRead):
        driven(flow, Context(parts={"pipelines": ()}))


def test_rows_are_found_family_by_family():
    tree = {
        "timestamp": "1",
        "leads": {"add": {"1": "b", "0": "a"}, "update": ["c"], "status": {"id": "d"}, "none": []},
        "add": {"0": "e"},
    }
    assert list(rows_of(tree)) == [
        ("leads", "add", "a"),
        ("leads", "add", "b"),
        ("leads", "update", "c"),
        ("leads", "status", {"id": "d"}),
        ("", "add", "e"),
    ]
    assert list(rows_of([])) == []


def test_a_row_is_lifted_word_by_word():
    words = {"a": Word("x", whole, ("one",)), "b": Word("x", whole, ("one", "two")), "c": Word("y", text, ("three",))}
    assert lifted({"a": "1", "b": 2, "z": "?"}, words) == ({"x": 2}, {"one", "two"})
    assert lifted({"c": ""}, words) == ({}, {"three"})
    with pytest.raises(Unreadable, match="a: expected a whole number") as told:
        lifted({"a": "1.5"}, words)
    assert told.value.raw == {"a": "1.5"}


@pytest.mark.parametrize("wrong", [None, True, "", " 1", "1 ", "1.0", "٣", "1_0", "+1", 1.5, {}, "9" * 20])
def test_a_whole_number_is_digits_and_nothing_else(wrong):
    with pytest.raises(TypeError):
        whole(wrong)
    if wrong not in ("1.0", 1.5):
        with pytest.raises(TypeError):
            amount(wrong)
    assert whole("-12") == -12
    assert whole(7) == 7
    assert amount("12.50") == Decimal("12.50")
    assert amount(Decimal("0.1")) == Decimal("0.1")
