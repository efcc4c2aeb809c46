"""Atomic batches of publishes (ADR-50 of NATS), raw. Prints the answers; the test compares them between servers."""

import asyncio
import json
import sys

import nats
from nats.errors import NoRespondersError, TimeoutError


async def api(nc, subject, body):
    answer = json.loads((await nc.request(f"$JS.API.{subject}", json.dumps(body).encode())).data)
    if "error" in answer:
        print(subject, answer["error"])
    return answer


async def stream(nc, name, **more):
    body = {"name": name, "subjects": [f"{name}.>"], "retention": "limits", "storage": "file", "max_msgs": -1,
            "max_bytes": -1, "num_replicas": 1, "allow_atomic": True, "duplicate_window": 120_000_000_000, **more}
    answer = await api(nc, f"STREAM.CREATE.{name}", body)
    print(name, answer.get("config", {}).get("allow_atomic"), answer.get("config", {}).get("metadata", {}).get("_nats.req.level"))


async def say(nc, subject, payload, batch, seq, commit=None, **headers):
    """One message of a batch, with a reply; prints what comes."""
    wanted = {}
    if batch is not None:
        wanted["Nats-Batch-Id"] = batch
    if seq is not None:
        wanted["Nats-Batch-Sequence"] = str(seq)
    if commit is not None:
        wanted["Nats-Batch-Commit"] = commit
    wanted.update({name.replace("_", "-"): value for name, value in headers.items()})
    label = f"{batch if batch is None or len(batch) < 20 else len(batch)}/{seq}/{commit} {headers if headers else ''}"
    try:
        answer = await nc.request(subject, payload, headers=wanted, timeout=2)
        print(label, answer.data.decode())
    except (NoRespondersError, TimeoutError) as error:
        print(label, type(error).__name__)


async def state(nc, name):
    answer = await api(nc, f"STREAM.INFO.{name}", {})
    print(name, {k: answer["state"][k] for k in ("messages", "first_seq", "last_seq")})


