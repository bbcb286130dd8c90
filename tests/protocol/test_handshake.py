import contextlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_p2p.exceptions import HandshakeFailed
from synapse_p2p.identity import Identity, network_id_of
from synapse_p2p.protocol.handshake import (
    MAGIC,
    MAX_MESSAGE_BYTES,
    MAX_PLAIN_ANSWER_BYTES,
    Established,
    Handshake,
    HandshakeKeys,
    Parameters,
    Refusal,
    Role,
)
from synapse_p2p.protocol.noise import NoiseXX
from synapse_p2p.protocol.wire import pack

ALICE, BOB, EVE = (Identity.from_seed(bytes([number] * 32)) for number in (1, 2, 3))
NETWORK = network_id_of("")
ALICE_SAYS = Parameters("client", 0, b"alice---", "synapse/3", 1_700_000_000_000, "10.0.0.2:9999")
BOB_SAYS = Parameters("node", 9999, b"bob-----", "synapse/3", 1_700_000_000_001, "10.0.0.1:50000")
NETWORK_KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "handshake.json").read_text())
LABEL = b"synapse-noise-id:v1:"
PLAIN = json.loads((Path(__file__).parents[1] / "vectors" / "plain_evidence.json").read_text())
CUTS = st.lists(st.integers(0, 600), max_size=12)


def dialer(*, seed: int = 0, **options: Any) -> Handshake:
    rng = random.Random(f"dialer {seed}")
    keys = HandshakeKeys(rng.randbytes(32), rng.randbytes(32))
    settings = {"identity": ALICE, "network_id": NETWORK, "parameters": ALICE_SAYS, "keys": keys, **options}
    handshake = Handshake(Role.DIALER, **settings)
    handshake.start()
    return handshake


def listener(*, seed: int = 0, **options: Any) -> Handshake:
    rng = random.Random(f"listener {seed}")
    keys = HandshakeKeys(rng.randbytes(32), rng.randbytes(32))
    settings = {"identity": BOB, "network_id": NETWORK, "parameters": BOB_SAYS, "keys": keys, **options}
    handshake = Handshake(Role.LISTENER, **settings)
    handshake.start()
    return handshake


def played(alice: Handshake, bob: Handshake) -> tuple[Established, Established]:
    """Both ends of a handshake that succeeds."""
    assert bob.receive_data(alice.data_to_send()) is None
    at_alice = alice.receive_data(bob.data_to_send())
    at_bob = bob.receive_data(alice.data_to_send())
    assert at_alice is not None
    assert at_bob is not None
    return at_alice, at_bob


def flights(seed: int = 0, **options: Any) -> tuple[bytes, bytes, bytes]:
    """The bytes of one good handshake: the dialer's first, the listener's, the dialer's last."""
    alice, bob = dialer(seed=seed, **options), listener(seed=seed, **options)
    first = alice.data_to_send()
    bob.receive_data(first)
    second = bob.data_to_send()
    alice.receive_data(second)
    return first, second, alice.data_to_send()


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def facts(established: Established) -> tuple[Any, ...]:
    return established.peer, established.handshake_hash, established.surplus


def failure_of(handshake: Handshake, data: bytes) -> HandshakeFailed:
    with pytest.raises(HandshakeFailed) as failure:
        handshake.receive_data(data)
    return failure.value


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


class Cheat:
    """A peer that finishes Noise properly and then says what it likes as its proof."""

    def __init__(self, role: Role, *, network_key: bytes | None = None) -> None:
        self.role = role
        self.preamble = b"\xa5SYNN\x01" + (b"\x01" if network_key is None else b"\x03") + NETWORK[:1]
        self.noise = NoiseXX(
            role is Role.DIALER,
            prologue=b"synapse-noise/1" + self.preamble + NETWORK,
            static=bytes([9] * 32),
            psk=network_key,
        )

    def proof(self, identity: Identity = EVE, *, label: bytes | None = None, hash_signed: bytes | None = None) -> list:
        """A right proof, but for what is given. Valid between `begin_message` and `finish_message` alone."""
        label = LABEL + self.role.value if label is None else label
        signature = identity.sign(label, self.noise.handshake_hash if hash_signed is None else hash_signed)
        return [1, identity.public_key, signature, replace(ALICE_SAYS, instance=b"eve-----").to_map()]

    def first_words(self) -> bytes:
        """What a dialer begins with."""
        return self.preamble + framed(self.noise.write_message())

    def last_words(self, victim: Handshake, make_payload: Callable[["Cheat"], bytes]) -> bytes:
        """Play the handshake against `victim` up to our proof; the message that holds it."""
        if self.role is Role.DIALER:
            victim.receive_data(self.first_words())
            self.noise.read_message(victim.data_to_send()[2:])
        else:
            self.noise.read_message(victim.data_to_send()[8 + 2 :])
        head = self.noise.begin_message()
        return framed(head + self.noise.finish_message(make_payload(self)))

    def present(self, victim: Handshake, make_payload: Callable[["Cheat"], bytes]) -> Established | None:
        """Play the whole handshake against `victim`; its answer to our proof."""
        return victim.receive_data(self.last_words(victim, make_payload))


