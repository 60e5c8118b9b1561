"""`python3 agent.pyz serve|relay`: how the agent is started on either host."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Parse the arguments and serve, or carry one bulk stream."""
    parser = argparse.ArgumentParser(prog="migrate-agent", description="One host's side of a migration.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="answer requests on standard input and output")
    serve.add_argument("--build", required=True, help="build id, which the other side must have too")
    serve.add_argument("--state", type=Path, help="directory of journals and logs")
    serve.add_argument("--run", type=Path, help="directory of images, sockets and locks")
    serve.add_argument("--criu", help="criu to drive")
    relay = commands.add_parser("relay", help="carry one bulk stream between standard input and output and a socket")
    relay.add_argument("socket")
    relay.add_argument("name")
    arguments = parser.parse_args()
    if arguments.command == "relay":
        from agent import bulk  # a relay starts in few ms: it imports nothing that it does not need

        return bulk.relay(arguments.socket, arguments.name)

    import asyncio

    from agent import server, settings

    chosen = {name: getattr(arguments, name) for name in ("state", "run", "criu") if getattr(arguments, name)}
    asyncio.run(server.serve(settings.Settings(**chosen), arguments.build))
    return 0


if __name__ == "__main__":
    sys.exit(main())
