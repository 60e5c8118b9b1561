"""The tests' own eyes: what a host says is read to its end."""

from __future__ import annotations

from tests.live.lab_host import LabHost


def test_output_after_the_exit_status_is_read(alpha: LabHost) -> None:
    """sshd tells that a command is gone before it has passed on all that was said."""
    assert alpha.run("(sleep 0.1; echo late) & echo early").out.split() == ["early", "late"]


def test_a_child_that_stays_does_not_hold_us(alpha: LabHost) -> None:
    """A command's child may keep the stream open for ever."""
    done = alpha.run("sleep 300 & echo $!", seconds=60)
    alpha.run(f"kill {done.out}")
