from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p.exceptions import FrameTooLarge
from synapse_p2p.messages import Answer, Code, Outcome, Refusal, RPCError, RPCRequest, RPCResponse
from synapse_p2p.protocol.plain import (
    FrameReader,
    GiveUp,
    PlainExchange,
    PlainLimits,
    Reply,
    Serve,
    Wait,
    encode_frame,
    plain_response,
)
from synapse_p2p.serializers import MessagePackRPCSerializer

LIMITS = PlainLimits(max_request_bytes=1000, header_timeout_s=10.0, body_grace_s=5.0, min_body_bytes_per_s=100)
REQUEST = RPCRequest(endpoint="sum", id="7", args=[1, 2])
REQUEST_FRAME = encode_frame(MessagePackRPCSerializer.serialize(REQUEST))


def exchange_opened_at(opened_at: float = 0.0, *, refusal: Refusal | None = None) -> PlainExchange:
    return PlainExchange(MessagePackRPCSerializer, LIMITS, opened_at=opened_at, refusal=refusal)


def response_in(step: Any) -> RPCResponse:
    assert isinstance(step, Reply)
    size_bytes, payload = step.frame[:4], step.frame[4:]
    assert int.from_bytes(size_bytes, "big") == len(payload)
    response = MessagePackRPCSerializer.deserialize(payload)
    assert isinstance(response, RPCResponse)
    return response


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if end > start]


@given(st.lists(st.integers(0, 200), max_size=8))
def test_a_request_is_served_however_its_bytes_are_split(cuts: list[int]):
    exchange = exchange_opened_at()

    for piece in pieces(REQUEST_FRAME, cuts):
        assert exchange.poll(1.0) == Wait(until=exchange.poll(1.0).until)
        exchange.receive_data(piece, now=1.0)

    assert exchange.poll(1.0) == Serve(REQUEST)
    assert isinstance(exchange.poll(1.0), Wait)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_any_bytes_end_in_one_step_and_only_one(data: bytes, cuts: list[int]):
    exchange = exchange_opened_at()

    for piece in pieces(data, cuts):
        exchange.receive_data(piece, now=1.0)
        assert exchange.buffered_bytes() <= 4 + LIMITS.max_request_bytes + len(piece)
    exchange.receive_eof()

    step = exchange.poll(1.0)
    assert isinstance(step, Serve | Reply | GiveUp)
    assert exchange.poll(1.0) == Wait(until=float("inf"))
    if isinstance(step, Reply):
        assert response_in(step).error is not None


def test_the_response_of_a_served_request_is_sent_once():
    exchange = exchange_opened_at()
    exchange.receive_data(REQUEST_FRAME, now=0.0)
    exchange.poll(0.0)

    exchange.on_response(b"frame")
    exchange.on_response(b"another")

    assert exchange.poll(0.0) == Reply(b"frame", is_early=False)
    assert isinstance(exchange.poll(0.0), Wait)


def test_a_length_over_the_limit_is_answered_as_soon_as_it_is_known():
    exchange = exchange_opened_at()

    exchange.receive_data((1001).to_bytes(4, "big"), now=0.0)

    step = exchange.poll(0.0)
    assert step.is_early
    assert response_in(step).error == RPCError("bad_request", "frame too large: 1001 > 1000")
    assert exchange.buffered_bytes() == 0


def test_a_length_at_the_limit_is_read():
    exchange = exchange_opened_at()

    exchange.receive_data((1000).to_bytes(4, "big"), now=0.0)

    assert isinstance(exchange.poll(0.0), Wait)


def test_half_a_header_is_given_up_after_its_deadline():
    exchange = exchange_opened_at(100.0)
    exchange.receive_data(b"\x00\x00", now=105.0)

    assert exchange.poll(105.0) == Wait(until=110.0)
    assert exchange.poll(110.0) == GiveUp("the request took too long")


def test_a_body_gets_time_by_its_size():
    exchange = exchange_opened_at(0.0)

    exchange.receive_data((200).to_bytes(4, "big"), now=9.0)
    exchange.receive_data(b"x", now=12.0)

    assert exchange.poll(15.9) == Wait(until=9.0 + 5.0 + 2.0)
    assert isinstance(exchange.poll(16.0), GiveUp)