def outcome_of(role: Role, make_proof: Callable[[Cheat], Any], **options: Any) -> Established | HandshakeFailed:
    """What a victim makes of a cheat in `role` that presents this proof."""
    victim = listener(**options) if role is Role.DIALER else dialer(**options)
    try:
        established = Cheat(role).present(victim, lambda cheat: pack(make_proof(cheat)))
    except HandshakeFailed as failure:
        return failure
    assert established is not None
    return established


def outcome_of_parameters(changes: dict[str, Any]) -> Established | HandshakeFailed:
    """What a listener makes of a right proof with these parameters; None takes one out."""

    def make_proof(cheat: Cheat) -> list[Any]:
        *rest, parameters = cheat.proof()
        parameters |= changes
        return [*rest, {name: value for name, value in parameters.items() if value is not None}]

    return outcome_of(Role.DIALER, make_proof)


# What is agreed


@pytest.mark.parametrize("key", [None, NETWORK_KEY], ids=["open network", "network key"])
def test_both_ends_prove_who_they_are_and_learn_what_the_other_says(key: bytes | None):
    at_alice, at_bob = played(dialer(network_key=key), listener(network_key=key))

    assert (at_alice.peer.node_id, at_alice.peer.public_key) == (BOB.node_id, BOB.public_key)
    assert (at_bob.peer.node_id, at_bob.peer.public_key) == (ALICE.node_id, ALICE.public_key)
    assert (at_alice.peer.parameters, at_bob.peer.parameters) == (BOB_SAYS, ALICE_SAYS)
    assert at_alice.peer.version == at_bob.peer.version == 1
    assert at_alice.handshake_hash == at_bob.handshake_hash
    assert at_bob.receive.decrypt(at_alice.send.encrypt(b"there")) == b"there"
    assert at_alice.receive.decrypt(at_bob.send.encrypt(b"back")) == b"back"


def test_the_bytes_on_the_wire_are_those_of_the_golden_vector():
    def side(make: Callable[..., Handshake], name: str) -> Handshake:
        facts = VECTOR[name]
        keys = HandshakeKeys(bytes.fromhex(facts["static"]), bytes.fromhex(facts["ephemeral"]))
        parameters = Parameters.from_map(facts["parameters"] | {"instance": bytes.fromhex(facts["instance"])})
        identity = Identity.from_seed(bytes.fromhex(facts["seed"]))
        return make(identity=identity, keys=keys, parameters=parameters, network_id=network_id_of(VECTOR["network"]))

    alice, bob = side(dialer, "dialer"), side(listener, "listener")
    flights = [alice.data_to_send()]
    bob.receive_data(flights[0])
    flights.append(bob.data_to_send())
    at_alice = alice.receive_data(flights[1])
    flights.append(alice.data_to_send())

    assert [flight.hex() for flight in flights] == VECTOR["flights"]
    assert at_alice is not None
    assert at_alice.handshake_hash.hex() == VECTOR["handshake_hash"]


def test_a_dialer_that_knows_whom_it_wants_accepts_exactly_that_peer():
    at_alice, _ = played(dialer(expected_id=BOB.node_id), listener())

    assert at_alice.peer.node_id == BOB.node_id


def test_a_listener_says_nothing_of_itself_before_the_first_message_is_whole():
    bob = listener()
    first = dialer().data_to_send()

    for index in range(len(first) - 1):
        bob.receive_data(first[index : index + 1])

        assert bob.data_to_send() == b""


@pytest.mark.parametrize("key", [None, NETWORK_KEY], ids=["open network", "network key"])
def test_no_identity_travels_in_clear(key: bytes | None):
    wire = b"".join(flights(network_key=key))

    assert all(secret not in wire for secret in (ALICE.public_key, BOB.public_key, b"alice---", b"bob-----"))


