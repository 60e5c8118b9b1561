"""Wording: sizes, times, escapes, errors, obstacles, the last line."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator import catalogue, errors, recovery, words
from migrator.obstacle import Obstacle
from tests.migrator import fake_engine


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (1024, "1.0 KiB"),
        (38 * 1024, "38 KiB"),
        (1.1 * 1024**2, "1.1 MiB"),
        (38 * 1024**2, "38 MiB"),
        (999 * 1024**2, "999 MiB"),
        (1000 * 1024**2, "0.98 GiB"),
        (1.02 * 1024**3, "1.02 GiB"),
        (361 * 1024**3, "361 GiB"),
        (4000 * 1024**3, "4000 GiB"),
    ],
)
def test_sizes(size: float, text: str) -> None:
    assert words.bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text", "upper"),
    [
        (0.0, "0.00 s", "0.00 s"),
        (0.1123, "0.11 s", "0.12 s"),
        (0.12, "0.12 s", "0.12 s"),
        (0.9999, "1.00 s", "1.00 s"),
        (3.41, "3.4 s", "3.5 s"),
        (59.98, "60.0 s", "1 min 00 s"),
        (125.2, "2 min 05 s", "2 min 06 s"),
    ],
)
def test_times(seconds: float, text: str, upper: str) -> None:
    assert words.seconds_text(seconds) == text
    assert words.seconds_text(seconds, upper=True) == upper


@given(st.floats(0, 59))
def test_an_upper_bound_is_never_rounded_down(seconds: float) -> None:
    assert float(words.seconds_text(seconds, upper=True).removesuffix(" s")) >= seconds - 1e-6


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("/srv/größe", "/srv/größe"),
        ("/srv/a\udcff", "/srv/a\\xff"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("two\nlines", "two\\x0alines"),
        ("right\u202eleft", "right\\u202eleft"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_odd_characters_are_escaped(raw: str, shown: str) -> None:
    assert words.escape(raw) == shown


@given(st.text(alphabet=st.characters(codec=None, categories=("L", "C", "Z", "P"))))
def test_whatever_comes_is_one_printable_line(raw: str) -> None:
    assert words.escape(raw).isprintable()


def test_an_error_says_what_hint_log_and_where() -> None:
    error = errors.DumpError("db1: criu dump: can't\nsecond line", hint="do this", log="/var/log/x")
    assert words.error_text(error).splitlines() == [
        "migrate: db1: criu dump: can't",
        "  second line",
        "  hint: do this",
        "  log: /var/log/x",
        "  undone: the process runs on the source",
    ]


def test_a_usage_error_is_one_line() -> None:
    assert words.error_text(errors.UsageError("'x' is no process id")) == "migrate: 'x' is no process id\n"


def test_an_error_without_words_is_named() -> None:
    assert words.error_text(errors.LinkLost("")).startswith("migrate: LinkLost\n")


def test_obstacles_are_a_table() -> None:
    assert words.obstacle_table(fake_engine.obstacles()).splitlines() == [
        "db2  pid-taken     stops  4711                     in use by sshd",
        "    stop it there, or wait",
        "db2  file-missing  stops  /srv/a\\xff\\x1b[31m\\x0ab  not there",
        "    --copy-files brings it",
        "db2  criu-older    warns  6.1                      older than the source's 6.12",
        "    try it, but test first",
    ]


def test_obstacles_are_stacked_where_the_table_is_too_wide() -> None:
    text = words.obstacle_table(fake_engine.obstacles(), columns=50)
    assert text.splitlines()[:3] == ["db2  pid-taken  stops  4711", "    in use by sshd", "    stop it there, or wait"]


def test_a_narrow_terminal_folds_words_and_leaves_paths_whole() -> None:
    path = "/srv/" + "x" * 60
    one = Obstacle("file-missing", "db2", path, "not there, and nobody knows why that is so", f"there: touch {path}")
    lines = words.obstacle_table([one], columns=40).splitlines()
    assert path in lines
    assert max(len(line) for line in lines if path not in line) <= 40
    assert " ".join(words.obstacle_table([one]).split()) == " ".join(" ".join(lines).split())


def test_a_kind_is_explained_at_length() -> None:
    kind = catalogue.KINDS["file-mode"]
    text = words.explanation(kind, 60)
    assert text.startswith("file-mode (stops a migration)\n\nA file has another mode on the target.\n\n")
    assert "Remedy: there: chmod HERE QUOTED" in text
    assert max(map(len, text.splitlines())) <= 60
    assert words.kinds_list([kind]) == "file-mode  stops  a file has another mode on the target\n"


def test_one_long_path_does_not_push_the_other_rows_apart() -> None:
    short = Obstacle("file-missing", "db2", "/a", "not there", "copy it", True)
    long = dataclasses.replace(short, object="/" + "x" * 200)
    first, _, second, _ = words.obstacle_table([short, long]).splitlines()
    assert first.index("not there") < 77
    assert second.endswith("x  not there")


def test_the_last_line() -> None:
    report = dataclasses.replace(REPORT, downtime_seconds=0.111, total_seconds=3.4)
    assert words.summary(report) == (
        "running on db2 as pid 4711: down 0.12 s, total 3.4 s, 1.06 GiB in 361 MiB on the wire\n"
    )
    inside = dataclasses.replace(report, target_pid=812, inside_pid=4711, namespaces=True)
    assert words.summary(inside).startswith(
        "running on db2 as pid 812 (4711 in a PID namespace of its own): down 0.12 s"
    )
    assert words.summary(dataclasses.replace(report, outcome="rehearsed")) == (
        "pid 4711 can move to db2, and runs on here: paused 0.12 s, total 3.4 s, 1.06 GiB in 361 MiB on the wire\n"
    )
    assert words.summary(dataclasses.replace(report, outcome="undone")) == ""


REPORT = fake_engine.report_of(4711, fake_engine.ROUNDS)


def test_what_was_recovered() -> None:
    moved = recovery.Outcome(recovery.Course.FORWARD, "the process runs on beta", "beta", 4711)
    assert words.recovered(moved) == "the process runs on beta\n"
    shown = dataclasses.replace(moved, terminal="ssh -t beta tmux attach")
    assert words.recovered(shown) == "the process runs on beta\nits terminal: ssh -t beta tmux attach\n"
    lost = dataclasses.replace(shown, hangs_up_seconds=120.0)
    assert words.recovered(lost).splitlines()[2] == "it gets SIGHUP within 120 s unless somebody shows it so"


def test_counts() -> None:
    assert [words.count(number, "page") for number in (0, 1, 2)] == ["0 pages", "1 page", "2 pages"]
