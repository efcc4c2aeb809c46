"""Core messaging with nats-py. Prints what a user sees; the test compares it between servers."""

import asyncio
import sys

import nats
from nats.errors import NoRespondersError


async def settle(nc):
    """Returns when the server has done all that was sent so far. nats-py's flush overtakes subscriptions."""
    try:
        await nc.request("nobody.there", b"", timeout=10)
    except NoRespondersError:
        return


async def main(url):
    nc = await nats.connect(url, name="core")
    other = await nats.connect(url)

    plain = await nc.subscribe("orders.*")
    tail = await nc.subscribe("orders.>")
    await settle(nc)
    await other.publish("orders.eu", b"1")
    await other.publish("orders.eu.north", b"2", headers={"K": "v"})
    print((await plain.next_msg(timeout=10)).data)
    print([(m.subject, m.data, m.headers) for m in [await tail.next_msg(timeout=10) for _ in range(2)]])
    await plain.unsubscribe()

    # A queue group shares; each message goes to one member.
    shared = asyncio.Queue()
    for _ in range(3):
        await nc.subscribe("work", queue="q", cb=shared.put)
    await settle(nc)
    for n in range(30):
        await other.publish("work", str(n).encode())
    print(sorted([int((await asyncio.wait_for(shared.get(), 10)).data) for _ in range(30)]), shared.qsize())

    async def serve(message):
        await message.respond(b"re:" + message.data)

    await nc.subscribe("echo", cb=serve)
    await settle(nc)
    print((await other.request("echo", b"hi", timeout=10)).data)
    try:
        await other.request("nobody", b"", timeout=10)
    except NoRespondersError as error:
        print(type(error).__name__)

    # An unsubscribe that counts.
    some = await nc.subscribe("limited")
    await some.unsubscribe(limit=2)
    for n in range(4):
        await nc.publish("limited", str(n).encode())
    print([m.data for m in [await some.next_msg(timeout=10) for _ in range(2)]])

    big = await nc.subscribe("big")
    await nc.publish("big", b"x" * nc.max_payload)
    print(len((await big.next_msg(timeout=10)).data), nc.max_payload)
    await big.drain()
    await other.close()
    await nc.close()


asyncio.run(asyncio.wait_for(main(sys.argv[1]), 50))
