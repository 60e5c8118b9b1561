"""What moves, and what is refused and by which check: one row a kind, for the live test and for README's table.

A row is started on alpha, looked at, moved to beta, looked at, moved back to alpha, and looked at again. Most are made
by `programs/subject.py`, whose kinds say what is looked at; the rest is software that nobody here wrote.
"""

from __future__ import annotations

import dataclasses
import shlex

PLACE = "/srv/subject"
"""A directory of the tests' own, on both hosts, that anybody may write to."""
VERDICT = f"{PLACE}/verdict"


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of thing. Commands are the shell's, run by root in PLACE."""

    name: str
    looked_at: str  # after each hop, in words
    kinds: str = ""  # of subject.py, which is started with them
    under: str = ""  # what subject.py is started under, e.g. `setpriv …`
    start: str = ""  # another program; it ends in `exec …`: that is what moves
    look: str = ""  # prints what is wrong, nothing when all is well; knows $PID and $HOP (0, 1, 2)
    prepare: str = ""  # on both hosts, before the start
    there: str = ""  # on beta alone, before the start
    along: str = ""  # before each hop, on the host that it leaves, what an admin sends beforehand; knows $TO
    written: str = ""  # what it writes to: removed where it has left, since it would be in the way back there
    after: str = ""  # on both hosts, to leave nothing behind
    refused: str = ""  # id of the check that stops it
    warned: tuple[str, ...] = ()  # ids of checks that warn of it
    unseen: bool = False  # it is lost, and nothing can be said of it beforehand
    said: str = ""  # a word of what only the first hop itself finds out
    options: str = ""
    backends: tuple[str, ...] = ("netns", "vm")


ANSWER = f"""
[ $HOP = 0 ] || {{ rm -f {VERDICT}; kill -USR1 $PID; }}
until [ -e {VERDICT} ] || ! kill -0 $PID; do sleep 0.05; done
cat {VERDICT}
"""
"""How subject.py is looked at."""


def _python(text: str) -> str:
    return f"python3 -c {shlex.quote(text)}"


