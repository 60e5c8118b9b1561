"""A stand-in for criu: its options, its order of hooks, its log; and it fails on demand. For speed and for faults.

What it does for real: it seizes the tree with ptrace and holds it, so that its death lets the tree run as criu's does;
its page server takes one session from a socket that the next one uses again; its images are real enough for
`agent.images`; its "restored tree" is one process for each core image, stopped until the hook has succeeded.

What it can't do: give a restored process the PID of the original, since both fake hosts share one PID space. So it
renames the core images after the processes that it makes.

Each fake host's directory has a `criu` that starts this file (see `install`). Beside it:

- `behaviour.json`: {"dump": "no-space", "restore": ["fail", "ok"], …}: what each command does, or what its first,
  second… call does; whatever is not named does well.
- `calls`: one Python tuple a line for every run: command, PID, start time, arguments. (Of version, check and cpuinfo
  only where `behaviour.json` is: otherwise the wrapper in sh answers those by itself, in 1 ms instead of 30.)
- `restored`: "PID START" of every process it made. `ran`: a line each time such a process runs a little.

It runs without site-packages and imports little, and that late, because it is started ten times a migration.
"""

from __future__ import annotations

import os
import struct
import sys
import time

HERE = ""
"""The fake host's directory, once we are its criu."""
VERSION = "4.1.1"
PAGE = 4096
FULL = "No space left on device"

_VALUES = {
    "--tree", "--images-dir", "--ps-socket", "--log-file", "--work-dir", "--prev-images-dir", "--action-script",
    "--pidfile", "--ghost-limit", "--feature",
}  # fmt: skip
_SWITCHES = {
    "--page-server", "--track-mem", "--shell-job", "--file-locks", "--link-remap", "--tcp-established", "--auto-dedup",
    "--restore-detached", "--manage-cgroups=ignore", "--version", "--lazy-pages", "-v2", "-v4",
    "--no-default-config", "--skip-in-flight",
}  # fmt: skip

_SIGKILL, _SIGCONT, _SIGSTOP = 9, 18, 19  # the signal module takes 3 ms to import
_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_WALL = 0x40000000
_STOPPED, _ZOMBIE, _ALIVE = 3, 6, 1


_WRAPPER = """#!/bin/sh
if [ ! -e {here}/behaviour.json ]; then
    case $1 in
        --version) echo "Version: {version}"; exit ;;
        check) echo "Looks good."; exit ;;
        cpuinfo) [ "$2" = check ] || echo fake >"$4/cpuinfo.img"; exit ;;
    esac
fi
exec {python} -IS -c 'import sys; sys.path.append("{root}"); from tests import fake_criu as f; f.main("{here}")' "$@"
"""


def install(directory: str) -> str:
    """Make a fake host's criu; its path. It starts fast: no site, no search for an interpreter, nothing to compile."""
    path = os.path.join(directory, "criu")
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with open(path, "w") as file:
        file.write(_WRAPPER.format(here=directory, root=root, python=os.path.realpath(sys.executable), version=VERSION))
    os.chmod(path, 0o755)
    return path


class Failed(Exception):
    """criu gives up, with this line in its log."""


