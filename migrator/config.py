"""The defaults that an admin has set: /etc/migrate.toml, then ~/.config/migrate.toml.

    compress = "zstd"                    # for every target
    [target."*.example.org"]             # a name, a pattern of names, or user@ before either
    sudo = true
    user = "ops"

Owns the files: where they are, whose they may be, what may stand in them, and which setting counts for a target. A key
is the name of an option of `migrate` without its dashes, and its value is checked as that option's is. Refuses to know
an option: what there is comes from the parser (`arguments`).

What counts: built-in, then /etc, then the user's file, then the command line. Within a file: what stands above all
tables, then targets by pattern, then by name, then those with user@; of two alike the later one. A name is taken as it
was written on the command line.

The user's file is that of the user whom `migrate` runs as. Under sudo that is root's, never the caller's, since a
setting names programs that are started (`rsh`, `criu`); for the same reason a file that others may write to is refused.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import fnmatch
import json
import os
import pwd
import re
import stat
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from migrator.channel import Target, parse_target
from migrator.errors import UsageError

SYSTEM = "/etc/migrate.toml"
NAME = "migrate.toml"
LARGEST = 256 * 1024
"""Bytes; a larger file is no configuration."""
BUILT_IN = "built-in"
USER = "user"
"""The one key that is no option: whom to log in as, where the command line names nobody."""
COMMAND_LINE_ONLY = frozenset({"help", "version", "quiet", "json", "attach", "detach", "no-config"})
"""Options that say what is wanted this once."""
TARGETS = ("host", "other")
"""Where the parsed options have the target; what is empty is known from a journal only."""
_TABLE = "target"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting: its value as it stands there, what an option of that value comes to, and where it is from."""

    raw: object
    value: Any
    where: str  # FILE:LINE, or BUILT_IN


@dataclasses.dataclass(frozen=True)
class Section:
    """What a file says of some targets; `pattern` is "" for all of them."""

    pattern: str
    settings: Mapping[str, Setting]

    def rank(self, target: Target | None) -> tuple[bool, ...] | None:
        """How closely it fits a target, the closest last; None: not at all."""
        user, at, host = self.pattern.rpartition("@")
        if not self.pattern:
            return (False,)
        if target is None or not fnmatch.fnmatchcase(target.host.lower(), host.lower()) or (at and user != target.user):
            return None
        return (True, bool(at), not set(host) & set("*?["))


class Keys:
    """What may be set, from the parser of `migrate`."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._actions: dict[str, list[argparse.Action]] = {}
        for action in parser._actions:
            for name in action.option_strings:
                key = name.partition("=")[0].removeprefix("--")
                if name.startswith("--") and key not in COMMAND_LINE_ONLY and action.help != argparse.SUPPRESS:
                    self._actions.setdefault(key, []).append(action)

    def __iter__(self) -> Iterator[str]:
        """Every key that is an option, in the parser's order."""
        return iter(self._actions)

    def destination(self, key: str) -> str:
        """The name that the option's value has among the parsed ones."""
        return self._actions[key][0].dest

    def built_in(self, key: str) -> Setting:
        """What counts where nobody says anything."""
        default = self._actions[key][0].default
        return Setting(default, default, BUILT_IN)

    def value(self, key: str, raw: object) -> Any:
        """What an option of this value comes to. Raises ValueError for one that makes no sense."""
        if key == USER:
            return _text(raw, "a user's name")
        first, *others = self._actions[key]
        kind = type(raw)
        if kind is type(first.default) is bool or (kind in (str, int, float) and raw == first.default):
            return raw
        if isinstance(first.default, bool):
            raise ValueError(f"{_shown(raw)} is neither true nor false")
        if first.nargs == 0:  # an option without a value, which stands for a word
            return _one_of(raw, [str(action.const) for action in (first, *others)] + [str(first.default)])
        if isinstance(first.default, list):
            if kind is not list:
                raise ValueError(f"{_shown(raw)} is no list: write [{_shown(raw)}]")
            return [_converted(first, _text(each, "a text")) for each in raw]  # type: ignore[attr-defined]
        if first.choices:
            return _one_of(raw, [str(choice) for choice in first.choices])
        if isinstance(first.default, (int, float)) and kind in (int, float):
            return _converted(first, str(raw))
        return _converted(first, _text(raw, "a text"))


