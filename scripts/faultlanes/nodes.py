"""Nodes of a cluster, each in its own namespace, and what is done to their processes."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from . import network
from .machine import Filesystem, run

CLIENT_PORT = 4222
ADMIN_PORT = 8222
PEER_PORT = 6222


class Node:
    """One place of a `beamlog` cluster: its folder stays, processes come and go."""

    def __init__(self, cluster, name):
        self.cluster = cluster
        self.name = name
        self.namespace = cluster.network.namespace(name)
        self.address = cluster.network.address(name)
        self.url = f"nats://{self.address}:{CLIENT_PORT}"
        self.folder = cluster.folder / name
        self.log = cluster.folder / f"{name}.log"
        self.process = None
        self.paused = False
        self.program = cluster.program
        self.before = []
        self.founded = False

    @property
    def data(self):
        return self.folder / "data"

    def command(self):
        cluster = self.cluster
        others = [other for other in cluster.nodes.values() if other is not self]
        command = [
            self.program, "serve", "--listen", f"{self.address}:{CLIENT_PORT}", "--insecure", "--admin", f"127.0.0.1:{ADMIN_PORT}",
            "--data-dir", self.data, "--server-name", self.name, "--cluster-listen", f"{self.address}:{PEER_PORT}",
            "--cluster-certificates", cluster.certificates / self.name, *cluster.options,
        ]
        # The first start of the first node begins the cluster; everything else joins it.
        if self.founded or self is not cluster.first:
            command += ["--cluster-join", ",".join(f"{other.address}:{PEER_PORT}" for other in others)]
        return command

    def start(self):
        assert self.process is None
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                [str(part) for part in [*self.cluster.network.inside(self.name), *self.before, *self.command()]],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={name: value for name, value in os.environ.items() if not name.startswith("BEAMLOG_")},
            )
        self.founded = True
        self.paused = False

    def runs(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self):
        """As an operator does; its exit code."""
        self.process.terminate()
        return self.until_stopped()

    def until_stopped(self):
        try:
            code = self.process.wait(30)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        return code

    def pause(self):
        os.kill(self.process.pid, signal.SIGSTOP)
        self.paused = True

    def resume(self):
        if self.paused and self.runs():
            os.kill(self.process.pid, signal.SIGCONT)
        self.paused = False

    def ask(self, path, body=None, timeout=2):
        """Its admin server, which only its own namespace reaches."""
        connection = http.client.HTTPConnection("127.0.0.1", ADMIN_PORT, timeout=timeout)
        connection.sock = network.connect(self.namespace, ("127.0.0.1", ADMIN_PORT), timeout)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            return json.loads(answer.read())
        finally:
            connection.close()

    def status(self):
        """How the cluster stands as it sees it; nothing when it does not answer."""
        if not self.runs() or self.paused:
            return {}
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            return self.ask("/cluster")
        return {}

    def empty(self):
        """Takes its store away: it comes back as a new member."""
        shutil.rmtree(self.data)

    def tail(self, lines=15):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""


class Cluster:
    def __init__(self, network, program, folder, options=()):
        self.network = network
        self.program = Path(program)
        self.folder = Path(folder)
        self.options = list(options)
        self.certificates = self.folder / "certificates"
        self.nodes = {name: self.node(name) for name in network.nodes}
        self.first = self.nodes[network.nodes[0]]

    def node(self, name):
        return Node(self, name)

    def __iter__(self):
        return iter(self.nodes.values())

    def prepare(self):
        self.certificates.mkdir(parents=True, exist_ok=True)
        authority = self.certificates / "authority"
        run(self.program, "cert", "ca", authority, "--cluster", "faults")
        for node in self:
            run(self.program, "cert", "node", node.name, "--ca", authority, "--out", self.certificates / node.name)

    def start(self):
        """All nodes, one after the other, until all vote."""
        self.prepare()
        for node in self:
            node.start()
        self.until(lambda: not self.problems() or not all(node.runs() for node in self), 90, "the cluster begins")
        self.until_healthy(1)

    def statuses(self):
        return {node.name: status for node in self if (status := node.status())}

    def leader(self):
        """Who most of those that answer say leads, of the latest term."""
        standing = [(status.get("term") or 0, name) for name, status in self.statuses().items() if status.get("standing") == "leader"]
        return self.nodes[max(standing)[1]] if standing else None

    def problems(self):
        problems = []
        for node in self:
            status = node.status()
            if not status:
                problems.append(f"{node.name} does not answer")
            elif not status["healthy"]:
                problems += [f"{node.name}: {problem}" for problem in status["problems"]]
            elif sum(member["role"] == "voter" for member in status["members"]) != len(self.nodes):
                problems.append(f"{node.name}: not all vote")
        return problems

    def until(self, condition, seconds, what):
        until = time.monotonic() + seconds
        while not (result := condition()):
            if time.monotonic() > until:
                raise RuntimeError(f"not within {seconds} s: {what}: {self.problems()}")
            time.sleep(0.05)
        return result

    def until_healthy(self, seconds):
        self.until(lambda: not self.problems(), seconds, "every node votes and sees every other")

    def until_led_by(self, node, seconds=90):
        """Leadership is handed to it."""
        asked = 0.0

        def led():
            nonlocal asked
            leader = self.leader()
            if leader is node:
                # Others have heard of it.
                return all(status.get("leader") == node.name for status in self.statuses().values())
            # Asked for again only when it had the time.
            if leader is not None and time.monotonic() > asked + 5:
                with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                    leader.ask("/cluster/transfer", {"node": node.name}, timeout=10)
                asked = time.monotonic()
            return False

        self.until(led, seconds, f"{node.name} leads")

    def replace(self, node, seconds=60):
        """A node that lost what it held, or refuses what it holds: out with it, and in again with an empty store."""
        node.kill()
        others = [other for other in self if other is not node]

        def removed():
            for other in others:
                status = other.status()
                if not status:
                    continue
                if all(member["name"] != node.name for member in status["members"]):
                    return True
                with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                    other.ask("/cluster/remove", {"node": node.name}, timeout=10)
            return False

        self.until(removed, seconds, f"{node.name} is removed")
        if node.data.exists():
            node.empty()
        node.start()

    def kill(self):
        for node in self:
            node.kill()


class NodeOnDisk(Node):
    """A node whose folder is a filesystem of its own, which can lose its power."""

    def mount(self):
        self.filesystem = Filesystem("ext4", "2G")
        self.folder = self.filesystem.mountpoint

    def cut_power(self):
        """Of the paused process: what was not synced is gone."""
        self.filesystem.cut_power()
        self.kill()
        self.filesystem.restart()


class ClusterOnDisks(Cluster):
    def node(self, name):
        return NodeOnDisk(self, name)

    def prepare(self):
        for node in self:
            node.mount()
        super().prepare()

    def kill(self):
        super().kill()
        for node in self:
            if hasattr(node, "filesystem"):
                node.filesystem.remove()
