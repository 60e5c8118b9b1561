"""The target: one SSH connection, the agent started over it, and a channel of it for each bulk stream.

The only door to asyncssh, and where its exceptions become ours. Behaves as OpenSSH's users expect: ~/.ssh/config and
/etc/ssh/ssh_config (Host, Match, HostName, User, Port, IdentityFile, ProxyJump, ProxyCommand, UserKnownHostsFile…),
known_hosts (hashed too) of the user and of the system, ssh-agent, default keys. Three things it refuses whatever the
configuration says: accepting a host key that is not known, forwarding anything (agent, X11, ports), and compressing
(what is worth it is compressed before it gets here). Nothing listens on a TCP port.

Memory has a connection of its own, by OpenSSH's client, where that comes up: `openssh` says why.

Whoever needs a host finds all words here: Target, Channel, Link and pump are `channel`'s, LocalLink is `local`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncssh

from migrator import bundle, openssh, ssh_errors
from migrator.channel import MEMORY, Channel, Link, Target, parse_target, pump
from migrator.errors import ConnectError, HostKeyError, LinkLost
from migrator.local import PATIENCE, LocalLink
from migrator.openssh import OpenSshChannel
from migrator.ssh_channel import Session, SshChannel

__all__ = ["Channel", "Link", "LocalLink", "SshLink", "Target", "connect", "parse_target", "pump"]

log = logging.getLogger(__name__)
_told = logging.getLogger("migrator.agent")
"""Lines of -v."""

CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
"""Before asyncssh's own order, unless the configuration names ciphers: twice as fast as chacha20."""

WINDOW = 16 << 20
"""Bytes that the far end may send before it must wait for us."""

REKEY_BYTES = 64 << 30
"""RFC 4344's limit for AES; sooner only costs a pause, which might fall into the freeze."""

KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3
"""A link that is dead without a word is noticed within 20 s."""

CONNECT_SECONDS = 30
"""For everything up to being logged in, unless the configuration says ConnectTimeout."""

JUMPS = 8
"""ProxyJumps in a row at most; more are a loop in the configuration."""

DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk")


class _Session(Session, asyncssh.SSHClientSession[bytes]):
    """Ours first, the library's for whatever else it calls."""


class SshLink:
    """A host over SSH; made by `connect`."""

    def __init__(
        self,
        target: Target,
        connections: Sequence[asyncssh.SSHClientConnection],
        *,
        sudo: bool,
        agent_arguments: Sequence[str],
        python: str,
        config: Sequence[Path] | None = None,
    ) -> None:
        self.name = target.host
        self._target = target
        self._connections = connections
        self._sudo = sudo
        self._arguments = tuple(agent_arguments)
        self._python = python
        self._agent_path = ""
        self._config = config
        self._own: list[OpenSshChannel] = []

    async def start_agent(self, role: str) -> Channel:
        """Send the agent where it is missing, and start it: one exec. Raises ConnectError and its kinds."""
        log.debug("%s: starting the agent as %s", self.name, role)
        command = bundle.agent_command(self._arguments, sudo=self._sudo, python=self._python)
        try:
            channel = await self._open(command, PATIENCE)
        except (asyncssh.Error, OSError) as error:
            raise ssh_errors.explain(error, self._target, CONNECT_SECONDS) from error
        try:
            self._agent_path = await bundle.greet(channel, self.name)
        except BaseException:
            await channel.close()
            raise
        return channel

    async def open_stream(self, socket: str, name: str, form: str = "plain", *, own: bool = True) -> Channel:
        """A channel to the agent's bulk socket, by way of a relay that stands when this returns. Raises LinkLost.

        Memory gets a connection of its `own` where that can be, which is worth its start for more than a little.
        """
        if not self._agent_path:
            raise LinkLost(f"{self.name}: stream {name} is asked for before an agent was started")
        command = bundle.relay_command(self._agent_path, socket, name, form, sudo=self._sudo, python=self._python)
        if own and name == MEMORY and (apart := await self._open_own(command, name)) is not None:
            return apart
        try:
            channel: Channel = await self._open(command, 0.0)
            try:
                await bundle.greet_relay(channel, name)
            except BaseException:
                await channel.close()
                raise
        except (asyncssh.Error, OSError) as error:
            raise LinkLost(f"{self.name}: stream {name} could not be opened: {error}") from error
        return channel

    @property
    def stands(self) -> bool:
        """Whether it is there still, as far as is known."""
        return not self._connections[-1].is_closed()

    async def close(self) -> None:
        """Close the connection, jump hosts last."""
        for channel in self._own:
            await channel.close()
        for connection in reversed(self._connections):
            connection.close()
            with contextlib.suppress(TimeoutError, OSError, asyncssh.Error):
                async with asyncio.timeout(2):
                    await connection.wait_closed()
            connection.abort()

    async def _open_own(self, command: Sequence[str], name: str) -> Channel | None:
        """The stream over a connection of its own, by OpenSSH's client; None where that does not come up."""
        if self._config is not None and len(self._config) > 1:
            return None  # ssh takes one
        words = openssh.arguments(
            self._target,
            f"exec {shlex.join(command)}",
            cipher=str(self._connections[-1].get_extra_info("send_cipher")),
            config=self._config,
            alive=(KEEPALIVE_SECONDS, KEEPALIVE_COUNT),
        )
        try:
            channel = await OpenSshChannel.to(self.name, words)
        except OSError as error:
            _told.debug("%s: memory goes over the connection that stands: %s", self.name, error)
            return None
        self._own.append(channel)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await bundle.greet_relay(channel, name)
        except (OSError, TimeoutError) as error:
            _told.debug("%s: memory goes over the connection that stands: %s", self.name, error)
            await channel.close()
            return None
        except BaseException:
            await channel.close()
            raise
        return channel

    async def _open(self, command: Sequence[str], patience: float) -> SshChannel:
        # SSH carries a command as one text for the login shell there, so it is quoted here, and only here;
        # exec, since some shells would stay and keep our pipes open
        text = f"exec {shlex.join(command)}"
        log.debug("%s: %s", self.name, text)
        session = _Session(self.name)
        await self._connections[-1].create_session(
            lambda: session, text, request_pty=False, encoding=None, window=WINDOW
        )
        return SshChannel(self.name, session, patience)


