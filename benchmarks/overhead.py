"""What a call costs beyond HTTP itself: CPU of this process, beside bare httpx, for small reads without a limit.

    python benchmarks/overhead.py [--calls N] [--rounds N]

Nothing leaves this machine. A server in a process of its own gives one small contact to whoever asks; it is asked for the
same bytes by bare httpx with `json.loads`, and by crmclient down to the neutral entity, in turn, round after round, one
call after the other. What counts is the ratio of the medians.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from statistics import median

import httpx

from crmclient import connect

# What is due: so much more CPU than bare httpx, at the most.
MORE = 0.25
PATH = "/api/v4/contacts/1"
ROW = {
    "id": 1,
    "name": "Иван Петров",
    "first_name": "Иван",
    "last_name": "Петров",
    "responsible_user_id": 5,
    "created_by": 5,
    "updated_by": 5,
    "created_at": 1769000000,
    "updated_at": 1769000000,
    "is_deleted": False,
    "custom_fields_values": None,
    "account_id": 9,
    "_embedded": {"tags": [], "companies": [], "leads": []},
}

Reading = Callable[[str, int], Awaitable[None]]


class Desk(asyncio.Protocol):
    """Answers each request with the same contact."""

    _body = json.dumps(ROW, ensure_ascii=False).encode()
    _answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/hal+json\r\nContent-Length: %d\r\n\r\n%s"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert isinstance(self._transport, asyncio.WriteTransport)  # noqa: S101
        self._transport.write((self._answer % (len(self._body), self._body)) * data.count(b"\r\n\r\n"))


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Desk, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


@contextmanager
def serving() -> Generator[str]:
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603
        assert server.stdout is not None and server.stdin is not None  # noqa: S101, PT018
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.stdin.close()


async def bare(origin: str, calls: int) -> None:
    async with httpx.AsyncClient(headers={"Authorization": "Bearer token"}, trust_env=False) as http:
        for _ in range(calls):
            answer = await http.get(f"{origin}{PATH}?with=leads")
            json.loads(answer.content)


async def ours(origin: str, calls: int) -> None:
    async with connect("kommo", base_url=origin, credentials="token", rate=()) as crm:
        for _ in range(calls):
            await crm.contacts.get(1)


def worked(reading: Reading, origin: str, calls: int) -> float:
    """Seconds of this process's own work a call."""
    before = time.process_time()
    asyncio.run(reading(origin, calls))
    return (time.process_time() - before) / calls


def main() -> int:
    asked = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    asked.add_argument("--calls", type=int, default=2_000)
    asked.add_argument("--rounds", type=int, default=7)
    asked.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.serve:
        asyncio.run(serve())
        return 0
    contenders: dict[str, Reading] = {"httpx + json.loads": bare, "crmclient": ours}
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    with serving() as origin:
        for reading in contenders.values():
            worked(reading, origin, 50)  # what is imported or compiled on the way is ready then
        order = list(contenders)
        for _ in range(given.rounds):
            for name in order:
                spent[name].append(worked(contenders[name], origin, given.calls))
            order.reverse()
    for name, taken in spent.items():
        print(f"{name:20} {median(taken) * 1e6:8.0f} µs of CPU a call (best {min(taken) * 1e6:.0f})")
    floor, own = (median(taken) for taken in spent.values())
    more = own / floor - 1
    print(f"{'ok  ' if more <= MORE else 'MISS'} crmclient takes {more:+.0%} CPU a call (due {MORE:+.0%} at the most)")
    return 0 if more <= MORE else 1


if __name__ == "__main__":
    sys.exit(main())
