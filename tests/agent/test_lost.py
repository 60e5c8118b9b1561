"""agent/lost.py: a tree whose memory nobody fills any more is stopped, and its journal says so."""

from __future__ import annotations

from pathlib import Path

from agent import process
from agent.journal import Journal, Record
from agent.lost import forget, memory_lost, stop_tree
from agent.warden import UNFILLED
from tests.children import child, until

TREE = """
for _ in range(2):
    if os.fork() == 0:
        time.sleep(1000)
ready()
"""


def journal_of(state: Path, *tasks: tuple[int, int]) -> Journal:
    journal = Journal.create(state, "20260101-000000-abcdef", "target", peer="a", root=tasks[0][0])
    journal.write(Record.HELD, tasks=list(tasks))
    return journal


def states(root: int) -> set[str]:
    return {process.read_stat(pid).state for pid in process.tree_pids(root)}


def test_it_is_stopped_and_noted_once(tmp_path: Path) -> None:
    with child(TREE, tmp_path) as root:
        journal = journal_of(tmp_path, (root, process.start_time(root)))
        assert not memory_lost(journal)
        assert "T" not in states(root)
        (journal.directory / UNFILLED).touch()
        assert memory_lost(journal)
        until(lambda: states(root) == {"T"})
        assert len(process.tree_pids(root)) == 3
        forget(journal.directory)
        assert not (journal.directory / UNFILLED).exists()
        again = Journal.load(tmp_path, journal.migration)
        assert memory_lost(again), "the journal forgot"
        again.close()
        journal.close()


def test_another_process_of_that_number_is_left_alone(tmp_path: Path) -> None:
    with child(TREE, tmp_path) as root:
        journal = journal_of(tmp_path, (root, process.start_time(root) + 1), (2**22 + 1, 5))
        stop_tree(journal)
        assert "T" not in states(root)
        journal.close()
