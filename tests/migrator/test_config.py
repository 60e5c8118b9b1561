"""Defaults from files: which one counts, what is refused and where it stands, whose file it is."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Sequence
from pathlib import Path

import pytest
import tomllib
from hypothesis import given
from hypothesis import strategies as some

from migrator import arguments, cli, config, errors, reaching, transport
from migrator.channel import Target, parse_target
from tests.migrator.test_cli import run

KEYS = config.Keys(arguments._migrate_parser())


class Files:
    """The two files, wherever a test wants them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.system, self.user = folder / "etc.toml", folder / "user.toml"
        monkeypatch.setattr(config, "files", lambda: (str(self.system), str(self.user)))

    def write(self, system: str = "", user: str = "") -> None:
        for path, text in ((self.system, system), (self.user, user)):
            path.write_text(text)
            path.chmod(0o644)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(tmp_path, monkeypatch)


def refused(files: Files, system: str, *words: str) -> errors.UsageError:
    files.write(system)
    with pytest.raises(errors.UsageError) as caught:
        arguments.parse([*(words or ("4711", "db2"))])
    return caught.value


def test_what_counts(files: Files) -> None:
    files.write(
        'compress = "none"\nmax-rounds = 1\nmax-downtime = 1\nbandwidth = "20M"\n'
        '[target.db2]\nmax-downtime = 2\nresume = "eager"',
        "max-downtime = 3.5\nmax-rounds = 4",
    )
    options = arguments.parse(["4711", "db2", "--max-rounds", "5"])
    assert (options.compress, options.resume, options.bandwidth) == ("none", "eager", 20 << 20)  # /etc
    assert options.max_downtime == 3.5  # the user's file, whatever /etc says of that target
    assert options.max_rounds == 5  # the command line
    assert options.transport == "stream"  # built-in
    assert arguments.parse(["4711", "db3"]).resume == "instant"


def test_the_closer_pattern_counts_more_wherever_it_stands(files: Files) -> None:
    files.write(
        '[target."ops@db2.lab"]\nmax-rounds = 4\n[target."ops@*"]\nmax-rounds = 3\n[target."db2.lab"]\nmax-rounds = 2\n'
        '[target."*.lab"]\nmax-rounds = 1\n[target."d*"]\ncriu = "/opt/criu"'
    )
    rounds = {
        host: arguments.parse(["4711", host]).max_rounds
        for host in ("ops@db2.lab", "ops@db3.lab", "root@db2.lab", "DB2.lab:2222", "db3.lab", "x.example")
    }
    assert list(rounds.values()) == [4, 3, 2, 2, 1, 8]
    assert arguments.parse(["4711", "db2.lab"]).criu == "/opt/criu"


def test_every_command_with_a_target(files: Files) -> None:
    files.write("sudo = true\nmax-rounds = 2\n[target.db2]\nuser = 'ops'")
    assert arguments.parse(["check", "4711", "db2"]).host == "ops@db2"
    assert arguments.parse(["check", "4711", "joe@db2"]).host == "joe@db2"
    assert arguments.parse(["rehearse", "4711", "db2:2222"]).host == "ops@db2:2222"
    recover = arguments.parse(["recover", "--target", "db2"])
    assert (recover.sudo, recover.other) == (True, "ops@db2")
    status = arguments.parse(["status", "db2"])
    assert (status.sudo, status.other) == (True, "ops@db2")


def test_a_target_that_only_the_journal_names_has_its_own_sudo(files: Files) -> None:
    files.write("[target.db2]\nsudo = true")
    sudo = arguments.parse(["recover"]).sudo
    assert [sudo(name) for name in ("db2", "ops@db2:2222", "db3")] == [True, True, False]
    assert arguments.parse(["recover", "--sudo"]).sudo is True
    assert arguments.parse(["abort", "20260704-031500-a1b2c3", "--no-sudo"]).sudo is False
    assert arguments.parse(["status", "--no-config"]).sudo is False


async def test_recovery_asks_for_it_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    async def connect(where: Target, *, sudo: bool, agent_arguments: Sequence[str]) -> None:
        asked.append((str(where), sudo))

    monkeypatch.setattr(transport, "connect", connect)
    for hosts in (reaching.RealHosts(sudo=lambda name: name == "db2"), reaching.RealHosts(sudo=True)):
        await hosts.there("db2")
        await hosts.there("db3")
    assert asked == [("db2", True), ("db3", False), ("db2", True), ("db3", True)]


