"""E. The token store: what a disk, a crash and other users can do to it. Rows of the fault catalogue."""

import asyncio
import errno
import inspect
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from tokenshop import ACCOUNT, TOKEN, FaultFS, Vendor, at, told_of

from crmclient import FileTokens, Secret
from crmclient.clock import FakeClock
from crmclient.dialect import read
from crmclient.errors import TokenStoreCorrupt, TokenStoreFailed
from crmclient.serial import token_from_tree, token_to_tree
from crmclient.testing.crash import CrashingFiles, CrashPoints, SimulatedCrash
from crmclient.tokens import Files, Spending, TokenExposed

# --------------------------------------------------------------------------------------------------------- token files


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.asyncio
@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
async def test_fault_092_a_token_file_is_for_its_user_only_whatever_the_umask(tmp_path, umask):
    store = FileTokens(tmp_path / "deep" / "tokens")
    before = os.umask(umask & 0o077)  # a umask that locks out oneself is nobody's
    try:
        async with store.lock("kommo-x"):
            await store.save("kommo-x", TOKEN)
    finally:
        os.umask(before)
    files = list(store.folder.iterdir())
    assert {mode(file) for file in files} == {0o600}
    assert mode(store.folder) == 0o700
    assert await store.load("kommo-x") == TOKEN


@pytest.mark.asyncio
async def test_a_token_comes_back_as_it_went(tmp_path):
    clock = FakeClock()
    token = evolve(TOKEN, issued_at=clock.now(), expires_at=clock.now() + timedelta(days=1))
    assert token_from_tree(token_to_tree(token)) == token
    store = FileTokens(tmp_path)
    assert await store.load("kommo-x") is None
    await store.save("kommo-x", token)
    assert await FileTokens(str(tmp_path)).load("kommo-x") == token


