"""Lanes of clusters in network namespaces. What JetStream lost, and which test answers to what:
docs/design/jetstream-failures.md."""

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from .lanes import Broken
from .machine import Missing, need_filesystem
from .network import CLIENTS, Network, need_network
from .unreadable_lane import unreadable

HERE = Path(__file__).resolve().parent


def judges(_context):
    """Histories that are wrong on purpose: the judges of the other lanes see what is wrong with each."""
    done = subprocess.run([sys.executable, "-B", HERE / "checker_test.py"], capture_output=True, text=True)
    if done.returncode != 0:
        raise Broken(done.stderr[-2000:])
    return done.stderr.strip().splitlines()[-3].lower()


def run(context, nodes, plan, *more, program=None):
    """A run of net_run.py in namespaces of its own; its result."""
    need_network()
    python, program = context.programs.python(), program or context.programs.ours("beamlog")
    network = Network([f"n{number + 1}" for number in range(nodes)])
    seconds = context.seconds or 0
    with tempfile.TemporaryDirectory(prefix="beamlog-faults-", dir="/dev/shm") as folder:
        process = None
        try:
            network.make()
            process = subprocess.Popen(
                [str(part) for part in [
                    *network.inside(CLIENTS), python, HERE / "net_run.py", "--maker", network.maker, "--nodes", nodes, "--plan", plan,
                    "--beamlog", program, "--folder", folder, "--seed", context.seed, "--seconds", seconds, *more,
                ]],
                stdout=subprocess.PIPE, text=True,
            )
            out, _ = process.communicate(timeout=600 + 3 * seconds)
        finally:
            stop(process)
            network.remove()
    if process.returncode != 0:
        raise Broken(f"the run of seed {context.seed} ended with {process.returncode}")
    return json.loads(out.splitlines()[-1])


def clean_run(context, *arguments):
    result = run(context, *arguments)
    if result["lost"] or result["problems"]:
        raise Broken(f"seed {context.seed}: {json.dumps(result, indent=1)}")
    if result["acked"] < 200:
        raise Broken(f"hardly anything was acknowledged, so nothing was tested: {result}")
    return result


def stop(process):
    """It unmounts what it mounted, given the time."""
    if process is None or process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def told(nodes, result):
    faults = sum(result["done"].values())
    return (
        f"{nodes} nodes, {faults} faults, {result['acked']} acked ({result['operations']} operations on {result['keys']} registers, "
        f"{result['worked']} worked off a queue), {result['retries']} answers missed; 0 lost at every node, 0 doubled, order kept, registers "
        f"linearizable; no ack for {result['longest_silence']} s at most, served {result['longest_recovery']} s after healing at the latest"
    )


def faults(nodes):
    def lane(context):
        result = clean_run(context, nodes, "nemeses")
        return told(nodes, result) + "; " + ", ".join(f"{name} {count}" for name, count in sorted(result["done"].items()))

    lane.__doc__ = f"{nodes} nodes in namespaces: kills, pauses, partitions, bad packets, rolling restarts; the whole history is judged."
    return lane


def damage(plan, text, padding=40_000):
    def lane(context):
        result = clean_run(context, 5, plan, "--padding", padding, "--rounds", 2)
        if not result["damaged"]:
            raise Broken("nothing was damaged, so nothing was tested")
        return f"{told(5, result)}; {result['damaged']} damages, {len(result['refused'])} nodes refused theirs and were replaced"

    lane.__doc__ = text
    return lane


def replay(plan, text, nodes=5, on_disks=False):
    def lane(context):
        if on_disks:
            need_filesystem("ext4")
        return told(nodes, clean_run(context, nodes, plan, "--rounds", 2))

    lane.__doc__ = text
    return lane


def peer(context):
    """Three nats-servers lose power at once in the same lane: it can see loss."""
    need_filesystem("ext4")
    result = run(context, 3, "peer", program=context.programs.nats_server())
    if not result["lost"]:
        raise Broken(f"nats-server lost nothing of {result['acked']}: this lane cannot see loss")
    return f"three nats-servers with three replicas: {result['lost']} of {result['acked']} acked lost"


def upgrade(context):
    """Three nodes of an older build (--old-programs) become this one under load, one after the other."""
    if context.old_programs is None:
        raise Missing("--old-programs DIR with a beamlog of an earlier commit: git worktree add OLD COMMIT, cargo build there")
    old = Path(context.old_programs) / "beamlog"
    if not old.is_file():
        raise Missing(f"{old}: --old-programs names a folder with an older beamlog")
    return told(3, clean_run(context, 3, "upgrade", "--old-beamlog", old))


LANES = {
    "unreadable": unreadable,
    "judges": judges,
    "net": faults(3),
    "net-five": faults(5),
    "net-bits": damage("bits", "Bits of a minority's messages flip while nodes are killed; JetStream lost acked messages (#7549)."),
    "net-truncation": damage("truncation", "A minority's message files are cut short; JetStream lost acked messages (#7549)."),
    "net-snapshots": damage("snapshots", "All else that a minority holds is damaged; JetStream deleted the stream (#7556).", 6000),
    "net-older-copy": damage("older-copy", "A node comes back with an older copy of its files; JetStream's replicas disagreed (#7567).", 100),
    "net-members": replay("members", "Members change during kills and partitions; JetStream lost acked messages (#7545)."),
    "net-power-all": replay("power-all", "All nodes lose power at once; JetStream lost 131,418 of 930,005 (#7564).", on_disks=True),
    "net-power-one": replay("power-one", "One node loses power, others are paused; JetStream split its brain (#7567).", on_disks=True),
    "net-power-partition": replay("power-partition", "Nodes lose power while the network is in parts.", on_disks=True),
    "net-peer": peer,
    "net-upgrade": upgrade,
}
# An upgrade needs an older build, and a power cut within a partition takes its time: asked for by name.
DEFAULT = [name for name in LANES if name not in ("net-upgrade", "net-power-partition")]