async def connect(
    target: Target,
    *,
    sudo: bool = False,
    agent_arguments: Sequence[str] = (),
    python: str = "python3",
    config: Sequence[Path] | None = None,
) -> SshLink:
    """Connect and log in. `sudo` starts the agent through `sudo -n`; `config` stands in for the usual two ssh_config.

    Raises UnknownHost, Refused, HostKeyError, LoginError or ConnectError.
    """
    link_config = config
    if config is None:
        config = [Path("~/.ssh/config").expanduser(), Path("/etc/ssh/ssh_config")]
    connections: list[asyncssh.SSHClientConnection] = []
    link = SshLink(target, connections, sudo=sudo, agent_arguments=agent_arguments, python=python, config=link_config)
    try:
        await _dial(target, [str(path) for path in config if os.access(path, os.R_OK)], connections, JUMPS)
    except BaseException:
        await link.close()
        raise
    return link


async def _dial(
    target: Target, config: list[str], connections: list[asyncssh.SSHClientConnection], jumps_left: int
) -> None:
    """Connect to `target` through the last of `connections`, or else as the configuration says, and append it."""
    named: dict[str, Any] = {}
    if target.port:
        named["port"] = target.port
    if target.user:
        named["username"] = target.user
    trust = _Trust(target)
    seconds: object = CONNECT_SECONDS
    try:
        found = asyncssh.SSHClientConnectionOptions(host=target.host, config=config, client_keys=None, **named).config
        seconds = found.get("ConnectTimeout", CONNECT_SECONDS)
        jumps = str(found.get("ProxyJump") or "") if not connections else ""
        if jumps and not jumps_left:
            raise ConnectError(f"{target.host}: more than {JUMPS} ProxyJumps: a loop?", hint="look into ~/.ssh/config")
        for jump in filter(None, jumps.split(",")):
            await _dial(parse_target(jump), config, connections, jumps_left - 1)
        trust.read(found)
        if connections:
            named["tunnel"] = connections[-1]
        if not found.get("Ciphers"):
            named["encryption_algs"] = CIPHERS
        connection, _ = await asyncssh.create_connection(
            lambda: _Client(trust),
            target.host,
            config=config,
            known_hosts=trust.match,
            connect_timeout=seconds,
            compression_algs=["none"],
            agent_forwarding=False,
            x11_forwarding=False,
            rekey_bytes=REKEY_BYTES,
            rekey_seconds=24 * 3600,
            keepalive_interval=KEEPALIVE_SECONDS,
            keepalive_count_max=KEEPALIVE_COUNT,
            **_keys(found),
            **named,
        )
    except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as error:
        raise trust.judge(error) or ssh_errors.explain(error, target, seconds) from error
    except (asyncssh.Error, asyncssh.PasswordChangeRequired, OSError, ValueError) as error:
        raise ssh_errors.explain(error, target, seconds) from error
    connections.append(connection)


