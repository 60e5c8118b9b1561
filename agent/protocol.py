"""Every message, command and fault code that crosses between `migrator` and `agent`.

This file is the protocol's document; it imports nothing of ours and touches no host.

**Channels.** Control is one JSON object a line on the agent's stdin and stdout; logs go to its stderr. Bulk data
travels on named streams: connections to the agent's unix socket (`Prepared.socket`), each opened with one line
`STREAM <name>\n` and raw bytes after it. On their way to the target's relay they may be packed: frames, each with a
head of nine bytes (`!cII`: kind, the size that it stands for, the length of the body that follows):

    P  plain     the body itself
    Z  packed    one zstd frame with a checksum
    0  zeros     so many zero bytes; no body
    .  the end   without it the stream was cut off

The terminal of a tree is a stream to another socket (`Prepared.terminal`), of the process that holds it: what the tree
writes comes as it is, and frames go there, each with a head of five bytes (`!cHH`):

    T  typed     the length of the bytes that follow, and 0
    W  window    rows and columns

**Banner.** The first line each way is plain text, for `cat` and for tired people:

    migrate-agent protocol=1 version=0.1.0 build=3f2a… python=3.13.5
    migrate protocol=1 version=0.1.0 build=3f2a…

Unequal protocol numbers or builds end the conversation before any command is read.

**Requests.**  `{"id": 7, "command": "begin", "arguments": {…}}`
**Replies.**   `{"id": 7, "result": {…}}` or `{"id": 7, "fault": {"code": "criu", "message": "…", …}}`

**Heartbeat.** `migrator` sends an empty line every ten seconds, for as long as it lives.

Replies may come in another order than requests: `dump` is answered when the tree is held, and an `abort` sent
meanwhile is served at once. Fields are exactly those of the dataclasses below; decoders reject unknown fields, missing
fields and wrong types. File names are text with `surrogateescape`, so that any bytes survive.

**Trust.** `agent/THREATS.md` has, for each of these, what the other side could do with it, and what stops it.

Units: sizes in bytes, times in seconds, unless a field's name says otherwise.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Optional

PRODUCT = "migrate"
PROTOCOL = 1
VERSION = "0.1.0"
HEARTBEAT = b"\n"
HEARTBEAT_SECONDS = 10.0
STREAM_HEADER = "STREAM"
"""First word of the line that names a bulk stream."""
FRAME_HEAD = "!cII"
FRAME_LARGEST = 1 << 20
"""Bytes that a frame of a packed stream stands for at most."""
TERMINAL_STREAM = "terminal"
"""Name of the stream to a tree's terminal."""
TERMINAL_HEAD = "!cHH"
TERMINAL_TYPED, TERMINAL_WINDOW = b"T", b"W"
TERMINAL_GRACE = 120.0
"""Seconds that a tree whose terminal hangs up runs on when nobody shows that, and its agent has gone."""
TERMINAL_DESCRIPTORS = range(3, 10)
"""Where criu finds the terminal that it gives to a tree, on the target: one for each of its keys, since criu closes a
descriptor that it has taken over (criu/files.c, inherit_fd_move_to_fdstore)."""
LEASE = 600.0
"""Seconds that a held tree waits on the target when nobody speaks to its agent any more, where nobody has said."""
STREAM_DAMAGED = "the stream is damaged"
"""In the line that a relay writes to its stderr when what came is no packed stream."""

# --- faults ----------------------------------------------------------------------------------------------------------


class FaultCode(str, enum.Enum):
    """Why an agent could not do what it was asked; `migrator.errors` maps each one to an exit code."""

    BAD_REQUEST = "bad-request"  # unknown command, unknown field, wrong type, wrong order
    NO_PROCESS = "no-process"
    NOT_ROOT = "not-root"
    LOCKED = "locked"  # another migration holds a task of this tree, or this id
    NO_SPACE = "no-space"
    CRIU = "criu"  # criu failed; message is its decisive line in words, log says where the rest lies
    CHANGED = "changed"  # the tree is not the one that was inspected
    FILES = "files"  # a file, or a round that is no stream, could not be copied
    BROKEN_STREAM = "broken-stream"
    THROTTLE = "throttle"  # the tree's processor time can't be limited; it has all of it
    UNIT = "unit"  # systemd can't be kept from reviving the tree's unit
    BROKEN_ROUNDS = "broken-rounds"  # a page that no round holds, or a damaged image
    TOO_TORN = "too-torn"  # memory in too many pieces for an instant resume
    JOURNAL = "journal"  # the journal forbids this act, or there is none
    ICE = "ice"  # what is on ice is not whole, or is not what was put there
    VETOED = "vetoed"  # the dump or restore was given up on request
    INTERNAL = "internal"  # a bug in the agent


