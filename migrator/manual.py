"""What the command line understands, as data, and as the two texts that come of it: one screen, and a topic at length.

Owns the reading of the parsers: `--help`, `migrate help`, the man page (`manpage`) and the completions (`completion`)
all come from here, so that what is in a parser is in each of them. Refuses to know an option by name, but for which
topic it belongs to: that is `topics`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from migrator import catalogue, errors, topics, words

COLUMNS = 80
LINES = 24
"""What fits one screen: the smallest terminal that there is."""
MAIN = "migrate"
COMMANDS = "commands"
"""The topic that has a line for each of them."""
KINDS_OF_WORD = {
    "PID": "pid",
    "[USER@]HOST[:PORT]": "host",
    "HOST": "host",
    "PATH": "file",
    "PLAN": "file",
    "FILE": "file",
    "CHECK": "check",
    "ID": "migration",
    "ID|FILE": "file",
    "[ID] [[USER@]HOST[:PORT]]": "migration",
    "TOPIC": "topic",
}
"""What a metavar stands for, for whoever completes it; all others are free text."""


@dataclasses.dataclass(frozen=True)
class Word:
    """An option, or a positional argument (which has no names)."""

    names: tuple[str, ...]
    metavar: str
    """What stands for its value; "" for an option without one."""
    choices: tuple[str, ...]
    help: str
    optional: bool = False
    """Of a positional argument: it may be left out."""
    repeats: bool = False
    """It may be given more than once."""

    @property
    def kind(self) -> str:
        """What its value is: pid, host, file, check, migration, topic; "" for any other."""
        return KINDS_OF_WORD.get(self.metavar, "")

    @property
    def name(self) -> str:
        """The long one."""
        return next((name for name in self.names if name.startswith("--")), self.names[0] if self.names else "")

    @property
    def value(self) -> str:
        """How its value is written in a synopsis: CHOICE|CHOICE, or what stands for it."""
        return "|".join(self.choices) if self.choices else self.metavar


@dataclasses.dataclass(frozen=True)
class Command:
    """One command with all that it understands."""

    name: str
    description: str
    options: tuple[Word, ...]
    arguments: tuple[Word, ...]
    epilog: str

    @property
    def synopsis(self) -> str:
        """Its line under `usage:`."""
        parts = [MAIN] if self.name == MAIN else [MAIN, self.name]
        parts += ["[OPTION…]"] if self.options else []
        parts += [f"[{each.value}]" if each.optional else each.value for each in self.arguments]
        return " ".join(parts)

    @property
    def summary(self) -> str:
        """The first part of its description, on less than a line."""
        sentence = self.description.split(". ")[0].rstrip(".")
        room = COLUMNS - 24
        while len(sentence) > room and any(mark in sentence for mark in ";,:"):
            sentence = sentence[: max(sentence.rfind(mark) for mark in ";,:")]
        return textwrap.shorten(sentence, room, placeholder="…")


def read(name: str, parser: argparse.ArgumentParser) -> Command:
    """A parser as data; options that are hidden there are left out, and so is --help."""
    found = [_word(action) for action in parser._actions if action.help != argparse.SUPPRESS]
    return Command(
        name,
        " ".join((parser.description or "").split()),
        tuple(word for word in found if word.names and word.name != "--help"),
        tuple(word for word in found if not word.names),
        " ".join((parser.epilog or "").split()),
    )


def _word(action: argparse.Action) -> Word:
    takes_value = action.nargs != 0
    metavar = " ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar or action.dest.upper()
    return Word(
        tuple(action.option_strings),
        metavar if takes_value else "",
        tuple(str(choice) for choice in action.choices or ()) if takes_value else (),
        " ".join((action.help or "").split()) % vars(action),
        action.nargs == "?",
        isinstance(action, argparse._AppendAction),
    )


def by_topic(options: Sequence[Word]) -> dict[str, list[Word]]:
    """Options under the topics that they belong to, in their order; what belongs to none comes last, as "more"."""
    found: dict[str, list[Word]] = {}
    for name, topic in topics.OPTIONS.items():
        of_it = [option for option in options if option.name in topic.options]
        found[name] = sorted(of_it, key=lambda option, order=topic.options: order.index(option.name))  # type: ignore
    known = [option for of_it in found.values() for option in of_it]
    found[topics.MORE] = [option for option in options if option not in known]
    return {name: of_it for name, of_it in found.items() if of_it}


def screen(command: Command, commands: Mapping[str, Command]) -> str:
    """The answer to --help, no longer than a screen. `commands`: those that are to be listed as well.

    A command that has little to say says all of it. As many commands and options come, there is less said of each:
    never a second screen.
    """
    texts = [] if commands else [command_text(command)]
    texts += ["\n".join(_screen(command, commands, *looks)) + "\n" for looks in LOOKS]
    return next((text for text in texts if text.count("\n") < LINES), texts[-1])  # the prompt comes below


LOOKS = ((True, True, True), (True, True, False), (True, False, True), (True, False, False), (False, False, True))
"""Options one by one or just their topics; commands a line each or just named; empty lines or none."""


def _screen(
    command: Command, commands: Mapping[str, Command], options: bool, summaries: bool, spaced: bool
) -> Iterator[str]:
    between = [""] if spaced else []
    others = [each for each in commands.values() if each.name != command.name]
    yield f"usage: {command.synopsis}"
    if others:
        yield f"       {MAIN} COMMAND …"
    yield from between
    yield from _folded(command.description)
    yield from between
    if others and summaries:
        yield from map(_line, others)
    elif others:
        yield from _folded("commands: " + ", ".join(map(_short, others)))
    else:
        yield from (line for word in command.arguments for line in _folded(f"  {word.value:<20} {word.help}", " " * 23))
    yield from between
    under = by_topic(command.options)
    if options:
        for name, of_it in under.items():
            yield from _folded(f"{name:<11} {' '.join(option.name for option in of_it)}", " " * 12)
    else:
        yield from _folded("options by topic: " + ", ".join(under))
    yield from between
    rest = f"more: {', '.join([COMMANDS, *topics.PROSE])}. " if others else ""
    yield from _folded(
        f"{rest}`{MAIN} help WORD` tells of a topic, option, command, check or exit code; `{MAIN} help "
        f"{'all' if others else command.name}` all."
    )
    yield from _folded(command.epilog)


def _line(command: Command) -> str:
    return f"  {_short(command):<20} {command.summary[:1].lower()}{command.summary[1:]}"


def _short(command: Command) -> str:
    """A command with its arguments, as short as they can be told."""
    arguments = (f"[{word.metavar}]" if word.optional else word.metavar for word in command.arguments)
    return " ".join([command.name, *arguments]).replace("[USER@]HOST[:PORT]", "HOST")


def _folded(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        text, COLUMNS - 1, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip


def option_text(option: Word) -> str:
    """An option at length."""
    names = ", ".join(f"{name} {option.value}".rstrip() for name in option.names)
    return f"{names}\n" + _paragraph(option.help, "    ")


def command_text(command: Command) -> str:
    """A command at length: all its options, by topic."""
    text = f"usage: {command.synopsis}\n\n" + _paragraph(command.description)
    if command.arguments:
        text += "\n" + "".join(f"{word.value}\n{_paragraph(word.help, '    ')}" for word in command.arguments)
    for name, options in by_topic(command.options).items():
        text += f"\n{topics.title(name)}:\n\n" + "".join(map(option_text, options))
    return text + (f"\n{_paragraph(command.epilog)}" if command.epilog else "")


def topic_text(name: str, options: Sequence[Word]) -> str:
    """A topic at length: what it is about, and its options."""
    text = f"{name}: {topics.title(name)}\n\n"
    text += "\n".join(map(_paragraph, topics.paragraphs(name)))
    of_it = by_topic(options).get(name, [])
    return text + ("\n" if of_it and topics.paragraphs(name) else "") + "".join(map(option_text, of_it))


def _paragraph(text: str, indent: str = "") -> str:
    """Folded; what is indented already (an example, a table) is left as it is."""
    if text.startswith("  "):
        return text.rstrip("\n") + "\n"
    return textwrap.fill(
        text, COLUMNS - 1, initial_indent=indent, subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False,
    ) + "\n"  # fmt: skip


def answer(word: str, commands: Mapping[str, Command]) -> str:
    """What `migrate help WORD` says; "" for the screen. Raises UsageError for what nothing is known of."""
    main = commands[MAIN]
    options = [option for command in commands.values() for option in command.options]
    named = [option for option in options if word.lstrip("-") in [name.lstrip("-") for name in option.names]]
    if not word:
        return screen(main, commands)
    if word == "all":
        return "\n".join(map(command_text, commands.values()))
    if word == COMMANDS:
        return "\n".join(_line(each) for each in commands.values() if each is not main) + "\n"
    if word in topics.PROSE or word in by_topic(options):
        return topic_text(word, list(dict.fromkeys(options)))
    if word in commands and not word.startswith("-"):
        return command_text(commands[word])
    if named:
        return "\n".join(map(option_text, dict.fromkeys(named)))
    if word in catalogue.KINDS:
        return words.explanation(catalogue.KINDS[word], COLUMNS)
    if word.isascii() and word.isdigit():
        return _paragraph(topics.exit_code(int(word)))
    known = [
        COMMANDS,
        *topics.OPTIONS,
        *topics.PROSE,
        *commands,
        *(option.name.lstrip("-") for option in options),
        *catalogue.KINDS,
    ]
    near = difflib.get_close_matches(word.lstrip("-"), known, n=3, cutoff=0.5)
    raise errors.UsageError(
        f"there is no help on {word!r}",
        hint=f"is it {', '.join(near)}?" if near else "`migrate help` names the topics",
    )