class _Client(asyncssh.SSHClient):
    """Asked by asyncssh about a host key that is in no known_hosts file."""

    def __init__(self, trust: _Trust) -> None:
        self._trust = trust

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Never; but remember it for the message."""
        self._trust.refused = key
        return False


class _Trust:
    """The host keys that are known for one host, from the files that OpenSSH would read.

    asyncssh's own reading fails on a file that is missing and on a line that is damaged, trusts every key when
    UserKnownHostsFile is `none`, and also accepts a key that is only known for the address: so it is done here.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._files: dict[str, asyncssh.SSHKnownHosts] = {}
        self._known: list[tuple[str, asyncssh.SSHKey]] = []
        self._plain = False
        self._alias = False
        self._entry = target.host
        self.refused: asyncssh.SSHKey | None = None

    def read(self, config: Any) -> None:
        """Load the files that the configuration names, or the usual ones."""
        self._alias = bool(config.get("HostKeyAlias"))
        users = config.get("UserKnownHostsFile", ["~/.ssh/known_hosts", "~/.ssh/known_hosts2"])
        systems = config.get("GlobalKnownHostsFile", ["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"])
        for name in [*users, *systems]:
            path = Path(name).expanduser()
            try:
                lines = path.read_text(errors="replace").splitlines()
            except OSError:
                continue
            known = self._files[str(path)] = asyncssh.SSHKnownHosts()
            for line in lines:
                with contextlib.suppress(ValueError):
                    known.load(line)

    def match(self, host: str, _address: str, port: int | None) -> tuple[list[asyncssh.SSHKey], ...]:
        """Keys, authorities and revoked keys for this name; asyncssh calls it.

        A key that stands there without the port is good for any port, as with OpenSSH; but another one there is no
        change of this one. An alias stands there without a port.
        """
        host = host.lower()
        port = None if self._alias else port
        self._entry = f"[{host}]:{port}" if port else host
        keys: list[asyncssh.SSHKey] = []
        authorities: list[asyncssh.SSHKey] = []
        revoked: list[asyncssh.SSHKey] = []
        for name, known in self._files.items():
            found = known.match(host, "", port)
            keys += found[0]
            authorities += found[1]
            revoked += found[2]
            if port and found[0] == known.match(host, "", None)[0]:
                self._plain = self._plain or bool(found[0])
            else:
                self._known += [(name, key) for key in found[0]]
        return keys, authorities, revoked

    def judge(self, error: asyncssh.DisconnectError) -> HostKeyError | None:
        """What a failure means for the trust in the host; None when it means nothing for it."""
        if self.refused is not None:
            shown = _fingerprint(self.refused)
        elif (
            isinstance(error, asyncssh.KeyExchangeFailed)
            and "host key" in error.reason
            and (self._known or self._plain)
        ):
            shown = "of another type"
        else:
            return None
        if not self._known:
            return ssh_errors.unknown_key(self._target, shown)
        known = ", ".join(_fingerprint(key) for _, key in self._known)
        return ssh_errors.changed_key(self._target, shown, known, [name for name, _ in self._known], self._entry)


def _fingerprint(key: asyncssh.SSHKey) -> str:
    return f"{key.algorithm.decode()} {key.get_fingerprint('sha256')}"


def _keys(config: Any) -> dict[str, Any]:
    """Our keys, as OpenSSH picks them: a file that is missing, encrypted or no key is passed over."""
    files = [Path(name).expanduser() for name in config.get("IdentityFile", [])]
    pairs: list[asyncssh.SSHKeyPair] = []
    for path in files or [Path("~/.ssh", name).expanduser() for name in DEFAULT_KEYS]:
        with contextlib.suppress(OSError, ValueError):
            pairs += asyncssh.load_keypairs([str(path)], ignore_encrypted=True)
    chosen: dict[str, Any] = {"client_keys": pairs}
    if config.get("IdentitiesOnly"):
        chosen["agent_identities"] = [data for path in files for data in _public(path)] or [b""]  # b"": none of them
    return chosen


def _public(path: Path) -> list[bytes]:
    """The public half of a key, by which ssh-agent is asked for it."""
    for candidate in (f"{path}.pub", str(path)):
        with contextlib.suppress(OSError, ValueError):
            return [asyncssh.read_public_key(candidate).public_data]
    return []
