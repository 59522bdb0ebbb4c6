"""What is in the tree is in the wheel, under one version, with every dependency declared and every entry point alive."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest

import crmclient

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WHEEL: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
GROUPS: dict[str, dict[str, str]] = PROJECT["project"]["entry-points"]
# The others are other people's, pytest's say.
OURS = [group for group in GROUPS if group.startswith("crmclient.")]


def folders() -> set[str]:
    return {
        folder.name
        for folder in (ROOT / "adapters").iterdir()
        if folder.is_dir() and folder.name != "__pycache__" and any(folder.glob("*.py"))
    }


def package(target: str) -> str:
    """The package of an entry point ``package.module:name``."""
    return target.partition(":")[0].partition(".")[0]


# --------------------------------------------------------------------------------------- folders, wheel, entry points


def test_every_adapter_folder_is_in_the_wheel_by_name_and_nothing_else_is():
    assert sorted(WHEEL) == sorted(["crmclient", *(f"adapters/{name}" for name in folders())])


def test_the_wheel_lists_no_glob():
    # "adapters/*" builds a wheel without adapters and says nothing.
    assert not [each for each in WHEEL if set("*?[") & set(each)]


@pytest.mark.parametrize("group, file", [("crmclient.dialects", "dialect.py"), ("crmclient.sandboxes", "sandbox.py")])
def test_every_adapter_that_has_one_is_an_entry_point(group, file):
    expected = {name for name in folders() if (ROOT / "adapters" / name / file).exists()}
    assert {package(target) for target in GROUPS[group].values()} == expected


@pytest.mark.parametrize("group", OURS)
def test_an_entry_point_is_called_what_its_package_is_called(group):
    for name, target in GROUPS[group].items():
        assert package(target) == f"crmclient_{name}"


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_installed_is_what_is_written_here(group):
    installed = {point.name: point.value for point in metadata.entry_points(group=group) if ours(point)}
    assert installed == GROUPS[group], "the installed metadata is older than pyproject.toml: install the project again"


def ours(point: metadata.EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == "crmclient"


@pytest.mark.parametrize(
    "group, name, target", [(group, name, target) for group in OURS for name, target in GROUPS[group].items()]
)
def test_every_entry_point_leads_to_something_of_its_own_name(group, name, target):
    module, _, attribute = target.partition(":")
    found = getattr(import_module(module), attribute)
    assert found.name == name


def test_the_command_that_is_promised_can_be_called():
    for target in PROJECT["project"]["scripts"].values():
        module, _, attribute = target.partition(":")
        assert callable(getattr(import_module(module), attribute))


@pytest.mark.parametrize("listed", WHEEL)
def test_every_package_of_the_wheel_is_typed_and_importable(listed):
    folder = ROOT / listed
    assert (folder / "py.typed").exists()
    assert (folder / "__init__.py").exists()


def test_every_folder_of_a_package_with_python_in_it_is_a_package():
    missing = {
        str(file.parent.relative_to(ROOT))
        for listed in WHEEL
        for file in (ROOT / listed).rglob("*.py")
        if not (file.parent / "__init__.py").exists()
    }
    assert not missing


# -------------------------------------------------------------------------------------------------------- one version

VERSION: str = PROJECT["project"]["version"]


def test_the_changelog_begins_with_this_version():
    changelog = ROOT / "CHANGELOG.md"
    if not changelog.exists():
        pytest.skip("there is no changelog yet")
    headings = re.findall(r"^## \[?v?(\d+\.\d+\.\d+[^\s\]]*)", changelog.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == VERSION


def test_the_installed_version_is_the_one_written_here():
    assert metadata.version("crmclient") == VERSION


def test_the_version_is_written_nowhere_else():
    short = VERSION.rpartition(".")[0]
    told = re.compile(rf"(crmclient/|version\D{{0,5}}){re.escape(short)}", re.IGNORECASE)
    found = [
        f"{file.relative_to(ROOT)}:{number} {line.strip()}"
        for listed in WHEEL
        for file in sorted((ROOT / listed).rglob("*.py"))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if told.search(line)
    ]
    assert not found, "\n".join(found)


def test_servers_are_told_the_version_that_calls_them():
    told: str = import_module("crmclient.session").USER_AGENT
    assert told == f"crmclient/{VERSION}"


# ------------------------------------------------------------------------------------------- pythons and dependencies


def test_the_pythons_that_are_promised_are_the_pythons_that_are_tested():
    classifiers = PROJECT["project"]["classifiers"]
    promised = sorted(each.rpartition(" ")[2] for each in classifiers if re.search(r"Python :: 3\.\d+$", each))
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert promised[0] == lowest
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + lowest.replace(".", "")
    noxfile = ROOT / "noxfile.py"
    if noxfile.exists():
        found = re.search(r"^VERSIONS = (\(.*\))$", noxfile.read_text(encoding="utf-8"), re.MULTILINE)
        assert found is not None
        assert sorted(ast.literal_eval(found[1])) == promised


def names(requirements: Iterable[str]) -> set[str]:
    return {re.split(r"[\s<>=!~\[;]", each, maxsplit=1)[0].lower() for each in requirements}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(*files: Path) -> set[str]:
    """The third-party packages that files import, lazily or not."""
    found: set[str] = set()
    for file in files:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
    return {name for name in found if name not in sys.stdlib_module_names and not name.startswith("crmclient")}


DEPENDENCIES = names(PROJECT["project"]["dependencies"])
EXTRAS = {name: names(wanted) for name, wanted in PROJECT["project"]["optional-dependencies"].items()}


def test_what_the_core_and_the_adapters_import_is_declared_and_what_is_declared_is_imported():
    flat = [*(ROOT / "crmclient").glob("*.py")]
    codecs = [file for file in (ROOT / "adapters").rglob("*.py") if file.stem != "sandbox"]
    assert imported(*flat, *codecs) == DEPENDENCIES | EXTRAS["fast"]


def test_what_the_sandboxes_import_is_in_their_extra():
    files = [*(ROOT / "crmclient" / "sandbox").rglob("*.py"), *(ROOT / "adapters").rglob("sandbox.py")]
    assert imported(*files) <= DEPENDENCIES | EXTRAS["sandbox"]
    assert EXTRAS["sandbox"] <= imported(*files)


def test_what_the_command_line_imports_is_in_its_extra():
    files = [*(ROOT / "crmclient" / "cli").rglob("*.py")]
    if not files:
        pytest.skip("there is no command line yet")
    assert imported(*files) <= DEPENDENCIES | EXTRAS["cli"] | EXTRAS["sandbox"]


# ------------------------------------------------------------------------------------------------------- what it says


def test_what_the_project_points_to_is_there():
    project = PROJECT["project"]
    assert (ROOT / project["readme"]).exists()
    assert project["license"] == "MIT"
    for file in project["license-files"]:
        assert (ROOT / file).exists()
    for each in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]:
        assert (ROOT / each).exists(), each


def test_the_type_checker_sees_the_adapters():
    assert PROJECT["tool"]["pyright"]["extraPaths"] == ["adapters"]
    assert set(PROJECT["tool"]["pyright"]["include"]) >= {"crmclient", "adapters"}


def test_these_tests_run_on_the_package_they_speak_of():
    there = Path(crmclient.__file__).parent
    assert sorted(file.name for file in there.glob("*.py")) == sorted(
        file.name for file in (ROOT / "crmclient").glob("*.py")
    )
