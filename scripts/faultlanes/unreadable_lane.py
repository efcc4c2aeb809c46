"""A message that cannot be read is not one that was never there."""

import re
import tempfile
from pathlib import Path

from .lanes import Broken, ask
from .replays import flip
from .servers import beamlog, nats_server

MESSAGES = 24
HARMED = 3
# So large that the first segment is sealed: damage in the open one keeps a node from starting.
PAYLOAD = 900_000
LAST = b"Nats-Expected-Last-Subject-Sequence: 0"


def fill(server):
    answer = ask(server.port, "$JS.API.STREAM.CREATE.K", b'{"name":"K","subjects":["k.>"],"storage":"file"}')
    if b'"config"' not in answer:
        raise RuntimeError(f"no stream: {answer}")
    for number in range(1, MESSAGES + 1):
        answer = ask(server.port, f"k.{number}", b"message %04d " % number + b"." * PAYLOAD)
        if b'"seq":%d' % number not in answer.replace(b" ", b""):
            raise RuntimeError(f"not stored: {answer}")


def harm(folder):
    """One bit of one payload."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        at = path.read_bytes().find(b"message %04d " % HARMED)
        if at >= 0:
            flip(path, at + 1000, 3)
            return
    raise RuntimeError(f"no file in {folder} has the message")


def told(answer):
    """What a server said, in short."""
    found = re.search(rb'"err_code": ?(\d+)', answer)
    if found:
        return f"error {int(found[1])}"
    return "the message" if b'"data"' in answer else "stored" if b'"seq"' in answer else "no answer"


def life(start, data):
    """What it says of the message after one of its bits flipped, and to who creates it then."""
    with start() as server:
        server.wait_until_it_serves()
        fill(server)
        server.stop()
    harm(data)
    with start() as server:
        server.wait_until_it_serves()
        read = ask(server.port, "$JS.API.STREAM.MSG.GET.K", b'{"seq":%d}' % HARMED)
        created = ask(server.port, f"k.{HARMED}", b"mine now", LAST)
        server.stop()
    return told(read), told(created)


def unreadable(context):
    """One bit of a stored message flips: it is unreadable, not absent, and nobody creates it again (nats-server #8632)."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        folder = Path(folder)
        data = folder / "data"
        arguments = ["--segment-bytes", "16MiB"]
        ours = life(lambda: beamlog(context.programs, data, folder / "ours.log", arguments=arguments), data)
        peer_data = folder / "peer"
        peers = life(lambda: nats_server(context.programs, peer_data, folder / "peer.log"), peer_data)
    if ours[0] in ("the message", "error 10037") or ours[1] == "stored":
        raise Broken(f"a flipped bit: read as {ours[0]}, created anew: {ours[1]}")
    return f"a flipped bit: read as {ours[0]}, created anew: {ours[1]} (nats-server: {peers[0]}, {peers[1]})"
