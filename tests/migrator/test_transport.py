"""SSH for real: an asyncssh server in this process, and Debian's sshd where there is one, on the loopback.

The home directory is a temporary one; nothing of the machine's own SSH is used but /etc/ssh/ssh_config.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncssh
import pytest

from agent import bulk, protocol, wire
from migrator import bundle, errors, openssh, transport
from migrator.channel import Target, pump

MIB = 1 << 20
USER = pwd.getpwuid(os.getuid()).pw_name
SSHD = os.environ.get("MIGRATE_TEST_SSHD") or shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert isinstance(port, int)
        return port


class Home:
    """A user's home directory with ~/.ssh in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ssh = path / ".ssh"
        self.ssh.mkdir(mode=0o700)
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.key.write_private_key(self.ssh / "id_ed25519")
        self.key.write_public_key(self.ssh / "id_ed25519.pub")

    def know(self, entry: str, key: asyncssh.SSHKey, file: str = "known_hosts") -> None:
        with (self.ssh / file).open("a") as known:
            known.write(f"{entry} {key.export_public_key().decode()}")

    def configure(self, text: str) -> None:
        (self.ssh / "config").write_text(text)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return Home(path)


@dataclasses.dataclass
class Server:
    """Something that speaks SSH on a port of the loopback."""

    port: int
    key: asyncssh.SSHKey
    name: str = "127.0.0.1"
    commands: list[str] = dataclasses.field(default_factory=list)
    connections: list[asyncssh.SSHServerConnection] = dataclasses.field(default_factory=list)
    tunnels: list[int] = dataclasses.field(default_factory=list)

    @property
    def target(self) -> Target:
        return Target(self.name, "", self.port)

    @property
    def entry(self) -> str:
        return f"[{self.name}]:{self.port}"


async def serve(process: asyncssh.SSHServerProcess[bytes], command: str) -> None:
    """Run a command as sshd does, with pipes; when the connection goes its input ends and nobody reads its output."""
    child = await asyncio.create_subprocess_exec(
        "sh", "-c", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdin
    assert child.stdout
    assert child.stderr
    given = child.stdin

    async def give() -> None:
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await process.stdin.read(MIB):
                given.write(data)
                await given.drain()
        given.close()

    async def take(pipe: asyncio.StreamReader, writer: asyncssh.SSHWriter[bytes]) -> None:
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await pipe.read(MIB):
                writer.write(data)
                await writer.drain()

    giving = asyncio.create_task(give())
    await asyncio.gather(take(child.stdout, process.stdout), take(child.stderr, process.stderr))
    with contextlib.suppress(OSError):
        process.stdout.write_eof()  # as sshd does: only once stderr has ended, too
    status = await child.wait()
    giving.cancel()
    await asyncio.gather(giving, return_exceptions=True)
    with contextlib.suppress(OSError):
        process.exit(status)


class Sessions:
    """In-process servers; each runs commands in a real shell, as sshd does."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.acceptors: list[asyncssh.SSHAcceptor] = []
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self, *, authorized: bool = True, key: str = "ssh-ed25519") -> Server:
        host_key = asyncssh.generate_private_key(key)
        server = Server(0, host_key)
        everyone = self.connections

        class Gate(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                server.connections.append(conn)
                everyone.append(conn)

            def connection_requested(self, host: str, port: int, orig_host: str, orig_port: int) -> bool:
                server.tunnels.append(port)
                return True

        async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
            assert process.command is not None
            server.commands.append(process.command)
            task = asyncio.create_task(serve(process, process.command))
            self.tasks.append(task)
            await task

        keys = asyncssh.import_authorized_keys(self.home.key.export_public_key().decode() if authorized else "")
        acceptor = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Gate,
            server_host_keys=[host_key],
            authorized_client_keys=keys,
            process_factory=run,
            encoding=None,
        )
        self.acceptors.append(acceptor)
        server.port = acceptor.sockets[0].getsockname()[1]
        return server

    async def close(self) -> None:
        for connection in self.connections:
            connection.abort()
            await connection.wait_closed()
        for acceptor in self.acceptors:
            acceptor.close()
            await acceptor.wait_closed()
        await asyncio.wait_for(asyncio.gather(*self.tasks, return_exceptions=True), 10)


@pytest.fixture
async def sessions(home: Home) -> AsyncIterator[Sessions]:
    sessions = Sessions(home)
    yield sessions
    await sessions.close()


@pytest.fixture
async def server(sessions: Sessions, home: Home) -> Server:
    server = await sessions.start()
    home.know(server.entry, server.key)
    return server


@pytest.fixture
def debians(home: Home, tmp_path: Path) -> Iterator[Server]:
    """Debian's sshd, unprivileged unless we are root."""
    if SSHD is None:
        pytest.skip("no sshd on this machine: apt install openssh-server")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = Server(free_port(), key)
    key.write_private_key(tmp_path / "host_key")
    (tmp_path / "host_key").chmod(0o600)
    home.know(server.entry, key)
    (tmp_path / "authorized_keys").write_bytes(home.key.export_public_key())
    (tmp_path / "sshd_config").write_text(
        f"Port {server.port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host_key\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {tmp_path}/authorized_keys\nPermitRootLogin yes\nUsePAM no\n"
        f"SetEnv HOME={home.path}\n"
    )
    with (tmp_path / "sshd.log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(tmp_path / "sshd_config")], stderr=log)
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port)):
            break
        time.sleep(0.05)
    else:
        process.kill()
        process.wait(10)
        pytest.fail((tmp_path / "sshd.log").read_text())
    yield server
    process.terminate()
    process.wait(10)


