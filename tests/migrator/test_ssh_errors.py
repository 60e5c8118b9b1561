"""Every way in which SSH fails has a meaning of ours; the library may not add one unseen."""

from __future__ import annotations

import errno
import socket

import asyncssh
import pytest

from migrator import errors, ssh_errors
from migrator.channel import Target

BROAD = {"Exception", "BaseException", "object", "ValueError", "OSError", "TimeoutError", "Error"}
"""Bases that say nothing."""

DB2 = Target("db2", "root", 2222)


def exceptions_of_asyncssh() -> list[type[BaseException]]:
    return [kind for kind in vars(asyncssh).values() if isinstance(kind, type) and issubclass(kind, BaseException)]


@pytest.mark.parametrize("kind", exceptions_of_asyncssh(), ids=lambda kind: kind.__name__)
def test_each_exception_of_the_library_has_a_row(kind: type[BaseException]) -> None:
    if kind is asyncssh.Error:
        return  # never raised itself
    named = {base.__name__ for base in kind.__mro__} - BROAD
    if kind is not asyncssh.DisconnectError and issubclass(kind, asyncssh.DisconnectError):
        named.discard("DisconnectError")
    assert named & set(ssh_errors.TABLE), f"asyncssh has {kind.__name__}: what does it mean? Add a row to TABLE"
    assert ssh_errors.row(kind) is not None


def test_each_row_is_an_exception_that_the_library_has_or_had() -> None:
    here = {kind.__name__ for kind in exceptions_of_asyncssh()} | {"SoftEOFReceived"}
    assert set(ssh_errors.TABLE) <= here


def test_a_new_one_would_be_seen() -> None:
    class Novelty(asyncssh.DisconnectError):
        pass

    with pytest.raises(AssertionError, match="Novelty: what does it mean"):
        test_each_exception_of_the_library_has_a_row(Novelty)


UNREACHABLE = OSError(errno.EHOSTUNREACH, "Connect call failed")
REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)")
UNREADABLE = PermissionError(errno.EACCES, "Permission denied", "/root/.ssh/config")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (
            socket.gaierror(-2, "Name or service not known"),
            errors.UnknownHost,
            "not resolve: Name or service not known",
        ),
        (REFUSED, errors.Refused, "db2: connection refused"),
        (UNREACHABLE, errors.Refused, "db2: no route to host"),
        (OSError("Multiple exceptions: [Errno 111] …"), errors.Refused, "multiple exceptions: [Errno 111]"),
        (TimeoutError(), errors.Refused, "no answer within 30 s"),
        (asyncssh.PermissionDenied("Permission denied"), errors.LoginError, "login refused: Permission denied"),
        (asyncssh.ConnectionLost("Connection lost"), errors.Refused, "its sshd closed the connection"),
        (asyncssh.ProtocolError("Bad packet"), errors.ConnectError, "does not speak SSH properly: Bad packet"),
        (asyncssh.KeyExchangeFailed("No kex"), errors.ConnectError, "no common way to encrypt: No kex"),
        (asyncssh.ConfigParseError("config line 3: Missing"), errors.ConnectError, "config line 3: Missing"),
        (asyncssh.ChannelOpenError(2, "Connection refused"), errors.Refused, "jump host cannot reach it"),
        (UNREADABLE, errors.ConnectError, "db2: /root/.ssh/config: Permission denied"),
        (ValueError("something odd"), errors.ConnectError, "SSH failed: something odd"),
        (errors.NotRoot("db1: as it was"), errors.NotRoot, "db1: as it was"),
    ],
)
def test_what_happened_and_on_which_host(error: Exception, kind: type[errors.ConnectError], text: str) -> None:
    ours = ssh_errors.explain(error, DB2, 30)
    assert type(ours) is kind
    assert text in ours.message
    assert ours is error or ours.message.startswith("db2: ")
    assert ours is error or ours.hint


def test_how_to_add_a_key_or_replace_one() -> None:
    unknown = ssh_errors.unknown_key(DB2, "ecdsa-sha2-nistp256 SHA256:abc")
    assert "its host key is unknown: ecdsa-sha2-nistp256 SHA256:abc" in unknown.message
    assert "/etc/ssh/ssh_host_ecdsa_key.pub" in unknown.hint
    assert "`ssh -p 2222 root@db2`" in unknown.hint
    changed = ssh_errors.changed_key(DB2, "ssh-rsa SHA256:b", "ssh-rsa SHA256:a", ["/a", "/b", "/a"], "[db2]:2222")
    assert "it is ssh-rsa SHA256:b now, known is ssh-rsa SHA256:a" in changed.message
    assert "`ssh-keygen -R '[db2]:2222' -f /a` and `ssh-keygen -R '[db2]:2222' -f /b`, then" in changed.hint