def test_keys_show_in_no_text():
    assert repr(HandshakeKeys(b"s" * 32, b"e" * 32)) == "HandshakeKeys()"


# Wrong proofs


WRONG_PROOFS: dict[str, Callable[[Cheat], Any]] = {
    "signed by another key": lambda cheat: [1, BOB.public_key, *cheat.proof()[2:]],
    "signature of zeros": lambda cheat: [1, EVE.public_key, bytes(64), cheat.proof()[3]],
    "signature too short": lambda cheat: [1, EVE.public_key, cheat.proof()[2][:63], cheat.proof()[3]],
    "signature too long": lambda cheat: [1, EVE.public_key, cheat.proof()[2] + b"\0", cheat.proof()[3]],
    "public key too short": lambda cheat: [1, EVE.public_key[:31], *cheat.proof()[2:]],
    "public key too long": lambda cheat: [1, EVE.public_key + b"\0", *cheat.proof()[2:]],
    "public key of zeros": lambda cheat: [1, bytes(32), *cheat.proof()[2:]],
    "no label": lambda cheat: cheat.proof(label=b""),
    "another label": lambda cheat: cheat.proof(label=b"synapse-noise-id:v2:" + cheat.role.value),
    "a label without a role": lambda cheat: cheat.proof(label=LABEL),
    "another hash": lambda cheat: cheat.proof(hash_signed=bytes(32)),
    "version 0": lambda cheat: [0, *cheat.proof()[1:]],
    "version true": lambda cheat: [True, *cheat.proof()[1:]],
    "version text": lambda cheat: ["1", *cheat.proof()[1:]],
    "key as text": lambda cheat: [1, "k" * 32, *cheat.proof()[2:]],
    "signature as text": lambda cheat: [1, EVE.public_key, "s" * 64, cheat.proof()[3]],
    "parameters as a list": lambda cheat: [*cheat.proof()[:3], []],
    "no parameters": lambda cheat: cheat.proof()[:3],
    "empty parameters": lambda cheat: [*cheat.proof()[:3], {}],
    "empty": lambda cheat: [],
    "nil": lambda cheat: None,
    "a map": lambda cheat: {"1": cheat.proof()},
    "parameters too large": lambda cheat: [*cheat.proof()[:3], cheat.proof()[3] | {"future": bytes(480)}],
    "parameters too deep": lambda cheat: [*cheat.proof()[:3], cheat.proof()[3] | {"future": [[[[[[[[]]]]]]]]}],
    "too many elements": lambda cheat: [*cheat.proof(), *range(200)],
}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("name", WRONG_PROOFS)
def test_a_wrong_proof_is_refused_inside_a_right_handshake(name: str, role: Role):
    outcome = outcome_of(role, WRONG_PROOFS[name])

    assert isinstance(outcome, HandshakeFailed)
    assert outcome.reason == "proof"


@pytest.mark.parametrize("role", Role)
def test_the_cheat_of_these_tests_is_accepted_when_it_does_not_cheat(role: Role):
    outcome = outcome_of(role, Cheat.proof)

    assert isinstance(outcome, Established)
    assert outcome.peer.node_id == EVE.node_id


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x94\x01", bytes(600), b"\xc7\x00\x05", b"\xff" * 40])
@pytest.mark.parametrize("role", Role)
def test_a_payload_that_is_no_proof_at_all_is_refused(role: Role, payload: bytes):
    victim = listener() if role is Role.DIALER else dialer()

    with pytest.raises(HandshakeFailed) as failure:
        Cheat(role).present(victim, lambda _: payload)

    assert failure.value.reason == "proof"


def test_another_peer_than_the_expected_one_is_refused_with_both_ids():
    outcome = outcome_of(Role.LISTENER, Cheat.proof, expected_id=BOB.node_id)

    assert isinstance(outcome, HandshakeFailed)
    assert outcome.reason == "identity"
    assert BOB.node_id.hex() in str(outcome)
    assert EVE.node_id.hex() in str(outcome)