@pytest.fixture(params=["asyncssh", "openssh"])
def either(request: pytest.FixtureRequest) -> Server:
    """Each of the two servers."""
    found = request.getfixturevalue("server" if request.param == "asyncssh" else "debians")
    assert isinstance(found, Server)
    return found


async def connect(server: Server, **options: object) -> transport.SshLink:
    return await transport.connect(server.target, python=sys.executable, **options)  # type: ignore[arg-type]


async def run(link: transport.SshLink, text: str) -> bytes:
    """A command's output, by the way that everything goes."""
    channel = await link._open(["sh", "-c", text], 5.0)
    parts = []
    while data := await channel.read():
        parts.append(data)
    await channel.close()
    return b"".join(parts)


async def greeted(channel: transport.Channel) -> None:
    """Do what Peer does first."""
    ours = protocol.Banner(protocol.PRODUCT, protocol.PROTOCOL, protocol.VERSION, bundle.build_id())
    await channel.write(ours.line().encode() + b"\n")
    banner = protocol.Banner.parse((await channel.readline(wire.BANNER_LIMIT)).decode())
    assert banner is not None
    assert banner.build == bundle.build_id()


class TestConnecting:
    async def test_a_known_host_and_a_default_key(self, either: Server) -> None:
        link = await connect(either)
        assert link.name == "127.0.0.1"
        assert await run(link, "echo hello; echo $0") == b"hello\nsh\n"
        connection = link._connections[0]
        assert connection.get_extra_info("send_cipher") == "aes128-gcm@openssh.com"
        assert connection.get_extra_info("recv_compression") == "none"
        await link.close()

    async def test_an_unknown_key_is_shown_with_the_way_to_add_it(self, sessions: Sessions) -> None:
        server = await sessions.start()
        with pytest.raises(errors.HostKeyError, match="its host key is unknown: ssh-ed25519 SHA256:") as caught:
            await connect(server)
        assert server.key.get_fingerprint() in caught.value.message
        assert f"`ssh -p {server.port} 127.0.0.1`" in caught.value.hint
        assert server.commands == []

    @pytest.mark.parametrize(
        "settings", ["StrictHostKeyChecking no", "UserKnownHostsFile none", "UserKnownHostsFile /dev/null"]
    )
    async def test_no_setting_makes_an_unknown_key_acceptable(
        self, settings: str, sessions: Sessions, home: Home
    ) -> None:
        home.configure(settings + "\n")
        with pytest.raises(errors.HostKeyError, match="unknown"):
            await connect(await sessions.start())

    async def test_a_changed_key_says_what_was_known_and_where(self, sessions: Sessions, home: Home) -> None:
        server = await sessions.start()
        other = asyncssh.generate_private_key("ssh-ed25519")
        home.know(server.entry, other)
        with pytest.raises(errors.HostKeyError, match="its host key has changed: ") as caught:
            await connect(server)
        assert server.key.get_fingerprint() in caught.value.message
        assert other.get_fingerprint() in caught.value.message
        assert f"`ssh-keygen -R '{server.entry}' -f {home.ssh}/known_hosts`" in caught.value.hint

    async def test_a_key_of_another_type_is_a_changed_key(self, sessions: Sessions, home: Home) -> None:
        server = await sessions.start(key="ecdsa-sha2-nistp256")
        home.know(server.entry, asyncssh.generate_private_key("ssh-ed25519"))
        with pytest.raises(errors.HostKeyError, match="changed: it is of another type now"):
            await connect(server)

    async def test_a_revoked_key_is_refused(self, sessions: Sessions, home: Home) -> None:
        server = await sessions.start()
        home.know(server.entry, server.key)
        home.know(f"@revoked {server.entry}", server.key)
        with pytest.raises(errors.HostKeyError, match="revoked"):
            await connect(server)

    async def test_a_key_known_for_the_address_only_is_unknown_for_the_name(
        self, sessions: Sessions, home: Home
    ) -> None:
        server = await sessions.start()
        home.know(server.entry, server.key)
        with pytest.raises(errors.HostKeyError, match="localhost: its host key is unknown"):
            await transport.connect(Target("localhost", "", server.port))

    async def test_an_entry_without_port_is_good_for_any_port(self, sessions: Sessions, home: Home) -> None:
        server = await sessions.start()
        home.know("127.0.0.1", server.key)
        await (await connect(server)).close()

    @pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
    async def test_another_key_on_the_usual_port_is_no_change_of_this_one(
        self, kind: str, sessions: Sessions, home: Home
    ) -> None:
        server = await sessions.start()
        home.know("127.0.0.1", asyncssh.generate_private_key(kind))
        with pytest.raises(errors.HostKeyError, match="its host key is unknown"):
            await connect(server)

    async def test_hashed_entries_and_damaged_lines(self, sessions: Sessions, home: Home) -> None:
        server = await sessions.start()
        (home.ssh / "known_hosts").write_text("damaged\n|1|damaged\n\n# a remark\n@odd x y\n")
        home.know(server.entry, server.key)
        keygen = shutil.which("ssh-keygen")
        if keygen is None:
            pytest.skip("no ssh-keygen on this machine: apt install openssh-client")
        (home.ssh / "known_hosts").write_text(f"{server.entry} {server.key.export_public_key().decode()}")
        await asyncio.to_thread(
            subprocess.run, [keygen, "-H", "-f", str(home.ssh / "known_hosts")], check=True, capture_output=True
        )
        hashed = (home.ssh / "known_hosts").read_text()
        assert hashed.startswith("|1|")
        (home.ssh / "known_hosts").write_text("damaged\n|1|damaged x\n\n# a remark\n@odd x y\n" + hashed)
        await (await connect(server)).close()

    async def test_no_key_of_ours_is_accepted(self, sessions: Sessions, home: Home) -> None:
        server = await sessions.start(authorized=False)
        home.know(server.entry, server.key)
        with pytest.raises(errors.LoginError, match=r"127\.0\.0\.1: login refused") as caught:
            await connect(server)
        assert "ssh-copy-id" in caught.value.hint

    async def test_nobody_listens(self, home: Home) -> None:
        with pytest.raises(errors.Refused, match="connection refused"):
            await transport.connect(Target("127.0.0.1", "", free_port()))

    async def test_a_name_that_does_not_resolve(self, home: Home) -> None:
        with pytest.raises(errors.UnknownHost, match=r"no-such-host\.invalid: the name does not resolve"):
            await transport.connect(Target("no-such-host.invalid"))

    @pytest.mark.parametrize(
        ("says", "kind"),
        [
            (b"HTTP/1.1 400 Bad Request\r\n\r\n" * 400, errors.ConnectError),
            (b"SSH-1.5-ancient\r\n", errors.ConnectError),
            (b"", errors.Refused),
            (b"SSH-2.0-odd\r\n" + b"\xff" * 64, errors.ConnectError),
        ],
    )
    async def test_what_answers_is_no_ssh_server(self, says: bytes, kind: type[Exception], home: Home) -> None:
        async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(says)
            with contextlib.suppress(OSError):
                await writer.drain()
            writer.close()

        listener = await asyncio.start_server(odd, "127.0.0.1", 0)
        with pytest.raises(kind, match=r"127\.0\.0\.1: "):
            await transport.connect(Target("127.0.0.1", "", listener.sockets[0].getsockname()[1]))
        listener.close()

    async def test_one_that_says_nothing(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transport, "CONNECT_SECONDS", 0.2)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            with pytest.raises(errors.Refused, match=r"no answer within 0\.2 s"):
                await transport.connect(Target("127.0.0.1", "", silent.getsockname()[1]))

    async def test_a_mistake_in_the_configuration_is_named_with_its_line(self, server: Server, home: Home) -> None:
        home.configure("Host x\n  Port many\nHost *\n  Port many\n")
        with pytest.raises(errors.ConnectError, match="config line 4: Invalid Port"):
            await transport.connect(Target("127.0.0.1"))


