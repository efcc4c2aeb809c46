"""Key-value and object buckets with nats-py. Prints what a user sees; the test compares it between servers."""

import asyncio
import sys

import nats
from nats.js.errors import Error


async def refused(awaitable):
    try:
        await awaitable
    except Error as error:
        print(type(error).__name__, error)


async def history(kv, key):
    print([(e.key, e.value, e.revision, e.operation) for e in await kv.history(key)])


async def main(url):
    nc = await nats.connect(url)
    js = nc.jetstream()
    kv = await js.create_key_value(bucket="B", history=5)
    print([await kv.put("a", b"1"), await kv.put("a", b"2"), await kv.put("b", b"3")])
    entry = await kv.get("a")
    print(entry.key, entry.value, entry.revision)
    print((await kv.get("a", revision=1)).value)
    print(await kv.create("c", b"x"))
    await refused(kv.create("c", b"y"))
    print(await kv.update("c", b"z", last=4))
    await refused(kv.update("c", b"z", last=1))
    await refused(kv.get("absent"))
    print(sorted(await kv.keys()))
    await history(kv, "a")
    await kv.delete("a")
    await refused(kv.get("a"))
    await history(kv, "a")
    print(await kv.create("a", b"again"))
    await kv.purge("b")
    await history(kv, "b")
    watcher = await kv.watchall()
    while (update := await watcher.updates(timeout=5)) is not None:
        print("watched", update.key, update.value, update.revision, update.operation)
    await kv.put("new", b"n")
    update = await watcher.updates(timeout=5)
    print("watched", update.key, update.value)
    await watcher.stop()
    await kv.purge_deletes()
    print(sorted(await kv.keys()))
    status = await kv.status()
    print(status.bucket, status.values, status.history, status.ttl)
    print(await js.delete_key_value("B"))
    await refused(js.key_value("B"))

    objects = await js.create_object_store("O")
    await objects.put("big", bytes(300_000))
    result = await objects.get("big")
    print(len(result.data), result.info.digest, result.info.chunks)
    await objects.put("small", b"abc")
    print(sorted(info.name for info in await objects.list()))
    await objects.delete("small")
    await refused(objects.get("small"))
    print((await objects.status()).bucket)
    print(await js.delete_object_store("O"))
    await nc.close()


asyncio.run(asyncio.wait_for(main(sys.argv[1]), 50))