class Log:
    """criu's log, in its format."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) if path else 1
        self._started = time.monotonic()

    def write(self, text: str) -> None:
        os.write(self._descriptor, f"({time.monotonic() - self._started:09.6f}) {text}\n".encode())

    def error(self, text: str, source: str = "criu/fake.c:1") -> None:
        self.write(f"Error ({source}): {text}")


class Run:
    """One run of criu."""

    def __init__(self, arguments: list[str]) -> None:
        self.command = ""
        self.options: dict[str, str] = {}
        self.words: list[str] = []
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            if word in _VALUES:
                self.options[word] = rest.pop(0)
            elif word in _SWITCHES:
                self.options[word] = ""
            elif word.startswith("-"):
                sys.stderr.write(f"criu: unrecognized option '{word}'\n")
                sys.exit(1)
            else:
                self.words.append(word)
        self.command = self.words[0] if self.words else "version"
        self.behaviour = self._behaviour()
        with open(os.path.join(HERE, "calls"), "a") as file:
            file.write(f"{(self.command, os.getpid(), start_time(os.getpid()), tuple(arguments))!r}\n")
        self.log = Log(self.options.get("--log-file", ""))

    def _behaviour(self) -> str:
        path = os.path.join(HERE, "behaviour.json")
        if not os.path.exists(path):
            return "ok"
        import json

        with open(path) as file:
            wanted = json.load(file).get(self.command, "ok")
        if isinstance(wanted, str):
            return wanted
        before = 0
        if os.path.exists(os.path.join(HERE, "calls")):
            with open(os.path.join(HERE, "calls")) as file:
                before = sum(line.startswith(f"({self.command!r},") for line in file)
        return str(wanted[before]) if before < len(wanted) else "ok"

    def image(self, name: str) -> str:
        return os.path.join(self.options["--images-dir"], name)

    def script(self, action: str, pid: int) -> int:
        """Run the action script as criu does; its exit status, 1 for a signal."""
        path = self.options.get("--action-script")
        if not path:
            return 0
        environment = dict(os.environ, CRTOOLS_SCRIPT_ACTION=action, CRTOOLS_INIT_PID=str(pid))
        environment["CRTOOLS_IMAGE_DIR"] = self.options["--images-dir"]
        try:
            child = os.posix_spawn(path, [path], environment)
        except OSError as error:
            self.log.error(f"{path}: {error.strerror}", "criu/util.c:630")
            return 1
        if action in ("post-dump", "post-restore"):
            if self.behaviour == "die-at-hold":
                wait_until_blocked(child)
                die()
            if self.behaviour == "hook-killed":
                wait_until_blocked(child)
                os.kill(child, _SIGKILL)
        return 1 if os.waitpid(child, 0)[1] else 0


def die() -> None:
    os.kill(os.getpid(), _SIGKILL)


def stat_fields(pid: int) -> list[str]:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].decode().split()


def start_time(pid: int) -> int:
    return int(stat_fields(pid)[19])


def wait_until_blocked(pid: int) -> None:
    """Until the hook's script has said that it is there and waits for its answer."""
    for _ in range(2000):
        with open(f"/proc/{pid}/stat", "rb") as file:
            name = file.read()
        with open(f"/proc/{pid}/wchan") as file:
            where = file.read()
        state = name.rpartition(b")")[2].split()[0]
        if state in b"ZX" or (state == b"S" and ("pipe" in where or where in ("", "0"))):
            return
        time.sleep(0.001)


