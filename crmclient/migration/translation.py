"""A row of one account as it has to stand in another: what it points at is that of the target, what is lost is named.

Nothing here asks anybody anything: the words of both accounts and what became of other rows are given.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, Final, Protocol

from attrs import define, field, frozen

from crmclient import flows
from crmclient.dialect import Dialect, Verb
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
    NoteKind,
    Ref,
    Tag,
    Task,
    evolve,
    field_names,
    filled,
    is_empty,
)
from crmclient.migration.losses import OF_ITS_KIND, What, choices, in_words, stage_named
from crmclient.migration.matching import (
    MARKER,
    MOVED,
    TEXTS,
    company_key,
    kind_at,
    kind_of,
    match_fields,
    match_options,
    named_company,
    unmarked,
)
from crmclient.serial import to_tree
from crmclient.vocabulary import Field

# Ties that the other end tells as well, and the other end is what is written.
MIRRORED: Final[Mapping[str, tuple[str, ...]]] = {"companies": ("contacts", "deals"), "contacts": ("deals",)}
_NOTHING_LIKE_IT: Final = "nothing like it there"
# Of these a value is one of those that the field names.
CHOSEN: Final = frozenset({FieldType.SELECT, FieldType.MULTISELECT, FieldType.RADIO})


@frozen
class FieldThere:
    """A custom field as the target has it. ``options`` are the source's choices in the target's words."""

    id: Id | None
    code: str | None
    name: str | None
    type: FieldType
    options: Mapping[str, str] | None = None


@frozen(kw_only=True)
class Words:
    """The source's words in the target's.

    ``nobody`` owns what is owned by a user who has no like there, and ``me`` what has to have an owner and has none.

    ``fields`` are known by the kind of rows and an id, or a code where there is none. ``fold``: what a note of a
    vendor's own kind says goes into its text. ``choices`` say what is done with each other loss (``losses.CHOICES``), and
    with one that they do not name the last of ``rules`` that fits it and that the target allows: a pattern (``contact.*``)
    and a choice. What neither names is dropped. ``made_fields`` are the target's custom fields for what is kept in one.
    ``names`` are what users, stages and types of the source are called.
    """

    users: Mapping[Id | None, Ref] = field(factory=dict[Id | None, Ref])
    nobody: Ref | None = None
    me: Ref | None = None
    places: Mapping[tuple[Id | None, Id | None], tuple[Ref | None, Ref]] = field(
        factory=dict[tuple[Id | None, Id | None], tuple[Ref | None, Ref]]
    )
    fields: Mapping[tuple[Kind, Id | None], FieldThere] = field(factory=dict[tuple[Kind, Id | None], FieldThere])
    task_types: Mapping[Id | None, Ref] = field(factory=dict[Id | None, Ref])
    task_type: Ref | None = None
    now: datetime | None = None
    fold: bool = True
    choices: Mapping[str, str] = field(factory=dict[str, str])
    rules: Sequence[tuple[str, str]] = ()
    made_fields: Mapping[str, FieldThere] = field(factory=dict[str, FieldThere])
    names: Mapping[Ref, str] = field(factory=dict[Ref, str])


class Rows(Protocol):
    """What is known of other rows of the move."""

    def made(self, kind: str, id: Id) -> Id | None:
        """The target's id of a row of the source; None where it was not made."""
        ...

    def company_name(self, id: Id) -> str:
        """What a company of the source is called; empty where nobody knows."""
        ...

    def company_of(self, contact: Id) -> Link | None:
        """The company, in the target, of a contact of the source that was made."""
        ...


class _Everybody:
    """Every row of the source as if it were made, under its own id: what is lost then is lost for good."""

    def made(self, kind: str, id: Id) -> Id | None:
        return id

    def company_name(self, id: Id) -> str:
        return f"company {id}"

    def company_of(self, contact: Id) -> Link | None:
        return None


_EVERYBODY: Final = _Everybody()


