"""The golden vectors: what these fixed keys and values have to look like on the wire, for ever.

Every file is checked both ways: the bytes are made again and compared, and they are read as a peer would read them.
The entries called `future` are what a later release may send; this one has to read them as if it said nothing more.
In the files, text that begins with `hex:` stands for bytes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dht.agents.delegation import Delegation, NextAsk
from dht.agents.index import capability_key, capability_root, check_belongs, provider_prefix, shard_key
from dht.agents.query import Query, parse_query
from dht.agents.record import AgentRecord, CapabilityClaim, Reach, read_agent_record
from dht.agents.renewal import Renewal, read_renewal, with_renewal
from dht.agents.selection import Load
from dht.config import RecordConfig
from dht.exceptions import RecordRefused
from dht.messages import (
    Exchange,
    ExchangeAnswer,
    FindNode,
    FindNodeAnswer,
    FindValue,
    FindValueAnswer,
    Ping,
    PingAnswer,
    Renew,
    RenewAnswer,
    Store,
    StoreAnswer,
)
from dht.reading import RecordReader
from dht.records import Gone, RecordKind, Verdicts, open_envelope, seal
from dht.values import ImmutableRecord, MutableRecord
from synapse_p2p.canonical_json import canonical_json
from synapse_p2p.capability import AgentCapability
from synapse_p2p.config import SessionConfig
from synapse_p2p.exceptions import HandshakeFailed
from synapse_p2p.identity import Identity, network_id_of, node_id_of
from synapse_p2p.messages import Refusal as CallRefusal
from synapse_p2p.protocol.channel import RECORDS_PER_KEY, SecureChannel
from synapse_p2p.protocol.events import CallAnswered, CallArrived, StreamEnded
from synapse_p2p.protocol.handshake import Established, Handshake, HandshakeKeys, Parameters, Refusal, Role
from synapse_p2p.protocol.noise import CipherState, NoiseXX
from synapse_p2p.protocol.session import Session
from synapse_p2p.protocol.wire import CONTROL_LIMITS, Call, FrameKind, decode_message, encode_message, pack, unpack
from synapse_p2p.traceparent import carrying

DIRECTORY = Path(__file__).parents[1] / "vectors"
MESSAGE_CLASSES = {
    cls.__name__: cls
    for cls in (
        Exchange,
        ExchangeAnswer,
        FindNode,
        FindNodeAnswer,
        FindValue,
        FindValueAnswer,
        Ping,
        PingAnswer,
        Renew,
        RenewAnswer,
        Store,
        StoreAnswer,
    )
}


def load(name: str) -> dict[str, Any]:
    return _with_bytes(json.loads((DIRECTORY / name).read_text()))


def _with_bytes(value: Any) -> Any:
    match value:
        case str() if value.startswith("hex:"):
            return bytes.fromhex(value.removeprefix("hex:"))
        case list():
            return [_with_bytes(item) for item in value]
        case dict():
            return {key: _with_bytes(item) for key, item in value.items()}
    return value


def with_network_key(opening: dict[str, Any]) -> dict[str, Any]:
    """The handshake of the same two in a network with a key: what differs is of that, the rest as without one."""
    keyed = opening["with_network_key"]
    return opening | keyed | {side: opening[side] | keyed[side] for side in ("dialer", "listener")}


HANDSHAKE = load("session_opening.json")
OPENINGS = [
    pytest.param(HANDSHAKE, id="open network"),
    pytest.param(with_network_key(HANDSHAKE), id="network key"),
]
STREAMS = load("session_streams.json")
RECORDS = load("records.json")
CAPABILITIES = load("capabilities.json")
QUERIES = load("queries.json")
DHT_MESSAGES = load("dht_messages.json")
DELEGATION = load("delegation.json")


# The handshake


def machine(role: Role, golden: dict[str, Any] = HANDSHAKE) -> Handshake:
    side = golden["dialer" if role is Role.DIALER else "listener"]
    handshake = Handshake(
        role,
        identity=Identity.from_seed(side["identity_seed"]),
        network_id=golden["network_id"],
        keys=HandshakeKeys(side["static"], side["ephemeral"]),
        parameters=Parameters.from_map(side["parameters"]),
        network_key=golden.get("network_key"),
    )
    handshake.start()
    return handshake


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def established_pair(golden: dict[str, Any]) -> tuple[Established, Established]:
    """The dialer's end and the listener's, from the vectors' own bytes."""
    dialer, listener = machine(Role.DIALER, golden), machine(Role.LISTENER, golden)
    listener.receive_data(golden["preamble"] + framed(golden["message_1"]))
    at_dialer = dialer.receive_data(framed(golden["message_2"]))
    at_listener = listener.receive_data(framed(golden["message_3"]))
    assert at_dialer is not None and at_listener is not None
    return at_dialer, at_listener


