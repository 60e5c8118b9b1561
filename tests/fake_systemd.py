"""A systemctl that knows one service, x.service, with Restart=always and ExecStopPost=, and obeys our drop-in.

Its files lie in a directory: `main` is the PID of the service's process, `calls` what it was asked, `revived` is there
once it would have started another process. It sees a death late, as systemd may: when it was asked a few times more.
"""

from __future__ import annotations

from pathlib import Path

UNIT = "x.service"
_SYSTEMCTL = r"""#!/bin/sh
cd {directory} || exit 9
echo "$*" >>calls
gone() {{ case "$(sed 's/.*) //; s/ .*//' "/proc/$(cat main)/stat" 2>/dev/null)" in ''|Z|X) true ;; *) false ;; esac; }}
see() {{
    gone || return
    looks=$(($(cat looks 2>/dev/null || echo 0) + 1)); echo $looks >looks
    [ $looks -le 3 ] || [ -e dead ] || {{ touch dead; [ -e suspended ] || touch revived; }}
}}
case $1 in
daemon-reload)
    [ ! -e deaf ] || {{ echo "Failed to reload daemon: no answer" >&2; exit 1; }}
    if [ -e system/x.service.d/zzzz-migrate.conf ] && [ ! -e outdone ]; then touch suspended; else rm -f suspended; fi
    gone && [ ! -e dead ] && [ ! -e suspended ] && touch revived
    exit 0
    ;;
show)
    see
    echo Id=x.service
    if [ -e dead ]; then echo ActiveState=inactive; else echo ActiveState=active; fi
    if [ -e suspended ]; then
        printf 'Restart=no\nExecStopPost=\nSuccessExitStatus=KILL\n'
    else
        printf 'Restart=always\nExecStopPost={{ path=/bin/touch }}\nSuccessExitStatus=\n'
    fi
    echo "MainPID=$(cat main)"
    echo "WatchdogUSec=$(cat watchdog 2>/dev/null || echo 0)"
    ;;
esac
"""


class FakeSystemd:
    """One of a host's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "system").mkdir(parents=True)
        self.program = directory / "systemctl"
        self.program.write_text(_SYSTEMCTL.format(directory=directory))
        self.program.chmod(0o755)
        self.dropin = directory / "system" / f"{UNIT}.d" / "zzzz-migrate.conf"

    @property
    def constants(self) -> dict[str, str]:
        """Of an agent that is to speak to this one."""
        return {"agent.service.SYSTEMCTL": str(self.program), "agent.service.SYSTEMD": str(self.directory / "system")}

    def runs(self, pid: int) -> None:
        """The service's process is this one."""
        (self.directory / "main").write_text(f"{pid}\n")

    def will(self, word: str) -> None:
        """`deaf`: it does not read its units again; `outdone`: another drop-in prevails over ours."""
        (self.directory / word).touch()

    @property
    def reloads(self) -> int:
        """How often it was told to read its units again."""
        calls = self.directory / "calls"
        return calls.read_text().splitlines().count("daemon-reload") if calls.exists() else 0

    @property
    def suspended(self) -> bool:
        """Whether it goes by the drop-in."""
        return (self.directory / "suspended").exists()

    @property
    def as_it_was(self) -> bool:
        """Nothing of ours is there, and it has seen that."""
        return not self.suspended and list((self.directory / "system").iterdir()) == []

    @property
    def revived(self) -> bool:
        """Whether it would have started another process."""
        return (self.directory / "revived").exists()
