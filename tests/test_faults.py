"""Every row of the fault catalogue is claimed by a test that bears its number, or waived with a reason."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
CATALOGUE = tomllib.loads((HERE / "faults" / "catalogue.toml").read_text("utf-8"))
NAMED = re.compile(r"test_fault((?:_\d{3})+)_[a-z]")


@cache
def claims() -> dict[str, list[str]]:
    """The tests that bear each number, by number."""
    found: dict[str, list[str]] = {}
    for file in sorted(HERE.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (named := NAMED.match(node.name)):
                for number in named[1].strip("_").split("_"):
                    found.setdefault(number, []).append(f"{file.name}::{node.name}")
    return found


def test_every_row_is_claimed_or_waived() -> None:
    claimed = claims()
    missing = [f"{number} {row['fault']}" for number, row in CATALOGUE.items() if number not in claimed | waived()]
    assert not missing, "\n".join(missing)


def test_no_row_is_both_claimed_and_waived_and_no_test_claims_what_is_no_row() -> None:
    claimed = claims()
    assert not sorted(set(claimed) & set(waived()))
    assert not sorted(set(claimed) - set(CATALOGUE))
    assert list(CATALOGUE) == [f"{number:03}" for number in range(1, 151)]


def test_a_waiver_says_why() -> None:
    assert all(len(reason.split()) >= 4 for reason in waived().values())


def waived() -> dict[str, str]:
    return {number: row["waived"] for number, row in CATALOGUE.items() if "waived" in row}
