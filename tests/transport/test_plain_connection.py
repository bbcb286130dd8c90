from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from simulations.virtual_loop import run
from synapse_p2p.config import PoolConfig, ServerConfig
from synapse_p2p.messages import Code, Refusal, RPCError, RPCRequest, RPCResponse
from synapse_p2p.protocol.plain import PlainExchange, PlainLimits, encode_frame
from synapse_p2p.runtime import Runtime
from synapse_p2p.serializers import MessagePackRPCSerializer
from synapse_p2p.transport.plain_connection import PlainConnection, PlainConnections
from synapse_p2p.trust import TrustConfig

LIMITS = PlainLimits(max_request_bytes=1000, header_timeout_s=10.0, body_grace_s=5.0, min_body_bytes_per_s=100)
REQUEST = encode_frame(MessagePackRPCSerializer.serialize(RPCRequest(endpoint="any")))


class FakeStream:
    """A stream whose bytes leave only as the test says: `left_by(now)` of them."""

    local_address = "127.0.0.1:1"
    peer_address = "127.0.0.1:2"

    def __init__(self, left_by: Callable[[float], int] = lambda now: 2**62) -> None:
        self.left_by = left_by
        self.written = b""
        self.closed_at: float | None = None
        self.aborted_at: float | None = None

    def write(self, data: bytes) -> None:
        self.written += data

    def unsent_bytes(self) -> int:
        return max(0, len(self.written) - self.left_by(asyncio.get_running_loop().time()))

    def close(self) -> None:
        if self.closed_at is None:
            self.closed_at = asyncio.get_running_loop().time()

    def abort(self) -> None:
        if self.aborted_at is None:
            self.aborted_at = asyncio.get_running_loop().time()

    def is_closing(self) -> bool:
        return self.closed_at is not None or self.aborted_at is not None

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_receiver(self, receiver: Any) -> None: ...


async def answer_100_bytes(request: RPCRequest, address: str) -> bytes:
    return b"x" * 100


def connections(
    *,
    takes_sessions: bool = False,
    respond: Any = answer_100_bytes,
    refusal_for: Callable[[str], Refusal | None] = lambda address: None,
    taken: list[bytes] | None = None,
    **config: Any,
) -> PlainConnections:
    loop = asyncio.get_running_loop()
    rng = random.Random(7)

    def take_session(stream: Any, data: bytes) -> bool:
        if takes_sessions and taken is not None:
            taken.append(data)
        return takes_sessions

    return PlainConnections(
        make_exchange=lambda address: PlainExchange(MessagePackRPCSerializer, LIMITS, opened_at=loop.time()),
        respond=respond,
        refusal_for=refusal_for,
        take_session=take_session,
        runtime=Runtime(now=loop.time, unix_now=loop.time, rng=rng, token_bytes=rng.randbytes),
        config=ServerConfig(**config),
    )


def opened(owner: PlainConnections, stream: FakeStream) -> PlainConnection:
    connection = owner.accept()
    connection.connection_made(stream)
    return connection


def test_a_caller_that_reads_nothing_is_cut_off():
    async def main() -> FakeStream:
        stream = FakeStream(left_by=lambda now: 0)
        opened(connections(write_stall_s=10), stream).data_received(REQUEST)
        await asyncio.sleep(100)
        return stream

    stream = run(main())

    assert (stream.closed_at, stream.aborted_at) == (0, 10)


def test_a_caller_that_reads_slowly_is_waited_for():
    async def main() -> FakeStream:
        stream = FakeStream(left_by=lambda now: int(now / 4))  # a byte in four seconds: all after 400
        connection = opened(connections(write_stall_s=10), stream)
        connection.data_received(REQUEST)
        await asyncio.sleep(450)
        connection.connection_lost(None)
        return stream

    assert run(main()).aborted_at is None


def test_a_first_byte_of_a_session_hands_the_stream_over():
    async def main() -> tuple[list[bytes], FakeStream, int]:
        taken: list[bytes] = []
        stream = FakeStream()
        owner = connections(takes_sessions=True, taken=taken)
        opened(owner, stream).data_received(b"\xa5SYNN")
        await asyncio.sleep(100)
        return taken, stream, len(owner)

    taken, stream, count = run(main())

    assert taken == [b"\xa5SYNN"]
    assert (stream.written, stream.closed_at, stream.aborted_at) == (b"", None, None)  # it is another's now
    assert count == 0