def test_the_command_line_can_take_it_back(files: Files) -> None:
    files.write('sudo = true\nnamespaces = "always"\ncriu-option = ["tcp-close"]')
    options = arguments.parse(["4711", "db2"])
    assert (options.sudo, options.namespaces, len(options.criu_option)) == (True, "always", 1)
    options = arguments.parse(["4711", "db2", "--no-sudo", "--no-namespaces", "--criu-option", "restore:tcp-close"])
    assert (options.sudo, options.namespaces) == (False, "never")
    assert (
        options.criu_option
        == arguments.parse(["4711", "db2", "--criu-option", "restore:tcp-close", "--no-config"]).criu_option
    )
    assert len(options.criu_option) == 1
    assert not arguments.parse(["4711", "db2", "--no-config"]).sudo
    files.write("sudo = ")
    assert not arguments.parse(["4711", "db2", "--no-config"]).sudo


def test_what_only_makes_sense_together_waits_for_it(files: Files) -> None:
    files.write('rsh = "ssh -4"\nimages-dir = "/srv"\noverwrite-files = true')
    options = arguments.parse(["4711", "db2"])
    assert (options.rsh, options.images_dir, options.overwrite_files) == ("", "", False)
    options = arguments.parse(["4711", "db2", "--transport", "rsync", "--copy-files"])
    assert (options.rsh, options.images_dir, options.overwrite_files) == ("ssh -4", "/srv", True)
    files.write('shared = "/nfs"\ntransport = "rsync"\nrsh = "ssh -4"')
    options = arguments.parse(["4711", "db2"])
    assert (options.shared, options.rsh) == ("/nfs", "")
    options = arguments.parse(["4711", "db2", "--rsh", "ssh -6"])
    assert (options.shared, options.rsh) == ("", "ssh -6")
    with pytest.raises(errors.UsageError):
        arguments.parse(["4711", "db2", "--shared", "/x", "--rsh", "ssh -6"])


@pytest.mark.parametrize(("text", "line", "what"), [
    ("compres = 'zstd'", 1, "there is no setting 'compres'"),
    ("# x\n\n[target.db2]\nsodu = true", 4, "there is no setting 'sodu'"),
    ("[target.'*']\n  'sodu' = true", 2, "there is no setting 'sodu'"),
    ("sudo = 'yes'", 1, 'sudo: "yes" is neither true nor false'),
    ("sudo = 1", 1, "sudo: 1 is neither"),
    ("copy-files = true\ncompress = 'gzip'", 2, 'compress: "gzip" is none of auto, zstd, none'),
    ("compress = true", 1, "compress: true is none of"),
    ("namespaces = 'sometimes'", 1, "is none of always, auto, never"),
    ("max-downtime = 0", 1, "max-downtime: '0' is no time"),
    ("max-downtime = true", 1, "max-downtime: true is not a text"),
    ("max-rounds = 1.5", 1, "max-rounds: '1.5' is no number of rounds"),
    ("bandwidth = 'fast'", 1, "bandwidth: 'fast' is no rate"),
    ("criu = 5", 1, "criu: 5 is not a text"),
    ("images-dir = 'here'", 1, "images-dir: 'here' is no absolute path"),
    ("criu-option = 'tcp-close'", 1, 'write ["tcp-close"]'),
    ("criu-option = ['leave-running']", 1, "criu-option: "),
    ("user = ''", 1, "user: \"\" is not a user's name"),
    ("json = true", 1, "there is no setting 'json'"),
    ("attach = true", 1, "there is no setting 'attach'"),
    ("[db2]\nsudo = true", 1, "there is no setting 'db2'"),
    ("[target]\ndb2 = 1", 2, "a target is a table"),
    ("target = 1", 1, "targets are tables"),
    ("[target.db2.lab]\nsudo = true", 1, "there is no setting 'lab'"),
    ("sudo = true\nsudo = false", 0, "this is no TOML"),
    ("sudo", 0, "this is no TOML"),
])  # fmt: skip
def test_what_makes_no_sense_is_named_with_file_and_line(files: Files, text: str, line: int, what: str) -> None:
    error = refused(files, text)
    assert error.message.startswith(f"{files.system}:{line}: " if line else f"{files.system}: ")
    assert what in error.message
    assert error.hint


def test_hints(files: Files) -> None:
    assert "compress" in refused(files, "compres = 1").hint
    assert '[target."db2.lab"]' in refused(files, "[target.db2.lab]\nsudo = true").hint


def test_another_targets_section_is_checked_too(files: Files) -> None:
    assert "sodu" in refused(files, "[target.other]\nsodu = true", "check", "4711", "db2").message


