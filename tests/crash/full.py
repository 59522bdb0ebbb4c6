"""What the tests leave out, for a session of its own: points two by two, lanes, storms, servers that make it hard. A table.

    python tests/crash/full.py                                       everything; CRMCLIENT_CRASHES cases of each row and pair
    python tests/crash/full.py --row "storm, 3 lanes" --pair amoxml-kommo --seed 17         one case, told at length

It ends with 1 when anything was doubled, lost, tied otherwise or broken.
"""

import argparse
import asyncio
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from typing import Any, Final

from attrs import astuple, field, frozen
from trials import ACTS, LATE, NAMES, STOP, Decide, Point, Score, Stage, Way, just, silenced, stage_of, trial, twins

from crmclient.sandbox.server import face

KILLS: Final = ("kill-before", "kill-after", "kill-late")
COMMIT: Final = ("before", "after")
# After so many runs the weather clears.
STORMY: Final = 37
AT_ONCE: Final = 10


@frozen(kw_only=True)
class Row:
    """A line of the table: what happens, how the move is made, and of what accounts."""

    name: str
    what: Callable[[Stage, int], Decide]
    way: Mapping[str, Any] = field(factory=dict[str, Any])
    stage: Mapping[str, Any] = field(factory=dict[str, Any])


def _cut(stage: Stage, dice: random.Random, run: int, acts: tuple[str, ...] = ACTS) -> tuple[Point, str]:
    where = dice.choices(("source", "target", "commit"), (1, 4, 3))[0]
    # A run that goes on where another died does less: its points are fewer, and some of these are never reached.
    number = dice.randrange(1, len(stage.points[where]) + 1)
    return Point(run, where, number), dice.choice(COMMIT if where == "commit" else acts)


def one_point(stage: Stage, seed: int) -> Decide:
    return just(dict([_cut(stage, random.Random(f"one {seed}"), 1)]))


def two_points(stage: Stage, seed: int) -> Decide:
    """Killed, begun again, and killed or cut off once more."""
    dice = random.Random(f"two {seed}")
    return just(dict([_cut(stage, dice, 1, KILLS), _cut(stage, dice, 2)]))


def storm(acts: tuple[str, ...] = ACTS) -> Callable[[Stage, int], Decide]:
    def of(stage: Stage, seed: int) -> Decide:
        share = random.Random(f"share {seed}").choice((0.05, 0.1, 0.2, 0.25))

        def decide(point: Point, what: str) -> str | None:
            if point.run > STORMY:
                return None
            dice = random.Random(f"storm {seed} {point}")
            if dice.random() >= (share / 5 if point.where == "commit" else share):
                return None
            return dice.choice(COMMIT if point.where == "commit" else acts)

        return decide

    return of


ROWS: Final = (
    *(Row(name=f"one point, {n} lanes", what=one_point, way={"lanes": n}) for n in (1, 3, 8)),
    Row(name="one point, 3 lanes, up to 0.4 s each way", what=one_point, way={"lanes": 3, "latency": 0.4}),
    Row(name="one point, all alike", what=one_point, stage={"furnish": twins}),
    Row(name="one point, all alike, no marker", what=one_point, stage={"furnish": twins, "marker": "off"}),
    Row(name="two points", what=two_points),
    Row(name="two points, 1 lane, no marker", what=two_points, way={"lanes": 1}, stage={"marker": "off"}),
    *(Row(name=f"storm, {n} lanes", what=storm(), way={"lanes": n}) for n in (1, 3, 8)),
    Row(name="storm, 3 lanes, up to 0.4 s each way", what=storm(), way={"lanes": 3, "latency": 0.4}),
    Row(name="storm, within the limits", what=storm(), way={"limits": True}),
    Row(name="storm, a colleague writes too", what=storm(), way={"foreign": True}),
    Row(name="storm, index 3 requests behind", what=storm(), stage={"index-lag": "3"}),
    Row(name="storm, filters ignored", what=storm(), stage={"ignore-filters": True}),
    Row(name="storm, everything lands late", what=storm(("kill-late", "late"))),
    Row(name="storm, HTML and 504 for answers", what=storm(("504-after", "html-after"))),
    Row(name="storm, ids far apart", what=storm(), stage={"sparse": 7}),
    Row(name="storm, all alike", what=storm(), stage={"furnish": twins}),
    Row(name="storm, all alike, tags for markers", what=storm(), stage={"furnish": twins, "marker": "tag"}),
    Row(name="storm, all alike, no marker", what=storm(), stage={"furnish": twins, "marker": "off"}),
    Row(name="storm, stopped as well", what=storm((*ACTS, STOP, STOP))),
    Row(name="storm, stopped, everything lands late", what=storm(("kill-late", "late", STOP))),
    Row(name="storm, answers without ids", what=storm(), stage={"id-in-answer": False}),
    Row(name="one point, the ledger is lost", what=one_point, way={"forgetful": True}),
    Row(name="two points, the ledger is lost", what=two_points, way={"forgetful": True}),
    Row(
        name="one point, the ledger is lost, all alike",
        what=one_point,
        way={"forgetful": True},
        stage={"furnish": twins},
    ),
    Row(
        name="one point, the ledger is lost, all alike, no marker",
        what=one_point,
        way={"forgetful": True},
        stage={"furnish": twins, "marker": "off"},
    ),
    Row(name="storm, the ledger is lost", what=storm(), way={"forgetful": True}),
    Row(
        name="storm, everything at once",
        what=storm(),
        way={"lanes": 3, "foreign": True, "latency": 0.4},
        stage={"furnish": twins, "index-lag": "3", "ignore-filters": True, "sparse": 7},
    ),
)


