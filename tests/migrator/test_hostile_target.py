"""A target that lies: whatever it answers, the source ends with an error of its own, or believes it; nothing else.

What a target can do to the process itself it can do anyway, once it has it: that is what it is trusted with. So a lie
before COMMIT leaves the process running on the source, or loses it to a target that said that it has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from migrator import errors, words
from migrator.channel import Channel
from tests.fake_hosts import HostLink, Pair
from tests.migrator.test_migration import Lab, _quick

__all__ = ["_quick"]

Lie = Callable[[Any], Any]
ESCAPES = "\x1b]0;owned\x07\x1b[2J\n../../../etc/passwd; reboot"


def numbers(value: Any) -> Any:
    """As large as the wire carries them."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return (1 << 63) - 1 if isinstance(value, int) else 1e300


def debts(value: Any) -> Any:
    """Fewer than nothing."""
    return value if isinstance(value, bool) or not isinstance(value, (int, float)) else -7


def text(value: Any) -> Any:
    """What a terminal, a shell or a path would obey."""
    return ESCAPES if isinstance(value, str) else value


def everywhere(lie: Lie, value: Any) -> Any:
    """In every field of a result."""
    if isinstance(value, dict):
        return {name: everywhere(lie, one) for name, one in value.items()}
    if isinstance(value, list):
        return [everywhere(lie, one) for one in value]
    return lie(value)


class Lying(Channel):
    """The control channel to the target's agent, whose answers to some commands are others than it gave."""

    def __init__(self, inner: Channel, command: str, answer: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._inner = inner
        self._command = command
        self._answer = answer
        self._asked: set[int] = set()
        self.lied = False

    async def write(self, data: bytes) -> None:
        for line in data.splitlines():
            if line.startswith(b"{") and json.loads(line)["command"] == self._command:
                self._asked.add(json.loads(line)["id"])
        await self._inner.write(data)

    async def _receive(self, size: int) -> bytes:
        line = await self._inner.readline(1 << 24)
        if line.startswith(b"{") and json.loads(line)["id"] in self._asked:
            self.lied = True
            return self._answer(line)
        return line

    async def write_eof(self) -> None:
        await self._inner.write_eof()

    async def close(self) -> None:
        await self._inner.close()

    async def wait(self) -> int | None:
        return await self._inner.wait()

    def stderr_tail(self) -> str:
        return self._inner.stderr_tail()


def false(lie: Lie) -> Callable[[bytes], bytes]:
    """A result with this lie in every field."""

    def answer(line: bytes) -> bytes:
        message = json.loads(line)
        return json.dumps({**message, "result": everywhere(lie, message["result"])}).encode() + b"\n"

    return answer


def fault(line: bytes) -> bytes:
    """A fault whose words are meant for the terminal."""
    said = {"code": "files", "message": ESCAPES * 10_000, "hint": ESCAPES, "log": ESCAPES}
    return json.dumps({"id": json.loads(line)["id"], "fault": said}).encode() + b"\n"


ANSWERS = {
    "numbers": false(numbers), "debts": false(debts), "text": false(text), "fault": fault,
    "another answer": lambda line: json.dumps({**json.loads(line), "id": 9999}).encode() + b"\n",
    "no message": lambda line: b"\x1b[2J{]\n",
}  # fmt: skip
CASES = [
    *((command, "numbers") for command in ("probe", "take_files", "accept_done", "restore", "resume", "finish")),
    *((command, "text") for command in ("probe", "resume", "finish")),
    *((command, "fault") for command in ("check", "receive_images", "restore", "resume")),
    ("accept_done", "debts"), ("accept", "another answer"), ("restore", "no message"),
]  # fmt: skip
"""The others were seen to end alike, and each takes a migration."""


@pytest.mark.parametrize(("command", "lie"), CASES)
async def test_a_lie_ends_in_an_error_of_ours_or_is_believed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, command: str, lie: str
) -> None:
    lab = Lab(pair, monkeypatch)
    lies: list[Lying] = []
    start = HostLink.start_agent

    async def lying(link: HostLink, role: str) -> Channel:
        channel = await start(link, role)
        if role == "source":
            return channel
        lies.append(Lying(channel, command, ANSWERS[lie]))
        return lies[-1]

    monkeypatch.setattr(HostLink, "start_agent", lying)
    attempt = await lab.migrate()
    assert any(each.lied for each in lies), "nobody was lied to"
    assert attempt.error is None or isinstance(attempt.error, errors.MigrateError)
    committed = "COMMIT" in pair.source.journal(attempt.id)
    if attempt.error is not None:
        said = words.error_text(attempt.error)
        assert all(line.isprintable() for line in said.split("\n"))
        assert len(said) < 20_000
        assert isinstance(attempt.error, (errors.NotResumed, errors.InDoubt)) == committed, said
    if attempt.report is not None:
        assert all(line.isprintable() for line in words.summary(attempt.report).split("\n"))
    if not committed:
        assert attempt.victim.living == attempt.victim.pids
        assert attempt.victim.runs, "the original is alive but does not run"
    if not committed or attempt.error is None:  # else it is `migrate recover`'s
        assert pair.source.settle_down() == []
