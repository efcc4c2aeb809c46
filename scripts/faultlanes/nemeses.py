"""What is done to a cluster under load. Each breaks something, waits, and leaves it whole: processes run, ways are open.
They are those of jepsen-io/nats, by the same names where it has one."""

import time

from .network import both


class World:
    """A cluster and the chances taken with it."""

    def __init__(self, cluster, chance, least=1.0, most=3.0):
        self.cluster = cluster
        self.network = cluster.network
        self.chance = chance
        self.least, self.most = least, most

    def nodes(self):
        return list(self.cluster.nodes.values())

    def names(self):
        return list(self.cluster.nodes)

    def shuffled(self):
        return self.chance.sample(self.nodes(), len(self.nodes()))

    def minority(self):
        return self.shuffled()[: (len(self.nodes()) - 1) // 2]

    def majority(self):
        return self.shuffled()[: len(self.nodes()) // 2 + 1]

    def some(self):
        """One, a minority, a majority or all."""
        return self.chance.choice((self.shuffled()[:1], self.minority(), self.majority(), self.nodes()))

    def leader(self):
        return self.cluster.leader() or self.chance.choice(self.nodes())

    def wait(self, part=1.0):
        time.sleep(part * self.chance.uniform(self.least, self.most))

    def restart(self, nodes):
        for node in nodes:
            if not node.runs():
                node.process = None
                node.start()

    def heal(self):
        """Whatever was left: processes run, ways are open."""
        for node in self.nodes():
            node.resume()
        self.network.heal()
        self.restart(self.nodes())


def kill(world):
    """SIGKILL of one, a minority, a majority or all nodes."""
    nodes = world.some()
    for node in nodes:
        node.kill()
    world.wait(0.5)
    world.restart(nodes)
    world.wait(0.5)


def kill_leader(world):
    """SIGKILL of the leader, again when another one leads."""
    for _ in range(2):
        node = world.leader()
        node.kill()
        world.wait(0.7)
        world.restart([node])


def pause(world):
    """SIGSTOP of one, a minority, a majority or all nodes."""
    nodes = world.some()
    for node in nodes:
        node.pause()
    world.wait()
    for node in nodes:
        node.resume()


def pause_leader(world):
    """SIGSTOP of the leader for so long that another one is elected."""
    node = world.leader()
    node.pause()
    world.wait(1.5)
    node.resume()
    world.wait(0.5)


def isolate(world):
    """One node is cut off, often the leader."""
    one = world.leader() if world.chance.random() < 0.6 else world.chance.choice(world.nodes())
    world.network.cut(both([one.name], [name for name in world.names() if name != one.name]))
    world.wait()
    world.network.heal()


def halves(world):
    """A majority and a minority that do not see each other."""
    small = [node.name for node in world.minority()]
    world.network.cut(both(small, [name for name in world.names() if name not in small]))
    world.wait()
    world.network.heal()


def one_way(world):
    """One node hears and is not heard, or is heard and does not hear."""
    one = world.leader() if world.chance.random() < 0.6 else world.chance.choice(world.nodes())
    others = [name for name in world.names() if name != one.name]
    if world.chance.random() < 0.5:
        ways = [(one.name, other) for other in others]
    else:
        ways = [(other, one.name) for other in others]
    world.network.cut(ways)
    world.wait()
    world.network.heal()


def bridge(world):
    """Two halves that only one node sees both of."""
    names = [node.name for node in world.shuffled()]
    half = (len(names) - 1) // 2
    world.network.cut(both(names[1 : 1 + half], names[1 + half :]))
    world.wait()
    world.network.heal()


def swizzle(world):
    """Nodes are cut off one after the other and come back in another order."""
    cut, names = [], world.chance.sample(world.names(), len(world.names()))
    orders = [(names, cut.append), (world.chance.sample(names, len(names)), cut.remove)]
    for order, change in orders:
        for name in order:
            change(name)
            ways = [(a, b) for a in world.names() for b in world.names() if a != b and (a in cut or b in cut)]
            world.network.cut(ways)
            world.wait(0.1)
    world.network.heal()


def packet_loss(world):
    """Datagrams between nodes are lost by chance."""
    world.network.lose(world.names(), world.chance.choice((5, 15, 30)))
    world.wait(1.5)
    world.network.heal()


def packet_duplication(world):
    """Datagrams between nodes come twice by chance."""
    world.network.double(world.names(), world.chance.choice((20, 50)))
    world.wait(1.5)
    world.network.heal()


def part_kill(world):
    """Nodes are killed and started while the network is in parts."""
    small = [node.name for node in world.minority()]
    world.network.cut(both(small, [name for name in world.names() if name not in small]))
    world.wait(0.5)
    nodes = world.minority()
    for node in nodes:
        node.kill()
    world.wait(0.3)
    world.restart(nodes)
    world.wait(0.5)
    world.network.heal()


def pause_kill(world):
    """Some stand still while others are killed; then the other way around."""
    order = world.shuffled()
    paused, killed = order[:1], order[1 : 1 + max(1, (len(order) - 1) // 2)]
    for node in paused:
        node.pause()
    world.wait(0.5)
    for node in killed:
        node.kill()
    world.wait(0.3)
    world.restart(killed)
    for node in paused:
        node.resume()
    world.wait(0.5)


def rolling_restart(world):
    """Every node is stopped as an operator does and started again, one when the one before is back."""
    for node in world.shuffled():
        code = node.stop()
        if code != 0:
            raise AssertionError(f"{node.name} was asked to stop and ended with {code}: {node.tail()}")
        node.start()
        world.cluster.until_healthy(60)


ALL = {
    "kill": kill,
    "kill-leader": kill_leader,
    "pause": pause,
    "pause-leader": pause_leader,
    "partition-one": isolate,
    "partition-halves": halves,
    "partition-one-way": one_way,
    "partition-bridge": bridge,
    "partition-swizzle": swizzle,
    "packet-loss": packet_loss,
    "packet-duplication": packet_duplication,
    "part-kill": part_kill,
    "pause-kill": pause_kill,
    "rolling-restart": rolling_restart,
}