@dataclasses.dataclass(frozen=True)
class Fault:
    """What the other side is told when a command fails."""

    code: FaultCode
    message: str
    hint: str = ""
    log: str = ""


# --- facts -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class HugePages:
    """Huge pages of one size."""

    size: int
    free: int  # how many
    total: int = 0  # in the pool, free or not


@dataclasses.dataclass(frozen=True)
class Limit:
    """A hard limit of setrlimit(2)."""

    name: str  # as /proc/PID/limits has it: Max open files
    hard: int  # -1: none


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Under which conditions a host lets processes run. 0 and "" mean "not known"."""

    lsms: tuple[str, ...] = ()  # security modules: apparmor, selinux, landlock…
    nr_open: int = 0  # descriptors that a process may be allowed at most
    threads_max: int = 0
    threads: int = 0  # that there are now
    overcommit: int = 0  # vm.overcommit_memory
    thp: str = ""  # transparent huge pages: always, madvise, never
    cgroups: str = ""  # v1, v2, both
    huge_pages: tuple[HugePages, ...] = ()
    time_namespaces: bool = True
    pid_namespaces: bool = True
    seccomp: bool = True  # filters of seccomp(2)
    cpus: str = ""  # that run, as a list: 0-3,8
    limits: tuple[Limit, ...] = ()  # those that root may not exceed here, for want of CAP_SYS_RESOURCE


@dataclasses.dataclass(frozen=True)
class HostAddress:
    """An address of a host, or (address "") an interface without one."""

    address: str
    prefix: int
    interface: str
    secondary: bool = False  # it goes, as all such of its subnet, when the first one of that is taken away
    lent: bool = False  # by DHCP or a router, for a time


@dataclasses.dataclass(frozen=True)
class Floating:
    """An address that moves with a tree, on the interface of the host that is told so."""

    address: str
    prefix: int
    interface: str


@dataclasses.dataclass(frozen=True)
class HostFacts:
    """What one host is and can do. Empty strings mean "not there"."""

    hostname: str
    boot_id: str
    machine: str  # uname -m
    kernel: str  # uname -r
    python: str
    uid: int
    criu_path: str
    criu_version: str  # "4.1.1"; "" where criu is absent
    criu_check: str  # "" when `criu check` is content, else its decisive line
    dirty_tracking: bool  # soft-dirty: pre-dump is possible
    page_size: int
    pid_max: int
    memory_available: int
    systemd: bool
    cpuinfo: str  # source: base64 of cpuinfo.img (cpu of this host); "" where criu cannot tell
    cpu_check: str  # target: "" when the given cpuinfo is compatible, else criu's words
    no_lazy_pages: str = ""  # target: why memory can't be filled in after the resume; "" when it can
    rsync: bool = False  # the program is there
    zstd: str = ""  # by what packed streams can be unpacked here: module, library, program
    conditions: Conditions = Conditions()
    journal: bool = False  # journald takes streams of standard output here
    addresses: tuple[HostAddress, ...] = ()  # of its interfaces, by `ip`; none where that is missing
    nft: bool = False  # the program is there
    iptables: bool = False  # and these
    net_admin: bool = False  # we may change addresses and rules
    session: tuple[str, ...] = ()  # both addresses of the SSH session that the agent is reached by
    hardware: tuple[str, ...] = ()  # addresses of its Ethernet interfaces: 02:00:5e:00:00:01


@dataclasses.dataclass(frozen=True)
class TaskFacts:
    """One process of the tree."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    tids: tuple[int, ...]
    name: str
    state: str  # letter of /proc/PID/stat
    start_time: int  # clock ticks since boot: with pid and boot id it names this process for ever
    uid: int


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The numbers of one process as the PID namespace that it lives in has them."""

    pid: int
    pgid: int  # 0: that of a process outside
    sid: int  # 0: that of a process outside
    tids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class FileFacts:
    """A file system object that the tree uses; what CRIU will look for on the other host."""

    path: str
    kind: str  # regular, directory, char, block, fifo, socket, link, missing
    size: int
    mode: int  # permission bits, without the type
    uid: int
    gid: int
    mtime_ns: int
    rdev: int
    uses: tuple[str, ...]  # exe, exec (mapped to be run), map, open, write, cwd, root; asked: bind, connect, parent
    deleted: bool = False
    link_count: int = 1
    build_id: str = ""  # of ELF objects
    mount: str = ""  # type and source of its file system, as `nfs4 server:/export`; "" where that can't be told
    digest: str = ""  # sha256 of its content, where it was asked for
    allocated: int = 0  # bytes that it takes on its disk: fewer than `size` where it has holes
    room: int = -1  # bytes free on its file system, of a directory that was asked about as `parent`


@dataclasses.dataclass(frozen=True)
class Peculiarity:
    """Something of the tree that decides whether or how it can be moved, found at inspection.

    `kind` is a stable word that `migrator.plan` knows; all of them, and what `object` and `detail` say for each, stand
    in `agent/peculiar.py`, apart from "self", "ancestor", "init" and "kernel-thread".
    """

    kind: str
    pid: int
    object: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Account:
    """A user or group that the tree runs as; in an answer, what a host makes of its number and of its name."""

    kind: str  # user, group
    number: int
    name: str  # "" where the number has none
    named: int = -1  # in an answer: the number that the asked name has there; -1 where nobody is called so


@dataclasses.dataclass(frozen=True)
class Address:
    """An address that a socket of the tree is bound to; in an answer, whether it is to be had there."""

    protocol: str  # tcp, udp; unix stream, unix dgram, unix seqpacket
    address: str  # 192.0.2.1:80, [2001:db8::1]:80; @name
    only_ipv6: bool = False  # a socket of IPv6 that leaves IPv4 alone
    shared: bool = False  # it lets others have the port too; in an answer: whoever has it there does
    owned: bool = True
    holder: str = ""  # who has the port there
    listens: bool = False  # it listens, or receives; else the port is only the near end of a connection


@dataclasses.dataclass(frozen=True)
class Terminal:
    """A terminal of the tree whose other end is not in it."""

    path: str  # /dev/pts/3, /dev/tty1
    keys: tuple[str, ...]  # by which criu knows it as an external one: tty[RDEV:DEV], in hexadecimal


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit of systemd that processes of the tree are in. Names of units are with their suffix: redis.service."""

    name: str
    pids: tuple[int, ...]  # of the tree, that are in it
    main: int = 0  # its main process where that is of the tree; 0: it is not, or the unit has none
    others: tuple[str, ...] = ()  # processes in it that are not of the tree: `name (pid PID)`
    manager: str = ""  # of a user's own systemd: the unit that this one is; "": the system's
    answered: bool = True  # systemd has told what follows
    reacts: tuple[str, ...] = ()  # settings by which it acts when the main process has gone: Restart=always
    on_success: tuple[str, ...] = ()  # units that are started once it ends well
    starters: tuple[str, ...] = ()  # units that start it by themselves: sockets, timers, paths, those that uphold it
    at_boot: bool = False  # it is enabled
    limits: tuple[str, ...] = ()  # its limits, as `systemd-run --property=` takes them
    local: tuple[str, ...] = ()  # those that name devices of this host
    identifier: str = ""  # under which its output is to be logged, where that is not its program's name


