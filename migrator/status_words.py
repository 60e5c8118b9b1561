"""What `migrate status` says: for people, and for scripts as events.

Events, one a line, each with `event` and `at` (see `output`):

- of a list, a `migration` each: `host`, `id`, `role`, `peer`, `pid`, `records`, `began`, `changed` (ISO 8601, local),
  `finished`, `at_work`, `follows`; then `status`: `unfinished`, `unreachable` (a message, or "").
- of one migration, a `story` a host: `host` and the fields of `protocol.Story`, with `lines` as objects and ISO times;
  then `status`: `id`, `follows`, `unreachable`.
- of `--leftovers`, a `leftover` each: `host` and the fields of `protocol.Remain`; then `leftovers` a host: `host`,
  `left`, `in_use` (how many).
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import shlex
from collections.abc import Iterable

from agent import protocol
from migrator.status import HostRemains, Listing, Listings, Told
from migrator.words import bytes_text, count, escape

Events = list[tuple[str, dict[str, object]]]
_DEEPEST = 20
"""Levels of what stands in a line of a journal; what agents write has three."""


def iso(seconds: float) -> str:
    """A time since the epoch as people and scripts read it; "" for one that is not known, or is none."""
    if not seconds:
        return ""
    try:
        return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds")
    except (OverflowError, OSError, ValueError):  # another host says so
        return ""


def _fields(line: protocol.Line) -> dict[str, object]:
    """What a line says besides its name and time; what is no object says nothing."""
    try:
        value = json.loads(line.facts, parse_float=_number, parse_constant=_number)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) and _is_shallow(value, _DEEPEST) else {}


def _number(word: str) -> float:
    """Raises ValueError for one that JSON does not have."""
    if not math.isfinite(value := float(word)):
        raise ValueError(f"{word} is no number")
    return value


def _is_shallow(value: object, most: int) -> bool:
    """Whether it is nested no deeper, so that whoever goes through it comes to an end."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most > 0 and all(_is_shallow(one, most - 1) for one in inner)


# --- lists -----------------------------------------------------------------------------------------------------------


def list_text(found: Listings) -> str:
    """Those that are not finished with the command that follows, then the newest others in a line each."""
    text = "".join(_host_text(listing) for listing in found.hosts)
    if found.failure is not None:
        text += f"the other host could not be asked: {escape(found.failure.message)}\n"
    return text


def _host_text(listing: Listing) -> str:
    host = escape(listing.host)
    if not listing.unfinished:
        text = f"{host}: no migration is unfinished\n"
    else:
        text = f"{host}: {count(len(listing.unfinished), 'migration')} unfinished\n"
        for one in listing.unfinished:
            last = escape(one.records[-1]) if one.records else "?"
            doing = "at work" if one.at_work else "nobody is at work on it"
            text += f"  {escape(one.migration)}  {_way(one)}  {last} since {iso(one.changed)}  {doing}\n"
            text += f"    {escape(_follows(one))}\n"
    for one in listing.finished:
        text += f"  {escape(one.migration)}  {_way(one)}  {_end(one)} {iso(one.changed)}\n"
    return text


def _way(one: protocol.Listed) -> str:
    return f"pid {one.root} {'to' if one.role == 'source' else 'from'} {escape(one.peer)}"


def _end(one: protocol.Listed) -> str:
    return "undone" if "ABORT" in one.records else "migrated"


def _follows(one: protocol.Listed) -> str:
    name = shlex.quote(one.migration)  # the other host says what it is called, and somebody pastes this
    if not one.at_work:
        return f"migrate recover {name}"
    forward = {"COMMIT", "RESUMING"} & set(one.records)
    return f"migrate status {name}" if forward else f"migrate abort {name}"


def list_events(found: Listings) -> Events:
    """The same for scripts."""
    events: Events = []
    for listing in found.hosts:
        for one in (*listing.unfinished, *listing.finished):
            finished = one in listing.finished
            events.append(
                (
                    "migration",
                    {
                        "host": listing.host, "id": one.migration, "role": one.role, "peer": one.peer, "pid": one.root,
                        "records": one.records, "began": iso(one.began), "changed": iso(one.changed),
                        "finished": finished, "at_work": one.at_work, "follows": "" if finished else _follows(one),
                    },
                )
            )  # fmt: skip
    unfinished = sum(len(listing.unfinished) for listing in found.hosts)
    events.append(("status", {"unfinished": unfinished, "unreachable": _unreachable(found.failure)}))
    return events


