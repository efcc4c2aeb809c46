"""Bad histories made by hand: the judges must see what is wrong with each, and nothing in good ones.

    python3 scripts/faultlanes/checker_test.py
"""

import random
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from faultlanes.checker import FOREVER, Operation, judge_queue, judge_set, linearizable  # noqa: E402

ACKED = {"a-1": 1, "b-1": 2, "a-2": 3, "b-2": 4, "a-3": 5}
HELD = {sequence: identity for identity, sequence in ACKED.items()}


def without(*sequences):
    return {sequence: identity for sequence, identity in HELD.items() if sequence not in sequences}


def said(problem, verdict):
    return any(problem in told for told in verdict.problems)


class Sets(unittest.TestCase):
    def test_good(self):
        self.assertTrue(judge_set(ACKED, set(), {"n1": HELD, "n2": HELD}).clean())

    def test_unknown_may_be_there_or_not(self):
        self.assertTrue(judge_set(ACKED, {"b-3"}, {"n1": HELD}).clean())
        more = {**HELD, 6: "b-3"}
        self.assertTrue(judge_set(ACKED, {"b-3"}, {"n1": more}).clean())

    def test_lost_by_place(self):
        for gone, place in ((1, "prefix"), (3, "middle"), (5, "postfix")):
            verdict = judge_set(ACKED, set(), {"n1": HELD, "n2": without(gone)})
            self.assertEqual(getattr(verdict.lost, place), 1, place)
            self.assertEqual(verdict.lost.total(), 1)
            self.assertEqual(verdict.lost_per_node, {"n2": 1})
            self.assertTrue(said("differ", verdict))

    def test_everything_lost(self):
        self.assertEqual(judge_set(ACKED, set(), {"n1": {}}).lost.total(), 5)

    def test_another_message_under_its_sequence(self):
        self.assertEqual(judge_set(ACKED, {"c-1"}, {"n1": {**HELD, 3: "c-1"}}).lost.middle, 1)

    def test_duplicated(self):
        self.assertTrue(said("duplicated", judge_set(ACKED, set(), {"n1": {**HELD, 6: "a-1"}})))

    def test_unexpected(self):
        self.assertTrue(said("unexpected", judge_set(ACKED, set(), {"n1": {**HELD, 6: "c-9"}})))

    def test_order(self):
        acked = {"a-1": 2, "a-2": 1}
        verdict = judge_set(acked, set(), {"n1": {1: "a-2", 2: "a-1"}})
        self.assertTrue(said("order", verdict))

    def test_hole(self):
        self.assertTrue(said("no message", judge_set({"a-1": 1}, {"a-2"}, {"n1": {1: "a-1", 3: "a-2"}})))


class Queues(unittest.TestCase):
    def test_good(self):
        deliveries = [(1, "a-1"), (2, "a-2"), (5, "a-2")]
        self.assertTrue(judge_queue({"a-1": 1, "a-2": 2}, set(), deliveries, {"a-1": 3}, 0).clean())

    def test_never_delivered(self):
        self.assertEqual(judge_queue({"a-1": 1}, set(), [], {}, 0).lost.total(), 1)

    def test_delivered_after_its_ack(self):
        verdict = judge_queue({"a-1": 1}, set(), [(1, "a-1"), (4, "a-1")], {"a-1": 3}, 0)
        self.assertTrue(said("after its ack", verdict))

    def test_delivered_and_never_published(self):
        self.assertTrue(said("never published", judge_queue({}, set(), [(1, "x-1")], {}, 0)))

    def test_left(self):
        self.assertTrue(said("left", judge_queue({"a-1": 1}, set(), [(1, "a-1")], {}, 2)))


def read(begin, end, value):
    return Operation("read", begin, end, value, outcome="ok")


def write(begin, end, value, outcome="ok"):
    return Operation("write", begin, end, value, outcome=outcome)


