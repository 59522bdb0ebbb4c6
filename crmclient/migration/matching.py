"""What is what in two accounts: users, stages, custom fields and types of tasks, found by what both sides call them.

And rows: by the mark that says where each came from.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeVar
from unicodedata import normalize

from attrs import frozen

from crmclient.entities import (
    Company,
    Contact,
    Deal,
    Entity,
    FieldType,
    FieldValue,
    Id,
    Kind,
    Link,
    Note,
    Outcome,
    Ref,
    Tag,
    Task,
    evolve,
)
from crmclient.vocabulary import Field, Pipeline, Stage, TaskType, User

E = TypeVar("E")

# The custom field of the target that holds where a row came from: its code where one can be told, and else its name.
MARKER: Final = "CRMCLIENT_ORIGIN"

# In the order they are written: parents before children.
MOVED: Final[Mapping[str, type[Entity]]] = {
    "companies": Company,
    "contacts": Contact,
    "deals": Deal,
    "tasks": Task,
    "notes": Note,
}
KINDS: Final = tuple(MOVED)
_OF: Final = {entity.KIND: kind for kind, entity in MOVED.items()}


def kind_of(row: Entity | type[Entity]) -> str:
    """Under which of KINDS a row is counted."""
    return _OF[row.KIND]


def kind_at(ref: Ref | None) -> str | None:
    """Under which of KINDS the row is counted that a reference points at, if it is one that moves."""
    return _OF.get(ref.kind) if ref is not None else None


@frozen
class Place:
    """Where a deal of the source stands in the target, and how that was found out."""

    pipeline: Ref
    stage: Ref
    how: str


def match_users(source: Sequence[User], target: Sequence[User]) -> dict[Id | None, tuple[Ref, str]]:
    """Users of the source in the target: by e-mail or login, else by name. Who is in neither is not in the answer."""
    by_email = {word(user.email): user.ref for user in reversed(target) if user.email}
    by_name = {word(user.name): user.ref for user in reversed(target) if user.name}
    found: dict[Id | None, tuple[Ref, str]] = {}
    for user in source:
        if user.email and word(user.email) in by_email:
            found[user.id] = by_email[word(user.email)], "e-mail"
        elif user.name and word(user.name) in by_name:
            found[user.id] = by_name[word(user.name)], "name"
    return found


def match_stages(source: Sequence[Pipeline], target: Sequence[Pipeline]) -> dict[tuple[Id | None, Id | None], Place]:
    """Where each stage of the source is in the target, by (pipeline, stage).

    A pipeline is found by its name, else it is the main one. A won stage is the won one there and a lost one the lost
    one, whatever they are called; an open stage is found by its name, else by its place among the open ones. A stage
    for which the target has nothing of its outcome is not in the answer.
    """
    named = {word(pipeline.name): pipeline for pipeline in reversed(target)}
    main = next((pipeline for pipeline in target if pipeline.main), target[0] if target else None)
    found: dict[tuple[Id | None, Id | None], Place] = {}
    for pipeline in source:
        there = named.get(word(pipeline.name), main)
        if there is None:
            continue
        same = word(there.name) == word(pipeline.name)
        for stage in pipeline.stages:
            of_outcome = [each for each in _in_order(there.stages) if each.outcome is stage.outcome]
            if not of_outcome:
                continue
            alike = [each for each in of_outcome if word(each.name) == word(stage.name)]
            peers = [each.id for each in _in_order(pipeline.stages) if each.outcome is stage.outcome]
            chosen = alike[0] if alike else of_outcome[min(peers.index(stage.id), len(of_outcome) - 1)]
            how = "name" if alike else ("place" if stage.outcome is Outcome.OPEN else "outcome")
            found[pipeline.id, stage.id] = Place(there.ref, chosen.ref, how if same else f"{how}, in the main pipeline")
    return found


def _in_order(stages: Iterable[Stage]) -> list[Stage]:
    return sorted(stages, key=lambda stage: stage.sort)


def match_fields(source: Sequence[Field], target: Sequence[Field]) -> dict[tuple[Kind, Id | None], Field]:
    """Custom fields of the source in the target, of the same kind of rows: by code, where that one takes such values, else
    by name and type.

    A field is known by its id, or by its code where it has none.
    """
    by_code: dict[Any, Field] = {(each.entity, each.code): each for each in reversed(target) if each.code}
    by_name: dict[Any, Field] = {
        (each.entity, word(each.name), each.type): each for each in reversed(target) if each.name
    }
    found: dict[tuple[Kind, Id | None], Field] = {}
    for each in source:
        like = by_code.get((each.entity, each.code)) if each.code else None
        like = like if like is not None and _takes(like.type, each.type) else None
        like = like or by_name.get((each.entity, word(each.name), each.type))
        if like is not None:
            found[each.entity, each.id if each.id is not None else each.code] = like
    return found


def _takes(there: FieldType, here: FieldType) -> bool:
    """Whether any value of one type can be one of the other: in a text each is said in words."""
    return there in (here, *_ANY_OF.get(here, ()), *TEXTS)


TEXTS: Final = (FieldType.TEXT, FieldType.TEXTAREA)
_ANY_OF: Final[Mapping[FieldType, tuple[FieldType, ...]]] = {
    FieldType.SELECT: (FieldType.RADIO, FieldType.MULTISELECT),
    FieldType.RADIO: (FieldType.SELECT, FieldType.MULTISELECT),
    # A day is no moment: of which zone its midnight would be, nobody tells.
    FieldType.DATE: (FieldType.BIRTHDAY,),
    FieldType.BIRTHDAY: (FieldType.DATE,),
}


def match_options(source: Field, target: Field) -> dict[str, str]:
    """The choices of a field in the other account's words: by code, else by text. A choice without a like is left out."""
    by_code = {each.code: each.value for each in reversed(target.options) if each.code}
    by_text = {word(each.value): each.value for each in reversed(target.options)}
    found: dict[str, str] = {}
    for each in source.options:
        like = (by_code.get(each.code) if each.code else None) or by_text.get(word(each.value))
        if like is not None:
            found[each.value] = like
    return found


