"""What a failure of SSH means to an admin: asyncssh's exceptions, and the system's, as ours.

Knows asyncssh's classes by their names, so that the only door to it stays `transport`; a test walks the library and
fails when it has one that is not in the table.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence

from migrator.channel import Target
from migrator.errors import ConnectError, HostKeyError, LoginError, Refused, UnknownHost

TABLE: Mapping[str, tuple[type[ConnectError], str]] = {
    "HostKeyNotVerifiable": (HostKeyError, "its host key cannot be trusted"),
    "PermissionDenied": (LoginError, "login refused"),
    "PasswordChangeRequired": (LoginError, "login refused: the password has expired"),
    "IllegalUserName": (LoginError, "login refused"),
    "KeyImportError": (LoginError, "a key cannot be read"),
    "KeyExportError": (LoginError, "a key cannot be used"),
    "KeyEncryptionError": (LoginError, "a key cannot be decrypted"),
    "KeyGenerationError": (LoginError, "a key cannot be used"),
    "ConnectionLost": (Refused, "its sshd closed the connection"),
    "ChannelOpenError": (Refused, "the jump host cannot reach it, or it opens no more sessions"),
    "ServiceNotAvailable": (Refused, "its sshd offers no service"),
    "ConfigParseError": (ConnectError, "the SSH configuration has a mistake"),
    "KeyExchangeFailed": (ConnectError, "no common way to encrypt"),
    "ProtocolNotSupported": (ConnectError, "what answers there is no SSH server"),
    "ProtocolError": (ConnectError, "what answers there does not speak SSH properly"),
    "MACError": (ConnectError, "bytes were damaged on the way"),
    "CompressionError": (ConnectError, "bytes were damaged on the way"),
    "DisconnectError": (ConnectError, "its sshd ended the connection"),
    # none of these can come up, since nothing of the kind is asked for; if one does, its text is shown
    "ChannelListenError": (ConnectError, "SSH failed"),
    "SFTPError": (ConnectError, "SSH failed"),
    "ProcessError": (ConnectError, "SSH failed"),
    "BreakReceived": (ConnectError, "SSH failed"),
    "SignalReceived": (ConnectError, "SSH failed"),
    "SoftEOFReceived": (ConnectError, "SSH failed"),
    "TerminalSizeChanged": (ConnectError, "SSH failed"),
}
"""asyncssh's class: ours, and what happened in words. The nearest class in its order of inheritance counts."""


def row(kind: type[BaseException]) -> tuple[type[ConnectError], str] | None:
    """The table's row for an exception of asyncssh."""
    return next((TABLE[base.__name__] for base in kind.__mro__ if base.__name__ in TABLE), None)


def explain(error: Exception, target: Target, seconds: object) -> ConnectError:
    """An exception from connecting to `target` as ours; `seconds` is how long it was tried."""
    by_hand = f"`{target.ssh_command()}` must work by itself, without asking"
    if isinstance(error, ConnectError):
        return error
    if isinstance(error, socket.gaierror):
        return UnknownHost(
            f"{target.host}: the name does not resolve: {error.strerror}",
            hint="check the spelling, DNS, /etc/hosts, and Host in ~/.ssh/config",
        )
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return Refused(f"{target.host}: no answer within {seconds} s", hint="is it up, and its SSH port not filtered?")
    found = row(type(error))
    if found is not None:
        kind, words = found
        hint = by_hand
        if kind is LoginError:
            hint = f"{by_hand}: `ssh-copy-id`, or `ssh-add` for a key with a passphrase"
        return kind(f"{target.host}: {words}: {error}", hint=hint)
    if isinstance(error, OSError) and error.filename:
        return ConnectError(f"{target.host}: {error.filename}: {error.strerror}", hint=by_hand)
    if isinstance(error, OSError):
        words = os.strerror(error.errno) if error.errno else str(error)
        return Refused(f"{target.host}: {words[:1].lower()}{words[1:]}", hint="is sshd running there, on that port?")
    return ConnectError(f"{target.host}: SSH failed: {error}", hint=by_hand)


def unknown_key(target: Target, key: str) -> HostKeyError:
    """The host key is in no known_hosts file; `key` is its type and fingerprint."""
    kind = key.split()[0].removeprefix("ssh-").split("-")[0] if "SHA256:" in key else "*"
    return HostKeyError(
        f"{target.host}: its host key is unknown: {key}",
        hint=f"compare it with `ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub` there, "
        f"then connect once by hand and accept it: `{target.ssh_command()}`",
    )


def changed_key(target: Target, key: str, known: str, files: Sequence[str], entry: str) -> HostKeyError:
    """The host key is not the one in `files`; `entry` is the name it stands under there."""
    remove = " and ".join(f"`ssh-keygen -R '{entry}' -f {file}`" for file in dict.fromkeys(files))
    return HostKeyError(
        f"{target.host}: its host key has changed: it is {key} now, known is {known}",
        hint=f"somebody may be in between. Only if you know why: {remove}, then `{target.ssh_command()}` once",
    )
