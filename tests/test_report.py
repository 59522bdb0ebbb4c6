"""What is told of a move is what its ledger holds: nothing is left out, nothing is obeyed, and it may go on meanwhile."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from crmclient import Company, Contact, Deal, Misconfigured, Note
from crmclient.entities import Entity, Id, Kind, Ref
from crmclient.migration.ledger import Fresh, Ledger, LedgerFailed, Run, Settled, State
from crmclient.migration.plan import FieldMatch, Loss, Plan, Side, StageMatch, UserMatch, to_toml
from crmclient.migration.report import Report

BEGAN = datetime(2026, 11, 22, 3, 4, tzinfo=UTC)
RUN = Run(
    id="01run",
    source="https://old.example",
    target="https://new.example",
    plan="",
    plan_hash="p1",
    caps_hash="c1",
    started_at=BEGAN,
)
VERDICT = {
    "equal": False,
    "sentence": "3 of 4 rows of old are on new as they should be. 0 differ, 1 missing.",
    "source": "old",
    "target": "new",
    "kinds": {"contacts": {"same": 3, "differs": 0, "missing": 1}},
    "no_place": {},
    "dropped": {"deal.price": 7},
    "folded": {},
    "restamped": {},
}
ROWS: dict[str, type[Entity]] = {"companies": Company, "contacts": Contact, "deals": Deal, "notes": Note}
ODD = "<script>alert('x')</script> & \x1b[31m \u202eevil"


def noted(ledger: Ledger, kind: str, *sources: Id, name: str | None = None) -> None:
    row = ROWS[kind]
    more: dict[str, Any] = {"target": Ref(Kind.DEAL, 1)} if kind == "notes" else {}
    ledger.ingest(Fresh(kind=kind, source=id, row=row(id=id, **more), name=name) for id in sources)


def became(ledger: Ledger, kind: str, source: Id, state: State, *told: Any, **kept: Any) -> None:
    """``told``: the target's id, what is to be said of it."""
    target, error = (*told, None, None)[:2]
    ledger.become(kind, {source: Settled(state=state, target=target, error=error, kept=kept)})


@pytest.fixture
def ledger(tmp_path: Path) -> Iterable[Ledger]:
    """One of everything: a moved row, a refused one with what hung on it, one in doubt, one left out, one folded."""
    with Ledger(tmp_path / "x.ledger", durable=False) as ledger:
        ledger.begin(RUN)
        noted(ledger, "companies", 1, 2)
        noted(ledger, "contacts", 10, 11, 12, name=ODD)
        noted(ledger, "deals", 20, 21)
        noted(ledger, "notes", 30, 31, 32)
        became(ledger, "companies", 1, State.DONE, 101, **{"company.fields: Größe": {"амт": 7}, "company.notes": ODD})
        became(ledger, "companies", 2, State.FOLDED, None, "a word on 3 contacts")
        became(ledger, "contacts", 10, State.REJECTED, None, "phones: too long (E1: <b>42</b>)")
        became(ledger, "deals", 20, State.REJECTED, None, "its contact 10 was rejected")
        became(ledger, "notes", 30, State.REJECTED, None, "its deal 20 was rejected")
        became(ledger, "notes", 31, State.REJECTED, None, "its deal 99 was rejected")
        became(ledger, "contacts", 11, State.DOUBT, None, "2 rows of the target look like it")
        became(ledger, "deals", 21, State.SKIPPED, None, "the target has no deals")
        ledger.learn("field", "deal.price", 55, "made")
        ledger.learn("making field", "deal.price", None, "asked for")
        ledger.learn("finishing contacts", 10, 2, "it was slow")
        ledger.learn("watermark", "contacts", 4711, "newest")
        yield ledger


def tree(path: Path, **ways: Any) -> dict[str, Any]:
    with Report(path) as report:
        return json.loads("".join(report.json(**ways)))


def page(path: Path, **ways: Any) -> str:
    with Report(path) as report:
        return "".join(report.html(**ways))


