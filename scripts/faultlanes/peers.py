"""A cluster of nats-servers in the same network, under the same load and the same power cut: this lane can see loss."""

import time

from . import load as loads
from .nodes import CLIENT_PORT, ClusterOnDisks, NodeOnDisk
from .reader import shown_by

ROUTE_PORT = 6222


class Peer(NodeOnDisk):
    def command(self):
        routes = ", ".join(f'"nats://{node.address}:{ROUTE_PORT}"' for node in self.cluster)
        config = self.cluster.folder / f"{self.name}.conf"
        config.write_text(
            f'server_name: {self.name}\nlisten: "{self.address}:{CLIENT_PORT}"\njetstream {{ store_dir: "{self.data}" }}\n'
            f'cluster {{ name: faults, listen: "{self.address}:{ROUTE_PORT}", routes: [{routes}] }}\n'
        )
        return [self.program, "-c", config]


class Peers(ClusterOnDisks):
    def node(self, name):
        return Peer(self, name)

    def start(self):
        for node in self:
            node.mount()
            node.start()


def power_of_all(cluster, clients, chance):
    """What of acked messages is left after all nodes lost power at one moment."""
    cluster.start()
    load = loads.Load([node.url for node in cluster], chance, len(cluster.nodes), pairs=0, registers=0)
    clients(load.create([loads.SET]))
    clients(load.start())
    clients(load.until_acked(200, 60))
    time.sleep(3)
    for node in cluster:
        node.pause()
    for node in cluster:
        node.cut_power()
    acked = dict(load.acked[loads.SET])
    clients(load.abandon())
    for node in cluster:
        node.start()
    held = shown(cluster)
    lost = [identity for identity, sequence in acked.items() if held.get(sequence) != identity]
    return {"acked": len(acked), "lost": len(lost), "held": len(held)}


def shown(cluster):
    """Whatever it shows when it serves again; nothing when the stream is gone."""
    until = time.monotonic() + 8
    while time.monotonic() < until:
        try:
            return shown_by((cluster.first.address, CLIENT_PORT), loads.SET)
        except (RuntimeError, OSError):  # not yet, or gone
            time.sleep(0.3)
    return {}
