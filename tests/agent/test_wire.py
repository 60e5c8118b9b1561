"""Whatever the table can say survives the wire, and nothing else gets past it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import protocol, wire
from agent.wire import WireError
from tests.fuzz.limits import less_memory

MESSAGES = sorted(
    {command.arguments for command in protocol.COMMANDS} | {command.result for command in protocol.COMMANDS}
    | {protocol.Fault},
    key=lambda kind: kind.__name__,
)  # fmt: skip

_names = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
# any bytes that can be a file's name, as Python decodes them
_any_bytes = st.binary().map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape"))

for _basic, _strategy in (
    (int, st.integers(-(1 << 63), (1 << 64) - 1)),
    (str, st.one_of(_names, _any_bytes)),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
):
    st.register_type_strategy(_basic, _strategy)


def _values(kind: type[Any]) -> st.SearchStrategy[Any]:
    return st.from_type(kind)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_what_is_sent_is_what_arrives(kind: type[Any]) -> None:
    @settings(max_examples=15, deadline=None)
    @given(_values(kind), st.integers(min_value=0))
    def check(value: Any, number: int) -> None:
        line = wire.encode_result(number, value)
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert line.isascii()
        reply = wire.decode_reply(line)
        assert reply.id == number
        decoded = wire.decode(kind, reply.result)
        assert decoded == value
        assert type(decoded) is kind
        request = wire.decode_request(wire.encode_request(number, "name", value))
        assert wire.decode(kind, request.arguments) == value

    check()


@given(st.from_type(protocol.Fault))
def test_faults_arrive_as_they_were(fault: protocol.Fault) -> None:
    assert wire.decode_reply(wire.encode_fault(3, fault)) == wire.Reply(3, None, fault)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.one_of(st.binary(), _json.map(lambda value: json.dumps(value).encode())))
def test_garbage_raises_nothing_but_wire_error(line: bytes) -> None:
    for decode in (wire.decode_request, wire.decode_reply):
        try:
            decode(line)
        except WireError:
            continue


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_garbage_for_a_message_raises_nothing_but_wire_error(kind: type[Any]) -> None:
    names = [field.name for field in dataclasses.fields(kind)]

    @settings(max_examples=15, deadline=None)
    @given(st.one_of(_json, st.dictionaries(st.sampled_from(names), _json) if names else st.just({})))
    def check(value: Any) -> None:
        try:
            decoded = wire.decode(kind, value)
        except WireError:
            return
        assert wire.decode(kind, json.loads(json.dumps(wire.plain(decoded)))) == decoded

    check()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("bytes", "18446744073709551616", "beyond 64 bits"),
        ("bytes", "-9223372036854775809", "beyond 64 bits"),
        ("bytes", "1" * 5000, "not JSON"),
        ("seconds", "NaN", "not JSON"),
        ("seconds", "-Infinity", "not JSON"),
        ("seconds", "1e999", "is no number"),
        ("seconds", "1" * 400, "not JSON"),
        ("seconds", "36893488147419103232", "beyond 64 bits"),
    ],
)
def test_a_number_that_nobody_can_reckon_with_is_refused(field: str, value: str, words: str) -> None:
    """A hostile target's figures would end in an overflow where they are shown."""
    good = {"pages": "1", "bytes": "1", "seconds": "1.5", "frozen_seconds": "2"}
    line = ",".join(f'"{name}":{number}' for name, number in {**good, field: value}.items())
    with pytest.raises(WireError, match=words):
        wire.decode(protocol.Dumped, wire.decode_reply(f'{{"id":1,"result":{{{line}}}}}'.encode()).result)


@pytest.mark.parametrize("text", ["a\\u0000b", "\\ud800", "\\udbff\\u0041"])
def test_text_that_names_nothing_on_any_host_is_refused(text: str) -> None:
    line = f'{{"id":1,"command":"x","arguments":{{"paths":["{text}"]}}}}'.encode()
    with pytest.raises(WireError, match="no text of a host"):
        wire.decode(protocol.Digest, wire.decode_request(line).arguments)


