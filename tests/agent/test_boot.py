"""Which lines of a journal still name processes after a reboot."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import boot, process
from agent.journal import Journal

ID = "20260101-010101-abcdef"


def test_before_a_reboot_all_lines_count(tmp_path: Path) -> None:
    kept = Journal.create(tmp_path, ID, "target", boot=process.boot_id())
    kept.note("criu", pid=1, start=1)
    assert boot.lines_of_this_boot(kept) == kept.lines
    kept.close()


@pytest.mark.parametrize("taken_over", [False, True])
def test_after_it_those_since_it_was_taken_over(tmp_path: Path, taken_over: bool) -> None:
    kept = Journal.create(tmp_path, ID, "target", peer="x", root=1, boot="another")
    kept.note("criu", pid=1, start=1)
    if taken_over:
        kept.note("owner", agent=[2, 2], boot=process.boot_id())
        kept.note("criu", pid=3, start=3)
    assert not boot.same_boot(kept)
    assert [line["record"] for line in boot.lines_of_this_boot(kept)] == (["owner", "criu"] if taken_over else [])
    kept.close()
