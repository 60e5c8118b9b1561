"""Many clients of one redis, each over one connection that it never makes anew: it counts, and stores each number.

A number that comes back twice, or not at all, is an error, as is whatever ends a connection. A line a second says how
many answers there were. SIGTERM ends the clients; then every key is read again, and the last line is a JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal


class Load:
    """The clients, and what has come of them."""

    def __init__(self, address: str, port: int) -> None:
        self._where = (address, port)
        self._over = False
        self._errors: list[str] = []
        self._counts: dict[int, int] = {}
        self._answers = 0

    async def client(self, number: int) -> None:
        """Until SIGTERM, or an error."""
        try:
            reader, writer = await asyncio.open_connection(*self._where)
            while not self._over:
                count = self._counts.get(number, 0) + 1
                asked = {f"INCR c:{number}": f":{count}", f"SET k:{number}:{count} {count}": "+OK"}
                for command, expected in asked.items():
                    writer.write(f"{command}\r\n".encode())
                    answer = (await reader.readuntil(b"\r\n")).decode().strip()
                    self._answers += 1
                    if answer != expected:
                        raise ValueError(f"{command}: {answer!r}")
                self._counts[number] = count
                await asyncio.sleep(0.01)
            writer.close()
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            self._errors.append(f"client {number}: {error!r}")

    async def _lost(self) -> list[str]:
        """Keys that do not hold what was stored in them, over a new connection."""
        reader, writer = await asyncio.open_connection(*self._where)
        lost = []
        for number, count in self._counts.items():
            for key, value in ((f"c:{number}", count), *((f"k:{number}:{each}", each) for each in range(1, count + 1))):
                writer.write(f"GET {key}\r\n".encode())
                if await reader.readuntil(b"\r\n") == b"$-1\r\n" or int(await reader.readuntil(b"\r\n")) != value:
                    lost.append(key)
        writer.close()
        return lost

    async def run(self, clients: int) -> None:
        """All of it."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._end)
        at_work = [asyncio.ensure_future(self.client(number)) for number in range(clients)]
        while not self._over:
            print(self._answers, flush=True)
            await asyncio.sleep(1)
        await asyncio.gather(*at_work)
        lost = await self._lost()
        said = {"errors": self._errors, "lost": lost, "clients": len(self._counts), "keys": sum(self._counts.values())}
        print(json.dumps(said), flush=True)

    def _end(self) -> None:
        self._over = True


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, required=True)
    options = parser.parse_args()
    asyncio.run(Load(options.address, options.port).run(options.clients))