# Parameters


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("versions", [None, [], [1], [0, 1], [2, 1], ["1", "1"], [True, True], 1, "11", {}, [1.0, 1.0], [-1, 1]]),
        ("mode", [None, "", "server", 1, ["node"], b"node"]),
        ("port", [None, -1, 65_536, "80", True, 80.0, [80]]),
        ("instance", [None, b"", bytes(7), bytes(9), "8letters", 8]),
        ("agent", ["a" * 65, 1, b"agent", []]),
        ("unix_ms", [-1, 1.5, "1", True]),
        ("seen", ["s" * 65, 1, b"seen"]),
    ],
)
def test_a_parameter_outside_its_bounds_is_refused_by_name(name: str, wrong: list[Any]):
    for value in wrong:
        outcome = outcome_of_parameters({name: value})

        assert isinstance(outcome, HandshakeFailed), value
        assert outcome.reason == "proof"
        assert repr(name) in str(outcome)


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "client", "port": 0},
        {"port": 65_535},
        {"agent": "ä" * 64, "seen": "s" * 64},
        {"agent": None, "unix_ms": None, "seen": None},
        {"unix_ms": 2**64 - 1},
    ],
)
def test_a_parameter_at_its_bounds_is_accepted(changes: dict[str, Any]):
    outcome = outcome_of_parameters(changes)

    assert isinstance(outcome, Established)
    got = outcome.peer.parameters.to_map()
    assert {name: got[name] for name in changes if changes[name] is not None} == {
        name: value for name, value in changes.items() if value is not None
    }


@pytest.mark.parametrize(
    "from_the_future",
    [
        lambda cheat: [*cheat.proof(), "more", [1, {"x": 1}]],
        lambda cheat: [*cheat.proof()[:3], cheat.proof()[3] | {"colour": "blue", "post_quantum": {"kem": b"x"}}],
        lambda cheat: [*cheat.proof()[:3], cheat.proof()[3] | {"versions": [1, 9, "a third"]}],
        lambda cheat: [2, *cheat.proof()[1:]],
    ],
    ids=["trailing elements", "unknown parameters", "newer session versions", "newer proof"],
)
@pytest.mark.parametrize("role", Role)
def test_what_a_later_release_adds_is_ignored(role: Role, from_the_future: Callable[[Cheat], Any]):
    outcome = outcome_of(role, from_the_future)

    assert isinstance(outcome, Established)
    assert outcome.peer.node_id == EVE.node_id
    assert outcome.peer.version == 1


def test_without_a_session_version_in_common_there_is_no_session():
    outcome = outcome_of_parameters({"versions": [2, 3]})

    assert isinstance(outcome, HandshakeFailed)
    assert outcome.reason == "version"


# Wrong beginnings


@pytest.mark.parametrize(
    ("index", "refusal"),
    [(5, Refusal.VERSION), (6, Refusal.SUITE), (7, Refusal.NETWORK)],
    ids=["version", "suite", "network"],
)
def test_a_preamble_we_do_not_speak_is_refused_by_name_on_both_sides(index: int, refusal: Refusal):
    alice, bob = dialer(), listener()
    first = bytearray(alice.data_to_send())
    first[index] ^= 0x42

    at_bob = failure_of(bob, bytes(first))
    answer = bob.data_to_send()
    at_alice = failure_of(alice, answer)

    assert answer == b"\xa5NO" + bytes((refusal,))
    assert at_bob.reason == "preamble"
    assert (at_alice.reason, at_alice.refusal) == ("refused", refusal.name.lower())


@pytest.mark.parametrize("code", [*Refusal, 0, 5, 255])
def test_any_refusal_ends_the_dialers_handshake_however_it_is_split(code: int):
    answer = b"\xa5NO" + bytes((code,))

    alice = dialer()
    for index in range(3):
        assert alice.receive_data(answer[index : index + 1]) is None
    failure = failure_of(alice, answer[3:])

    assert failure.reason == "refused"
    assert failure.refusal == (Refusal(code).name.lower() if code in set(Refusal) else None)


def test_refusal_codes_are_for_ever():
    assert {code.name: code.value for code in Refusal} == {"VERSION": 1, "SUITE": 2, "NETWORK": 3, "BUSY": 4}


def test_a_listener_without_room_says_so_and_is_done():
    alice, bob = dialer(), listener()
    first = alice.data_to_send()
    bob.receive_data(first[:3])

    bob.refuse_busy()
    bob.refuse_busy()
    answer = bob.data_to_send()
    at_bob = failure_of(bob, first[3:])
    at_alice = failure_of(alice, answer)

    assert answer == b"\xa5NO\x04"
    assert (at_bob.reason, at_bob.refusal) == (at_alice.reason, at_alice.refusal) == ("refused", "busy")
    assert bob.data_to_send() == b""


