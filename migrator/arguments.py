"""The words of the command line, and what is wrong with them.

Owns every option, its default and its help. Refuses to do anything: `cli` does, with what comes out here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from agent.protocol import LEASE, VERSION
from migrator import (
    answers,
    config,
    drain_arguments,
    errors,
    ice_arguments,
    operator_arguments,
    option_types,
    precopy,
    terminals,
)
from migrator.option_groups import add_agents, add_log, add_output
from migrator.parsing import HOST, Parser, add_opposites, given

if TYPE_CHECKING:
    from migrator import manual

EPILOG = "exit status: 0, 3: moved; 1, 70-72: `migrate recover`; any other: not moved"


def parse(argv: list[str]) -> argparse.Namespace:
    """The options, with `command` set. Raises errors.UsageError; exits 0 by itself for --help and --version.

    What the command line does not say, the configuration may (`config`).
    """
    first = argv[0] if argv else ""
    if first == "help" and len(argv) == 2 and argv[1] not in ("-h", "--help"):
        argv = [first, "--", argv[1]]  # an option may be asked about
    known = first in _SUBCOMMANDS
    parser, words = (_SUBCOMMANDS[first](), argv[1:]) if known else (_migrate_parser(), argv)
    add_opposites(parser, config.COMMAND_LINE_ONLY)
    options = parser.parse_args(words, argparse.Namespace(command=first if known else "migrate"))
    operator_arguments.fit_together(options)
    said = set(vars(options))
    if not getattr(options, "no_config", True):
        said = given(parser, words)
        config.fill_in(options, said, _migrate_parser())
    _fit_together(options, said)
    return options


def order_options() -> dict[str, bool]:
    """The long options of a migration, without their dashes, and whether one is a flag, which has no value."""
    return {
        word.removeprefix("--"): action.nargs == 0
        for action in _migrate_parser()._actions
        for word in action.option_strings
        if word.startswith("--") and "=" not in word
    }


def parse_option(words: Sequence[str]) -> None:
    """See whether the command line of a migration takes these words alone. Raises errors.UsageError."""
    _migrate_parser().parse_args([*words, "1", "host"])


def in_force(host: str) -> tuple[dict[str, bool], dict[str, config.Setting]]:
    """Configuration files and whether each is there; all settings for this target ("": for any). Raises UsageError."""
    return config.in_force(host, _migrate_parser())


def commands() -> dict[str, manual.Command]:
    """Every command with what it understands; the first one is `migrate` itself."""
    from migrator import manual

    parsers = {manual.MAIN: _migrate_parser, **_SUBCOMMANDS}
    return {name: manual.read(name, make()) for name, make in parsers.items()}


def _fit_together(options: argparse.Namespace, said: set[str]) -> None:
    """Raises UsageError for options that say nothing together; what is configured gives way to what is `said`."""
    if not hasattr(options, "transport"):
        return
    if options.shared and "shared" not in said and said & {"transport", "rsh", "images_dir"}:
        options.shared = ""
    for name in ("rsh", "images_dir"):
        if name not in said and (options.transport != "rsync" or options.shared):
            setattr(options, name, "")
    if "overwrite_files" not in said:
        options.overwrite_files = options.overwrite_files and options.copy_files
    if options.terminal == terminals.ATTACH and options.json:
        raise errors.UsageError("--attach shows a terminal, --json events: --detach goes with it")
    if wrong := contradiction(options):
        raise errors.UsageError(wrong)


def contradiction(options: Any) -> str:
    """What is wrong with these options together (of the command line, or `api.Options`), in words; "" if nothing is."""
    if options.overwrite_files and not options.copy_files:
        return "--overwrite-files is for --copy-files"
    for name in ("rsh", "images_dir"):
        if getattr(options, name) and options.transport != "rsync":
            return f"--{name.replace('_', '-')} is for --transport rsync"
    if options.shared and (options.images_dir or options.rsh):
        return "with --shared nothing is sent: leave --images-dir and --rsh"
    if options.shared and options.keep_images:
        return "with --shared the images go with the source's: leave --keep-images"
    if options.move_address and options.keep_images:
        return "connections that move with an address can't come back later: leave --keep-images"
    return ""


def _migrate_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate",
        description="Move a running process tree to another host, with memory, open files and PIDs.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"migrate {VERSION}")
    _add_order(parser)
    _add_rounds(parser)
    return parser


def _rehearse_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate rehearse",
        description="Go through a migration up to the tree held on the target, then undo it: the process is paused for "
        "that long, and no more. Says how long it was, how much travelled, and what only a real dump and restore find.",
        epilog="exit status: 0 it would have gone well; else as for a migration that failed.",
    )
    _add_order(parser)
    _add_rounds(parser)
    return parser


def _add_rounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-downtime",
        metavar="SECONDS",
        type=option_types.seconds,
        default=precopy.Limits.max_downtime,
        help="freeze when the predicted downtime is at most this (default: %(default)s)",
    )
    parser.add_argument(
        "--max-rounds",
        metavar="N",
        type=option_types.count,
        default=precopy.Limits.max_rounds,
        help="pre-copy rounds at most; 0 moves everything in the freeze (default: %(default)s)",
    )
    parser.add_argument(
        "--bandwidth",
        metavar="RATE",
        type=option_types.rate,
        default=0.0,
        help="bytes a second on the wire at most, until the freeze: 20M, 1.5G (1024s), 20MB (1000s), as rsync has them",
    )
    parser.add_argument(
        "--lease",
        metavar="SECONDS",
        type=option_types.lease,
        default=LEASE,
        help="hold the process on the target for so long when contact is lost after it stands there; then only its "
        "images are kept there, for `migrate recover`; 0: at once (default: %(default)g)",
    )


def _check_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate check",
        description="Say everything that stands in the way of a move; change nothing.",
    )
    _add_order(parser)
    limits = precopy.Limits()
    parser.set_defaults(
        bandwidth=0.0,
        lease=LEASE,
        max_downtime=limits.max_downtime,
        max_rounds=limits.max_rounds,
    )
    return parser


_SUBCOMMANDS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "check": _check_parser,
    "rehearse": _rehearse_parser,
    **operator_arguments.PARSERS,
    **ice_arguments.PARSERS,
    **drain_arguments.PARSERS,
    **answers.PARSERS,
}


def _add_order(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pid", metavar="PID", type=option_types.pid, help="root of the process tree on this host")
    parser.add_argument("host", metavar=HOST, help="where to; ~/.ssh/config applies")
    parser.add_argument(
        "--copy-files",
        action="store_true",
        help="copy regular files that the tree writes to, or that are missing on the target",
    )
    parser.add_argument(
        "--overwrite-files",
        action="store_true",
        help="with --copy-files: also those that differ on the target; what was there is put back if the move fails",
    )
    parser.add_argument(
        "-n",
        "--namespaces",
        dest="namespaces",
        action="store_const",
        const="always",
        default="never",
        help="restore into a PID namespace of its own on the target: for PIDs that are taken there",
    )
    # found as it stands before a word is parted at its =: with an optional value -n would swallow the PID behind it
    parser.add_argument(
        "--namespaces=auto",
        dest="namespaces",
        action="store_const",
        const="auto",
        help="the same, if preflight finds that a PID is taken there",
    )
    parser.add_argument(
        "--verify",
        choices=("size", "hash"),
        default="size",
        help="how files that should be the same on both hosts are compared: by size (and build id), or by content "
        "where the size agrees and the time differs (default: %(default)s)",
    )
    parser.add_argument(
        "--require-precopy", action="store_true", help="refuse where the source cannot track dirty memory"
    )
    parser.add_argument(
        "--on-no-converge",
        choices=[each.value for each in precopy.OnNoConverge],
        default=precopy.Limits.on_no_converge.value,
        help="where the predicted downtime stays above the limit: move it all the same, leave it where it is, "
        "or slow it down first (default: %(default)s)",
    )
    parser.add_argument(
        "--compress",
        choices=("auto", "zstd", "none"),
        default="auto",
        help="compress what travels: where it pays, always, or never (default: %(default)s)",
    )
    parser.add_argument(
        "--transport",
        choices=("stream", "rsync"),
        default="stream",
        help="pages from criu to criu, or image directories by rsync, over your own ssh (default: %(default)s)",
    )
    parser.add_argument("--rsh", metavar="COMMAND", default="", help="with --transport rsync: its remote shell")
    parser.add_argument(
        "--images-dir",
        metavar="PATH",
        type=option_types.directory,
        default="",
        help="with --transport rsync: where the image directories lie here",
    )
    parser.add_argument(
        "--shared",
        metavar="PATH",
        type=option_types.directory,
        default="",
        help="a directory that both hosts see, as on NFS: the images are written there, and nothing is sent",
    )
    parser.add_argument(
        "--durable",
        action="store_true",
        help="have all that a restore needs on the target's disk before the process is ended here, so that it outlives "
        "a power cut there; costs time, also in the freeze",
    )
    parser.add_argument(
        "--keep-images",
        metavar="DIR",
        type=option_types.directory,
        default="",
        help="keep the images in this directory of the target, on ice: `migrate restore DIR` there brings the process "
        "back as it was, once it has ended",
    )
    parser.add_argument(
        "--criu-option",
        metavar="OPT",
        type=option_types.criu_option,
        action="append",
        default=[],
        help="NAME or NAME=VALUE, an option of criu's, for both hosts (dump:OPT and restore:OPT: for one of them); not "
        "what would break the commit; may be given again",
    )
    parser.add_argument(
        "--move-address",
        metavar="ADDR",
        type=option_types.moving_address,
        action="append",
        default=[],
        help="ADDR[/LEN][@IFACE[:DSTIFACE]], an address of this host that moves along, with the TCP connections on it; "
        "there on DSTIFACE, or where the same subnet is; auto: those that its sockets are bound to, without the host's "
        "own; may be given again",
    )
    parser.add_argument(
        "--tcp",
        choices=("fail", "close"),
        default="fail",
        help="TCP connections that do not move along with an address: refuse, or close every one of the tree's "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--unit",
        action="store_true",
        help="move its systemd unit: here that ends as if it were stopped, there the process runs in a scope "
        "migrated-NAME.scope with the unit's limits",
    )
    terminal = parser.add_mutually_exclusive_group()
    terminal.add_argument(
        "--attach",
        dest="terminal",
        action="store_const",
        const=terminals.ATTACH,
        default="",
        help="the process's terminal becomes this one, over the SSH session; at the session's end it gets SIGHUP",
    )
    terminal.add_argument(
        "--detach",
        dest="terminal",
        action="store_const",
        const=terminals.DETACH,
        help="its terminal becomes one that is held on the target; the command that shows it is printed",
    )
    add_agents(parser)
    add_output(parser)
    add_log(parser)
