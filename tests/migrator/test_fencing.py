"""An operator's word: typed out or not at all, and what counts as a sign of a host that is said to be dead."""

from __future__ import annotations

import argparse
import asyncio
import errno
import os

import pytest

from agent.protocol import Word
from migrator import arguments, errors, fencing, option_types

ID, ANOTHER = "20260704-031500-a1b2c3", "20260704-031500-ffffff"
DEAD, ANYWAY = Word.SOURCE_IS_DEAD, Word.RESTORE_ANYWAY


@pytest.mark.parametrize(
    ("words", "word", "typed"),
    [
        ([ID], Word.NONE, ""),
        ([], Word.NONE, ""),
        ([ID, "--source-is-dead"], DEAD, ""),
        ([ID, f"--source-is-dead={ID}"], DEAD, ID),
        ([f"--restore-anyway={ID}"], ANYWAY, ID),
        (["--restore-anyway", ID], ANYWAY, ID),
    ],
)
def test_what_the_command_line_says(words: list[str], word: Word, typed: str) -> None:
    options = arguments.parse(["recover", *words])
    assert fencing.said(options) == (word, typed)
    assert (options.id or "") == (ID if words else "")


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--source-is-dead"], "name it"),
        ([ID, f"--source-is-dead={ANOTHER}"], "is not for migration"),
        ([ID, "--source-is-dead", "--restore-anyway"], "one of them at a time"),
        ([ID, "--source-is-dead=yes"], "is not for migration"),
        ([ID, "--source-is-dead=../x"], "is no migration's id"),
    ],
)
def test_words_that_make_no_sense(words: list[str], wrong: str) -> None:
    with pytest.raises(errors.UsageError, match=wrong):
        arguments.parse(["recover", *words])


@pytest.mark.parametrize("word", [DEAD, ANYWAY])
async def test_it_is_taken_when_it_is_typed_out_and_the_risk_is_said(word: Word) -> None:
    said: list[str] = []
    await fencing.typed_out(word, ID, ID, asks=False, warn=said.append)
    assert said == [f"--{word.value}: {fencing.RISKS[word]}"]


async def test_it_is_not_taken_where_nobody_can_be_asked() -> None:
    said: list[str] = []
    with pytest.raises(errors.UsageError, match="typed out") as caught:
        await fencing.typed_out(DEAD, "", ID, asks=False, warn=said.append)
    assert f"--source-is-dead={ID}" in caught.value.hint
    assert said


@pytest.mark.parametrize(
    ("line", "taken"), [(ID, True), (f" {ID} ", True), (ANOTHER, False), ("yes", False), ("", False)]
)
async def test_it_is_asked_for_on_a_terminal(line: str, taken: bool, capfd: pytest.CaptureFixture[str]) -> None:
    master, slave = os.openpty()
    kept = os.dup(0)
    os.dup2(slave, 0)
    try:
        asked = asyncio.ensure_future(fencing.typed_out(DEAD, "", ID, asks=True, warn=lambda text: None))
        await asyncio.sleep(0)
        os.write(master, line.encode() + b"\n")
        if taken:
            await asked
        else:
            with pytest.raises(errors.UsageError, match="nothing was done"):
                await asked
    finally:
        os.dup2(kept, 0)
        for descriptor in (kept, master, slave):
            os.close(descriptor)
    assert "type the migration's id" in capfd.readouterr().err


def caused(error: errors.MigrateError, cause: Exception | None) -> errors.MigrateError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "silent"),
    [
        (errors.UnknownHost("x"), True),
        (caused(errors.Refused("x"), TimeoutError()), True),
        (caused(errors.Refused("x"), None), True),
        (caused(errors.Refused("x"), OSError(errno.EHOSTUNREACH, "x")), True),
        (caused(errors.Refused("x"), OSError(errno.ENETUNREACH, "x")), True),
        (caused(errors.Refused("x"), OSError("Multiple exceptions: [Errno 113] Connect call failed")), True),
        (caused(errors.Refused("x"), ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")), False),
        (caused(errors.Refused("x"), OSError("Multiple exceptions: [Errno 111] Connection refused")), False),
        (caused(errors.Refused("x"), ConnectionResetError(errno.ECONNRESET, "x")), False),
        (errors.HostKeyError("x"), False),
        (errors.LoginError("x"), False),
        (errors.NoPython("x"), False),
        (errors.ConnectError("x"), False),
    ],
)
def test_what_says_that_nothing_is_there(error: errors.MigrateError, silent: bool) -> None:
    assert fencing.silent(error) is silent


def test_an_id_may_be_left_for_later() -> None:
    assert option_types.typed_id("") == ""
    with pytest.raises(argparse.ArgumentTypeError):
        option_types.typed_id("../x")