def tree(root: int) -> list[int]:
    """The root and its descendants, the dead among them."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents.setdefault(int(stat_fields(int(name))[1]), []).append(int(name))
            except OSError:
                continue
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


# --- protobuf, as much as the agent reads ----------------------------------------------------------------------------


def varint(number: int, value: int) -> bytes:
    return _raw(number << 3) + _raw(value)


def _raw(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def message(number: int, body: bytes) -> bytes:
    return _raw(number << 3 | 2) + _raw(len(body)) + body


def framed(first: int, second: int, body: bytes) -> bytes:
    return struct.pack("<III", first, second, len(body)) + body


def core_image(state: int) -> bytes:
    return framed(0x54564319, 0x55053847, varint(1, 1) + message(3, varint(1, state) + varint(2, 0)))


def thread_core_image() -> bytes:
    return framed(0x54564319, 0x55053847, varint(1, 1))


def statistics_image(pages: int, frozen: float) -> bytes:
    return framed(0x55105940, 0x57093306, message(1, varint(2, int(frozen * 1e6)) + varint(4, 1) + varint(7, pages)))


def write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


# --- pages -----------------------------------------------------------------------------------------------------------


def send_pages(run: Run, pages: int) -> None:
    """One session: a header, pages, the server's status. criu fails when its socket does.

    Without a page server they are written beside the other images.
    """
    if "--ps-socket" not in run.options:
        if run.behaviour == "no-space":
            raise Failed(f"Unable to write pages: {FULL}")
        write(run.image("pages-1.img"), os.urandom(PAGE) * pages)
        if "--prev-images-dir" in run.options:
            os.symlink(run.options["--prev-images-dir"], run.image("parent"))
        return
    stream = int(run.options["--ps-socket"])
    if run.behaviour == "hang":
        # as a criu that waits for a far end that does not read: only the end of the socket ends it
        import select

        poll = select.poll()
        poll.register(stream, select.POLLRDHUP)
        poll.poll(60_000)
        raise Failed("Can't write pages: Broken pipe")
    if run.behaviour == "no-space":
        raise Failed(f"Unable to write pages: {FULL}")
    data = os.urandom(PAGE) * pages
    data = b"PAGE" + struct.pack("<I", len(data)) + data
    try:
        while data:
            data = data[os.write(stream, data) :]
        status = os.read(stream, 1)
    except OSError as error:
        raise Failed(f"Can't send pages to the page server: {error.strerror}") from error
    if status != b"\0":
        raise Failed("Page server closed the connection")


def page_server(run: Run) -> None:
    stream = int(run.options["--ps-socket"])
    if run.behaviour == "die":
        die()
    run.log.write("Starting page server")
    if "--prev-images-dir" in run.options:
        os.symlink(run.options["--prev-images-dir"], run.image("parent"))
    header = _exactly(stream, 8)
    data = _exactly(stream, struct.unpack("<I", header[4:])[0]) if header else b""
    if header[:4] != b"PAGE" or not data:
        raise Failed("page server: the socket was closed before the end")
    if run.behaviour == "no-space":
        raise Failed(f"Unable to write to pages-1.img: {FULL}")
    if run.behaviour == "die-late":
        die()
    write(run.image("pages-1.img"), data)
    if run.behaviour == "cut-map":
        write(run.image("pagemap-1.img"), b"pagemap")
    os.write(stream, b"\0")


def _exactly(stream: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(stream, size - len(data))
        if not piece:
            return b""
        data += piece
    return data


def dedup(run: Run) -> None:
    """Nothing to be won: each page that this one sends is new. But a map without a counterpart is an error, as ever."""
    for name in os.listdir(run.image("parent")):
        if name.startswith("pagemap-") and not os.path.exists(run.image(name)):
            sys.exit(1)


# --- dump ------------------------------------------------------------------------------------------------------------


class Seized:
    """A tree in ptrace's hands, as criu holds it. If we die it runs."""

    def __init__(self, root: int) -> None:
        import ctypes

        self._errno = ctypes.get_errno
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self.states: dict[int, int] = {}
        self._traced: list[int] = []
        for pid in tree(root):
            state = stat_fields(pid)[0]
            self.states[pid] = {"Z": _ZOMBIE, "T": _STOPPED}.get(state, _ALIVE)
            if state != "Z":
                self._call(_SEIZE, pid)
                self._call(_INTERRUPT, pid)
                os.waitpid(pid, _WALL)
                self._traced.append(pid)

    def _call(self, request: int, pid: int) -> None:
        if self._libc.ptrace(request, pid, None, None) != 0:
            raise Failed(f"ptrace of {pid}: {os.strerror(self._errno())}")

    def thaw(self) -> None:
        for pid in self._traced:
            self._call(_DETACH, pid)

    def kill(self) -> None:
        for pid in self._traced:
            os.kill(pid, _SIGKILL)
        for pid in self._traced:
            while not os.WIFSIGNALED(os.waitpid(pid, _WALL)[1]):
                continue


def _check_previous(run: Run) -> None:
    previous = run.options.get("--prev-images-dir")
    if previous and not os.path.exists(run.image(os.path.join(previous, "inventory.img"))):
        raise Failed("Pid-reuse detection failed")


def pre_dump(run: Run) -> None:
    root = int(run.options["--tree"])
    _check_previous(run)
    if run.behaviour == "die":
        die()
    if run.behaviour == "fail":
        raise Failed("Can't dump task: the fake was told so")
    send_pages(run, 3)
    for pid in tree(root):
        write(run.image(f"core-{pid}.img"), core_image(_ALIVE))
    write(run.image("inventory.img"), b"inventory")
    write(run.image("stats-dump"), statistics_image(3, 0.001))


def dump(run: Run) -> None:
    root = int(run.options["--tree"])
    _check_previous(run)
    if run.script("pre-dump", root):
        raise Failed("Pre dump script failed")
    seized = Seized(root)
    try:
        if run.behaviour == "die-before-hold":
            die()
        if run.behaviour == "fail-before-hold":
            raise Failed("Can't dump task: the fake was told so")
        send_pages(run, 2)
        for pid, state in seized.states.items():
            write(run.image(f"core-{pid}.img"), core_image(state))
        write(run.image("inventory.img"), b"inventory")
        if run.behaviour == "end-without-hold":
            seized.thaw()
            return
        if run.script("post-dump", root):
            raise Failed("Post dump script failed")
    except Failed:
        seized.thaw()
        raise
    seized.kill()
    write(run.image("stats-dump"), statistics_image(2, 0.002))


# --- restore ---------------------------------------------------------------------------------------------------------