class Reader(HTMLParser):
    """What a browser would see of a page: its tags, its links, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta",):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data
        elif {"h1", "h2", "h3"} & {*self.open}:
            self.headings[-1] += data


# ------------------------------------------------------------------------------------------------------ for machines


def test_json_lists_every_row_that_did_not_simply_move_with_its_reason(ledger: Ledger) -> None:
    told = tree(ledger.path)
    assert (told["run"], told["plan"], told["losses"]) == ("01run", "p1", None)
    assert (told["source"], told["target"]) == ({"address": RUN.source}, {"address": RUN.target})
    assert (told["state"], told["started_at"], told["ended_at"]) == ("running", "2026-11-22T03:04:00+00:00", None)
    assert list(told["kinds"]) == ["companies", "contacts", "deals", "notes"]
    assert told["kinds"]["contacts"] == {
        **{str(state): 0 for state in State},
        "pending": 1,
        "rejected": 1,
        "doubt": 1,
    }
    assert [(row["kind"], row["source"], row["error"]) for row in told["in_doubt"]] == [
        ("contacts", 11, "2 rows of the target look like it")
    ]
    assert [(row["source"], row["error"]) for row in told["skipped"]] == [(21, "the target has no deals")]
    assert [(row["source"], row["error"]) for row in told["folded"]] == [(2, "a word on 3 contacts")]
    assert [(each["source"], each["target"], each["what"], each["value"]) for each in told["kept"]] == [
        (1, 101, "company.fields: Größe", {"амт": 7}),
        (1, 101, "company.notes", ODD),
    ]
    # How far the target's ids went, and how often something was tried, are notes of the ledger to itself.
    made = {"kind": "fields", "source": "deal.price", "target": 55, "name": None, "how": "made", "rows": None}
    assert told["mapped"] == [made]
    assert "rows" not in told


def test_what_hung_on_a_refused_row_is_listed_under_it(ledger: Ledger) -> None:
    first, orphan = tree(ledger.path)["rejected"]
    assert (first["kind"], first["source"], first["name"]) == ("contacts", 10, ODD)
    assert [(row["kind"], row["source"]) for row in first["children"]] == [("deals", 20)]
    assert [(row["kind"], row["source"]) for row in first["children"][0]["children"]] == [("notes", 30)]
    # What says so of a row that was not refused stands by itself, and is not lost.
    assert (orphan["source"], orphan["children"]) == (31, [])


def test_with_all_every_row_is_there_with_its_ids_on_both_sides(ledger: Ledger) -> None:
    rows = tree(ledger.path, every=True)["rows"]
    assert len(rows) == 10
    assert rows[0] == {
        "kind": "companies",
        "source": 1,
        "target": 101,
        "state": "done",
        "name": None,
        "error": None,
        "attempts": 0,
    }
    assert [(row["kind"], row["source"]) for row in rows] == sorted((row["kind"], row["source"]) for row in rows)


def test_json_of_a_move_that_made_nothing_is_json_all_the_same(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x.ledger", durable=False) as ledger:
        ledger.begin(RUN)
        told = tree(ledger.path, every=True)
    assert told["kinds"] == {}
    lists = ("mapped", "rejected", "in_doubt", "skipped", "folded", "remarked", "kept", "rows")
    assert [told[name] for name in lists] == [[]] * len(lists)


def test_rows_that_moved_with_something_to_say_of_them_are_listed(ledger: Ledger) -> None:
    became(ledger, "contacts", 12, State.DONE, 112, "it goes without companies 2, which did not arrive")
    ledger.adopt([("deals", 22, 122)])
    remarked = tree(ledger.path)["remarked"]
    assert [(row["source"], row["target"], row["error"]) for row in remarked] == [
        (12, 112, "it goes without companies 2, which did not arrive")
    ]
    seen = Reader(page(ledger.path))
    assert "Moved, but: 1" in seen.headings
    assert [
        "contacts",
        "12",
        "112",
        ODD.replace("\x1b", "\ufffd").replace("\u202e", "\ufffd"),
        remarked[0]["error"],
    ] in seen.rows


def planned() -> Plan:
    sides = {
        name: Side(dialect=name, address=f"https://{name}.example", account=name, name=f"{name} & Co", capabilities="c")
        for name in ("old", "new")
    }
    return Plan(
        made=BEGAN,
        source=sides["old"],
        target=sides["new"],
        users=(UserMatch(source=1, name="Anna", target=11, how="e-mail", rows=3), UserMatch(source=2, name="Idle")),
        stages=(StageMatch(pipeline=5, stage=6, name="Won", target_stage=66, how="outcome", rows=4),),
        fields=(FieldMatch(entity=Kind.DEAL, code="GOAL", name="Goal", target_code="AIM", how="name", rows=2),),
        losses=(Loss(what="deal.price", rows=7, why="there is no such field"),),
    )


def test_what_the_plan_said_is_told_beside_what_came_of_it(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x.ledger", durable=False) as ledger:
        ledger.begin(evolve(RUN, plan=to_toml(planned())))
        told, seen = tree(ledger.path), Reader(page(ledger.path))
    assert told["source"] == {
        "address": "https://old.example",
        "dialect": "old",
        "account": "old",
        "name": "old & Co",
    }
    assert told["losses"] == [{"what": "deal.price", "rows": 7, "why": "there is no such field", "choice": "drop"}]
    words = [(word["kind"], word["source"], word["target"], word["name"], word["rows"]) for word in told["mapped"]]
    assert words == [("users", 1, 11, "Anna", 3), ("stages", 6, 66, "Won", 4), ("fields", "GOAL", "AIM", "Goal", 2)]
    assert ["deal: price", "7", "left out", "there is no such field"] in seen.rows
    assert ["users", "1", "11", "Anna", "e-mail", "3"] in seen.rows


def test_the_page_says_each_loss_once_in_words_that_no_program_is_known_for(tmp_path: Path) -> None:
    losses = (
        Loss(what="contact.updated_by", rows=7, why="not taken for new contacts; nothing like it there"),
        Loss(what="deal.fields: Age_1", rows=4, why="no such field there", choice="fold"),
        Loss(what="notes", rows=3, why="no such rows there", choice="archive"),
        Loss(what="note.params", rows=0, why="not said in its text", choice="fold"),
    )
    counted = {"no_place": {"notes": 3}, "archived": {"notes": 3}, "folded": {"deal.fields: Age_1": 1}}
    found = VERDICT | counted | {"dropped": {"contact.updated_by": 6}, "restamped": {"deal.updated_at": 9}}
    why = "this cannot be set there; nothing like it there"
    with Ledger(tmp_path / "x.ledger", durable=False) as ledger:
        ledger.begin(evolve(RUN, plan=to_toml(evolve(planned(), losses=losses))))
        before = Reader(page(ledger.path))
        ledger.note_state("ended", BEGAN, json.dumps(found))
        after, text = Reader(page(ledger.path)), page(ledger.path)
    for seen, rows in ((before, (7, 4, 3)), (after, (6, 1, 3))):
        lost = [row for row in seen.rows if row[-1] in (why, "no such field there", "no such rows there")]
        assert lost == [
            ["contact: who changed it last", str(rows[0]), "left out", why],
            ["deal: “Age_1”", str(rows[1]), "told in a text", "no such field there"],
            ["notes", str(rows[2]), "kept in the ledger", "no such rows there"],
        ]
        assert "Not as it was: 3" in seen.headings
    assert ["deal: when it was changed last", "9"] in after.rows
    assert not re.search("updated_|not taken|>(drop|fold|archive)<", text)


@pytest.mark.parametrize(
    "state, told",
    [
        ("running", ("killed", "no process works by it: the same command as before goes on", "")),
        ("adopted", ("adopted", "not gone on with yet", "")),
        ("stopped", ("stopped", "the same command as before goes on", "")),
        ("stopped, unsure", ("stopped", "the same command as before goes on", "")),
        ("stopped: Unavailable: x: y", ("stopped", "the same command as before goes on", "x: y")),
    ],
)
def test_it_is_told_how_a_move_stands_by_which_nobody_works(tmp_path: Path, state: str, told: tuple[str, ...]) -> None:
    with Ledger(tmp_path / "x.ledger", durable=False) as ledger:
        ledger.begin(RUN)
        ledger.note_state(state)
    with Report(ledger.path) as report:
        assert report.standing == told


def test_a_ledger_whose_plan_nobody_can_read_any_more_still_tells(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x.ledger", durable=False) as ledger:
        ledger.begin(evolve(RUN, plan="version = 99"))
        noted(ledger, "contacts", 1)
        assert tree(ledger.path)["kinds"]["contacts"]["pending"] == 1
        assert "old.example" in page(ledger.path)


@pytest.mark.parametrize(
    "kind, source, error",
    [
        ("companies", 2, "its deal 20 was rejected"),  # upwards: it would be its own ancestor
        ("deals", 20, "its deal 20 was rejected"),
        ("deals", 20, "its price was rejected"),
        ("deals", 20, "its users 10 was rejected"),
    ],
)
def test_no_refused_row_is_lost_whatever_its_reason_says(ledger: Ledger, kind: str, source: Id, error: str) -> None:
    became(ledger, kind, source, State.REJECTED, None, error)

    def number(rows: list[dict[str, Any]]) -> int:
        return sum(1 + number(row["children"]) for row in rows)

    told = tree(ledger.path)
    assert number(told["rejected"]) == sum(counts["rejected"] for counts in told["kinds"].values())


def test_siblings_and_ids_that_are_texts_keep_their_places(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x.ledger", durable=False) as ledger:
        ledger.begin(RUN)
        noted(ledger, "companies", "ООО «7 was rejected»", "Acme")
        noted(ledger, "contacts", 1, 2, 3, 4)
        for company in ("ООО «7 was rejected»", "Acme"):
            became(ledger, "companies", company, State.REJECTED, None, "name: too long")
        for contact, company in ((1, "Acme"), (2, "ООО «7 was rejected»"), (3, "Acme")):
            became(ledger, "contacts", contact, State.REJECTED, None, f"its companies {company} was rejected")
        became(ledger, "contacts", 4, State.REJECTED, None, "no")
        rejected = tree(ledger.path)["rejected"]
    assert [(row["source"], [child["source"] for child in row["children"]]) for row in rejected] == [
        ("Acme", [1, 3]),
        ("ООО «7 was rejected»", [2]),
        (4, []),
    ]


# -------------------------------------------------------------------------------------------------------- for people


def test_the_page_says_first_what_came_of_it(ledger: Ledger) -> None:
    text = page(ledger.path)
    assert "<h1>old.example → new.example</h1>" in text
    assert (
        "The move has not ended: 1 of 10 rows read so far are in the target. 4 rows were refused. 1 row is in doubt."
        in text
    )
    ledger.note_state("ended", BEGAN, json.dumps(VERDICT))
    text = page(ledger.path)
    assert f"{VERDICT['sentence']} 4 rows were refused. 1 row is in doubt." in text
    assert "2026-11-22 03:04 UTC" in text
    assert ["contacts", "3", "0", "1"] in Reader(text).rows
    assert ["deal: price", "7", "left out", ""] in Reader(text).rows
    # It was compared and not all is as it should be.
    assert ("<h2>Compared</h2>" in text, "Verified" in text) == (True, False)
    ledger.note_state("ended", BEGAN, json.dumps(VERDICT | {"equal": True}))
    assert "<h2>Verified</h2>" in page(ledger.path)


def test_the_page_has_a_row_for_each_kind_and_a_section_for_each_fate(ledger: Ledger) -> None:
    seen = Reader(page(ledger.path))
    assert ["", "read", "moved", "folded", "left out", "refused", "in doubt", "not done yet"] in seen.rows
    assert ["contacts", "3", "0", "0", "0", "1", "1", "1"] in seen.rows
    assert ["all", "10", "1", "1", "1", "4", "1", "2"] in seen.rows
    sections = [heading for heading in seen.headings if ": " in heading]
    assert sections == ["Refused: 4", "In doubt: 1", "Left out: 1", "Folded: 1", "Moved: 1", "Archived: 2", "Words: 1"]
    assert ["companies", "1", "101", "", ""] in seen.rows
    assert ["companies", "1", "101", "", "company: “Größe”", '{"амт": 7}'] in seen.rows
    kinds = [row[0] for row in seen.rows if row[-1].endswith(("was refused, so this was not sent", "</b>)"))]
    assert kinds == ["contacts", "\u2003└ deals", "\u2003\u2003└ notes", "notes"]


def test_nothing_from_outside_is_obeyed_by_a_browser(ledger: Ledger) -> None:
    ledger.note_state("stopped: Unreachable: <img src=x onerror=alert(1)>")
    ledger.close()
    text = page(ledger.path)
    assert "stopped: &lt;img src=x" in text
    seen = Reader(text)
    assert not {"script", "img", "link", "b", "iframe", "a"} & {*seen.tags}
    assert not [name for name, _ in seen.attributes if name.startswith(("on", "href", "src"))]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert any("<script>alert('x')</script> & \ufffd[31m \ufffdevil" in cell for row in seen.rows for cell in row)
    # And were something to slip through, the page lets nothing run and nothing be fetched.
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in seen.attributes
    assert not re.search(r"https?://(?!old\.example|new\.example)", text)
    text.encode()


def test_of_many_rows_the_page_shows_the_first_and_says_where_the_others_are(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x.ledger", durable=False) as ledger:
        ledger.begin(RUN)
        noted(ledger, "contacts", *range(1, 1501))
        ledger.become("contacts", {id: Settled(state=State.REJECTED, error=f"no {id}") for id in range(1, 1501)})
        text = page(ledger.path)
        seen = Reader(text)
        assert sum(row[-1].startswith("no ") for row in seen.rows) == 1000
        assert "Refused: 1 500" in seen.headings
        assert "These are the first 1 000 of 1 500" in text
        assert "--json" in text
        assert len(tree(ledger.path)["rejected"]) == 1500
        assert sum(row[-1].startswith("no ") for row in Reader(page(ledger.path, most=1500)).rows) == 1500
        assert "the first" not in page(ledger.path, most=1500)


# ------------------------------------------------------------------------------------------------- while it goes on


def test_it_tells_of_one_moment_while_the_move_goes_on(ledger: Ledger) -> None:
    with Report(ledger.path) as report:
        pieces = report.json(every=True)
        told = next(pieces)
        became(ledger, "contacts", 12, State.DONE, 112)
        noted(ledger, "contacts", 13)
        tree = json.loads(told + "".join(pieces))
    assert [(row["source"], row["state"]) for row in tree["rows"] if row["kind"] == "contacts"][-1] == (12, "pending")
    with Report(ledger.path) as report:
        assert report.counts["contacts"][State.DONE] == 1


def test_it_names_the_process_that_works_by_the_ledger_and_leaves_it_alone(ledger: Ledger) -> None:
    with Report(ledger.path) as report:
        assert f"process {os.getpid()} since " in (report.holder() or "")
    ledger.close()
    with Report(ledger.path) as report:
        assert report.holder() is None
    with Ledger(ledger.path, durable=False):
        pass
    ledger.path.with_name("x.ledger.lock").unlink()
    with Report(ledger.path) as report:
        assert report.holder() is None
    assert not ledger.path.with_name("x.ledger.lock").exists()


def test_without_a_move_there_is_nothing_to_tell(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="there is no ledger at"), Report(tmp_path / "none"):
        raise AssertionError
    with Ledger(tmp_path / "x.ledger", durable=False) as ledger, Report(ledger.path) as report:
        assert report.run is None
        with pytest.raises(Misconfigured, match="no move has begun by"):
            next(report.json())
        with pytest.raises(Misconfigured, match="no move has begun by"):
            next(report.html())


def test_a_ledger_that_is_damaged_is_said_to_be(ledger: Ledger) -> None:
    noted(ledger, "contacts", *range(1000, 3000))
    ledger.close()
    content = bytearray(ledger.path.read_bytes())
    content[4096 * 4 :] = b"\xff" * (len(content) - 4096 * 4)
    ledger.path.write_bytes(content)
    with pytest.raises(LedgerFailed, match=r"cannot be (read|used)"), Report(ledger.path) as report:
        "".join(report.json(every=True))


@pytest.mark.e2e
def test_memory_stays_the_same_however_many_rows_there_are(tmp_path: Path) -> None:
    program = (
        "import resource, sys\nfrom crmclient.migration.report import Report\n"
        "with Report(sys.argv[1]) as report:\n"
        "    print(sum(map(len, report.json(every=True))), sum(map(len, report.html())),"
        " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peaks: list[int] = []
    for number in (1_000, 60_000):
        with Ledger(tmp_path / f"{number}.ledger", durable=False) as ledger:
            ledger.begin(RUN)
            ledger.db.execute("BEGIN")
            ledger.db.executemany(
                "INSERT INTO item (kind, src, state, error) VALUES (?, ?, 'rejected', ?)",
                (
                    (
                        "deals" if id % 2 else "contacts",
                        id,
                        f"its contact {id - 1} was rejected" if id % 2 else "no" * 40,
                    )
                    for id in range(number)
                ),
            )
            ledger.db.execute("COMMIT")
        done = subprocess.run(
            [sys.executable, "-c", program, str(ledger.path)], capture_output=True, text=True, check=True
        )
        said, shown, peak = map(int, done.stdout.split())
        assert said > number * 100
        assert shown < 1_000_000
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 12_000, peaks  # kB: what SQLite keeps of a file, and not the rows
