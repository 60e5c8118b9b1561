"""The rows: which moves each one takes, and what it makes of them.

Each measure is a generator, so that what was measured is shown and kept even when what follows fails. Sizes in MiB.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping

from tests.bench.moves import CIPHER, Bench, Move
from tests.bench.rows import Goal, Result, at_least, at_most, compared, growth, median, ratio

MIB = 1 << 20
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the processes are, and how often each move is made."""

    repeats: int
    usual: int
    flatness: tuple[int, ...]
    large: int  # for whatever is a rate, or is compared with the whole of memory
    source: tuple[int, int]
    pages_a_second: int  # of the flatness row, the same for all its sizes


FULL = {
    "netns": Sizes(3, 256, (256, 1024, 4096), 1024, (256, 4096), 655),
    "vm": Sizes(1, 256, (64, 256, 1024), 1024, (256, 1024), 655),
}
QUICK = {
    "netns": Sizes(1, 16, (16, 32), 32, (16, 32), 40),
    "vm": Sizes(1, 16, (16, 32), 32, (16, 32), 40),
}

Measure = Callable[[Bench, Sizes], Iterator[Result]]


class Unavailable(Exception):
    """This row can't be measured on this machine; the message says why."""


def by_hand(bench: Bench, sizes: Sizes) -> Iterator[Result]:
    """criu dump, rsync, criu restore."""
    yield _downtime("by hand", bench, sizes, bench.by_hand)


def haul(bench: Bench, sizes: Sizes) -> Iterator[Result]:
    """p.haul's way."""
    if not bench.tracks_memory:
        raise Unavailable("this machine's kernel has no soft-dirty, without which p.haul cannot pre-dump")
    yield _downtime("haul", bench, sizes, bench.haul)


def ours(bench: Bench, sizes: Sizes) -> Iterator[Result]:
    """`migrate` with its defaults."""
    yield _downtime("ours", bench, sizes, bench.ours)


def _downtime(row: str, bench: Bench, sizes: Sizes, move: Callable[[int], Move]) -> Result:
    seconds = []
    for _ in range(sizes.repeats):
        with bench.witness(sizes.usual) as pid:
            seconds.append(move(pid).downtime)
    return Result(row, median(seconds), "s", None, bench.backend, {"downtime": seconds})


def flatness(bench: Bench, sizes: Sizes) -> Iterator[Result]:
    """How much longer the largest process is away than the smallest. Where memory is not tracked all of it moves in
    the freeze, so there the restore alone is looked at: from its start to the witness's first line."""
    by_size: dict[str, list[float]] = {}
    for mib in sizes.flatness:
        seconds = by_size[_size(mib)] = []
        for _ in range(sizes.repeats):
            with bench.witness(mib, sizes.pages_a_second) as pid:
                move = bench.ours(pid)
                restoring = move.resumed_at - move.at["restore"]
                seconds.append(move.downtime if bench.backend == "vm" else restoring)
    yield Result("flatness", growth(by_size), "x", at_most(1.2), bench.backend, by_size)


def _size(mib: int) -> str:
    return f"{mib // 1024} GiB" if mib >= 1024 else f"{mib} MiB"


def stream(bench: Bench, sizes: Sizes) -> Iterator[Result]:
    """Memory that does not compress, against `ssh cat` with the same cipher."""
    yield _stream("stream", "random", at_least(0.9), bench, sizes)


def stream_compressible(bench: Bench, sizes: Sizes) -> Iterator[Result]:
    """The same with what a Python program has in its memory."""
    yield _stream("stream, compressible", "objects", at_least(1.5), bench, sizes)


def _stream(row: str, kind: str, goal: Goal, bench: Bench, sizes: Sizes) -> Result:
    """All in one freeze: from its start until all is in the target's tmpfs, so criu's own start counts as well."""
    rates: dict[str, list[float]] = {"criu, MiB/s": [], "ssh, MiB/s": []}
    for _ in range(sizes.repeats):
        rates["ssh, MiB/s"].append(_cat(bench, sizes.large))
        with bench.heap(kind, sizes.large) as pid:
            report, at = bench.migrate(pid, "--max-rounds", "0")
        rates["criu, MiB/s"].append(report["bytes"] / MIB / (at["restore"] - at["freeze"]))
    value = ratio(rates["criu, MiB/s"], rates["ssh, MiB/s"])
    return Result(row, value, "of ssh cat", goal, bench.backend, rates)