NGINX = f"""
cat >nginx.conf <<END
user USER;
worker_processes 2;
pid {PLACE}/nginx.pid;
error_log {PLACE}/error.log notice;
events {{ worker_connections 64; }}
http {{
    access_log {PLACE}/access.log;
    server {{ listen 127.0.0.1:7780; root {PLACE}/www; location = /name {{ return 200 "generation 0"; }} }}
}}
END
mkdir -p www; seq 100000 >www/numbers
"""
NGINX_LOOK = """
page() { python3 -c '
import sys, urllib.request
sys.stdout.write(urllib.request.urlopen("http://127.0.0.1:7780/" + sys.argv[1]).read().decode())' "$1"; }
page numbers | cmp - www/numbers
old=$(pgrep -P $PID | sort | tr '\\n' ' ')
[ $(echo $old | wc -w) = 2 ] || echo "workers: $old"
sed -i "s/generation [0-9]*/generation $HOP$HOP/" nginx.conf
kill -HUP $PID
for i in $(seq 600); do
    new=$(pgrep -P $PID | sort | tr '\\n' ' ')
    [ $(echo $new | wc -w) = 2 ] && [ "$new" != "$old" ] && [ "$(page name)" = "generation $HOP$HOP" ] && break
    sleep 0.1
done
[ "$(page name)" = "generation $HOP$HOP" ] || echo "after the reload: $(page name)"
[ "$new" != "$old" ] || echo "the same workers after the reload: $new"
"""
REDIS = f"""
exec redis-server --port 7777 --dir {PLACE} --save '' --appendonly yes --appendfsync always --daemonize no
"""
REDIS_LOOK = """
until redis-cli -p 7777 ping | grep -q PONG; do sleep 0.1; done
for hop in 0 1 2; do
    [ $hop -lt $HOP ] || continue
    [ "$(redis-cli -p 7777 eval 'local n = 0 for i = 1, 5000 do
        if redis.call("get", ARGV[1] .. ":" .. i) == ARGV[1] .. i then n = n + 1 end end return n' 0 $hop)" = 5000 ] ||
        echo "keys of hop $hop"
done
redis-cli -p 7777 eval 'for i = 1, 5000 do redis.call("set", ARGV[1] .. ":" .. i, ARGV[1] .. i) end' 0 $HOP >/dev/null
redis-cli -p 7777 bgrewriteaof >/dev/null
until redis-cli -p 7777 info persistence | tr -d '\\r' | grep -q aof_rewrite_in_progress:0; do sleep 0.1; done
redis-cli -p 7777 info persistence | tr -d '\\r' | grep -q aof_last_bgrewrite_status:ok || echo "rewrite failed"
redis-check-aof appendonlydir/appendonly.aof.manifest >check.out 2>&1 || cat check.out
# what is on disk, read by another server
rm -rf other; mkdir other; cp -r appendonlydir other/
redis-server --port 7776 --dir "$PWD/other" --save '' --appendonly yes --daemonize yes --pidfile '' >/dev/null
until redis-cli -p 7776 ping 2>/dev/null | grep -q PONG; do sleep 0.1; done
[ "$(redis-cli -p 7776 dbsize)" = $(( (HOP + 1) * 5000 )) ] || echo "on disk: $(redis-cli -p 7776 dbsize) keys"
redis-cli -p 7776 shutdown nosave
rm -rf other check.out
"""
MEMCACHED_LOOK = _python("""
import os, socket, time
hop = int(os.environ["HOP"])
def ask(line):
    client.sendall(line + b"\\r\\n")
    said = b""
    while not said.endswith((b"STORED\\r\\n", b"END\\r\\n")):
        said += client.recv(65536)
    return said
for number in range(250):  # each thread serves a connection at least
    while True:
        try:
            client = socket.create_connection(("127.0.0.1", 7778))
            break
        except OSError:
            time.sleep(0.1)
    with client:
        for before in range(hop):
            value = b"%d-%d" % (before, number) * 100
            found = ask(b"get key-%d-%d" % (before, number))
            if value not in found:
                print("key", before, number, found[:99])
        value = b"%d-%d" % (hop, number) * 100
        ask(b"set key-%d-%d 0 0 %d\\r\\n" % (hop, number, len(value)) + value)
        if number == 249 and b"STAT threads 200" not in (stats := ask(b"stats")):
            print(stats)
if len(os.listdir("/proc/%s/task" % os.environ["PID"])) < 201:
    print("threads are missing")
""")
NODE = """
cat >server.js <<'END'
const http = require('http'), crypto = require('crypto'), { Worker } = require('worker_threads');
const seen = new Map(); let ticks = 0;
setInterval(() => ticks++, 50);
const worker = new Worker(`const { parentPort } = require('worker_threads'); let total = 0;
    parentPort.on('message', n => parentPort.postMessage(total += n));`, { eval: true });
http.createServer((request, response) => {
    seen.set(request.url, (seen.get(request.url) || 0) + 1);
    worker.once('message', total => crypto.pbkdf2('word', 'salt', 1000, 32, 'sha256', (error, key) =>
        response.end(JSON.stringify({ seen: [...seen], ticks, total, key: key.toString('hex') }))));
    worker.postMessage(7);
}).listen(7779, '127.0.0.1');
END
"""
NODE_LOOK = _python("""
import hashlib, json, os, time, urllib.request
hop = int(os.environ["HOP"])
def ask():
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:7779/{hop}") as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.1)
first = ask()
while (second := ask())["ticks"] == first["ticks"]:
    time.sleep(0.1)
for before in range(hop):
    if not dict(first["seen"]).get(f"/{before}"):
        print("forgotten:", first)
if first["total"] != 7 * sum(dict(first["seen"]).values()):
    print("the worker:", first)
if first["key"] != hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 1000, 32).hex():
    print("the thread pool:", first)
""")
TMUX = """
cat >tmux.conf <<'END'
set -g exit-empty off
new-session -d -x 100 -y 40 -s main "env PS1='> ' bash --norc --noprofile"
END
"""
TMUX_LOOK = f"""
tm() {{ tmux -S {PLACE}/tmux "$@"; }}
screen() {{ tm capture-pane -p -t main; }}
# what the screen shows at last; typed once
shows() {{ for i in $(seq 300); do screen | grep -q -- "$1" && return; sleep 0.1; done; echo "no $1 in:"; screen; }}
until screen 2>/dev/null | grep -q '^>'; do sleep 0.1; done
if [ $HOP = 0 ]; then
    tm send-keys -t main 'sleep 100001 &' Enter
    tm send-keys -t main 'remembered=mango; sleep 100002' Enter
    until pgrep -f 'sleep 10000[2]' >/dev/null; do sleep 0.1; done
    tm send-keys -t main C-z
    shows 'Stopped.*sleep 100002'
    exit
fi
tm send-keys -t main "clear; echo $HOP-\\$remembered; jobs" Enter
shows "^$HOP-mango"; shows 'Running.*sleep 100001'; shows 'Stopped.*sleep 100002'
tm send-keys -t main 'fg %2' Enter
shows '^sleep 100002'
tm send-keys -t main C-z
tm send-keys -t main "clear; stty size; cat" Enter
shows '^40 100\\|^39 100'
tm send-keys -t main "typed-$HOP" Enter
shows "^typed-$HOP"
tm send-keys -t main C-c
tm send-keys -t main "echo status-\\$?" Enter
shows '^status-130'
"""
HTTP_LOOK = _python(f"""
import time, urllib.request
while True:
    try:
        with urllib.request.urlopen("http://127.0.0.1:7781/served") as answer:
            if answer.read() != open("{PLACE}/served", "rb").read():
                print("another file")
        break
    except OSError:
        time.sleep(0.1)
""")

