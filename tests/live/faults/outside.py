"""A place outside both hosts, to which a process on either says that it lives, and the judge of what came there.

On `netns` it is a network namespace of its own, which a thread of ours is in, with a link to each host. On `vm` it is
the far end of a network card that each machine has (labkit/vm.py): its frames come to a unix socket. Either way the
source address says which host has sent, and nothing of the private link between the two plays in.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.live.lab_host import LabHost

ADDRESS, PORT = "10.88.0.1", 7
HOSTS = {"alpha": "10.88.0.11", "beta": "10.88.0.12"}
"""What each host sends from."""
CARD = "outside"
"""The interface's name on each host."""
_MAC = "52:54:00:00:00:99"
_CLONE_NEWNET = 0x40000000


@dataclasses.dataclass(frozen=True)
class Sign:
    """One datagram: when it came, from which host, and what it says."""

    at: float
    host: str
    sequence: int
    sweeps: int
    bad: int
    wrong: int


class Outside:
    """The collector. What came since `expect` is in `signs`."""

    def __init__(self, hosts: Sequence[LabHost], backend: str, status: dict[str, Any]) -> None:
        self._hosts = hosts
        self._status = status
        self._token = b""
        self.signs: list[Sign] = []
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._stop = False
        self._sender_of = {address: name for name, address in HOSTS.items()}
        self._backend = backend
        make = self._in_namespace if backend == "netns" else self._at_cards
        self._thread = threading.Thread(target=self._run, args=(make,), name="outside", daemon=True)
        self._thread.start()
        assert self._ready.wait(60), "the collector does not start"
        if self._failed:
            raise self._failed
        for host in hosts:
            self.join(host)

    def join(self, host: LabHost) -> None:
        """Set up a host's way to here; to be done again after it has rebooted."""
        if self._backend == "vm":
            find = "$(cd /sys/class/net; for i in *; do grep -q 00:00:0.:03 $i/address && echo $i; done)"
            host.run(f"test -e /sys/class/net/{CARD} || ip link set {find} name {CARD}")
            host.run(f"ip neigh replace {ADDRESS} lladdr {_MAC} dev {CARD} nud permanent")
        host.run(
            f"ip link set {CARD} up && ip address replace {HOSTS[host.name]}/32 dev {CARD} && "
            f"ip route replace {ADDRESS} dev {CARD} src {HOSTS[host.name]}"
        )

    def close(self) -> None:
        """Nothing of it stays on the hosts: on netns the links go with the namespace, which goes with the thread."""
        self._stop = True
        self._thread.join(10)
        if self._backend == "vm":
            for host in self._hosts:
                host.run(f"ip address flush {CARD}; ip neigh flush dev {CARD} nud permanent; ip link set {CARD} down")

    def expect(self, token: str) -> None:
        """Forget what came; from now on these signs count."""
        self._token = token.encode()
        self.signs = []

    def wait(self, enough: Callable[[list[Sign]], bool], seconds: float) -> bool:
        """Wait for signs; whether they came."""
        deadline = time.monotonic() + seconds
        while not enough(self.signs):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _run(self, make: Callable[[], tuple[socket.socket, Callable[[], tuple[bytes, str]]]]) -> None:
        try:
            receiver, receive = make()
        except BaseException as error:
            self._failed = error
            return
        finally:
            self._ready.set()
        with receiver:
            self._collect(receive)

    def _collect(self, receive: Callable[[], tuple[bytes, str]]) -> None:
        while not self._stop:
            try:
                data, sender = receive()
            except TimeoutError:
                continue
            token, *numbers = data.split()
            if token == self._token and sender in self._sender_of:
                self.signs.append(Sign(time.monotonic(), self._sender_of[sender], *map(int, numbers)))

    def _in_namespace(self) -> tuple[socket.socket, Callable[[], tuple[bytes, str]]]:
        """Only this thread is in the new namespace; it lives as long as the thread."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "no network namespace of its own for the collector")
        lines = ["link set lo up", f"address add {ADDRESS}/32 dev lo"]
        for name, address in HOSTS.items():
            pid = self._status["hosts"][name]["machine_pid"]
            lines.append(f"link add {name} type veth peer name {CARD} netns {pid}")
            lines += [f"link set {name} up", f"route add {address} dev {name}"]
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        receiver.bind((ADDRESS, PORT))
        receiver.settimeout(0.5)

        def receive() -> tuple[bytes, str]:
            data, (sender, _) = receiver.recvfrom(2048)
            return data, sender

        return receiver, receive

    def _at_cards(self) -> tuple[socket.socket, Callable[[], tuple[bytes, str]]]:
        """Frames as the machines' cards send them: Ethernet, IPv4 without options, UDP."""
        path = Path(self._status["folder"]) / "outside.sock"
        path.unlink(missing_ok=True)
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        directory = os.open(path.parent, os.O_DIRECTORY)
        receiver.bind(f"/proc/self/fd/{directory}/{path.name}")  # a socket's path must be short
        os.close(directory)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        receiver.settimeout(0.5)

        def receive() -> tuple[bytes, str]:
            frame = receiver.recv(2048)
            if frame[12:14] != b"\x08\x00" or frame[14] != 0x45 or frame[23] != socket.IPPROTO_UDP:
                return b"-", ""
            length = int.from_bytes(frame[38:40], "big")
            return frame[42 : 34 + length], socket.inet_ntoa(frame[26:30])

        return receiver, receive


def judge(signs: Sequence[Sign], moves: int) -> str:
    """What is wrong with these signs of a process that has moved from alpha so many times; "" when nothing is.

    Every number is one more than the last, so there was neither a second copy nor a step back; the sender changes once
    a move, and starts on alpha. Nothing is allowed to be missing: the links to here are no part of any fault.
    """
    if not signs:
        return "no sign of life"
    for earlier, later in zip(signs, signs[1:]):
        if later.sequence != earlier.sequence + 1:
            return f"{later.sequence} from {later.host} came after {earlier.sequence} from {earlier.host}"
    senders = [signs[0].host] + [later.host for earlier, later in zip(signs, signs[1:]) if later.host != earlier.host]
    expected = ["alpha", "beta"] * (moves + 1)
    if senders != expected[: moves + 1]:
        return f"it has sent from {', then '.join(senders)}, in {moves} moves"
    if signs[-1].bad or signs[-1].wrong:
        return f"{signs[-1].bad} bad pages, {signs[-1].wrong} wrong answers of its child"
    return ""
