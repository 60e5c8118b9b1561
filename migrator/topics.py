"""The topics of `migrate help`: which options belong to each, and what there is to know beyond an option's own line.

Owns this wording. Refuses to describe an option: that stands in the parser (`arguments`), and what an obstacle means in
the catalogue. A paragraph that begins with two spaces is an example, and is shown as it stands.
"""

from __future__ import annotations

import dataclasses
import textwrap

from migrator import errors

MORE = "more"
"""Where an option is that belongs to no topic."""


@dataclasses.dataclass(frozen=True)
class Topic:
    """What a topic is called at length, its options, its paragraphs."""

    title: str
    options: tuple[str, ...] = ()
    paragraphs: tuple[str, ...] = ()


OPTIONS = {
    "downtime": Topic(
        "how long the process stands still",
        ("--max-downtime", "--max-rounds", "--on-no-converge", "--require-precopy", "--resume"),
        (
            "Memory is sent in rounds while the process runs; each round after the first sends what was written during "
            "the one before (dirty pages). After each, the downtime of a freeze is predicted. The process is frozen "
            "when that is within --max-downtime, or when more rounds gain nothing.",
            "The process runs on the target before its memory is there: it is filled in behind it. With --resume eager "
            "all memory is read first, and the downtime grows with it.",
            "A kernel that does not track dirty pages has no pre-copy: everything moves in the freeze, and that is "
            "said. --require-precopy makes it an obstacle. `migrate rehearse` measures the pause, no more.",
        ),
    ),
    "files": Topic(
        "files that the process uses",
        ("--copy-files", "--overwrite-files", "--verify"),
        (
            "Programs, libraries and files that the process uses must be on the target, at the same paths, and be the "
            "same. With --copy-files those that it writes, and those that are missing there, come along: whole while "
            "it runs, then what changed, in the freeze only the rest. Nothing is in its place before the freeze, and a "
            "failure leaves the target as it was.",
            "A file that is there and differs is an obstacle, but for --overwrite-files. Programs and libraries are "
            "never overwritten. Both hosts need rsync.",
        ),
    ),
    "process": Topic(
        "its unit, its PIDs and its terminal",
        ("--unit", "--namespaces", "--namespaces=auto", "--attach", "--detach"),
        (
            "A tree keeps its PIDs. Where one is taken on the target, -n restores the tree into a PID namespace of its "
            "own; --namespaces=auto does so only if it has to.",
            "A process that somebody types to (a shell, an editor) leaves its terminal behind. --attach makes the "
            "terminal that migrate runs in its new one; --detach has one held on the target, and prints the command "
            "that shows it.",
        ),
    ),
    "transport": Topic(
        "how memory travels",
        ("--transport", "--compress", "--bandwidth", "--rsh", "--images-dir", "--shared"),
        (
            "SSH is the only connection, and nothing listens on a TCP port. By default pages stream from criu to criu; "
            "--transport rsync sends each round as a directory of images instead, over your own ssh. --shared writes "
            "the images to a directory that both hosts see, and sends nothing.",
            "--bandwidth holds back what is sent while the process runs; the freeze goes as fast as the link is.",
        ),
    ),
    "connections": Topic(
        "its clients, and the address that they know",
        ("--move-address", "--tcp"),
        (
            "A TCP connection belongs to an address. --move-address takes an address of the source along, within the "
            "commit, and the connections on it: a client sees a pause, and no error. Any other connection is refused, "
            "and named; --tcp close closes them all.",
            "The address is not written into a configuration: do that as for any other.",
        ),
    ),
    "hosts": Topic(
        "what is needed on both hosts",
        ("--sudo", "--criu", "--criu-option", "--lease", "--durable", "--keep-images", "--target", "--source"),
        (
            "Both hosts need criu and root; the target needs sshd and python3 (3.9 or newer), no more: migrate sends "
            "its agent over. Who is not root here becomes it with `sudo -n`; --sudo does the same on the target.",
            "SSH works as ssh(1) does: ~/.ssh/config, known_hosts, the agent. An unknown host key is an error, never a "
            "question.",
        ),
    ),
    "output": Topic(
        "what is said, and where",
        (
            "--quiet",
            "--json",
            "--verbose",
            "--log-file",
            "--no-config",
            "--leftovers",
            "--compare",
            "--plot",
            "--version",
        ),
        (
            "Bars on a terminal, a line for each finished step in a pipe. Errors and warnings go to standard error. "
            "With --json standard output has one JSON object a line; the last one is the report.",
        ),
    ),
}
"""Topics that have options, in the order in which --help names them. Options of no topic are under "more"."""


