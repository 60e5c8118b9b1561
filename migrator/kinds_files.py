"""Kinds of obstacles: the files and paths of a tree, as they are on the target."""

from __future__ import annotations

from migrator.kinds import Kind

ROWS = (
    Kind(
        "file-missing", "a file or directory of the tree is not on the target",
        "not there", "make it what it is on the source",
        "criu opens every file of the tree anew on the target, by its path, and the restore fails where one is "
        "missing. Programs and libraries come with their package; --copy-files brings along regular files that are no "
        "programs; what lies on network storage needs the same mount there.",
    ),
    Kind(
        "directory-missing", "a directory that a copied file or a socket needs is not on the target",
        "not there, and {why}", "there: mkdir -p {quoted}",
        "Files that come along and unix sockets are made in their directory, and migrate never makes one: its owner "
        "and mode are for whoever runs the target to say.",
    ),
    Kind(
        "file-kind", "what is at that path on the target is of another type",
        "is a {there} there, not a {here}", "make it what it is on the source",
        "A directory in place of a file, or a device with other numbers, would be opened by criu and then be something "
        "else than what the process believes that it holds.",
    ),
    Kind(
        "file-size", "a file that is only read has another size on the target",
        "has {there} bytes, not {here}", "make it what it is on the source",
        "criu compares the size of every regular file and refuses one that differs, since the process may have read "
        "its length, or mapped it. Programs, libraries and data files must be the same: the same package, rsync, or a "
        "restart of the program after an upgrade here.",
    ),
    Kind(
        "file-mode", "a file has another mode on the target",
        "has mode {there:04o}, not {here:04o}", "there: chmod {here:o} {quoted}",
        "criu compares the permission bits of every file that it opens, and refuses one that differs.",
    ),
    Kind(
        "file-owner", "a file has another owner or group on the target",
        "belongs to {there} there, here to {here}", "there: chown {here} {quoted}",
        "The process has the file open already and goes on reading it. But where it opens it again, it may not be "
        "allowed to; and somebody else may write to it.",
        stops=False,
    ),
    Kind(
        "file-content", "a file has the same size but another content on the target",
        "has the same size, but another content", "make it what it is on the source",
        "Only --verify hash looks: files whose size agrees while the time differs are read on both hosts and their "
        "sha256 compared. criu never compares content.",
    ),
    Kind(
        "not-shared", "a file on network storage is not on the same storage on the target",
        "lies on {there} there, on {here} here", "mount that network file system there as well",
        "The path is there, but not on the file system that the source has it on: a directory under a mount point "
        "whose mount is missing, or another export. The process would go on with another file than its own.",
    ),
    Kind(
        "file-system", "a file lies on another type of file system on the target",
        "lies on {there} there, on {here} here", "mount a file system of the same type there, or move the file",
        "What is on disk on one host and in memory (tmpfs) on the other is gone after a reboot of the one, and takes "
        "memory. The process does not see a difference while it runs.",
        stops=False,
    ),
    Kind(
        "watch-missing", "what the tree watches with inotify or fanotify is not on the target",
        "is watched with {how}, and not there", "make it what it is on the source",
        "criu watches the same path on the target, and the restore fails where there is none. Events that were "
        "waiting to be read are lost.",
    ),
    Kind(
        "watch-lost", "what the tree watches with inotify or fanotify has no path",
        "is watched with {detail}, and no path leads to it",
        "let the program drop that watch, or give the file its name back",
        "The kernel tells a watch by the number of its file only. criu finds the path from it; where there is none, it "
        "gives up, or watches on the target whatever file has that number there.",
    ),
    Kind(
        "library-build", "a program or library is another build on the target",
        "is another build", "install the same version of its package on both hosts",
        "The code of programs and libraries is not part of the images: the process goes on in the file that the target "
        "has. In another build its next instruction is a different one. criu compares build ids (`readelf -n`) as "
        "well. After an upgrade here the program must be restarted before it can be moved.",
    ),
    Kind(
        "file-written", "a file that the tree writes to must come along",
        "the tree has it open for writing, so it must come along", "give --copy-files to take it along",
        "criu compares sizes and never content, so a file that the process writes to is not the same on both hosts "
        "unless it is brought along, what changed last in the freeze. --copy-files does that. What runs and is open "
        "for writing is never copied.",
    ),
    Kind(
        "file-differs", "a file that is to come along would overwrite another one",
        "is there already and differs", "move it away if it is not needed, or give --overwrite-files to replace it",
        "There is a file of that name on the target whose size or time differs. It may be another program's, or what "
        "an earlier run left: migrate does not replace it unless it is told to. Then the one that was there is kept "
        "aside until the process runs, and put back if it does not come to that.",
    ),
    Kind(
        "files-room", "no room on the target for the files that are to come along",
        "{free} free on {mount}; the files that are to come along there take {needed}",
        "make room there, or copy what does not change beforehand",
        "With --copy-files each file is written beside its place before it takes it, also where another one is "
        "replaced. A file that grows while it is being moved takes more than what is counted here.",
    ),
    Kind(
        "file-leased", "a file that is to come along has a lease",
        "has a lease, which reading it would break", "let the program give it up",
        "Opening a file for which a process holds a lease (fcntl(2), F_SETLEASE) sends that process a signal, which "
        "ends one that does not expect it. Samba is nearly the only program that uses them.",
    ),
    Kind(
        "link-remap", "a file is held open whose name is gone while other names of it remain",
        "is held open, its name is gone, but other names of it remain, which criu can't carry to another host",
        "give the file its name back, or let the program close it",
        "A file without any name travels within the images. One that still has another name (a hard link) is a file of "
        "the host: criu would give it a temporary name here, which does not exist on the target.",
    ),
    Kind(
        "socket-taken", "the path or name of a unix socket is in use on the target",
        "{what}; criu would remove it", "end that service, or move the file",
        "criu binds the socket anew and removes whatever is at its path. That would be another service's socket, or a "
        "file. A name that is no path (@name) is taken as long as a socket there has it.",
    ),
    Kind(
        "socket-moved", "the file of a unix socket was moved since it was bound",
        "was {detail} when the socket was bound to it, and criu would bind it there again",
        "let the program bind it to that path itself, e.g. by a restart",
        "Some programs bind a socket to one path and rename it to another, so that it is never missing. criu knows the "
        "first alone: on the target nobody would find the socket where it is looked for.",
    ),
    Kind(
        "socket-missing", "a unix socket that the tree sends to has no owner on the target",
        "the tree sends to it", "start the service there that owns it",
        "Datagram sockets that send to a path, as to syslog's /dev/log, are connected anew on the target, to the "
        "socket of that path. The restore fails where nobody is bound to it.",
    ),
)  # fmt: skip
