"""What is learnt from one migration for the next, and that nothing about the file is ever an error."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator import history, precopy
from migrator.history import History, Measured, smoothed
from migrator.phases import Round
from migrator.precopy import Costs

MIB = 1024 * 1024


def round_of(mib: float, seconds: float, frozen: float = 0.0) -> Round:
    return Round(int(mib * 256), int(mib * MIB), int(mib * MIB), seconds, frozen)


INSTANT = Measured(0.200, 0.030, 0, [round_of(1000, 10.0, 0.005), round_of(2, 0.05, 0.02)])
"""1 GiB at 100 MiB/s; 2 MiB in the freeze are 0.02 s of it, seizing 0.005 s, restore 0.03 s: 0.145 s remain."""
EAGER = Measured(1.200, 1.030, 1024 * MIB, [round_of(1000, 10.0), round_of(2, 0.05)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.json"


def test_nothing_is_known_at_first(path: Path) -> None:
    assert History(path).costs("db2") == Costs()
    assert not path.parent.exists()


def test_a_first_migration_counts_as_much_as_the_typical_one(path: Path) -> None:
    History(path).learn("db2", INSTANT)
    costs = History(path).costs("db2")
    assert costs.fixed_seconds == pytest.approx((precopy.TYPICAL_FIXED_SECONDS + 0.145) / 2)
    assert costs.restore_seconds == pytest.approx((precopy.TYPICAL_RESTORE_SECONDS + 0.030) / 2)
    assert costs.rate == pytest.approx(100 * MIB)
    assert costs.restore_rate == 0.0
    assert History(path).costs("db3") == Costs(), "another host is another one"


def test_a_disk_tells_its_rate_by_the_largest_of_what_went_there(path: Path) -> None:
    kept = History(path)
    kept.learn("db2", Measured(9.0, 0.02, 0, [round_of(1000, 8.5)], 2.0))
    assert kept.costs("db2").disk_rate == pytest.approx(500 * MIB)
    rounds = [dataclasses.replace(round_of(1000, 8.5), disk_seconds=2.0), round_of(2, 0.05)]
    kept.learn("db3", Measured(0.2, 0.02, 0, rounds, 0.1))
    assert kept.costs("db3").disk_rate == pytest.approx(500 * MIB)
    kept.learn("db3", INSTANT)
    assert kept.costs("db3").disk_rate == pytest.approx(500 * MIB), "what was not asked of the disk tells nothing of it"


def test_an_eager_restore_tells_a_rate_and_an_instant_one_keeps_it(path: Path) -> None:
    kept = History(path)
    kept.learn("db2", EAGER)
    rate = kept.costs("db2").restore_rate
    assert rate == pytest.approx(1024 * MIB / (1.030 - precopy.TYPICAL_RESTORE_SECONDS))
    kept.learn("db2", INSTANT)
    assert kept.costs("db2").restore_rate == rate
    assert kept.costs("db2").restore_seconds > precopy.TYPICAL_RESTORE_SECONDS


def test_predictions_come_true_after_some_migrations(path: Path) -> None:
    kept = History(path)
    errors = []
    for _ in range(8):
        rounds = [INSTANT.rounds[0], round_of(2, 0.02)]
        errors.append(abs(precopy.decide(rounds, precopy.Limits(), kept.costs("db2")).predicted_downtime - 0.200))
        kept.learn("db2", INSTANT)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05
    assert errors[-1] < 0.02


def test_one_odd_migration_does_not_spoil_the_figure(path: Path) -> None:
    kept = History(path)
    for _ in range(20):
        kept.learn("db2", INSTANT)
    usual = kept.costs("db2").fixed_seconds
    kept.learn("db2", Measured(2.0, 0.030, 0, INSTANT.rounds))
    assert kept.costs("db2").fixed_seconds == pytest.approx(usual + history.SMOOTHING * 1.8, rel=0.01)
    kept.learn("db2", Measured(9000.0, 0.030, 0, INSTANT.rounds))
    assert kept.costs("db2").fixed_seconds == pytest.approx(usual + history.SMOOTHING * 1.8, rel=0.01), "implausible"


@pytest.mark.parametrize(
    ("measured", "learnt"),
    [
        pytest.param(Measured(9.0, 0.02, 0, [round_of(1000, 8.5)]), {"rate", "restore_seconds"}, id="no pre-copy"),
        pytest.param(
            Measured(9.0, 0.02, 0, [round_of(1000, 8.5)], 2.0), {"rate", "restore_seconds", "disk_rate"}, id="to a disk"
        ),
        pytest.param(Measured(0.3, 0.02, 0, [round_of(1, 0.1)], 0.2), {"fixed_seconds", "restore_seconds"}, id="bit"),
        pytest.param(Measured(0.3, 0.02, 0, [round_of(1, 0.1)]), {"fixed_seconds", "restore_seconds"}, id="tiny"),
        pytest.param(Measured(1.2, 0.001, 2**30, INSTANT.rounds), {"rate", "fixed_seconds"}, id="faster than nothing"),
        pytest.param(Measured(0.0, 0.0, 0, [round_of(0, 0.0)]), {"fixed_seconds"}, id="no clock"),
    ],
)
def test_only_what_a_migration_tells_is_learnt(measured: Measured, learnt: set[str]) -> None:
    assert set(smoothed({}, measured)) == learnt | {"samples"}


DAMAGED: list[Any] = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[" * 100_000,
    b"null",
    b"[]",
    b"7",
    b'{"version": 2, "hosts": {"db2": {"fixed_seconds": 1.0}}}',
    b'{"version": 1}',
    b'{"version": 1, "hosts": []}',
    b'{"version": 1, "hosts": {"db2": 7}}',
    b'{"version": 1, "hosts": {"db2": {"fixed_seconds": NaN, "rate": Infinity}}}',
    b'{"version": 1, "hosts": {"db2": {"fixed_seconds": -1, "restore_rate": 0, "rate": 1e300}}}',
    b'{"version": 1, "hosts": {"db2": {"fixed_seconds": "1", "rate": true, "restore_seconds": null, "x": 1}}}',
    b'{"version": 1, "hosts": {"db2": {"memory": 77, "samples": 3}}}',
    b'{"version": 1, "hosts": {"db2": {"fixed_seconds": ' + b"9" * 5000 + b"}}}",
    b" " * (history.LARGEST + 1),
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_means_typical_figures_and_is_replaced(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    kept = History(path)
    assert kept.costs("db2") == Costs()
    kept.learn("db2", INSTANT)
    assert kept.costs("db2").rate == pytest.approx(100 * MIB)


def test_what_makes_sense_of_an_entry_is_kept(path: Path) -> None:
    path.parent.mkdir()
    entry = {"fixed_seconds": 0.2, "rate": -5, "samples": "many", "restore_seconds": 1e9}
    path.write_text(json.dumps({"version": 1, "hosts": {"db2": entry}}))
    assert History(path).costs("db2") == Costs(fixed_seconds=0.2)


def test_a_directory_a_fifo_or_a_file_in_its_place_is_no_error(path: Path) -> None:
    path.mkdir(parents=True)
    kept = History(path)
    kept.learn("db2", INSTANT)
    assert kept.costs("db2") == Costs()
    path.rmdir()
    os.mkfifo(path)
    assert kept.costs("db2") == Costs()
    kept.learn("db2", INSTANT)
    assert stat.S_ISREG(path.stat().st_mode), "a FIFO is replaced"
    below = History(path / "state" / "history.json")
    below.learn("db2", INSTANT)
    assert below.costs("db2") == Costs()
    assert list(path.parent.iterdir()) == [path], "nothing of the failures stays behind"


def test_another_one_at_it_is_no_error_and_loses_one_measurement(path: Path) -> None:
    kept = History(path)
    kept.learn("db2", INSTANT)
    before = path.read_bytes()
    with history._locked(path.parent):
        kept.learn("db2", EAGER)
    assert path.read_bytes() == before
    kept.learn("db2", EAGER)
    assert path.read_bytes() != before


def test_many_at_once_leave_a_whole_file(path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom migrator.history import *\nfrom migrator.phases import Round\n"
        "kept = History(Path(sys.argv[1]))\n"
        "for n in range(50):\n"
        "    kept.learn(sys.argv[2], Measured(0.2, 0.03, 0, [Round(9, 9 << 20, 9, 1.0, 0.0)]))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), f"db{n}"]) for n in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    hosts = json.loads(path.read_text())["hosts"]
    assert set(hosts) <= {"db0", "db1", "db2"}
    assert all(values["samples"] > 0 for values in hosts.values())
    assert list(path.parent.iterdir()) == [path]


def test_the_oldest_hosts_are_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "HOSTS", 3)
    kept = History(path)
    for host in ("a", "b", "c", "a", "d"):
        kept.learn(host, INSTANT)
    assert list(json.loads(path.read_text())["hosts"]) == ["c", "a", "d"]


def test_without_a_place_nothing_is_kept() -> None:
    kept = History(None)
    kept.learn("db2", INSTANT)
    assert kept.costs("db2") == Costs()


@pytest.mark.parametrize(
    ("environment", "uid", "place"),
    [
        ({"HOME": "/root", "XDG_STATE_HOME": "/root/x"}, 0, "/var/lib/migrate/history.json"),
        ({"HOME": "/home/anna"}, 1000, "/home/anna/.local/state/migrate/history.json"),
        ({"HOME": "/home/anna", "XDG_STATE_HOME": ""}, 1000, "/home/anna/.local/state/migrate/history.json"),
        ({"HOME": "/home/anna", "XDG_STATE_HOME": "x"}, 1000, "/home/anna/.local/state/migrate/history.json"),
        ({"HOME": "/home/anna", "XDG_STATE_HOME": "/s"}, 1000, "/s/migrate/history.json"),
        ({"HOME": "here"}, 1000, None),
        ({}, 1000, None),
    ],
)
def test_where_it_lies(environment: dict[str, str], uid: int, place: str | None) -> None:
    assert history.of_user(environment, uid)._path == (Path(place) if place else None)


ROUND = st.builds(
    Round,
    pages=st.integers(0, 2**40),
    bytes=st.integers(0, 2**52),
    wire_bytes=st.integers(0, 2**52),
    seconds=st.floats(0, 1e6),
    frozen_seconds=st.floats(0, 1e3),
)


@given(
    rounds=st.lists(ROUND, min_size=1, max_size=5),
    downtime=st.floats(0, 1e6),
    restore=st.floats(0, 1e6),
    memory=st.integers(0, 2**52),
)
def test_whatever_is_measured_only_plausible_figures_are_kept(
    rounds: list[Round], downtime: float, restore: float, memory: int
) -> None:
    kept: dict[str, float] = {}
    for _ in range(3):
        kept = smoothed(kept, Measured(downtime, restore, memory, rounds))
    assert kept.pop("samples") == 3
    assert all(history._is_plausible(name, value) for name, value in kept.items())