@pytest.mark.asyncio
@pytest.mark.parametrize("account", ["../../etc/passwd", "kommo-a:8080", "a/b", "..", "Ы", "a\0b", ""])
async def test_whatever_an_account_is_called_its_file_stays_in_the_folder(tmp_path, account):
    store = FileTokens(tmp_path / "tokens")
    await store.save(account, TOKEN)
    assert await store.load(account) == TOKEN
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [store.folder]


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["kommo-x.json", "kommo-x.new", "kommo-x.lock"])
async def test_fault_093_a_symlink_in_place_of_a_file_leads_nowhere(tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text('{"access":"precious"}')
    store = FileTokens(tmp_path / "tokens")
    store.folder.mkdir(mode=0o700)
    (store.folder / name).symlink_to(victim)
    if name.endswith(".json"):
        with pytest.raises(TokenStoreFailed, match="symbolic link"):
            await store.load("kommo-x")
    try:
        async with asyncio.timeout(1), store.lock("kommo-x"):
            await store.save("kommo-x", TOKEN)
    except TokenStoreFailed:
        assert not name.endswith(".new"), "what is only in the way is removed"
    else:
        assert name.endswith(".new")
        assert await store.load("kommo-x") == TOKEN
    assert victim.read_text() == '{"access":"precious"}'


DAMAGED = {
    "empty": b"",
    "cut": b'{"access":"CANARY-a","refr',
    "binary": bytes(range(256)),
    "NUL": b"\0" * 100,
    "a list": b'["CANARY-a"]',
    "null": b"null",
    "no access": b'{"refresh":"CANARY-r"}',
    "of another type": b'{"access":7,"refresh":"CANARY-r"}',
    "a date that is none": b'{"access":"CANARY-a","expires_at":"soon"}',
    "deep": b"[" * 100_000,
    "of version 0": b'{"access":"CANARY-a","version":0}',
    "of a version that is none": b'{"access":"CANARY-a","version":"1"}',
    "large": b'{"access":"' + b"x" * (2 << 20) + b'"}',
}


@pytest.mark.asyncio
@pytest.mark.parametrize("how", DAMAGED)
async def test_fault_095_a_damaged_token_file_is_said_to_be_and_moved_aside_by_the_next_save(tmp_path, how):
    store, file = FileTokens(tmp_path), tmp_path / f"{ACCOUNT}.json"
    file.write_bytes(DAMAGED[how])
    file.chmod(0o600)
    for _ in range(2):  # never silently empty, not at the second look either
        async with at(Vendor([]), FakeClock(), store) as crm:
            with pytest.raises(TokenStoreCorrupt, match="damaged") as told:
                await crm.call(read("/x"))
        assert str(file) in str(told.value)
        assert "CANARY" not in told_of(told.value)
        assert file.read_bytes() == DAMAGED[how]
    async with store.lock(ACCOUNT):
        await store.save(ACCOUNT, TOKEN)
    (aside,) = tmp_path.glob("*.corrupt-*")
    assert aside.read_bytes() == DAMAGED[how]
    assert mode(aside) == 0o600
    assert await store.load(ACCOUNT) == TOKEN


@pytest.mark.asyncio
async def test_fault_094_a_folder_in_place_of_a_token_file_is_said_to_be_none(tmp_path):
    (tmp_path / "kommo-x.json").mkdir()
    with pytest.raises(TokenStoreFailed, match="no regular file"):
        await FileTokens(tmp_path).load("kommo-x")


@pytest.mark.asyncio
async def test_fault_094_a_pipe_in_place_of_a_token_file_does_not_hang_the_client(tmp_path):
    pipe = tmp_path / "kommo-x.json"
    os.mkfifo(pipe)
    loading = asyncio.create_task(FileTokens(tmp_path).load("kommo-x"))
    done, _ = await asyncio.wait([loading], timeout=1)
    if not done:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # lets the stuck thread go
        await asyncio.gather(loading, return_exceptions=True)
    assert done, "opening the pipe waits for a writer, for ever"
    with pytest.raises(TokenStoreFailed):
        loading.result()


@pytest.mark.asyncio
@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace", "os.write"])
async def test_fault_089_a_save_that_breaks_off_leaves_the_old_token_whole(tmp_path, monkeypatch, step):
    store = FileTokens(tmp_path)
    await store.save("kommo-x", TOKEN)
    with monkeypatch.context() as patched:

        def fail(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr(step, fail)
        with pytest.raises(TokenStoreFailed, match="space"):
            await store.save("kommo-x", evolve(TOKEN, access=Secret("new")))
    assert await store.load("kommo-x") == TOKEN
    await store.save("kommo-x", evolve(TOKEN, access=Secret("new")))
    assert (await store.load("kommo-x")).access.reveal() == "new"
    assert len(list(tmp_path.iterdir())) == 1, "what the broken save left behind is still there"


@pytest.mark.asyncio
async def test_fault_089_a_token_file_is_replaced_and_never_written_over(tmp_path):
    store, file = FileTokens(tmp_path), tmp_path / "kommo-x.json"
    await store.save("kommo-x", TOKEN)
    with file.open("rb") as reader:  # somebody is reading while it is replaced
        await store.save("kommo-x", evolve(TOKEN, access=Secret("other")))
        assert json.load(reader)["access"] == "CANARY-a"


# ------------------------------------------------------------------------------------------- crashes, and what they leave


NEWER = evolve(TOKEN, access=Secret("CANARY-newer"), refresh=Secret("CANARY-newer-r"))


def renewed(folder: Path, points: CrashPoints) -> None:
    async def run() -> None:
        store = FileTokens(folder, files=CrashingFiles(points))
        async with store.lock("kommo-x"):
            await store.save("kommo-x", NEWER)

    asyncio.run(run())


def test_fault_089_091_a_process_killed_at_any_point_of_a_save_leaves_the_old_token_or_the_new_one(tmp_path):
    counted = CrashPoints()
    (tmp_path / "count").mkdir(mode=0o700)
    asyncio.run(FileTokens(tmp_path / "count").save("kommo-x", TOKEN))
    renewed(tmp_path / "count", counted)
    assert {"within write", "before replace kommo-x.json", "after replace kommo-x.json"} <= set(counted.passed)
    found: list[bool] = []
    for at_point in range(1, len(counted.passed) + 1):
        folder = tmp_path / str(at_point)
        folder.mkdir(mode=0o700)
        asyncio.run(FileTokens(folder).save("kommo-x", TOKEN))
        with pytest.raises(SimulatedCrash):
            renewed(folder, CrashPoints(at=at_point))
        store = FileTokens(folder)
        found.append(asyncio.run(store.load("kommo-x")) == NEWER)
        assert found[-1] or asyncio.run(store.load("kommo-x")) == TOKEN
        assert len(list(folder.glob("*.new"))) <= 1
        renewed(folder, CrashPoints())  # the dead one holds no lock
        assert sorted(path.name for path in folder.iterdir()) == ["kommo-x.json", "kommo-x.lock"], "an orphan stays"
    assert found == sorted(found), "once it is there it does not go away"
    assert found.index(True) == counted.passed.index("after replace kommo-x.json")


SAVER = """
import asyncio, sys
from crmclient import FileTokens, Secret
from crmclient.dialect import Token

async def main():
    store, n = FileTokens(sys.argv[1]), 0
    while True:
        n += 1
        if n == 2:
            print("saving", flush=True)
        async with store.lock("kommo-x"):
            await store.save("kommo-x", Token(access=Secret("a" * 1200 + str(n)), refresh=Secret("r" * 1200 + str(n))))

asyncio.run(main())
"""


@pytest.mark.e2e
def test_fault_089_091_a_process_killed_while_it_saves_tears_nothing(tmp_path):
    asyncio.run(FileTokens(tmp_path).save("kommo-x", TOKEN))
    for n in range(5):
        saver = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE)
        assert saver.stdout is not None
        saver.stdout.readline()
        time.sleep(0.02 + 0.005 * n)
        saver.kill()
        saver.wait()
        saver.stdout.close()
        token = asyncio.run(FileTokens(tmp_path).load("kommo-x"))
        assert token is not None
        if n == 0:
            assert token != TOKEN, "nothing was saved at all: this test sees nothing"
        assert len(list(tmp_path.iterdir())) <= 3


class Written(Files):
    """What was done, in order, and what of it a power cut may undo: all that was not synced."""

    def __init__(self) -> None:
        self.done: list[tuple[str, Any]] = []
        self._names: dict[int, Path] = {}

    def open(self, path: Path, flags: int) -> int:
        handle = super().open(path, flags)
        self._names[handle] = path
        return handle

    def write(self, handle: int, content: bytes) -> None:
        super().write(handle, content)
        self.done.append(("write", (self._names[handle], content)))

    def sync(self, handle: int) -> None:
        super().sync(handle)
        self.done.append(("sync", self._names[handle]))

    def replace(self, old: Path, new: Path) -> None:
        super().replace(old, new)
        self.done.append(("replace", (old, new)))


def after_power_cut(done: list[tuple[str, Any]], folder: Path, old: bytes, *, kept: bool) -> tuple[bytes | None, bool]:
    """What the token file holds then, and whether the new one is sure to be there.

    ``kept``: the disk had got round to what nobody made sure of; else it had not, which for a renamed file means that its
    name is new and its content is not there.
    """
    safe: dict[Path, bytes] = {}
    loose: dict[Path, bytes] = {}
    name, sure = old, True
    for what, told in done:
        if what == "write":
            loose[told[0]] = told[1]
        elif what == "sync" and told == folder:
            sure = True
        elif what == "sync":
            safe[told] = loose[told]
        else:
            content = loose[told[0]] if kept else safe.get(told[0], b"")
            name, sure = content, False
    return name, sure


def test_fault_090_after_a_power_cut_at_any_moment_the_old_token_or_the_new_one_is_there(tmp_path):
    files = Written()
    store = FileTokens(tmp_path, files=files)
    asyncio.run(store.save("kommo-x", TOKEN))
    old = (tmp_path / "kommo-x.json").read_bytes()
    files.done.clear()
    asyncio.run(store.save("kommo-x", NEWER))
    new = (tmp_path / "kommo-x.json").read_bytes()
    assert [what for what, _ in files.done] == ["write", "sync", "replace", "sync"]
    for moment in range(len(files.done) + 1):
        for kept in (True, False):
            found, _ = after_power_cut(files.done[:moment], tmp_path, old, kept=kept)
            assert found in (old, new), f"torn after {moment} steps"
    assert after_power_cut(files.done, tmp_path, old, kept=False) == (new, True), "it returned and is not on the disk"


# ------------------------------------------------------------------------------------------------------ other people


@pytest.mark.asyncio
async def test_fault_092_a_token_file_that_others_could_read_is_closed_to_them_with_a_warning(tmp_path):
    store, file = FileTokens(tmp_path), tmp_path / "kommo-x.json"
    await store.save("kommo-x", TOKEN)
    file.chmod(0o644)
    with pytest.warns(TokenExposed, match="644"):
        assert await store.load("kommo-x") == TOKEN
    assert mode(file) == 0o600
    assert await store.load("kommo-x") == TOKEN  # said once


@pytest.mark.asyncio
@pytest.mark.parametrize("rights", [0o777, 0o1777, 0o770, 0o702])
async def test_fault_092_a_folder_that_others_may_write_to_keeps_no_tokens(tmp_path, rights):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(rights)
    store = FileTokens(folder)
    with pytest.raises(TokenStoreFailed, match="others may write"):
        await store.save("kommo-x", TOKEN)
    with pytest.raises(TokenStoreFailed, match="others may write"):
        async with store.lock("kommo-x"):
            pass
    assert list(folder.iterdir()) == []
    assert mode(folder) == rights, "a folder that others use is not ours to change"
    await FileTokens(folder / "own").save("kommo-x", TOKEN)
    assert mode(folder / "own") == 0o700


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["kommo-x.json", "kommo-x.lock"])
async def test_fault_094_a_file_with_a_second_name_is_refused(tmp_path, name):
    store = FileTokens(tmp_path)
    async with store.lock("kommo-x"):
        await store.save("kommo-x", TOKEN)
    os.link(tmp_path / name, tmp_path / "second")
    with pytest.raises(TokenStoreFailed, match="hard link"):
        if name.endswith(".json"):
            await store.load("kommo-x")
        else:
            async with store.lock("kommo-x"):
                pass