def test_network_id_is_the_first_half_of_the_hash_of_the_name() -> None:
    assert network_id_of(HANDSHAKE["network"]) == HANDSHAKE["network_id"]


@pytest.mark.parametrize("side", ["dialer", "listener"])
def test_node_id_is_the_hash_of_the_public_key(side: str) -> None:
    identity = Identity.from_seed(HANDSHAKE[side]["identity_seed"])

    assert identity.public_key == HANDSHAKE[side]["public_key"]
    assert identity.node_id == node_id_of(identity.public_key) == HANDSHAKE[side]["node_id"]


@pytest.mark.parametrize("golden", OPENINGS)
def test_handshake_of_fixed_keys_sends_the_golden_bytes(golden: dict[str, Any]) -> None:
    dialer, listener = machine(Role.DIALER, golden), machine(Role.LISTENER, golden)

    first = dialer.data_to_send()
    listener.receive_data(first)
    second = listener.data_to_send()
    at_dialer = dialer.receive_data(second)
    third = dialer.data_to_send()
    at_listener = listener.receive_data(third)

    assert first == golden["preamble"] + framed(golden["message_1"])
    assert second == framed(golden["message_2"])
    assert third == framed(golden["message_3"])
    assert at_dialer is not None and at_listener is not None
    assert at_dialer.handshake_hash == at_listener.handshake_hash == golden["handshake_hash"]


@pytest.mark.parametrize("golden", OPENINGS)
def test_each_side_proves_the_golden_identity_and_parameters(golden: dict[str, Any]) -> None:
    at_dialer, at_listener = established_pair(golden)

    assert at_dialer.peer.node_id == golden["listener"]["node_id"]
    assert at_dialer.peer.parameters.to_map() == golden["listener"]["parameters"]
    assert at_listener.peer.node_id == golden["dialer"]["node_id"]
    assert at_listener.peer.parameters.to_map() == golden["dialer"]["parameters"]


@pytest.mark.parametrize("golden", OPENINGS)
@pytest.mark.parametrize(("side", "message", "role"), [("dialer", "message_3", b"I"), ("listener", "message_2", b"R")])
def test_golden_proof_signs_label_role_and_the_hash_before_its_payload(
    golden: dict[str, Any], side: str, message: str, role: bytes
) -> None:
    proof = unpack(golden[side]["proof"], CONTROL_LIMITS)
    identity = Identity.from_seed(golden[side]["identity_seed"])

    signature = identity.sign(b"synapse-noise-id:v1:" + role, golden[side]["signed_hash"])

    assert proof == [1, golden[side]["public_key"], signature, golden[side]["parameters"]]
    assert _noise_payload(golden, message) == (golden[side]["proof"], golden[side]["signed_hash"])


def _noise_payload(golden: dict[str, Any], message: str) -> tuple[bytes, bytes]:
    """The plaintext in message 2 or 3, and the hash that its proof signs, read without the handshake's own code."""
    is_listener = message == "message_3"
    side = golden["listener" if is_listener else "dialer"]
    prologue = b"synapse-noise/1" + golden["preamble"] + golden["network_id"]
    noise = NoiseXX(
        not is_listener,
        prologue=prologue,
        static=side["static"],
        ephemeral=side["ephemeral"],
        psk=golden.get("network_key"),
    )
    if not is_listener:
        noise.write_message()
        return noise.read_message_and_hash(golden["message_2"])
    noise.read_message(golden["message_1"])
    noise.write_message(golden["listener"]["proof"])
    return noise.read_message_and_hash(golden["message_3"])


