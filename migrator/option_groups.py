"""Options that several commands have: how the hosts are reached, and what is said.

Refuses to know a command.
"""

from __future__ import annotations

import argparse


def add_agents(parser: argparse.ArgumentParser) -> None:
    """How the tree resumes, and `add_reach`."""
    parser.add_argument(
        "--resume",
        choices=("instant", "eager"),
        default="instant",
        help="run before memory is filled in, or after (default: %(default)s)",
    )
    add_reach(parser)


def add_reach(parser: argparse.ArgumentParser) -> None:
    """How the other host is reached, and with which criu."""
    parser.add_argument("--sudo", action="store_true", help="become root on the other host with sudo -n")
    parser.add_argument("--criu", metavar="PATH", default="", help="the criu program on both hosts (default: by PATH)")


def add_output(parser: argparse.ArgumentParser) -> None:
    """What is said, and whether the configuration counts."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quiet", action="store_true", help="only the last line, and errors")
    how.add_argument("--json", action="store_true", help="one event a line; the last one is the report")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every criu command, and measurements")
    parser.add_argument(
        "--no-config", action="store_true", help="go without /etc/migrate.toml and ~/.config/migrate.toml"
    )


def add_log(parser: argparse.ArgumentParser) -> None:
    """Where a log of it is written besides."""
    parser.add_argument(
        "--log-file", metavar="FILE", default="", help="append a line for each phase, and one for the end, to this file"
    )
