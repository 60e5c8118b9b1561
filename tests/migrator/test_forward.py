"""migrator/forward.py, as far as no host is needed: test_migration has the rest."""

from __future__ import annotations

import pytest

from migrator.forward import pasteable

GOOD = "/usr/bin/python3 -IS -Xutf8 /root/.cache/migrate/agent-3f2a.pyz terminal /run/migrate/x.terminal"


@pytest.mark.parametrize("command", [GOOD, "", "x"])
def test_a_command_of_plain_words_is_shown(command: str) -> None:
    assert pasteable(command) == command


@pytest.mark.parametrize(
    "command",
    [
        f"{GOOD}; reboot", f"{GOOD} & x", f"$(reboot) {GOOD}", f"`x` {GOOD}", f"{GOOD} >/etc/passwd", f"{GOOD}\nreboot",
        f"{GOOD} \x1b[2J", "'unended", "x ';' y", "x *", "~/x", f" {GOOD}", "x #y",
    ],
)  # fmt: skip
def test_one_that_a_shell_here_would_obey_is_not(command: str) -> None:
    """The operator pastes it behind `ssh HOST`: what comes from a hostile target must run there, if anywhere."""
    assert pasteable(command) == ""