@frozen(kw_only=True)
class Translated:
    """A row as it is to stand in the target.

    ``row`` is what a create can carry and ``later`` what completing it adds; ``lost`` names fields, and what became of
    them. ``left_out`` says why there is no place for it. ``lacks`` is required by the target and cannot be made up.
    ``archived`` is what the plan keeps beside the target, as JSON by what is lost: the contents as the source had them.
    """

    row: Any
    later: Mapping[str, Any] = field(factory=dict[str, Any])
    lost: Mapping[str, str] = field(factory=dict[str, str])
    fields_lost: Mapping[str, str] = field(factory=dict[str, str])
    """Custom fields that are lost, whole or in part, by their names."""
    invented: Sequence[str] = ()
    left_out: str | None = None
    lacks: Sequence[str] = ()
    archived: Mapping[str, Any] = field(factory=dict[str, Any])
    told: Sequence[str] = ()
    """What is lost and folded into a note of its own, line by line."""

    def losses(self) -> Iterator[tuple[str, str]]:
        """What is lost, as ``deal.price`` or ``contact.fields: Age``, and what became of it."""
        for name, why in self.lost.items():
            if name != "fields" or not self.fields_lost or why != _NOTHING_LIKE_IT:
                yield f"{self.row.KIND}.{name}", why
        for name, why in self.fields_lost.items():
            yield f"{self.row.KIND}.fields: {name}", why

    @property
    def whole(self) -> Any:
        """The row as it stands once it is finished."""
        return evolve(self.row, **self.later) if self.later else self.row


