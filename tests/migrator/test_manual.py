"""What is said of the command line: --help, `migrate help`, the man page; all of it from the parsers."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from migrator import arguments, cli, completion, errors, manpage, manual, topics
from migrator.manual import Command, Word

ROOT = Path(__file__).parents[2]
COMMANDS = arguments.commands()
README = (ROOT / "README.md").read_text()


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command prints that ends well."""
    assert cli.main(words) == 0
    return capsys.readouterr().out


def options() -> list[Word]:
    return list(dict.fromkeys(option for command in COMMANDS.values() for option in command.options))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_one_screen(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"] if name == manual.MAIN else [name, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) < 80
    assert all(any(option.name in line for line in lines) for option in COMMANDS[name].options)


def test_the_first_screen_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    screen = shown(capsys, "help")
    listed = screen.split("\ncommands: ")[1].split("\n\n")[0].split(",")
    assert [each.split()[0] for each in listed] == [name for name in COMMANDS if name != manual.MAIN]


def test_it_stays_one_screen_however_much_comes() -> None:
    many = {f"command-{number}": Command(f"command-{number}", "It does.", (), (), "") for number in range(20)}
    parser = argparse.ArgumentParser(description="What it does.")
    for number in range(60):
        parser.add_argument(f"--an-option-{number}", help="x")
    main = manual.read(manual.MAIN, parser)
    text = manual.screen(main, {manual.MAIN: main, **many})
    assert text.count("\n") < 24
    assert all(name in text for name in many)


def test_an_option_of_no_topic_is_told_of_all_the_same() -> None:
    parser = argparse.ArgumentParser(description="What it does.")
    parser.add_argument("--quite-new", metavar="N", default=3, help="so many of it (default: %(default)s)")
    parser.add_argument("--hidden", help=argparse.SUPPRESS)
    command = manual.read(manual.MAIN, parser)
    assert "more        --quite-new" in manual.screen(command, {"x": Command("x", "It does.", (), (), "")})
    assert "so many of it (default: 3)" in manual.answer("more", {manual.MAIN: command})
    assert "so many of it (default: 3)" in manpage.page({manual.MAIN: command})
    assert "--quite-new" in completion.script("bash", {manual.MAIN: command})
    assert "hidden" not in manual.answer("all", {manual.MAIN: command})


@pytest.mark.parametrize("word", [*topics.OPTIONS, *topics.PROSE])
def test_a_topic(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "help", word)
    assert text.startswith(f"{word}: ")
    assert all(len(line) < 80 for line in text.splitlines())
    assert all(
        re.search(rf"^(-., )?{name}\b", text, re.MULTILINE)
        for name in topics.OPTIONS.get(word, topics.Topic("")).options
    )


def test_topics_name_options_that_there_are() -> None:
    named = [option for topic in topics.OPTIONS.values() for option in topic.options]
    assert len(named) == len(set(named))
    assert set(named) <= {option.name for option in options()}


@pytest.mark.parametrize(("word", "found"), [
    ("--copy-files", "copy regular files"), ("copy-files", "copy regular files"), ("-n", "PID namespace"),
    ("check", "usage: migrate check"), ("pid-taken", "pid-taken (stops a migration)"), ("38", "opened files"),
    ("130", "signal 2"), ("all", "usage: migrate recover"),
])  # fmt: skip
def test_help_on_other_words(word: str, found: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert found in shown(capsys, "help", word)


def test_the_commands_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "help", manual.COMMANDS).splitlines()
    assert [line.split()[0] for line in lines] == [name for name in arguments.commands() if name != manual.MAIN]
    assert all(len(line) < manual.COLUMNS and len(line) > 40 for line in lines)


@pytest.mark.parametrize(
    ("word", "hint"), [("downtme", "downtime"), ("99", "exit-status"), ("xyzzy", "names the topics")]
)
def test_help_on_what_there_is_not(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", word]) == 2
    assert hint in capsys.readouterr().err


def test_all_exit_codes_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "help", "exit-status")
    told = re.findall(r"^  (\d+) ", text, re.MULTILINE)
    table = re.findall(r"^\| (\d+) \|", README.split("## When it fails")[1], re.MULTILINE)
    assert sorted(told, key=int) == sorted(table, key=int)
    assert errors.NotResumed.exit_code in map(int, told)


def test_the_readme_tells_of_every_option_of_migrate() -> None:
    table = README.split("| option | |")[1].split("\n\n")[0]
    told = set(re.findall(r"--[a-z][a-z=-]*", "".join(line.split(" | ")[0] for line in table.splitlines())))
    untold = {"--sudo", "--version"}  # under "Using it", and what everybody knows
    assert {option.name for option in COMMANDS[manual.MAIN].options} - untold == told
    assert "--sudo" in README


def test_the_readme_tells_of_every_option_of_a_drain() -> None:
    table = README.split("### Emptying a host")[1].split("| option | |")[1].split("\n\n")[0]
    told = set(re.findall(r"--[a-z][a-z-]*", "".join(line.split(" | ")[0] for line in table.splitlines())))
    output = {"--quiet", "--json", "--verbose", "--no-config", "--log-file"}  # under "Using it"
    drain, back = ({option.name for option in COMMANDS[name].options} for name in ("drain", "return"))
    assert (drain | back) - output == told
    assert (drain - back, back - drain) == ({"--dry-run"}, {"--overwrite-files"})


# --- the man page ----------------------------------------------------------------------------------------------------


def test_the_man_page_has_all_of_it() -> None:
    page = manpage.page(COMMANDS)
    plain = page.replace(r"\-", "-").replace(r"\(aq", "'").replace(r"\(ga", "`")
    for option in options():
        assert rf"\fB{option.name}\fR" in plain
        assert option.help in plain
    for command in COMMANDS.values():
        assert command.description in plain
    assert page.isascii()


needs_groff = pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")


@needs_groff
@pytest.mark.skipif(not shutil.which("lexgrog"), reason="man is not installed")
def test_man_reads_it_without_a_warning(tmp_path: Path) -> None:
    page = tmp_path / "migrate.1"
    page.write_text(manpage.page(COMMANDS))
    done = subprocess.run(["groff", "-man", "-Tascii", "-ww", page], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "MIGRATE(1)" in done.stdout
    named = subprocess.run(["lexgrog", page], capture_output=True, text=True, check=True).stdout
    assert "migrate - move a running process tree to another host" in named


@needs_groff
def test_words_of_roff_are_taken_for_words(tmp_path: Path) -> None:
    odd = ".TH evil \\fB it's -x `y`"
    page = tmp_path / "x.1"
    page.write_text(manpage.page({manual.MAIN: Command(manual.MAIN, odd, (), (), "")}))
    shown = subprocess.run(
        ["groff", "-man", "-Tascii", "-ww", "-P-cbou", page], capture_output=True, text=True, check=True
    )
    assert odd in " ".join(shown.stdout.split())


# --- the wheel -------------------------------------------------------------------------------------------------------


def test_the_build_puts_them_where_they_are_looked_for(tmp_path: Path) -> None:
    """The hook as a build runs it, with a stand-in for hatchling."""
    stand_in = tmp_path / "hatchling" / "builders" / "hooks" / "plugin"
    stand_in.mkdir(parents=True)
    for package in (stand_in, *stand_in.parents[:3]):  # without, an installed hatchling would come first
        (package / "__init__.py").touch()
    (stand_in / "interface.py").write_text("class BuildHookInterface:\n    root = '.'\n")
    program = (
        "import hatch_build, pathlib, sys\n"
        "hook, data = hatch_build.Share(), {'shared_data': {}}\n"
        "hook.initialize('standard', data)\n"
        "for source, place in data['shared_data'].items():\n"
        "    print(place, pathlib.Path(source).read_text().splitlines()[0])\n"
        "hook.finalize('standard', data, '')\n"
        "assert not any(pathlib.Path(source).exists() for source in data['shared_data'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONPATH": f"{ROOT}:{tmp_path}"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "share/man/man1/migrate.1", "share/bash-completion/completions/migrate",
        "share/zsh/site-functions/_migrate", "share/fish/vendor_completions.d/migrate.fish",
    ]  # fmt: skip
    assert "#compdef migrate" in done.stdout
