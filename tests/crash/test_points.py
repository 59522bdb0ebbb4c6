"""A process dies, or an answer is lost, at every request and at every commit of a move: each row arrives once all the same.

In memory, all twelve ordered pairs; ``nox -s crash`` runs it, ``full.py`` what it leaves out, and ``trials.py`` one case.
"""

from collections.abc import Iterator
from itertools import permutations

import pytest
from trials import ACTS, NAMES, Point, Stage, just, silenced, stage_of, trial

PAIRS = list(permutations(NAMES, 2))
# A read that is lost is read again, whatever became of it and by whichever client: more of these are the same case again.
ACTS_OF = {"commit": ("before", "after"), "source": ("kill-before",), "target": ("kill-before", "drop-after")}
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


@pytest.mark.parametrize("origin, goal", PAIRS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.asyncio
async def test_each_row_arrives_once_wherever_it_is_cut(origin: str, goal: str, group: str) -> None:
    silenced()
    stage = await stage_of(origin, goal)
    wrong: list[str] = []
    tried = 0
    for point, act, what in cases(stage, group):
        score = await trial(stage, just({point: act}))
        found = [*score.wrong, *score.raised]
        dies = group == "commits" or act.startswith("kill")
        if (score.hits, score.runs) != (1, 1 + dies):
            found.append(f"{score.hits} points were hit, and it took {score.runs} runs")
        tried += 1
        if found:
            wrong.append(f'trials.py {origin} {goal} "{point} {act}"  # {what}: {"; ".join(found)}')
    assert tried > 4
    assert not wrong, "\n".join([f"{len(wrong)} of {tried} cases:", *wrong])
