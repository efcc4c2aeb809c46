"""What made JetStream lose acknowledged messages, done to a cluster under load. A node whose disk lied to it may refuse to
start, or say that it is damaged: then its operator takes it out and lets it come back empty, as the documentation says."""

import re
import shutil
import time

from .machine import run
from .network import both


class Damage:
    """Files of the nodes of one minority are damaged while they are down; the others keep theirs."""

    def __init__(self, world):
        self.world = world
        self.victims = world.minority()
        self.damaged = 0
        self.refused = []

    def around_a_kill(self, node, harm):
        """The node and another one are killed, its files are harmed, both start again."""
        world = self.world
        others = [other for other in world.nodes() if other not in self.victims]
        bystander = world.chance.choice(others)
        for victim in (node, bystander):
            victim.kill()
        self.damaged += harm(node)
        said = {other.name: other.log.stat().st_size for other in world.nodes()}
        world.restart([bystander, node])
        world.wait()
        if (reason := self.why_not(node, said)) is not None:
            self.refused.append(f"{node.name}: {reason}")
            world.cluster.replace(node)

    def why_not(self, node, said):
        """Why a node does not go on with what it has, if it does not. `said`: how long the logs were when it started."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if not node.runs():
                return node.tail(1)
            status = node.status()
            if status and status["standing"].startswith(("fenced", "failed")):
                return status["standing"]
            for other in self.world.nodes():
                found = re.search(rf"the log of {node.name} ends at .* only as a new node", other.log.read_text(errors="replace")[said[other.name] :])
                if found:
                    return found[0]
            if status and status["leader"] and all(self.sees(other, node) for other in self.world.nodes() if other.runs()):
                return None
            time.sleep(0.1)
        return "it takes no part"

    def sees(self, other, node):
        return other is node or any(m["name"] == node.name and m["connected"] for m in other.status().get("members", []))


def segments(node):
    return sorted(node.data.glob("shard-*/*.seg"))


def others_files(node):
    """All that is not a segment: what is derived, votes, who it is."""
    return sorted(path for path in node.data.rglob("*") if path.is_file() and path.suffix != ".seg" and path.stat().st_size)


def used(path):
    """How much of a file is not the zeros it was made with."""
    return len(path.read_bytes().rstrip(b"\0"))


def flip(path, at, bit):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def flip_bits(chance, paths, each=2):
    """About so many single-bit errors in each file, where something was written."""
    count = 0
    for path in paths:
        length = used(path)
        for _ in range(each if length else 0):
            flip(path, chance.randrange(length), chance.randrange(8))
            count += 1
    return count


def truncate(chance, path):
    """The end of what was written is gone, much of it or a little."""
    length = used(path)
    if not length:
        return 0
    cut = min(length, int(chance.paretovariate(0.5)))
    with open(path, "r+b") as file:
        file.truncate(length - cut)
    return 1


def bits(world, damage, rounds):
    """Single bits of a minority's message files flip while nodes are killed (nats-server #7549)."""
    for turn in range(rounds):
        node = damage.victims[turn % len(damage.victims)]
        # Two files of a random few: every part of a log has its turn.
        damage.around_a_kill(node, lambda node: flip_bits(world.chance, world.chance.sample(segments(node), min(2, len(segments(node))))))


def truncation(world, damage, rounds):
    """Message files of a minority are cut short while nodes are killed (nats-server #7549)."""
    for turn in range(rounds):
        node = damage.victims[turn % len(damage.victims)]
        damage.around_a_kill(node, lambda node: truncate(world.chance, world.chance.choice(segments(node))))


def snapshots(world, damage, rounds):
    """Everything of a minority that is not a message file is damaged while nodes are killed (nats-server #7556)."""
    for turn in range(rounds):
        node = damage.victims[turn % len(damage.victims)]
        damage.around_a_kill(node, lambda node: flip_bits(world.chance, others_files(node), each=1 + 7 * (turn % 2)))


def older_copy(world, damage, rounds):
    """A node comes back with an older copy of its files: it forgot what it acknowledged (nats-server #7567)."""
    for turn in range(rounds):
        node = damage.victims[turn % len(damage.victims)]
        node.stop()
        copy = node.folder / "copy"
        shutil.copytree(node.data, copy)
        world.restart([node])
        world.cluster.until_healthy(60)
        world.wait()

        def restore(node, copy=copy):
            shutil.rmtree(node.data)
            copy.rename(node.data)
            return 1

        damage.around_a_kill(node, restore)


def members(world, _damage, rounds):
    """Members go and come while the network is in parts and nodes are killed (nats-server #7545)."""
    for turn in range(rounds):
        order = world.shuffled()
        replaced, cut, killed = order[0], order[1], order[2]
        if turn % 2 == 0:
            world.network.cut(both([cut.name], [name for name in world.names() if name != cut.name]))
        world.cluster.replace(replaced)
        world.wait(0.2)
        killed.kill()
        world.wait(0.3)
        world.restart([killed])
        world.network.heal()
        world.wait(0.3)
        world.cluster.until_healthy(90)


def power_of_all(world, _damage, rounds):
    """All nodes lose their power at one moment (nats-server #7564)."""
    for _ in range(rounds):
        world.wait()
        # The processors stop first, so that none answers what its disk will not have.
        for node in world.nodes():
            node.pause()
        for node in world.nodes():
            node.cut_power()
        world.restart(world.nodes())
        world.cluster.until_healthy(60)


def power_of_one(world, _damage, rounds):
    """One node loses its power after some were paused, and the others are paused then (nats-server #7567)."""
    for _ in range(rounds):
        order = world.shuffled()
        quorum = len(order) // 2 + 1
        victim, before, then = order[0], order[1:quorum], order[quorum:]
        for node in then:
            node.pause()
        world.wait()
        # Those now know what the paused ones do not.
        for node in before:
            node.pause()
        victim.pause()
        victim.cut_power()
        for node in then:
            node.resume()
        world.restart([victim])
        world.wait()
        for node in before:
            node.resume()
        world.wait(0.5)


def power_and_partition(world, _damage, rounds):
    """One node after the other loses its power while the network is in parts."""
    for _ in range(rounds):
        order = world.shuffled()
        half = (len(order) - 1) // 2
        names = [node.name for node in order]
        world.network.cut(both(names[:half], names[half:]))
        world.wait(0.5)
        for node in (order[0], order[-1]):
            node.pause()
            node.cut_power()
            world.restart([node])
            world.wait(0.3)
        world.network.heal()
        world.wait(0.5)


ALL = {
    "bits": bits,
    "truncation": truncation,
    "snapshots": snapshots,
    "older-copy": older_copy,
    "members": members,
    "power-all": power_of_all,
    "power-one": power_of_one,
    "power-partition": power_and_partition,
}
OF_SEGMENTS = ("bits", "truncation")
ON_DISKS = ("power-all", "power-one", "power-partition")


def check_store(node):
    """Every byte of a stopped node's store; what is wrong with it, or nothing."""
    try:
        run(node.program, "store", "check", node.data)
    except RuntimeError as error:
        return str(error)
    return None