@pytest.mark.parametrize("golden", OPENINGS)
def test_golden_calls_travel_in_one_golden_record_each_way(golden: dict[str, Any]) -> None:
    at_dialer, at_listener = established_pair(golden)
    ask, answer = golden["records"]["dialer_to_listener"], golden["records"]["listener_to_dialer"]
    dialer, listener = _channel(at_dialer), _channel(at_listener)
    asking, answering = _session(is_dialer=True), _session(is_dialer=False)

    for call in golden["calls"]:
        asking.call(call["endpoint"], call["args"], call["kwargs"], now=0.0, deadline=call["deadline_ms"] / 1000)
    asked = asking.data_to_send()
    record = dialer.seal(asked)
    answering.receive_data(listener.open(record), 0.0)
    arrived = [event for event in answering.events() if isinstance(event, CallArrived)]
    for call, expected in zip(arrived, golden["calls"], strict=True):
        assert (call.endpoint, call.args, call.kwargs) == (expected["endpoint"], expected["args"], expected["kwargs"])
        answering.answer(call.id, expected["result"])
    answered = answering.data_to_send()
    answer_record = listener.seal(answered)

    assert (asked, record) == (ask["plaintext"], ask["record"])
    assert (answered, answer_record) == (answer["plaintext"], answer["record"])
    asking.receive_data(dialer.open(answer_record), 0.0)
    ends = [event.value for event in asking.events() if isinstance(event, CallAnswered)]
    assert ends == [call["result"] for call in golden["calls"]]


def test_golden_stream_is_said_and_read() -> None:
    golden = STREAMS["stream"]
    asked, answered = (step["frames"] for step in golden["says"])
    dialer, listener = _session(is_dialer=True), _session(is_dialer=False)

    call_id = dialer.call(golden["endpoint"], golden["args"], {}, now=0.0, has_items=True)
    assert dialer.data_to_send() == asked
    listener.receive_data(asked, 0.0)
    for item in golden["items"]:
        listener.send_item(call_id, item)
    listener.end_items(call_id)
    assert listener.data_to_send() == answered

    reader = dialer.streams.readers(call_id)[0]
    dialer.receive_data(answered, 0.0)
    assert [dialer.take_item(reader) for _ in golden["items"]] == golden["items"]
    assert dialer.events()[-1] == StreamEnded(call_id)


def test_golden_uploads_are_said_and_read() -> None:
    golden = STREAMS["uploads"]
    [said] = (step["frames"] for step in golden["says"])
    dialer, listener = _session(is_dialer=True), _session(is_dialer=False)

    call_id = dialer.call(golden["endpoint"], golden["args"], golden["kwargs"], now=0.0, uploads=golden["uploads"])
    for part, items in enumerate(golden["items"]):
        for item in items:
            dialer.send_item(call_id, item, part)
    for part in reversed(range(len(golden["items"]))):
        dialer.end_items(call_id, part)
    assert dialer.data_to_send() == said

    listener.receive_data(said, 0.0)
    readers = [listener.streams.readers(call_id)[part] for part in range(len(listener.streams.readers(call_id)))]
    assert [[listener.take_item(reader)] for reader in readers] == golden["items"]
    assert all(reader.is_ended for reader in readers)


def test_golden_parts_are_said_and_read() -> None:
    golden = STREAMS["parts"]
    value = bytes(number % 256 for number in range(golden["size_bytes"]))
    dialer, listener = _session(is_dialer=True), _session(is_dialer=False)

    dialer.call("echo", [value], {}, now=0.0)
    frames, at = dialer.data_to_send(), 0
    for part in golden["frames"]:
        assert frames[at:].startswith(part["header"])
        at += len(part["header"]) + part["bytes"]

    assert at == len(frames)
    assert sha256(frames).hexdigest() == golden["sha256"]
    listener.receive_data(frames, 0.0)
    [arrived] = listener.events()
    assert isinstance(arrived, CallArrived) and arrived.args == [value]