@dataclasses.dataclass(frozen=True)
class TreeFacts:
    """The process tree as it was found, root first, parents before children."""

    root: int
    tasks: tuple[TaskFacts, ...]
    files: tuple[FileFacts, ...]
    peculiarities: tuple[Peculiarity, ...]
    memory: int  # bytes that the images will hold at most: anonymous, swapped and shared memory, once per task
    copied_on_write: int = 0  # bytes of it that tasks share since a fork, counted once for each further task
    no_throttle: str = ""  # why its processor time can't be limited; "" when it can
    accounts: tuple[Account, ...] = ()
    limits: tuple[Limit, ...] = ()  # the highest that one of its tasks has
    inside: tuple[Numbers, ...] = ()  # one per task, where it lives in a PID namespace that an earlier migration made
    terminals: tuple[Terminal, ...] = ()
    units: tuple[Unit, ...] = ()  # that of the root first


@dataclasses.dataclass(frozen=True)
class Shelved:
    """A tree on ice in a line."""

    id: str
    time: float  # seconds since the epoch
    pid: int
    name: str
    size: int  # bytes that it takes on disk
    parent: str = ""  # the id of what it adds to; "": it is whole by itself
    wrong: str = ""  # why it can't be restored, in words


@dataclasses.dataclass(frozen=True)
class Ice:
    """A directory of trees on ice."""

    room: int  # bytes free on its disk
    volatile: str  # the type of its file system, where that is in memory
    items: tuple[Shelved, ...]  # oldest first