async def main(url):
    nc = await nats.connect(url)
    await stream(nc, "A")
    # Whole ones.
    await say(nc, "A.1", b"one", "b1", 1)
    await say(nc, "A.2", b"two", "b1", 2)
    await state(nc, "A")
    await say(nc, "A.3", b"three", "b1", 3, "1")
    await state(nc, "A")
    for sequence in (1, 3):
        message = await api(nc, "STREAM.MSG.GET.A", {"seq": sequence})
        print(message["message"]["subject"], message["message"]["data"], message["message"].get("hdrs"))
    await say(nc, "A.1", b"alone", "b2", 1, "1")
    await say(nc, "A.1", b"x", "b3", 1)
    await say(nc, "A.1", b"not stored", "b3", 2, "eob")
    await state(nc, "A")
    await say(nc, "A.1", b"nothing", "b3e", 1, "eob")
    # What is wrong with its headers.
    await say(nc, "A.1", b"x", "b4", None)
    await say(nc, "A.1", b"x", "b4", 0)
    await say(nc, "A.1", b"x", "b4", "soon")
    await say(nc, "A.1", b"x", "b4", 2)
    await say(nc, "A.1", b"x", "b4", 2, "1")
    await say(nc, "A.1", b"x", "i" * 64, 1, "1")
    await say(nc, "A.1", b"x", "i" * 65, 1, "1")
    await say(nc, "A.1", b"x", "b5", 1, "2")
    await say(nc, "A.1", b"x", "b6", 1)
    await say(nc, "A.1", b"x", "b6", 2, "yes")
    await say(nc, "A.1", b"x", "b6", 3, "1")
    await say(nc, "A.1", b"x", "b7", 1)
    await say(nc, "A.1", b"gap", "b7", 3)
    await say(nc, "A.1", b"x", "b7", 2, "1")
    await say(nc, "A.1", b"x", "b8", 1)
    await say(nc, "A.1", b"again", "b8", 1)
    await say(nc, "A.1", b"x", "b8", 2, "1")
    await say(nc, "A.1", b"no batch", None, 1)
    await say(nc, "A.1", b"no batch", None, None, "1")
    await state(nc, "A")
    # Message ids.
    await say(nc, "A.1", b"x", "c1", 1, Nats_Msg_Id="m1")
    await say(nc, "A.1", b"y", "c1", 2, "1", Nats_Msg_Id="m2")
    await say(nc, "A.1", b"x", "c2", 1, Nats_Msg_Id="m1")
    await say(nc, "A.1", b"z", "c2", 2, "1", Nats_Msg_Id="m3")
    await say(nc, "A.1", b"x", "c3", 1, Nats_Msg_Id="m4")
    await say(nc, "A.1", b"x", "c3", 2, "1", Nats_Msg_Id="m4")
    await say(nc, "A.1", b"x", "c4", 1, "1", Nats_Msg_Id="m1")
    await state(nc, "A")
    # Expectations.
    last = (await api(nc, "STREAM.INFO.A", {}))["state"]["last_seq"]
    await say(nc, "A.1", b"x", "d1", 1, Nats_Expected_Last_Sequence=str(last))
    await say(nc, "A.1", b"x", "d1", 2, "1")
    await say(nc, "A.1", b"x", "d2", 1, Nats_Expected_Last_Sequence="1")
    await say(nc, "A.1", b"x", "d2", 2, "1")
    await say(nc, "A.1", b"x", "d3", 1)
    await say(nc, "A.1", b"x", "d3", 2, "1", Nats_Expected_Last_Sequence=str(last + 3))
    await say(nc, "A.1", b"x", "d4", 1, Nats_Expected_Last_Msg_Id="m2")
    await say(nc, "A.1", b"x", "d4", 2, "1")
    await say(nc, "A.s", b"x", "d5", 1, Nats_Expected_Last_Subject_Sequence="0")
    await say(nc, "A.t", b"x", "d5", 2, "1", Nats_Expected_Last_Subject_Sequence="0")
    await say(nc, "A.u", b"x", "d6", 1, Nats_Expected_Last_Subject_Sequence="0")
    await say(nc, "A.u", b"x", "d6", 2, "1", Nats_Expected_Last_Subject_Sequence="0")
    last = (await api(nc, "STREAM.INFO.A", {}))["state"]["last_seq"]
    await say(nc, "A.u", b"x", "d7", 1)
    await say(nc, "A.u", b"x", "d7", 2, "1", Nats_Expected_Last_Subject_Sequence=str(last + 1))
    await say(nc, "A.v", b"x", "d8", 1)
    await say(nc, "A.w", b"x", "d8", 2, "1", Nats_Expected_Last_Subject_Sequence="0",
              Nats_Expected_Last_Subject_Sequence_Subject="A.v")
    await say(nc, "A.1", b"x", "d9", 1, Nats_Expected_Stream="A")
    await say(nc, "A.1", b"x", "d9", 2, "1", Nats_Expected_Stream="B")
    await say(nc, "A.1", b"x", "d10", 1, Nats_Expected_Stream="B")
    await say(nc, "A.1", b"x", "d10", 2, "1")
    await say(nc, "A.1", b"x", "d11", 1, Nats_TTL="5s")
    await say(nc, "A.1", b"x", "d11", 2, "1")
    await say(nc, "A.1", b"x", "d12", 1, Nats_Rollup="sub")
    await say(nc, "A.1", b"x", "d12", 2, "1")
    await state(nc, "A")
    # Two at once.
    await say(nc, "A.1", b"x", "e1", 1)
    await say(nc, "A.2", b"x", "e2", 1)
    await say(nc, "A.1", b"x", "e1", 2, "1")
    await say(nc, "A.2", b"x", "e2", 2, "1")
    await state(nc, "A")
    # Limits.
    await stream(nc, "N", discard="new", max_msgs=3)
    await say(nc, "N.1", b"x", "f1", 1)
    await say(nc, "N.1", b"x", "f1", 2)
    await say(nc, "N.1", b"x", "f1", 3)
    await say(nc, "N.1", b"x", "f1", 4, "1")
    await state(nc, "N")
    await say(nc, "N.1", b"x", "f2", 1)
    await say(nc, "N.1", b"x", "f2", 2, "1")
    await state(nc, "N")
    await stream(nc, "S", max_msg_size=10)
    await say(nc, "S.1", b"x" * 500, "g1", 1)
    await stream(nc, "P", max_msgs_per_subject=1)
    await say(nc, "P.1", b"x", "h1", 1)
    await say(nc, "P.1", b"y", "h1", 2, "1")
    await state(nc, "P")
    await stream(nc, "R", allow_rollup_hdrs=True)
    await say(nc, "R.1", b"x", "r1", 1)
    await say(nc, "R.1", b"y", "r1", 2, "1", Nats_Rollup="sub")
    await say(nc, "R.1", b"x", "r2", 1, Nats_Rollup="sub")
    await say(nc, "R.2", b"y", "r2", 2, "1")
    await say(nc, "R.1", b"x", "r3", 1, Nats_Rollup="all")
    await say(nc, "R.2", b"y", "r3", 2, "1")
    await state(nc, "R")
    for number in range(1, 1000):
        await nc.publish("A.big", b"x", headers={"Nats-Batch-Id": "k1", "Nats-Batch-Sequence": str(number)})
    await say(nc, "A.big", b"x", "k1", 1000, "1")
    for number in range(1, 1001):
        await nc.publish("A.big", b"x", headers={"Nats-Batch-Id": "k2", "Nats-Batch-Sequence": str(number)})
    await say(nc, "A.big", b"x", "k2", 1001, "1")
    for number in range(1, 1001):
        await nc.publish("A.big", b"x", headers={"Nats-Batch-Id": "k3", "Nats-Batch-Sequence": str(number)})
    await say(nc, "A.big", b"x", "k3", 1001, "eob")
    await state(nc, "A")
    for number in range(51):
        await say(nc, "P.big", b"x", f"l{number}", 1)
    await stream(nc, "OFF", allow_atomic=False)
    await say(nc, "OFF.1", b"x", "m1", 1)
    await say(nc, "OFF.1", b"x", "m1", 1, "1")
    await nc.close()


asyncio.run(main(sys.argv[1]))