def test_golden_record_after_a_new_key_is_sealed_and_opened() -> None:
    golden = STREAMS["rekey"]
    sealing, opening = CipherState("AESGCM", golden["key"]), CipherState("AESGCM", golden["key"])
    known = CipherState("AESGCM", golden["next_key"])
    for cipher in (sealing, opening, known):
        cipher.nonce = golden["counter"]
    sealing.rekey()
    opening.rekey()
    ciphertext = sealing.encrypt(golden["plaintext"])

    assert len(ciphertext).to_bytes(2, "big") + ciphertext == golden["record"]
    assert opening.decrypt(ciphertext) == known.decrypt(ciphertext) == golden["plaintext"]
    assert golden["counter"] == RECORDS_PER_KEY


def _channel(end: Established) -> SecureChannel:
    return SecureChannel(end.send, end.receive)


def _session(*, is_dialer: bool) -> Session:
    return Session(is_dialer=is_dialer, now=0.0, config=SessionConfig())


def test_proof_from_the_future_is_read_as_if_it_said_nothing_more() -> None:
    dialer = machine(Role.DIALER)

    established = dialer.receive_data(framed(HANDSHAKE["future"]["message_2"]))

    assert unpack(HANDSHAKE["future"]["proof"], CONTROL_LIMITS) == HANDSHAKE["future"]["fields"]
    assert established is not None
    assert established.peer.node_id == HANDSHAKE["listener"]["node_id"]
    assert established.peer.version == 1
    assert established.peer.parameters.versions == (1, 2)


@pytest.mark.parametrize("case", HANDSHAKE["refusals"]["cases"], ids=lambda case: case["name"])
def test_first_bytes_that_do_not_fit_are_answered_with_the_golden_refusal(case: dict[str, Any]) -> None:
    listener = machine(Role.LISTENER, with_network_key(HANDSHAKE) if case["network_key"] else HANDSHAKE)
    dialer = machine(Role.DIALER)

    if case["word"] == "busy":
        listener.refuse_busy()
    with pytest.raises(HandshakeFailed):
        listener.receive_data(case["first_bytes"])
    with pytest.raises(HandshakeFailed) as told:
        dialer.receive_data(case["answer"])

    assert listener.data_to_send() == case["answer"]
    assert told.value.refusal == case["word"]


def test_every_refusal_has_a_golden_vector() -> None:
    assert {case["word"] for case in HANDSHAKE["refusals"]["cases"]} == {code.name.lower() for code in Refusal}


# Records


def golden_record() -> AgentRecord:
    fields = RECORDS["agent_record"]["body_fields"]
    return AgentRecord(
        public_key=fields["key"],
        seq=fields["seq"],
        issued_ms=fields["issued"],
        expires_ms=fields["expires"],
        network_id=fields["network"],
        addresses=tuple(fields["addresses"]),
        reach=Reach(fields["reach"]),
        name=fields["name"],
        role=fields["role"],
        description=fields["description"],
        capabilities=tuple(CapabilityClaim(*claim) for claim in fields["capabilities"]),
    )


def read(envelope: bytes) -> AgentRecord:
    network_id, unix_ms = RECORDS["network_id"], RECORDS["unix_ms"]
    return read_agent_record(envelope, network_id=network_id, unix_ms=unix_ms, config=RecordConfig())


def test_golden_record_is_sealed_to_the_golden_envelope() -> None:
    golden = RECORDS["agent_record"]
    identity = Identity.from_seed(RECORDS["identity_seed"])

    envelope = golden_record().seal(identity)

    assert envelope == golden["envelope"]
    assert unpack(envelope, CONTROL_LIMITS) == [3, golden["body"], golden["signature"]]
    assert unpack(golden["body"], CONTROL_LIMITS) == golden["body_fields"]
    assert identity.sign(b"synapse-record:v1:agent:", golden["body"]) == golden["signature"]


def test_golden_envelope_is_read_as_the_golden_record() -> None:
    record = read(RECORDS["agent_record"]["envelope"])

    assert record == golden_record()
    assert record.owner == RECORDS["owner"]


def test_record_from_the_future_is_read_as_if_it_said_nothing_more() -> None:
    future = RECORDS["future"]["envelope"]

    record = read(future)

    assert record == golden_record()
    assert len(unpack(future, CONTROL_LIMITS)) == 4
    assert open_envelope(future, 1500).body != RECORDS["agent_record"]["body"]