SERVICE = """
cat >service.py <<'END'
import http.server, json, sqlite3, threading
database = sqlite3.connect("service.db", check_same_thread=False, isolation_level=None)
database.execute("pragma journal_mode = wal")
database.execute("create table if not exists seen (name text, thread integer)")
lock, barrier, total = threading.Lock(), threading.Barrier(8), [0]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        barrier.wait(60)  # eight at a time, or none
        with lock:
            total[0] += 1
            database.execute("insert into seen values (?, ?)", [self.path, threading.get_native_id()])
        barrier.wait(60)
        with lock:
            rows = database.execute("select name, count(*) from seen group by name").fetchall()
        body = json.dumps({"rows": rows, "total": total[0], "threads": threading.active_count()}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
def background(number):
    while True:
        waiting.wait(3600)
waiting = threading.Event()
for number in range(20):
    threading.Thread(target=background, args=[number], daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", 7782), Handler).serve_forever()
END
"""
SERVICE_LOOK = _python("""
import json, os, threading, time, urllib.request
hop, answers = int(os.environ["HOP"]), []
def ask():
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:7782/{hop}") as answer:
                answers.append(json.load(answer))
                return
        except OSError:
            time.sleep(0.1)
asking = [threading.Thread(target=ask) for _ in range(8)]
for one in asking: one.start()
for one in asking: one.join()
wanted = [[f"/{before}", 8] for before in range(hop + 1)]
for answer in answers:
    if answer["rows"] != wanted or answer["total"] != 8 * (hop + 1) or answer["threads"] < 21:
        print(answer)
""")

