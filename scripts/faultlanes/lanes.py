"""The lanes. Each returns a line of figures, and raises when a promise is broken."""

import json
import os
import random
import re
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from .machine import FailingFilesystem, Filesystem, need_filesystem, need_program, read_past_cache, run
from .servers import Ledger, beamlog, finish, nats_server

# Cycles on one store; then a new one begins, so that an audit reads what a few seconds wrote.
CYCLES_PER_STORE = 10
FINDINGS = ("lost", "moved", "duplicated", "disordered", "corrupt", "consumers_gone_back", "seen_by_clients")


class Broken(Exception):
    """A promise was broken."""


def judge(verdict, where):
    if not verdict["clean"]:
        found = {name: verdict[name] for name in FINDINGS if verdict[name]}
        raise Broken(f"{where}: {found}; {verdict['examples']}")


def bound(cycles):
    """The rate of failures that no failure in so many cycles excludes with 95 % confidence."""
    return f"{100 * (1 - 0.05 ** (1 / cycles)):.2f} %"


def power_cut(context, kind="ext4"):
    """A loaded server loses its power at a random moment; every ack it gave is there afterwards."""
    need_filesystem(kind)
    context.programs.ours("beamlog-ledger")
    cycles, acked, confirmed, idle, starts = context.cycles, 0, 0, 0, []
    done = 0
    while done < cycles:
        round_ = done // CYCLES_PER_STORE
        # Every other store rolls and compacts often.
        arguments = ["--segment-bytes", "16MiB"] if round_ % 2 else []
        message_bytes = (128, 1024, 300)[round_ % 3]
        with Filesystem(kind, "3G") as filesystem, tempfile.TemporaryDirectory() as outside:
            outside = Path(outside)
            ledger = Ledger(context.programs, outside / "ledger", message_bytes=message_bytes)
            data, log = filesystem.mountpoint / "data", outside / "server.log"
            for _ in range(min(CYCLES_PER_STORE, cycles - done)):
                with beamlog(context.programs, data, log, arguments=arguments) as server:
                    server.wait_until_it_serves()
                    load = ledger.load(server)
                    context.sleep(0.2, 1.5)
                    # The processor stops with the disk. (A process that ran on would ask kernels what they do
                    # not promise: a sync that meets the shutdown may return 0 on ext4 and XFS, without the
                    # bytes.)
                    server.freeze()
                    filesystem.cut_power()
                    server.kill()
                    loaded = finish(load)
                filesystem.restart()
                begin = time.monotonic()
                with beamlog(context.programs, data, log, arguments=arguments) as server:
                    server.wait_until_it_serves()
                    starts.append(time.monotonic() - begin)
                    verdict = ledger.verify(server)
                    done += 1
                    judge(verdict, f"cycle {done}, seed {context.seed}")
                    if server.stop() != 0:
                        raise Broken(f"cycle {done}: a clean stop failed: {server.tail()}")
                acked += loaded["acked"]
                confirmed += loaded["confirmed"]
                idle += loaded["acked"] == 0
                if done % 25 == 0:
                    print(f"  {done} cycles, {acked} acked, 0 lost", flush=True)
    if idle > cycles // 4:
        raise Broken(f"nothing was acknowledged in {idle} of {cycles} cycles, so nothing was tested there")
    return (
        f"{kind}: {cycles} power cuts, {acked} publishes acked and {confirmed} acks confirmed, 0 lost "
        f"(a loss in fewer than {bound(cycles)} of cuts is not excluded); longest start {max(starts):.2f} s"
    )


def peer(context, kind="ext4"):
    """nats-server with its defaults in the same lane loses: the lane can see loss."""
    need_filesystem(kind)
    context.programs.nats_server()
    figures = {}
    for name, sync in (("default", None), ("sync_interval: always", "always")):
        with Filesystem(kind, "2G") as filesystem, tempfile.TemporaryDirectory() as outside:
            outside = Path(outside)
            ledger = Ledger(context.programs, outside / "ledger")
            data, log = filesystem.mountpoint / "data", outside / "server.log"
            with nats_server(context.programs, data, log, sync) as server:
                server.wait_until_it_serves()
                load = ledger.load(server, "--no-consumers")
                context.sleep(2.0, 3.0)
                server.freeze()
                filesystem.cut_power()
                server.kill()
                loaded = finish(load)
            filesystem.restart()
            with nats_server(context.programs, data, log, sync) as server:
                server.wait_until_it_serves()
                verdict = ledger.verify(server)
            figures[name] = (verdict["lost"], loaded["acked"])
    lost, acked = figures["default"]
    if lost == 0:
        raise Broken(f"nats-server lost nothing of {acked}: this lane cannot see loss")
    return "nats-server: " + "; ".join(f"{name}: {lost} of {acked} acked lost" for name, (lost, acked) in figures.items())