def test_a_message_of_millions_of_little_things_is_not_even_read() -> None:
    """22 million empty lists fit into a line: 1.4 GB of objects."""
    line = b'{"id":1,"result":{"items":[' + b"[]," * (wire.LINE_LIMIT // 3 - 20) + b"[]]}}"
    assert len(line) < wire.LINE_LIMIT
    with less_memory(), pytest.raises(WireError, match="values"):
        wire.decode_reply(line)


def test_a_wrong_value_is_not_told_at_length() -> None:
    with pytest.raises(WireError) as caught:
        wire.decode(protocol.Settle, {"migration": "m", "verdict": "x" * 100_000})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["[", '{"a":'])
def test_deep_nesting_is_an_error_and_no_crash(text: str) -> None:
    with pytest.raises(WireError, match="not JSON"):
        wire.decode_request(text.encode() * 200_000)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "field 'pid' is missing"),
        ({"pid": 1, "more": 2}, "unknown field 'more'"),
        ({"pid": "1"}, "expected int, got str"),
        ({"pid": True}, "expected int, got bool"),
        ({"pid": 1.0}, "expected int, got float"),
        ({"pid": None}, "expected int, got NoneType"),
        ([1], "expected an object, got list"),
        (None, "expected an object, got NoneType"),
    ],
)
def test_only_the_fields_of_the_dataclass_and_their_types(value: object, words: str) -> None:
    with pytest.raises(WireError, match=words):
        wire.decode(protocol.Inspect, value)


def test_the_field_that_is_wrong_is_named_wherever_it_is() -> None:
    task = wire.plain(protocol.TaskFacts(1, 0, 1, 1, (1,), "x", "S", 5, 0))
    value = {"tasks": [task, {**task, "tids": [1, "2"]}], "freeze_seconds": 0.5, "image_bytes": 1}
    with pytest.raises(WireError, match=r"held\.tasks\[1\]\.tids\[1\]: expected int, got str"):
        wire.decode(protocol.Held, value, "held")


def test_an_int_may_stand_for_a_float_and_comes_out_as_one() -> None:
    killed = wire.decode(protocol.Killed, {"tasks": 1, "seconds": 2})
    assert killed == protocol.Killed(1, 2.0)
    assert type(killed.seconds) is float


def test_a_verdict_that_is_none() -> None:
    with pytest.raises(WireError, match="'perhaps' is not one of"):
        wire.decode(protocol.Settle, {"migration": "a", "verdict": "perhaps"})


def test_what_is_no_number_is_not_sent() -> None:
    with pytest.raises(ValueError, match="JSON"):
        wire.encode_result(1, protocol.Killed(1, float("nan")))


@pytest.mark.parametrize(
    "line",
    [
        b'{"id": 1, "command": "probe"}',
        b'{"id": 1, "command": "probe", "arguments": {}, "more": 1}',
        b'{"id": "1", "command": "probe", "arguments": {}}',
        b'{"id": true, "command": "probe", "arguments": {}}',
        b'{"id": 1, "command": 5, "arguments": {}}',
        b'{"id": 1, "command": "probe", "arguments": []}',
        b"",
        b"\n",
    ],
)
def test_requests_that_are_none(line: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode_request(line)


@pytest.mark.parametrize(
    "line",
    [
        b'{"id": 1}',
        b'{"id": 1, "result": {}, "fault": {"code": "criu", "message": ""}}',
        b'{"id": null, "result": {}}',
        b'{"id": 1, "result": []}',
        b'{"id": 1, "fault": {"code": "bored", "message": ""}}',
        b'{"id": 1, "fault": {"code": "criu"}}',
    ],
)
def test_replies_that_are_none(line: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode_reply(line)


def test_a_message_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LINE_LIMIT", 50)
    line = wire.encode_request(1, "probe", protocol.Probe("x" * 50))
    with pytest.raises(WireError, match="over the limit of 50"):
        wire.decode_request(line)
