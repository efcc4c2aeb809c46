"""A real cluster under load while its nodes are killed: every acked message is there afterwards, once, and the
sequences have no gap; in a stream that every node holds, in one of a second shard with a leader of its own, and in one
for each node that this node holds alone, which serves again when its node is back. Run by the lane `cluster-kill` with a Python that has nats-py; prints one JSON line.

    cluster_run.py --beamlog PROGRAM --data DIR --nodes 3 --cycles 20 --seed 1
"""

import argparse
import asyncio
import json
import math
import os
import random
import signal
import socket
import sys
import time
import urllib.request

import nats
from nats.js.api import Placement, StreamConfig

STREAM = "LOAD"
# In the second shard of the cluster.
SECOND = "SECOND"
# Streams with one replica: HELD-n1, …
HELD = "HELD-"
# A publish that gets no answer in this time is tried again with the same id.
PATIENCE = 2.0


def free_base():
    """A port with the ports that `cluster dev` derives from it free."""
    for _ in range(200):
        base = random.randrange(20000, 50000, 10)
        taken = False
        for offset, kind in ((0, socket.SOCK_STREAM), (1000, socket.SOCK_STREAM), (2000, socket.SOCK_DGRAM)):
            for number in range(7):
                with socket.socket(socket.AF_INET, kind) as probe:
                    try:
                        probe.bind(("127.0.0.1", base + offset + number))
                    except OSError:
                        taken = True
        if not taken:
            return base
    raise SystemExit("no free ports")


class Dev:
    """`beamlog cluster dev` and the nodes it says it runs."""

    def __init__(self, process):
        self.process = process
        self.nodes = {}
        self.changed = asyncio.Event()

    @classmethod
    async def start(cls, program, data, nodes):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BEAMLOG_")}
        process = await asyncio.create_subprocess_exec(
            program, "cluster", "dev", "--nodes", str(nodes), "--data-dir", data, "--base-port", str(free_base()),
            stdout=asyncio.subprocess.PIPE, stderr=open(os.path.join(os.path.dirname(data), "nodes.log"), "ab"),
            env=environment,
        )
        dev = cls(process)
        asyncio.get_running_loop().create_task(dev.read())
        await dev.until(lambda: len(dev.nodes) == nodes, 90)
        return dev

    async def read(self):
        async for line in self.process.stdout:
            node = json.loads(line)
            self.nodes[node["name"]] = node
            self.changed.set()

    async def until(self, condition, seconds):
        deadline = time.monotonic() + seconds
        while not condition():
            self.changed.clear()
            left = deadline - time.monotonic()
            if left <= 0 or self.process.returncode is not None:
                raise RuntimeError(f"the cluster did not come up: {self.nodes}")
            try:
                await asyncio.wait_for(self.changed.wait(), min(left, 1))
            except asyncio.TimeoutError:
                pass

    def urls(self):
        return [f"nats://{node['nats']}" for node in self.nodes.values()]

    async def status(self):
        """The cluster as the first node that answers sees it."""
        for node in list(self.nodes.values()):
            try:
                url = f"http://{node['admin']}/cluster"
                return await asyncio.to_thread(lambda: json.load(urllib.request.urlopen(url, timeout=2)))
            except OSError:
                continue
        return {}

    async def until_healthy(self, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = await self.status()
            if status.get("healthy"):
                return
            await asyncio.sleep(0.1)
        raise RuntimeError(f"not healthy after {seconds} s: {await self.status()}")

    async def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 60)


