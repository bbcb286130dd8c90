import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_p2p.exceptions import HandshakeFailed, ProtocolViolation
from synapse_p2p.protocol.noise import MAX_NONCE, CipherName, CipherState, NoiseXX

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the oracle is older than some of what it imports
    from noise.connection import Keypair, NoiseConnection

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "noise_xx.json").read_text())["vectors"]
KEYS = st.binary(min_size=32, max_size=32)
CIPHERS: list[CipherName] = ["AESGCM", "ChaChaPoly"]
PSKS = [None, bytes(range(32))]

# The points of order 1, 2, 4 and 8 of Curve25519, and those that equal one of them modulo 2^255 - 19 (RFC 7748, 6.1).
P = 2**255 - 19
ORDER_8 = 325606250916557431795983626356110631294008115727848805560023387167927233504
OTHER_ORDER_8 = 39382357235489614581723060781553021112529911719440698176882885853963445705823
LOW_ORDER_POINTS = [point.to_bytes(32, "little") for point in (0, 1, ORDER_8, OTHER_ORDER_8, P - 1, P, P + 1)]


def pair(
    *, psk: bytes | None = None, cipher: CipherName = "AESGCM", prologue: bytes = b"prologue", seed: int = 0
) -> tuple[NoiseXX, NoiseXX]:
    rng = random.Random(seed)

    def side(initiator: bool) -> NoiseXX:
        static, ephemeral = rng.randbytes(32), rng.randbytes(32)
        return NoiseXX(initiator, prologue=prologue, static=static, ephemeral=ephemeral, psk=psk, cipher=cipher)

    return side(True), side(False)


def step(sides: tuple[NoiseXX, NoiseXX], number: int, payload: bytes = b"") -> bytes:
    """Pass message `number` (0, 1, 2) on; its bytes."""
    writer, reader = sides if number % 2 == 0 else sides[::-1]
    message = writer.write_message(payload)
    reader.read_message(message)
    return message


def finished_pair(**options: Any) -> tuple[NoiseXX, NoiseXX]:
    sides = pair(**options)
    for number in range(3):
        step(sides, number)
    return sides


def sides_of_vector(vector: dict[str, Any]) -> tuple[NoiseXX, NoiseXX]:
    def side(prefix: str) -> NoiseXX:
        psks = vector.get(f"{prefix}_psks") or [None]
        return NoiseXX(
            prefix == "init",
            prologue=bytes.fromhex(vector[f"{prefix}_prologue"]),
            static=bytes.fromhex(vector[f"{prefix}_static"]),
            ephemeral=bytes.fromhex(vector[f"{prefix}_ephemeral"]),
            psk=None if psks[0] is None else bytes.fromhex(psks[0]),
            cipher=vector["protocol_name"].split("_")[3],
        )

    return side("init"), side("resp")


@pytest.mark.parametrize("vector", VECTORS, ids=[f"{v['protocol_name']}-{i}" for i, v in enumerate(VECTORS)])
def test_every_message_of_the_public_vectors_is_ours_to_the_byte(vector: dict[str, Any]):
    initiator, responder = sides_of_vector(vector)
    messages = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in vector["messages"]]

    for number, (payload, wire) in enumerate(messages[:3]):
        writer, reader = (initiator, responder) if number % 2 == 0 else (responder, initiator)
        assert writer.write_message(payload) == wire
        assert reader.read_message(wire) == payload
    (from_initiator, at_initiator), (from_responder, at_responder) = initiator.split(), responder.split()
    for number, (payload, wire) in enumerate(messages[3:], start=3):
        send, receive = (from_initiator, at_responder) if number % 2 == 0 else (from_responder, at_initiator)
        assert send.encrypt(payload) == wire
        assert receive.decrypt(wire) == payload

    assert len(messages) > 3
    assert initiator.handshake_hash == responder.handshake_hash
    if "handshake_hash" in vector:
        assert initiator.handshake_hash.hex() == vector["handshake_hash"]


def oracle_of(
    initiator: bool, name: str, prologue: bytes, static: bytes, ephemeral: bytes, psk: bytes | None
) -> NoiseConnection:
    oracle = NoiseConnection.from_name(name.encode())
    if psk is not None:
        oracle.set_psks(psk)
    if initiator:
        oracle.set_as_initiator()
    else:
        oracle.set_as_responder()
    oracle.set_prologue(prologue)
    oracle.set_keypair_from_private_bytes(Keypair.STATIC, static)
    oracle.set_keypair_from_private_bytes(Keypair.EPHEMERAL, ephemeral)
    oracle.start_handshake()
    return oracle


