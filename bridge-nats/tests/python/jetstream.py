"""Streams and consumers with nats-py. Prints what a user sees; the test compares it between servers."""

import asyncio
import sys

import nats
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, DiscardPolicy, RetentionPolicy, StreamConfig
from nats.js.errors import APIError


async def refused(awaitable):
    try:
        await awaitable
    except APIError as error:
        print(type(error).__name__, error.code, error.err_code, error.description)


async def fetched(subscription, count):
    messages = []
    while len(messages) < count:
        messages += await subscription.fetch(count - len(messages), timeout=5)
    return messages


async def main(url):
    nc = await nats.connect(url)
    js = nc.jetstream()
    info = await js.add_stream(name="S", subjects=["s.>"], max_msgs=100)
    print(info.config.name, info.config.subjects, info.config.max_msgs, info.state.messages)
    await refused(js.add_stream(name="S", subjects=["other"]))
    await refused(js.add_stream(name="T", subjects=["s.1"]))
    await refused(js.stream_info("nowhere"))
    for n in range(10):
        ack = await js.publish(f"s.{n % 3}", f"m{n}".encode())
        print(ack.stream, ack.seq, ack.duplicate)
    first = await js.publish("s.id", b"x", headers={"Nats-Msg-Id": "one"})
    again = await js.publish("s.id", b"x", headers={"Nats-Msg-Id": "one"})
    print(first.seq == again.seq, again.duplicate)
    await refused(js.publish("s.1", b"", headers={"Nats-Expected-Last-Sequence": "3"}))
    await refused(js.publish("s.1", b"", stream="other"))

    pull = await js.pull_subscribe("s.>", "worker")
    for message in await fetched(pull, 4):
        m = message.metadata
        print(message.subject, message.data, m.sequence.stream, m.sequence.consumer, m.num_pending, m.num_delivered)
        await message.ack_sync()
    (message,) = await fetched(pull, 1)
    await message.nak()
    rest = sorted(await fetched(pull, 7), key=lambda m: m.metadata.sequence.stream)
    print([(m.data, m.metadata.num_delivered) for m in rest])
    await rest[0].in_progress()
    await rest[0].term()
    for message in rest[1:]:
        await message.ack_sync()
    try:
        await pull.fetch(1, timeout=0.2)
    except nats.errors.TimeoutError as error:
        print(type(error).__name__)
    info = await pull.consumer_info()
    print(info.num_pending, info.num_ack_pending, info.ack_floor.stream_seq, info.delivered.consumer_seq)

    seen = asyncio.Queue()

    async def take(message):
        await message.ack()
        await seen.put(message.data)

    push = await js.subscribe("s.1", durable="push", cb=take, manual_ack=True)
    print([await asyncio.wait_for(seen.get(), 5) for _ in range(3)])
    await push.unsubscribe()

    ordered = await js.subscribe("s.>", ordered_consumer=True)
    print([m.data for m in [await ordered.next_msg(timeout=5) for _ in range(11)]])
    await ordered.unsubscribe()

    last = await js.subscribe("s.*", deliver_policy=DeliverPolicy.LAST_PER_SUBJECT)
    print([m.data for m in [await last.next_msg(timeout=5) for _ in range(4)]])
    await last.unsubscribe()

    await js.add_consumer("S", ConsumerConfig(durable_name="two", filter_subjects=["s.0", "s.2"], ack_policy=AckPolicy.ALL))
    two = await js.pull_subscribe_bind("two", "S")
    messages = await fetched(two, 3)
    print([m.data for m in messages])
    await messages[-1].ack_sync()
    info = await js.consumer_info("S", "two")
    print(info.num_ack_pending, info.num_pending, info.ack_floor.consumer_seq)
    await refused(js.consumer_info("S", "nobody"))
    print(sorted(c.config.durable_name for c in await js.consumers_info("S") if c.config.durable_name))

    message = await js.get_msg("S", 2)
    print(message.subject, message.data, message.seq)
    message = await js.get_last_msg("S", "s.1")
    print(message.data, message.seq)
    await js.delete_msg("S", 2)
    await refused(js.get_msg("S", 2))
    print((await js.stream_info("S")).state.num_deleted)
    print(await js.purge_stream("S", subject="s.0"), await js.purge_stream("S", keep=2))
    print((await js.stream_info("S")).state.messages)

    await js.add_stream(StreamConfig(name="Q", subjects=["q"], retention=RetentionPolicy.WORK_QUEUE))
    for n in range(3):
        await js.publish("q", str(n).encode())
    work = await js.pull_subscribe("q", "w")
    for message in await fetched(work, 3):
        await message.ack_sync()
    print((await js.stream_info("Q")).state.messages)
    await refused(js.add_consumer("Q", ConsumerConfig(durable_name="w2", ack_policy=AckPolicy.EXPLICIT)))

    await js.add_stream(StreamConfig(name="F", subjects=["f"], max_msgs=2, discard=DiscardPolicy.NEW))
    await js.publish("f", b"1")
    await js.publish("f", b"2")
    await refused(js.publish("f", b"3"))

    print(sorted(s.config.name for s in await js.streams_info()))
    print(await js.find_stream_name_by_subject("q"))
    print(await js.delete_consumer("S", "worker"), await js.delete_stream("S"))
    account = await js.account_info()
    print(account.streams, account.consumers)
    await nc.close()


asyncio.run(asyncio.wait_for(main(sys.argv[1]), 50))