@dataclasses.dataclass(frozen=True)
class TargetCheck:
    """What the target holds of that which a tree will need there."""

    files: tuple[FileFacts, ...]  # one per asked path, in the order asked; kind "missing" where there is none
    taken: tuple[TaskFacts, ...]  # processes there whose pid, a tid, pgid or sid is one of the asked ids
    memory_available: int
    disk_available: int  # where images go when memory does not suffice
    accounts: tuple[Account, ...] = ()  # one per asked account, in the order asked
    addresses: tuple[Address, ...] = ()  # one per asked address, in the order asked
    missing_labels: tuple[str, ...] = ()  # asked AppArmor profiles that are not loaded
    taken_terminals: tuple[int, ...] = ()  # asked numbers of pseudo-terminals that are in use
    active_units: tuple[str, ...] = ()  # asked units that are not inactive
    disk_volatile: str = ""  # the type of file system of that disk, where it is in memory
    ice: tuple[Ice, ...] = ()  # one, where it was asked about a directory of trees on ice


# --- arguments and results -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Nothing:
    """No arguments, or nothing to say."""


@dataclasses.dataclass(frozen=True)
class Probe:
    cpuinfo: str = ""  # the source's HostFacts.cpuinfo, to be checked against this host
    want_cpuinfo: bool = False


@dataclasses.dataclass(frozen=True)
class Inspect:
    pid: int


@dataclasses.dataclass(frozen=True)
class Check:
    """Ask the target for everything at once: one exchange, however many files."""

    files: tuple[FileFacts, ...]
    ids: tuple[int, ...]  # every pid, tid, pgid and sid that must be free
    accounts: tuple[Account, ...] = ()
    addresses: tuple[Address, ...] = ()
    labels: tuple[str, ...] = ()  # AppArmor profiles that must be loaded
    digests: bool = False  # digest files whose size is the asked one while the time differs
    terminals: tuple[int, ...] = ()  # numbers of pseudo-terminals that must be free
    units: tuple[str, ...] = ()  # of systemd
    ice: str = ""  # a directory of trees on ice


@dataclasses.dataclass(frozen=True)
class Listen:
    """Ask the target who else has addresses that are to come to it: duplicate address detection."""

    addresses: tuple[Floating, ...]


@dataclasses.dataclass(frozen=True)
class Heard:
    """Who says on the link that an address is his: the source does, too."""

    address: str
    hardware: str  # 02:00:5e:00:00:01


@dataclasses.dataclass(frozen=True)
class Answers:
    heard: tuple[Heard, ...]


@dataclasses.dataclass(frozen=True)
class Digest:
    """Ask the source for the sha256 of files that the target has digested."""

    paths: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Digests:
    digests: tuple[str, ...]  # one per path, in the order asked; "" for one that can't be read


@dataclasses.dataclass(frozen=True)
class CriuOptions:
    """Options that must be the same at dump and at restore."""

    shell_job: bool = False
    ghost_limit: int = 0  # bytes; 0: criu's own
    file_locks: bool = False
    link_remap: bool = False
    tcp_established: bool = False
    extra: tuple[str, ...] = ()
    for_dump: tuple[str, ...] = ()  # what the operator hands on; pre-dumps get it too
    for_restore: tuple[str, ...] = ()
    tcp_close: bool = False  # connections are closed ones when the tree is restored

    @classmethod
    def of_line(cls, line: dict[str, Any]) -> CriuOptions:
        """From the dictionary of it that a journal keeps."""
        values: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in line.items()}
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the rounds lie on the source, if they are kept there and not streamed."""

    kept: bool = False
    memory: int = 0  # bytes of a tmpfs of their own; 0: a plain directory
    directory: str = ""  # whose subdirectory of the migration's name it is; "": the agent's own choice
    shared: bool = False  # both hosts see it: the source makes and removes it, and what it wrote must be on disk
    ice: bool = False  # the tree goes on ice: there is no target, and what lies here stays when it has ended


@dataclasses.dataclass(frozen=True)
class Begin:
    """Source: lock the tree, open its journal, make room for the images that are no memory."""

    migration: str
    pid: int
    start_time: int  # of the root, as inspected
    target: str  # where it goes, as the operator wrote it, for `recover`
    options: CriuOptions
    track_memory: bool
    place: Place = Place()
    migrate: int = 0  # PID of the `migrate` that asks, for `abort`
    unit: str = ""  # of systemd: it is kept from reviving or reporting failure until this is over
    floating: tuple[Floating, ...] = ()  # addresses that move along, as they are here


@dataclasses.dataclass(frozen=True)
class Scope:
    """The scope of systemd that a tree is to run in on the target."""

    name: str = ""  # with its suffix; "": one that has the migration's name
    title: str = ""
    limits: tuple[str, ...] = ()  # as Unit.limits

    @classmethod
    def of_line(cls, line: dict[str, Any]) -> Scope:
        """From the dictionary of it that a journal keeps."""
        return cls(line["name"], line["title"], tuple(line["limits"]))


@dataclasses.dataclass(frozen=True)
class Logged:
    """A socket of the tree that leads to the journal: standard output of a service."""

    inode: int  # on the source: the images know it by this number
    identifier: str  # under which its lines are shown


@dataclasses.dataclass(frozen=True)
class PutOnIce:
    """Source, in the hold: have the images on disk, and beside them the manifest that these facts go into.

    For a snapshot the tree runs on before that."""

    source: HostFacts
    tree: TreeFacts  # as it was inspected
    terminal: str = ""
    scope: Scope = Scope()
    logged: tuple[Logged, ...] = ()


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Target: journal PREPARED, a directory of its own for the images, the socket for bulk streams, a warm restore."""

    migration: str
    root: int  # as the images have it
    source: str
    memory: int  # bytes the images may take
    on_disk: bool  # images go to disk instead of a tmpfs
    options: CriuOptions
    ids: tuple[int, ...] = ()  # every PID and TID that must stay free until the restore
    instant: bool = False  # restore with lazy pages: the tree runs before its memory is there
    shared: str = ""  # the directory below which the source has made one for the images, and this host sees it
    namespaces: bool = False  # restore into a PID namespace of its own: nothing has to stay free
    terminal: str = ""  # the tree gets a new one: "attach", which hangs up at its stream's end; "detach", which stays
    ptys: tuple[int, ...] = ()  # numbers of pseudo-terminals that it must not have, since the tree brings them
    lease: float = LEASE  # seconds that a held tree waits after contact is lost; then it goes, and its images stay
    scope: Scope = Scope()
    logged: tuple[Logged, ...] = ()  # sockets that become such to the journal here
    floating: tuple[Floating, ...] = ()  # addresses that move along, as they will be here
    durable: bool = False  # HELD says that all that a restore needs is on disk, and outlives a power cut
    ice: str = ""  # the directory of a tree on ice, which is restored: there is no source, and nothing there changes
    keep: str = ""  # the directory below which the images are put on ice, once the tree runs
    kept: tuple[PutOnIce, ...] = ()  # one, with `keep`: what is to stand in their manifest


