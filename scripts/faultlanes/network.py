"""A network of namespaces: each node in one of its own, clients in another, all on a bridge in a further one. Nothing
of it exists outside of them, and their names carry the number of the process that made them."""

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

from .machine import Missing, need_program, need_root, run

NAMES = Path("/run/netns")
PREFIX = "beamlog"
CLIENTS = "clients"
SWITCH = "switch"
CLONE_NEWNET = 0x40000000


def need_network():
    need_root()
    for program in ("ip", "nft", "nsenter", "setpriv"):
        need_program(program)


class Network:
    def __init__(self, nodes, maker=None):
        """Of this process, or the one that `maker` made."""
        self.maker = maker or os.getpid()
        self.nodes = list(nodes)

    def namespace(self, place):
        return f"{PREFIX}-{self.maker}-{place}"

    def places(self):
        return [*self.nodes, CLIENTS]

    def address(self, place):
        return f"10.99.0.{10 + self.places().index(place)}"

    def make(self):
        need_network()
        remove_left_behind()
        run("ip", "netns", "add", self.namespace(SWITCH))
        switch = ["ip", "-n", self.namespace(SWITCH), "link"]
        run(*switch, "add", "bridge", "type", "bridge")
        run(*switch, "set", "bridge", "up")
        for number, place in enumerate(self.places()):
            namespace = self.namespace(place)
            run("ip", "netns", "add", namespace)
            # Both ends begin inside; the host's own namespace never sees them.
            run(*switch, "add", f"port{number}", "type", "veth", "peer", "name", "net", "netns", namespace)
            run(*switch, "set", f"port{number}", "master", "bridge", "up")
            inside = ["ip", "-n", namespace]
            run(*inside, "address", "add", f"{self.address(place)}/24", "dev", "net")
            run(*inside, "link", "set", "net", "up")
            run(*inside, "link", "set", "lo", "up")
        return self

    def remove(self):
        remove(self.maker)

    def inside(self, place):
        """What stands before a command that is to run there; it is killed with the process that starts it."""
        return ["nsenter", f"--net={NAMES / self.namespace(place)}", "setpriv", "--pdeathsig", "KILL"]

    # What packets meet. Rules are those of the receiver, so that a way can be cut in one direction.

    def rules(self, place, ingress=(), output=()):
        """The rules of a place, in the place of those before; nft takes one statement a line."""
        lines = ["table inet faults", "delete table inet faults", "table inet faults {"]
        lines += ["chain arriving {", "type filter hook input priority 0", *ingress, "}"]
        lines += ["chain leaving {", "type filter hook output priority 0", *output, "}", "}"]
        self.nft(place, lines)

    def nft(self, place, lines):
        run("nsenter", f"--net={NAMES / self.namespace(place)}", "nft", "-f", "-", input="\n".join(lines) + "\n")

    def cut(self, ways):
        """`ways`: pairs (from, to) on which nothing arrives, of all nodes; every other way is open."""
        for to in self.nodes:
            senders = [sender for sender, receiver in ways if receiver == to]
            drops = [f"ip saddr {self.address(sender)} drop" for sender in senders]
            self.rules(to, ingress=drops)

    def lose(self, places, percent):
        """Datagrams that arrive there are lost by chance."""
        for place in places:
            self.rules(place, ingress=[f"meta l4proto udp numgen random mod 100 < {percent} drop"])

    def double(self, places, percent):
        """Datagrams that leave there leave twice by chance."""
        for place in places:
            self.nft(place, [
                "table netdev faults",
                "delete table netdev faults",
                "table netdev faults {",
                "chain leaving {",
                'type filter hook egress device "net" priority 0',
                f'ip protocol udp numgen random mod 100 < {percent} dup to "net"',
                "}",
                "}",
            ])

    def heal(self):
        for place in self.nodes:
            self.nft(place, ["table inet faults", "delete table inet faults", "table netdev faults", "delete table netdev faults"])


def both(ones, others):
    """The ways between two groups, in both directions."""
    return [(one, other) for one in ones for other in others] + [(other, one) for one in ones for other in others]


def connect(namespace, address, timeout):
    """A socket of that namespace: a thread goes in, and leaves the socket behind."""
    made = []

    def enter():
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = os.open(NAMES / namespace, os.O_RDONLY)
        try:
            if libc.setns(descriptor, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns to {namespace}")
            made.append(socket.create_connection(address, timeout=timeout))
        except OSError as error:
            made.append(error)
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def namespaces_of(maker):
    shown = json.loads(run("ip", "-j", "netns", "list") or "[]")
    return [entry["name"] for entry in shown if entry["name"].startswith(f"{PREFIX}-{maker}-")]


def remove(maker):
    """Ends what runs in the namespaces of that process and takes them away, and with them all that is in them."""
    for namespace in namespaces_of(maker):
        for pid in run("ip", "netns", "pids", namespace).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for _ in range(200):
            if not run("ip", "netns", "pids", namespace).strip():
                break
            time.sleep(0.01)
        run("ip", "netns", "delete", namespace)


def remove_left_behind():
    """A script that was killed could not clean up."""
    shown = json.loads(run("ip", "-j", "netns", "list") or "[]")
    for maker in {int(found[1]) for entry in shown if (found := re.match(rf"{PREFIX}-(\d+)-", entry["name"]))}:
        if not Path(f"/proc/{maker}").exists():
            remove(maker)


def try_network():
    """Makes one and sees that a cut way is cut, in one direction, and that datagrams are doubled."""
    network = Network(["a", "b"])
    listen = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('', 7))\nprint(flush=True)\n"
    listen += "s.settimeout(1)\ntry:\n  while s.recv(99): print('got', flush=True)\nexcept TimeoutError: pass"
    try:
        network.make()

        def heard(sender, receiver):
            listener = subprocess.Popen([*network.inside(receiver), "python3", "-c", listen], stdout=subprocess.PIPE, text=True)
            listener.stdout.readline()
            send = f"import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n[s.sendto(b'x', ('{network.address(receiver)}', 7)) for _ in range(5)]"
            run(*network.inside(sender), "python3", "-c", send)
            return listener.communicate()[0].count("got")

        network.cut([("a", "b")])
        ways = heard("a", "b"), heard("b", "a")
        network.heal()
        network.double(["a"], 99)
        doubled = heard("a", "b")
    finally:
        network.remove()
    if ways != (0, 5) or doubled < 6:
        raise RuntimeError(f"a cut way let {ways[0]} through, the other {ways[1]} of 5; doubled came {doubled}")
    return "one way cut and the other not; datagrams doubled"