class Foreign(Files):
    """As if the files were somebody else's."""

    def stat(self, handle: int) -> os.stat_result:
        found = list(super().stat(handle))
        found[stat.ST_UID] = os.geteuid() + 1
        return os.stat_result(found)


@pytest.mark.asyncio
async def test_fault_094_a_file_of_another_user_is_refused(tmp_path):
    await FileTokens(tmp_path).save("kommo-x", TOKEN)
    store = FileTokens(tmp_path, files=Foreign())
    with pytest.raises(TokenStoreFailed, match="another user"):
        await store.load("kommo-x")
    with pytest.raises(TokenStoreFailed, match="another user"):
        async with store.lock("kommo-x"):
            pass


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
async def test_fault_094_what_is_no_file_is_no_lock(tmp_path, kind):
    path = tmp_path / "kommo-x.lock"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path, 0o600)
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    with pytest.raises(TokenStoreFailed):
        async with asyncio.timeout(2), FileTokens(tmp_path).lock("kommo-x"):
            pass


# -------------------------------------------------------------------------------------------------------- other versions


@pytest.mark.asyncio
async def test_fault_096_what_a_newer_version_keeps_beside_a_token_survives_a_save(tmp_path):
    store, file = FileTokens(tmp_path), tmp_path / "kommo-x.json"
    await store.save("kommo-x", TOKEN)
    tree = json.loads(file.read_text())
    assert tree["version"] == 1
    file.write_text(json.dumps({**tree, "scopes": ["crm"], "expires_at": "2026-01-01T00:00:00+00:00"}))
    assert (await store.load("kommo-x")).access == TOKEN.access
    await store.save("kommo-x", NEWER)
    kept = json.loads(file.read_text())
    assert kept["scopes"] == ["crm"]
    assert "expires_at" not in kept, "what is known here is replaced, and not mixed with the token before"
    assert await store.load("kommo-x") == NEWER