def test_commands_without_a_target_do_without(files: Files) -> None:
    files.write("nonsense")
    assert cli.main(["explain", "pid-taken"]) == 0
    assert cli.main(["help"]) == 0


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_file_that_others_may_write_to_is_refused(files: Files, mode: int) -> None:
    files.write("sudo = true")
    files.system.chmod(mode)
    with pytest.raises(errors.UsageError, match="others may write to it"):
        arguments.parse(["4711", "db2"])


def test_a_file_of_somebody_else_is_refused(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write("sudo = true")
    if os.geteuid() == 0:
        os.chown(files.system, 12345, -1)
    else:
        monkeypatch.setattr(config, "SYSTEM", str(files.system))
    with pytest.raises(errors.UsageError, match="belongs to another user"):
        arguments.parse(["4711", "db2"])


def test_what_is_no_ordinary_file_is_refused(files: Files) -> None:
    files.write()
    files.system.unlink()
    os.mkfifo(files.system)
    with pytest.raises(errors.UsageError, match="no configuration file"):
        arguments.parse(["4711", "db2"])
    files.system.unlink()
    files.system.mkdir()
    with pytest.raises(errors.UsageError, match="no configuration file"):
        arguments.parse(["4711", "db2"])


def test_whose_file_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the fixture of all tests
    monkeypatch.setenv("HOME", "/home/joe")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/joe/xdg")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    root = pwd.getpwuid(0).pw_dir
    assert config.files() == ("/etc/migrate.toml", f"{root}/.config/migrate.toml")  # under sudo, whatever it kept
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert config.files() == ("/etc/migrate.toml", "/home/joe/xdg/migrate.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert config.files() == ("/etc/migrate.toml", "/home/joe/.config/migrate.toml")
    monkeypatch.delenv("HOME")
    assert config.files() == ("/etc/migrate.toml",)


def test_config_shows_what_counts_and_whence(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.write('\ncompress = "zstd"\n', '[target.db2]\nuser = "ops"\nbandwidth = "20M"\n')
    assert cli.main(["config", "db2"]) == 0
    out = capsys.readouterr().out
    shown = {line.split(" = ")[0]: line for line in out.splitlines() if " = " in line}
    assert set(shown) == {"user", *KEYS}
    assert shown["compress"].split() == ["compress", "=", '"zstd"', "#", f"{files.system}:2"]
    assert shown["bandwidth"].endswith(f"# {files.user}:3")
    assert shown["resume"].endswith("# built-in")
    assert cli.main(["config", "--json"]) == 0
    events = {event["key"]: event for event in map(json.loads, capsys.readouterr().out.splitlines())}
    assert (events["compress"]["value"], events["compress"]["where"]) == ("zstd", f"{files.system}:2")
    assert (events["bandwidth"]["value"], events["bandwidth"]["where"]) == (0.0, "built-in")


def test_what_config_shows_is_a_configuration_file(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config"]) == 0
    files.write(capsys.readouterr().out)
    before, after = arguments.in_force(""), config.load(KEYS).in_force(None)
    assert {key: setting.value for key, setting in before[1].items()} == {key: KEYS.built_in(key).value for key in KEYS}
    assert set(after) == set(KEYS)


def test_a_broken_file_stops_config_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "migrate.toml"
    file.write_text("sodu = true")
    file.chmod(0o600)
    monkeypatch.setenv("FAKE_ENGINE_CONFIG", str(file))
    for words in (["config"], ["4711", "db2"], ["recover"]):
        ended = run(tmp_path, "ok", *words)
        assert (ended.status, ended.out) == (2, "")
        assert ended.err == f"migrate: {file}:1: there is no setting 'sodu'\n  hint: is it sudo?\n"
    file.write_text('[target.db2]\nuser = "ops"')
    assert run(tmp_path, "ok", "4711", "db2", "--json").status == 0


@given(some.dictionaries(some.text(max_size=5), some.none() | some.text(max_size=3) | some.booleans(), max_size=4))
def test_lines_are_found_whatever_the_keys_are(content: dict[str, object]) -> None:
    text = "".join(f"{json.dumps(key, ensure_ascii=False)} = 1\n" for key in content if key.isprintable())
    assert config._lines(text) == {(key,): number for number, key in enumerate(tomllib.loads(text), 1)}


def test_a_target_that_is_written_as_a_url_is_that_host() -> None:
    assert config.Section("db2", {}).rank(parse_target("ssh://ops@db2:22/")) == (True, False, True)