def _cat(bench: Bench, mib: int) -> float:
    """MiB/s of `ssh beta 'cat >FILE'` from tmpfs to tmpfs, without the time that it takes to connect."""
    file = "/dev/shm/stream"
    ssh = f"ssh -c {CIPHER} beta"
    timed = (
        f"head -c {mib}M /dev/urandom >{file}; a=$(date +%s%N); {ssh} true; b=$(date +%s%N); "
        f"{ssh} 'cat >{file}' <{file}; c=$(date +%s%N); rm {file}; {ssh} rm {file}; echo $((c - b - (b - a)))"
    )
    return mib / (int(bench.alpha.run(timed).out) / 1e9)


def fill(bench: Bench, sizes: Sizes) -> Iterator[Result]:
    """The pager, while the witness runs: how fast, and how long the slowest fault waited."""
    rates, faults = [], []
    for _ in range(sizes.repeats):
        with bench.witness(sizes.large) as pid:
            report = bench.ours(pid).report
        rates.append(report["bytes"] / GIB / report["fill_seconds"])
        faults.append(report["longest_fault_seconds"] * 1000)
    yield Result("fill", median(rates), "GiB/s", at_least(2), bench.backend, {"rate": rates})
    yield Result("fill", max(faults), "ms", at_most(20), bench.backend, {"slowest fault": faults})


def target_memory(bench: Bench, sizes: Sizes) -> Iterator[Result]:
    """Images, process and everything of ours on the target at their peak once it runs, over the process alone."""
    with bench.witness(sizes.large) as pid, bench.watched(bench.beta, "memory", str(pid)) as seen:
        move = bench.ours(pid)
    after = [sample for sample in seen[0] if sample[0] >= move.resumed_at]
    alone = after[-1][3]
    peak = max(after, key=lambda sample: sum(sample[1:]))
    parts = {"images, MiB": [peak[1] / MIB], "ours, MiB": [peak[2] / MIB], "process, MiB": [peak[3] / MIB]}
    yield Result("target memory", sum(peak[1:]) / alone, "x", at_most(1.15), bench.backend, parts)


def source_memory(bench: Bench, sizes: Sizes) -> Iterator[Result]:
    """What all of ours takes on the source at its peak, criu and ssh with it; idle, nothing of ours is there."""
    peaks = {}
    for mib in sizes.source:
        with bench.witness(mib) as pid, bench.watched(bench.alpha, "memory", str(pid)) as seen:
            bench.ours(pid)
        peaks[_size(mib)] = [max((images + others) / MIB for _, images, others, _ in seen[0])]
    values = [value for peak in peaks.values() for value in peak]
    yield Result("source memory", max(values), "MiB", at_most(64), bench.backend, peaks)
    yield Result("source memory", max(values) / min(values), "x", at_most(1.1), bench.backend, peaks)


def floor(bench: Bench, sizes: Sizes) -> Iterator[Result]:
    """A tiny process: plain dump and restore on one host, and our downtime between two."""
    seconds: dict[str, list[float]] = {"plain, s": [], "ours, s": []}
    for _ in range(2 * sizes.repeats - 1):
        with bench.tiny() as pid:
            seconds["plain, s"].append(bench.tiny_on_one_host(pid))
        with bench.tiny() as pid:
            seconds["ours, s"].append(bench.tiny_ours(pid))
    value = ratio(seconds["ours, s"], seconds["plain, s"])
    yield Result("floor", value, "of plain criu", at_most(2), bench.backend, seconds)


