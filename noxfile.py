"""Everything that is run on this project, on whatever Pythons are here. `nox` alone is the whole check.

The tests run on the wheel, not on the tree. Each phase has a budget, printed beside what it took.
"""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False

HERE = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
VERSIONS = ("3.11", "3.12", "3.13")
EXTRAS = "cli,sandbox"

_BUDGETS = {"lint and types": 90, "tests": 240, "e2e": 120, "crash": 240, "wheel": 60}  # seconds
_TOOK: dict[str, float] = {}

# Of the wheel, and with what was compiled kept: where an environment forbids that, each process compiles everything anew.
_TESTED = {"CRMCLIENT_INSTALLED": "1", "PYTHONDONTWRITEBYTECODE": ""}
# In long runs of neighbours, which share the accounts they read; whoever is done early takes of the others' rest.
_SIDE_BY_SIDE = ("-n", "auto", "--dist", "worksteal")
# Of those that mostly wait, for a process or a pace, one more finds room beside each two.
_THREE_A_PAIR = ("-n", str((os.cpu_count() or 2) * 3 // 2), "--dist", "worksteal")

_MANY = {"CRMCLIENT_EXAMPLES": "1000", "CRMCLIENT_FUZZ": "100000"}


def _python(version):
    """A Python of this version that really starts: pyenv leaves commands on the PATH that only complain."""
    beside = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python3"))
    for command in (shutil.which(f"python{version}"), sys.executable, *map(str, beside)):
        if command is None:
            continue
        asked = [command, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        told = subprocess.run(asked, capture_output=True, text=True, check=False)
        if told.returncode == 0 and told.stdout.strip() == version:
            return command
    return None


PRESENT = {version: found for version in VERSIONS if (found := _python(version))}


def phase(name):
    def decorate(session_function):
        @functools.wraps(session_function)
        def timed(session):
            begun = time.monotonic()
            try:
                session_function(session)
            finally:
                _TOOK[name] = _TOOK.get(name, 0) + time.monotonic() - begun

        return timed

    return decorate


@atexit.register
def _tell():
    for name, took in _TOOK.items():
        print(f"{name}: {took:.0f} s of {_BUDGETS[name]} s{'' if took <= _BUDGETS[name] else '  OVER BUDGET'}")


def _group(name):
    return nox.project.dependency_groups(PROJECT, name)


def _wheel(session):
    """The wheel of this tree, built once a run."""
    folder = HERE / ".nox" / "built"
    if os.environ.get("CRMCLIENT_WHEEL_BUILT") != str(os.getpid()):
        shutil.rmtree(folder, ignore_errors=True)
        session.install("build")
        session.run("python", "-m", "build", "--wheel", "--outdir", str(folder), silent=True)
        os.environ["CRMCLIENT_WHEEL_BUILT"] = str(os.getpid())
    (wheel,) = folder.glob("*.whl")
    return wheel


@nox.session
@phase("lint and types")
def lint(session):
    """ruff: rules and format."""
    session.install(*_group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
@phase("lint and types")
def types(session):
    """pyright strict, for every Python we promise."""
    session.install("-e", f".[{EXTRAS}]", *_group("types"))
    first, *others = VERSIONS
    session.run("pyright", "--pythonversion", first)  # it may have to fetch itself
    with ThreadPoolExecutor() as side_by_side:
        list(side_by_side.map(lambda version: session.run("pyright", "--pythonversion", version), others))


def _tested(session, *words):
    """To explain a failed assert, pytest rewrites all of them, longer than it takes to collect: only what failed is.

    It is run once more for that, and has failed all the same. All is explained with `-- --assert=rewrite`.
    """
    try:
        session.run("pytest", *words, "--assert=plain", *session.posargs, env=_TESTED)
    except nox.command.CommandFailed:
        again = ("--last-failed", "--last-failed-no-failures", "none")
        session.run("pytest", *words, *again, *session.posargs, env=_TESTED, success_codes=range(256))
        raise


def _tests_on(version, python):
    @nox.session(name=f"tests-{version}", python=python, default=True)
    @phase("tests")
    def tests(session):
        session.install(f"crmclient[{EXTRAS}] @ {_wheel(session).as_uri()}", *_group("test"))
        # All there is runs on a later Python with `nox -s tests-3.13 -- -m "not e2e and not crash"`. The exam of the
        # dialects, which is half of what is left, is taken on the oldest and the newest.
        first, last = (next(iter(each)) for each in (PRESENT, reversed(PRESENT)))
        words = [] if version in (first, last) else ["--ignore", "tests/test_conformance.py"]
        _tested(
            session, *_SIDE_BY_SIDE, *words, "-m", f"not e2e and not crash{'' if version == first else ' and not once'}"
        )

    tests.__doc__ = f"The tests on the wheel, with Python {version}."
    return tests


for _version, _found in PRESENT.items():
    globals()[f"tests_{_version}"] = _tests_on(_version, _found)


@nox.session(python=False)
def tests(session):
    """The tests on every Python present; those that are not are named."""
    missing = [version for version in VERSIONS if version not in PRESENT]
    session.log(f"Pythons: {', '.join(PRESENT)}; missing: {', '.join(missing) or 'none'}")
    for version in PRESENT:
        session.notify(f"tests-{version}", session.posargs)


@nox.session
@phase("e2e")
def e2e(session):
    """Processes and real servers: the only tests that may wait on the wall clock."""
    session.install(f"crmclient[{EXTRAS}] @ {_wheel(session).as_uri()}", *_group("test"), *_group("strangers"))
    _tested(session, *_THREE_A_PAIR, "-m", "e2e")


@nox.session
@phase("crash")
def crash(session):
    """A move between any two, cut at each request and each commit, and killed for real at each write: nothing is doubled."""
    session.install(f"crmclient[{EXTRAS}] @ {_wheel(session).as_uri()}", *_group("test"))
    _tested(session, *_SIDE_BY_SIDE, "tests/crash/test_points.py", "tests/crash/test_processes.py")


@nox.session(default=False)
def crash_full(session):
    """What `crash` leaves out: points two by two, lanes, storms, hostile servers. CRMCLIENT_CRASHES=10 is a small one."""
    session.install(f"crmclient[{EXTRAS}] @ {_wheel(session).as_uri()}", *_group("test"))
    session.run("python", "tests/crash/full.py", *session.posargs, env=_TESTED)


@nox.session(default=False)
def mutants(session):
    """Each rule of the engine that keeps rows single is taken away: a suite that does not notice fails."""
    session.install(f"crmclient[{EXTRAS}] @ {_wheel(session).as_uri()}", *_group("test"))
    session.run("pytest", *_SIDE_BY_SIDE, "tests/crash/test_mutants.py", *session.posargs, env=_TESTED)


@nox.session
@phase("wheel")
def wheel(session):
    """The wheel in a clean environment: the bare one first, then with its extras."""
    built = _wheel(session).as_uri()
    session.install(f"crmclient @ {built}")
    os.chdir(session.create_tmp())  # nothing of the tree in reach
    session.run("python", "-W", "error", "-c", "import crmclient; crmclient.connect; print(crmclient.dialect_names())")
    session.run("crmclient", "dialects", success_codes=[1], silent=True)  # says which extra is missing
    session.install(f"crmclient[{EXTRAS}] @ {built}")
    session.run("crmclient", "dialects")


@nox.session(default=False)
def demo(session):
    """The main job on the embedded sandboxes."""
    session.install(f".[{EXTRAS}]")
    session.run("crmclient", "demo", *session.posargs)


@nox.session(default=False)
def fuzz(session):
    """Rows nobody has tried yet (a thousand of each law) and answers spoiled by 100,000 seeds a dialect."""
    session.install(f"crmclient[{EXTRAS}] @ {_wheel(session).as_uri()}", *_group("test"))
    many = {name: os.environ.get(name, most) for name, most in _MANY.items()}
    tests = ("tests/test_roundtrip.py", "tests/test_fuzz.py")
    session.run("pytest", *tests, *_SIDE_BY_SIDE, *session.posargs, env=_TESTED | many)


@nox.session(default=False)
def faults(session):
    """The fault catalogue, row by row: which tests prove it, and how they ended."""
    session.install("-e", f".[{EXTRAS}]", *_group("test"))
    session.run("pytest", "-k", "fault_", *session.posargs, env={"CRMCLIENT_FAULTS": "table"})


nox.options.sessions = ["lint", "types", "tests", "e2e", "crash", "wheel"]
