"""A form in PHP's brackets is read as PHP would, in bounds; what PHP would garble or drop is refused."""

import time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmclient import Unreadable
from crmclient.formats import form, in_order, is_indexed, php_pairs, php_tree


def refusal(body: bytes, **bounds) -> str:
    with pytest.raises(Unreadable) as told:
        php_tree(body, **bounds)
    return told.value.message


# ------------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    "body, tree",
    [
        (b"", {}),
        (b"a=1", {"a": "1"}),
        (b"a", {"a": ""}),
        (b"a=1&&b=2&", {"a": "1", "b": "2"}),
        (b"a=1=2", {"a": "1=2"}),
        (b"leads[add][0][id]=7", {"leads": {"add": {"0": {"id": "7"}}}}),
        (b"leads%5Badd%5D%5B0%5D%5Bid%5D=7", {"leads": {"add": {"0": {"id": "7"}}}}),
        (b"a[b]=1&a[c]=2", {"a": {"b": "1", "c": "2"}}),
        (b"name=Ivan+Petrov", {"name": "Ivan Petrov"}),
        (b"name=1%2B1", {"name": "1+1"}),
        ("имя=Иван".encode(), {"имя": "Иван"}),
        (quote("имя").encode() + b"=" + quote("Иван").encode(), {"имя": "Иван"}),
        (b"text=%00", {"text": "\0"}),
        (b"text=100%", {"text": "100%"}),
    ],
)
def test_a_form_becomes_maps_of_text(body, tree):
    assert php_tree(body) == tree


def test_the_last_of_two_equal_names_wins():
    assert php_tree(b"a=1&a=2&b[c]=3&b[c]=4") == {"a": "2", "b": {"c": "4"}}


def test_only_an_ampersand_separates():
    assert php_tree(b"a=1;b=2") == {"a": "1;b=2"}


def test_text_is_unquoted_once():
    assert php_tree(b"a=%2541&b%255B0%255D=1") == {"a": "%41", "b%5B0%5D": "1"}


def test_empty_brackets_take_the_next_index():
    assert php_tree(b"a[]=x&a[]=y") == {"a": {"0": "x", "1": "y"}}
    assert php_tree(b"a[5]=x&a[]=y&a[b]=z&a[]=w") == {"a": {"5": "x", "6": "y", "b": "z", "7": "w"}}
    assert php_tree(b"a[][b]=x&a[][b]=y") == {"a": {"0": {"b": "x"}, "1": {"b": "y"}}}


def test_values_come_in_the_order_of_their_index_and_not_of_their_arrival():
    assert list(in_order(php_tree(b"a[10]=c&a[2]=b&a[0]=a")["a"])) == ["a", "b", "c"]
    assert list(in_order(["x", "y"])) == ["x", "y"]
    assert list(in_order({"b": 1, "0": 2})) == [2, 1]
    assert list(in_order("text")) == []
    assert list(in_order(None)) == []


def test_a_map_stands_for_a_list_when_all_its_keys_are_indexes():
    assert is_indexed({"0": "a", "17": "b"})
    assert is_indexed(["a"])
    assert not is_indexed({"0": "a", "value": "b"})
    assert not is_indexed({"01": "a"})
    assert not is_indexed("0")


# ----------------------------------------------------------------------------------------------------- what is hostile


@pytest.mark.parametrize(
    "body", [b"a=1&a[b]=2", b"a[b]=2&a=1", b"a[0]=1&a[0][b]=2", b"a[b][c]=1&a[b]=2", b"a=1&a[]=2", b"a[]=2&a="]
)
def test_a_name_that_is_a_text_and_holds_others_is_refused_in_either_order(body):
    assert "a text and holds others" in refusal(body)


def test_a_path_that_is_known_to_be_both_keeps_its_text_under_the_empty_key():
    allowed = [("*", "note", "*", "note", "type")]
    both = {"": "3", "uuid": "x"}
    for body in (
        b"contacts[note][0][note][type]=3&contacts[note][0][note][type][uuid]=x",
        b"contacts[note][0][note][type][uuid]=x&contacts[note][0][note][type]=3",
    ):
        assert php_tree(body, also_parents=allowed)["contacts"]["note"]["0"]["note"]["type"] == both
        assert "a text and holds others" in refusal(body)
    assert "a text" in refusal(b"a[note][0][note][id]=3&a[note][0][note][id][x]=1", also_parents=allowed)
    assert "a text" in refusal(b"a[note][0][note]=3&a[note][0][note][type]=1", also_parents=allowed)