def _unreachable(failure: Exception | None) -> str:
    return str(failure) if failure is not None else ""


# --- one migration ---------------------------------------------------------------------------------------------------


def story_text(found: Told) -> str:
    """All that both hosts tell of it."""
    text = f"migration {found.migration}\n"
    for host, story in found.stories:
        text += _story(host, story, host == found.here)
    if found.failure is not None:
        text += f"{escape(found.other) or 'the other host'}: could not be asked: {escape(found.failure.message)}\n"
    elif len(found.stories) == 1:
        text += f"{escape(found.other) or 'the other host'}: knows nothing of it\n"
    follows = found.follows
    return text + (f"what follows: {escape(follows)}\n" if follows else "nothing is to be done\n")


def _story(host: str, story: protocol.Story, here: bool) -> str:
    state = story.state
    text = f"{escape(host)}: the {escape(state.role)}{', this host' if here else ''}, pid {state.root}\n"
    for line in story.lines:
        text += f"  {iso(line.time):<29}  {escape(line.record):<9} {_facts(line)}".rstrip() + "\n"
    if not state.same_boot:
        text += "  the host has rebooted since it began\n"
    if story.held:
        text += "  held: the process does not run here\n"
    for kind, living in _by_kind(story.living):
        text += (
            f"  {escape(kind)}: {', '.join(f'{one.pid} ({escape(one.name)}, {escape(one.state)})' for one in living)}\n"
        )
    if story.images:
        text += f"  images: {escape(story.images)}, {bytes_text(story.image_bytes)}\n"
    for label, paths in (("locks", story.locks), ("placed", story.placed), ("beside", story.beside)):
        if paths:
            text += f"  {label}: {', '.join(map(escape, paths))}\n"
    return text + f"  journal: {escape(story.journal)}\n"


def _facts(line: protocol.Line) -> str:
    """What a line says besides its name, where that is short: PIDs, a reason, a number."""
    return " ".join(f"{name}={escape(str(value))}" for name, value in _fields(line).items() if name in _SHOWN)


_SHOWN = ("what", "pid", "reason", "number", "root")


def _by_kind(living: Iterable[protocol.Living]) -> list[tuple[str, list[protocol.Living]]]:
    kinds: dict[str, list[protocol.Living]] = {}
    for one in living:
        kinds.setdefault(one.kind, []).append(one)
    return list(kinds.items())


def story_events(found: Told) -> Events:
    """The same for scripts."""
    events: Events = []
    for host, story in found.stories:
        fields: dict[str, object] = {"host": host, **dataclasses.asdict(story)}
        fields["lines"] = [{**_fields(line), "record": line.record, "time": iso(line.time)} for line in story.lines]
        events.append(("story", fields))
    last: dict[str, object] = {
        "id": found.migration,
        "follows": found.follows,
        "unreachable": _unreachable(found.failure),
    }
    return [*events, ("status", last)]


# --- leftovers -------------------------------------------------------------------------------------------------------


def remains_text(found: HostRemains) -> str:
    """What is left over, by migration, with the command that removes it; then how much is in use."""
    host, used = escape(found.host), len(found.items) - found.left
    in_use = f", {used} in use" if used else ""
    text = f"{host}: {found.left} left over{in_use}\n" if found.left else f"{host}: nothing is left over{in_use}\n"
    groups: dict[tuple[str, str], list[protocol.Remain]] = {}
    for item in found.items:
        if not item.in_use:
            shared = item.remove if item.remove.startswith("migrate ") else ""
            groups.setdefault((item.migration, shared), []).append(item)
    for (migration, shared), items in groups.items():
        text += f"  of {'migration ' + escape(migration) if migration else 'a migration that is not known'}"
        text += f": {escape(shared)}\n" if shared else "\n"
        for item in items:
            size = f" {bytes_text(item.size)}" if item.size else ""
            text += f"    {escape(item.kind):<8} {escape(item.what)}  {escape(item.detail)}{size}".rstrip() + "\n"
            text += f"             {escape(item.remove)}\n" if item.remove and not shared else ""
    return text


def remains_events(found: HostRemains) -> Events:
    """The same for scripts."""
    events: Events = [("leftover", {"host": found.host, **dataclasses.asdict(item)}) for item in found.items]
    return [*events, ("leftovers", {"host": found.host, "left": found.left, "in_use": len(found.items) - found.left})]