def test_a_request_that_is_being_served_has_no_deadline():
    exchange = exchange_opened_at()
    exchange.receive_data(REQUEST_FRAME, now=0.0)
    exchange.poll(0.0)

    assert exchange.poll(1e9) == Wait(until=float("inf"))


def test_an_end_halfway_is_a_bad_request():
    exchange = exchange_opened_at()
    exchange.receive_data(REQUEST_FRAME[:-1], now=0.0)

    exchange.receive_eof()

    assert response_in(exchange.poll(0.0)).error == RPCError("bad_request", "incomplete frame")


def test_an_end_before_the_first_byte_is_not_answered():
    exchange = exchange_opened_at()

    exchange.receive_eof()

    assert isinstance(exchange.poll(0.0), GiveUp)


def test_an_end_after_the_request_changes_nothing():
    exchange = exchange_opened_at()
    exchange.receive_data(REQUEST_FRAME, now=0.0)

    exchange.receive_eof()

    assert exchange.poll(0.0) == Serve(REQUEST)


def test_bytes_after_the_request_are_dropped():
    exchange = exchange_opened_at()
    exchange.receive_data(REQUEST_FRAME + REQUEST_FRAME, now=0.0)

    exchange.receive_data(b"x" * 10_000, now=0.0)

    assert exchange.poll(0.0) == Serve(REQUEST)
    assert exchange.buffered_bytes() == 0


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (MessagePackRPCSerializer.serialize(RPCResponse(id="7", ok=True)), "expected request message"),
        (b"\xc0", "a message is a map"),
        (b"\xc1", "not a valid MsgPack message"),
        (b"", "not a valid MsgPack message"),
    ],
)
def test_bytes_that_are_no_request_are_a_bad_request(payload: bytes, message: str):
    exchange = exchange_opened_at()

    exchange.receive_data(encode_frame(payload), now=0.0)

    response = response_in(exchange.poll(0.0))
    assert (response.id, response.ok) == ("", False)
    assert response.error is not None
    assert response.error.code == "bad_request"
    assert message in response.error.message


def test_a_caller_that_is_not_served_is_told_so_at_its_first_byte():
    exchange = exchange_opened_at(refusal=Refusal(Code.FORBIDDEN, "not from there"))

    exchange.receive_data(REQUEST_FRAME[:1], now=0.0)

    step = exchange.poll(0.0)
    assert step.is_early
    assert response_in(step).error == RPCError("bad_request", "not from there")


def test_a_refusal_comes_too_late_for_a_whole_request():
    exchange = exchange_opened_at()
    exchange.receive_data(REQUEST_FRAME, now=0.0)

    exchange.refuse(Refusal(Code.BUSY, "too much"))

    assert exchange.poll(0.0) == Serve(REQUEST)


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (Refusal(Code.BAD_REQUEST, "no"), "bad_request", "no"),
        (
            Refusal(Code.NOT_FOUND, "Unregistered endpoint called: x", {"nearest": "y"}),
            "bad_request",
            "Unregistered endpoint called: x",
        ),
        (Refusal(Code.FORBIDDEN, "no"), "bad_request", "no"),
        (Refusal(Code.BUSY, "later"), "internal_error", "later"),
        (Refusal(Code.FAILED, "text", {"reason": "out_of_budget"}), "internal_error", "out_of_budget: text"),
        (Refusal(Code.FAILED, "", {"reason": "out_of_budget"}), "internal_error", "out_of_budget"),
        (Refusal(Code.INTERNAL_ERROR, "internal error", {"reason": "x"}), "internal_error", "internal error"),
    ],
)
def test_failures_read_as_one_of_the_two_old_codes(outcome: Outcome, code: str, message: str):
    response = plain_response("7", outcome)

    assert response == RPCResponse(id="7", ok=False, error=RPCError(code, message))
    assert type(response.error.code) is str


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_an_old_one(code: Code):
    response = plain_response("", Refusal(code, "text"))

    assert response.error is not None
    assert response.error.code in {"bad_request", "internal_error"}


def test_an_answer_is_a_response_with_the_callers_id():
    assert plain_response("7", Answer([1])) == RPCResponse(id="7", ok=True, result=[1])


def test_a_frame_reader_refuses_a_length_over_its_limit():
    reader = FrameReader(max_bytes=5)

    with pytest.raises(FrameTooLarge) as caught:
        reader.receive_data(b"\xa5SYN")

    assert (caught.value.actual_bytes, caught.value.limit_bytes) == (0xA553594E, 5)