def test_a_listener_that_has_answered_can_only_hang_up():
    alice, bob = dialer(), listener()
    bob.receive_data(alice.data_to_send())
    second = bob.data_to_send()

    bob.refuse_busy()
    alice.receive_data(second)
    failure = failure_of(bob, alice.data_to_send())

    assert failure.refusal == "busy"
    assert bob.data_to_send() == b""


def test_a_listener_that_has_refused_refuses_once():
    bob = listener()
    failure = failure_of(bob, b"\xa5SYNN\x02\x01" + NETWORK[:1])

    bob.refuse_busy()

    assert bob.data_to_send() == b"\xa5NO\x01"
    assert failure_of(bob, b"") is failure


@pytest.mark.parametrize(
    ("at_listener", "at_dialer"), [(NETWORK_KEY, OTHER_KEY), (NETWORK_KEY, None), (None, OTHER_KEY)]
)
def test_the_dialer_reads_that_the_network_keys_differ(at_listener: bytes | None, at_dialer: bytes | None):
    alice, bob = dialer(network_key=at_dialer), listener(network_key=at_listener)
    failure_of(bob, alice.data_to_send())

    failure = failure_of(alice, bob.data_to_send())

    assert "network_key=" in str(failure)
    assert failure.refusal == ("suite" if None in (at_listener, at_dialer) else "network")


def test_networks_with_the_same_hint_part_at_the_second_message_with_a_word_for_people():
    alice, bob = dialer(), listener(network_id=SAME_HINT)
    bob.receive_data(alice.data_to_send())

    failure = failure_of(alice, bob.data_to_send())

    assert "network=" in str(failure)


@pytest.mark.parametrize("index", range(5))
def test_a_stranger_is_recognised_at_the_first_byte_that_differs(index: int):
    bob = listener()
    strange = bytearray(b"\xa5SYNN")
    strange[index] ^= 0x20

    assert bob.receive_data(bytes(strange[:index])) is None
    failure = failure_of(bob, bytes(strange[index : index + 1]))

    assert failure.reason == "preamble"
    assert bob.data_to_send() == b""


def test_a_dialer_answered_with_its_own_bytes_gives_up():
    alice = dialer()

    failure = failure_of(alice, alice.data_to_send())

    assert failure.reason == "message"


@pytest.mark.parametrize("size_bytes", [MAX_MESSAGE_BYTES + 1, 0xA4FF, 0xFFFF])
def test_a_message_of_a_wrong_length_is_refused_at_its_length(size_bytes: int):
    alice, bob = dialer(), listener()
    preamble = alice.data_to_send()[:8]

    at_bob = failure_of(bob, preamble + size_bytes.to_bytes(2, "big"))
    at_alice = failure_of(alice, size_bytes.to_bytes(2, "big"))

    assert at_bob.reason == at_alice.reason == "message"


def test_a_message_of_no_length_is_refused_by_a_listener_at_its_length():
    failure = failure_of(listener(), dialer().data_to_send()[:8] + bytes(2))

    assert failure.reason == "message"


def test_a_first_message_of_the_greatest_length_is_read():
    bob = listener()
    cheat = Cheat(Role.DIALER)

    bob.receive_data(cheat.preamble + framed(cheat.noise.write_message(bytes(MAX_MESSAGE_BYTES - 32))))

    assert len(cheat.noise.read_message(bob.data_to_send()[2:])) > 100


# Listeners of earlier releases


def plain_frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def plain_answer(**changes: Any) -> bytes:
    """The answer that earlier releases give, with these changes."""
    error = {"code": "bad_request", "message": "frame too large: 2773702990 > 4096"}
    return plain_frame(pack({"id": "", "ok": False, "result": None, "error": error, "type": "response"} | changes))


def plain_answer_of(size_bytes: int) -> bytes:
    """The answer that earlier releases give, in other words that make it this long."""
    error = {"code": "bad_request", "message": "2773702990".ljust(size_bytes)}
    surplus = len(plain_answer(error=error)) - size_bytes
    return plain_answer(error=error | {"message": "2773702990".ljust(size_bytes - surplus)})


