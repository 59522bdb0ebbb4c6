"""The strict reader: the quick one takes nothing that the careful one refuses, and what is made unasked is no different."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from attrs import asdict, evolve, field, fields, frozen
from attrs.exceptions import FrozenInstanceError
from hypothesis import given
from hypothesis import strategies as st

from crmclient import entities
from crmclient.entities import FieldValue, Kind, Link, Phone, Ref, Tag
from crmclient.errors import Unreadable
from crmclient.serial import maker, strict, structured


@frozen(kw_only=True)
class Part:
    id: int
    name: str | None = None


@frozen(kw_only=True)
class Inside:
    parts: list[Part] | None = None
    names: list[str] = field(factory=list[str])


@frozen(kw_only=True)
class Whole:
    id: int
    key: int | str
    word: str = "word"
    flag: bool | None = None
    amount: Decimal | None = None
    either: int | str | None = None
    at: datetime | None = None
    maps: list[dict[str, Any]] | None = None
    whatever: Any = None
    part: Part | None = None
    inside: Inside = field(factory=Inside, alias="_inside")


def moment(text: object) -> datetime:
    if not isinstance(text, str):
        raise TypeError("a time is a text")
    return datetime.fromisoformat(text).astimezone(UTC)


READER = strict()
READER.hook(datetime, moment)

GOOD: dict[str, Any] = {
    "id": 5,
    "key": "k",
    "word": "w",
    "flag": False,
    "amount": Decimal("1.50"),
    "either": 7,
    "at": "2026-03-01T09:00:00+03:00",
    "maps": [{"value": "x"}, {}],
    "whatever": [None, {"a": 1}],
    "part": {"id": 1, "name": None},
    "_inside": {"parts": [{"id": 2}, {"id": 3, "name": "three"}], "names": ["a"]},
    "unknown": {"is": "passed over"},
}

SCALARS = st.sampled_from(
    [None, True, False, 0, 7, -1, Decimal("1.9"), 1.9, "", "false", "7", "2026-03-01T09:00:00Z", "2026-02-30", [], {}]
)
PARTS = st.fixed_dictionaries({}, optional={"id": SCALARS, "name": SCALARS, "other": SCALARS})
ANY_PART = st.one_of(SCALARS, PARTS)
INSIDES = st.fixed_dictionaries(
    {}, optional={"parts": st.one_of(SCALARS, st.lists(ANY_PART, max_size=2)), "names": st.lists(SCALARS, max_size=2)}
)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        **{name: SCALARS for name in GOOD if name not in ("maps", "part", "_inside")},
        "maps": st.one_of(SCALARS, st.lists(st.one_of(SCALARS, PARTS), max_size=2)),
        "part": ANY_PART,
        "_inside": st.one_of(SCALARS, INSIDES),
    },
)


@given(CHANGES, st.sets(st.sampled_from(sorted(GOOD))))
def test_the_quick_reader_takes_what_the_careful_one_takes_and_reads_it_alike(change, missing):
    row = {name: part for name, part in {**GOOD, **change}.items() if name not in missing}
    careful = READER._careful()
    try:
        meant = careful.structure(row, Whole)
    except Exception:
        with pytest.raises(Exception):  # noqa: B017  whatever it is, the careful reader is asked next
            READER._plan(Whole)(row)
    else:
        assert READER._plan(Whole)(row) == meant
        assert READER.structure(row, Whole) == meant


def test_no_good_row_needs_the_careful_reader():
    reader = strict()
    reader.hook(datetime, moment)
    read = reader.structure(GOOD, Whole)
    assert reader._slow is None
    assert read.inside.parts == [Part(id=2), Part(id=3, name="three")]
    assert read.at == datetime(2026, 3, 1, 6, tzinfo=UTC)
    assert reader.structure({"id": 1, "key": 2}, Whole) == Whole(id=1, key=2)
    assert reader._slow is None


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"id": True}, r"\.id"),
        ({"id": 1.9}, r"\.id"),
        ({"id": "5"}, r"\.id"),
        ({"word": None}, r"\.word"),
        ({"flag": "false"}, r"\.flag"),
        ({"flag": 0}, r"\.flag"),
        ({"amount": 1.5}, r"\.amount"),
        ({"amount": True}, r"\.amount"),
        ({"key": None}, r"\.key"),
        ({"at": 5}, r"\.at"),
        ({"maps": [{}, "x"]}, r"\.maps"),
        ({"maps": {}}, r"\.maps"),
        ({"part": []}, r"\.part"),
        ({"_inside": None}, r"\.inside"),
        ({"_inside": {"parts": [{"id": 1}, {"id": None}]}}, r"\.inside\.parts"),
        ({"_inside": {"names": [1]}}, r"\.inside\.names"),
    ],
)
def test_what_is_not_of_its_type_is_told_with_its_path(change, path):
    with pytest.raises(Unreadable, match=path):
        structured(READER, {**GOOD, **change}, Whole, "row")


@pytest.mark.parametrize("row", [None, [], "x", 5])
def test_what_is_no_object_is_no_row(row):
    with pytest.raises(Unreadable, match="expected an object"):
        structured(READER, row, Whole, "row")


def test_a_hook_that_comes_late_is_heeded():
    reader = strict()
    assert reader.structure({"id": 1}, Part) == Part(id=1)
    reader.hook(int, lambda text: int(text, 16))
    assert reader.structure({"id": "ff"}, Part) == Part(id=255)


@frozen(kw_only=True)
class Changing:
    """Its slots are not simply filled, so it is made in its own way."""

    id: int = field(converter=lambda given: given + 1)


def test_a_wire_class_with_a_converter_is_made_by_itself():
    assert READER.structure({"id": 1}, Changing) == Changing(id=1)
    assert READER.structure({"id": 1}, Changing).id == 2


@pytest.mark.parametrize(
    "value",
    [
        Ref(Kind.DEAL, 5),
        Link(Ref(Kind.DEAL, 5), main=True),
        Phone("1", raw_label="x"),
        Tag("t", id=3),
        FieldValue(("a", Decimal(1)), code="C"),
        entities.Contact(id=1, name="A", phones=("1",), owner=7, created_at=datetime(2026, 1, 1, tzinfo=UTC)),
        entities.Company(id=1, name="B", tags=("x",), unread=frozenset({"deals"}), raw={"id": 1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_maker_makes_what_the_class_itself_makes(value):
    made = maker(type(value))(**asdict(value, recurse=False))
    assert (made, type(made)) == (value, type(value))
    assert repr(made) == repr(value)
    assert asdict(made, recurse=False) == asdict(value, recurse=False)
    with pytest.raises(FrozenInstanceError):
        setattr(made, fields(type(made))[0].name, 1)
    assert evolve(made) == value


def test_a_maker_asks_for_what_has_no_default_and_for_nothing_unknown():
    link = maker(Link)
    assert link(ref=Ref(Kind.DEAL, 5)) == Link(Ref(Kind.DEAL, 5))
    with pytest.raises(TypeError, match="ref"):
        link()
    with pytest.raises(TypeError, match="other"):
        link(ref=None, other=1)


def test_a_maker_is_not_made_where_a_default_would_be_shared():
    with pytest.raises(TypeError, match="inside"):
        maker(Whole)
