"""The law, read off the syntax trees: what knows a dialect does no I/O, and what does I/O knows no dialect."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from attrs import frozen

ROOT = Path(__file__).resolve().parents[1]
CORE, ADAPTERS = ROOT / "crmclient", ROOT / "adapters"

# Each may import only those before it (DESIGN §2).
ORDER = [
    *(
        "entities",
        "vocabulary",
        "errors",
        "dialect",
        "formats",
        "paging",
        "auth",
        "serial",
        "webhooks",
        "flows",
        "retry",
        "hooks",
    ),
    *("clock", "pacing", "tokens", "registry", "session", "client", "profiles"),
]
PURE = ORDER[: ORDER.index("clock")]
# What an adapter may know of the core: the contract, and nothing that waits or sends.
CONTRACT = {*ORDER[: ORDER.index("retry")]}
ROOMS = {"cli", "sandbox", "testing", "migration", "fleet"}
# The files of an adapter, in the order they are read.
HOUSE = ["__init__", "dialect", "wire", "codec", "extras", "webhooks", "sandbox"]
# The pure part of the standard library: nothing here opens, waits, rolls dice or asks the time.
PURE_STDLIB = {
    *(
        "abc",
        "base64",
        "collections",
        "datetime",
        "decimal",
        "email.utils",
        "enum",
        "functools",
        "hashlib",
        "hmac",
        "html",
        "itertools",
    ),
    *(
        "json",
        "math",
        "operator",
        "re",
        "string",
        "types",
        "typing",
        "urllib.parse",
        "zoneinfo",
        "xml.etree.ElementTree",
    ),
}
VENDORS = re.compile(r"kommo|amo_?crm|amo_?xml|\bamo\b|electrum", re.IGNORECASE)

# -------------------------------------------------------------------------------------------------------------- readers


@frozen
class Import:
    """One imported module. ``lazily``: inside a function; ``typed``: for the type checker only."""

    name: str
    line: int
    lazily: bool = False
    typed: bool = False


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


@cache
def imports(file: Path) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, lazily: bool, typed: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend(Import(alias.name, child.lineno, lazily, typed) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{where(file)}:{child.lineno} imports relatively"
                module = child.module or ""
                for alias in child.names:
                    inner = f"{module}.{alias.name}"
                    found.append(Import(inner if is_module(inner) else module, child.lineno, lazily, typed))
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            checker = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            visit(child, lazily or function, typed or checker)

    visit(tree(file), False, False)
    return found


@cache
def is_module(name: str) -> bool:
    """Whether a dotted name of ours is a module and not something in one."""
    path = name.replace(".", "/")
    return any((root / f"{path}.py").exists() or (root / path / "__init__.py").exists() for root in (ROOT, ADAPTERS))


def where(file: Path) -> str:
    return str(file.relative_to(ROOT))


def adapters() -> list[Path]:
    return sorted(folder for folder in ADAPTERS.glob("*") if folder.is_dir() and folder.name != "__pycache__")


def adapter_files(*, sandbox: bool) -> list[Path]:
    return [
        file for folder in adapters() for file in sorted(folder.rglob("*.py")) if (file.stem == "sandbox") is sandbox
    ]


def core_files() -> list[Path]:
    return [CORE / f"{name}.py" for name in ORDER if (CORE / f"{name}.py").exists()]


def everything() -> list[Path]:
    return [file for root in (CORE, ADAPTERS) for file in sorted(root.rglob("*.py"))]


def asynchronous(file: Path) -> Iterator[str]:
    kinds = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    for node in ast.walk(tree(file)):
        if isinstance(node, kinds) or (isinstance(node, ast.comprehension) and node.is_async):
            yield f"{where(file)}:{getattr(node, 'lineno', '?')} {type(node).__name__}"


def top(name: str) -> str:
    return name.partition(".")[0]


def complain(found: list[str]) -> None:
    assert not found, "\n".join(dict.fromkeys(found))


# ------------------------------------------------------------------------------------------------- the readers can read


def test_the_readers_see_what_they_are_to_forbid(tmp_path):
    file = ROOT / "tests" / "test_architecture.py"
    assert Import("ast", 3) in imports(file)
    source = tmp_path / "x.py"
    source.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import httpx\ndef f():\n    from crmclient import flows\n"
    )
    assert imports(source)[1:] == [Import("httpx", 3, typed=True), Import("crmclient.flows", 5, lazily=True)]
    assert len(core_files()) >= 15
    assert len(adapters()) >= 2
    assert len(list(asynchronous(CORE / "session.py"))) > 10


# ------------------------------------------------------------------------------------------------------------- adapters


def test_adapters_import_only_the_contract_attrs_cattrs_and_pure_modules():
    complain(
        [
            f"{where(file)}:{each.line} imports {each.name}"
            for file in adapter_files(sandbox=False)
            for each in imports(file)
            if not allowed_in_adapter(file, each.name)
        ]
    )


def allowed_in_adapter(file: Path, name: str) -> bool:
    if top(name) == "crmclient":
        return name.removeprefix("crmclient.") in CONTRACT
    if name.startswith("crmclient_"):
        return top(name) == file.parent.name
    return top(name) in ("attrs", "cattrs") or name in PURE_STDLIB or top(name) in PURE_STDLIB


def test_adapters_hold_no_async_code():
    complain([told for file in adapter_files(sandbox=False) for told in asynchronous(file)])


IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}
CLOCKS = {"now", "utcnow", "today", "localtime", "gmtime", "monotonic", "perf_counter"}


def test_adapters_ask_no_clock_and_open_nothing():
    found: list[str] = []
    for file in adapter_files(sandbox=False):
        for node in ast.walk(tree(file)):
            place = f"{where(file)}:{getattr(node, 'lineno', '?')}"
            if isinstance(node, ast.Attribute) and node.attr in CLOCKS:
                owner = ast.unparse(node.value)
                # `context.now` is a value that was handed in; a method of a class is a clock.
                if owner in ("datetime", "date", "time", "datetime.datetime", "datetime.date"):
                    found.append(f"{place} asks {owner}.{node.attr}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
                found.append(f"{place} calls {node.func.id}()")
    complain(found)


def test_a_sandbox_shares_no_line_with_the_codec_and_knows_no_client():
    found: list[str] = []
    for file in adapter_files(sandbox=True):
        for each in imports(file):
            ours = top(each.name) == "crmclient"
            fine = each.name == "crmclient.clock" or each.name.startswith("crmclient.sandbox")
            if (ours and not fine) or each.name.startswith("crmclient_"):
                found.append(f"{where(file)}:{each.line} imports {each.name}")
    complain(found)


def test_nothing_of_an_adapter_imports_its_sandbox():
    complain(
        [
            f"{where(file)}:{each.line}"
            for file in adapter_files(sandbox=False)
            for each in imports(file)
            if each.name.endswith(".sandbox")
        ]
    )


def test_adapters_is_a_source_root_and_no_package():
    assert not (ADAPTERS / "__init__.py").exists()
    assert [file.name for file in ADAPTERS.glob("*.py")] == []


@pytest.mark.parametrize("folder", adapters(), ids=lambda folder: folder.name)
def test_an_adapter_has_the_files_of_the_house_and_no_others(folder):
    assert folder.name.startswith("crmclient_")
    found = {file.stem for file in folder.glob("*.py")}
    assert found <= set(HOUSE), f"not of the house: {sorted(found - set(HOUSE))}"
    assert [file.name for file in folder.iterdir() if file.is_dir() and file.name != "__pycache__"] == []
    if "dialect" in found:
        assert {"__init__", "wire", "codec"} <= found


@pytest.mark.parametrize("folder", adapters(), ids=lambda folder: folder.name)
def test_inside_an_adapter_wire_knows_nobody_and_codec_only_wire(folder):
    package = folder.name
    found: list[str] = []
    for stem, may in (("wire", set[str]()), ("codec", {"wire"})):
        file = folder / f"{stem}.py"
        for each in imports(file) if file.exists() else ():
            if top(each.name) == package and each.name.removeprefix(f"{package}.") not in may:
                found.append(f"{where(file)}:{each.line} imports {each.name}")
    complain(found)


# ------------------------------------------------------------------------------------------------------------- the core


def test_every_file_of_the_core_has_its_place_in_the_order():
    present = {file.stem for file in CORE.glob("*.py")} - {"__init__", "__main__"}
    assert present <= set(ORDER), f"without a place in the order: {sorted(present - set(ORDER))}"
    assert {folder.name for folder in CORE.iterdir() if folder.is_dir()} - {"__pycache__"} <= ROOMS


def test_imports_in_the_core_go_one_way():
    found: list[str] = []
    for file in core_files():
        for each in imports(file):
            if top(each.name) != "crmclient":
                continue
            name = each.name.removeprefix("crmclient.")
            if name not in ORDER or ORDER.index(name) >= ORDER.index(file.stem):
                found.append(f"{where(file)}:{each.line} imports {each.name}")
    complain(found)


def test_only_the_session_imports_httpx():
    found: list[str] = []
    for file in CORE.rglob("*.py"):
        exempt = file == CORE / "session.py" or file.is_relative_to(CORE / "testing")
        for each in imports(file):
            if top(each.name) not in ("httpx", "httpcore", "h11", "aiohttp", "requests") or exempt or each.typed:
                continue
            if file == CORE / "sandbox" / "server.py" and each.lazily:
                continue
            found.append(f"{where(file)}:{each.line} imports {each.name}")
    complain(found)


@pytest.mark.parametrize("name", PURE)
def test_what_stands_before_the_clock_does_not_wait(name):
    file = CORE / f"{name}.py"
    complain(list(asynchronous(file)))
    impure = {"asyncio", "anyio", "httpx", "time", "random", "os", "socket", "threading", "subprocess", "pathlib"}
    complain([f"{where(file)}:{each.line} imports {each.name}" for each in imports(file) if top(each.name) in impure])


def test_only_the_clock_asks_what_time_it_is():
    found: list[str] = []
    for file in [*core_files(), *sorted((CORE / "sandbox").glob("*.py"))]:
        if file == CORE / "clock.py":
            continue
        found += [f"{where(file)}:{each.line} imports time" for each in imports(file) if each.name == "time"]
        for node in ast.walk(tree(file)):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in CLOCKS
                and ast.unparse(node.value) in ("datetime", "date")
            ):
                found.append(f"{where(file)}:{node.lineno} asks {ast.unparse(node)}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("asyncio.sleep", "anyio.sleep", "sleep"):
                found.append(f"{where(file)}:{node.lineno} sleeps without the clock")
    complain(found)


def test_the_core_names_no_vendor():
    found: list[str] = []
    for file in sorted(CORE.rglob("*.py")):
        if file.is_relative_to(CORE / "cli"):
            continue  # the demo and the login name dialects
        source = file.read_text(encoding="utf-8")
        first = tree(file).body[0]
        docstring = range(first.lineno, (first.end_lineno or 0) + 1) if file == CORE / "__init__.py" else range(0)
        for number, line in enumerate(source.splitlines(), 1):
            if VENDORS.search(line) and number not in docstring:
                found.append(f"{where(file)}:{number} {line.strip()}")
    complain(found)


def test_the_core_imports_no_adapter_and_none_of_the_rooms_built_on_it():
    found: list[str] = []
    for file in [*core_files(), CORE / "__init__.py"]:
        for each in imports(file):
            room = each.name.removeprefix("crmclient.").partition(".")[0]
            if each.name.startswith("crmclient_") or (top(each.name) == "crmclient" and room in ROOMS):
                found.append(f"{where(file)}:{each.line} imports {each.name}")
    complain(found)


def test_the_sandbox_room_knows_of_the_core_the_clock_only():
    found = [
        f"{where(file)}:{each.line} imports {each.name}"
        for file in (CORE / "sandbox").glob("*.py")
        for each in imports(file)
        if top(each.name) == "crmclient"
        and each.name != "crmclient.clock"
        and not each.name.startswith("crmclient.sandbox")
        and each.name != "crmclient"
    ]
    complain(found)


# ---------------------------------------------------------------------------------------------------------- house words

VAGUE = {
    "utils",
    "util",
    "helpers",
    "helper",
    "base",
    "manager",
    "managers",
    "common",
    "misc",
    "core",
    "tools",
    "shared",
}


def test_no_module_has_a_name_that_says_nothing():
    complain([where(file) for file in everything() if file.stem in VAGUE or file.parent.name in VAGUE])


def test_every_module_opens_with_a_sentence():
    found: list[str] = []
    for file in everything():
        docstring = ast.get_docstring(tree(file)) or ""
        if len(docstring.split()) < 3:
            found.append(where(file))
    complain(found)


def test_no_file_of_the_tree_needs_a_newer_python_than_is_promised():
    promised = (3, 11)
    assert sys.version_info >= promised
    for file in everything():
        ast.parse(file.read_text(encoding="utf-8"), str(file), feature_version=promised)
