"""Neutral to Electrum and back: pure functions, one pair an entity."""

from typing import Any

from attrs import evolve

from crmclient import entities, vocabulary
from crmclient.dialect import Context
from crmclient.entities import Email, Kind, Link, Money, Outcome, Phone, Ref, Tag
from crmclient.errors import Invalid, Issue
from crmclient.formats import iso
from crmclient.serial import structured
from crmclient_electrum import wire
from crmclient_electrum.wire import CONVERTER, Words, canonical

# ------------------------------------------------------------------------------------------------------- contacts


def decode_contact(row: Any, context: Context) -> entities.Contact:
    read = structured(CONVERTER, canonical("contact", row), wire.Contact, "contact", row)
    return entities.Contact(
        id=read.id,
        name=read.name,
        phones=(Phone(read.phone),) if read.phone else (),
        emails=(Email(read.email),) if read.email else (),
        # §4: "company (string)"; there is no row to point at.
        company=Link(Ref(Kind.COMPANY, None), name=read.company) if read.company else None,
        tags=tuple(Tag(name) for name in read.tags or ()),
        created_at=read.created_at,
        updated_at=read.updated_at,
        raw=row,
    )


def encode_contact(contact: entities.Contact, fields: frozenset[str], context: Context) -> dict[str, Any]:
    written: dict[str, Any] = {
        "name": contact.name,
        "phones": ("phone", contact.phones[0].value if contact.phones else None),
        "emails": ("email", contact.emails[0].value if contact.emails else None),
        "company": contact.company.name if contact.company else None,
        "tags": [tag.name for tag in contact.tags],
    }
    return _only(written, fields)


def surviving_contact(contact: entities.Contact) -> entities.Contact:
    """One phone and one e-mail without a label (§7), a company by its name only."""
    company = contact.company
    return evolve(
        contact,
        phones=tuple(Phone(phone.value) for phone in contact.phones[:1]),
        emails=tuple(Email(email.value) for email in contact.emails[:1]),
        company=Link(Ref(Kind.COMPANY, None), name=company.name) if company and company.name else None,
    )


# ---------------------------------------------------------------------------------------------------------- deals


def decode_deal(row: Any, context: Context) -> entities.Deal:
    read = structured(CONVERTER, canonical("deal", row), wire.Deal, "deal", row)
    return entities.Deal(
        id=read.id,
        name=read.name,
        price=Money(read.amount) if read.amount is not None else None,
        pipeline=Ref(Kind.PIPELINE, read.pipeline_id) if read.pipeline_id is not None else None,
        stage=Ref(Kind.STAGE, read.stage) if read.stage is not None else None,
        # DECISIONS: a deal is won or lost by its stage, and only the list of pipelines tells which stage that is.
        outcome=_outcome(read, context) if read.stage is not None else None,
        contacts=(Link(Ref(Kind.CONTACT, read.contact_id), main=True),) if read.contact_id is not None else (),
        owner=_user(read.assigned_to),
        created_at=read.created_at,
        updated_at=read.updated_at,
        raw=row,
    )


def _outcome(deal: wire.Deal, context: Context) -> Outcome | None:
    for pipeline in context.part_if_allowed("pipelines") or ():
        if deal.pipeline_id in (None, pipeline.id):
            for stage in pipeline.stages:
                if stage.id == deal.stage or stage.name == deal.stage:
                    return stage.outcome
    return None


def encode_deal(words: Words) -> Any:
    def encode(deal: entities.Deal, fields: frozenset[str], context: Context) -> dict[str, Any]:
        contact = deal.contacts[0].ref.id if deal.contacts else None
        if deal.contacts and contact is None:
            raise Invalid("Deal", [Issue(field="contacts", rule="link a contact by its id")])
        written: dict[str, Any] = {
            "name": (words.deal_name, deal.name),
            "price": ("amount", deal.price.amount if deal.price else None),
            "pipeline": ("pipeline_id", deal.pipeline.id if deal.pipeline else None),
            "stage": deal.stage.id if deal.stage else None,
            "owner": ("assigned_to", deal.owner.id if deal.owner else None),
            "contacts": ("contact_id", contact),
        }
        return _only(written, fields)

    return encode