async def second_shard(dev, program, context, replicas):
    """Another shard on as many nodes, and a stream in it once they are all there."""
    admin = next(iter(dev.nodes.values()))["admin"]
    made = await asyncio.create_subprocess_exec(
        program, "cluster", "shard", "add", "--replicas", str(replicas), "--admin", admin, stdout=asyncio.subprocess.DEVNULL
    )
    if await made.wait() != 0:
        raise RuntimeError("no second shard")
    config = StreamConfig(
        name=SECOND, subjects=["second.>"], num_replicas=replicas, duplicate_window=3600, placement=Placement(tags=["shard:1"])
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            return await context.add_stream(config)
        except nats.errors.Error:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


async def connect(dev, urls=None):
    async def quiet(_error):
        return None

    return await nats.connect(
        urls or dev.urls(), max_reconnect_attempts=-1, reconnect_time_wait=0.1, connect_timeout=2, error_cb=quiet
    )


class Load:
    def __init__(self, dev):
        self.dev = dev
        # By stream: id → sequence; ids without an answer.
        self.acked = {}
        self.unknown = {}
        self.go_on = True
        self.last_ack = time.monotonic()
        self.problems = []
        self.retries = 0
        self.probed = 0.0

    async def publisher(self, stream, subject, number):
        client = await connect(self.dev)
        context = client.jetstream(timeout=PATIENCE)
        acked, unknown = self.acked.setdefault(stream, {}), self.unknown.setdefault(stream, set())
        count = 0
        while self.go_on:
            count += 1
            identity = f"{number}-{count}"
            unknown.add(identity)
            while True:
                try:
                    ack = await context.publish(
                        f"{subject}.{number}", identity.encode(), headers={"Nats-Msg-Id": identity}, timeout=PATIENCE
                    )
                except Exception:  # a time-out or a refusal: nobody knows; the id makes another try safe
                    if not self.go_on and time.monotonic() - self.last_ack > 30:
                        return
                    self.retries += 1
                    await asyncio.sleep(0.02)
                    continue
                self.last_ack = time.monotonic()
                unknown.discard(identity)
                before = acked.setdefault(identity, ack.seq)
                if before != ack.seq:
                    self.problems.append(f"{identity} of {stream} acked as {before} and {ack.seq}")
                break
        await client.close()

    def acks(self):
        return sum(map(len, self.acked.values()))


async def prober(load, node):
    """Publishes to one node all the time and waits for nobody: the first ack that comes to any of them says when the
    cluster serves again."""
    client = await connect(load.dev, [f"nats://{node['nats']}"])
    inbox = client.new_inbox()

    async def answered(message):
        if b'"seq"' in message.data:
            load.probed = time.monotonic()

    await client.subscribe(inbox, cb=answered)
    while load.go_on:
        try:
            await client.publish("load.probe", b"probe", reply=inbox)
        except Exception:  # between two connections
            pass
        await asyncio.sleep(0.01)
    await client.close()


async def kills(dev, load, cycles, chance):
    """SIGKILL of a random node, again and again. Returns the times from the death of a leader to the next ack."""
    takeovers = []
    for cycle in range(cycles):
        await asyncio.sleep(chance.uniform(0.3, 1.5))
        status = await dev.status()
        name = chance.choice(sorted(dev.nodes))
        node = dev.nodes[name]
        leads = status.get("leader") == name
        killed = time.monotonic()
        os.kill(node["pid"], signal.SIGKILL)
        pid = node["pid"]
        if leads:
            # Acks that were on their way do not count.
            await asyncio.sleep(0.02)
            seen = load.probed
            while load.probed == seen and time.monotonic() - killed < 60:
                await asyncio.sleep(0.005)
            takeovers.append(time.monotonic() - killed)
        await dev.until(lambda: dev.nodes[name]["pid"] != pid, 60)
        if cycle % 10 == 9:
            print(f"  {cycle + 1} kills, {load.acks()} acked", file=sys.stderr, flush=True)
    return takeovers


async def audit(dev, load):
    """What the streams hold, read by every node's clients in turn."""
    result = {"held": 0, "lost": 0, "examples": [], "problems": list(load.problems)}
    for stream, acked in load.acked.items():
        subject = "load" if stream == STREAM else stream.lower()
        held, problems = await read(dev, stream, subject)
        result["problems"] += problems + judge(stream, held, acked, load.unknown[stream])
        lost = [f"{stream} {identity}" for identity, sequence in acked.items() if held.get(sequence) != identity]
        result["held"] += len(held)
        result["lost"] += len(lost)
        result["examples"] += lost[:5]
        if stream != STREAM and not acked:
            result["problems"].append(f"{stream} never acked anything")
    result["problems"] = result["problems"][:10]
    return result


async def read(dev, stream, subject):
    """Sequence → id, as all nodes show it; and where they do not agree. Before, it takes one message more."""
    held, problems = None, []
    for node in dev.nodes.values():
        client = await nats.connect(f"nats://{node['nats']}")
        context = client.jetstream(timeout=10)
        if held is None:
            await context.publish(f"{subject}.probe", b"probe")
        info = await context.stream_info(stream)
        subscription = await context.subscribe(f"{subject}.>", ordered_consumer=True)
        shown = {}
        while len(shown) < info.state.messages:
            message = await subscription.next_msg(timeout=20)
            shown[message.metadata.sequence.stream] = message.data.decode()
        await client.close()
        if held is None:
            held = shown
        elif held != shown:
            problems.append(f"{node['name']} shows other messages of {stream}")
    return held, problems


def judge(stream, held, acked, unknown):
    problems, by_id = [], {}
    for sequence, identity in held.items():
        if identity == "probe":
            continue
        if identity in by_id:
            problems.append(f"{identity} of {stream} is stored as {by_id[identity]} and {sequence}")
        by_id[identity] = sequence
        if identity not in acked and identity not in unknown:
            problems.append(f"{identity} of {stream} was never published")
    gaps = sorted(set(range(1, max(held, default=0) + 1)) - set(held))
    if gaps:
        problems.append(f"gaps in {stream} at {gaps[:5]}")
    return problems


def percentile(ordered, part):
    """The least of them that so large a part does not exceed; nothing of nothing."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else None


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--beamlog", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--publishers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    dev = await Dev.start(arguments.beamlog, arguments.data, arguments.nodes)
    try:
        client = await connect(dev)
        replicas = min(arguments.nodes, 5)
        config = StreamConfig(name=STREAM, subjects=["load.>"], num_replicas=replicas, duplicate_window=3600)
        await client.jetstream(timeout=10).add_stream(config)
        await second_shard(dev, arguments.beamlog, client.jetstream(timeout=10), replicas)
        for name in dev.nodes:
            stream = HELD + name
            config = StreamConfig(
                name=stream, subjects=[f"{stream.lower()}.>"], num_replicas=1, duplicate_window=3600,
                placement=Placement(tags=[name]),
            )
            await client.jetstream(timeout=10).add_stream(config)
        await client.close()
        load = Load(dev)
        wanted = [(STREAM, "load", number) for number in range(arguments.publishers)]
        wanted += [(SECOND, "second", number) for number in range(4)]
        wanted += [(HELD + name, f"{HELD}{name}".lower(), number) for name in dev.nodes for number in range(2)]
        publishers = [asyncio.create_task(load.publisher(*one)) for one in wanted]
        probers = [asyncio.create_task(prober(load, node)) for node in dev.nodes.values()]
        takeovers = await kills(dev, load, arguments.cycles, chance)
        load.go_on = False
        await asyncio.wait_for(asyncio.gather(*probers, *publishers), 90)
        await dev.until_healthy(60)
        result = await audit(dev, load)
    finally:
        code = await dev.stop()
    takeovers.sort()
    result.update(
        acked=load.acks(), acked_second=len(load.acked[SECOND]), retries=load.retries,
        acked_alone=sum(len(acked) for stream, acked in load.acked.items() if stream.startswith(HELD)),
        kills=arguments.cycles, leaders_killed=len(takeovers),
        takeover_p50=percentile(takeovers, 0.5), takeover_p99=percentile(takeovers, 0.99),
        takeover_max=percentile(takeovers, 1), stopped=code,
    )
    print(json.dumps(result))


asyncio.run(main())