@dataclasses.dataclass(frozen=True)
class Prepared:
    socket: str  # where bulk streams connect
    images: str  # directory of the image directories
    log: str  # where criu's logs lie
    terminal: str = ""  # where the tree's terminal is reached; "" where it gets none
    scope: str = ""  # the one that the tree will run in; "" without systemd


@dataclasses.dataclass(frozen=True)
class Accept:
    """Target: start a page server for this round on the stream. Answered when it stands."""

    round: int
    stream: str


@dataclasses.dataclass(frozen=True)
class AcceptDone:
    round: int
    final: bool = False  # the tree does not run any more


@dataclasses.dataclass(frozen=True)
class Accepted:
    bytes: int  # of this round's pages
    disk_seconds: float = (
        0.0  # that it took to have the round on disk, where that is ordered and it is not the final one
    )


@dataclasses.dataclass(frozen=True)
class Image:
    """One image file of a round."""

    name: str
    size: int


@dataclasses.dataclass(frozen=True)
class Arrived:
    """Target: a round has come here without a stream. Answered when all of it was found, and indexed."""

    round: int
    images: tuple[Image, ...]
    final: bool = False  # the tree does not run any more


@dataclasses.dataclass(frozen=True)
class PreDump:
    round: int
    stream: str  # "": into the image directory


@dataclasses.dataclass(frozen=True)
class Dumped:
    """One round, in criu's own statistics."""

    pages: int
    bytes: int
    seconds: float
    frozen_seconds: float
    images: tuple[Image, ...] = ()  # where they were not streamed


@dataclasses.dataclass(frozen=True)
class Throttle:
    """Source: limit the tree's processor time, for as long as it runs here. May be said again, with less."""

    share: float  # of what it took before it was limited


@dataclasses.dataclass(frozen=True)
class Throttled:
    processors: float  # the limit


@dataclasses.dataclass(frozen=True)
class Dump:
    """Source: freeze and dump what is left, then hold. Answered from inside the hold."""

    round: int
    stream: str  # "": into the image directory


@dataclasses.dataclass(frozen=True)
class Held:
    """The tree is frozen on the source and criu waits in its post-dump hook."""

    tasks: tuple[TaskFacts, ...]
    freeze_seconds: float  # from the request to the hold
    image_bytes: int  # of the images that are no memory
    images: tuple[Image, ...] = ()  # where they were not streamed
    orphaned: bool = False  # its root had a parent-death signal, which stays behind with the parent