def cas(begin, end, expected, value, outcome="ok"):
    return Operation("cas", begin, end, value, expected, outcome)


class Registers(unittest.TestCase):
    def test_one_after_the_other(self):
        self.assertTrue(linearizable([read(0, 1, None), write(2, 3, "a"), read(4, 5, "a"), cas(6, 7, "a", "b"), read(8, 9, "b")]))

    def test_at_once_either_order(self):
        self.assertTrue(linearizable([write(0, 10, "a"), write(0, 10, "b"), read(11, 12, "a")]))
        self.assertTrue(linearizable([write(0, 10, "a"), read(1, 2, None), read(3, 4, "a")]))

    def test_stale_read(self):
        self.assertFalse(linearizable([write(0, 1, "a"), write(2, 3, "b"), read(4, 5, "a")]))

    def test_a_read_goes_back(self):
        self.assertFalse(linearizable([write(0, 1, "a"), write(2, 9, "b"), read(3, 4, "b"), read(5, 6, "a")]))

    def test_lost_write(self):
        self.assertFalse(linearizable([write(0, 1, "a"), read(2, 3, None)]))

    def test_two_creators(self):
        self.assertFalse(linearizable([cas(0, 1, None, "a"), cas(2, 3, None, "b")]))
        self.assertFalse(linearizable([cas(0, 5, None, "a"), cas(0, 5, None, "b")]))

    def test_refused_with_the_right_value(self):
        self.assertFalse(linearizable([write(0, 1, "a"), cas(2, 3, "a", "b", "refused"), read(4, 5, "a")]))
        self.assertTrue(linearizable([write(0, 1, "a"), cas(2, 3, None, "b", "refused"), read(4, 5, "a")]))

    def test_unknown_happens_later_or_never(self):
        history = [write(0, 1, "a"), write(2, FOREVER, "b", "unknown"), read(3, 4, "a"), read(50, 51, "b")]
        self.assertTrue(linearizable(history))
        self.assertTrue(linearizable(history[:3]))
        self.assertFalse(linearizable(history + [read(52, 53, "a")]))

    def test_unknown_does_not_happen_before_its_begin(self):
        self.assertFalse(linearizable([read(0, 1, "b"), write(2, FOREVER, "b", "unknown")]))

    def test_a_value_from_nowhere(self):
        self.assertFalse(linearizable([write(0, 1, "a"), read(2, 3, "x")]))

    def test_random_lives_of_a_real_register_hold_and_a_changed_read_does_not(self):
        for seed in range(100):
            history = life(random.Random(seed))
            self.assertTrue(linearizable(history), seed)
            reads = [o for o in history if o.kind == "read" and o.outcome == "ok"]
            reads[-1].value = "never written"
            self.assertFalse(linearizable(history), seed)


def life(chance, operations=80, clients=4):
    """Each operation has its effect at a moment between its begin and its end; some answers are lost."""
    moments, state, history = [], None, []
    for client in range(clients):
        now = chance.random()
        for count in range(operations // clients):
            begin, end = now, now + chance.random()
            moments.append((chance.uniform(begin, end), client, count, begin, end))
            now = end + chance.random() / 4
    for _, client, count, begin, end in sorted(moments):
        kind = chance.choice(("read", "read", "write", "cas"))
        value = f"{client}.{count}"
        if kind == "read":
            operation = Operation("read", begin, end, state, outcome="ok")
        elif kind == "write":
            operation, state = Operation("write", begin, end, value, outcome="ok"), value
        else:
            expected = state if chance.random() < 0.7 else "other"
            outcome = "ok" if expected == state else "refused"
            operation = Operation("cas", begin, end, value, expected, outcome)
            state = value if outcome == "ok" else state
        if chance.random() < 0.15:
            operation.outcome = "unknown"
        history.append(operation)
    # The last word is known.
    history.append(Operation("read", 1e6, 1e6 + 1, state, outcome="ok"))
    return history


if __name__ == "__main__":
    unittest.main()