@define
class Translation:
    """Rows of one dialect in the words of another. ``words`` may become better while rows are made."""

    source: Dialect
    target: Dialect
    words: Words
    rows: Rows

    @property
    def same_words(self) -> bool:
        """Types of tasks and what calls say are told in the vendor's words; few vendors list them with their meaning."""
        return self.source.name == self.target.name

    def __call__(self, row: Any) -> Translated:
        # What an earlier move has marked it with is no content of anybody's.
        row, _ = unmarked(row)
        kind, fields_lost = kind_of(row), dict[str, str]()
        resource = self.target.resource(MOVED[kind])
        moved = self._moved(kind, row, fields_lost)
        invented = self._invented(kind, moved)
        complete = evolve(moved, **invented) if invented else moved
        if "kind" not in resource.survivors(Verb.CREATE):
            complete = folded(complete, fold=self.words.fold) or complete
        kept, gone = flows.carried(self.target, complete)
        why = _no_place(kept, resource.required)
        if why is not None:
            what = f"{row.KIND} that {why}"
            return Translated(row=kept, left_out=why, archived=self.kept_whole(what, row))
        later = self._finishing(kept, complete)
        cut = {name for name in gone if not same(getattr(complete, name), getattr(kept, name))} - later.keys()
        less = self._lost(kind, row, complete) | ({"fields"} if fields_lost else set[str]())
        lost = {name: self._why(kind, name) for name in less}
        lost |= {name: self._cut(kind, name) for name in cut}
        lacks = [name for name in resource.required if is_empty(getattr(kept, name))]
        there = Translated(
            row=kept,
            later=later,
            lost={name: lost[name] for name in field_names(MOVED[kind]) if name in lost},
            fields_lost=fields_lost,
            invented=tuple(invented),
            lacks=lacks,
        )
        return self._chosen(row, complete, there) if self._keeps else there

    def besides(self, row: Any) -> tuple[Note, ...]:
        """The note that tells what is lost of a row and folded, to be moved like those of the source: it hangs on the row
        (that of a call on what the call is of), and its id is ``fold:``, the kind and the row's own. It is the same
        whatever became of other rows.
        """
        folding = any(
            choice == "fold" for choice in (*self.words.choices.values(), *(to for _, to in self.words.rules))
        )
        if not folding or isinstance(row, Task) or not self.target.can(MOVED[kind_of(row)], Verb.CREATE):
            return ()
        told = evolve(self, rows=_EVERYBODY)(row).told
        if not told:
            return ()
        dated = "created_at" in self.target.resource(Note).survivors(Verb.CREATE)
        made = row.created_at if dated else None
        on = row.target if isinstance(row, Note) else row.ref
        return (Note(id=f"fold:{kind_of(row)}:{row.id}", text="\n".join(told), target=on, created_at=made),)

    def kept_whole(self, what: str, row: Any) -> Mapping[str, Any]:
        """What is archived of a row that has no place in the target; ``what`` is its loss: ``notes``, say."""
        return {what: to_tree(row)} if self.choice(what) == "archive" else {}

    # ------------------------------------------------------------------------------------------ what is done with it

    def choice(self, what: str) -> str:
        """What is done with a loss."""
        if what in OF_ITS_KIND and self.words.fold:
            return "fold"
        told = self.words.choices.get(what)
        if told is None and self.words.rules:
            fitting = [to for pattern, to in self.words.rules if what == pattern or fnmatchcase(what, pattern)]
            told = next((to for to in reversed(fitting) if to in choices(self.target, what)), None)
        return told or "drop"

    @property
    def _keeps(self) -> bool:
        return bool(self.words.choices or self.words.rules)

    def _chosen(self, row: Any, complete: Any, there: Translated) -> Translated:
        """What is lost, put where the plan says."""
        archived, told, values = dict[str, Any](), list[str](), list[FieldValue]()
        for said, _ in there.losses():
            what, choice = What(said), self.choice(said)
            if choice == "drop" or (choice == "fold" and said in OF_ITS_KIND):
                continue
            if choice == "archive":
                archived[said] = to_tree(self._whole(row, what))
                continue
            lost = self._part(row, complete, there.row, what)
            if choice == "fold":
                told += [f"{label}: {text}" for label, part in lost if (text := in_words(part, self.words.names))]
                continue
            made = self.words.made_fields.get(said)
            if made is None:  # there is no such field yet, and nothing is to be lost
                archived[said] = to_tree(self._whole(row, what))
            else:
                values += [value for _, part in lost if (value := self._in_field(made, part)) is not None]
        more: dict[str, Any] = {"fields": (*complete.fields, *values)} if values else {}
        # A call has no text to which anything could be added.
        if told and (isinstance(row, Task) or (isinstance(row, Note) and complete.kind is NoteKind.TEXT)):
            more, told = {"text": "\n".join(filter(None, (complete.text, *told)))}, []
        kept = flows.carried(self.target, evolve(complete, **more))[0] if more else there.row
        return evolve(there, row=kept, archived=archived, told=told)

    def _whole(self, row: Any, what: What) -> Any:
        """All that the source has of what is lost."""
        content = getattr(row, what.name)
        if what.custom is None:
            return content
        return tuple(value for value in content if label_of(value) == what.custom)

    def _part(self, row: Any, complete: Any, kept: Any, what: What) -> list[tuple[str, Any]]:
        """What of a content does not arrive, under what it is called."""
        content = getattr(row, what.name)
        if what.custom is not None:
            return [(what.custom, self._missing(row.KIND, value)) for value in self._whole(row, what)]
        if what.name == "fields":
            return [(label_of(value), value) for value in complete.fields if value not in kept.fields]
        if what.name == "stage":
            return [(what.label, stage_named(row.pipeline.id if row.pipeline else None, content.id))]
        if isinstance(content, tuple) and what.name != "contacts":
            parts: tuple[Any, ...] = content  # pyright: ignore[reportUnknownVariableType]
            return [(what.label, tuple(part for part in parts if part not in getattr(kept, what.name)))]
        return [(what.label, content)]

    def _missing(self, kind: Kind, value: FieldValue) -> FieldValue:
        """The values for which the target has no choice, or all of them where it has no such field."""
        there = self.words.fields.get((kind, field_key(value)))
        options = there.options if there is not None else None
        return evolve(value, values=tuple(each for each in value.values if options is None or str(each) not in options))

    def _in_field(self, made: FieldThere, part: Any) -> FieldValue | None:
        """What is lost as a value of the target's custom field that was made for it: as it is, or as a text that says it."""
        if isinstance(part, FieldValue) and part.type is made.type:
            values = part.values
        else:
            values = tuple(filter(None, (in_words(part, self.words.names),)))
        ref = Ref(Kind.FIELD, made.id) if made.id is not None else None
        return FieldValue(values, field=ref, code=made.code, name=made.name, type=made.type) if values else None

    # ------------------------------------------------------------------------------------------------- one by one

    def _moved(self, kind: str, row: Any, fields_lost: dict[str, str]) -> Any:
        """The row with everything it points at as it is in the target, and empty where that has no like there."""
        changes: dict[str, Any] = dict.fromkeys(MIRRORED.get(kind, ()), ())
        for name in ("owner", "created_by", "updated_by"):
            held: Ref | None = getattr(row, name)
            # Somebody has to own a row; whose work it was is not made up.
            nobody = self.words.nobody if name == "owner" else None
            changes[name] = self.words.users.get(held.id, nobody) if held is not None else None
        if kind in ("contacts", "deals"):
            changes["company"] = self._company(row)
        if kind == "deals":
            changes |= self._deal(row)
        if kind in ("tasks", "notes"):
            at = kind_at(row.target)
            made = self.rows.made(at, row.target.id) if at is not None and row.target.id is not None else None
            changes["target"] = Ref(row.target.kind, made) if made is not None else None
        if kind == "tasks" and row.type is not None:
            as_it_is = row.type if self.same_words and not self.words.task_types else None
            changes["type"] = self.words.task_types.get(row.type.id, as_it_is)
        if kind == "notes" and not self.same_words:
            row = folded(row, fold=self.words.fold) or row
        if getattr(row, "fields", ()):
            changes["fields"] = tuple(
                there for value in row.fields if (there := self._field(row, value, fields_lost)) is not None
            )
        return evolve(row, **changes)

    def _company(self, row: Any) -> Link | None:
        """The company as the target knows it: the row that was made of it, or where there are none its name."""
        company: Link | None = row.company
        if not self.target.can(Company, Verb.CREATE):
            if company is None or not isinstance(row, Contact):
                return None
            id = company.ref.id
            named = named_company(company) or (self.rows.company_name(id) if id is not None else "")
            return Link(Ref(Kind.COMPANY, None), name=named) if named else None
        if isinstance(row, Deal) and "company" not in self.source.resource(Deal).survivors(Verb.LIST):
            # Where deals tell no company it is their contact's.
            people = (self.rows.company_of(link.ref.id) for link in row.contacts if link.ref.id is not None)
            return next((company for company in people if company is not None), None)
        key = company_key(company)
        made = self.rows.made("companies", key) if key is not None else None
        return Link(Ref(Kind.COMPANY, made)) if made is not None else None

    def _deal(self, deal: Deal) -> dict[str, Any]:
        members = [(link, self.rows.made("contacts", link.ref.id)) for link in deal.contacts if link.ref.id is not None]
        links = tuple(Link(Ref(Kind.CONTACT, id), main=link.main) for link, id in members if id is not None)
        at = (deal.pipeline.id if deal.pipeline else None, deal.stage.id) if deal.stage else None
        place = self.words.places.get(at) if at is not None else None
        # The outcome goes with the stage: nobody writes it.
        stage = {"pipeline": place[0], "stage": place[1]} if place else {"pipeline": None, "stage": None}
        return {"contacts": links, "outcome": None, **stage}

    def _field(self, row: Entity, value: FieldValue, lost: dict[str, str]) -> FieldValue | None:
        there = self.words.fields.get((row.KIND, field_key(value)))
        if there is None:
            lost[label_of(value)] = "no such field there"
            return None
        values = value.values
        if there.options is not None and value.type in CHOSEN:
            values = tuple(there.options[str(each)] for each in values if str(each) in there.options)
            if len(values) < len(value.values):
                lost[label_of(value)] = "the field there lacks this choice"
            if not values:
                return None
        if there.type in TEXTS and value.type not in TEXTS and [*map(type, values)] not in ([], [str]):
            values = (in_words(values, self.words.names),)
        ref = Ref(Kind.FIELD, there.id) if there.id is not None else None
        return evolve(value, field=ref, code=there.code, name=there.name, type=there.type, values=values)

    def _invented(self, kind: str, row: Any) -> dict[str, Any]:
        """What the target requires and the row does not have, as far as it can be made up."""
        begun = row.created_at or self.words.now
        make: Mapping[str, Callable[[], Any]] = {
            "name": lambda: next((part.value for part in getattr(row, "phones", ())), f"{row.KIND} {row.id}"),
            "due": lambda: begun + timedelta(days=1) if begun is not None else None,
            "owner": lambda: self.words.nobody or self.words.me,
            "type": lambda: self.words.task_type,
        }
        required = self.target.resource(MOVED[kind]).required
        made = {name: make[name]() for name in required if name in make and is_empty(getattr(row, name))}
        return {name: part for name, part in made.items() if part is not None}

    def _finishing(self, kept: Any, moved: Any) -> dict[str, Any]:
        """What completing a task carries and making it does not: that it is done, and with what result."""
        if not isinstance(moved, Task) or not moved.done or not self.target.can(Task, Verb.COMPLETE):
            return {}
        through = self.target.resource(Task).survivors(Verb.COMPLETE)
        names = [name for name in ("done", "result") if name in through and getattr(kept, name) != getattr(moved, name)]
        return {name: getattr(moved, name) for name in names}

    # ---------------------------------------------------------------------------------------------- what is lost

    def _lost(self, kind: str, row: Any, moved: Any) -> set[str]:
        """What of a row there is nothing for in the target: a user, a stage, a field, a word of the source's vendor."""
        told = set(field_names(MOVED[kind])) - set(MIRRORED.get(kind, ())) - {"outcome", "pipeline"}
        fewer = len(getattr(moved, "contacts", ())) < len(getattr(row, "contacts", ()))
        return told & (filled(row) - filled(moved) | ({"contacts"} if fewer else set[str]()))

    def _why(self, kind: str, name: str) -> str:
        if f"{MOVED[kind].KIND}.{name}" in OF_ITS_KIND:
            return "said in its text" if self.words.fold else "not said in its text"
        return _NOTHING_LIKE_IT

    def _cut(self, kind: str, name: str) -> str:
        resource = self.target.resource(MOVED[kind])
        if name not in resource.survivors(Verb.CREATE):
            return f"not taken for new {resource.vendor}"
        return resource.limits.get(name, "a part of it is kept")


