"""A plan of `migrate drain`, from text to moves, or every mistake in it with its line. Pure: looks at no host.

    target = ["db2", "db3"]       # for each move that names none: of several, the one with the most free memory
    parallel = 2

    [options]                     # of every move: those of the command line, without the dashes
    copy-files = true

    [[move]]
    name = "cache"
    pid = 4711                    # or pidfile, unit, process (a name) or user
    target = "db2"
    after = ["database"]
    together = true
    options = { max-downtime = 0.5 }

What an option may be is not said here a second time: it goes through the command line's own parser.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tomllib

from migrator import arguments, channel, drain_arguments, errors, option_types, words

LARGEST = 1 << 20
"""Bytes of a plan."""

SELECTORS = {"pid": int, "pidfile": str, "unit": str, "process": str, "user": str}
_MOVE = {**SELECTORS, "name": str, "target": (str, list), "after": list, "together": bool, "options": dict}
_TOP = {
    "target": (str, list), "parallel": int, "max-total-downtime": (int, float), "keep-going": bool,
    "options": dict, "move": list,
}  # fmt: skip
_TYPES = {int: "a number", str: "text", list: "a list", bool: "true or false", dict: "a table", float: "a number"}
_OF_THE_DRAIN = {"json", "quiet", "verbose", "help", "version", "attach", "log-file"}
"""Options that a move can't have: they are about what is shown and written, and where."""


@dataclasses.dataclass(frozen=True)
class Mistake:
    """What is wrong with a plan, and in which line; 0 where it has none."""

    line: int
    text: str


class BadPlan(Exception):
    """A plan with mistakes, all of them in `mistakes`, in the order of their lines."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(sorted(mistakes, key=lambda one: one.line))
        super().__init__(words.count(len(self.mistakes), "mistake"))


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which processes are meant."""

    by: str
    """One of SELECTORS."""
    value: str | int

    def __str__(self) -> str:
        return f"{self.by} {self.value}"


@dataclasses.dataclass(frozen=True)
class Move:
    """One entry of a plan: the processes that it selects, and how they go."""

    name: str
    selection: Selection
    targets: tuple[str, ...]
    after: tuple[str, ...] = ()
    together: bool = False
    """They go to one target, at the same time, and none before the preflight of each has passed."""
    options: tuple[str, ...] = ()
    """Words of a command line."""
    line: int = 0


@dataclasses.dataclass(frozen=True)
class Runbook:
    """A plan without mistakes."""

    moves: tuple[Move, ...]
    parallel: int = 0
    """0: not said."""
    max_total_downtime: float = 0.0
    """Seconds; 0: not said."""
    keep_going: bool = False


def parse(text: str) -> Runbook:
    """Read a plan. Raises BadPlan with every mistake that it has."""
    if len(text) > LARGEST:
        raise BadPlan([Mistake(0, f"longer than {LARGEST} bytes")])
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadPlan([_of_syntax(str(error))]) from None
    except RecursionError:
        raise BadPlan([Mistake(0, "nested too deeply")]) from None
    reader = _Reader(_Lines(text))
    runbook = reader.read(content)
    if reader.mistakes:
        raise BadPlan(reader.mistakes)
    return runbook


def options_of(move: Move, target: str, pid: int) -> argparse.Namespace:
    """What the command line would make of one process of a move. Raises UsageError."""
    return arguments.parse([*move.options, str(pid), target])


def _of_syntax(text: str) -> Mistake:
    where = re.search(r" \(at line (\d+), column \d+\)$", text)
    return (
        Mistake(int(where[1]), text[: where.start()])
        if where
        else Mistake(0, text.removesuffix(" (at end of document)"))
    )


class _Lines:
    """Where in the text a key stands. tomllib does not tell, so its lines are looked through for headers and keys."""

    _HEADER = re.compile(r"\s*\[\[?\s*([\w.\"' -]+?)\s*\]")
    _KEY = re.compile(r"\s*[\"']?([\w-]+)[\"']?(?:\s*\.\s*[\"']?([\w-]+)[\"']?)?\s*=")

    def __init__(self, text: str) -> None:
        self._found: dict[tuple[str | int, ...], int] = {}
        self._lines = text.splitlines()
        table: tuple[str | int, ...] = ()
        moves = -1
        for number, line in enumerate(self._lines, 1):
            if header := self._HEADER.match(line):
                words = tuple(word.strip().strip("\"'") for word in header[1].split("."))
                if words == ("move",):
                    moves += 1
                table = ("move", moves, *words[1:]) if words[0] == "move" else words
                self._found.setdefault(table, number)
            elif key := self._KEY.match(line):
                path = (*table, key[1])
                self._found.setdefault(path, number)
                if key[2]:
                    self._found.setdefault((*path, key[2]), number)

    def of(self, *path: str | int) -> int:
        """The line of a key, or of the nearest table around it."""
        while path and path not in self._found:
            path = path[:-1]
        return self._found.get(path, 0)


