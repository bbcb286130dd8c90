import json
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_p2p.exceptions import HandshakeFailed
from synapse_p2p.identity import Identity, network_id_of
from synapse_p2p.protocol.handshake import (
    MAX_MESSAGE_BYTES,
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
VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "handshake.json").read_text())
LABEL = b"synapse-noise-id:v1:"
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


def flights(seed: int = 0) -> tuple[bytes, bytes, bytes]:
    """The bytes of one good handshake: the dialer's first, the listener's, the dialer's last."""
    alice, bob = dialer(seed=seed), listener(seed=seed)
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

    def __init__(self, role: Role, *, network_id: bytes = NETWORK) -> None:
        self.role = role
        self.preamble = b"\xa5SYNN\x01\x01" + network_id[:1]
        self.noise = NoiseXX(
            role is Role.DIALER, prologue=b"synapse-noise/1" + self.preamble + network_id, static=bytes([9] * 32)
        )

    def proof(self, identity: Identity = EVE, *, label: bytes | None = None, hash_signed: bytes | None = None) -> list:
        """A right proof, but for what is given. Valid between `begin_message` and `finish_message` alone."""
        label = LABEL + self.role.value if label is None else label
        signature = identity.sign(label, self.noise.handshake_hash if hash_signed is None else hash_signed)
        return [1, identity.public_key, signature, replace(ALICE_SAYS, instance=b"eve-----").to_map()]

    def present(self, victim: Handshake, make_payload: Callable[["Cheat"], bytes]) -> Established | None:
        """Play the whole handshake against `victim`; its answer to our proof."""
        if self.role is Role.DIALER:
            victim.receive_data(self.preamble + framed(self.noise.write_message()))
            self.noise.read_message(victim.data_to_send()[2:])
        else:
            self.noise.read_message(victim.data_to_send()[8 + 2 :])
        head = self.noise.begin_message()
        return victim.receive_data(framed(head + self.noise.finish_message(make_payload(self))))


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


def test_both_ends_prove_who_they_are_and_learn_what_the_other_says():
    at_alice, at_bob = played(dialer(), listener())

    assert (at_alice.peer.node_id, at_alice.peer.public_key) == (BOB.node_id, BOB.public_key)
    assert (at_bob.peer.node_id, at_bob.peer.public_key) == (ALICE.node_id, ALICE.public_key)
    assert (at_alice.peer.parameters, at_bob.peer.parameters) == (BOB_SAYS, ALICE_SAYS)
    assert at_alice.peer.version == at_bob.peer.version == 1
    assert at_alice.handshake_hash == at_bob.handshake_hash
    assert at_bob.receive.decrypt(at_alice.send.encrypt(b"there")) == b"there"
    assert at_alice.receive.decrypt(at_bob.send.encrypt(b"back")) == b"back"


@given(CUTS, CUTS, CUTS, st.binary(max_size=40))
@settings(max_examples=60)
def test_any_split_of_the_bytes_gives_the_same_session(
    first: list[int], second: list[int], third: list[int], surplus: bytes
):
    whole_alice, whole_bob = played(dialer(), listener())
    alice, bob = dialer(), listener()

    assert [bob.receive_data(piece) for piece in pieces(alice.data_to_send(), first)][-1] is None
    at_alice = [alice.receive_data(piece) for piece in pieces(bob.data_to_send(), second)]
    at_bob = None
    late: list[bytes] = []
    for piece in pieces(alice.data_to_send() + surplus, third):
        if at_bob is None:
            at_bob = bob.receive_data(piece)
        else:
            late.append(piece)

    assert [facts(answer) for answer in at_alice if answer] == [facts(whole_alice)]
    assert at_bob is not None
    assert at_bob.surplus + b"".join(late) == surplus
    assert facts(replace(at_bob, surplus=b"")) == facts(whole_bob)


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


def test_no_identity_travels_in_clear():
    wire = b"".join(flights())

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


@pytest.mark.parametrize("role", Role)
def test_a_proof_made_for_the_other_role_is_refused(role: Role):
    other = Role.LISTENER if role is Role.DIALER else Role.DIALER

    outcome = outcome_of(role, lambda cheat: cheat.proof(label=LABEL + other.value))

    assert isinstance(outcome, HandshakeFailed)
    assert outcome.reason == "proof"


def test_a_proof_reflected_to_its_maker_is_refused():
    bob = listener()
    cheat = Cheat(Role.DIALER)
    bob.receive_data(cheat.preamble + framed(cheat.noise.write_message()))
    bobs_proof = cheat.noise.read_message(bob.data_to_send()[2:])

    failure = failure_of(bob, framed(cheat.noise.write_message(bobs_proof)))

    assert failure.reason == "proof"


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x94\x01", bytes(600), b"\xc7\x00\x05", b"\xff" * 40])
@pytest.mark.parametrize("role", Role)
def test_a_payload_that_is_no_proof_at_all_is_refused(role: Role, payload: bytes):
    victim = listener() if role is Role.DIALER else dialer()

    with pytest.raises(HandshakeFailed) as failure:
        Cheat(role).present(victim, lambda _: payload)

    assert failure.value.reason == "proof"


