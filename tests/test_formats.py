"""Bytes become plain trees exactly, or Unparsed with the reason; nothing a server sends makes a reader slow or wrong."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmclient import Contact, Invalid, Unreadable, formats
from crmclient.dialect import Unparsed
from crmclient.flows import overlaid
from crmclient.formats import FormsInXmlOut, Json, form, iso, php_pairs, php_tree
from crmclient.serial import to_tree

XML = FormsInXmlOut()


class BothRoads:
    """JSON that is read by msgspec and by the standard library, who have to say the same of whatever is read."""

    def __init__(self, **told: Any) -> None:
        self._json = Json(**told)
        self.encode = self._json.encode

    def decode(self, content: bytes, content_type: str) -> Any:
        assert formats._faster() is not None
        fast = self._json.decode(content, content_type)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(formats, "_faster", lambda: None)
            standard = self._json.decode(content, content_type)
        assert exact(fast) == exact(standard)
        return fast


def exact(tree: Any) -> Any:
    """A tree with all that an == does not tell: 1, True and 1.0 apart, 1.1 and 1.10, the order of the keys."""
    told: list[Any] = []
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            told.append(("map", *part))
            waiting += part.values()
        elif isinstance(part, list):
            told.append(("list", len(part)))
            waiting += part
        else:
            told.append((type(part), part if isinstance(part, str | Unparsed) else str(part)))
    return told


JSON = BothRoads()


def decode(text: str | bytes) -> Any:
    return JSON.decode(text.encode() if isinstance(text, str) else text, "application/json")


def reason(tree: Any) -> str:
    assert isinstance(tree, Unparsed), f"this was taken for an answer: {tree!r:.100}"
    return tree.reason


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


# ----------------------------------------------------------------------------------------------------------- JSON read


@pytest.mark.parametrize(
    "text, tree",
    [
        ("1", 1),
        ("9223372036854775808", 2**63),
        ("18446744073709551616", 2**64),
        ("0.1", Decimal("0.1")),
        ("1.10", Decimal("1.10")),
        ("123456789012345678.123456789", Decimal("123456789012345678.123456789")),
        ("1e2", Decimal("1e2")),
        ("-0.0", Decimal("-0.0")),
        ('"Ы\\u0000"', "Ы\0"),
        ("[]", []),
        ("null", None),
        ('{"a":1,"a":2}', {"a": 2}),
        ('\ufeff{"a":true}', {"a": True}),
        (' \r\n{"a":false}\n', {"a": False}),
        ("-0", 0),
        ("-9223372036854775809", -(2**63) - 1),
        ("9" * 4300, 10**4300 - 1),
        ("1E5", Decimal("1E+5")),
        ("0e999999", Decimal("0E+999999")),
        ('{"a":1,"b":2,"a":3}', {"a": 3, "b": 2}),
        ('"\\ud83d\\ude00 \\/ \x7f"', "😀 / \x7f"),
        ('"\\ud800"', "\ud800"),
        ('{"\\udfff":"\\ud800\\u0041"}', {"\udfff": "\ud800A"}),
    ],
)
def test_json_is_read_exactly(text, tree):
    found = decode(text)
    assert found == tree
    assert type(found) is type(tree)
    assert str(found) == str(tree)


@pytest.mark.parametrize(
    "text, why",
    [
        ("NaN", "NaN"),
        ('{"a":Infinity}', "Infinity"),
        ("[-Infinity]", "-Infinity"),
        ("9" * 5000, "not JSON"),
        ('{"a":' + "9" * 5000 + "}", "not JSON"),
        ("-" + "9" * 5000, "not JSON"),
        ('{"a":1', "not JSON"),
        ("{}{}", "not JSON"),
        ("[1]\0", "not JSON"),
        ("[1,]", "not JSON"),
        ("01", "not JSON"),
        ("1.", "not JSON"),
        ("[.5]", "not JSON"),
        ("\x0b1", "not JSON"),
        ('"\n"', "not JSON"),
        ('"\\x41"', "not JSON"),
        ("{'a':1}", "not JSON"),
        ('{"a":1/**/}', "not JSON"),
        ("plain words", "not JSON"),
        ("<!DOCTYPE html>", "HTML"),
        ("  \n<html>", "HTML"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>', ""),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b'"\xed\xa0\x80"', "not UTF-8 at byte 1"),
        (b'{"\xc0\x80":1}', "not UTF-8 at byte 2"),
        ('{"a":1}'.encode("utf-16"), ""),
        ("", "not JSON"),
    ],
)
def test_what_is_no_json_is_unparsed_with_the_reason(text, why):
    assert why in reason(decode(text))


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1e1000000", "1e99999999999999999999", "1e-99999999999999999999"]
)
def test_a_number_of_absurd_size_is_refused_where_it_is_read(number):
    # Exact it may be, but int() of 1e1000000 takes half a minute: nine bytes must not stop whoever adds it up.
    reason(decode(f'{{"price":{number}}}'))


@pytest.mark.parametrize("depth", [20_000, 200_000])
@pytest.mark.parametrize("opened, closed", [("[", "]"), ('{"a":', "}"), ("[", "")])
def test_json_nested_too_deep_is_unparsed_and_no_recursion_error(depth, opened, closed):
    reason(decode(opened * depth + "1" * bool(closed) + closed * depth))


@pytest.mark.parametrize("depth", [150, 400, 900, 5_000])
def test_json_that_was_read_can_be_walked_too(depth):
    # The parser's own bound is 1,000 levels on Python 3.11 and 10,000 on 3.13; whoever walks what it read has fewer.
    tree = decode('{"a":' * depth + "1" + "}" * depth)
    if not isinstance(tree, Unparsed):
        to_tree(Contact(id=1, raw=tree), raw=True)
        overlaid(tree, tree)
        JSON.encode(tree)


def test_json_of_a_usual_depth_is_read_however_many_brackets_it_has():
    assert isinstance(decode("[" * 64 + "]" * 64), list)
    assert len(decode("[" + ",".join(["[{}]"] * 5_000) + "]")) == 5_000


MARKS = st.text(alphabet='[]{}"\\a,', max_size=6)
TREES = st.recursive(
    st.one_of(st.none(), MARKS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(MARKS, inner, max_size=3)),
    max_leaves=12,
)


def levels(tree: Any) -> int:
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    return 0 if parts is None else 1 + max(map(levels, parts), default=0)


@given(TREES, st.integers(0, 30))
def test_how_deep_an_answer_is_is_counted_exactly(tree, more):
    for _ in range(more):
        tree = [tree]
    text, deep = json.dumps(tree).encode(), levels(tree)
    assert BothRoads(depth=deep).decode(text, "") == tree
    if deep:
        assert "deeper" in reason(BothRoads(depth=deep - 1).decode(text, ""))


def test_brackets_inside_strings_do_not_count():
    text = json.dumps({"text": '[[{{"\\' * 500})
    assert decode(text) == {"text": '[[{{"\\' * 500}


def test_a_string_that_never_ends_is_refused_quickly():
    # 12 kB: a scan that begins anew at every quote takes seconds for it, and hours for a megabyte.
    text = b"[" * 201 + b'"' + b'\\"' * 6_000
    assert seconds(lambda: decode(text)) < 0.3
    assert isinstance(decode(text), Unparsed)


def test_the_preview_is_short_and_printable():
    shown = decode("<" + "\0\x1b[31m\r\n" + "Ы" * 1_000)
    assert isinstance(shown, Unparsed)
    assert len(shown.preview) <= 200
    assert shown.preview.isprintable()


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_tree_or_unparsed_and_never_an_exception(content):
    JSON.decode(content, "")
    XML.decode(content, "")


# Texts that are nearly JSON, or are.
PIECES = st.sampled_from(
    [
        *'{}[],:"\\-01.e+/ \n\t\0\x7f\ufeffЫ',
        "\\u",
        "d800",
        "dc00",
        "0041",
        "9" * 20,
        "400",
        "null",
        "true",
        "NaN",
        '"a":',
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join))
@settings(max_examples=500)
def test_both_readers_of_json_take_the_same_texts(text):
    decode(text)
    decode(f'[{{"a":"{text}"}},{text}]')


def test_json_is_read_where_msgspec_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "msgspec.json", None)
    formats._faster.cache_clear()
    try:
        assert formats._faster() is None
        assert Json().decode(b'{"a":[1.10,"\xd0\xab"]}', "") == {"a": [Decimal("1.10"), "Ы"]}
    finally:
        formats._faster.cache_clear()


def test_msgspec_is_loaded_when_something_is_read_and_not_before():
    said = "import sys, crmclient.formats as f; before = 'msgspec' in sys.modules; f.Json().decode(b'1', '')"
    run = subprocess.run(
        [sys.executable, "-c", f"{said}; print(before, 'msgspec' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["False", "True"]


numbers = st.one_of(st.integers(-(2**70), 2**70), st.decimals(-(10**12), 10**12, places=2))
trees = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(st.characters(codec="utf-8"))),
    lambda below: st.one_of(st.lists(below), st.dictionaries(st.text(st.characters(codec="utf-8")), below)),
    max_leaves=20,
)


@given(trees)
@settings(max_examples=60)
def test_what_is_sent_is_read_back_the_same(tree):
    content, _ = JSON.encode(tree)
    assert JSON.decode(content, "") == tree


# ----------------------------------------------------------------------------------------------------------- JSON sent


@pytest.mark.parametrize(
    "number, sent",
    [
        (Decimal("1500"), "1500"),
        (Decimal("1500.00"), "1500"),
        (Decimal("1E+3"), "1000"),
        (Decimal("0.10"), "0.1"),
        (Decimal("19.99"), "19.99"),
        (Decimal("-0"), "0"),
        (Decimal(2**70), str(2**70)),
    ],
)
def test_a_decimal_is_sent_as_the_number_it_is(number, sent):
    assert JSON.encode({"a": number}) == (f'{{"a":{sent}}}'.encode(), "application/json")


@pytest.mark.parametrize(
    "number", ["12345678901234567.89", "0.1234567890123456789", "NaN", "sNaN", "Infinity", "-Infinity", "1E-400"]
)
def test_a_decimal_that_json_cannot_keep_is_invalid_and_not_rounded(number):
    with pytest.raises(Invalid):
        JSON.encode({"a": Decimal(number)})


def test_a_decimal_of_absurd_size_is_refused_quickly():
    def send() -> None:
        with pytest.raises(Invalid):
            JSON.encode({"a": Decimal("1E+200000")})

    assert seconds(send) < 0.3


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_float_that_is_no_number_is_invalid(number):
    with pytest.raises(Invalid):
        JSON.encode({"a": number})


def test_json_is_sent_short_and_in_utf8():
    assert JSON.encode({"name": "Иван", "tags": ["a"]})[0] == '{"name":"Иван","tags":["a"]}'.encode()


@pytest.mark.parametrize("encode", [JSON.encode, XML.encode], ids=["json", "form"])
def test_fault_033_half_a_character_is_read_and_not_sent_on(encode):
    # It comes in as "\ud800" in somebody's JSON, which json.loads takes, and wants out again in a migration.
    with pytest.raises(Invalid):
        encode({"name": decode('"\\ud800"')})


# ----------------------------------------------------------------------------------------------------------- PHP forms

fields = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)


@pytest.mark.parametrize(
    "body, pairs",
    [
        ({"a": 1, "b": "x"}, [("a", "1"), ("b", "x")]),
        ({"a": None, "b": [], "c": {}}, []),
        ({"a": True, "b": False}, [("a", "1"), ("b", "0")]),
        ({"a": ["x", "y"]}, [("a[0]", "x"), ("a[1]", "y")]),
        ({"a": ("x", None, "y")}, [("a[0]", "x"), ("a[2]", "y")]),
        (
            {"c": {"phones": [{"number": "+7", "type": 1}]}},
            [("c[phones][0][number]", "+7"), ("c[phones][0][type]", "1")],
        ),
        ({"a": {7: "x"}}, [("a[7]", "x")]),
        ({"a": Decimal("1.50")}, [("a", "1.50")]),
        ({"a": ""}, [("a", "")]),
    ],
)
def test_nested_values_become_the_pairs_php_reads(body, pairs):
    assert list(php_pairs(body)) == pairs


@settings(max_examples=40)
@given(st.dictionaries(fields, st.text(st.characters(codec="utf-8"))))
def test_a_form_is_read_back_the_same_whatever_its_values_hold(body):
    content, kind = XML.encode(body)
    assert kind == "application/x-www-form-urlencoded"
    assert dict(parse_qsl(content.decode("ascii"), keep_blank_values=True, strict_parsing=bool(body))) == body


nested = st.recursive(
    st.text(st.characters(codec="utf-8"), max_size=20),
    lambda below: st.dictionaries(fields, below, min_size=1, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(fields, nested, max_size=4))
@settings(max_examples=50)
def test_fault_112_what_is_sent_as_a_form_is_what_php_would_read(body):
    assert php_tree(form(body)) == body


@given(st.binary(max_size=100) | st.text("a[]0=&%+5Bф", max_size=40).map(str.encode))
@settings(max_examples=100)
def test_whatever_form_comes_is_a_tree_or_unreadable(content):
    with contextlib.suppress(Unreadable):
        assert isinstance(php_tree(content), dict)


@pytest.mark.parametrize(
    "content",
    [
        b"a" + b"[b]" * 16 + b"=1",
        b"&" * 10_000,
        b"a=" + b"x" * (1 << 20),
        b"a=%FF",
        b"[x]=1",
        b"a[b=1",
        b"a=1&a[b]=2",
        b"=1",
    ],
)
def test_a_form_beyond_the_bounds_or_with_no_name_is_unreadable(content):
    with pytest.raises(Unreadable):
        php_tree(content)


@pytest.mark.parametrize("key", ["a[b]", "a]", "a&b", "a=b", ""])
def test_fault_112_a_name_that_would_change_the_form_is_refused(key):
    with pytest.raises(Invalid):
        form({key: "x"})
    if key:
        with pytest.raises(Invalid):
            form({"a": {key: "x"}})


@pytest.mark.parametrize("value", [1.5, b"x", object(), {"x"}, date(2026, 1, 1)])
def test_a_value_no_form_can_hold_is_refused(value):
    with pytest.raises(Invalid):
        form({"a": value})


def test_nothing_is_an_empty_form():
    assert XML.encode(None)[0] == b""


# ----------------------------------------------------------------------------------------------------------------- XML


def xml(text: str | bytes, guarded: FormsInXmlOut = XML) -> Any:
    return guarded.decode(text.encode() if isinstance(text, str) else text, "text/xml")


def node(tag: str, text: str = "", *children: Any, **attributes: str) -> dict[str, Any]:
    return {"tag": tag, "text": text, "attributes": attributes, "children": list(children)}


@pytest.mark.parametrize(
    "text, tree",
    [
        ("<a/>", node("a")),
        ("<A>x</A>", node("a", "x")),
        ('<a ID="7">  x  </a>', node("a", "x", id="7")),
        ("<a><b>1</b><b>2</b></a>", node("a", "", node("b", "1"), node("b", "2"))),
        ('<n:a xmlns:n="urn:x"><n:b/></n:a>', node("a", "", node("b"))),
        ("<a>12<!-- a comment -->34</a>", node("a", "1234")),
        ("<a>1<?php x ?>2</a>", node("a", "12")),
        ("<a><![CDATA[<b>&]]></a>", node("a", "<b>&")),
        ("<a>&lt;&amp;&#1067;</a>", node("a", "<&Ы")),
        ('<?xml version="1.0" encoding="windows-1251"?><a>Ы</a>'.encode("cp1251"), node("a", "Ы")),
        ("\ufeff<a>Ы</a>", node("a", "Ы")),
    ],
)
def test_xml_is_read_as_plain_values(text, tree):
    assert xml(text) == tree


LAUGHS = (
    '<!DOCTYPE a [<!ENTITY l0 "lol">'
    + "".join("<!ENTITY l%d '%s'>" % (n, f"&l{n - 1};" * 10) for n in range(1, 10))  # noqa: UP031
    + "]><a>&l9;</a>"
)
ATTRIBUTES = " ".join(f"a{n}='1'" for n in range(65))


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE a><a/>",
        '<!DOCTYPE a SYSTEM "http://evil.test/x.dtd"><a/>',
        '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a>&e;</a>',
        LAUGHS,
    ],
)
def test_fault_038_a_document_type_is_refused_before_it_declares_anything(text):
    assert "document type" in reason(xml(text))


def test_fault_038_a_billion_laughs_cost_little():
    assert seconds(lambda: xml(LAUGHS)) < 2


@pytest.mark.parametrize(
    "text, why",
    [
        ("<a>" * 200_000, "deeper than 64"),
        ("<a>" * 65 + "</a>" * 65, "deeper than 64"),
        (f"<a {ATTRIBUTES}/>", "more than 64 attributes"),
        ("<a>text", "not XML"),
        ("<a>x & y</a>", "not XML"),
        ("<a>\0</a>", "not XML"),
        ("<a>\x08</a>", "not XML"),
        ("<a></b>", "not XML"),
        ("<a/><a/>", "not XML"),
        ("<a>&nbsp;</a>", "not XML"),
        ('<?xml version="1.0" encoding="no-such"?><a/>', "not XML"),
        ('<?xml version="1.0" encoding="utf-7"?><a/>', "not XML"),
        ('{"response":{}}', "not XML"),
        ("", "not XML"),
        ("<html><body>maintenance</body></html>", "HTML"),
        ('<HTML xmlns="http://www.w3.org/1999/xhtml"><body/></HTML>', "HTML"),
        ("<html><body><br>maintenance</html>", ""),
    ],
)
def test_fault_039_040_what_is_no_xml_of_ours_is_unparsed_with_the_reason(text, why):
    assert why in reason(xml(text))


def test_fault_039_xml_as_large_as_allowed_is_read_and_one_element_more_is_not():
    small = FormsInXmlOut(nodes=5, depth=3, attributes=1)
    assert xml("<a><b/><b/><b/><b/></a>", small) == node("a", "", *[node("b")] * 4)
    assert "more than 5 elements" in reason(xml("<a><b/><b/><b/><b/><b/></a>", small))
    assert "deeper than 3" in reason(xml("<a><b><c><d/></c></b></a>", small))
    assert "more than 1 attributes" in reason(xml('<a x="1" y="2"/>', small))
    assert xml("<a>" * 64 + "</a>" * 64)["tag"] == "a"


# ------------------------------------------------------------------------------------------------------------- scalars


def test_a_moment_in_utc_ends_in_z():
    assert iso(datetime(2026, 3, 20, 10, 15, tzinfo=UTC)) == "2026-03-20T10:15:00Z"
    assert iso(date(2026, 3, 20)) == "2026-03-20"