def own_share(bench: Bench, sizes: Sizes) -> Iterator[Result]:
    """The downtime of a tiny process without what criu's own logs say that it worked. Bytes on the wire that criu does
    not wait for (some 100 kB of images) are taken for ours: the figure is an upper bound."""
    shares: dict[str, list[float]] = {"ours, ms": [], "criu dump, ms": [], "criu restore, ms": []}
    for _ in range(2 * sizes.repeats - 1):
        with (
            bench.tiny() as pid,
            bench.watched(bench.alpha, "logs") as source,
            bench.watched(bench.beta, "logs") as target,
        ):
            downtime = bench.tiny_ours(pid)
        dump = criu_seconds(source[0]["dump.log"], "Seized task", "post-dump")
        restore = criu_seconds(target[0]["restore.log"], "", "post-restore")
        for name, value in zip(shares, (downtime - dump - restore, dump, restore)):
            shares[name].append(value * 1000)
    yield Result("own share", median(shares["ours, ms"]), "ms", at_most(30), bench.backend, shares)


PROCESSES, FILES = 10, 500


def check(bench: Bench, sizes: Sizes) -> Iterator[Result]:
    """`migrate check` of a tree of 10 processes that hold 500 files each, the same 500, without the time that `ssh`
    takes to connect; from the command's start to its end, as a whole."""
    seconds: dict[str, list[float]] = {"migrate check, s": [], "ssh true, s": []}
    with bench.holder(PROCESSES, FILES) as pid:
        for _ in range(2 * sizes.repeats - 1):
            for name, command in zip(seconds, (f"migrate check {pid} beta", "ssh beta true")):
                seconds[name].append(bench.seconds(command))
    over = [ours - ssh for ours, ssh in zip(*seconds.values())]
    yield Result("check", median(over), "s over ssh", at_most(0.5), bench.backend, seconds)


SERVER_MIB = 64
MORE_ANSWERS = 50
"""That are waited for after a move: a retransmission may come a little later than the server runs."""


def client(bench: Bench, sizes: Sizes) -> Iterator[Result]:
    """The longest wait for an answer of a client on a third host whose server moves with its address: the downtime, and
    what is left until the client's next retransmission (200 ms, 600 ms…)."""
    seconds: dict[str, list[float]] = {"client, s": [], "server, s": []}
    for _ in range(2 * sizes.repeats - 1):
        with bench.server(SERVER_MIB) as (pid, address, clients):
            before = len(clients.answers()) - 1
            report, _ = bench.migrate(pid, "--copy-files", "--move-address", address)
            clients.go_on(MORE_ANSWERS)
            seconds["client, s"].append(clients.pause(before))
            seconds["server, s"].append(report["downtime_seconds"])
    yield Result("client", max(seconds["client, s"]), "s", at_most(0.7), bench.backend, seconds)


_STAMP = re.compile(r"^\((\d+\.\d+)\) (.*)")
_END = re.compile("Dumping finished|Restore finished")


def criu_seconds(log: str, start: str, hook: str) -> float:
    """Seconds of criu's own work in a log: from the line with `start` to the hook, in which it waits for us, and from
    the hook to its end. Raises ValueError when a line is missing."""
    stamps = [(float(found.group(1)), found.group(2)) for line in log.splitlines() if (found := _STAMP.match(line))]
    first = next((stamp for stamp, words in stamps if start in words), None)
    at_hook = next((index for index, (_, words) in enumerate(stamps) if f"Running {hook} scripts" in words), None)
    last = next((stamp for stamp, words in stamps if _END.search(words)), None)
    if first is None or at_hook is None or last is None or at_hook + 2 >= len(stamps):
        raise ValueError(f"criu's log has no {start!r}, no {hook} or no end")
    # the line right behind names the script, before it runs
    return stamps[at_hook][0] - first + last - stamps[at_hook + 2][0]


MEASURES: Mapping[str, Measure] = {
    "by hand": by_hand,
    "haul": haul,
    "ours": ours,
    "flatness": flatness,
    "stream": stream,
    "stream, compressible": stream_compressible,
    "fill": fill,
    "target memory": target_memory,
    "source memory": source_memory,
    "floor": floor,
    "own share": own_share,
    "check": check,
    "client": client,
}


def judged(results: list[Result]) -> list[Result]:
    """The downtimes of one backend, with `ours` in parts of the others' behind it."""
    whole = {result.row: result for result in results if result.value is not None and result.unit == "s"}
    if "ours" not in whole:
        return results
    return [*results, *compared(whole["ours"], whole.get("by hand"), whole.get("haul"))]