def test_a_depth_bomb_is_refused_without_descending():
    begun = time.process_time()
    assert "100001 levels deep" in refusal(b"a" + b"[x]" * 100_000 + b"=1")
    assert time.process_time() - begun < 0.5
    assert php_tree(b"a" + b"[x]" * 15 + b"=1")
    assert "17 levels" in refusal(b"a" + b"[x]" * 16 + b"=1")
    assert "17 levels" in refusal(b"a" + b"%5Bx%5D" * 16 + b"=1")


def test_an_index_bomb_is_a_key_and_allocates_no_list():
    assert php_tree(b"a[999999999]=1") == {"a": {"999999999": "1"}}
    assert php_tree(b"a[99999999999999999999999]=1&a[]=2") == {"a": {"99999999999999999999999": "1", "0": "2"}}
    assert php_tree(b"a[999999999999999999]=1&a[]=2")["a"]["1000000000000000000"] == "2"


def test_too_many_fields_and_too_many_bytes_are_refused():
    assert "10001 fields" in refusal(b"&".join(b"a%d=1" % n for n in range(10_001)))
    assert len(php_tree(b"&".join(b"a%d=1" % n for n in range(10_000)))) == 10_000
    assert "fields" in refusal(b"&" * 20_000)
    assert "bytes" in refusal(b"a=" + b"x" * (1 << 20))
    assert "at most 3" in refusal(b"a=11", size=3)
    assert "at most 2" in refusal(b"a=1&b=1&c=1", fields=2)


def test_ten_thousand_deep_fields_are_read_quickly():
    body = b"&".join(b"a[%d][b][c][d][e]=1" % n for n in range(10_000))
    begun = time.process_time()
    assert len(php_tree(body)["a"]) == 10_000
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("body", ["a=Иван".encode("cp1251"), b"a=%CF%F0", b"%FF=1", b"a=%ED%A0%80"])
def test_what_is_not_utf_8_is_refused(body):
    assert "UTF-8" in refusal(body)


@pytest.mark.parametrize(
    "name", ["", "[a]", "[]", "a[b", "a]b", "a[b]c", "a[b]c[d]", "a[[b]]", "a[b]]", "a%00b", "a[b%00]", "a%0Ab"]
)
def test_what_is_no_name_is_refused(name):
    assert "name of a form field" in refusal(name.encode() + b"=1")


def test_a_complaint_does_not_repeat_what_is_long():
    assert len(refusal(b"x" * 5_000 + b"]=1")) < 200
    long = b"x" * 5_000
    assert len(refusal(long + b"=1&" + long + b"[a]=1")) < 200


# ---------------------------------------------------------------------------------------------------------- both ways

names = st.text(st.characters(codec="utf-8", exclude_characters="[]&=", min_codepoint=32), min_size=1, max_size=6)
texts = st.text(st.characters(codec="utf-8"), max_size=8)
bodies = st.dictionaries(
    names,
    st.recursive(
        st.one_of(texts, st.integers(), st.booleans(), st.none()),
        lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(names, below, max_size=3)),
        max_leaves=12,
    ),
    max_size=4,
)


def as_text(part):
    """What is left of a tree once it is text: no empties, no None, lists by their index."""
    if isinstance(part, list):
        part = dict(enumerate(part))
    if isinstance(part, dict):
        below = {str(key): as_text(each) for key, each in part.items()}
        return {key: each for key, each in below.items() if each is not None} or None
    if isinstance(part, bool):
        return "1" if part else "0"
    return None if part is None else str(part)


@given(bodies)
def test_what_php_writes_is_read_back(body):
    assert php_tree(form(body)) == (as_text(body) or {})


@given(bodies, st.randoms())
def test_the_order_of_the_fields_changes_nothing(body, random):
    pairs = list(php_pairs(body))
    random.shuffle(pairs)
    shuffled = "&".join(f"{quote_plus(name)}={quote_plus(text)}" for name, text in pairs).encode()
    assert php_tree(shuffled) == (as_text(body) or {})


@given(st.one_of(st.binary(max_size=200), st.text("a0[]=&%5BD;+", max_size=60).map(str.encode)))
def test_any_bytes_are_read_or_refused(body):
    try:
        tree = php_tree(body)
    except Unreadable:
        return
    assert all(isinstance(part, str | dict) for part in tree.values())
