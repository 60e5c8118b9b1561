"""What is handed on to criu arrives, and what criu would take from elsewhere does not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.live.conftest import Started
from tests.live.lab_host import LabHost

pytestmark = pytest.mark.long_on("vm")


def test_options_arrive_at_the_end_that_they_are_for(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """In the commands that -v shows."""
    pid = started.launch("sleep", "100000")
    given = "-v --criu-option tcp-close --criu-option dump:timeout=600 --criu-option restore:--weak-sysctls"
    run = migrate(*given.split(), str(pid), "beta")
    assert run.status == 0, run.explain()
    shown = [event["text"].split() for event in run.of("detail") if "$ criu" in event["text"]]
    commands = {words[words.index("criu") + 1]: words[-2:] for words in shown}
    assert commands["dump"] == ["--tcp-close", "--timeout=600"], run.explain()
    assert commands["restore"] == ["--tcp-close", "--weak-sysctls"], run.explain()
    assert beta.alive(pid)
    assert not alpha.alive(pid)


@pytest.mark.parametrize("option", ["leave-running", "leave-run", "R", "dump:exec-cmd"])
def test_what_would_break_the_commit_is_not_handed_on(
    nothing_behind: None, alpha: LabHost, started: Started, migrate: Any, option: str
) -> None:
    pid = started.launch("sleep", "100000")
    run = migrate("--criu-option", option, str(pid), "beta")
    assert run.status == 2, run.explain()
    assert alpha.state(pid) == "S"


def test_an_option_without_its_value_takes_nothing_of_ours(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """criu refuses the command line; it never takes the hook for the value."""
    pid = started.launch("sleep", "100000")
    for option in ("dump:ghost-limit", "restore:ghost-limit"):
        run = migrate("--criu-option", option, str(pid), "beta")
        assert run.status in (32, 33), run.explain()
        assert alpha.state(pid) == "S"
        assert not beta.alive(pid)


def test_criu_s_own_configuration_leaves_no_second_copy(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """With leave-running there, criu by itself lets the source's copy run on behind the COMMIT."""
    pid = started.launch("sleep", "100000")
    try:
        for host in (alpha, beta):
            host.run("mkdir -p /etc/criu; echo leave-running >/etc/criu/default.conf")
        run = migrate(str(pid), "beta")
    finally:
        for host in (alpha, beta):
            host.run("rm /etc/criu/default.conf")
    assert run.status == 0, run.explain()
    assert beta.alive(pid)
    assert not alpha.alive(pid)