def surviving_deal(deal: entities.Deal) -> entities.Deal:
    """One contact, and it is the main one; an amount in the account's own currency."""
    known = [link for link in deal.contacts if link.ref.id is not None]
    main = [link for link in known if link.main] or known
    return evolve(
        deal,
        contacts=tuple(Link(link.ref, main=True) for link in main[:1]),
        price=Money(deal.price.amount) if deal.price else None,
    )


# ---------------------------------------------------------------------------------------------------------- tasks


def decode_task(row: Any, context: Context) -> entities.Task:
    read = structured(CONVERTER, canonical("task", row), wire.Task, "task", row)
    target = None
    if read.deal_id is not None:
        target = Ref(Kind.DEAL, read.deal_id)
    elif read.contact_id is not None:
        target = Ref(Kind.CONTACT, read.contact_id)
    return entities.Task(
        id=read.id,
        text=read.title if read.description is None else f"{read.title or ''}\n{read.description}",
        due=read.due_date,
        done=read.completed or False,
        target=target,
        owner=_user(read.assigned_to),
        created_at=read.created_at,
        updated_at=read.updated_at,
        raw=row,
    )


def encode_task(words: Words) -> Any:
    def encode(task: entities.Task, fields: frozenset[str], context: Context) -> dict[str, Any]:
        written: dict[str, Any] = {
            "text": (words.task_title, task.text),
            "due": (words.task_due, iso(task.due) if task.due else None),
            "owner": ("assigned_to", task.owner.id if task.owner else None),
        }
        found = _only(written, fields - {"target", "done"})
        # A title is one line; what follows it is the description.
        title, line, description = (task.text or "").partition("\n")
        if "text" in fields and line and description:
            found[words.task_title], found["description"] = title, description
        if "target" in fields and task.target is not None:
            found["deal_id" if task.target.kind is Kind.DEAL else "contact_id"] = task.target.id
        return found

    return encode


def surviving_task(task: entities.Task) -> entities.Task:
    """A task hangs on a deal or a contact."""
    held = task.target is not None and task.target.kind in (Kind.DEAL, Kind.CONTACT)
    return evolve(task, target=task.target if held else None)


# ------------------------------------------------------------------------------------------------------ vocabulary


def decode_user(row: Any, context: Context) -> vocabulary.User:
    read = structured(CONVERTER, canonical("user", row), wire.User, "user", row)
    return vocabulary.User(id=read.id, name=read.name, email=read.email, admin=read.role == "admin", raw=row)


_OUTCOMES = {"won": Outcome.WON, "lost": Outcome.LOST}


def decode_pipeline(row: Any, context: Context) -> vocabulary.Pipeline:
    read = structured(CONVERTER, canonical("pipeline", row), wire.Pipeline, "pipeline", row)
    stages = tuple(
        vocabulary.Stage(
            id=stage.id,
            name=stage.name,
            sort=place if stage.sort is None else stage.sort,
            outcome=_OUTCOMES.get(stage.type or "", Outcome.OPEN),
        )
        for place, stage in enumerate(read.stages or ())
    )
    return vocabulary.Pipeline(id=read.id, name=read.name, stages=stages, raw=row)


# ---------------------------------------------------------------------------------------------------------- parts


def _user(id: int | None) -> Ref | None:
    return Ref(Kind.USER, id) if id is not None else None


def _only(written: dict[str, Any], fields: frozenset[str]) -> dict[str, Any]:
    """The wire row of just these fields: each under its own name, or under the name of a (name, part) pair."""
    pairs: dict[str, tuple[str, Any]] = {
        name: part if isinstance(part, tuple) else (name, part) for name, part in written.items()
    }
    return dict(pairs[name] for name in pairs if name in fields)