def test_what_earlier_releases_take_for_a_length_are_our_first_bytes():
    assert MAGIC.startswith(bytes.fromhex(PLAIN["first_bytes"]))
    assert int.from_bytes(bytes.fromhex(PLAIN["first_bytes"]), "big") == PLAIN["length"]


@pytest.mark.parametrize(
    "answer", [pytest.param(bytes.fromhex(a["answer"]), id=a["release"]) for a in PLAIN["answers"]]
)
@given(cuts=CUTS, surplus=st.binary(max_size=40))
@settings(max_examples=30)
def test_a_listener_of_an_earlier_release_is_known_by_its_whole_answer(answer: bytes, cuts: list[int], surplus: bytes):
    alice, cut_short = dialer(), dialer()
    failures = []

    cut_short.data_to_send()
    assert [cut_short.receive_data(piece) for piece in pieces(answer[:-1], cuts)][-1] is None
    for piece in pieces(answer + surplus, cuts):
        with contextlib.suppress(HandshakeFailed):
            assert alice.receive_data(piece) is None
            continue
        failures.append(failure_of(alice, b""))

    assert {failure.reason for failure in failures} == {"plain"}
    assert "releases 1 and 2" in str(failures[0])
    assert cut_short.data_to_send() == b""


def test_the_answer_of_these_tests_is_that_of_an_earlier_release():
    assert plain_answer() == bytes.fromhex(PLAIN["answers"][0]["answer"])


@pytest.mark.parametrize(
    "answer",
    [
        plain_answer(ok=True),
        plain_answer(id="1"),
        plain_answer(result=0),
        plain_answer(error=None),
        plain_answer(error={"code": "internal_error", "message": "frame too large: 2773702990 > 4096"}),
        plain_answer(error={"code": "bad_request", "message": "frame too large: 2773702991 > 4096"}),
        plain_answer(error={"code": "bad_request", "message": ""}),
        plain_answer(error={"code": "bad_request", "message": 2773702990}),
        plain_answer(more="unknown"),
        plain_answer(type="request"),
        plain_frame(pack({"endpoint": "2773702990"})),
        plain_frame(pack(["2773702990"])),
        plain_frame(b"frame too large: 2773702990 > 4096"),
        plain_frame(b""),
        plain_answer_of(MAX_PLAIN_ANSWER_BYTES + 1)[:4],
        bytes(MAX_PLAIN_ANSWER_BYTES),
    ],
)
def test_any_other_plain_answer_is_no_evidence_of_an_earlier_release(answer: bytes):
    alice = dialer()
    alice.data_to_send()

    failure = failure_of(alice, answer)

    assert failure.reason == "message"
    assert alice.data_to_send() == b""


def test_a_plain_answer_of_the_greatest_length_is_read():
    answer = plain_answer_of(MAX_PLAIN_ANSWER_BYTES)

    assert len(answer) == MAX_PLAIN_ANSWER_BYTES
    assert failure_of(dialer(), answer).reason == "plain"


def test_a_dialer_is_no_earlier_release_whatever_it_says():
    answer = bytes.fromhex(PLAIN["answers"][0]["answer"])

    assert failure_of(listener(), answer).reason == "preamble"
    assert failure_of(listener(), dialer().data_to_send()[:8] + answer).reason == "message"


# What is known to be refused


Attack: TypeAlias = Callable[[], tuple[Handshake, bytes]]
"""Plays up to the last move: the side that has to notice, and the bytes that it has to refuse."""

# The points of order 1, 2, 4 and 8 of Curve25519, those that equal one of them modulo 2^255 - 19, and each of them with
# the highest bit set, which X25519 does not look at (RFC 7748, sections 5 and 6.1).
P = 2**255 - 19
ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
LOW_ORDER_POINTS = [
    (point + top).to_bytes(32, "little") for top in (0, 2**255) for point in (0, 1, *ORDER_8, P - 1, P, P + 1)
]


@dataclass(frozen=True, slots=True)
class LowOrderKey:
    """A key pair that no honest peer has: whatever is exchanged with it, the secret is zero."""

    point: bytes

    def public_key(self) -> "LowOrderKey":
        return self

    def public_bytes_raw(self) -> bytes:
        return self.point

    def exchange(self, _: Any) -> bytes:
        return bytes(32)


def cheated(role: Role, make_payload: Callable[[Cheat], bytes], key: bytes | None, **options: Any) -> Attack:
    """A member of the network, in `role`, whose proof is not what it should be."""

    def attack() -> tuple[Handshake, bytes]:
        victim = (listener if role is Role.DIALER else dialer)(network_key=key, **options)
        return victim, Cheat(role, network_key=key).last_words(victim, make_payload)

    return attack