def fits(row: Row, goal: str) -> bool:
    """A server that has no filters cannot ignore them."""
    needed = {"index-lag", "ignore-filters", "id-in-answer"} & row.stage.keys()
    return needed <= face(goal).switches.keys() or "furnish" in row.stage


async def case(row: Row, pair: tuple[str, str], seed: int, told: Callable[[str], None] = lambda line: None) -> Score:
    stage = await stage_of(*pair, **row.stage)
    dice = random.Random(f"late {seed}")
    way = Way(**row.way, late=lambda: dice.uniform(0, LATE), told=told)
    return await trial(stage, row.what(stage, seed), way)


@frozen
class Counted:
    """Cases of one row: how many, and what was wrong with them. ``first`` says how to see one of those that are wrong."""

    cases: int = 0
    duplicates: int = 0
    lost: int = 0
    links: int = 0
    violations: int = 0
    unequal: int = 0
    restarts: int = 0
    errors: int = 0
    seconds: float = 0.0
    first: tuple[str, ...] = ()

    def __add__(self, other: "Counted") -> "Counted":
        return Counted(*(one + more for one, more in zip(astuple(self), astuple(other), strict=True)))


def counted(name: str, pair: tuple[str, str], seeds: range) -> Counted:
    """Some cases of a row and a pair; in a process of its own."""
    row, total, begun = next(row for row in ROWS if row.name == name), Counted(), time.perf_counter()

    async def all_of_them() -> Counted:
        found = Counted()
        silenced()
        logging.disable(logging.WARNING)
        for seed in seeds:
            how = f'--row "{name}" --pair {"-".join(pair)} --seed {seed}'
            try:
                score = await case(row, pair, seed)
            except Exception as error:
                found += Counted(1, unequal=1, first=(f"{how}: {type(error).__name__}: {error}",))
                continue
            found += Counted(
                cases=1,
                duplicates=score.duplicates,
                lost=score.lost,
                links=score.links,
                violations=len(score.violations),
                unequal=int(bool(score.wrong)),
                restarts=score.runs - 1,
                errors=len(score.raised),
                first=(f"{how}: {'; '.join(score.wrong)}",) if score.wrong else (),
            )
        return found

    total += asyncio.run(all_of_them())
    return total + Counted(seconds=time.perf_counter() - begun)


HEAD: Final = ("cases", "duplicates", "lost", "links", "violations", "not equal", "restarts", "errors", "seconds")


def line(name: str, told: Counted) -> str:
    return f"{name:52}" + "".join(
        f"{number:>{len(head) + 2}.0f}" for head, number in zip(HEAD, astuple(told)[:-1], strict=True)
    )


def table(rows: list[Row], pairs: list[tuple[str, str]], many: int) -> bool:
    """Whether all of it is right."""
    print(f"{'what happens':52}" + "".join(f"{head:>{len(head) + 2}}" for head in HEAD), flush=True)
    right, everything = True, Counted()
    with ProcessPoolExecutor() as pool:
        work = {
            row.name: [
                pool.submit(counted, row.name, pair, range(first, min(many, first + AT_ONCE)))
                for pair in pairs
                if fits(row, pair[1])
                for first in range(0, many, AT_ONCE)
            ]
            for row in rows
        }
        for name, jobs in work.items():
            total = sum((job.result() for job in as_completed(jobs)), Counted())
            everything += total
            print(line(name, total), flush=True)
            for wrong in total.first[:5]:
                print(f"    full.py {wrong:.400}", flush=True)
            right = right and not total.first
    print(line("together", everything))
    return right


async def told_at_length(row: Row, pair: tuple[str, str], seed: int) -> bool:
    silenced()
    score = await case(row, pair, seed, told=print)
    print("wrong:", *(score.wrong or ["nothing"]), sep="\n  ")
    return not score.wrong


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--row", action="append", help="a line of the table; all, if none is named")
    asked.add_argument("--pair", action="append", help="as amoxml-kommo; all sixteen, if none is named")
    asked.add_argument("--seed", type=int, help="one case, told at length")
    given = asked.parse_args()
    rows = [row for row in ROWS if not given.row or any(row.name.startswith(name) for name in given.row)]
    pairs = [(a, b) for a, b in product(NAMES, NAMES) if not given.pair or f"{a}-{b}" in given.pair]
    if given.seed is not None:
        row = next(row for row in ROWS if row.name == given.row[0])
        return 0 if asyncio.run(told_at_length(row, pairs[0], given.seed)) else 1
    return 0 if table(rows, pairs, int(os.environ.get("CRMCLIENT_CRASHES", "100"))) else 1


if __name__ == "__main__":
    sys.exit(main())
