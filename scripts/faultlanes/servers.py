"""Servers under test, and the ledger that remembers what they promised."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from .machine import Missing

ROOT = Path(__file__).resolve().parent.parent.parent


class Programs:
    """Where the programs are; built on demand."""

    def __init__(self, folder=None):
        self.folder = Path(folder) if folder else None

    def ours(self, name):
        if self.folder is None:
            print("building beamlog and beamlog-ledger (release)", flush=True)
            built = subprocess.run(
                ["cargo", "build", "--locked", "--release", "--quiet", "-p", "beamlog", "-p", "beamlog-bench"], cwd=ROOT
            )
            if built.returncode != 0:
                raise RuntimeError("the build failed")
            metadata = subprocess.run(
                ["cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"],
                cwd=ROOT, capture_output=True, text=True, check=True,
            )
            self.folder = Path(json.loads(metadata.stdout)["target_directory"]) / "release"
        path = self.folder / name
        if not path.is_file():
            raise Missing(f"{path}: cargo build --release -p beamlog -p beamlog-bench")
        return path

    def nats_server(self):
        given = os.environ.get("BEAMLOG_TEST_NATS_SERVER")
        path = Path(given) if given else ROOT / ".venv/bin/nats-server"
        if not path.is_file():
            raise Missing(f"{path}: scripts/test puts nats-server into .venv")
        return path

    def python(self):
        """A Python with nats-py."""
        given = os.environ.get("BEAMLOG_TEST_PYTHON")
        path = Path(given) if given else ROOT / ".venv/bin/python"
        if not path.is_file():
            raise Missing(f"{path}: scripts/test makes .venv with nats-py")
        return path


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A server process on a data directory; its log lies outside of what is cut."""

    START_SECONDS = 60

    def __init__(self, command, port, log, data):
        self.port = port
        self.data = data
        self.log = Path(log)
        self.output = open(self.log, "ab")
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.output,
            env={name: value for name, value in os.environ.items() if not name.startswith("BEAMLOG_")},
        )
        self.pid = self.process.pid

    def wait_until_it_serves(self):
        until = time.monotonic() + self.START_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}: {self.tail()}")
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                    if connection.recv(5) == b"INFO ":
                        return self
            except OSError:
                pass
            time.sleep(0.01)
        raise RuntimeError(f"the server did not serve within {self.START_SECONDS} s: {self.tail()}")

    def wait(self, seconds):
        """Its exit code, or nothing when it still runs after that time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def freeze(self):
        """From here on it says nothing more: the processor stops with the disk."""
        os.kill(self.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{self.pid}/task")
        while not all((task / "stat").read_text().rsplit(")", 1)[1].split()[0] in "TD" for task in stat.iterdir()):
            time.sleep(0.0005)

    def kill(self):
        if self.process.poll() is None:
            # With strace in front, the server is another process than ours.
            for pid in {self.pid, self.process.pid}:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self.process.wait()
        self.output.close()

    def stop(self):
        os.kill(self.pid, signal.SIGTERM)
        code = self.wait(60)
        self.kill()
        return code

    def tail(self):
        self.output.flush()
        return self.log.read_text(errors="replace")[-2000:]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def beamlog(programs, data, log, before=(), arguments=()):
    port = free_port()
    command = [
        *before, programs.ours("beamlog"), "serve", "--listen", f"127.0.0.1:{port}",
        "--admin", f"127.0.0.1:{free_port()}", "--data-dir", data, *arguments,
    ]
    return Server(command, port, log, data)


def nats_server(programs, data, log, sync=None):
    port = free_port()
    config = Path(log).with_suffix(".conf")
    options = f", sync_interval: {sync}" if sync else ""
    config.write_text(f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{data}"{options} }}\n')
    return Server([programs.nats_server(), "-c", config], port, log, data)


class Ledger:
    """What a server acknowledged, in a file outside of what is cut."""

    def __init__(self, programs, path, streams=3, publishers=6, message_bytes=128):
        self.program = programs.ours("beamlog-ledger")
        self.arguments = [
            "--ledger", path, "--streams", streams, "--publishers", publishers, "--message-bytes", message_bytes
        ]

    def command(self, verb, server, *more):
        target = ["--url", f"nats://127.0.0.1:{server.port}", *self.arguments]
        return [str(part) for part in [self.program, verb, *target, *more]]

    def load(self, server, *more):
        """Starts to publish and consume; ends by itself when the server is gone."""
        return subprocess.Popen(
            self.command("load", server, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def verify(self, server):
        done = subprocess.run(self.command("verify", server), capture_output=True, text=True, timeout=300)
        if done.returncode not in (0, 1):
            raise RuntimeError(f"the audit failed: {done.stderr.strip()}")
        verdict = json.loads(done.stdout)
        verdict["clean"] = done.returncode == 0
        return verdict


def finish(load, seconds=120):
    """The end of a load: what it printed."""
    out, errors = load.communicate(timeout=seconds)
    if load.returncode != 0:
        raise RuntimeError(f"the load failed: {errors.strip() or out.strip()}")
    fields = out.split()
    return dict(zip(fields[::2], map(int, fields[1::2])))
