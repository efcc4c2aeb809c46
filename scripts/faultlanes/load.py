"""Clients of a cluster that is broken meanwhile, and all they were told: publishers to a stream that keeps everything,
publishers and workers of a work queue, clients of registers. Needs nats-py."""

import asyncio
import base64
import json
import time

import nats
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StreamConfig

from .checker import Operation, judge_queue, judge_registers, judge_set, lost_of

SET, QUEUE, REGISTERS = "SET", "QUEUE", "REGISTERS"
WORKERS = "workers"
# Without an answer in this time nobody knows; what has an id is sent again.
PATIENCE = 2.0
OPERATIONS_OF_A_KEY = 80
WRONG_LAST_SEQUENCE = 10071
NO_MESSAGE_FOUND = 10037
# Longer than any run.
WINDOW_SECONDS = 24 * 3600


async def connect(urls, **options):
    async def quiet(_error):
        return None

    options = {"max_reconnect_attempts": -1, "reconnect_time_wait": 0.1, "ping_interval": 1, "max_outstanding_pings": 3, **options}
    return await nats.connect(urls, connect_timeout=2, error_cb=quiet, **options)


class Load:
    def __init__(self, urls, chance, replicas, padding=100, pace=0.01, publishers=8, pairs=2, registers=4):
        self.urls, self.chance, self.replicas, self.padding = urls, chance, replicas, b" " + b"." * padding
        self.pace = pace
        self.sizes = publishers, pairs, registers
        self.acked = {SET: {}, QUEUE: {}, REGISTERS: {}}
        self.unknown = {SET: set(), QUEUE: set()}
        self.problems = []
        self.deliveries, self.confirmed = [], {}
        self.histories = {}
        self.key = 0
        self.retries = 0
        self.begin = self.last_ack = time.monotonic()
        self.longest_silence = 0.0
        self.go_on = self.work_on = True
        self.tasks, self.workers = [], []

    async def create(self, names=(SET, QUEUE, REGISTERS)):
        client = await connect(self.urls)
        context = client.jetstream(timeout=10)
        shape = {"num_replicas": self.replicas, "duplicate_window": WINDOW_SECONDS}
        streams = [
            StreamConfig(name=SET, subjects=["set.>"], **shape),
            StreamConfig(name=QUEUE, subjects=["queue.>"], retention=RetentionPolicy.WORK_QUEUE, **shape),
            StreamConfig(name=REGISTERS, subjects=["register.>"], **shape),
        ]
        for stream in streams:
            if stream.name in names:
                await insist(lambda stream=stream: context.add_stream(stream))
        if QUEUE in names:
            consumer = ConsumerConfig(durable_name=WORKERS, ack_policy=AckPolicy.EXPLICIT, ack_wait=3)
            await insist(lambda: context.add_consumer(QUEUE, consumer))
        await client.close()

    async def start(self):
        publishers, pairs, registers = self.sizes
        self.tasks += [asyncio.create_task(self.publisher(SET, "set", f"p{number}")) for number in range(publishers)]
        self.tasks += [asyncio.create_task(self.publisher(QUEUE, "queue", f"q{number}")) for number in range(pairs)]
        self.tasks += [asyncio.create_task(self.register_client(number)) for number in range(registers)]
        self.workers = [asyncio.create_task(self.worker()) for _ in range(pairs + 1)]

    async def until_acked(self, count, seconds):
        """So many acks more: it serves."""
        begin, before = time.monotonic(), len(self.acked[SET])
        while len(self.acked[SET]) < before + count:
            if time.monotonic() - begin > seconds:
                raise RuntimeError(f"{len(self.acked[SET]) - before} of {count} publishes were acked in {seconds} s")
            await asyncio.sleep(0.01)
        return time.monotonic() - begin

    def note_ack(self):
        now = time.monotonic()
        self.longest_silence = max(self.longest_silence, now - self.last_ack)
        self.last_ack = now

    async def finish(self, seconds=90):
        """Everything is healed: what is under way comes to its end, and the queue becomes empty."""
        self.go_on = False
        await asyncio.wait_for(asyncio.gather(*self.tasks), seconds)
        client = await connect(self.urls)
        context = client.jetstream(timeout=5)
        until = time.monotonic() + seconds
        self.left_in_queue = None
        while self.left_in_queue != 0 and time.monotonic() < until:
            self.left_in_queue = (await insist(lambda: context.stream_info(QUEUE))).state.messages
            await asyncio.sleep(0.1)
        self.work_on = False
        await asyncio.wait_for(asyncio.gather(*self.workers), seconds)
        await client.close()

    async def abandon(self):
        """Nobody waits for what is under way."""
        for task in self.tasks + self.workers:
            task.cancel()
        await asyncio.gather(*self.tasks, *self.workers, return_exceptions=True)

    async def publisher(self, stream, prefix, name):
        """One message after the other, each until it is acked."""
        client = await connect(self.urls)
        context = client.jetstream(timeout=PATIENCE)
        acked, unknown, count = self.acked[stream], self.unknown[stream], 0
        while self.go_on:
            count += 1
            identity = f"{name}-{count}"
            unknown.add(identity)
            while True:
                try:
                    ack = await context.publish(
                        f"{prefix}.{name}", identity.encode() + self.padding, headers={"Nats-Msg-Id": identity}, timeout=PATIENCE
                    )
                    break
                except Exception:  # a time-out, a lost connection, a refusal: nobody knows; the id makes another try safe
                    self.retries += 1
                    await asyncio.sleep(0.05)
            self.note_ack()
            before = acked.setdefault(identity, ack.seq)
            unknown.discard(identity)
            if before != ack.seq:
                self.problems.append(f"{identity} was acked as {before} and as {ack.seq}")
            await asyncio.sleep(self.pace)
        await client.close()

    async def worker(self):
        client = await connect(self.urls)
        while self.work_on:
            asked = time.monotonic()
            for message in await pull(client, 20):
                identity = message.data.split()[0].decode()
                # What came in answer to a request was decided after the request.
                self.deliveries.append((asked, identity))
                try:
                    # The last word is the moment of the answer: an ack is confirmed then, and not earlier.
                    await message.ack_sync(timeout=1)
                    self.confirmed.setdefault(identity, time.monotonic())
                except Exception:  # nobody knows; it is delivered again, or not
                    self.retries += 1
        await client.close()

    def next_key(self):
        """Few operations for each, so that a history can be judged."""
        self.key += 1
        return f"register.{self.key // OPERATIONS_OF_A_KEY}"

    async def register_client(self, number):
        client = await connect(self.urls)
        known, count = {}, 0
        while self.go_on:
            key = self.next_key()
            count += 1
            value = f"r{number}-{count}"
            choice = self.chance.random()
            begin = time.monotonic()
            if choice < 0.4 or key not in known:
                operation = Operation("read", begin)
                seen = await self.read(client, key, operation)
                if operation.outcome == "ok":
                    known[key] = seen
            elif choice < 0.55:
                operation = Operation("write", begin, value=value)
                await self.write(client, key, operation, None)
                known.pop(key, None)
            else:
                expected, sequence = known.pop(key)
                operation = Operation("cas", begin, value=value, expected=expected)
                await self.write(client, key, operation, sequence)
            operation.end = time.monotonic()
            self.histories.setdefault(key, []).append(operation)
            await asyncio.sleep(0.01)
        await client.close()

    async def read(self, client, key, operation):
        try:
            answer = await client.request(
                f"$JS.API.STREAM.MSG.GET.{REGISTERS}", json.dumps({"last_by_subj": key}).encode(), timeout=PATIENCE
            )
            answer = json.loads(answer.data)
        except Exception:  # an answer that did not come
            return None
        if "error" in answer:
            if answer["error"].get("err_code") != NO_MESSAGE_FOUND:
                return None
            operation.outcome = "ok"
            return None, 0
        operation.value = base64.b64decode(answer["message"]["data"]).split()[0].decode()
        operation.outcome = "ok"
        return operation.value, answer["message"]["seq"]

    async def write(self, client, key, operation, sequence):
        headers = None if sequence is None else {"Nats-Expected-Last-Subject-Sequence": str(sequence)}
        try:
            answer = json.loads((await client.request(key, operation.value.encode(), timeout=PATIENCE, headers=headers)).data)
        except Exception:  # an answer that did not come
            return
        if "error" not in answer:
            operation.outcome = "ok"
            self.acked[REGISTERS][operation.value] = answer["seq"]
        elif answer["error"].get("err_code") == WRONG_LAST_SEQUENCE and operation.kind == "cas":
            operation.outcome = "refused"

    def judge(self, shown, registers):
        """`shown`, `registers`: node → what it shows of those streams, sequence → id."""
        verdict = judge_set(self.acked[SET], self.unknown[SET], shown)
        verdict.problems += self.problems
        for node, held in registers.items():
            lost, examples = lost_of(self.acked[REGISTERS], held)
            if lost.total():
                verdict.problems.append(f"{node} lost {lost} writes of registers, such as {examples[:3]}")
        queue = judge_queue(self.acked[QUEUE], self.unknown[QUEUE], self.deliveries, self.confirmed, self.left_in_queue)
        verdict.problems += queue.problems + judge_registers(self.histories)
        return verdict

    def figures(self):
        operations = sum(len(history) for history in self.histories.values())
        return {
            "acked": len(self.acked[SET]) + len(self.acked[QUEUE]) + len(self.acked[REGISTERS]), "retries": self.retries,
            "unknown": sum(map(len, self.unknown.values())), "operations": operations, "keys": len(self.histories),
            "worked": len(self.confirmed), "longest_silence": round(self.longest_silence, 2),
        }


async def insist(ask, seconds=60):
    """An answer, in the end."""
    until = time.monotonic() + seconds
    while True:
        try:
            return await ask()
        except Exception:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.1)


async def pull(client, batch):
    """One request for messages and what is delivered for it, on a subject of its own."""
    inbox = client.new_inbox()
    got = []
    try:
        subscription = await client.subscribe(inbox)
        ask = {"batch": batch, "expires": 1_000_000_000}
        await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{QUEUE}.{WORKERS}", json.dumps(ask).encode(), reply=inbox)
        try:
            while len(got) < batch:
                message = await subscription.next_msg(timeout=1.5)
                if message.headers and "Status" in message.headers:
                    break
                got.append(message)
        except nats.errors.TimeoutError:
            pass
        await subscription.unsubscribe()
    except Exception:  # between two connections
        await asyncio.sleep(0.1)
    return got