def _converted(action: argparse.Action, text: str) -> Any:
    try:
        return action.type(text) if callable(action.type) else text
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None


def _text(raw: object, what: str) -> str:
    if not isinstance(raw, str) or not raw:
        raise ValueError(f"{_shown(raw)} is not {what}")
    return raw


def _one_of(raw: object, words: Sequence[str]) -> str:
    if raw not in words:
        raise ValueError(f"{_shown(raw)} is none of {', '.join(words)}")
    return str(raw)


def _shown(raw: object) -> str:
    return json.dumps(raw, default=str, ensure_ascii=False)


# --- the files -------------------------------------------------------------------------------------------------------


def files() -> tuple[str, ...]:
    """Where they are, what counts more last: the system's, and that of the user whom we run as."""
    uid, environment = os.geteuid(), os.environ
    if uid == 0:  # HOME may be that of whoever called sudo
        home, folder = pwd.getpwuid(0).pw_dir, ""
    else:
        home, folder = environment.get("HOME", ""), environment.get("XDG_CONFIG_HOME", "")
    folder = folder if os.path.isabs(folder) else os.path.join(home, ".config")
    return (SYSTEM, os.path.join(folder, NAME)) if os.path.isabs(folder) else (SYSTEM,)


def read(path: str, keys: Keys) -> tuple[Section, ...] | None:
    """What a file says; None where there is none. Raises UsageError, with file and line."""
    try:
        text = _content(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _wrong(path, error.strerror or str(error)) from error
    import tomllib  # late: most hosts have no such file

    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _wrong(path, f"this is no TOML: {error}") from error
    lines = _lines(text)
    tables = content.pop(_TABLE, {})
    if not isinstance(tables, dict):
        raise _wrong(_at(path, lines, (_TABLE,)), 'targets are tables: [target."db2"]')
    sections = [_section(path, lines, (), content, keys)]
    for pattern, table in tables.items():
        if not isinstance(table, dict):
            raise _wrong(_at(path, lines, (_TABLE, pattern)), f'a target is a table: [target."{pattern}"]')
        sections.append(_section(path, lines, (_TABLE, pattern), table, keys))
    return tuple(sections)


def _section(
    path: str, lines: Mapping[tuple[str, ...], int], table: tuple[str, ...], content: Mapping[str, object], keys: Keys
) -> Section:
    settings = {}
    for key, raw in content.items():
        where = _at(path, lines, (*table, key))
        if key not in (USER, *keys):
            near = difflib.get_close_matches(key, [USER, *keys], n=2, cutoff=0.5)
            hint = f"is it {' or '.join(near)}?" if near else "`migrate config` shows all settings"
            if isinstance(raw, dict) and table:
                hint = f'a name with dots needs quotes: [target."{table[1]}.{key}"]'
            raise _wrong(where, f"there is no setting {key!r}", hint)
        try:
            settings[key] = Setting(raw, keys.value(key, raw), where)
        except ValueError as error:
            raise _wrong(where, f"{key}: {error}") from None
    return Section(table[1] if table else "", settings)


def _wrong(where: str, what: str, hint: str = "--no-config goes without it") -> UsageError:
    return UsageError(f"{where}: {what}", hint=hint)


def _content(path: str) -> str:
    """The file's text. Raises OSError; UsageError for a file that must not be trusted."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
        os.close(descriptor)
        raise _wrong(path, "this is no configuration file")
    with open(descriptor, "rb") as file:
        if status.st_uid not in (0, os.geteuid()) or (path == SYSTEM and status.st_uid != 0):
            raise _wrong(
                path, "it belongs to another user, who could have migrate start any program", f"chown 0 {path}"
            )
        if status.st_mode & 0o022:
            raise _wrong(path, "others may write to it, and have migrate start any program", f"chmod go-w {path}")
        try:
            return file.read().decode()
        except UnicodeDecodeError as error:
            raise _wrong(path, f"this is no UTF-8: {error.reason}") from error


_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_LINE = rf"\s*(?:\[\s*(?P<table>{_DOTTED})\s*\]|(?P<key>{_DOTTED})\s*=)"


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """The line where each table and each key stands, as far as one can tell without a parser that says so."""
    import tomllib

    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(_LINE, line)
        if match is None:
            continue
        path = () if match["table"] else table
        with contextlib.suppress(tomllib.TOMLDecodeError):  # a line inside a longer text
            path += _path(tomllib.loads(f"{match['table'] or match['key']} = 0"))
        table = path if match["table"] else table
        found.setdefault(path, number)
    return found


def _path(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of what has one at each level."""
    ((key, value),) = content.items()
    return (key, *(_path(value) if isinstance(value, dict) else ()))


def _at(path: str, lines: Mapping[tuple[str, ...], int], key: tuple[str, ...]) -> str:
    """FILE:LINE of a key, or of the table that it is in."""
    while key and key not in lines:
        key = key[:-1]
    return f"{path}:{lines[key]}" if key else path


# --- what counts -----------------------------------------------------------------------------------------------------


class Configuration:
    """What all files say together."""

    def __init__(self, found: Mapping[str, Sequence[Section] | None]) -> None:
        self.files = {path: sections is not None for path, sections in found.items()}
        """Path -> whether it is there; what counts more last."""
        self._sections = [sections for sections in found.values() if sections]

    def in_force(self, target: Target | None) -> dict[str, Setting]:
        """What counts for this target, by key; None: where no target is known."""
        counts: dict[str, Setting] = {}
        for sections in self._sections:
            fitting = [(rank, section) for section in sections if (rank := section.rank(target)) is not None]
            for _, section in sorted(fitting, key=lambda each: each[0]):
                counts |= section.settings
        return counts

    def flag(self, key: str, target: Target) -> bool:
        """Whether this is true for a target."""
        setting = self.in_force(target).get(key)
        return setting is not None and bool(setting.value)


def load(keys: Keys) -> Configuration:
    """Read all files. Raises UsageError."""
    return Configuration({path: read(path, keys) for path in files()})


def fill_in(options: argparse.Namespace, said: Set[str], parser: argparse.ArgumentParser) -> None:
    """Set what was not `said` on the command line to what counts for its target. Raises UsageError.

    Where only a journal knows the target, `sudo` becomes a function of its name.

    `parser` is that of `migrate`, which has every setting.
    """
    if not any(os.path.lexists(path) for path in files()):
        return
    keys = Keys(parser)
    configuration = load(keys)
    settings = configuration.in_force(None)
    for name in TARGETS:
        if word := getattr(options, name, ""):
            target = parse_target(word)
            settings = configuration.in_force(target)
            if USER in settings and not target.user:
                setattr(options, name, str(dataclasses.replace(target, user=settings[USER].value)))
    if getattr(options, "other", None) == "" and "sudo" not in said:
        options.sudo = lambda name: configuration.flag("sudo", parse_target(name))
        said = {*said, "sudo"}
    for key in (key for key in keys if key in settings and keys.destination(key) not in said):
        if hasattr(options, keys.destination(key)):
            setattr(options, keys.destination(key), settings[key].value)


def in_force(host: str, parser: argparse.ArgumentParser) -> tuple[dict[str, bool], dict[str, Setting]]:
    """The files, and whether each is there; every setting for this target ("": for any). Raises UsageError."""
    keys = Keys(parser)
    configuration = load(keys)
    settings = configuration.in_force(parse_target(host) if host else None)
    return configuration.files, {key: keys.built_in(key) for key in keys} | settings
