"""What all tests share: where the package under test comes from."""

import gc
import importlib.util
import os
import re
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest

import crmclient

if importlib.util.find_spec("sniffio") is None:
    # httpx looks for it at each request in process; told once that it is not there, it need not search the disk again.
    sys.modules["sniffio"] = None  # pyright: ignore[reportArgumentType]


def pytest_report_header() -> str:
    return f"crmclient from {Path(crmclient.__file__).parent}"


def pytest_sessionstart() -> None:
    # nox says that the wheel was installed: then it is the wheel that must be tested, not the tree beside it.
    if os.environ.get("CRMCLIENT_INSTALLED") and "site-packages" not in Path(crmclient.__file__).parts:
        raise RuntimeError(f"the tests would run on {crmclient.__file__}, not on the installed wheel")


@pytest.fixture
def unpaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in this process wait for no turn, where the sandbox does not count; pace is test_pacing's matter."""
    monkeypatch.setattr("crmclient.profiles.connect", partial(crmclient.connect, rate=()))


# Many cases of one law each, and no matter of the Python that runs them: nox runs them on the first one only.
ONCE = {
    *("test_endpoints.py", "test_fuzz.py", "test_pacing.py", "test_pairs.py", "test_roundtrip.py", "test_together.py"),
    *("test_demo.py", "test_plan.py", "test_check.py", "test_retry.py", "test_limits.py", "test_webhooks.py"),
    *("test_migration_costs.py", "test_report.py", "test_formats.py", "test_php_forms.py", "test_kommo.py"),
    *("test_amocrm.py", "test_amoxml.py", "test_sandbox_world.py", "test_sandbox_kommo.py", "test_sandbox_amocrm.py"),
    *("test_sandbox_amoxml.py", "test_sandbox_electrum.py", "test_readme.py", "test_docs_ru.py", "test_doctor.py"),
    # What is read of the sources says the same in any Python.
    *("test_architecture.py", "test_faults.py"),
}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file of which no test would be run is not read: taking in all of them takes longer than most of them run."""
    only, path = config.option.markexpr, collection_path
    if path.suffix != ".py" or not only:
        return None
    if "not crash" in only and path.parent.name == "crash":
        return True
    if "not once" in only and (path.name in ONCE or "\npytestmark = pytest.mark.once\n" in path.read_text("utf-8")):
        return True
    return True if only == "e2e" and "pytest.mark.e2e" not in path.read_text("utf-8") else None


def pytest_collection_finish() -> None:
    # What was collected stays: whoever looks for garbage need not go through a million objects of it each time.
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in ONCE:
            item.add_marker(pytest.mark.once)
        if item.path.parent.name == "crash":
            item.add_marker(pytest.mark.crash)


# ------------------------------------------------------------------------------------- the fault catalogue as a table

_ENDED: dict[str, list[str]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        for number in re.findall(r"(?<=_)\d{3}(?=_)", report.nodeid.rpartition("::")[2].partition("[")[0]):
            _ENDED.setdefault(number, []).append(report.outcome)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("CRMCLIENT_FAULTS") != "table":
        return
    catalogue = tomllib.loads((Path(__file__).parent / "faults" / "catalogue.toml").read_text("utf-8"))
    for number, row in catalogue.items():
        ended = _ENDED.get(number, [])
        said = "FAILED" if "failed" in ended else "passed" if "passed" in ended else "skipped" if ended else "NOT RUN"
        told = f"waived: {row['waived']}" if "waived" in row else f"{said} ({len(ended)})"
        terminalreporter.write_line(f"{number} {row['priority']} {row['fault'][:76]:76} {told}")