class TestConfiguration:
    async def test_an_alias_with_port_user_and_key(self, sessions: Sessions, home: Home) -> None:
        server = await sessions.start()
        home.know(server.entry, server.key)
        (home.ssh / "id_ed25519").rename(home.ssh / "work key")
        home.configure(
            f"Host db2\n  HostName 127.0.0.1\n  Port {server.port}\n  User somebody\n"
            '  IdentityFile ~/.ssh/missing\n  IdentityFile "~/.ssh/work key"\n'
        )
        link = await transport.connect(Target("db2"))
        assert link.name == "db2"
        assert server.connections[0].get_extra_info("username") == "somebody"
        await link.close()
        link = await transport.connect(Target("db2", "else"))
        assert server.connections[1].get_extra_info("username") == "else", "what the command line says counts"
        await link.close()

    async def test_identities_only_with_files_of_all_kinds(self, server: Server, home: Home) -> None:
        (home.ssh / "no key").write_text("nonsense")
        locked = asyncssh.generate_private_key("ssh-ed25519")
        locked.write_private_key(home.ssh / "locked", "pkcs8-pem", passphrase="x")
        home.configure(
            'Host *\n  IdentitiesOnly yes\n  IdentityFile "~/.ssh/no key"\n  IdentityFile ~/.ssh/locked\n'
            "  IdentityFile ~/.ssh/id_ed25519\n"
        )
        await (await connect(server)).close()

    async def test_a_key_in_the_agent(
        self, sessions: Sessions, home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        if not (shutil.which("ssh-agent") and shutil.which("ssh-add")):
            pytest.skip("no ssh-agent on this machine: apt install openssh-client")
        server = await sessions.start()
        home.know(server.entry, server.key)
        process = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)  # noqa: ASYNC220
        try:
            monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
            while not (tmp_path / "agent").exists():
                await asyncio.sleep(0.01)
            (home.ssh / "id_ed25519").chmod(0o600)
            await asyncio.to_thread(
                subprocess.run, ["ssh-add", str(home.ssh / "id_ed25519")], check=True, capture_output=True
            )
            (home.ssh / "id_ed25519").unlink()
            await (await connect(server)).close()
            # only the public half is named: the agent is asked for that key
            home.configure("IdentitiesOnly yes\nIdentityFile ~/.ssh/id_ed25519\n")
            await (await connect(server)).close()
        finally:
            process.terminate()
            process.wait(10)

    async def test_another_known_hosts_file_and_an_alias_for_the_key(self, sessions: Sessions, home: Home) -> None:
        server = await sessions.start()
        home.know("the-database", server.key, "known_elsewhere")
        home.configure("UserKnownHostsFile ~/.ssh/none ~/.ssh/known_elsewhere\nHostKeyAlias the-database\n")
        await (await connect(server)).close()
        (home.ssh / "known_elsewhere").unlink()
        home.know("the-database", home.key, "known_elsewhere")
        with pytest.raises(errors.HostKeyError, match="has changed") as caught:
            await connect(server)
        assert "ssh-keygen -R 'the-database' -f" in caught.value.hint

    async def test_nothing_is_forwarded_and_no_terminal_asked_for(self, debians: Server, home: Home) -> None:
        home.configure(
            "ForwardAgent yes\nForwardX11 yes\nForwardX11Trusted yes\nRequestTTY force\nRemoteCommand false\n"
            "Compression yes\n"
        )
        link = await connect(debians)
        assert await run(link, "echo $SSH_AUTH_SOCK $DISPLAY; tty") == b"\nnot a tty\n"
        assert link._connections[0].get_extra_info("send_compression") == "none"
        await link.close()

    async def test_ciphers_of_the_configuration_count(self, server: Server, home: Home) -> None:
        home.configure("Ciphers aes256-ctr\n")
        link = await connect(server)
        assert link._connections[0].get_extra_info("send_cipher") == "aes256-ctr"
        await link.close()

    async def test_through_jump_hosts(self, sessions: Sessions, home: Home) -> None:
        servers = [await sessions.start() for _ in range(3)]
        for server in servers:
            home.know(server.entry, server.key)
        first, second, last = (server.port for server in servers)
        home.configure(
            f"Host outer\n  HostName 127.0.0.1\n  Port {first}\n"
            f"Host inner\n  HostName 127.0.0.1\n  Port {second}\n"
            f"Host db2\n  HostName 127.0.0.1\n  Port {last}\n  ProxyJump outer,somebody@inner\n"
        )
        link = await transport.connect(Target("db2"))
        assert await run(link, "echo there") == b"there\n"
        assert [server.tunnels for server in servers] == [[second], [last], []]
        assert servers[1].connections[0].get_extra_info("username") == "somebody"
        await link.close()
        for server in servers:
            await asyncio.wait_for(server.connections[0].wait_closed(), 5)

    async def test_a_jump_hosts_own_failures_name_it(self, sessions: Sessions, home: Home) -> None:
        jump = await sessions.start()
        home.configure(
            f"Host outer\n  HostName 127.0.0.1\n  Port {jump.port}\nHost db2\n  HostName 127.0.0.1\n  ProxyJump outer\n"
        )
        with pytest.raises(errors.HostKeyError, match="outer: its host key is unknown"):
            await transport.connect(Target("db2"))
        home.know(jump.entry, jump.key)
        with pytest.raises(errors.Refused, match="db2: the jump host cannot reach it"):
            await transport.connect(Target("db2", "", free_port()))

    async def test_jumps_in_a_circle(self, home: Home) -> None:
        home.configure("Host *\n  ProxyJump outer\n")
        with pytest.raises(errors.ConnectError, match="more than 8 ProxyJumps"):
            await transport.connect(Target("db2"))