def _be_restored() -> None:
    """The life of a restored process: stopped until criu lets it run, then it runs until its host's directory goes."""
    os.setsid()
    os.closerange(3, 64)  # criu's log is no descriptor of the restored
    os.kill(os.getpid(), _SIGSTOP)
    log = os.path.join(HERE, "ran")
    while os.path.isdir(HERE):
        try:
            with open(log, "a") as file:
                file.write(f"{os.getpid()}\n")
        except OSError:
            break
        time.sleep(0.01)
    os._exit(0)


def make_processes(run: Run) -> list[int]:
    """One stopped process for each core image, the smallest PID first; the images get their PIDs as names."""
    names = sorted(int(name[5:-4]) for name in os.listdir(run.options["--images-dir"]) if name.startswith("core-"))
    made = []
    for name in names:
        child = os.fork()
        if child == 0:
            _be_restored()
        os.waitpid(child, os.WUNTRACED)
        os.rename(run.image(f"core-{name}.img"), run.image(f"core-{child}.img"))
        with open(os.path.join(HERE, "restored"), "a") as file:
            file.write(f"{child} {start_time(child)}\n")
        run.log.write(f"Forking task with {child} pid (flags 0x0)")
        made.append(child)
    return made


def greet_pager(path: str) -> None:
    """What criu says to a pager when no task has lazy memory: only the last word."""
    import socket

    with socket.socket(socket.AF_UNIX) as pager:
        pager.connect(path)
        pager.sendall(struct.pack("I", 0x52535446))


def restore(run: Run) -> None:
    for name in ("inventory.img", "pages-1.img"):
        if not os.path.exists(run.image(name)):
            raise Failed(f"Can't open {name}: No such file or directory")
    if run.behaviour == "fail":
        raise Failed("Can't open file usr/lib/libfake.so on restore: No such file or directory")
    if run.behaviour == "no-space":
        raise Failed(f"Can't write: {FULL}")
    if run.behaviour == "slow":
        time.sleep(0.25)
    if run.script("pre-restore", 0):
        raise Failed("Aborting restore due to pre-restore script")
    made = make_processes(run)
    if "--lazy-pages" in run.options:
        greet_pager(os.path.join(run.options["--work-dir"], "lazy-pages.socket"))
    try:
        if run.behaviour == "die-before-hold":
            die()
        while run.behaviour == "stand-still":
            time.sleep(1)
        status = run.script("post-restore", made[0])
        if status:
            raise Failed(f"Aborting restore due to post-restore script ret code {status}")
        with open(run.options["--pidfile"], "x") as file:
            file.write(str(made[0]))
        run.log.write("Unlock network")
        if run.behaviour == "fail-after-hold":
            raise Failed("Can't catch all tasks")
        while any(os.waitpid(pid, os.WNOHANG)[0] for pid in made):
            time.sleep(1000)  # for a task that is dead criu waits for ever
    except Failed:
        for pid in made:
            os.kill(pid, _SIGKILL)
            os.waitpid(pid, 0)
        raise
    for pid in made:
        os.kill(pid, _SIGCONT)
    run.log.write("Restore finished successfully. Tasks resumed.")
    run.script("post-resume", made[0])


# --- questions -------------------------------------------------------------------------------------------------------


def version(run: Run) -> None:
    if run.behaviour != "ok":
        raise Failed("the fake was told so")
    print(f"Version: {VERSION}")


def check(run: Run) -> None:
    if run.behaviour == "fail" or run.behaviour == run.options.get("--feature"):
        raise Failed("Kernel doesn't support what the fake was told to miss")
    print("Looks good.")


def cpuinfo(run: Run) -> None:
    if run.words[1] == "dump":
        write(run.image("cpuinfo.img"), b"cpuinfo of the fake")
        return
    if run.behaviour == "fail" or not os.path.exists(run.image("cpuinfo.img")):
        raise Failed("CPU capabilities do not match run time")


COMMANDS = {
    "version": version, "check": check, "cpuinfo": cpuinfo, "pre-dump": pre_dump, "dump": dump,
    "page-server": page_server, "restore": restore, "dedup": dedup,
}  # fmt: skip
_FAILED = {"dump": 255, "pre-dump": 255}


def main(directory: str) -> None:
    """Be the criu of this fake host."""
    global HERE
    HERE = directory
    run = Run(sys.argv[1:])
    if "--ps-socket" in run.options:
        os.set_inheritable(int(run.options["--ps-socket"]), False)  # criu closes descriptors in its scripts
    status = 0
    try:
        COMMANDS[run.command](run)
    except Failed as error:
        run.log.error(str(error))
        status = _FAILED.get(run.command, 1)
    sys.stdout.flush()
    os._exit(status)
