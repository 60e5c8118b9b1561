"""The Python API: the same as the command line, typed, quiet, and what README shows of it."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import migrator
from migrator import api, arguments, cli, errors, events, migration
from migrator.arguments import parse
from migrator.phases import Phase
from tests.migrator import fake_engine

ROOT = Path(__file__).parents[2]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A scripted engine in the real one's place."""

    def install(scenario: str) -> None:
        scripted = fake_engine.Engine(scenario)
        monkeypatch.setattr(migration, "migrate", scripted.migrate)
        monkeypatch.setattr(migration, "check", scripted.check)

    return install


def test_options_are_those_of_the_command_line() -> None:
    options = parse(["4711", "db2"])
    assert cli._ordered(options) == api.Options()
    settable = {
        action.dest
        for action in arguments._migrate_parser()._actions
        if action.option_strings
        and action.dest not in ("help", "version", "quiet", "json", "verbose", "no_config", "log_file")
    }
    assert {field.name for field in dataclasses.fields(api.Options)} == settable


def test_an_option_is_the_same_order_by_either_way() -> None:
    words = "--copy-files --overwrite-files --max-downtime 1.5 --max-rounds 3 --on-no-converge throttle --resume eager "
    words += "--verify hash --namespaces=auto --compress zstd --bandwidth 20M --sudo --criu /opt/criu --require-precopy"
    said = parse(["4711", "root@db2:2222", *words.split(), "--criu-option", "dump:tcp-close"])
    written = api.Options(
        copy_files=True, overwrite_files=True, max_downtime=1.5, max_rounds=3, on_no_converge="throttle",
        resume="eager", verify="hash", namespaces="auto", compress="zstd", bandwidth=20 << 20, sudo=True,
        criu="/opt/criu", require_precopy=True, criu_option=("dump:tcp-close",),
    )  # fmt: skip
    assert api.order(4711, "root@db2:2222", written) == api.order(said.pid, said.host, cli._ordered(said))


@pytest.mark.parametrize(("values", "what"), [
    ({"compress": "gzip"}, "compress: 'gzip' is none of auto, zstd, none"),
    ({"max_downtime": 0}, "max_downtime"), ({"max_downtime": float("nan")}, "max_downtime"),
    ({"bandwidth": -1}, "bandwidth"), ({"max_rounds": -1}, "max_rounds"),
    ({"overwrite_files": True}, "--copy-files"), ({"rsh": "ssh"}, "--transport rsync"),
    ({"shared": "/x", "transport": "rsync", "rsh": "ssh"}, "--shared"),
])  # fmt: skip
def test_options_that_make_no_sense(values: dict[str, Any], what: str) -> None:
    with pytest.raises(errors.UsageError, match=re.escape(what)):
        api.Options(**values)


async def test_an_order_that_makes_no_sense() -> None:
    for pid, host, options in (
        (0, "db2", api.Options()),
        (4711, "", api.Options()),
        (4711, "db2", api.Options(criu_option=("leave-running",))),
        (4711, "db2", api.Options(terminal="attach")),
    ):
        with pytest.raises(errors.UsageError):
            await migrator.migrate(pid, host, options)


async def test_migrate_tells_what_happens_in_order(engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engine("ok")
    told: list[migrator.Event] = []
    report = await migrator.migrate(4711, "db2", on_event=told.append)
    assert (report.outcome, report.target_pid) == ("migrated", 4711)
    assert told[0] == events.Started(report.id)
    assert told[-1] == events.Ended(report)
    phases = [event.phase for event in told if isinstance(event, events.PhaseBegun)]
    assert phases == [phase for phase in Phase if phase is not Phase.ROLLBACK]
    rounds = [event for event in told if isinstance(event, events.RoundDone)]
    assert [(event.number, event.final) for event in rounds] == [(1, False), (2, False), (3, True)]
    assert any(isinstance(event, events.Noted) and event.detail for event in told)
    assert capsys.readouterr() == ("", "")


async def test_it_needs_no_listener(engine: Any) -> None:
    engine("ok")
    assert (await migrator.migrate(4711, "db2")).outcome == "migrated"
    assert (await migrator.rehearse(4711, "db2")).pid == 4711


async def test_check(engine: Any) -> None:
    engine("obstacles")
    found = await migrator.check(4711, "db2")
    assert (found.movable, [each.id for each in found.obstacles if each.stops]) == (
        False,
        ["pid-taken", "file-missing"],
    )
    engine("ok")
    assert (await migrator.check(4711, "db2")).movable


async def test_an_error_says_where_the_process_is(engine: Any) -> None:
    engine("dump-fails")
    with pytest.raises(migrator.MigrateError) as caught:
        await migrator.migrate(4711, "db2")
    assert (caught.value.exit_code, caught.value.where) == (32, "undone: the process runs on the source")


async def test_cancelling_comes_out_when_all_is_undone(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine("wait-freeze")
    monkeypatch.setenv("FAKE_ENGINE_JOURNAL", str(tmp_path / "journal"))
    frozen = asyncio.Event()

    def told(event: migrator.Event) -> None:
        if event == events.PhaseBegun(Phase.FREEZE):
            frozen.set()

    moving = asyncio.create_task(migrator.migrate(4711, "db2", on_event=told))
    await frozen.wait()
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    assert (tmp_path / "journal").read_text().split()[-2:] == ["undo", "undone"]


def test_importing_it_is_cheap() -> None:
    program = "import sys, migrator; print([name for name in sys.modules if name.startswith('migrator.')])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_all_names_are_there_and_no_others() -> None:
    assert all(getattr(migrator, name) for name in migrator.__all__)
    with pytest.raises(AttributeError):
        _ = migrator.nonsense


def example() -> str:
    """README's."""
    text = (ROOT / "README.md").read_text().split("**From Python**")[1].split("`migrator.rehearse`")[0]
    return "\n".join(line[4:] for line in text.splitlines() if line.startswith("    ") or not line).strip() + "\n"


def test_the_example_of_the_readme_runs() -> None:
    assert len([line for line in example().splitlines() if line]) <= 15
    for scenario, status, out, err in (
        ("ok", 0, "connect\npreflight\n", ""),
        ("obstacles", 1, "connect\npreflight\n", "the process runs on the source and was not touched\n"),
        ("dump-fails", 1, "connect\n", "undone: the process runs on the source\n"),
    ):
        program = f"from tests.migrator import fake_engine\nfake_engine.install({scenario!r})\n{example()}"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout[: len(out)]) == (status, out), done.stderr
        assert err in done.stderr
        assert ("runs on db2 as 4711, down 0.11 s\n" in done.stdout) == (scenario == "ok")