@pytest.mark.filterwarnings("ignore:One of ephemeral keypairs")  # the oracle, warning us of what a test needs
@pytest.mark.parametrize("has_psk", [False, True])
@pytest.mark.parametrize("is_initiator", [True, False])
@pytest.mark.parametrize("cipher", CIPHERS)
def test_an_independent_implementation_agrees_on_every_byte(cipher: CipherName, is_initiator: bool, has_psk: bool):
    rng = random.Random(f"{cipher} {is_initiator} {has_psk}")
    for _ in range(125):  # 1,000 sessions over all cases
        psk = rng.randbytes(32) if has_psk else None
        prologue = rng.randbytes(rng.randrange(60))
        static, ephemeral, their_static, their_ephemeral = (rng.randbytes(32) for _ in range(4))
        ours = NoiseXX(is_initiator, prologue=prologue, static=static, ephemeral=ephemeral, psk=psk, cipher=cipher)
        name = f"Noise_XX{'psk0' if has_psk else ''}_25519_{cipher}_SHA256"
        theirs = oracle_of(not is_initiator, name, prologue, their_static, their_ephemeral, psk)
        twin = oracle_of(is_initiator, name, prologue, static, ephemeral, psk)

        for number in range(3):
            payload = rng.randbytes(rng.randrange(100))
            if (number % 2 == 0) == is_initiator:
                message = ours.write_message(payload)
                assert message == twin.write_message(payload)
                assert theirs.read_message(message) == payload
            else:
                message = bytes(theirs.write_message(payload))
                assert ours.read_message(message) == twin.read_message(message) == payload
        send, receive = ours.split()
        for _ in range(3):
            text = rng.randbytes(rng.randrange(100))
            assert theirs.decrypt(send.encrypt(text)) == text
            assert receive.decrypt(bytes(theirs.encrypt(text))) == text

        assert ours.is_finished
        assert ours.handshake_hash == theirs.get_handshake_hash()


@given(st.lists(st.binary(max_size=80), min_size=3, max_size=3), st.sampled_from(CIPHERS), st.sampled_from(PSKS))
@settings(max_examples=30)
def test_both_sides_end_with_the_same_hash_and_opposite_keys(
    payloads: list[bytes], cipher: CipherName, psk: bytes | None
):
    sides = pair(cipher=cipher, psk=psk)
    for number, payload in enumerate(payloads):
        step(sides, number, payload)

    (send, receive), (send_back, receive_back) = (side.split() for side in sides)

    assert sides[0].handshake_hash == sides[1].handshake_hash
    assert receive_back.decrypt(send.encrypt(b"there")) == b"there"
    assert receive.decrypt(send_back.encrypt(b"back")) == b"back"


@pytest.mark.parametrize("psk", PSKS, ids=["XX", "XXpsk0"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_message_with_any_one_byte_changed_never_leads_to_a_session(number: int, psk: bytes | None):
    size_bytes = len(played_to(number, psk)[2])

    for index in range(size_bytes):
        writer, reader, message = played_to(number, psk)
        message = message[:index] + bytes((message[index] ^ 0x55,)) + message[index + 1 :]
        with pytest.raises(HandshakeFailed):
            read_and_reply(writer, reader, message)


@pytest.mark.parametrize("psk", PSKS, ids=["XX", "XXpsk0"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_message_cut_short_anywhere_is_refused(number: int, psk: bytes | None):
    size_bytes = len(played_to(number, psk)[2])

    for index in range(size_bytes):
        writer, reader, message = played_to(number, psk)
        with pytest.raises(HandshakeFailed):
            read_and_reply(writer, reader, message[:index])


def played_to(number: int, psk: bytes | None) -> tuple[NoiseXX, NoiseXX, bytes]:
    """The writer and the reader of message `number`, and that message, written and not read."""
    sides = pair(psk=psk)
    for earlier in range(number):
        step(sides, earlier)
    writer, reader = sides if number % 2 == 0 else sides[::-1]
    return writer, reader, writer.write_message(b"a payload")


def read_and_reply(writer: NoiseXX, reader: NoiseXX, message: bytes) -> None:
    """Nothing protects message 1 of XX: when it is damaged the transcripts differ, and message 2 cannot be read."""
    reader.read_message(message)
    writer.read_message(reader.write_message())


def test_a_message_too_short_for_its_keys_is_named_so():
    _, responder = pair()

    with pytest.raises(HandshakeFailed) as failure:
        responder.read_message(bytes(31))

    assert failure.value.reason == "message"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"prologue": b"one"}, {"prologue": b"two"}),
        ({"psk": bytes(32)}, {"psk": bytes([1] * 32)}),
        ({"psk": bytes(32)}, {}),
        ({"cipher": "AESGCM"}, {"cipher": "ChaChaPoly"}),
    ],
    ids=["prologue", "psk", "psk on one side", "cipher"],
)
def test_sides_that_expect_different_things_never_finish(ours: dict[str, Any], theirs: dict[str, Any]):
    initiator, _ = pair(**ours)
    _, responder = pair(**theirs)

    with pytest.raises(HandshakeFailed):
        read_and_reply(initiator, responder, initiator.write_message())


