"""Judges of a history: what clients were told, laid beside what the nodes show afterwards.

An operation came out ok, was refused, or is *unknown*: it may have happened, then or later, or never.
"""

import time
from dataclasses import dataclass, field

FOREVER = float("inf")


@dataclass
class Lost:
    """Acked and not there, by where the hole is: before the first message that is left, among what is left, behind it."""

    prefix: int = 0
    middle: int = 0
    postfix: int = 0

    def total(self):
        return self.prefix + self.middle + self.postfix


@dataclass
class Verdict:
    acked: int = 0
    lost: Lost = field(default_factory=Lost)
    lost_per_node: dict = field(default_factory=dict)
    problems: list = field(default_factory=list)

    def clean(self):
        return not self.problems and not self.lost.total()


def lost_of(acked, held):
    """`acked`: id → sequence. `held`: sequence → id."""
    lost = Lost()
    examples = []
    present = [sequence for identity, sequence in acked.items() if held.get(sequence) == identity]
    first, last = (min(present), max(present)) if present else (None, None)
    for identity, sequence in acked.items():
        if held.get(sequence) == identity:
            continue
        examples.append(identity)
        if last is None or sequence > last:
            lost.postfix += 1
        elif sequence < first:
            lost.prefix += 1
        else:
            lost.middle += 1
    return lost, examples


def judge_set(acked, unknown, shown, dense=True):
    """A stream that nothing is removed from. `shown`: node → what it shows as the one that leads, sequence → id.

    An id is `publisher-count`; a publisher waits for the ack of one before it sends the next, so that what stands in
    the stream has each publisher's counts in their order.
    """
    verdict = Verdict(acked=len(acked))
    views = list(shown.items())
    for name, held in views:
        lost, examples = lost_of(acked, held)
        if lost.total():
            verdict.lost_per_node[name] = lost.total()
            verdict.problems.append(f"{name} lost {lost}, such as {sorted(examples)[:3]}")
            if lost.total() > verdict.lost.total():
                verdict.lost = lost
    for name, held in views[1:]:
        first_name, first = views[0]
        differing = [sequence for sequence in first.keys() | held.keys() if first.get(sequence) != held.get(sequence)]
        if differing:
            verdict.problems.append(f"{first_name} and {name} differ at {len(differing)} sequences, such as {sorted(differing)[:3]}")
    for name, held in views:
        verdict.problems.extend(f"{name}: {problem}" for problem in judge_view(acked, unknown, held, dense))
    return verdict


def judge_view(acked, unknown, held, dense):
    problems, stored, counts = [], {}, {}
    for sequence in sorted(held):
        identity = held[sequence]
        if identity in stored:
            problems.append(f"{identity} is duplicated, as {stored[identity]} and {sequence}")
            continue
        stored[identity] = sequence
        if identity not in acked and identity not in unknown:
            problems.append(f"{identity} is unexpected: nobody published it")
        publisher, _, count = identity.rpartition("-")
        if int(count) < counts.get(publisher, 0):
            problems.append(f"order of {publisher}: {count} stands behind {counts[publisher]}")
        counts[publisher] = int(count)
    if dense and held:
        missing = max(held) - len(held)
        if missing:
            problems.append(f"{missing} sequences have no message")
    return problems[:10]


def judge_queue(acked, unknown, deliveries, confirmed, left):
    """A work queue. `deliveries`: (moment, id) as workers got them. `confirmed`: id → moment its ack was confirmed."""
    verdict = Verdict(acked=len(acked))
    seen = {}
    for moment, identity in deliveries:
        seen.setdefault(identity, moment)
        if identity not in acked and identity not in unknown:
            verdict.problems.append(f"{identity} was delivered and never published")
        if moment > confirmed.get(identity, FOREVER):
            verdict.problems.append(f"{identity} was delivered after its ack was confirmed")
    never = [identity for identity in acked if identity not in seen]
    if never:
        verdict.lost.middle = len(never)
        verdict.problems.append(f"{len(never)} acked messages were never delivered, such as {never[:3]}")
    if left:
        verdict.problems.append(f"{left} messages are left in the queue though all workers are idle")
    return verdict


@dataclass
class Operation:
    """On one register. `kind`: read (`value` is what it saw), write, cas (`expected` → `value`).
    `outcome`: ok, refused (a cas that met another value), unknown."""

    kind: str
    begin: float
    end: float = FOREVER
    value: object = None
    expected: object = None
    outcome: str = "unknown"


class Undecided(Exception):
    """The search took too long."""


def after(operation, state):
    """The register after it: (possible, state)."""
    if operation.kind == "read":
        return state == operation.value, state
    if operation.kind == "write":
        return True, operation.value
    if operation.outcome == "refused":
        return state != operation.expected, state
    return state == operation.expected, operation.value


def linearizable(history, seconds=30):
    """Is there an order of the operations, each between its begin and its end, in which a register that is empty at
    first answers as it did? (The search of Wing and Gong with what Lowe added: a place seen before is not searched
    again.) What is unknown may have had its effect at any time after its begin, or never."""
    operations = [o for o in history if not (o.outcome == "unknown" and o.kind == "read")]
    for operation in operations:
        if operation.outcome == "unknown":
            operation.end = FOREVER
    # What is unknown comes last: it is assumed to have happened only where something shows it.
    operations.sort(key=lambda o: (o.end, o.begin))
    must = sum(1 << at for at, o in enumerate(operations) if o.outcome != "unknown")
    until = time.monotonic() + seconds
    seen = set()
    paths = [(0, None)]
    while paths:
        done, state = paths.pop()
        if done & must == must:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        if len(seen) % 4096 == 0 and time.monotonic() > until:
            raise Undecided(f"{len(operations)} operations, {len(seen)} places searched")
        least_end = next(o.end for at, o in enumerate(operations) if not done >> at & 1)
        choices = []
        for at, operation in enumerate(operations):
            if done >> at & 1 or operation.begin > least_end:
                continue
            possible, then = after(operation, state)
            if possible:
                choices.append((done | 1 << at, then))
        # The last one pushed is tried first.
        paths.extend(reversed(choices))
    return False


def judge_registers(histories):
    problems = []
    for key, history in sorted(histories.items()):
        try:
            if not linearizable(history):
                problems.append(f"{key} is not linearizable ({len(history)} operations)")
        except Undecided as undecided:
            problems.append(f"{key} was not decided: {undecided}")
    return problems