def low_order(role: Role, which: str, point: bytes, key: bytes | None) -> Attack:
    """A member of the network whose key `which`, "_ephemeral" or "_static", is a point of low order."""

    def attack() -> tuple[Handshake, bytes]:
        cheat = Cheat(role, network_key=key)
        setattr(cheat.noise, which, LowOrderKey(point))
        victim = (listener if role is Role.DIALER else dialer)(network_key=key)
        if (role, which) == (Role.DIALER, "_ephemeral"):
            return victim, cheat.first_words()
        return victim, cheat.last_words(victim, lambda cheat: pack(cheat.proof()))

    return attack


def instead_of(number: int, change: Callable[[bytes], bytes], key: bytes | None, *, seed: int = 0) -> Attack:
    """Message `number` of another connection (`seed`), or of this one (0), with this change, framed anew."""

    def attack() -> tuple[Handshake, bytes]:
        alice, bob = dialer(network_key=key), listener(network_key=key)
        message = flights(seed=seed, network_key=key)[number - 1].removeprefix(
            Cheat(Role.DIALER, network_key=key).preamble
        )
        first = alice.data_to_send()
        changed = framed(change(message[2:]))
        if number == 1:
            return bob, first[:8] + changed
        if number == 2:
            return alice, changed
        bob.receive_data(first)
        return bob, changed

    return attack


def reflected(key: bytes | None) -> Attack:
    """The listener's own proof, given back to it."""

    def attack() -> tuple[Handshake, bytes]:
        bob, cheat = listener(network_key=key), Cheat(Role.DIALER, network_key=key)
        bob.receive_data(cheat.first_words())
        bobs_proof = cheat.noise.read_message(bob.data_to_send()[2:])
        return bob, framed(cheat.noise.write_message(bobs_proof))

    return attack


def first_words_to(listener_options: dict[str, Any], dialer_options: dict[str, Any]) -> Attack:
    """The listener has to notice at the dialer's first bytes."""
    return lambda: (listener(**listener_options), dialer(**dialer_options).data_to_send())


def answer_to(listener_options: dict[str, Any], dialer_options: dict[str, Any]) -> Attack:
    """The dialer has to notice, or is told, at the listener's first bytes."""

    def attack() -> tuple[Handshake, bytes]:
        alice, bob = dialer(**dialer_options), listener(**listener_options)
        with contextlib.suppress(HandshakeFailed):
            bob.receive_data(alice.data_to_send())
        return alice, bob.data_to_send()

    return attack


def changed_preamble(index: int, key: bytes | None) -> Attack:
    def attack() -> tuple[Handshake, bytes]:
        first = bytearray(dialer(network_key=key).data_to_send())
        first[index] ^= 0x40
        return listener(network_key=key), bytes(first)

    return attack


def proofs_refused(key: bytes | None) -> Iterator[tuple[str, str, Attack]]:
    for role in Role:
        word = role.name.lower()
        other = Role.LISTENER if role is Role.DIALER else Role.DIALER
        own = BOB if role is Role.DIALER else ALICE

        def proof_of(make_proof: Callable[[Cheat], Any], role: Role = role, **options: Any) -> Attack:
            return cheated(role, lambda cheat: pack(make_proof(cheat)), key, **options)

        yield (
            f"{word}: bad signature",
            "proof",
            proof_of(lambda cheat: [1, EVE.public_key, bytes(64), cheat.proof()[3]]),
        )
        yield f"{word}: another's key", "proof", proof_of(lambda cheat: [1, ALICE.public_key, *cheat.proof()[2:]])
        swapped = LABEL + other.value
        yield f"{word}: swapped role", "proof", proof_of(lambda cheat, label=swapped: cheat.proof(label=label))
        yield f"{word}: ourselves", "self", proof_of(lambda cheat, own=own: cheat.proof(own))
        yield f"{word}: short proof", "proof", cheated(role, lambda cheat: pack(cheat.proof())[:-1], key)
        yield f"{word}: long proof", "proof", cheated(role, lambda cheat: pack(cheat.proof()) + b"\0", key)
    yield "dialer: reflected proof", "proof", reflected(key)
    wanted = cheated(Role.LISTENER, lambda cheat: pack(cheat.proof()), key, expected_id=BOB.node_id)
    yield "listener: not the id that was expected", "identity", wanted