def failed_sync(context):
    """The n-th fdatasync fails: no ack after it, the process ends, and after a power cut all acks hold."""
    need_filesystem("ext4")
    need_program("strace")
    acked, runs = 0, 0
    # Early ones fall into the first start; later ones into the load. Once, and from then on.
    for when in ("20", "57", "57+", "300", "1000+"):
        with Filesystem("ext4", "1G") as filesystem, tempfile.TemporaryDirectory() as outside:
            outside = Path(outside)
            ledger = Ledger(context.programs, outside / "ledger")
            data, log, trace = filesystem.mountpoint / "data", outside / "server.log", outside / "trace"
            inject = [
                "strace", "-D", "-f", "-qq", "-o", trace, "-e", "trace=fdatasync", "-e",
                f"inject=fdatasync:error=EIO:when={when}",
            ]
            with beamlog(context.programs, data, log, before=inject) as server:
                server.wait_until_it_serves()
                load = ledger.load(server)
                code = server.wait(60)
                if code is None:
                    raise Broken(f"fdatasync {when} failed and the process goes on: {server.tail()}")
                if code == 0:
                    raise Broken(f"fdatasync {when} failed and the process ended as if nothing had happened")
                loaded = finish(load)
            if "(INJECTED)" not in trace.read_text():
                raise RuntimeError(f"no fdatasync {when} was reached")
            # What the failed sync did not bring to the medium is gone now, as it may be.
            filesystem.cut_power()
            filesystem.restart()
            with beamlog(context.programs, data, log) as server:
                server.wait_until_it_serves()
                judge(ledger.verify(server), f"after the failure of fdatasync {when}")
                server.stop()
            acked += loaded["acked"]
            runs += 1
    return f"{runs} failed syncs, each ended the process; {acked} acked before them, 0 lost after a power cut"


def poisoned_cache(context):
    """The disk refuses a write, the cache keeps it: a restart must believe the disk and not the cache (DR2)."""
    attempts = max(3, context.cycles // 5)
    poisoned = acked = aborted = 0
    for attempt in range(attempts):
        with FailingFilesystem() as filesystem, tempfile.TemporaryDirectory() as outside:
            outside = Path(outside)
            ledger = Ledger(context.programs, outside / "ledger")
            data, log = filesystem.mountpoint / "data", outside / "server.log"
            with beamlog(context.programs, data, log) as server:
                server.wait_until_it_serves()
                load = ledger.load(server)
                context.sleep(0.3, 0.8)
                filesystem.fail_writes(True)
                code = server.wait(60)
                filesystem.fail_writes(False)
                if code in (None, 0):
                    raise Broken(f"the disk failed and the process went on or ended with {code}: {server.tail()}")
                loaded = finish(load)
            acked += loaded["acked"]
            # No remount: the cache lives on. Is there a difference to believe in?
            for segment in sorted((data / "shard-0000").glob("*.seg")):
                poisoned += segment.read_bytes() != read_past_cache(segment)
            if "emergency_ro" in Path("/proc/mounts").read_text() or not writable(filesystem.mountpoint):
                # The filesystem's own journal met the failure, too: only a remount helps.
                aborted += 1
                filesystem.restart()
            with beamlog(context.programs, data, log) as server:
                server.wait_until_it_serves()
                judge(ledger.verify(server), f"restart over a poisoned cache, attempt {attempt}")
                # And what is promised from now on must survive a power cut.
                load = ledger.load(server)
                context.sleep(0.3, 0.5)
                server.freeze()
                filesystem.cut_power()
                server.kill()
                acked += finish(load)["acked"]
            filesystem.restart()
            with beamlog(context.programs, data, log) as server:
                server.wait_until_it_serves()
                judge(ledger.verify(server), f"power cut after a poisoned cache, attempt {attempt}")
                server.stop()
    if poisoned == 0 or aborted == attempts:
        raise Broken(f"no start over a poisoned cache in {attempts} attempts, so nothing was tested")
    return f"{attempts} failing disks, {poisoned} poisoned files seen, {aborted} needed a remount; {acked} acked, 0 lost"


def writable(directory):
    try:
        (directory / "probe").write_bytes(b"x")
        (directory / "probe").unlink()
        return True
    except OSError:
        return False


def killed_at_system_calls(context):
    """SIGKILL at the n-th system call of a kind that changes the disk, for many n."""
    need_program("strace")
    calls = ("pwrite64", "fdatasync", "rename", "openat", "fallocate", "ftruncate", "unlink", "fsync")
    chooser = random.Random(context.seed)
    kills = acked = 0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        folder = Path(folder)
        ledger = Ledger(context.programs, folder / "ledger")
        data, log = folder / "data", folder / "server.log"
        for cycle in range(context.cycles):
            call = calls[cycle % len(calls)]
            # The start has some dozens of them, the load thousands.
            when = chooser.randint(1, 40) if cycle % 3 else chooser.randint(40, 1500)
            inject = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
                      f"inject={call}:signal=SIGKILL:when={when}"]
            with beamlog(context.programs, data, log, before=inject, arguments=["--segment-bytes", "16MiB"]) as server:
                try:
                    server.wait_until_it_serves()
                except RuntimeError as error:
                    if server.process.poll() != -9:
                        raise Broken(f"SIGKILL at {call} {when}: {error}") from error
                else:
                    load = ledger.load(server, "--seconds", "1.5", "--messages", "4000")
                    acked += finish(load)["acked"]
                kills += server.process.poll() == -9
            with beamlog(context.programs, data, log) as server:
                server.wait_until_it_serves()
                judge(ledger.verify(server), f"SIGKILL at {call} {when}, cycle {cycle}, seed {context.seed}")
                server.stop()
    if kills == 0:
        raise Broken("no process was killed, so nothing was tested")
    return f"{kills} kills at system calls in {context.cycles} cycles, {acked} acked, 0 lost"