@dataclasses.dataclass(frozen=True)
class SendImages:
    """Source: this round's images, except the memory's pages, as one archive on the stream."""

    round: int
    stream: str


@dataclasses.dataclass(frozen=True)
class ReceiveImages:
    round: int
    stream: str


@dataclasses.dataclass(frozen=True)
class Incoming:
    """A regular file that comes along, and which file may be there already and be replaced by it: none, or this one."""

    path: str
    replace: bool = False
    size: int = 0  # of the one that is there
    mtime_ns: int = 0


@dataclasses.dataclass(frozen=True)
class Stage:
    """Target: make room for these files beside their paths; they are numbered on from those of an earlier time."""

    files: tuple[Incoming, ...]


@dataclasses.dataclass(frozen=True)
class AddFiles:
    """Source: these come along as well; the target has staged them in the same order."""

    paths: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class NewFiles:
    """What the tree has opened since it was inspected, or since this was asked last."""

    files: tuple[FileFacts, ...]


@dataclasses.dataclass(frozen=True)
class CopyFiles:
    """Source: rsync files on one stream, by their numbers; then read from the other what the target holds of them."""

    rsync: str
    stream: str
    paths: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TakeFiles:
    """Target: be rsync's other half on one stream; then say on the other what came of each file, in sums of blocks."""

    rsync: str
    stream: str


@dataclasses.dataclass(frozen=True)
class SendFiles:
    """Source: what changed of the files since they were last sent."""

    stream: str
    final: bool  # the tree does not run any more


@dataclasses.dataclass(frozen=True)
class ReceiveFiles:
    """Target: take that in; the final time, put the files in place."""

    stream: str
    final: bool


@dataclasses.dataclass(frozen=True)
class Moved:
    """What a stream of images or files carried."""

    files: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Restore:
    round: int


@dataclasses.dataclass(frozen=True)
class Restored:
    """The tree stands on the target, held; HELD is in the journal."""

    seconds: float
    pid: int  # of the root, as this host has it
    lost: tuple[str, ...] = ()  # what of its threads' attributes could not be set, in words
    disk_seconds: float = 0.0  # until all of it was on disk, from the same instant on and beside the restore


@dataclasses.dataclass(frozen=True)
class Killed:
    """Proof of death: every task of the tree was seen dead, and KILLED is in the journal."""

    tasks: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Resume:
    """Target: only ever sent with the source's proof of death in hand."""

    killed_tasks: int


@dataclasses.dataclass(frozen=True)
class Resumed:
    pid: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Filled:
    """Memory is whole on the target. Where it was restored eagerly only the peak is not 0."""

    bytes: int
    seconds: float  # from RESUMED on
    faults: int
    longest_fault_seconds: float
    peak_bytes: int = 0  # images and the tree's own memory together, at their highest after the resume


@dataclasses.dataclass(frozen=True)
class Abort:
    """Undo everything on this host. On the target it is legal after HELD only with the source's recorded ABORT."""

    reason: str
    source_aborted: bool = False


@dataclasses.dataclass(frozen=True)
class Finish:
    """Remove what is left of a migration that succeeded, and write DONE."""


@dataclasses.dataclass(frozen=True)
class Leftovers:
    """What could not be removed, in words; empty when nothing is behind."""

    items: tuple[str, ...] = ()
    memory_lost: bool = False  # target: nobody fills any more what was not filled; the tree is stopped


@dataclasses.dataclass(frozen=True)
class ReadJournal:
    migration: str  # "" for the newest that is not finished
    claim: str = ""  # "source", "target": where it has this role here, nobody else recovers it until we hang up


class Word(str, enum.Enum):
    """What an operator says of his own where the journals do not decide, and answers for."""

    NONE = ""
    SOURCE_IS_DEAD = "source-is-dead"  # the source will never run the tree again: in the place of its proof of death
    RESTORE_ANYWAY = "restore-anyway"  # the tree may have run here already, or its images may be torn


@dataclasses.dataclass(frozen=True)
class JournalState:
    """One migration as this host's journal tells it, and what of it is alive."""

    migration: str
    role: str  # source, target; "" where this host knows nothing of it
    records: tuple[str, ...]  # names, oldest first
    peer: str  # the other host, as the journal has it
    root: int
    same_boot: bool
    agent_alive: bool
    criu_alive: bool
    tasks_alive: int
    images: bool  # the images are still here
    terminal: str = ""  # target: the command that shows the tree's terminal; "" where it has no new one, or none now
    hangs_up: bool = False  # … and the tree is hung up when nobody shows it for TERMINAL_GRACE
    memory_lost: bool = False  # as in Leftovers
    address: str = ""  # target: where the one that prepared it came from; "" where that isn't known
    word: Word = Word.NONE  # target: the operator's, by which RESUMING was written without the source's proof of death
    durable: bool = False  # target: its images outlive a reboot
    ice: str = ""  # the directory that the tree goes to, on ice, or comes from: then there is no other host
    on_ice: bool = False  # all of the tree lies there, on disk