class _Reader:
    def __init__(self, lines: _Lines) -> None:
        self.mistakes: list[Mistake] = []
        self._lines = lines

    def read(self, content: Mapping[str, Any]) -> Runbook:
        known = self._known(content, _TOP, ())
        common = self._targets(known.get("target"), ("target",))
        shared = self._options(known.get("options", {}), ("options",))
        entries = known.get("move", [])
        if not entries:
            self._wrong("nothing is to be moved: it has no [[move]]")
        moves = [move for at, entry in enumerate(entries) if (move := self._move(at, entry, common, shared))]
        if len(moves) == len(entries):
            self._check_names(moves)
        parallel, most = known.get("parallel", 0), float(known.get("max-total-downtime", 0.0))
        if "parallel" in known and not 0 < parallel <= drain_arguments.MOST_AT_ONCE:
            self._wrong(f"parallel: {parallel} is not between 1 and {drain_arguments.MOST_AT_ONCE}", "parallel")
        if "max-total-downtime" in known and not 0 < most < float("inf"):
            self._wrong(f"max-total-downtime: {most} is no time in seconds", "max-total-downtime")
        return Runbook(tuple(moves), parallel, most, known.get("keep-going", False))

    def _wrong(self, text: str, *path: str | int) -> None:
        self.mistakes.append(Mistake(self._lines.of(*path), text))

    def _known(self, table: Mapping[str, Any], keys: Mapping[str, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
        """What of a table makes sense; the rest is a mistake."""
        kept = {}
        for key, value in table.items():
            if key not in keys:
                near = difflib.get_close_matches(key, keys, 1)
                self._wrong(f"{key!r} is not known{f': is it {near[0]}?' if near else ''}", *path, key)
            elif not _is(value, keys[key]):
                wanted = keys[key] if isinstance(keys[key], tuple) else (keys[key],)
                self._wrong(f"{key} has to be {' or '.join(dict.fromkeys(_TYPES[one] for one in wanted))}", *path, key)
            else:
                kept[key] = value
        return kept

    def _targets(self, value: Any, path: tuple[str | int, ...]) -> tuple[str, ...]:
        if value is None:
            return ()
        words = [value] if isinstance(value, str) else value
        if not words:
            self._wrong("target: the list is empty", *path)
        for word in words:
            if not isinstance(word, str):
                self._wrong("target: each has to be text", *path)
                return ()
            try:
                channel.parse_target(word)
            except errors.UsageError as error:
                self._wrong(f"target: {error.message}", *path)
        return tuple(dict.fromkeys(words))

    def _options(self, table: Mapping[str, Any], path: tuple[str | int, ...]) -> dict[str, tuple[str, ...]]:
        """Name -> words of a command line, which its parser has taken."""
        known = arguments.order_options()
        taken: dict[str, tuple[str, ...]] = {}
        for name, value in table.items():
            if name not in known or name in _OF_THE_DRAIN:
                near = difflib.get_close_matches(name, known.keys() - _OF_THE_DRAIN, 1)
                self._wrong(f"{name!r} is no option of a move{f': is it {near[0]}?' if near else ''}", *path, name)
                continue
            words = tuple(_words(name, value, flag=known[name]))
            try:
                if None in words:
                    wanted = "true or false" if known[name] else "a value, as on the command line"
                    raise errors.UsageError(f"--{name} takes {wanted}")
                arguments.parse_option(given := tuple(word for word in words if word is not None))
                taken[name] = given
            except errors.UsageError as error:
                self._wrong(error.message, *path, name)
        return taken

    def _move(self, at: int, entry: Any, common: tuple[str, ...], shared: Mapping[str, tuple[str, ...]]) -> Move | None:
        here: tuple[str | int, ...] = ("move", at)
        before = len(self.mistakes)
        if not isinstance(entry, dict):
            self._wrong("each move has to be a table: [[move]]", *here)
            return None
        known = self._known(entry, _MOVE, here)
        chosen = [by for by in SELECTORS if by in entry]
        if len(chosen) != 1:
            what = "several of them" if chosen else "none"
            self._wrong(f"a move has one of {', '.join(SELECTORS)}; this one has {what}", *here)
        selection = Selection(chosen[0], known.get(chosen[0], "")) if chosen else Selection("pid", 0)
        self._check_selection(selection, known, here)
        targets = self._targets(known.get("target"), (*here, "target")) if "target" in known else common
        if not targets and "target" not in entry:
            self._wrong("it has no target", *here)
        after = known.get("after", [])
        if not all(isinstance(one, str) for one in after):
            self._wrong("after: each has to be the name of a move", *here, "after")
        own = self._options(known.get("options", {}), (*here, "options"))
        options = tuple(word for words in {**shared, **own}.values() for word in words)
        name = known.get("name", str(selection))
        if not (name.isprintable() and 0 < len(name) <= 100):
            self._wrong("name: it is empty, too long, or has characters that are none", *here, "name")
        move = Move(
            name, selection, targets, tuple(map(str, after)), known.get("together", False), options,
            self._lines.of(*here),
        )  # fmt: skip
        if len(self.mistakes) == before:
            self._check_together(move, here)
        return move if len(self.mistakes) == before else None

    def _check_selection(self, selection: Selection, known: Mapping[str, Any], here: tuple[str | int, ...]) -> None:
        by, value = selection.by, selection.value
        if by not in known:
            return
        if by == "pid" and isinstance(value, int) and not 0 < value <= option_types.LARGEST_PID:
            self._wrong(f"pid: {value} is no process id", *here, by)
        if by == "pidfile" and not str(value).startswith("/"):
            self._wrong(f"pidfile: {value!r} is no absolute path", *here, by)
        if by != "pid" and (not str(value).strip() or "\0" in str(value)):
            self._wrong(f"{by}: it is empty", *here, by)

    def _check_together(self, move: Move, here: tuple[str | int, ...]) -> None:
        """Options that say nothing together, for the move as a whole."""
        for target in move.targets:
            try:
                options_of(move, target, 1)
            except errors.UsageError as error:
                self._wrong(error.message, *here, "options")
                return

    def _check_names(self, moves: list[Move]) -> None:
        seen: dict[str, int] = {}
        selected: dict[Selection, str] = {}
        for at, move in enumerate(moves):
            if move.name in seen:
                self._wrong(f"{move.name!r} is the name of the move in line {seen[move.name]} as well", "move", at)
            elif move.selection in selected:
                self._wrong(f"{move.selection} is moved by {selected[move.selection]!r} already", "move", at)
            seen.setdefault(move.name, move.line)
            selected.setdefault(move.selection, move.name)
        for at, move in enumerate(moves):
            for name in move.after:
                if name not in seen:
                    near = difflib.get_close_matches(name, seen, 1)
                    hint = f": is it {near[0]!r}?" if near else ""
                    self._wrong(f"after: there is no move {name!r}{hint}", "move", at, "after")
        for circle in circles(moves):
            at = next(at for at, move in enumerate(moves) if move.name == circle[0])
            self._wrong(f"after: in a circle: {' after '.join((*circle, circle[0]))}", "move", at, "after")


def circles(moves: Iterable[Move]) -> list[tuple[str, ...]]:
    """Moves that wait for each other, each circle once, in the order of `after`."""
    waits = {move.name: move.after for move in moves}
    found: dict[frozenset[str], tuple[str, ...]] = {}
    done: set[str] = set()
    for start in waits:
        path: list[str] = []
        stack: list[Iterator[str]] = [iter((start,))]
        while stack:
            name = next(stack[-1], None)
            if name is None:
                stack.pop()
                if path:
                    done.add(path.pop())
            elif name in path:
                circle = tuple(path[path.index(name) :])
                found.setdefault(frozenset(circle), circle)
            elif name in waits and name not in done:
                path.append(name)
                stack.append(iter(waits[name]))
    return list(found.values())


def _is(value: Any, wanted: Any) -> bool:
    kinds = wanted if isinstance(wanted, tuple) else (wanted,)
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _words(name: str, value: Any, *, flag: bool) -> Iterator[str | None]:
    """An option as words of a command line; None for a value that it can't have."""
    if isinstance(value, list) and not flag:
        for one in value:
            yield from _words(name, one, flag=flag)
    elif flag and isinstance(value, bool):
        if value:
            yield f"--{name}"
    elif isinstance(value, str) or (isinstance(value, (int, float)) and not flag and not isinstance(value, bool)):
        yield f"--{name}={value}"  # some that are flags alone may be given a word: --namespaces=auto
    else:
        yield None
