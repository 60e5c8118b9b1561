"""How an operator's command reaches the two hosts of a migration: this one, and the one that the journal names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from migrator import errors, fencing, transport


class RealHosts:
    """This host, and the one that the operator or the journal names."""

    def __init__(
        self, other: str = "", *, sudo: bool | Callable[[str], bool] = False, criu: str = "", patience: float = 0.0
    ) -> None:
        """`other` is "" for what the journal says; `patience` bounds the seconds until it lets us in, 0 does not.

        `sudo`: become root there with it; or whether to, by the host's name.
        """
        self._other = other
        self._sudo = sudo if callable(sudo) else lambda _: sudo
        self._arguments = ("--criu", criu) if criu else ()
        self._patience = patience or None

    async def here(self) -> transport.Link:
        """The local agent."""
        return transport.LocalLink(agent_arguments=self._arguments)

    async def there(self, peer: str, address: str = "") -> transport.Link:
        """A new SSH connection: to what the operator said, else by the journal's name, else by the address."""
        names = [self._other] if self._other else [name for name in dict.fromkeys((peer, address)) if name]
        failures: list[errors.MigrateError] = [] if names else [errors.ConnectError("no other host is known: name it")]
        for name in names:
            try:
                return await self._reach(name)
            except errors.MigrateError as error:
                failures.append(error)
        first, *others = failures
        first.message += "".join(f"; {other.message}" for other in others)
        raise first

    async def answers(self, peer: str, address: str) -> str:
        """Asks all that is known of it: the operator's name for it can't stand in the way of the journal's."""
        for name in dict.fromkeys(filter(None, (self._other, peer, address))):
            try:
                link = await self._reach(name)
            except errors.MigrateError as error:
                if fencing.silent(error):
                    continue
                return error.message
            await link.close()
            return f"{name} lets us in"
        return ""

    def by_hand(self, peer: str, command: str) -> str:
        """By SSH, with a terminal there."""
        name = self._other or peer
        return transport.parse_target(name).by_hand(command, sudo=self._sudo(name))

    async def _reach(self, name: str) -> transport.Link:
        where = transport.parse_target(name)
        try:
            async with asyncio.timeout(self._patience):
                return await transport.connect(where, sudo=self._sudo(name), agent_arguments=self._arguments)
        except TimeoutError:
            raise errors.Refused(f"{name}: no answer within {self._patience:.0f} s") from None
