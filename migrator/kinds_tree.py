"""Kinds of obstacles: what a process is, and what it holds that is no file."""

from __future__ import annotations

from migrator.kinds import Kind

ROWS = (
    Kind(
        "is-self", "it is migrate itself",
        "is migrate's own process", "name the process that is to be moved",
        "A process that is being dumped stands still, so migrate cannot move itself or its own agent.",
    ),
    Kind(
        "is-ancestor", "migrate runs under it",
        "is {detail}, which migrate itself runs under",
        "start migrate from another session: another login, or `systemd-run --pty migrate …`",
        "The tree would contain migrate, which would be frozen together with it and never come to the end. Mostly it "
        "is the shell, the terminal multiplexer or the sshd from which migrate was started.",
    ),
    Kind(
        "is-init", "it is the first process of the host",
        "is {detail}, the first process of this host", "name the process that is to be moved",
        "PID 1 cannot leave its host, and every process is a descendant of it.",
    ),
    Kind(
        "kernel-thread", "it is a thread of the kernel",
        "is the kernel's own thread {detail}", "name a process, not a kernel thread",
        "What ps shows in square brackets runs in the kernel and has no memory of its own that could be moved.",
    ),
    Kind(
        "zombie", "it has ended already",
        "{name} has ended already", "nothing is left to be moved",
        "The process is a zombie: it ended, and its parent has not asked for its exit status yet. Zombies below the "
        "root of the tree do move.",
    ),
    Kind(
        "zombie-leader", "its first thread has ended while others run",
        "{detail}: its first thread has ended while others run, which criu refuses",
        "it can't be moved in this state; restart the program",
        "criu needs a process's first thread to get into it. A few programs end theirs with pthread_exit(3) and go on "
        "in others; /proc then shows the whole process as a zombie.",
    ),
    Kind(
        "tracer", "a debugger or strace is attached to it",
        "is traced by {detail}", "detach a debugger or strace; wait for a criu",
        "criu uses ptrace(2) itself, and only one tracer may be attached at a time. The one that is attached is named: "
        "`quit` in gdb and Ctrl-C in strace let the process run on.",
    ),
    Kind(
        "uninterruptible", "a thread of it cannot be stopped",
        "sleeps uninterruptibly in the kernel ({detail})",
        "see what it waits for: `cat /proc/PID/task/TID/stack`; a disk, network storage, or a child of vfork(2)",
        "criu stops every thread before it dumps. One in state D hears no signal: criu waits ten seconds for it, with "
        "the rest of the tree frozen, and gives up. A disk lets it go at once; a server that does not answer, or a "
        "child of vfork(2) that neither executes nor ends, does not.",
    ),
    Kind(
        "thread-apart", "a thread has descriptors, directories or namespaces of its own",
        "has of its own: {detail}", "it can't be moved in this state",
        "criu takes all that from the first thread of a process and gives it to every thread. What one has made its "
        "own with unshare(2) or setns(2) would be exchanged for it without a word.",
    ),
    Kind(
        "capability", "root lacks a capability that criu needs",
        "is missing, and criu needs it to dump {detail}: this host seems to be a container",
        "run migrate where root has it, or give it to the container",
        "Reading the resource limits of another user's process takes CAP_SYS_RESOURCE, which root has on a host but "
        "not in every container. criu then fails in the middle of the dump.",
    ),
    Kind(
        "namespace", "it has namespaces of its own, as containers and sandboxes do",
        "{detail} runs in a {object} namespace of its own",
        "containers and sandboxes can't be moved; start the program outside of one",
        "A mount, PID, network or user namespace of its own is a view of the host that would have to be made anew on "
        "the target, with its mounts, addresses and devices; migrate does not. An IPC or UTS namespace comes along, if "
        "all of the tree and nobody else is in it. Also some systemd options give a "
        "service one (PrivateTmp=, ProtectSystem= and their like). The time namespace that a restored tree is in does "
        "not count, nor does the PID namespace that -n has given it: move the tree below its `migrate-init`, not that "
        "process itself.",
    ),
    Kind(
        "device", "it holds a device that criu does not know",
        "{detail}: what a device knows does not travel", "let the program close it",
        "An open device is a conversation with a driver, and its state lies in the kernel or in hardware. criu carries "
        "null, zero, full, random, urandom, kmsg and terminals, and refuses any other in the dump.",
    ),
    Kind(
        "gpu", "it uses a GPU",
        "is a GPU: what the process keeps in it does not travel",
        "let the program give up the GPU, or run it without one",
        "Memory and queues of a GPU lie in the device and its driver. criu has plugins for some AMD and NVIDIA "
        "devices, for the same device in the same host; migrate uses none of them.",
    ),
    Kind(
        "terminal", "it is attached to a terminal that is not part of it",
        "{detail}: its other end stays here",
        "--attach: it goes on in the terminal that migrate runs in; --detach: in one that is held on the target",
        "The other end of a terminal is held by sshd, a terminal window or the console, which stay here. With "
        "`--attach` the process gets the terminal of `migrate` itself, over the SSH session, and you go on typing; "
        "when that session ends it gets SIGHUP. With `--detach` it gets one that stays on the target, and the command "
        "that shows it is printed. Where the whole tmux or screen server moves, both ends do, and neither is needed.",
    ),
    Kind(
        "terminals", "it is attached to more than one terminal",
        "{detail}, beside {other}: --attach and --detach give a tree one terminal",
        "close the other one, or move the processes of each by themselves",
        "A tree that was given several terminals, as a debugger with its program in a second window, would have them "
        "all become one.",
    ),
    Kind(
        "no-terminal", "it has no terminal, and --attach or --detach was asked for",
        "it is attached to no terminal whose other end is outside of it", "leave --attach and --detach",
        "Both are for processes that somebody types to. A process without a terminal needs neither; one that has only "
        "been started in a terminal, with its input and output redirected, is moved as a shell's job.",
    ),
    Kind(
        "sysv-shm", "it uses System V shared memory",
        "System V shared memory belongs to the host, not to the tree",
        "start the program by `unshare --ipc`, or let it use mmap or POSIX shared memory",
        "Segments of shmget(2) have an id that is unique on a host, and live on without any process. criu carries them "
        "only together with an IPC namespace: started by `unshare --ipc`, a program has one to itself, and moves. "
        "PostgreSQL has `shared_memory_type = mmap`.",
    ),
    Kind(
        "mqueue", "it holds a POSIX message queue open",
        "message queues belong to the host, not to the tree", "let the program close it, or use a unix socket",
        "A queue of mq_open(3) lies in a file system of the kernel's own, with its messages. criu does not know it and "
        "fails in the dump.",
    ),
    Kind(
        "io-uring", "it uses io_uring",
        "criu can't carry it", "switch it off in the program, or with kernel.io_uring_disabled",
        "Requests that are under way in the rings lie in the kernel, and criu refuses the descriptor. Many programs "
        "fall back to epoll where io_uring is not to be had: `sysctl kernel.io_uring_disabled=2` before they start, or "
        "`SystemCallFilter=~io_uring_setup:ENOSYS` in their unit. Node.js 24 is one of them.",
    ),
    Kind(
        "pidfd", "it holds pidfds, for which criu is too old",
        "can't carry pidfds, and the tree holds some", "install criu {needed} or newer",
        "A pidfd is a descriptor that means a process. criu carries those that mean a process of the tree from 4.1 on.",
    ),
    Kind(
        "pidfd-outside", "it holds a pidfd of a process outside the tree",
        "the tree holds a pidfd that means {detail}, which stays here",
        "let the program close it, or move both by naming their common parent",
        "A pidfd means one process of one host. criu refuses one whose process is not in the tree.",
    ),
    Kind(
        "anon-inode", "it holds a descriptor of a kind that criu refuses",
        "a descriptor of this kind is refused by criu", "let the program close it",
        "perf events, BPF programs and links, userfaultfd, KVM, landlock and more come as descriptors without a file, "
        "whose state lies in the kernel. criu carries eventfd, epoll, inotify, fanotify, signalfd and timerfd, and "
        "refuses the others in the dump (BPF maps as well, unless it was built with libbpf, as few are).",
    ),
    Kind(
        "socket-kind", "it has sockets of a kind that criu refuses",
        "sockets of this kind are refused by criu", "let the program close them",
        "criu carries TCP, UDP, UDP-Lite, raw, ping, packet, netlink and unix sockets; not SCTP, DCCP, MPTCP, "
        "vsock, Bluetooth, AF_ALG and others. Go programs listen on MPTCP by themselves from Go 1.24 on: "
        "`GODEBUG=multipathtcp=0` makes it TCP.",
    ),
    Kind(
        "external-pipe", "a pipe or FIFO is shared with a process outside the tree",
        "its other end is held by {detail}, outside of the tree",
        "send it to a file instead, or move both by naming their common parent",
        "criu would make the pipe anew with nobody at the other end: a reader then sees its end, a writer dies of "
        "SIGPIPE. Mostly it is a shell's pipeline, or the log of whoever started the program.",
    ),
    Kind(
        "packet-pipe", "a pipe keeps packets apart, which criu refuses",
        "a pipe in packet mode (O_DIRECT) is refused by criu", "let the program close it",
        "A pipe of pipe2(2) with O_DIRECT gives what was written piece by piece. criu does not know how to fill it "
        "so again, and fails in the dump.",
    ),
    Kind(
        "external-unix", "a unix socket is connected to a process outside the tree",
        "a unix {detail} socket is connected to it, and it stays here",
        "let the program close the connection, or move both by naming their common parent",
        "A connection with D-Bus, a database or an agent on this host cannot be carried over: the other side holds "
        "half of it. Datagram sockets that send to a path, as to syslog, are connected anew on the target.",
    ),
    Kind(
        "unix-waiting", "a unix connection with data waits to be accepted",
        "a connection of the tree waits there to be accepted, and has sent something", "try again",
        "criu can't carry what was sent on a connection that the listening side has not accepted yet. Mostly that is a "
        "matter of a moment; where it stays so, the program does not accept any more.",
    ),
    Kind(
        "tcp-established", "it has established TCP connections",
        "TCP connection, {detail}", "--move-address takes an address along, with its connections; --tcp close closes "
        "them",
        "A connection belongs to an address. With `--move-address` that moves, and its connections go on; where it is "
        "this host's own, the peer would talk to a host that knows nothing of it. `ss -tnp` lists them; for a server, "
        "take it out of the load balancer first. With `--tcp close` the program finds all its connections closed, "
        "as if its peers had gone, and these see their end. A connection that waits to be accepted can't be "
        "taken along at all: mostly that is a matter of a moment.",
    ),
    Kind(
        "tcp-closed", "its TCP connections will be closed (`--tcp close`)",
        "TCP connection, {detail}: it will be closed", "the peer has to connect anew",
        "On the target the program finds it closed; the peer sees its end when the process is ended on the source. "
        "What was under way in it is lost.",
        stops=False,
    ),
    Kind(
        "eventfd-semaphore", "it holds an eventfd that counts as a semaphore",
        "criu makes it an ordinary one, whose first read takes all of its count", "let the program close it",
        "With EFD_SEMAPHORE each read of an eventfd(2) takes one of its count. criu does not write that down, and makes"
        " an ordinary one of it: the program would let in one where it should let in several. The kernel tells them "
        "apart from 6.5 on; before, nobody can see it.",
    ),
    Kind(
        "personality", "it runs with a personality of its own",
        "has the personality {object}, which criu leaves behind", "where it matters, start it anew there under setarch",
        "personality(2), as set by `setarch -R` and alike, switches off the random layout of addresses, or lets a "
        "program see an older kernel. Only the process itself can set it, and criu does not: on the target programs "
        "that it starts have the usual one. What is mapped already stays where it is.",
        stops=False,
    ),
    Kind(
        "scheduling", "it has a scheduling policy that criu cannot restore",
        "has a thread under {object}, which criu refuses on restore", "here: chrt --other --pid 0 THREAD",
        "criu carries the policies OTHER, BATCH, IDLE, FIFO and RR, with their priorities. It dumps a thread of another"
        " one, as SCHED_DEADLINE, without the numbers that belong to it, and the restore fails.",
    ),
    Kind(
        "sysv-ipc", "it uses System V semaphores, message queues, or a segment that it has not attached",
        "used the System V {detail} {object}, which belongs to the host, not to the tree",
        "start the program by `unshare --ipc`, or let it use semaphores and queues of POSIX, or unix sockets",
        "Semaphores of semget(2) and queues of msgget(2) lie in the kernel and outlive every process. criu carries them"
        " only together with an IPC namespace, and says nothing otherwise: on the target the program would find that "
        "they are gone. Those are found that a process of the tree was the last to use, and segments of shmget(2) that "
        "it has made and nobody has attached.",
    ),
)  # fmt: skip
