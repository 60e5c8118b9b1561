"""Bytes <-> messages, with size limits. Knows no command by name and no host.

Dataclasses are encoded as JSON objects by their fields and decoded by their annotations: unknown fields, missing fields
and wrong types are refused, so that nothing unexpected gets past this file. Nor do values that no honest side has and
that others would stumble over: numbers beyond 64 bits, infinite ones, text that names no file of any kind (with a zero
byte, or half a surrogate pair), lists of more things than a line of that size needs.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import typing
from typing import Any, Optional, TypeVar

from agent.protocol import Fault

LINE_LIMIT = 64 * 1024 * 1024
"""Bytes of one message at most: the facts of a tree with some ten thousand files are a few MiB."""

VALUES_LIMIT = 2 * 1024 * 1024
"""Values in one message at most, each of which takes some 100 bytes when it is read: a file has sixteen."""

BANNER_LIMIT = 4096

_SHOWN = 80
"""Characters of a wrong value that are told."""

T = TypeVar("T")


class WireError(Exception):
    """Bytes that are no message of ours; the conversation can't go on."""


def plain(value: object) -> Any:
    """A dataclass of protocol.py as what JSON knows; `decode` makes it one again."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


_hints: dict[type, dict[str, Any]] = {}


def decode(kind: type[T], value: object, where: str = "message") -> T:
    """Make a `kind` (a frozen dataclass of protocol.py) of plain JSON data. Raises WireError."""
    if not isinstance(value, dict):
        raise WireError(f"{where}: expected an object, got {type(value).__name__}")
    hints = _hints.get(kind)
    if hints is None:
        hints = _hints[kind] = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise WireError(f"{where}: unknown field {_shown(unknown[0])}")
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in value:
            arguments[name] = _typed(hints[name], value[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise WireError(f"{where}: field {name!r} is missing")
    return kind(**arguments)


def _typed(hint: Any, value: object, where: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError:
            raise WireError(f"{where}: {_shown(value)} is not one of {[item.value for item in hint]}") from None
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return decode(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise WireError(f"{where}: expected a list, got {type(value).__name__}")
        item = typing.get_args(hint)[0]
        return tuple(_typed(item, element, f"{where}[{index}]") for index, element in enumerate(value))
    if hint not in (bool, int, float, str):
        raise WireError(f"{where}: protocol.py uses a type that the wire does not carry: {hint!r}")
    if type(value) is not hint and not (hint is float and type(value) is int):
        raise WireError(f"{where}: expected {hint.__name__}, got {type(value).__name__}")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        raise WireError(f"{where}: a number beyond 64 bits")
    if hint is float:
        return _finite(float(typing.cast(float, value)), where)
    if isinstance(value, str) and not _is_text(value):
        raise WireError(f"{where}: {_shown(value)} is no text of a host")
    return value


def _finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise WireError(f"{where}: {value} is no number")
    return value


def _is_text(value: str) -> bool:
    """Whether it is bytes that a host may have for a name, as `os.fsdecode` gives them."""
    try:
        return "\0" not in value and (value.isascii() or bool(value.encode("utf-8", "surrogateescape")))
    except UnicodeEncodeError:
        return False


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _line(message: dict[str, Any]) -> bytes:
    # ensure_ascii: a name with any bytes (surrogateescape) and any newline stays inside one line of ASCII
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


@dataclasses.dataclass(frozen=True)
class Request:
    """One call, its arguments still undecoded: which dataclass they are only the table knows."""

    id: int
    command: str
    arguments: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Reply:
    """One answer: a plain result, or a fault."""

    id: int
    result: Optional[dict[str, Any]]
    fault: Optional[Fault]


def encode_request(number: int, command: str, arguments: object) -> bytes:
    """One request as a line."""
    return _line({"id": number, "command": command, "arguments": plain(arguments)})


def encode_result(number: int, result: object) -> bytes:
    """One good reply as a line."""
    return _line({"id": number, "result": plain(result)})


def encode_fault(number: int, fault: Fault) -> bytes:
    """One bad reply as a line."""
    return _line({"id": number, "fault": plain(fault)})


def _object(line: bytes) -> dict[str, Any]:
    if len(line) > LINE_LIMIT:
        raise WireError(f"a message of {len(line)} bytes is over the limit of {LINE_LIMIT}")
    value = loads(line)
    if not isinstance(value, dict):
        raise WireError(f"not an object: {line[:_SHOWN]!r}")
    return value


def loads(line: bytes) -> Any:
    """What a line of JSON from somebody else says. Raises WireError, before it takes much more than its own size."""
    if sum(map(line.count, (b",", b"[", b"{"))) > VALUES_LIMIT:
        raise WireError(f"a message of more than {VALUES_LIMIT} values")
    try:
        return json.loads(line, parse_int=_whole, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON: {line[:_SHOWN]!r}") from error


def _whole(digits: str) -> int:
    """Python before 3.11 would take hours for some million digits."""
    if len(digits) > _SHOWN:
        raise ValueError("a number of too many digits")
    return int(digits)


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def decode_request(line: bytes) -> Request:
    """A request of one line. Raises WireError."""
    value = _object(line)
    if set(value) != {"id", "command", "arguments"}:
        raise WireError(f"a request has id, command and arguments, not {_shown(sorted(value))}")
    number, command, arguments = value["id"], value["command"], value["arguments"]
    if type(number) is not int or type(command) is not str or not isinstance(arguments, dict):
        raise WireError("a request's id is a number, its command text, its arguments an object")
    return Request(number, command, arguments)


def decode_reply(line: bytes) -> Reply:
    """A reply of one line. Raises WireError."""
    value = _object(line)
    if set(value) not in ({"id", "result"}, {"id", "fault"}):
        raise WireError(f"a reply has id and result or fault, not {_shown(sorted(value))}")
    if type(value["id"]) is not int:
        raise WireError("a reply's id is a number")
    if "fault" in value:
        return Reply(value["id"], None, decode(Fault, value["fault"], "fault"))
    if not isinstance(value["result"], dict):
        raise WireError("a reply's result is an object")
    return Reply(value["id"], value["result"], None)
