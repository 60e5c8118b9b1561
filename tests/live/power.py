"""A host of the lab loses power and comes back: its memory is gone, its disk is there, and its boot has another id.

On vm the machine is reset, and what was not synced is gone. On netns it is one kernel: every process of the host is
killed at one instant, its tmpfs are emptied, and another boot id lies over the kernel's; what was written and not
synced is still there, so that only vm shows what a sync is good for.
"""

from __future__ import annotations

import contextlib
import time
import uuid

import paramiko

from tests.live.lab_host import LabHost

BOOT_ID = "/proc/sys/kernel/random/boot_id"
_RESET = "sleep 0.2; echo b >/proc/sysrq-trigger"
_KILLED = """
trap "" HUP PIPE
kill -KILL -1
for place in $(grep -o "/run/migrate/[^ ]*" /proc/mounts); do umount -l $place; done
rm -rf /run/migrate /run/criu.kdat /run/instants /tmp/.criu* /dev/shm/* /var/lib/boot_id
umount {boot_id} 2>/dev/null
echo {new} >/var/lib/boot_id
mount --bind /var/lib/boot_id {boot_id}
last=$(cat /proc/sys/kernel/ns_last_pid)
echo 3 >/proc/sys/kernel/ns_last_pid
/usr/sbin/sshd -E /var/log/sshd.log -D </dev/null >/dev/null 2>&1 &
echo $last >/proc/sys/kernel/ns_last_pid
"""


def cut(*hosts: LabHost) -> None:
    """All of them at once; on return they are up again."""
    before = {host.name: host.read(BOOT_ID) for host in hosts}
    for host in hosts:
        killed = _KILLED.format(boot_id=BOOT_ID, new=uuid.uuid4())
        host.start(_RESET if host.backend == "vm" else f"exec setsid sh -c '{killed}'")
    for host in hosts:
        _wait_for(host, before[host.name])


def _wait_for(host: LabHost, before: str) -> None:
    deadline = time.monotonic() + 60 * host.slow
    while True:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException, AssertionError, TimeoutError):
            host.reconnect()
            up = "until ss -Hltn sport = :22 | grep -q .; do sleep 0.1; done"
            if host.run(f"cat {BOOT_ID}; {up}").out.strip() != before.strip():
                return
        assert time.monotonic() < deadline, f"{host.name} does not come back"
        time.sleep(0.2)


def forget(host: LabHost) -> None:
    """The kernel's own boot id again."""
    host.run(f"while umount {BOOT_ID} 2>/dev/null; do :; done; rm -f /var/lib/boot_id", check=False)