def test_where_no_sessions_are_served_their_first_byte_is_a_length_that_is_too_large():
    async def main() -> FakeStream:
        stream = FakeStream()
        opened(connections(takes_sessions=False), stream).data_received(b"\xa5SYNN")
        await asyncio.sleep(2)
        return stream

    response = MessagePackRPCSerializer.deserialize(run(main()).written[4:])

    assert isinstance(response, RPCResponse)
    assert response.error is not None
    assert response.error.message == f"frame too large: {0xA553594E} > 1000"


def test_the_byte_of_a_session_later_on_is_a_byte_like_others():
    async def main() -> list[bytes]:
        taken: list[bytes] = []
        connection = opened(connections(takes_sessions=True, taken=taken), FakeStream())
        connection.data_received(REQUEST[:1])
        connection.data_received(b"\xa5")
        connection.connection_lost(None)
        return taken

    assert run(main()) == []


def test_a_lost_connection_cancels_its_handler():
    async def main() -> bool:
        was_cancelled = False

        async def respond(request: RPCRequest, address: str) -> bytes:
            nonlocal was_cancelled
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                was_cancelled = True
                raise
            return b""

        owner = connections(respond=respond)
        connection = opened(owner, FakeStream())
        connection.data_received(REQUEST)
        await asyncio.sleep(1)
        connection.connection_lost(ConnectionResetError())
        await asyncio.sleep(1)
        assert len(owner) == 0
        return was_cancelled

    assert run(main())


def test_a_caller_whose_handler_was_cancelled_by_its_own_program_is_hung_up_on():
    async def main() -> FakeStream:
        async def respond(request: RPCRequest, address: str) -> bytes:
            asyncio.create_task(asyncio.sleep(1)).add_done_callback(lambda _: serving.cancel())
            serving = asyncio.current_task()
            assert serving is not None
            await asyncio.sleep(1000)
            return b""

        stream = FakeStream()
        opened(connections(respond=respond), stream).data_received(REQUEST)
        await asyncio.sleep(2)
        return stream

    assert run(main()).aborted_at is not None


def test_nothing_is_written_to_a_caller_that_is_gone():
    async def main() -> FakeStream:
        async def respond(request: RPCRequest, address: str) -> bytes:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                return b"too late"
            return b""

        stream = FakeStream()
        connection = opened(connections(respond=respond), stream)
        connection.data_received(REQUEST)
        await asyncio.sleep(1)
        connection.connection_lost(None)
        await asyncio.sleep(1)
        return stream

    stream = run(main())

    assert stream.written == b""
    assert stream.closed_at is None


def test_what_all_unfinished_requests_hold_is_bounded():
    async def main() -> tuple[FakeStream, FakeStream, int]:
        owner = connections(max_plain_buffered_bytes=1000)
        first, second = FakeStream(), FakeStream()
        opened(owner, first).data_received((900).to_bytes(4, "big") + b"x" * 600)
        late = opened(owner, second)
        late.data_received((900).to_bytes(4, "big") + b"x" * 600)
        held_bytes = owner.buffered_bytes
        await owner.close(0)
        return first, second, held_bytes

    first, second, held_bytes = run(main())

    assert held_bytes == 604
    assert first.written == b""
    assert b"try again later" in second.written


def test_a_host_that_connects_and_does_not_ask_crowds_out_itself_alone():
    async def main() -> tuple[list[FakeStream], list[FakeStream], FakeStream]:
        trust = TrustConfig(loopback=False, networks=("192.0.2.0/24",))
        owner = connections(max_plain_connections_per_address=3, pool=PoolConfig(trust=trust))
        other, exempt, crowd = FakeStream(), [FakeStream() for _ in range(5)], [FakeStream() for _ in range(6)]
        other.peer_address = "127.0.0.9:1"
        opened(owner, other)
        for stream in exempt:
            stream.peer_address = "192.0.2.7:1"
            opened(owner, stream)
        for stream in crowd:
            await asyncio.sleep(1)
            opened(owner, stream)
            if stream is crowd[0]:
                opened(owner, FakeStream()).connection_lost(None)
        return crowd, exempt, other

    crowd, exempt, other = run(main())

    assert [stream.aborted_at for stream in crowd] == [4, 5, 6, None, None, None]
    assert [stream.aborted_at for stream in (*exempt, other)] == [None] * 6


