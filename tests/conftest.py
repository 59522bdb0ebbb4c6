"""What all tests share: where the package under test comes from."""

import os
from pathlib import Path

import crmclient


def pytest_report_header() -> str:
    return f"crmclient from {Path(crmclient.__file__).parent}"


def pytest_sessionstart() -> None:
    # nox says that the wheel was installed: then it is the wheel that must be tested, not the tree beside it.
    if os.environ.get("CRMCLIENT_INSTALLED") and "site-packages" not in Path(crmclient.__file__).parts:
        raise RuntimeError(f"the tests would run on {crmclient.__file__}, not on the installed wheel")
