"""`python3 agent.pyz serve|relay|pager|holder|terminal`: how the agent and its helpers are started on either host."""

from __future__ import annotations

import sys


def main() -> int:
    """Parse the arguments and serve, or carry one bulk stream."""
    from agent import secrecy

    secrecy.no_core_dumps()
    if sys.argv[1:2] == ["relay"] and len(sys.argv) in (4, 5):
        # a relay is started in every migration while somebody waits: it loads nothing that it does not need
        from agent import bulk

        return bulk.relay(*sys.argv[2:])

    if sys.argv[1:2] == ["pager"] and len(sys.argv) == 4:
        from pathlib import Path

        from agent import warden

        return warden.main(*map(Path, sys.argv[2:]))

    if sys.argv[1:2] == ["shell"] and len(sys.argv) > 4:
        from agent import rsync

        return rsync.remote_shell(int(sys.argv[2]), sys.argv[3:])

    if sys.argv[1:2] == ["confined"] and len(sys.argv) > 4:
        from agent import confined

        return confined.main(sys.argv[2], int(sys.argv[3]), sys.argv[4:])

    if sys.argv[1:2] == ["namespace"] and len(sys.argv) > 5:
        from pathlib import Path

        from agent import namespace

        return namespace.main(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])

    if sys.argv[1:2] == ["holder"] and len(sys.argv) > 5:
        from agent import holder

        return holder.main(*sys.argv[2:])

    if sys.argv[1:2] == ["terminal"] and len(sys.argv) == 3:
        from agent import viewer

        return viewer.main(sys.argv[2])

    import argparse
    import asyncio
    from pathlib import Path

    from agent import server, settings

    parser = argparse.ArgumentParser(prog="migrate-agent", description="One host's side of a migration.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="answer requests on standard input and output")
    serve.add_argument("--build", required=True, help="build id, which the other side must have too")
    serve.add_argument("--state", type=Path, help="directory of journals and logs")
    serve.add_argument("--run", type=Path, help="directory of images, sockets and locks")
    serve.add_argument("--criu", help="criu to drive")
    serve.add_argument("--rsync", help="rsync to drive")
    commands.add_parser("relay", help="SOCKET NAME [FORM]: carry one bulk stream between standard streams and a socket")
    commands.add_parser("pager", help="IMAGES JOURNAL: fill a restored tree's memory")
    commands.add_parser("shell", help="DESCRIPTOR HOST COMMAND...: rsync's remote shell, on a connected socket")
    commands.add_parser("confined", help="ROOM DESCRIPTOR COMMAND...: run rsync's server where it can write little")
    commands.add_parser("namespace", help="JOURNAL ROOT LAST COMMAND...: run criu in a PID namespace of its own")
    commands.add_parser("holder", help="SOCKET attach|detach PTYS COMMAND...: hold a restored tree's terminal")
    commands.add_parser("terminal", help="SOCKET: show a terminal that is held")
    arguments = parser.parse_args()
    if arguments.command != "serve":
        parser.error(f"{arguments.command} takes arguments of its own")
    chosen = {name: getattr(arguments, name) for name in ("state", "run", "criu", "rsync") if getattr(arguments, name)}
    asyncio.run(server.serve(settings.Settings(**chosen), arguments.build))
    return 0


if __name__ == "__main__":
    sys.exit(main())