PROGRAMS = (
    Row(
        "nginx, master and workers", "serves a file; a reload brings new workers and the new configuration",
        start="sed -i s/USER/root/ nginx.conf; exec nginx -c /srv/subject/nginx.conf -g 'daemon off;'",
        look=NGINX_LOOK, prepare=NGINX, options="--copy-files", written="*.log", along='scp -q nginx.conf "$TO:$PWD/"',
    ),
    Row(
        "nginx with workers of another user", "the same",
        start="sed -i s/USER/www-data/ nginx.conf; exec nginx -c /srv/subject/nginx.conf -g 'daemon off;'",
        look=NGINX_LOOK, prepare=NGINX, options="--copy-files", written="*.log", along='scp -q nginx.conf "$TO:$PWD/"',
        backends=("vm",),
    ),
    Row(
        "redis with its append-only file", "all keys of before, new ones, a rewrite of the file, and what is on disk",
        start=REDIS, look=REDIS_LOOK, prepare="mkdir appendonlydir", options="--copy-files", written="appendonlydir/*",
        # the server has only the newest piece of it open, and only what is open comes along by itself
        along='for f in appendonlydir/*; do case $f in *.incr.aof) ;; *) scp -q "$f" "$TO:$PWD/appendonlydir/" ;; esac '
        "done",
    ),
    Row(
        "memcached with 200 threads", "all keys of before, new ones, an answer of each thread",
        start="exec memcached -u root -l 127.0.0.1 -p 7778 -U 0 -t 200 -c 4000", look=MEMCACHED_LOOK,
    ),
    Row(
        "Node.js with a worker thread, kept from io_uring", "its objects, timers, the worker's, and the thread pool",
        prepare=NODE, start="exec python3 /root/programs/without_io_uring.py node server.js", look=NODE_LOOK,
    ),
    Row("Node.js as it is, where it uses io_uring", "", prepare=NODE, start="exec node server.js", look=NODE_LOOK,
        refused="io-uring"),
    Row(
        "Python's http.server", "serves a file", prepare="seq 50000 >served",
        start="exec python3 -m http.server --bind 127.0.0.1 7781", look=HTTP_LOOK,
    ),
    Row(
        "a Python service with threads and an SQLite database", "rows of before, those of all its threads",
        prepare=SERVICE, start="exec python3 service.py", look=SERVICE_LOOK,
        options="--copy-files", written="service.db*",
    ),
    Row(
        "a shell with job control in tmux",
        "its variables, a job that runs and one that is stopped, fg, Ctrl-Z, Ctrl-C, the size of its terminal",
        prepare=TMUX, start=f"exec tmux -S {PLACE}/tmux -f tmux.conf -D", look=TMUX_LOOK,
    ),
)  # fmt: skip