def test_reach_from_the_future_is_no_way_to_reach_an_agent() -> None:
    record = read(RECORDS["future"]["envelope_of_unknown_reach"])

    assert record.reach is Reach.NONE


@pytest.mark.parametrize("case", RECORDS["refused"], ids=lambda case: case["name"])
def test_golden_bad_record_is_refused_with_its_word(case: dict[str, Any]) -> None:
    with pytest.raises(RecordRefused) as refused:
        read(case["envelope"])

    assert refused.value.reason == case["refusal"]


VALUE_CLASSES = {"ImmutableRecord": ImmutableRecord, "MutableRecord": MutableRecord}
READER = RecordReader(RECORDS["network_id"], RecordConfig(), Verdicts())


def golden_value(case: dict[str, Any]) -> ImmutableRecord | MutableRecord:
    fields = case["body_fields"]
    common = {
        "public_key": fields["key"],
        "issued_ms": fields["issued"],
        "expires_ms": fields["expires"],
        "network_id": fields["network"],
        "value": fields["value"],
    }
    if case["class"] == "ImmutableRecord":
        return ImmutableRecord(**common)
    gone = Gone(fields["gone"]) if "gone" in fields else None
    return MutableRecord(**common, salt=fields["salt"], seq=fields["seq"], gone=gone)


@pytest.mark.parametrize("case", RECORDS["values"], ids=lambda case: case["name"])
def test_golden_value_is_sealed_to_the_golden_envelope_and_read_from_it(case: dict[str, Any]) -> None:
    value = golden_value(case)

    envelope = value.seal(Identity.from_seed(RECORDS["identity_seed"]))

    assert envelope == case["envelope"]
    assert unpack(envelope, CONTROL_LIMITS) == [value.kind, case["body"], case["signature"]]
    assert unpack(case["body"], CONTROL_LIMITS) == case["body_fields"]
    assert READER.read(envelope, RECORDS["unix_ms"]) == value
    assert value.key == case["key"]


@pytest.mark.parametrize("case", RECORDS["values"], ids=lambda case: case["name"])
def test_value_from_the_future_is_read_as_if_it_said_nothing_more(case: dict[str, Any]) -> None:
    assert len(unpack(case["future"], CONTROL_LIMITS)) == 4
    assert open_envelope(case["future"]).body != case["body"]
    assert READER.read(case["future"], RECORDS["unix_ms"]) == golden_value(case)


def test_way_of_being_gone_from_the_future_is_a_tombstone() -> None:
    record = READER.read(RECORDS["gone_of_the_future"], RECORDS["unix_ms"])

    assert record.gone is Gone.NOW


@pytest.mark.parametrize("envelope", ["envelope", "future"])
def test_golden_withdrawal_is_read_as_a_tombstone_of_its_agent(envelope: str) -> None:
    golden = RECORDS["agent_tombstone"]

    record = read(golden[envelope])

    assert (record.gone, record.owner, record.seq) == (Gone.NOW, RECORDS["owner"], golden["body_fields"]["seq"])
    assert record.seal(Identity.from_seed(RECORDS["identity_seed"])) == golden["envelope"]


RENEWAL = RECORDS["renewal"]


def test_golden_renewal_is_sealed_and_put_beside_its_record() -> None:
    fields, record = RENEWAL["body_fields"], RECORDS["agent_record"]["envelope"]
    identity = Identity.from_seed(RECORDS["identity_seed"])
    times = {"seq": fields["seq"], "issued_ms": fields["issued"], "expires_ms": fields["expires"]}

    renewal = Renewal.of(record, **times)

    assert (renewal.public_key, renewal.digest) == (fields["key"], fields["digest"])
    assert renewal.seal(identity) == RENEWAL["alone"]
    assert unpack(RENEWAL["alone"], CONTROL_LIMITS) == [RENEWAL["body"], RENEWAL["signature"]]
    assert unpack(RENEWAL["body"], CONTROL_LIMITS) == fields
    assert identity.sign(b"synapse-record:v1:renewal:", RENEWAL["body"]) == RENEWAL["signature"]
    assert sha256(RECORDS["agent_record"]["body"]).digest() == fields["digest"]
    assert with_renewal(record, RENEWAL["alone"]) == RENEWAL["envelope"]
    assert read_renewal(RENEWAL["alone"]) == read_renewal(RENEWAL["future_alone"]) == renewal


