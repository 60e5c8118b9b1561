"""The man page and the completions, made from the command line's own parser when the wheel is built.

They are in no repository, so that they can't be older than the parser. `pip` and `pipx` put them below the
environment's share/, where man(1) and the shells look when its bin/ is on PATH.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACES = {
    "man": "share/man/man1/migrate.1",
    "bash": "share/bash-completion/completions/migrate",
    "zsh": "share/zsh/site-functions/_migrate",
    "fish": "share/fish/vendor_completions.d/migrate.fish",
}


class Share(BuildHookInterface):
    """Adds the files to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write them aside, and name them to the builder."""
        sys.path.insert(0, self.root)
        from migrator import arguments, completion, manpage

        commands = arguments.commands()
        self._folder = Path(tempfile.mkdtemp(prefix="migrate-share-"))
        for name, place in PLACES.items():
            text = manpage.page(commands) if name == "man" else completion.script(name, commands)
            (self._folder / name).write_text(text)
            build_data["shared_data"][str(self._folder / name)] = place

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """They are in the wheel."""
        shutil.rmtree(self._folder)