class TestAgent:
    async def test_brought_once_and_not_twice(self, either: Server, home: Home, tmp_path: Path) -> None:
        link = await connect(either, agent_arguments=("--state", str(tmp_path / "s"), "--run", str(tmp_path / "r")))
        inodes = []
        for _ in range(2):
            channel = await link.start_agent("target")
            await greeted(channel)
            await channel.write(wire.encode_request(1, "journal", protocol.ReadJournal("none")))
            assert wire.decode_reply(await channel.readline(wire.LINE_LIMIT)).fault is None
            await channel.close()
            assert await channel.wait() == 0
            (cached,) = (home.path / ".cache/migrate").iterdir()
            inodes.append(cached.stat().st_ino)
        assert cached.name == f"agent-{bundle.build_id()}.pyz"
        assert inodes[0] == inodes[1]
        await link.close()

    async def test_no_python(self, either: Server) -> None:
        link = await transport.connect(either.target, python="python3-that-is-not-there")
        with pytest.raises(errors.NoPython, match="not found"):
            await link.start_agent("target")
        await link.close()

    async def test_sudo_that_wants_a_password(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sudo = tmp_path / "sudo"
        sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
        sudo.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        link = await connect(server, sudo=True)
        with pytest.raises(errors.NotRoot, match="sudo: a password is required"):
            await link.start_agent("target")
        assert server.commands[0].startswith("exec sudo -n -- ")
        await link.close()


class Streamed:
    """A link with an agent, and the agent's end of a bulk stream."""

    def __init__(self, link: transport.SshLink, channel: transport.Channel, sock: socket.socket) -> None:
        self.link, self.channel, self.sock = link, channel, sock

    async def send(self, data: bytes) -> None:
        await asyncio.to_thread(self.sock.sendall, data)

    async def receive(self) -> bytes:
        return await asyncio.to_thread(self.sock.recv, MIB)


@contextlib.asynccontextmanager
async def stream(server: Server, tmp_path: Path) -> AsyncIterator[Streamed]:
    link = await connect(server)
    agent = await link.start_agent("target")
    streams = bulk.Streams(tmp_path / "s")
    channel = await link.open_stream(str(tmp_path / "s"), "pages")
    sock = await streams.take("pages", 10)
    try:
        yield Streamed(link, channel, sock)
    finally:
        await channel.close()
        await agent.close()
        await link.close()
        sock.close()
        streams.close()


class TestStreams:
    async def test_64_mib_each_way_at_once(self, either: Server, tmp_path: Path) -> None:
        there, back = os.urandom(64 * MIB), os.urandom(64 * MIB)
        async with stream(either, tmp_path) as it:

            async def write() -> None:
                for start in range(0, len(there), MIB // 4):
                    await it.channel.write(there[start : start + MIB // 4])
                await it.channel.write_eof()

            async def read() -> bytes:
                seen = hashlib.sha256()
                while data := await it.channel.read():
                    seen.update(data)
                return seen.digest()

            async def agent_reads() -> bytes:
                seen = hashlib.sha256()
                while data := await it.receive():
                    seen.update(data)
                return seen.digest()

            async def agent_writes() -> None:
                await it.send(back)
                it.sock.shutdown(socket.SHUT_WR)

            _, got, seen, _ = await asyncio.gather(write(), read(), agent_reads(), agent_writes())
            assert got == hashlib.sha256(back).digest()
            assert seen == hashlib.sha256(there).digest()
            assert await it.channel.wait() == 0

    @pytest.mark.parametrize(
        "ssh",
        ["echo 'Permission denied (publickey).' >&2; exit 255", "echo 'Last login: never'; exec cat", "exit 0", ""],
        ids=["no login", "another greeting", "nothing", "not there"],
    )
    async def test_memory_goes_over_the_connection_that_stands_where_ssh_does_not_come_up(
        self,
        server: Server,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        ssh: str,
    ) -> None:
        words = ["sh", "-c", ssh] if ssh else [str(tmp_path / "ssh")]
        monkeypatch.setattr(openssh, "arguments", lambda *_, **__: words)
        if "cat" in ssh:
            monkeypatch.setattr(transport, "CONNECT_SECONDS", 1)  # only to be waited for in vain
        with caplog.at_level("DEBUG", "migrator.agent"):
            async with stream(server, tmp_path) as it:
                assert not isinstance(it.channel, openssh.OpenSshChannel)
                await it.channel.write(b"there")
                assert await asyncio.wait_for(it.receive(), 5) == b"there"
                await it.send(b"back")
                assert await asyncio.wait_for(it.channel.read(), 5) == b"back"
        (said,) = [line for line in caplog.messages if "memory goes over the connection that stands: " in line]
        if "denied" in ssh:
            assert "Permission denied (publickey)" in said

    async def test_a_byte_is_not_held_back(self, either: Server, tmp_path: Path) -> None:
        async with stream(either, tmp_path) as it:
            started = time.monotonic()
            for number in range(50):
                await it.channel.write(bytes([number]))
                assert await asyncio.wait_for(it.receive(), 2) == bytes([number])
                await it.send(bytes([number]))
                assert await asyncio.wait_for(it.channel.read(), 2) == bytes([number])
            assert time.monotonic() - started < 2, "50 exchanges take some 50 ms, not a timer each"

    async def test_an_agent_that_does_not_read_stops_us(self, either: Server, tmp_path: Path) -> None:
        async with stream(either, tmp_path) as it:
            sent = 0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    while sent < 128 * MIB:
                        await it.channel.write(bytes(MIB))
                        sent += MIB
            assert sent < 32 * MIB

    async def test_either_direction_ends_on_its_own(self, either: Server, tmp_path: Path) -> None:
        async with stream(either, tmp_path) as it:
            it.sock.shutdown(socket.SHUT_WR)
            assert await asyncio.wait_for(it.channel.read(), 5) == b""
            await it.channel.write(b"still open")
            assert await asyncio.wait_for(it.receive(), 5) == b"still open"
            await it.channel.write_eof()
            assert await asyncio.wait_for(it.receive(), 5) == b""
            assert await asyncio.wait_for(it.channel.wait(), 5) == 0
        async with stream(either, tmp_path) as it:
            await it.channel.write_eof()
            assert await asyncio.wait_for(it.receive(), 5) == b""
            await it.send(b"still open")
            assert await asyncio.wait_for(it.channel.read(), 5) == b"still open"
            it.sock.close()
            assert await asyncio.wait_for(it.channel.read(), 5) == b""
            assert await asyncio.wait_for(it.channel.wait(), 5) == 0

    async def test_one_who_does_not_read_gets_all_in_the_end(self, either: Server, tmp_path: Path) -> None:
        """The far end writes, ends and leaves while we look elsewhere: not a byte may be lost by that."""
        async with stream(either, tmp_path) as it:
            await it.send(bytes(6 * MIB))
            it.sock.close()
            await asyncio.sleep(0.5)
            size = 0
            while data := await it.channel.read(100_000):
                size += len(data)
            assert size == 6 * MIB

    async def test_coupled_with_the_source(self, either: Server, tmp_path: Path) -> None:
        local = transport.LocalLink(sudo=False)
        here = bulk.Streams(tmp_path / "h")
        near = await local.open_stream(str(tmp_path / "h"), "pages")
        source = await here.take("pages", 10)
        data = os.urandom(8 * MIB)
        counted: list[int] = []
        async with stream(either, tmp_path) as it:
            pumping = asyncio.create_task(pump(near, it.channel, counted.append))

            def read_all() -> bytes:
                parts = []
                while part := it.sock.recv(MIB):
                    parts.append(part)
                return b"".join(parts)

            reading = asyncio.create_task(asyncio.to_thread(read_all))
            await asyncio.to_thread(source.sendall, data)
            source.shutdown(socket.SHUT_WR)
            assert await reading == data
            await it.send(b"status")
            assert await asyncio.to_thread(source.recv, 100) == b"status"
            it.sock.close()
            await asyncio.wait_for(pumping, 10)
        assert sum(counted) == len(data)
        source.close()
        here.close()
        await local.close()

    async def test_closing_our_end_is_an_end_for_the_agent(self, either: Server, tmp_path: Path) -> None:
        async with stream(either, tmp_path) as it:
            await it.channel.write(b"x")
            assert await it.receive() == b"x"
            await it.channel.close()
            assert await asyncio.wait_for(it.receive(), 5) == b""
            with pytest.raises(OSError, match="not open"):
                await it.channel.write(b"more")

    async def test_no_agent_there_is_a_lost_link(self, either: Server, tmp_path: Path) -> None:
        link = await connect(either)
        with pytest.raises(errors.LinkLost, match="before an agent was started"):
            await link.open_stream(str(tmp_path / "none"), "pages")
        agent = await link.start_agent("target")
        with pytest.raises(
            errors.LinkLost, match="stream pages could not be opened: migrate relay pages: cannot reach"
        ):
            await link.open_stream(str(tmp_path / "none"), "pages")
        await agent.close()
        await link.close()


class Wire:
    """A TCP connection to a server that can be cut, or go dead without a word."""

    def __init__(self) -> None:
        self.port = 0
        self.dead = False
        self.writers: list[asyncio.StreamWriter] = []

    async def start(self, port: int) -> None:
        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(MIB):
                    if not self.dead:
                        writer.write(data)
                        await writer.drain()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            self.writers += [writer, far_writer]
            await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))

        self.listener = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = self.listener.sockets[0].getsockname()[1]

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()

    async def close(self) -> None:
        self.cut()
        self.listener.close()
        await asyncio.sleep(0.01)


@pytest.fixture
async def wired(either: Server, home: Home) -> AsyncIterator[Wire]:
    it = Wire()
    await it.start(either.port)
    home.know(f"[127.0.0.1]:{it.port}", either.key)
    yield it
    await it.close()


class TestLostLink:
    async def test_cut_in_mid_stream(self, wired: Wire, either: Server, tmp_path: Path) -> None:
        async with stream(dataclasses.replace(either, port=wired.port), tmp_path) as it:
            reading = asyncio.create_task(it.channel.read())
            await it.channel.write(bytes(MIB))
            wired.cut()
            with pytest.raises(ConnectionResetError, match=r"the SSH connection to 127\.0\.0\.1 was lost"):
                await asyncio.wait_for(reading, 5)
            with pytest.raises(OSError, match="lost"):
                await it.channel.write(b"more")
            with pytest.raises(errors.LinkLost):
                await it.link.open_stream(str(tmp_path / "s"), "again")
            while await asyncio.wait_for(it.receive(), 5):
                pass  # the agent sees an end, too

    async def test_one_who_waits_to_write_learns_of_it(self, wired: Wire, either: Server, tmp_path: Path) -> None:
        async with stream(dataclasses.replace(either, port=wired.port), tmp_path) as it:

            async def flood() -> None:
                while True:
                    await it.channel.write(bytes(MIB))

            flooding = asyncio.create_task(flood())
            await asyncio.sleep(0.3)
            assert not flooding.done()
            wired.cut()
            with pytest.raises(OSError, match="lost"):
                await asyncio.wait_for(flooding, 5)

    async def test_dead_without_a_word(
        self, wired: Wire, either: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transport, "KEEPALIVE_SECONDS", 0.1)
        async with stream(dataclasses.replace(either, port=wired.port), tmp_path) as it:
            wired.dead = True
            with pytest.raises(ConnectionResetError, match="lost"):
                await asyncio.wait_for(it.channel.read(), 5)