@pytest.mark.asyncio
async def test_fault_096_a_file_of_a_later_format_is_neither_read_nor_written_over(tmp_path):
    store, file = FileTokens(tmp_path), tmp_path / "kommo-x.json"
    file.write_text('{"version":2,"tokens":{"access":"CANARY"}}')
    file.chmod(0o600)
    for attempt in (store.load("kommo-x"), store.save("kommo-x", TOKEN)):
        with pytest.raises(TokenStoreFailed, match="newer crmclient") as told:
            await attempt
        assert not isinstance(told.value, TokenStoreCorrupt)
    assert file.read_text() == '{"version":2,"tokens":{"access":"CANARY"}}'


@pytest.mark.asyncio
async def test_a_file_from_before_there_were_versions_is_read(tmp_path):
    file = tmp_path / "kommo-x.json"
    file.write_text(json.dumps(token_to_tree(TOKEN)))
    file.chmod(0o600)
    assert await FileTokens(tmp_path).load("kommo-x") == TOKEN


@pytest.mark.asyncio
async def test_a_damaged_mark_costs_no_token(tmp_path, caplog):
    store = FileTokens(tmp_path)
    (tmp_path / "kommo-x.spent").write_bytes(b"{")
    (tmp_path / "kommo-x.spent").chmod(0o600)
    assert await store.marked("kommo-x") is None
    assert "damaged" in caplog.text