def fields_there(source: Sequence[Field], target: Sequence[Field]) -> dict[tuple[Kind, Id | None], FieldThere]:
    """The source's custom fields as the target has them; what has no like there is not in the answer."""
    matched = match_fields(source, target)
    found: dict[tuple[Kind, Id | None], FieldThere] = {}
    for each in source:
        key = each.entity, each.id if each.id is not None else each.code
        if key in matched:
            like, options = matched[key], match_options(each, matched[key])
            found[key] = FieldThere(
                like.id, like.code, like.name, like.type, options if each.options and like.options else None
            )
    return found


def marked(row: Any, origin: str, how: str, field: FieldThere | None = None) -> Any:
    """A row of the target with its origin (``matching.mark``) on it: ``how`` is ``tag``, or ``field`` with that of ours
    for its kind. What carries neither stays as it is.
    """
    if how == "tag" and hasattr(row, "tags"):
        return evolve(row, tags=(*row.tags, Tag(origin)))
    if how == "field" and field is not None and hasattr(row, "fields"):
        ref = Ref(Kind.FIELD, field.id) if field.id is not None else None
        value = FieldValue((origin,), field=ref, code=field.code, name=field.name or MARKER, type=field.type)
        return evolve(row, fields=(*row.fields, value))
    return row


def field_key(value: FieldValue) -> Id | None:
    """What a custom field is known by."""
    return value.field.id if value.field is not None and value.field.id is not None else value.code