def match_task_types(source: Sequence[TaskType], target: Sequence[TaskType]) -> dict[Id | None, tuple[Ref, str]]:
    """Types of tasks by their codes, else by their names."""
    coded = {each.code: each.ref for each in reversed(target) if each.code}
    named = {word(each.name): each.ref for each in reversed(target) if each.name}
    found: dict[Id | None, tuple[Ref, str]] = {}
    for each in source:
        if each.code in coded:
            found[each.id] = coded[each.code], "code"
        elif word(each.name) in named:
            found[each.id] = named[word(each.name)], "name"
    return found


def word(name: str | None) -> str:
    """A name as it is compared with another."""
    return normalize("NFC", (name or "").strip()).casefold()


def named_company(company: Link | None) -> str:
    """The name of a company: two are one when they are letter for letter the same, once composed and trimmed."""
    return normalize("NFC", company.name or "").strip() if company is not None else ""


def company_key(company: Link | None) -> Id | None:
    """What a company is known by: its id, or where it is no row its name."""
    if company is None:
        return None
    return company.ref.id if company.ref.id is not None else named_company(company) or None


# ------------------------------------------------------------------------------------------------- where it came from

_MARK: Final = re.compile(rf"crm:[a-z0-9_]+:[^\s,]+:(?:{'|'.join(_OF)}):[^\s,]+")
# What can stand in a tag, in a search and in 64 letters, whatever a server makes of capitals.
_SHORT: Final = re.compile(r"[a-z0-9_.-]{1,24}")


def mark(origin: str, kind: Kind, id: Id) -> str:
    """The origin of a row, where ``origin`` is that of its account (``Side.origin``): one word of ASCII letters.

    What is known by its name, a company that is but a word on contacts, has a digest of it in place of the id.
    """
    text = str(id)
    return (
        f"{origin}{kind}:{text if _SHORT.fullmatch(text) else '~' + blake2b(text.encode(), digest_size=10).hexdigest()}"
    )


def is_marker(field: Field) -> bool:
    """Whether it is the custom field that holds origins: no content of anybody's."""
    return MARKER in (field.code, field.name)


def unmarked(row: E) -> tuple[E, tuple[str, ...]]:
    """The row without what we have marked it with, in this move or another, and these origins.

    A mark is a tag or a custom field's value that is an origin as a whole, and whatever the field of ours holds.
    """
    found: dict[str, None] = {}

    def content(part: Any) -> bool:
        texts = (part.name,) if isinstance(part, Tag) else part.values if isinstance(part, FieldValue) else ()
        marks = [text for text in texts if isinstance(text, str) and text.startswith("crm:") and _MARK.fullmatch(text)]
        ours = isinstance(part, FieldValue) and MARKER in (part.code, part.name)
        if ours or len(marks) == len(texts):
            found.update(dict.fromkeys(marks))
        return not ours and (not texts or len(marks) < len(texts))

    changes: dict[str, Any] = {}
    for name in ("tags", "fields"):
        parts: tuple[Any, ...] = getattr(row, name, ())
        kept = tuple(part for part in parts if content(part))
        if len(kept) < len(parts):
            changes[name] = kept
    return (evolve(row, **changes) if changes else row), tuple(found)  # pyright: ignore[reportArgumentType]
