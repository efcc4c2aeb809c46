"""One run of a cluster in a network of namespaces: load, faults, healing, and what every node shows then. The lanes
start it in the clients' namespace with a Python that has nats-py; prints one JSON line.

    net_run.py --maker PID --nodes 5 --beamlog PROGRAM --folder DIR --plan nemeses --seconds 60 --seed 1
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import threading
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from faultlanes import load as loads, nemeses, peers, reader, replays  # noqa: E402
from faultlanes.network import Network  # noqa: E402
from faultlanes.nodes import CLIENT_PORT, Cluster, ClusterOnDisks  # noqa: E402

# So soon after healing each run must serve again.
RECOVERY_SECONDS = 60
BEGIN = time.monotonic()


class Clients:
    """A loop in a thread of its own; the main thread breaks things meanwhile."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def __call__(self, coroutine, seconds=600):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(seconds)


def say(text):
    print(f"  {time.monotonic() - BEGIN:5.0f} s  {text}", file=sys.stderr, flush=True)


def break_things(world, clients, load, arguments):
    """Until the time is over; at least each of them once. Returns how often each, and how soon it served after each."""
    done, recoveries = {}, []
    until = time.monotonic() + arguments.seconds
    chosen = arguments.only or list(nemeses.ALL)
    while True:
        for name in world.chance.sample(chosen, len(chosen)):
            if done and time.monotonic() > until and len(done) == len(chosen):
                return done, recoveries
            begin = time.monotonic()
            nemeses.ALL[name](world)
            world.heal()
            recoveries.append(clients(load.until_acked(5, RECOVERY_SECONDS)))
            say(f"{name}: {time.monotonic() - begin:.1f} s, served again after {recoveries[-1]:.2f} s, {len(load.acked[loads.SET])} acked")
            done[name] = done.get(name, 0) + 1


def replay(world, clients, load, arguments):
    damage = replays.Damage(world)
    if arguments.plan in replays.OF_SEGMENTS:
        # Not only the open segment can be harmed then.
        world.cluster.until(lambda: all(len(replays.segments(node)) > 1 for node in world.nodes()), 120, "a segment is sealed")
    recoveries, rounds, until = [], 0, time.monotonic() + arguments.seconds
    while rounds < arguments.rounds or time.monotonic() < until:
        replays.ALL[arguments.plan](world, damage, 1)
        world.heal()
        recoveries.append(clients(load.until_acked(5, RECOVERY_SECONDS)))
        rounds += 1
    return {arguments.plan: rounds}, recoveries, damage


def audit(cluster):
    """What each node shows as the one that leads."""
    shown, registers = {}, {}
    for node in cluster:
        shown[node.name], registers[node.name] = as_leader(cluster, node)
        say(f"{node.name} showed {len(shown[node.name])} messages")
    return shown, registers


def as_leader(cluster, node):
    """It leads from before the reading until after it; who has just been elected does not serve at once."""
    until = time.monotonic() + 2 * RECOVERY_SECONDS
    while True:
        cluster.until_led_by(node)
        try:
            read = [reader.shown_by((node.address, CLIENT_PORT), stream) for stream in (loads.SET, loads.REGISTERS)]
            if cluster.leader() is node:
                return read
            problem = "it did not lead any more"
        except (RuntimeError, OSError) as error:
            problem = error
        if time.monotonic() > until:
            raise RuntimeError(f"{node.name} does not show what it has: {problem}")


def upgrade(cluster, program):
    """One node after the other, as the documentation says."""
    for node in cluster:
        if cluster.leader() is node:
            others = [other for other in cluster if other is not node]
            cluster.until_led_by(others[0])
        code = node.stop()
        if code != 0:
            raise AssertionError(f"{node.name} was asked to stop and ended with {code}: {node.tail()}")
        node.program = Path(program)
        node.start()
        cluster.until_healthy(60)


def run(arguments, cluster, world, clients):
    cluster.start()
    load = loads.Load(
        [node.url for node in cluster], random.Random(arguments.seed + 1), min(len(cluster.nodes), 5), padding=arguments.padding
    )
    clients(load.create())
    clients(load.start())
    clients(load.until_acked(50, 60))
    damage = None
    if arguments.plan == "nemeses":
        done, recoveries = break_things(world, clients, load, arguments)
    elif arguments.plan == "upgrade":
        upgrade(cluster, arguments.beamlog)
        done, recoveries = {"upgrade": len(cluster.nodes)}, [clients(load.until_acked(5, RECOVERY_SECONDS))]
    else:
        done, recoveries, damage = replay(world, clients, load, arguments)
    world.heal()
    cluster.until_healthy(RECOVERY_SECONDS)
    say("healed")
    clients(load.finish())
    say("all clients have come to their end")
    stores = {}
    if damage is not None:
        # What was harmed and nobody came by is found by reading every byte, and replaced before the last word.
        for node in damage.victims if damage.damaged else []:
            node.stop()
            if (wrong := replays.check_store(node)) is not None:
                damage.refused.append(f"{node.name}: {wrong.splitlines()[-1]}")
                cluster.replace(node)
            else:
                node.start()
            cluster.until_healthy(RECOVERY_SECONDS)
    shown, registers = audit(cluster)
    verdict = load.judge(shown, registers)
    say("the history is judged")
    for node in cluster:
        node.process.terminate()
    for node in cluster:
        code = node.until_stopped()
        if code != 0:
            verdict.problems.append(f"{node.name} was asked to stop and ended with {code}")
        if (wrong := replays.check_store(node)) is not None:
            stores[node.name] = wrong
    verdict.problems += [f"the store of {name}: {wrong}" for name, wrong in stores.items()]
    return {
        **load.figures(), "held": max(map(len, shown.values())), "lost": verdict.lost.total(), "lost_by_place": vars(verdict.lost),
        "lost_per_node": verdict.lost_per_node, "problems": verdict.problems[:12], "done": done,
        "longest_recovery": round(max(recoveries), 2), "damaged": damage.damaged if damage else 0,
        "refused": damage.refused if damage else [],
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--maker", type=int, required=True, help="process that made the namespaces")
    parser.add_argument("--beamlog", required=True, help="the program; with the plan peer, a nats-server")
    parser.add_argument("--old-beamlog", help="what the nodes run before the upgrade")
    parser.add_argument("--folder", required=True)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--plan", default="nemeses")
    parser.add_argument("--only", action="append", choices=list(nemeses.ALL))
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--padding", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    # Told to stop, it unmounts what it mounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    network = Network([f"n{number + 1}" for number in range(arguments.nodes)], arguments.maker)
    if arguments.plan == "peer":
        cluster = peers.Peers(network, arguments.beamlog, arguments.folder)
        try:
            result = peers.power_of_all(cluster, Clients(), random.Random(arguments.seed))
        finally:
            cluster.kill()
        print(json.dumps(result), flush=True)
        return
    shape = ClusterOnDisks if arguments.plan in replays.ON_DISKS else Cluster
    # Small segments: files are sealed, compacted and given to others while the run goes on.
    cluster = shape(network, arguments.old_beamlog or arguments.beamlog, arguments.folder, ["--segment-bytes", "16MiB", "--drain-timeout", "500ms"])
    world = nemeses.World(cluster, random.Random(arguments.seed))
    try:
        result = run(arguments, cluster, world, Clients())
    except BaseException:
        for node in cluster:
            say(f"{node.name}: {node.tail(6)}")
        raise
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            cluster.kill()
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