def label_of(value: FieldValue) -> str:
    return value.name or value.code or f"field {field_key(value)}"


def folded(row: Any, *, fold: bool = True) -> Any:
    """A note of a kind of its vendor's as a text that says the same, or None for what is a text already."""
    if not isinstance(row, Note) or (row.kind is NoteKind.TEXT and not row.params):
        return None
    params = ", ".join(f"{name} {part}" for name, part in row.params.items())
    said = ": ".join(filter(None, (row.raw_kind or str(row.kind), params))) if fold else None
    return evolve(row, kind=NoteKind.TEXT, raw_kind=None, params={}, text="\n".join(filter(None, (row.text, said))))


def _no_place(row: Any, required: Sequence[str]) -> str | None:
    """Why there is no place in the target for a row, however it is written."""
    if isinstance(row, Note) and not row.text and not row.params:
        return "says nothing"
    return "hangs on nothing" if "target" in required and row.target is None else None


def same(sent: Any, found: Any) -> bool:
    """Whether two contents say the same: links lead to the same rows or names, lists hold the same in any order."""
    if isinstance(sent, Link) and isinstance(found, Link):
        return sent.ref == found.ref if sent.ref.id is not None else named_company(sent) == named_company(found)
    if isinstance(sent, tuple) and isinstance(found, tuple):
        mine, theirs = ([_essence(part) for part in parts] for parts in (sent, found))  # pyright: ignore[reportUnknownVariableType]
        return len(mine) == len(theirs) and all(part in theirs for part in mine)
    return sent == found


def _essence(part: Any) -> object:
    if isinstance(part, Link):
        return part.ref
    if isinstance(part, Tag):
        return part.name
    if isinstance(part, FieldValue):
        return part.field or part.code, part.values
    return part