def test_a_proof_with_bytes_after_it_is_refused():
    with pytest.raises(HandshakeFailed):
        Cheat(Role.DIALER).present(listener(), lambda cheat: pack(cheat.proof()) + b"\0")


@pytest.mark.parametrize("role", Role)
def test_meeting_oneself_is_refused(role: Role):
    own = BOB if role is Role.DIALER else ALICE

    outcome = outcome_of(role, lambda cheat: cheat.proof(own))

    assert isinstance(outcome, HandshakeFailed)
    assert outcome.reason == "self"


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


def test_networks_with_the_same_hint_part_at_the_second_message_with_a_word_for_people():
    other = NETWORK[:1] + bytes(15)
    alice, bob = dialer(), listener(network_id=other)
    bob.receive_data(alice.data_to_send())

    failure = failure_of(alice, bob.data_to_send())

    assert failure.reason == "crypto"
    assert "network" in str(failure)


@pytest.mark.parametrize("size_bytes", [0, MAX_MESSAGE_BYTES + 1, 0xA4FF, 0xFFFF])
def test_a_message_of_a_wrong_length_is_refused_at_its_length(size_bytes: int):
    alice, bob = dialer(), listener()
    preamble = alice.data_to_send()[:8]

    at_bob = failure_of(bob, preamble + size_bytes.to_bytes(2, "big"))
    at_alice = failure_of(alice, size_bytes.to_bytes(2, "big"))

    assert at_bob.reason == at_alice.reason == "message"


@pytest.mark.parametrize("size_bytes", [1, 31])
def test_a_first_message_shorter_than_a_key_is_refused(size_bytes: int):
    failure = failure_of(listener(), dialer().data_to_send()[:8] + framed(bytes(size_bytes)))

    assert failure.reason == "message"


def test_a_first_message_of_the_greatest_length_is_read():
    bob = listener()
    cheat = Cheat(Role.DIALER)

    bob.receive_data(cheat.preamble + framed(cheat.noise.write_message(bytes(MAX_MESSAGE_BYTES - 32))))

    assert len(cheat.noise.read_message(bob.data_to_send()[2:])) > 100


def test_a_key_of_low_order_is_refused_on_both_sides():
    alice, bob = dialer(), listener()
    first = alice.data_to_send()

    at_bob = failure_of(bob, first[:8] + framed(bytes(32)))
    at_alice = failure_of(alice, framed(bytes(32) + bytes(200)))

    assert at_bob.reason == at_alice.reason == "crypto"


# Messages of other sessions, and damaged ones


def test_a_message_2_of_another_session_is_refused():
    _, second, _ = flights(seed=1)

    failure = failure_of(dialer(), second)

    assert failure.reason == "crypto"


def test_a_message_3_of_another_session_is_refused():
    _, _, third = flights(seed=1)
    bob = listener()
    bob.receive_data(dialer().data_to_send())

    failure = failure_of(bob, third)

    assert failure.reason == "crypto"


def test_a_whole_dialers_side_played_again_is_refused():
    first, _, third = flights()
    bob = listener(seed=7)  # every connection has a fresh ephemeral key

    bob.receive_data(first)
    failure = failure_of(bob, third)

    assert failure.reason == "crypto"


@pytest.mark.parametrize("flight", [0, 1, 2], ids=["preamble and message 1", "message 2", "message 3"])
def test_one_changed_byte_anywhere_never_ends_in_a_session(flight: int):
    size_bytes = len(flights()[flight])

    for index in range(size_bytes):
        for change in (0x01, 0x80):
            at_dialer, at_listener = played_with_change(flight, index, change)

            assert at_listener is None
            assert at_dialer is None or flight == 2  # message 3 is the last word: nobody tells its sender


def played_with_change(flight: int, index: int, change: int) -> tuple[Established | None, Established | None]:
    """What dialer and listener end with when one byte of one flight is changed under way."""
    sides = dialer(), listener()
    ends: list[Established | None] = [None, None]
    for number in range(3):
        writer, reader = number % 2, 1 - number % 2
        data = bytearray(sides[writer].data_to_send())
        if number == flight:
            data[index] ^= change
        try:
            ends[reader] = sides[reader].receive_data(bytes(data)) or ends[reader]
        except HandshakeFailed:
            break
    return ends[0], ends[1]


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