def test_answers_that_nobody_reads_count_as_what_requests_hold():
    async def main() -> tuple[list[FakeStream], int]:
        owner = connections(max_plain_buffered_bytes=250, write_stall_s=10)
        unread = [FakeStream(left_by=lambda now: 0) for _ in range(3)]
        callers = [opened(owner, stream) for stream in unread]
        for caller in callers:
            caller.data_received(REQUEST)
        await asyncio.sleep(1)
        late = FakeStream()
        opened(owner, late).data_received(REQUEST)
        await asyncio.sleep(20)
        for caller in callers:
            caller.connection_lost(None)
        return [*unread, late], owner.buffered_bytes

    streams, held_bytes = run(main())

    assert [stream.aborted_at for stream in streams[:3]] == [10, 10, 10]
    assert b"try again later" in streams[3].written
    assert held_bytes == 0


def test_past_the_cap_who_has_not_asked_goes_first_then_who_does_not_read_and_nobody_whose_call_runs():
    async def answer_two_of_three(request: RPCRequest, address: str) -> bytes:
        if request.endpoint == "slow":
            await asyncio.sleep(100)
        return b"x" * 100

    async def main() -> list[float | None]:
        owner = connections(max_plain_connections=3, respond=answer_two_of_three)
        streams = [FakeStream(left_by=lambda now: 0) for _ in range(6)]
        slow = encode_frame(MessagePackRPCSerializer.serialize(RPCRequest(endpoint="slow")))
        for stream, said in zip(streams, (slow, REQUEST, REQUEST[:2], slow, slow, slow), strict=True):
            opened(owner, stream).data_received(said)
            await asyncio.sleep(1)
        return [stream.aborted_at for stream in streams]

    # The fourth takes the place of one that had not asked, the fifth of one that did not read; there is none for more.
    assert run(main()) == [None, 4, 3, None, None, 5]


def test_bytes_of_connections_that_are_gone_are_not_counted():
    async def main() -> int:
        owner = connections()
        for _ in range(10):
            connection = opened(owner, FakeStream())
            connection.data_received((900).to_bytes(4, "big") + b"x" * 600)
            connection.connection_lost(None)
        return owner.buffered_bytes

    assert run(main()) == 0


def test_the_policy_is_asked_about_whoever_says_something_that_is_no_session():
    asked: list[str] = []
    answered: list[bytes] = []

    def refusal_for(address: str) -> Refusal:
        asked.append(address)
        return Refusal(Code.FORBIDDEN, "not from there")

    async def main() -> None:
        owner = connections(takes_sessions=True, taken=[], refusal_for=refusal_for)
        streams = [FakeStream() for _ in range(3)]
        silent, session, plain = (opened(owner, stream) for stream in streams)
        silent.connection_lost(None)
        session.data_received(b"\xa5SYN")
        plain.data_received(REQUEST[:2])
        plain.data_received(REQUEST[2:])
        answered.extend(stream.written for stream in streams)

    run(main())

    assert asked == ["127.0.0.1:2"]
    assert answered[:2] == [b"", b""]
    response = MessagePackRPCSerializer.deserialize(answered[2][4:])
    assert isinstance(response, RPCResponse)
    assert response.error == RPCError("bad_request", "not from there")


def test_draining_cuts_off_who_has_not_asked_and_lets_nobody_in():
    async def main() -> list[FakeStream]:
        owner = connections(respond=answer_later)
        streams = [FakeStream() for _ in range(4)]
        _, halfway, asked = (opened(owner, stream) for stream in streams[:3])
        halfway.data_received(REQUEST[:-1])
        asked.data_received(REQUEST)
        owner.drain()
        opened(owner, streams[3])
        await asyncio.sleep(10)
        return streams

    async def answer_later(request: RPCRequest, address: str) -> bytes:
        await asyncio.sleep(5)
        return b"answer"

    streams = run(main())

    assert [stream.aborted_at for stream in streams] == [0, 0, None, 0]
    assert streams[2].written == b"answer"
