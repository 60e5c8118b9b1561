"""The table itself, and the banner."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import protocol
from agent.protocol import Banner


def _dataclasses() -> list[type[Any]]:
    return [kind for _, kind in inspect.getmembers(protocol, inspect.isclass) if dataclasses.is_dataclass(kind)]


@pytest.mark.parametrize("kind", _dataclasses(), ids=lambda kind: kind.__name__)
def test_messages_are_frozen_and_hold_only_what_the_wire_carries(kind: type[Any]) -> None:
    assert kind.__dataclass_params__.frozen
    if kind in (protocol.Command, protocol.Banner):
        return
    allowed = [bool, int, float, str, protocol.FaultCode, protocol.Verdict, protocol.Word, *_dataclasses()]
    for hint in typing.get_type_hints(kind).values():
        inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
        assert inner in allowed


def test_each_command_stands_once_in_the_table() -> None:
    names = [command.name for command in protocol.COMMANDS]
    assert len(set(names)) == len(names)
    assert protocol.BY_NAME.keys() == set(names)
    assert {command.role for command in protocol.COMMANDS} == {"source", "target", "any"}


def test_the_banner_reads_for_people() -> None:
    banner = Banner("migrate-agent", 1, "0.1.0", "3f2a", "python=3.13.5")
    assert banner.line() == "migrate-agent protocol=1 version=0.1.0 build=3f2a python=3.13.5"
    assert Banner.parse(banner.line()) == banner


_word = st.text("abcdef0123456789.-", min_size=1)


@given(st.sampled_from(["migrate", "migrate-agent"]), st.integers(0, 99_999_999), _word, _word)
def test_a_banner_is_read_as_it_was_written(product: str, number: int, version: str, build: str) -> None:
    banner = Banner(product, number, version, build)
    assert Banner.parse(banner.line()) == banner


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    banner = Banner.parse(text)
    assert banner is None or banner.product in ("migrate", "migrate-agent")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Welcome to db2!",
        "SSH-2.0-OpenSSH_9.2p1",
        "migrate-agent",
        "migrate-agent protocol=one version=1 build=2",
        "migrate-agent protocol=² version=1 build=2",
        "migrate-agent protocol=-1 version=1 build=2",
        "migrate-agent protocol=999999999999 version=1 build=2",
        "other protocol=1 version=1 build=2",
    ],
)
def test_what_is_no_banner(line: str) -> None:
    assert Banner.parse(line) is None