AFTER = b'{"name":"AFTER","subjects":["after"],"storage":"file"}'


def ask(port, subject, body, headers=b""):
    """One request of a NATS client, and what is answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        request = b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB _INBOX.faults 1\r\n'
        if headers:
            headers = b"NATS/1.0\r\n" + headers + b"\r\n\r\n"
            request += b"HPUB %s _INBOX.faults %d %d\r\n" % (subject.encode(), len(headers), len(headers) + len(body))
        else:
            request += b"PUB %s _INBOX.faults %d\r\n" % (subject.encode(), len(body))
        connection.sendall(request + headers + body + b"\r\nPING\r\n")
        received = b""
        while b"MSG _INBOX.faults" not in received or not received.endswith(b"\r\n"):
            more = connection.recv(65536)
            if not more:
                break
            received += more
        return received[-8000:]


def full_disk(context):
    """The disk fills up: publishes are refused and nothing else; space returns and service with it (DR16)."""
    need_filesystem("ext4")
    with Filesystem("ext4", "400M") as filesystem, tempfile.TemporaryDirectory() as outside:
        outside = Path(outside)
        ledger = Ledger(context.programs, outside / "ledger", message_bytes=4096)
        data, log = filesystem.mountpoint / "data", outside / "server.log"
        with beamlog(context.programs, data, log, arguments=["--segment-bytes", "16MiB"]) as server:
            server.wait_until_it_serves()
            filler = filesystem.mountpoint / "filler"
            free = os.statvfs(filesystem.mountpoint)
            run("fallocate", "-l", free.f_bavail * free.f_frsize // 2, filler)
            load = ledger.load(server, "--no-consumers")
            # Publishers go on until they are refused; a few seconds of refusals are enough.
            until = time.monotonic() + 60
            while time.monotonic() < until:
                free = os.statvfs(filesystem.mountpoint)
                if free.f_bavail * free.f_frsize < 16 << 20:
                    break
                time.sleep(0.1)
            time.sleep(2)
            if server.process.poll() is not None:
                raise Broken(f"the process ended with {server.process.poll()} on a full disk: {server.tail()}")
            load.terminate()
            load.wait()
            answer = ask(server.port, "$JS.API.STREAM.MSG.GET.LEDGER0", b'{"seq":1}')
            if b'"data"' not in answer:
                raise Broken(f"a full disk cannot be read: {answer}")
            answer = ask(server.port, "ledger.0.00", b"x" * 4096)
            if b'"error"' not in answer:
                raise Broken(f"a full disk stores a message: {answer}")
            filler.unlink()
            begin = time.monotonic()
            while b'"error"' in (answer := ask(server.port, "$JS.API.STREAM.CREATE.AFTER", AFTER)):
                if time.monotonic() - begin > 10:
                    raise Broken(f"there is space again and still: {answer}")
                time.sleep(0.05)
            resumed = time.monotonic() - begin
            again = finish(ledger.load(server, "--no-consumers", "--seconds", "5", "--messages", "500"))
            if again["acked"] == 0:
                raise Broken(f"there is space again and nothing is stored: {server.tail()}")
            judge(ledger.verify(server), "after space returned")
            server.stop()
    return f"full disk: refused, read and served on; space taken up after {resumed:.2f} s, then {again['acked']} acked"


def emptied_disk(context):
    """The store itself fills its disk, and is emptied through itself: no space comes from anywhere else (DR16)."""
    need_filesystem("ext4")
    with Filesystem("ext4", "300M") as filesystem, tempfile.TemporaryDirectory() as outside:
        outside = Path(outside)
        ledger = Ledger(context.programs, outside / "ledger", message_bytes=4096)
        data, log = filesystem.mountpoint / "data", outside / "server.log"
        with beamlog(context.programs, data, log, arguments=["--segment-bytes", "16MiB"]) as server:
            server.wait_until_it_serves()
            load = ledger.load(server, "--no-consumers")
            full, until = False, time.monotonic() + 120
            while not full and time.monotonic() < until:
                time.sleep(0.1)
                full = b"10047" in (answer := ask(server.port, "ledger.0.00", b"x" * 4096))
            load.terminate()
            load.wait()
            if not full:
                raise Broken(f"the disk did not fill up: {answer}")
            for stream in ("LEDGER0", "LEDGER1", "LEDGER2"):
                answer = ask(server.port, f"$JS.API.STREAM.PURGE.{stream}", b"")
                if b'"success":true' not in answer:
                    raise Broken(f"a full disk cannot be purged: {answer}")
            begin = time.monotonic()
            while b'"error"' in (answer := ask(server.port, "ledger.0.00", b"after")):
                if time.monotonic() - begin > 20:
                    raise Broken(f"everything is purged and still: {answer}; {server.tail()}")
                time.sleep(0.05)
            resumed = time.monotonic() - begin
            server.stop()
    return f"full disk: purged, and stored again after {resumed:.2f} s"


def ack_after_sync(context):
    """The system calls of a loaded server prove, ack by ack, that its message was written and synced before."""
    need_program("strace")
    traced = context.programs.ours("beamlog-trace")
    done = subprocess.run(
        [traced, "--beamlog", context.programs.ours("beamlog"), "--acks", "10000"], capture_output=True, text=True, timeout=600
    )
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]
    if done.returncode != 0:
        raise Broken(last)
    return re.sub(r"\s+", " ", last)


def cluster_kill(context, nodes=3):
    """Nodes of a real cluster are killed under load; every acked message is there once, without a gap, also in a second
    shard and in streams that one node holds alone."""
    python = context.programs.python()
    program = context.programs.ours("beamlog")
    script = Path(__file__).resolve().parent / "cluster_run.py"
    with tempfile.TemporaryDirectory() as outside:
        done = subprocess.run(
            [python, script, "--beamlog", program, "--data", Path(outside) / "nodes", "--nodes", str(nodes),
             "--cycles", str(context.cycles), "--seed", str(context.seed)],
            stdout=subprocess.PIPE, text=True, timeout=120 + 30 * context.cycles,
        )
        if done.returncode != 0:
            tail = "\n".join((Path(outside) / "nodes.log").read_text(errors="replace").splitlines()[-30:])
            raise Broken(f"the run ended with {done.returncode}: {tail}")
    result = json.loads(done.stdout.splitlines()[-1])
    if result["lost"] or result["problems"]:
        raise Broken(f"seed {context.seed}: {result}")
    if min(result["acked"], 2 * result["acked_second"], 2 * result["acked_alone"]) < 10 * context.cycles:
        raise Broken(f"hardly anything was acknowledged, so nothing was tested: {result}")
    takeover = ""
    if result["leaders_killed"]:
        takeover = f"; next ack after a leader's death: "
        takeover += f"p50 {result['takeover_p50']:.2f} s, p99 {result['takeover_p99']:.2f} s, longest {result['takeover_max']:.2f} s"
    return f"{nodes} nodes, {result['kills']} SIGKILLs ({result['leaders_killed']} of leaders), {result['acked']} acked ({result['acked_second']} in a second shard, {result['acked_alone']} in streams of one node), 0 lost, no gap{takeover}"


LANES = {
    "power-cut": power_cut,
    "peer": peer,
    "failed-sync": failed_sync,
    "poisoned-cache": poisoned_cache,
    "system-calls": killed_at_system_calls,
    "full-disk": full_disk,
    "emptied-disk": emptied_disk,
    "ack-after-sync": ack_after_sync,
    "cluster-kill": cluster_kill,
    "power-cut-xfs": lambda context: power_cut(context, "xfs"),
}
# XFS needs xfsprogs, which few machines have: asked for by name, it fails where they are missing.
DEFAULT = [name for name in LANES if name != "power-cut-xfs"]
