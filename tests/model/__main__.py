"""`python -m tests.model`: explore more than every run of the tests does. Two faults beside a second `recover` take
minutes and gigabytes. Says what a migration comes to, in how many worlds, or the way to what breaks an invariant."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable

from tests.model import explore
from tests.model.world import World

STARTS: dict[str, Callable[..., World]] = {
    "freeze": explore.beginning,
    "committed": explore.committed,
    "images": functools.partial(explore.committed, target_is_dead=True),
}


def main() -> int:
    """Explore once."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--faults", type=int, default=2, help="so many things go wrong (default: %(default)s)")
    parser.add_argument("--start", choices=STARTS, default="freeze", help="from where on (default: %(default)s)")
    parser.add_argument("--durable", action="store_true", help="the target's images are on its disk before HELD")
    parser.add_argument("--alone", action="store_true", help="no recover begins beside another client")
    options = parser.parse_args()
    started = time.monotonic()
    try:
        found = explore.explore(
            faults=options.faults, durable=options.durable, start=STARTS[options.start], beside=not options.alone
        )
    except explore.Broken as broken:
        print(broken)
        return 1
    for end, worlds in sorted(found.settled.items()):
        print(f"{worlds:8} {end}")
    print(f"{found.states} worlds, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
