from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_p2p.protocol.outbox import MAX_UNFINISHED, MAX_UNFINISHED_BYTES, Outbox, Taken
from synapse_p2p.protocol.parts import PartJoiner
from synapse_p2p.protocol.wire import MAX_WHOLE_BYTES, FrameKind, FrameReader, decode_part

SIZES = st.sampled_from([1, 50, 5_000, MAX_WHOLE_BYTES, MAX_WHOLE_BYTES + 1, 100_000])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.just(0), SIZES),
        st.tuples(st.just("task"), st.sampled_from([1, 2, 3, 4, 11, 12]), SIZES),
        st.tuples(st.just("control"), st.just(0), st.integers(1, 50)),
        st.tuples(st.just("take"), st.just(0), st.just(0)),
        st.tuples(st.just("take back"), st.integers(1, 12), st.just(0)),
    ),
    max_size=40,
)


class Hearer:
    """Puts together what an outbox gives, in the order in which it is whole."""

    def __init__(self) -> None:
        self.control: list[bytes] = []
        self.tasks: list[bytes] = []
        self.parts = PartJoiner(2**24)
        self._reader = FrameReader(max_control_frame_bytes=2**16, max_task_frame_bytes=2**24)

    def hear(self, data: bytes) -> None:
        for kind, body in self._reader.feed(data):
            if kind is FrameKind.CONTROL:
                self.control.append(body)
            elif kind is FrameKind.TASK:
                self.tasks.append(body)
            elif (message := self.parts.join(decode_part(body))) is not None:
                self.tasks.append(message)


@given(STEPS)
@settings(deadline=None)
def test_messages_of_a_call_leave_whole_and_in_order_unless_they_are_taken_back(steps: list[tuple[str, int, int]]):
    outbox, hearer = Outbox(), Hearer()
    expected: dict[int, list[bytes]] = {}
    control: list[bytes] = []
    last_id = 10
    for number, (what, call_id, size) in enumerate(steps):
        body = b"%d:%d:" % (call_id, number) + bytes(size)
        match what:
            case "call":
                last_id += 1
                body = b"%d:%d:" % (last_id, number) + bytes(size)
                outbox.put_call(last_id, body)
                expected.setdefault(last_id, []).append(body)
            case "task" if call_id < 10 or expected.get(call_id):  # an upload of a call that is not taken back
                outbox.put_task(call_id, body)
                expected.setdefault(call_id, []).append(body)
            case "control":
                outbox.put_control(body)
                control.append(body)
            case "take":
                waiting = control[len(hearer.control) :]
                hearer.hear(outbox.take())
                assert hearer.control[len(control) - len(waiting) :] == waiting  # all of it, at once
            case "take back":
                heard = [body for body in hearer.tasks if body.startswith(b"%d:" % call_id)]
                before = outbox.queued_bytes
                left = sum(map(len, expected.get(call_id, []))) - sum(map(len, heard))
                taken = outbox.take_back(call_id)
                hearer.parts.drop(call_id)  # as the other end does at a cancel
                assert (taken is Taken.WHOLE) == (
                    call_id > 10 and bool(expected.get(call_id)) and before - outbox.queued_bytes == left and not heard
                )
                expected[call_id] = heard
        outbox.check_invariants()
        hearer.parts.check_invariants()
    while not outbox.is_empty:
        hearer.hear(outbox.take())
        outbox.check_invariants()

    assert hearer.control == control
    for call_id, bodies in expected.items():
        assert [body for body in hearer.tasks if body.startswith(b"%d:" % call_id)] == bodies
    assert sum(map(len, expected.values())) == len(hearer.tasks)


def test_a_call_that_is_taken_back_takes_its_long_upload_with_it():
    outbox = Outbox()
    outbox.put_call(11, b"call")
    outbox.put_task(11, bytes(100_000))

    assert outbox.take_back(11) is Taken.WHOLE

    assert outbox.is_empty
    outbox.check_invariants()


def test_a_long_upload_never_overtakes_its_call():
    outbox, hearer = Outbox(), Hearer()
    for call_id in (11, 12, 13):
        outbox.put_call(call_id, bytes(MAX_WHOLE_BYTES))
    outbox.put_call(14, b"call")
    outbox.put_task(14, b"item" + bytes(MAX_WHOLE_BYTES))
    while not outbox.is_empty:
        hearer.hear(outbox.take())

    assert [body[:4] for body in hearer.tasks][3:] == [b"call", b"item"]


def test_a_goodbye_is_the_last_word():
    outbox, hearer = Outbox(), Hearer()
    outbox.put_goodbye(b"bye")
    outbox.put_task(1, bytes(200_000))
    outbox.put_task(2, b"short")

    while not outbox.is_empty:
        assert b"bye" not in hearer.control
        hearer.hear(outbox.take())

    assert len(hearer.tasks) == 2
    assert hearer.control == [b"bye"]


def test_so_many_long_messages_are_unfinished_at_once_and_no_more():
    outbox, hearer = Outbox(), Hearer()
    for call_id in range(1, MAX_UNFINISHED + 20):
        outbox.put_task(call_id, bytes(MAX_WHOLE_BYTES + 1))
    outbox.put_task(1000, bytes(MAX_UNFINISHED_BYTES + 1))
    while not outbox.is_empty:
        hearer.hear(outbox.take())
        hearer.parts.check_invariants()
        outbox.check_invariants()

    assert len(hearer.tasks) == MAX_UNFINISHED + 20


def test_no_long_message_keeps_short_ones_and_no_short_ones_keep_a_long_one_from_leaving():
    outbox, hearer = Outbox(), Hearer()
    outbox.put_task(1, bytes(300_000))
    for _ in range(12):
        for _ in range(10):
            outbox.put_task(2, bytes(10_000))
        before = len(hearer.tasks)
        hearer.hear(outbox.take())
        assert len(hearer.tasks) > before

    assert any(len(body) == 300_000 for body in hearer.tasks)