class Verdict(str, enum.Enum):
    """What `settle` shall make of a migration whose agent is gone or must give way."""

    ABORT = "abort"  # source: undo, the tree runs on. Target: discard (after HELD only if the source recorded ABORT)
    KILL = "kill"  # source, COMMIT recorded: make sure that the tree is dead, write KILLED
    RESUME = "resume"  # target, HELD recorded and the source proven dead: release, or restore again and release
    DEPOSE = "depose"  # source: an operator has given the tree to the target by his word, so it may not run here
    CLEAN = "clean"  # remove what is left behind after DONE, RESUMED or ABORT


@dataclasses.dataclass(frozen=True)
class Settle:
    migration: str
    verdict: Verdict
    word: Word = Word.NONE  # target, with RESUME


@dataclasses.dataclass(frozen=True)
class Settled:
    records: tuple[str, ...]
    pid: int  # of the tree where it runs now on this host; 0 where it does not
    leftovers: tuple[str, ...] = ()
    memory_lost: bool = False  # as in Leftovers


@dataclasses.dataclass(frozen=True)
class Listed:
    """One migration in a line."""

    migration: str
    role: str
    peer: str
    root: int
    records: tuple[str, ...]
    began: float  # seconds since the epoch
    changed: float  # when its last record was written
    at_work: bool  # somebody speaks to its agent, or it fills a running tree's memory


@dataclasses.dataclass(frozen=True)
class Migrations:
    items: tuple[Listed, ...]  # newest first


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a journal."""

    record: str  # in capitals a decision, in small letters a fact
    time: float  # seconds since the epoch; 0 where it was not noted
    facts: str  # the rest of it, as JSON


@dataclasses.dataclass(frozen=True)
class Living:
    """A process that belongs to a migration."""

    kind: str  # migrate, agent, criu, hook, rsync, pager, task
    pid: int
    state: str  # letter of /proc/PID/stat
    name: str


@dataclasses.dataclass(frozen=True)
class Story:
    """One migration as this host has it: its journal, and what there is of it now."""

    state: JournalState
    lines: tuple[Line, ...] = ()
    living: tuple[Living, ...] = ()
    held: bool = False  # its tree is frozen here, or restored and not let go yet
    at_work: bool = False  # as in Listed
    images: str = ""  # where they lie; "" where there are none
    image_bytes: int = 0
    journal: str = ""
    locks: tuple[str, ...] = ()
    placed: tuple[str, ...] = ()  # files that were put in their places here
    beside: tuple[str, ...] = ()  # temporary and saved files beside them


@dataclasses.dataclass(frozen=True)
class Interrupt:
    """Source: have the `migrate` that runs this migration undo it, as SIGTERM does."""

    migration: str


@dataclasses.dataclass(frozen=True)
class Interrupted:
    pid: int  # of that `migrate`; 0 where it is gone


@dataclasses.dataclass(frozen=True)
class Remain:
    """Something of a migration that is on this host."""

    kind: str  # as agent/leftovers.py lists them
    what: str  # its path or its name; of a process its PID
    detail: str
    migration: str  # "" where that can't be told
    in_use: bool  # by a migration that somebody is at work on
    remove: str  # the command that removes it
    size: int = 0  # bytes that it takes, of images


@dataclasses.dataclass(frozen=True)
class Remains:
    items: tuple[Remain, ...]


# --- on ice ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Hashed:
    """One image file of a tree on ice."""

    name: str  # below the tree's directory
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A tree on ice: what its images are, and what it needs of the host that it is restored on. A file beside them."""

    format: int
    id: str  # of the save; its directory has the same name
    time: float  # seconds since the epoch, in the freeze
    host: str
    boot: str
    version: str  # of migrate
    round: int  # whose images it is restored from; those before it hold what that one does not
    source: HostFacts
    tree: TreeFacts  # with its files as they were in the freeze
    options: CriuOptions
    terminal: str = ""  # it gets a new one
    scope: Scope = Scope()
    logged: tuple[Logged, ...] = ()
    images: tuple[Hashed, ...] = ()


@dataclasses.dataclass(frozen=True)
class LookAtIce:
    directory: str


@dataclasses.dataclass(frozen=True)
class ReadIce:
    """Answered when every image was read and is what the manifest says."""

    directory: str
    id: str