@pytest.mark.parametrize("envelope", ["envelope", "future"])
def test_golden_record_that_was_renewed_has_the_number_and_times_of_the_renewal(envelope: str) -> None:
    fields = RENEWAL["body_fields"]

    record = READER.read(RENEWAL[envelope], RENEWAL["unix_ms"])

    assert record == replace(
        golden_record(), seq=fields["seq"], issued_ms=fields["issued"], expires_ms=fields["expires"]
    )


@pytest.mark.parametrize("case", RENEWAL["refused"], ids=lambda case: case["name"])
def test_golden_bad_renewal_spoils_its_record(case: dict[str, Any]) -> None:
    with pytest.raises(RecordRefused) as refused:
        READER.read(case["envelope"], RENEWAL["unix_ms"])

    assert refused.value.reason == case["refusal"]


@pytest.mark.parametrize("case", RECORDS["refused_values"], ids=lambda case: case["name"])
def test_golden_bad_value_is_refused_with_its_word(case: dict[str, Any]) -> None:
    with pytest.raises(RecordRefused) as refused:
        READER.read(case["envelope"], RECORDS["unix_ms"])

    assert refused.value.reason == case["refusal"]


@pytest.mark.parametrize("case", RECORDS["keys"], ids=lambda case: f"{case['capability']} at {case['depth']}")
def test_capability_at_a_depth_has_the_golden_key(case: dict[str, Any]) -> None:
    capability, depth, owner = case["capability"], case["depth"], RECORDS["owner"]
    root = capability_root(RECORDS["network_id"], capability)
    prefix = provider_prefix(root, owner, depth)

    assert root == case["root"]
    assert (format(prefix, f"0{depth}b") if depth else "") == case["prefix"]
    assert shard_key(root, prefix, depth) == case["key"]
    assert capability_key(RECORDS["network_id"], capability, owner, depth) == case["key"]
    check_belongs(golden_record(), capability, depth, case["key"])


def test_record_is_stored_under_its_capabilities_and_all_above_them() -> None:
    names = {case["capability"] for case in RECORDS["keys"]}

    assert golden_record().indexed_names() == tuple(sorted(names))


def test_golden_body_is_what_any_record_of_that_kind_is_signed_as() -> None:
    golden = RECORDS["agent_record"]

    sealed = seal(RecordKind.AGENT, golden["body"], Identity.from_seed(RECORDS["identity_seed"]))

    assert sealed == golden["envelope"]


@pytest.mark.parametrize("case", CAPABILITIES["schemas"], ids=lambda case: case["name"])
def test_schemas_have_the_golden_digest(case: dict[str, Any]) -> None:
    schemas = {"input": case["input_schema"], "output": case["output_schema"]}
    capability = AgentCapability("any", input_schema=schemas["input"], output_schema=schemas["output"])

    assert capability.schema_digest() == case["digest"]
    assert not case["digest"] or canonical_json(schemas) == case["canonical"]
    assert not case["digest"] or sha256(b"synapse-schemas:v1:" + case["canonical"]).digest() == case["digest"]


# Queries


@pytest.mark.parametrize("case", QUERIES["queries"], ids=lambda case: case["name"])
def test_query_that_is_typed_packs_to_the_golden_bytes_and_is_read_from_them(case: dict[str, Any]) -> None:
    query = parse_query(case["typed"], case["where"])

    assert query.to_map() == case["fields"]
    assert pack(query.to_map()) == case["packed"]
    assert Query.from_map(unpack(case["packed"], CONTROL_LIMITS)) == query


@pytest.mark.parametrize("case", QUERIES["queries"], ids=lambda case: case["name"])
def test_query_from_the_future_is_read_as_if_it_asked_for_nothing_more(case: dict[str, Any]) -> None:
    assert case["future"] != case["packed"]
    assert Query.from_map(unpack(case["future"], CONTROL_LIMITS)) == parse_query(case["typed"], case["where"])


