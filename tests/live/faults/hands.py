"""The test's end of a hand on a host (programs/hand.py), and what it needs of the host for it."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.live.lab_host import LabHost

SOCKET = "/run/instants/socket"
ENVIRONMENT = f"MIGRATE_INSTANT={SOCKET}"


class Hand:
    """One host's."""

    def __init__(self, host: LabHost, *, stops: bool = True) -> None:
        """`stops`: whether agents on this host are to come to it at their instants."""
        self.host = host
        self._channel = host.start(f"exec python3 -IB /root/programs/hand.py {SOCKET}")
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        self.ask("heal")
        if not stops:
            return
        # sshd gives every session of this host what stands there, by PAM; so the agents that `migrate` starts have it
        host.run(f"grep -qx {ENVIRONMENT} /etc/environment || echo {ENVIRONMENT} >>/etc/environment")

    def close(self) -> None:
        """Nobody stops here any more."""
        self.host.run(f"sed -i '\\,^{ENVIRONMENT}$,d' /etc/environment")
        self._channel.close()

    def ask(self, order: str, **words: Any) -> Any:
        """Give an order, and wait for what it comes to."""
        self._channel.sendall(json.dumps({"do": order, **words}).encode() + b"\n")
        while True:
            event = self._line(300)
            assert event is not None, f"{self.host.name}: no answer to {order}"
            if "answer" in event:
                return event["answer"]
            self._events.append(event)

    def held(self, seconds: float) -> int:
        """The PID of who stands at the instant that is to be held; 0 when nobody came within this time."""
        while not self._events:
            event = self._line(seconds)
            if event is None:
                return 0
            self._events.append(event)
        return int(self._events.pop(0)["pid"])

    def hold(self, name: str) -> None:
        """Stop the next one who comes to this instant."""
        self._events.clear()
        self.ask("hold", name=name)

    def _line(self, seconds: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            self._channel.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self._channel.recv(65536)
            except TimeoutError:
                return None
            said = self._channel.recv_stderr(65536).decode() if not data else ""
            assert data, f"{self.host.name}: the hand has gone: {said}"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        return event