# --- the table -------------------------------------------------------------------------------------------------------


class Pace(float, enum.Enum):
    """Timeout class of a command, in seconds. Emulated machines are ten times slower than real ones: hence no haste."""

    QUICK = 120.0
    WORK = 900.0
    BULK = 86400.0  # ends with the stream that feeds it, not with a clock


@dataclasses.dataclass(frozen=True)
class Command:
    name: str
    arguments: type[object]
    result: type[object]
    role: str  # source, target, any
    pace: Pace


COMMANDS: tuple[Command, ...] = (
    Command("probe", Probe, HostFacts, "any", Pace.QUICK),
    Command("inspect", Inspect, TreeFacts, "source", Pace.WORK),
    Command("check", Check, TargetCheck, "target", Pace.WORK),
    Command("listen", Listen, Answers, "target", Pace.QUICK),
    Command("digest", Digest, Digests, "source", Pace.WORK),
    Command("begin", Begin, Prepared, "source", Pace.QUICK),
    Command("prepare", Prepare, Prepared, "target", Pace.QUICK),
    Command("accept", Accept, Nothing, "target", Pace.QUICK),
    Command("arrived", Arrived, Accepted, "target", Pace.BULK),
    Command("accept_done", AcceptDone, Accepted, "target", Pace.BULK),
    Command("pre_dump", PreDump, Dumped, "source", Pace.BULK),
    Command("throttle", Throttle, Throttled, "source", Pace.QUICK),
    Command("dump", Dump, Held, "source", Pace.BULK),
    Command("send_images", SendImages, Moved, "source", Pace.BULK),
    Command("receive_images", ReceiveImages, Moved, "target", Pace.BULK),
    Command("newly_opened", Nothing, NewFiles, "source", Pace.WORK),
    Command("add_files", AddFiles, Nothing, "source", Pace.QUICK),
    Command("stage", Stage, Nothing, "target", Pace.WORK),
    Command("copy_files", CopyFiles, Moved, "source", Pace.BULK),
    Command("take_files", TakeFiles, Moved, "target", Pace.BULK),
    Command("send_files", SendFiles, Moved, "source", Pace.BULK),
    Command("receive_files", ReceiveFiles, Moved, "target", Pace.BULK),
    Command("restore", Restore, Restored, "target", Pace.BULK),
    Command("commit", Nothing, Killed, "source", Pace.WORK),
    Command("resume", Resume, Resumed, "target", Pace.WORK),
    Command("fill", Nothing, Filled, "target", Pace.BULK),
    Command("abort", Abort, Leftovers, "any", Pace.WORK),
    Command("finish", Finish, Leftovers, "any", Pace.WORK),
    Command("journal", ReadJournal, JournalState, "any", Pace.QUICK),
    Command("settle", Settle, Settled, "any", Pace.WORK),
    Command("migrations", Nothing, Migrations, "any", Pace.QUICK),
    Command("story", ReadJournal, Story, "any", Pace.QUICK),
    Command("interrupt", Interrupt, Interrupted, "source", Pace.QUICK),
    Command("remains", Nothing, Remains, "any", Pace.WORK),
    Command("put_on_ice", PutOnIce, Nothing, "source", Pace.BULK),
    Command("snapshot", PutOnIce, Nothing, "source", Pace.BULK),
    Command("look_at_ice", LookAtIce, Ice, "any", Pace.WORK),
    Command("read_ice", ReadIce, Manifest, "target", Pace.BULK),
)

BY_NAME = {command.name: command for command in COMMANDS}


@dataclasses.dataclass(frozen=True)
class Banner:
    """The first line, either way."""

    product: str
    protocol: int
    version: str
    build: str
    rest: str = ""

    def line(self) -> str:
        """The banner as it is sent, without the newline."""
        words = [self.product, f"protocol={self.protocol}", f"version={self.version}", f"build={self.build}"]
        return " ".join(words + ([self.rest] if self.rest else []))

    @classmethod
    def parse(cls, line: str) -> Optional[Banner]:
        """The banner in a line, or None when the line is none of ours."""
        words = line.split()
        if len(words) < 4 or words[0] not in (PRODUCT, AGENT_PRODUCT):
            return None
        fields = dict(word.partition("=")[::2] for word in words[1:])
        number = fields.get("protocol", "")
        if not (number.isascii() and number.isdigit() and len(number) < 9):
            return None
        rest = " ".join(word for word in words[1:] if word.split("=")[0] not in ("protocol", "version", "build"))
        return cls(words[0], int(number), fields.get("version", ""), fields.get("build", ""), rest)


AGENT_PRODUCT = "migrate-agent"