@pytest.mark.parametrize("case", QUERIES["queries"], ids=lambda case: case["name"])
def test_query_matches_the_golden_agents(case: dict[str, Any]) -> None:
    query = parse_query(case["typed"], case["where"])
    agents = {
        name: replace(golden_record(), capabilities=tuple(CapabilityClaim(*claim) for claim in claims))
        for name, claims in QUERIES["agents"].items()
    }

    assert [name for name, record in agents.items() if query.matches(record)] == case["matches"]


# Messages of the overlay


@pytest.mark.parametrize("case", DHT_MESSAGES["messages"], ids=lambda case: case["name"])
def test_overlay_message_packs_to_the_golden_bytes(case: dict[str, Any]) -> None:
    message = MESSAGE_CLASSES[case["class"]].from_map(case["fields"])

    assert message.to_map() == case["fields"]
    assert pack(message.to_map()) == case["packed"]


@pytest.mark.parametrize("case", DHT_MESSAGES["messages"], ids=lambda case: case["name"])
def test_overlay_message_from_the_future_is_read_as_if_it_said_nothing_more(case: dict[str, Any]) -> None:
    cls = MESSAGE_CLASSES[case["class"]]
    future = unpack(case["future"], CONTROL_LIMITS)

    assert future != case["fields"]
    assert cls.from_map(future) == cls.from_map(case["fields"])


def test_every_overlay_message_has_a_golden_vector() -> None:
    assert {case["class"] for case in DHT_MESSAGES["messages"]} == set(MESSAGE_CLASSES)


# The delegation of an ask, and the load of an agent


def received(call: bytes) -> Delegation | CallRefusal:
    message = decode_message(call, FrameKind.TASK)
    assert isinstance(message, Call)
    options = message.options
    return Delegation.received(
        options["delegation"],
        peer=DELEGATION["second"],
        own_id=DELEGATION["own"],
        now=0.0,
    )


@pytest.mark.parametrize("case", DELEGATION["asks"], ids=lambda case: case["name"])
def test_golden_delegation_travels_in_the_golden_call(case: dict[str, Any]) -> None:
    fields = case["delegation"]
    carried = NextAsk(fields["hops"], tuple(fields["path"]), fields["budget"]).options()
    traced = carrying(carried, case["traceparent"]) if "traceparent" in case else carried
    options = {**traced, **({"deadline_ms": case["deadline_ms"]} if "deadline_ms" in case else {})}

    assert encode_message(Call(2, "_agent.ask", ["Review this diff", {}], {}, options)) == case["call"]
    assert decode_message(case["call"], FrameKind.TASK) == Call(2, "_agent.ask", ["Review this diff", {}], {}, options)


@pytest.mark.parametrize(
    "case", [*DELEGATION["asks"], DELEGATION["future"]], ids=lambda case: case.get("name", "future")
)
def test_golden_delegation_is_received_with_one_hop_and_one_ask_less(case: dict[str, Any]) -> None:
    delegation = received(case["call"])

    assert isinstance(delegation, Delegation)
    fields = {"hops": delegation.hops, "path": list(delegation.path), "budget": delegation.budget}
    assert fields == case["received"]


@pytest.mark.parametrize("case", DELEGATION["refused"], ids=lambda case: case["name"])
def test_golden_bad_delegation_is_refused_with_its_code(case: dict[str, Any]) -> None:
    refusal = received(case["call"])

    assert isinstance(refusal, CallRefusal)
    assert refusal.code == case["code"]


@pytest.mark.parametrize("case", DELEGATION["load"], ids=lambda case: case["name"])
def test_golden_load_is_read_as_it_is_and_as_a_later_release_says_it(case: dict[str, Any]) -> None:
    fields = case["fields"]

    assert pack(fields) == case["packed"]
    expected = Load(*(fields[name] for name in ("running", "waiting", "max_tasks", "queue", "service_s")))
    assert Load.from_map(unpack(case["packed"], CONTROL_LIMITS)) == expected
    assert Load.from_map(unpack(case["future"], CONTROL_LIMITS)) == expected
