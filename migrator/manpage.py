"""The man page migrate(1), made from what the command line understands (`manual`) and the topics (`topics`).

Owns the roff. Refuses to describe an option in words of its own. The wheel installs the page as
share/man/man1/migrate.1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from agent.protocol import VERSION
from migrator import topics
from migrator.manual import MAIN, Command, Word, by_topic

FILES = {
    "/var/lib/migrate/ID/journal": "What this host decided, a line each; the 50 newest are kept.",
    "/var/lib/migrate/ID/*.log": "criu's logs; gone after success.",
    "/run/migrate/ID/": "Images, on a tmpfs of their own; in /var/lib/migrate/ID/images where memory is short.",
    "~/.cache/migrate/": "On the target: the agent, named by its hash. It may be removed at any time.",
}


def page(commands: Mapping[str, Command]) -> str:
    """The page, as roff for man(1)."""
    return "\n".join(_lines(commands)) + "\n"


def _lines(commands: Mapping[str, Command]) -> Iterator[str]:
    main = commands[MAIN]
    yield f'.TH MIGRATE 1 "" "migrate {VERSION}" "User Commands"'
    yield ".SH NAME"
    yield r"migrate \- move a running process tree to another host"
    yield ".SH SYNOPSIS"
    yield ".nf"
    for command in commands.values():
        yield _text(command.synopsis)
    yield ".fi"
    yield ".SH DESCRIPTION"
    yield _text(main.description)
    yield ".PP"
    yield _text(
        "Memory is sent while the process runs; the freeze carries only what was written last. Until the target has "
        "the process standing, complete and held, the source can take it back: a failure at any instant leaves exactly "
        "one copy, never none, never two. The work on each host is done by criu(8); SSH is the only connection."
    )
    yield ".SH COMMANDS"
    for command in commands.values():
        yield from _command(command, main)
    yield ".SH OPTIONS"
    options = list(dict.fromkeys(option for command in commands.values() for option in command.options))
    for name, of_it in by_topic(options).items():
        yield f".SS {_text(_capital(topics.title(name)))}"
        yield from _paragraphs(topics.paragraphs(name))
        for option in of_it:
            yield from _option(option)
    for name in topics.PROSE:
        yield f".SH {_text(name.replace('-', ' ').upper())}"
        yield from _paragraphs(topics.paragraphs(name))
    yield ".SH FILES"
    for path, text in FILES.items():
        yield ".TP"
        yield rf"\fI{_text(path)}\fR"
        yield _text(text)
    yield ".SH SEE ALSO"
    yield r"\fBcriu\fR(8), \fBssh\fR(1), \fBssh_config\fR(5), \fBrsync\fR(1)"


def _command(command: Command, main: Command) -> Iterator[str]:
    """What it does, and what it takes; an option that `migrate` has too is told of there."""
    yield ".TP"
    yield rf"\fB{_text(command.synopsis)}\fR"
    yield _text(command.description)
    if command is not main:
        yield from _shared(command, main)
    for word in command.arguments:
        yield ".br"
        yield rf"\fI{_text(word.value)}\fR: {_text(word.help)}."


def _shared(command: Command, main: Command) -> Iterator[str]:
    """Which of the options below are its own too: those, or the few that are not."""
    own = {option.name for option in command.options}
    with_it = [option.name for option in main.options if option.name in own]
    without = [option.name for option in main.options if option.name not in own]
    if len(without) < len(with_it):
        yield _text(f"Options as below, but for {', '.join(without)}.")
    elif with_it:
        yield _text(f"Options as below: {', '.join(with_it)}.")


def _option(option: Word) -> Iterator[str]:
    yield ".TP"
    value = rf" \fI{_text(option.value)}\fR" if option.value else ""
    yield ", ".join(rf"\fB{_text(name)}\fR{value}" for name in option.names)
    yield _text(option.help + ".")


def _paragraphs(paragraphs: Sequence[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        if paragraph.startswith("  "):
            yield ".PP"
            yield ".nf"
            yield from map(_text, paragraph.splitlines())
            yield ".fi"
        else:
            yield ".PP"
            yield _text(paragraph)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _text(text: str) -> str:
    """Words that roff takes for words."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("…", "...").replace("`", r"\(ga").replace("'", r"\(aq")
    return rf"\&{text}" if text.startswith(".") else text
