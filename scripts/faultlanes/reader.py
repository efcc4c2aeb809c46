"""All messages of a stream as one server gives them, read from a bare connection: a client library takes its time."""

import json
import socket

INBOX = b"_INBOX.reader.messages"


class Connection:
    def __init__(self, address, seconds=30):
        self.socket = socket.create_connection(address, timeout=seconds)
        self.received = bytearray()
        self.at = 0
        self.early = []
        self.socket.sendall(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nPING\r\n')

    def more(self):
        del self.received[: self.at]
        self.at = 0
        chunk = self.socket.recv(1 << 20)
        if not chunk:
            raise RuntimeError("the server ended the connection")
        self.received += chunk

    def line(self):
        while (end := self.received.find(b"\r\n", self.at)) < 0:
            self.more()
        line = bytes(self.received[self.at : end])
        self.at = end + 2
        return line

    def message(self):
        """The next message: its subject, its reply, its headers and its payload."""
        return self.early.pop(0) if self.early else self.read()

    def read(self):
        while True:
            words = self.line().split()
            if words[0] == b"PING":
                self.socket.sendall(b"PONG\r\n")
            elif words[0] == b"-ERR":
                raise RuntimeError(f"the server says {b' '.join(words).decode()}")
            elif words[0] in (b"MSG", b"HMSG"):
                total = int(words[-1])
                head = int(words[-2]) if words[0] == b"HMSG" else 0
                while len(self.received) < self.at + total + 2:
                    self.more()
                headers = bytes(self.received[self.at : self.at + head])
                payload = bytes(self.received[self.at + head : self.at + total])
                self.at += total + 2
                reply = words[3] if len(words) == (6 if head else 5) else b""
                return words[1], reply, headers, payload

    def ask(self, subject, body):
        self.socket.sendall(
            b"SUB _INBOX.reader.answers 1\r\nPUB %s _INBOX.reader.answers %d\r\n%s\r\n" % (subject.encode(), len(body), body)
        )
        while True:
            subject, reply, headers, payload = self.read()
            if subject != b"_INBOX.reader.answers":
                # Delivery may begin before a consumer's creation is answered.
                self.early.append((subject, reply, headers, payload))
                continue
            if not payload:
                raise RuntimeError(f"no answer: {headers}")
            return json.loads(payload)


def shown_by(address, stream):
    """sequence → first word of its payload."""
    connection = Connection(address)
    try:
        info = connection.ask(f"$JS.API.STREAM.INFO.{stream}", b"")
        if "error" in info:
            raise RuntimeError(f"{stream}: {info['error']}")
        held = {}
        if info["state"]["messages"] == 0:
            return held
        connection.socket.sendall(b"SUB %s 2\r\n" % INBOX)
        config = {
            "deliver_subject": INBOX.decode(), "ack_policy": "none", "deliver_policy": "all", "mem_storage": True,
            # Otherwise all of a large stream waits for us in the server's memory, which cuts off who reads too slowly.
            "flow_control": True, "idle_heartbeat": 5_000_000_000,
        }
        created = connection.ask(
            f"$JS.API.CONSUMER.CREATE.{stream}", json.dumps({"stream_name": stream, "config": config}).encode()
        )
        if "error" in created:
            raise RuntimeError(f"{stream}: {created['error']}")
        last = 0
        while last < info["state"]["last_seq"]:
            _, reply, headers, payload = connection.message()
            if headers.startswith(b"NATS/1.0 100"):
                connection.socket.sendall(b"PUB %s 0\r\n\r\n" % reply if reply else b"")
            elif reply.startswith(b"$JS.ACK."):
                last = int(reply.split(b".")[-4])
                held[last] = payload.split()[0].decode()
        return held
    finally:
        connection.socket.close()
