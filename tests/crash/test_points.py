"""A process dies, or an answer is lost, at every request and at every commit of a move: each row arrives once all the same.

In memory, all twelve ordered pairs; ``nox -s crash`` runs it, ``full.py`` what it leaves out, and ``trials.py`` one case.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import permutations
from typing import Any

import pytest
from attrs import field, frozen
from trials import ACTS, NAMES, STOP, Decide, Point, Stage, Way, just, silenced, stage_of, trial, twins

PAIRS = list(permutations(NAMES, 2))
# A read that is lost is read again, whatever became of it and by whichever client: more of these are the same case again.
ACTS_OF = {"commit": ("before", "after"), "source": ("kill-before",), "target": ("kill-before", "drop-after")}
# After which nothing is on its way any more.
DEATHS = ("before", "after", "kill-before", "kill-after")
GROUPS = ("commits", "reads", "writes")


def cases(stage: Stage, group: str) -> Iterator[tuple[Point, str, str]]:
    for where, passed in stage.points.items():
        for number, what in enumerate(passed, 1):
            of = "commits" if where == "commit" else "writes" if writes(where, what) else "reads"
            acts = ACTS if of == "writes" else ACTS_OF[where]
            if of != group:
                continue
            for act in acts:
                yield Point(1, where, number), act, what


def writes(where: str, what: str) -> bool:
    """Whether rows of the target may come of it; of an API that only knows POST the path tells."""
    reads = what.startswith("GET") or (".php" in what and "_add" not in what and "_edit" not in what)
    return where == "target" and not reads


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("origin, goal", PAIRS)
@pytest.mark.asyncio
async def test_each_row_arrives_once_wherever_it_is_cut(origin: str, goal: str, group: str) -> None:
    silenced()
    stage = await stage_of(origin, goal)
    wrong: list[str] = []
    tried = 0
    for point, act, what in cases(stage, group):
        # Who dies between two commits leaves the same as who dies a read later: what follows is tried once.
        score = await trial(stage, just({point: act}), known=stage.known if act in DEATHS else None)
        found = [*score.wrong, *score.raised]
        dies = group == "commits" or act.startswith("kill")
        if (score.hits, score.runs) != (1, 1 + dies):
            found.append(f"{score.hits} points were hit, and it took {score.runs} runs")
        tried += 1
        if found:
            wrong.append(f'trials.py {origin} {goal} "{point} {act}"  # {what}: {"; ".join(found)}')
    assert tried > 4
    # Each commit leaves something else.
    assert group != "commits" or len(stage.known) >= len(stage.points["commit"])
    assert not wrong, "\n".join([f"{len(wrong)} of {tried} cases:", *wrong])


@frozen(kw_only=True)
class Setting:
    """Moves of two accounts by some way, with something that happens at each of the requests that make rows, and what
    happens ``then``.
    """

    pair: tuple[str, str]
    stage: Mapping[str, Any] = field(factory=dict[str, Any])
    way: Way = Way()
    acts: tuple[str, ...]
    then: Callable[[Point], Mapping[Point, str]] = lambda point: {}

    async def staged(self) -> Stage:
        return await stage_of(*self.pair, **self.stage)

    def happenings(self, stage: Stage) -> Iterator[tuple[str, Decide]]:
        for number, what in enumerate(stage.points["target"], 1):
            if writes("target", what) and not what.endswith(("custom_fields", "auth.php")):
                for act in self.acts:
                    point = Point(1, "target", number)
                    yield f"{point} {act} ({what})", just({point: act, **self.then(point)})


ALIKE: Mapping[str, Any] = {"furnish": twins, "marker": "off"}
HARD = {
    "a search finds nothing for a minute": Setting(
        pair=("kommo", "amoxml"), stage={"index-lag": "60s"}, acts=("drop-after",)
    ),
    "no answer tells an id": Setting(
        pair=("kommo", "amoxml"), stage={"id-in-answer": False}, acts=("drop-after", "late")
    ),
    "a look takes longer than the quarantine": Setting(pair=("kommo", "amoxml"), way=Way(latency=3.0), acts=("late",)),
    "one is lost while its twin is under way": Setting(
        pair=("kommo", "electrum"), stage=ALIKE, way=Way(lanes=3, latency=1.5), acts=("drop-before",)
    ),
    "it is killed while it is in doubt": Setting(
        pair=("amocrm", "kommo"),
        acts=("drop-after",),
        then=lambda point: {Point(1, "target", point.number + 1): "kill-before"},
    ),
    "it is stopped as it begins, and something of the dead may still land": Setting(
        pair=("kommo", "amocrm"), acts=("kill-late",), then=lambda point: {Point(2, "commit", 1): STOP}
    ),
    "it is stopped while it waits for what the dead have sent": Setting(
        pair=("kommo", "amocrm"), acts=("kill-late",), then=lambda point: {Point(2, "source", 1): STOP}
    ),
    "its ledger is lost": Setting(pair=("kommo", "amocrm"), way=Way(forgetful=True), acts=("kill-after", "kill-late")),
    "its ledger is lost and all are alike": Setting(
        pair=("amoxml", "kommo"), stage=ALIKE, way=Way(forgetful=True), acts=("kill-after",)
    ),
}


@pytest.mark.parametrize("setting", HARD.values(), ids=HARD)
@pytest.mark.asyncio
async def test_each_row_arrives_once_even_where(setting: Setting) -> None:
    silenced()
    stage = await setting.staged()
    tried, wrong = 0, dict[str, list[str]]()
    for what, decide in setting.happenings(stage):
        score = await trial(stage, decide, setting.way)
        found = [*score.wrong, *score.raised]
        tried += 1
        if found or not score.hits:
            wrong[what] = found or ["nothing happened"]
    assert tried > 2
    assert not wrong