SUBJECTS = (
    Row("niceness, scheduling policy, CPU affinity of each thread, I/O priority, timer slack", "each",
        "niceness batch_scheduling cpu_affinity io_priority timer_slack"),
    Row("real-time scheduling", "policy and priority", "real_time_scheduling"),
    Row("a deadline policy", "", "deadline_scheduling", refused="scheduling"),
    Row("resource limits, OOM score, core dump filter, umask, huge pages switched off, names of threads", "each",
        "limits oom_score core_dump_filter umask huge_pages_disabled names_of_threads"),
    Row("seccomp filters, capabilities, securebits, no-new-privileges, not being dumpable", "each, and that they bind",
        "capabilities securebits no_new_privileges seccomp_filter not_dumpable"),
    Row("a program that is another user for a while", "its users and groups, and its way back", "another_user",
        backends=("vm",)),
    Row("a program that gave up root", "its users and groups, and that there is no way back", "dropped_root",
        backends=("vm",)),
    Row("a program that gave up root, in a container without CAP_SYS_RESOURCE", "", "dropped_root",
        refused="capability", backends=("netns",)),
    Row("a subreaper; a child with a parent-death signal", "who gets its orphans; the signal",
        "subreaper parent_death_signal"),
    Row("a parent-death signal whose parent stays", "that it lives: the signal stays behind, which is said", "umask",
        under="sh -c 'until [ $(ps -o ppid= -p $$) = 1 ]; do sleep 0.1; done; exec \"$@\"' sh setpriv --pdeathsig TERM",
        said="parent-death"),
    Row("a Landlock sandbox", "that it goes on without: nothing tells of one from outside",
        "lost_sandbox", unseen=True),
    Row("keys in a keyring of its session", "the same", "lost_keyring", unseen=True),
    Row("a personality", "that it goes on without", "lost_personality", warned=("personality",)),
    Row("limits of its cgroup", "that it goes on without", "umask", warned=("cgroup-limits",),
        under="sh -c 'mkdir -p /sys/fs/cgroup/subject; echo 500000000 >/sys/fs/cgroup/subject/memory.max; "
        "echo $$ >/sys/fs/cgroup/subject/cgroup.procs; exec \"$@\"' sh",
        after="rmdir /sys/fs/cgroup/subject 2>/dev/null; true", backends=("vm",)),
    Row("a large environment", "all of it", "huge_environment",
        under="python3 -c 'import os, sys; os.execvpe(sys.argv[1], sys.argv[1:], "
        '{**os.environ, **{f"VARIABLE_{n}": "x" * 1000 for n in range(1000)}})\''),
    Row("clocks, of a process that has a time of its own", "they do not go back, nor jump", "clocks cpu_timers",
        under="unshare --time --monotonic 100000 --boottime 200000"),
    Row("timers under way: setitimer, timer_create, timerfd, a sleep", "each fires once, not before its time",
        "clocks interval_timer posix_timer timer_descriptor sleeping"),
    Row("eventfd, epoll, signalfd, signals that wait, handlers", "counts, what is ready, order and values",
        "event_descriptor epoll signal_descriptor pending_signals signal_handlers"),
    Row("an eventfd that is a semaphore", "", "event_semaphore", refused="eventfd-semaphore"),
    Row("inotify", "that it sees what happens on the host where it is", "inotify", prepare="mkdir watched"),
    Row("file locks of all three kinds, positions, flags, a log", "locks bind others; every line is there once",
        "locks positions_and_flags appended_file working_directory", options="--copy-files",
        prepare="mkdir standing", written="flock posix ofd log read"),
    Row("a file mapped shared and private", "what was written on each side", "mapped_file", options="--copy-files",
        written="mapped"),
    Row("deleted files and directories", "content, holes, size, mappings", "deleted_file deleted_directory"),
    Row("a file with another name left", "", "deleted_name_of_two", refused="link-remap"),
    Row("a lease on a file", "", "lease", refused="file-leased", options="--copy-files"),
    Row("pipes, a FIFO", "data under way, sizes, ends", "pipes fifo", prepare="mkfifo fifo"),
    Row("unix sockets, a descriptor under way", "data, answers", "unix_sockets descriptor_under_way"),
    Row("a unix socket whose file was renamed", "", "renamed_socket", refused="socket-moved"),
    Row("sockets that listen on TCP and UDP, IPv4 and IPv6", "answers, options", "ip_sockets"),
    Row("a TCP connection inside the tree", "", "connection_inside", refused="tcp-established"),
    Row("a pseudo-terminal with both ends", "size, settings, lines", "terminals"),
    Row("memory shared with a child, copied on write, locked, advised, sealed memfds", "content, seals and flags",
        "shared_with_a_child memory_file advised_memory copied_on_write"),
    Row("200 threads", "each has what it had", "two_hundred_threads"),
    Row("asynchronous I/O: a context of io_setup", "that it reads", "asynchronous_io"),
    Row("System V shared memory", "", "system_v_memory", refused="sysv-shm"),
    Row("System V semaphores and message queues", "", "system_v_others", refused="sysv-ipc",
        after="ipcrm -S 0x5eaf -Q 0x5eaf 2>/dev/null; true"),
    Row("System V IPC of all kinds, and a host's name, in namespaces of its own",
        "content, messages, numbers; the name",
        "system_v_memory system_v_others name_of_the_host", under="unshare --ipc --uts"),
    Row("a network namespace of its own", "", "umask", under="unshare --net", refused="namespace"),
    Row("zombies, stopped children, sessions, process groups, pidfds", "states, exit status, numbers, signals",
        "zombie stopped sessions_and_groups pid_file_descriptor"),
)  # fmt: skip

ROWS = (*PROGRAMS, *SUBJECTS)


def readme_table() -> str:
    """README's table of what migrates."""
    lines = ["| what | | what was looked at after each of two hops |", "|---|---|---|"]
    for row in ROWS:
        verdict = f"refused: `{row.refused}`" if row.refused else "moves"
        if row.unseen:
            verdict += " without it, **not seen**"
        if row.warned:
            verdict += ", warns: " + ", ".join(f"`{id_}`" for id_ in row.warned)
        lines.append(f"| {row.name} | {verdict} | {row.looked_at} |")
    return "\n".join(lines) + "\n"