# ------------------------------------------------------------------------------------------------------------- locks


@pytest.mark.asyncio
@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
async def test_fault_097_without_locks_nothing_is_locked_and_it_is_said_why(tmp_path, error):
    files = FaultFS(error)
    files.broken = {"lock"}
    with pytest.raises(TokenStoreFailed, match="without locks"):
        async with FileTokens(tmp_path, files=files).lock("kommo-x"):
            pytest.fail("it went on without a lock")


@pytest.mark.asyncio
@pytest.mark.parametrize("made_anew", [False, True])
async def test_fault_098_a_lock_on_a_file_that_was_removed_is_none(tmp_path, made_anew):
    removed: list[int] = []

    class Removing(Files):
        def lock(self, handle: int) -> bool:
            taken = super().lock(handle)
            if not removed:
                (tmp_path / "kommo-x.lock").unlink()
                removed.append(handle)
                if made_anew:
                    (tmp_path / "kommo-x.lock").touch(0o600)
            return taken

    async with FileTokens(tmp_path, files=Removing()).lock("kommo-x"):
        assert removed
        with pytest.raises(TokenStoreFailed, match="has been locked"):
            async with FileTokens(tmp_path, clock=FakeClock(), patience=0.1).lock("kommo-x"):
                pytest.fail("two hold it")


@pytest.mark.asyncio
async def test_fault_098_a_lock_file_stays_when_the_lock_is_given_back(tmp_path):
    store = FileTokens(tmp_path)
    async with store.lock("kommo-x"):
        before = (tmp_path / "kommo-x.lock").stat().st_ino
    async with store.lock("kommo-x"):
        assert (tmp_path / "kommo-x.lock").stat().st_ino == before


async def is_free(folder: Path) -> bool:
    try:
        async with FileTokens(folder, clock=FakeClock(), patience=0.1).lock("kommo-x"):
            return True
    except TokenStoreFailed:
        return False


@pytest.mark.asyncio
async def test_fault_099_no_child_keeps_a_lock_alive(tmp_path):
    begun, go = os.pipe(), os.pipe()
    lock = FileTokens(tmp_path).lock("kommo-x")
    await lock.__aenter__()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking while there are threads
        child = os.fork()
    if child == 0:
        os.write(begun[1], b".")
        os.read(go[0], 1)
        os._exit(0)
    try:
        started = await asyncio.create_subprocess_exec("sleep", "60", close_fds=False)
        assert os.read(begun[0], 1) == b"."
        assert not await is_free(tmp_path), "the child gave our lock away"
        # It is given back by closing its handle, as the kernel does for the dead: only the last copy of it counts.
        await lock.__aexit__(None, None, None)
        assert await is_free(tmp_path)
    finally:
        started.kill()
        await started.wait()
        os.write(go[1], b".")
        os.waitpid(child, 0)  # noqa: ASYNC222  it ends at once
        for end in (*begun, *go):
            os.close(end)


class Off(Files):
    """Every call of the store to the operating system, and whether it was made on the loop's own thread."""

    def __init__(self, loop: int) -> None:
        self.loop = loop
        self.seen: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in vars(Files):
            super().__getattribute__("seen").append(name)
            assert threading.get_ident() != super().__getattribute__("loop"), f"{name} blocks the loop"
        return found


@pytest.mark.asyncio
async def test_fault_101_no_call_to_the_disk_is_made_on_the_loop(tmp_path):
    files = Off(threading.get_ident())
    store = FileTokens(tmp_path, files=files)
    async with store.lock("kommo-x"):
        await store.save("kommo-x", TOKEN)
        await store.save("kommo-x", NEWER)
        await store.mark("kommo-x", Spending.of(TOKEN))
        await store.marked("kommo-x")
        await store.mark("kommo-x", None)
    await store.load("kommo-x")
    assert {"folder", "open", "stat", "read", "write", "sync", "lock", "close", "replace", "remove"} <= set(files.seen)


def test_the_store_asks_the_operating_system_through_its_files_only():
    """So that a test that replaces them has replaced everything."""
    source = inspect.getsource(FileTokens)
    assert not re.findall(r"\bos\.(?!O_|geteuid|stat_result)\w+", source)
    assert not re.findall(r"\.(?:unlink|write_\w+|read_\w+|mkdir|touch|rename|chmod)\(", source)