INTERRUPTED = "stopped by signal N before COMMIT; undone"


def _exit_codes() -> dict[int, str]:
    """What each exit code means, from the classes themselves."""
    found = {
        errors.EXIT_MIGRATED: "migrated, or whatever was asked for",
        errors.EXIT_LEFTOVERS: "migrated; leftovers remain, and are named",
        errors.MigrateError.exit_code: "a bug, with its traceback",
    }
    left = errors.MigrateError.__subclasses__()
    while left:
        error = left.pop()
        left += error.__subclasses__()
        if "exit_code" in vars(error):
            meaning = (error.__doc__ or "").splitlines()[0].rstrip(".").split("; ")[0]
            found[error.exit_code] = meaning[:1].lower() + meaning[1:]
    return dict(sorted(found.items()))


def exit_code(code: int) -> str:
    """What an exit code means, and where the process is. Raises UsageError for one that migrate does not have."""
    if code > 128:
        return f"{code}: {INTERRUPTED.replace('N', str(code - 128))}"
    if code not in _exit_codes():
        raise errors.UsageError(f"there is no exit code {code}", hint="`migrate help exit-status` lists them")
    return f"{code}: {_exit_codes()[code]}"


def _exit_status() -> tuple[str, ...]:
    lines = [
        textwrap.fill(text, 78, initial_indent=f"  {code:<6} ", subsequent_indent=" " * 9)
        for code, text in _exit_codes().items()
    ]
    return (
        "The exit status says where the process is. Up to 49, but for 0, 1 and 3, and from 128 on, it runs on the "
        "source: untouched, or everything was undone.",
        "\n".join([*lines, f"  128+N  {INTERRUPTED}"]),
        "After 70 and 71 run `migrate recover ID`.",
    )


PROSE = {
    "exit-status": Topic("what the exit status says", (), _exit_status()),
    "recovery": Topic(
        "a migration that was cut off",
        (),
        (
            "A failure at any instant leaves exactly one copy of the process, never none, never two. There is one "
            "decision: the COMMIT record in the source's journal. Without it everything is undone, with it everything "
            "goes forward.",
            "  migrate recover ID",
            "reads the journals of both hosts and does the one thing that follows from them. It can be run again and "
            "again. Run it on either host. The journals lie in /var/lib/migrate/ID/journal on both hosts, criu's logs "
            "beside them; images, while there are any, in /run/migrate/ID.",
            "A target that loses power with the only copy, in memory, has lost it (exit 74); --durable has that copy "
            "on its disk. Where the source is gone for good, --source-is-dead on the target lets the process run "
            "there; where the target rebooted in the midst of resuming, --restore-anyway does. Both say what they "
            "risk, and want the migration's id typed.",
            "Never end a criu with a signal while it dumps: it can take the process with it.",
        ),
    ),
    "configuration": Topic(
        "defaults of your own",
        (),
        (
            "/etc/migrate.toml, then ~/.config/migrate.toml, say what counts where the command line says nothing. A "
            "key is an option of migrate without its dashes; user is whom to log in as. What is true there is taken "
            "back by --no-NAME.",
            '  compress = "zstd"\n\n  [target."*.example.org"]\n  user = "ops"\n  sudo = true\n  bandwidth = "50M"',
            "A target is meant by its name as it is written on the command line, by a pattern (* ? []), or by user@ "
            "and either; what fits more closely counts more. The user's file is that of the user whom migrate runs as: "
            "under sudo root's, never the caller's. A file that others may write to is refused. `migrate config HOST` "
            "shows what is in force, and where each setting comes from.",
        ),
    ),
    "signals": Topic(
        "Ctrl-C, and a lost terminal",
        (),
        (
            "INT, TERM and HUP before COMMIT undo everything and leave the process running on the source; the exit "
            "status is then 128 and the signal's number. From COMMIT on the migration finishes, and says so. Ctrl-Z is "
            "refused: a stopped migrate would hold a frozen process.",
        ),
    ),
}
"""Topics without options."""


def paragraphs(name: str) -> tuple[str, ...]:
    """What there is to say of a topic."""
    topic = OPTIONS.get(name) or PROSE.get(name)
    return topic.paragraphs if topic else ()


def title(name: str) -> str:
    """A topic's name at length."""
    topic = OPTIONS.get(name) or PROSE.get(name)
    return topic.title if topic else "more options"