def test_a_static_key_is_never_sent_in_clear():
    static = bytes(range(32))
    public = NoiseXX(True, prologue=b"", static=static)._static.public_key().public_bytes_raw()
    initiator, _ = pair()
    responder = NoiseXX(False, prologue=b"prologue", static=static)

    responder.read_message(initiator.write_message())

    assert public not in responder.write_message()


@pytest.mark.parametrize("point", LOW_ORDER_POINTS, ids=range(len(LOW_ORDER_POINTS)))
def test_an_initiators_ephemeral_key_of_low_order_is_refused(point: bytes):
    _, responder = pair()
    responder.read_message(point)

    with pytest.raises(HandshakeFailed) as failure:
        responder.write_message()

    assert failure.value.reason == "crypto"


@pytest.mark.parametrize("point", LOW_ORDER_POINTS, ids=range(len(LOW_ORDER_POINTS)))
def test_a_responders_ephemeral_key_of_low_order_is_refused(point: bytes):
    initiator, responder = pair()
    responder.read_message(initiator.write_message())
    message = responder.write_message()

    with pytest.raises(HandshakeFailed) as failure:
        initiator.read_message(point + message[32:])

    assert failure.value.reason == "crypto"


@pytest.mark.parametrize("point", LOW_ORDER_POINTS, ids=range(len(LOW_ORDER_POINTS)))
def test_a_static_key_of_low_order_is_refused(point: bytes):
    initiator, responder = pair()
    step((initiator, responder), 0)
    step((initiator, responder), 1)
    symmetric = initiator._symmetric  # a cheat that encrypts a point of no use as its static key
    message = symmetric.encrypt_and_hash(point) + symmetric.encrypt_and_hash(b"")

    with pytest.raises(HandshakeFailed) as failure:
        responder.read_message(message)

    assert failure.value.reason == "crypto"


def test_speaking_out_of_turn_is_our_own_bug():
    initiator, responder = pair()

    with pytest.raises(AssertionError):
        responder.write_message()
    with pytest.raises(AssertionError):
        initiator.read_message(b"")
    with pytest.raises(AssertionError):
        initiator.split()


def test_nothing_is_read_after_a_failure():
    initiator, responder = pair()
    message = initiator.write_message()
    with pytest.raises(HandshakeFailed):
        responder.read_message(message[:31])

    with pytest.raises(AssertionError):
        responder.read_message(message)


def test_fresh_ephemeral_keys_differ():
    first, second = (NoiseXX(True, prologue=b"", static=bytes(32)).write_message() for _ in range(2))

    assert first != second


@given(KEYS, st.sampled_from(CIPHERS), st.lists(st.binary(max_size=50), min_size=1, max_size=6), st.data())
def test_the_counter_moves_on_success_alone(key: bytes, cipher: CipherName, texts: list[bytes], data: st.DataObject):
    send, receive = CipherState(cipher, key), CipherState(cipher, key)
    for count, text in enumerate(texts):
        record = send.encrypt(text)
        index = data.draw(st.integers(0, len(record) - 1))
        forged = record[:index] + bytes((record[index] ^ 1,)) + record[index + 1 :]

        with pytest.raises(ProtocolViolation):
            receive.decrypt(forged)
        assert receive.nonce == count
        assert receive.decrypt(record) == text
        assert receive.nonce == send.nonce == count + 1


@pytest.mark.parametrize("size_bytes", [0, 1, 15])
def test_less_than_a_tag_cannot_be_decrypted(size_bytes: int):
    receive = finished_pair()[0].split()[1]

    with pytest.raises(ProtocolViolation):
        receive.decrypt(bytes(size_bytes))

    assert receive.nonce == 0


def test_the_reserved_counter_is_never_used():
    send = CipherState("AESGCM", bytes(32))
    send.nonce = MAX_NONCE - 1

    send.encrypt(b"the last one")

    with pytest.raises(ProtocolViolation, match="used up"):
        send.encrypt(b"one too many")
    with pytest.raises(ProtocolViolation, match="used up"):
        send.decrypt(bytes(16))