def messages_refused(key: bytes | None) -> Iterator[tuple[str, str, Attack]]:
    for index in range(7):
        yield f"preamble: byte {index}", "preamble", changed_preamble(index, key)
    for number in (1, 2, 3):
        yield f"message {number}: short of a key", "message", instead_of(number, lambda message: message[:31], key)
        yield f"message {number}: too long", "message", instead_of(number, lambda message: message.ljust(1025), key)
    for number in (2, 3):
        yield f"message {number}: one byte short", "crypto", instead_of(number, lambda message: message[:-1], key)
        yield f"message {number}: one byte more", "crypto", instead_of(number, lambda message: message + b"\0", key)
        yield (
            f"message {number}: of another connection",
            "crypto",
            instead_of(number, lambda message: message, key, seed=1),
        )
    for number, point in enumerate(LOW_ORDER_POINTS):
        for role in Role:
            for which in ("_ephemeral", "_static"):
                name = f"{role.name.lower()}: {which[1:]} point {number} of low order"
                yield name, "crypto", low_order(role, which, point, key)


KEYED = {"network_key": NETWORK_KEY}
SAME_HINT, OTHER_HINT = NETWORK[:1] + bytes(15), bytes(16)
NETWORKS_APART: list[tuple[str, dict[str, Any], dict[str, Any], str | None, str]] = [
    # what differs; how the two sides are set; what the listener raises (None: it cannot know), what the dialer does
    ("other network", {}, {"network_id": OTHER_HINT}, "preamble", "refused"),
    ("other network, one key", KEYED, KEYED | {"network_id": OTHER_HINT}, "preamble", "refused"),
    ("other network of that hint", {}, {"network_id": SAME_HINT}, None, "crypto"),
    ("other network of that hint, one key", KEYED, KEYED | {"network_id": SAME_HINT}, "crypto", "refused"),
    ("key on one side", {}, KEYED, "preamble", "refused"),
    ("other key", KEYED, {"network_key": OTHER_KEY}, "crypto", "refused"),
]


def networks_refused() -> Iterator[tuple[str, str, Attack]]:
    for what, one, other, at_listener, at_dialer in NETWORKS_APART:
        for number, (at_bob, at_alice) in enumerate(((one, other), (other, one))):
            if at_listener is not None:
                yield f"{what}: listener {number}", at_listener, first_words_to(at_bob, at_alice)
            yield f"{what}: dialer {number}", at_dialer, answer_to(at_bob, at_alice)


KNOWN_ATTACKS = [
    *(
        pytest.param(reason, attack, id=f"{name}, {word}")
        for word, key in (("open network", None), ("network key", NETWORK_KEY))
        for name, reason, attack in (*proofs_refused(key), *messages_refused(key))
    ),
    *(pytest.param(reason, attack, id=name) for name, reason, attack in networks_refused()),
]


@pytest.mark.parametrize(("reason", "attack"), KNOWN_ATTACKS)
def test_what_is_known_to_be_refused_is_refused_for_good_by_who_notices(reason: str, attack: Attack):
    victim, data = attack()
    victim.data_to_send()

    failure = failure_of(victim, data)

    assert failure.reason == reason
    assert len(victim.data_to_send()) in (0, 4)  # nothing, or a refusal
    assert failure_of(victim, data) is failure


# Arbitrary bytes


@given(st.binary(max_size=1100), CUTS, st.sampled_from(Role), st.booleans())
@settings(max_examples=150)
def test_arbitrary_bytes_raise_handshake_failed_or_nothing(
    data: bytes, cuts: list[int], role: Role, has_right_start: bool
):
    victim = dialer() if role is Role.DIALER else listener()
    if has_right_start:
        data = (dialer().data_to_send()[:8] if role is Role.LISTENER else b"") + framed(data)

    try:
        for piece in pieces(data, cuts):
            assert victim.receive_data(piece) is None
    except HandshakeFailed:
        pass


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", b"\xa5SYNN\x02\x01\xe3", b"\xa5SYNN\x01\x01\xe3\xff\xff"])
def test_a_failure_is_final(start: bytes):
    bob = listener()
    failure = failure_of(bob, start)
    bob.data_to_send()

    again = failure_of(bob, dialer().data_to_send())

    assert again is failure
    assert bob.data_to_send() == b""
