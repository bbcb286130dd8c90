"""From a fresh connection to a proved peer: preamble, Noise XX, and the identity proof inside it.

Pure: bytes in, bytes out, a `PeerProof` at the end. Layout and reasons: docs/spec/wire.md.

    dialer                                           listener
    preamble: A5 'S' 'Y' 'N' 'N' version suite hint  ->  (or one plain refusal: A5 'N' 'O' code)
    u16 | Noise 1                                    ->
                                                     <-  u16 | Noise 2 { proof of the listener }
    u16 | Noise 3 { proof of the dialer }            ->

Where one network key is set, it is mixed in before message 1 (suite 03): who does not have it is known by its first
message. A listener of releases 1 and 2 answers the preamble in its own words; reading them is here, what to make of
them is the caller's.

A proof is MsgPack `[1, ed25519_public, signature, parameters]`; the signature is over a label, the role, and the
handshake hash before that payload, which covers both fresh keys: it proves this connection and no other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, Literal, NoReturn, TypeAlias

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from synapse_p2p.exceptions import FrameTooLarge, HandshakeFailed, InvalidMessageError
from synapse_p2p.identity import Identity, NodeID, node_id_of, verify
from synapse_p2p.messages import RPCError, RPCMessage, RPCResponse
from synapse_p2p.protocol.noise import KEY_SIZE_BYTES, CipherState, NoiseXX
from synapse_p2p.protocol.plain import HEADER_SIZE_BYTES, FrameReader
from synapse_p2p.protocol.wire import Limits, pack, unpack
from synapse_p2p.serializers import MessagePackRPCSerializer

MAGIC = b"\xa5SYNN"
VERSION = 1
SUITE_AESGCM = 1  # Noise_XX_25519_AESGCM_SHA256
SUITE_AESGCM_PSK = 3  # Noise_XXpsk0_25519_AESGCM_SHA256, for a network with a key
PREAMBLE_BYTES = 8
REFUSAL_MAGIC = b"\xa5NO"
REFUSAL_BYTES = 4
MAX_MESSAGE_BYTES = 1024
MAX_PLAIN_ANSWER_BYTES = 1024  # with its length; releases 1.3.1 and 2.5.0 answer in about 100
MAX_PARAMETERS_BYTES = 512
MAX_AGENT_CHARS = 64
MAX_SEEN_CHARS = 64
INSTANCE_SIZE_BYTES = 8
SESSION_VERSIONS = (1, 1)  # the oldest and the newest session protocol that we speak

_PROLOGUE = b"synapse-noise/1"
_PROOF_VERSION = 1
_LENGTH_BYTES = 2
_MAGIC_AS_LENGTH = int.from_bytes(MAGIC[:HEADER_SIZE_BYTES], "big")  # what the plain wire takes our first bytes for
_NETWORKS_DIFFER = "most often network= or network_key= is not the same on both sides"
_LIMITS = Limits(max_elements=128, max_map_entries=64, max_depth=8)

Mode: TypeAlias = Literal["client", "node"]


class Refusal(IntEnum):
    """Why a listener hangs up before the handshake. Anyone on the path can write it: text for people, nothing more."""

    VERSION = 1
    SUITE = 2
    NETWORK = 3
    BUSY = 4


_REFUSAL_TEXT = {
    Refusal.VERSION: "it speaks another version of the protocol",
    Refusal.SUITE: "it wants another cipher suite; most often network_key= is set on one side only",
    Refusal.NETWORK: f"it belongs to another network; {_NETWORKS_DIFFER}",
    Refusal.BUSY: "it has no room for another connection now",
}


@dataclass(frozen=True, slots=True)
class Parameters:
    """What each side says of itself inside the encrypted proof. Unknown keys of a peer are ignored.

    `port` is where we listen, 0 for nowhere; `instance` is drawn anew by every pool; `seen` is the other side's address
    as we see it, which is how a node learns its own.
    """

    mode: Mode
    port: int
    instance: bytes
    agent: str = ""
    unix_ms: int = 0
    seen: str = ""
    versions: tuple[int, int] = SESSION_VERSIONS

    def for_peer_at(self, address: str) -> Parameters:
        """The same for the other side at this address."""
        return Parameters(
            self.mode, self.port, self.instance, self.agent, self.unix_ms, seen=address, versions=self.versions
        )

    def to_map(self) -> dict[str, Any]:
        """As it travels."""
        return {
            "versions": list(self.versions),
            "mode": self.mode,
            "port": self.port,
            "instance": self.instance,
            "agent": self.agent,
            "unix_ms": self.unix_ms,
            "seen": self.seen,
        }

    @classmethod
    def from_map(cls, values: dict[Any, Any]) -> Parameters:
        """Checked. Raises HandshakeFailed naming the field."""
        match values.get("versions"):
            case [oldest, newest, *_] if type(oldest) is type(newest) is int and 0 < oldest <= newest:
                versions = (oldest, newest)
            case _:
                raise _malformed("versions")
        mode, port, instance = values.get("mode"), values.get("port"), values.get("instance")
        if mode not in ("client", "node"):
            raise _malformed("mode")
        if type(port) is not int or not 0 <= port <= 65_535:
            raise _malformed("port")
        if type(instance) is not bytes or len(instance) != INSTANCE_SIZE_BYTES:
            raise _malformed("instance")
        agent, unix_ms, seen = values.get("agent", ""), values.get("unix_ms", 0), values.get("seen", "")
        if type(agent) is not str or len(agent) > MAX_AGENT_CHARS:
            raise _malformed("agent")
        if type(unix_ms) is not int or unix_ms < 0:
            raise _malformed("unix_ms")
        if type(seen) is not str or len(seen) > MAX_SEEN_CHARS:
            raise _malformed("seen")
        return cls(mode, port, instance, agent, unix_ms, seen, versions)


@dataclass(frozen=True, slots=True)
class PeerProof:
    """A peer that proved its key on this connection, and what it says of itself."""

    node_id: NodeID
    public_key: bytes
    parameters: Parameters
    version: int  # the session protocol both speak


@dataclass(frozen=True, slots=True)
class Established:
    """The handshake is over. `surplus` are bytes of the session that came with the last message."""

    peer: PeerProof
    send: CipherState
    receive: CipherState
    handshake_hash: bytes
    surplus: bytes


class Role(Enum):
    """Who opened the connection."""

    DIALER = b"I"
    LISTENER = b"R"


_LABELS = tuple(b"synapse-noise-id:v1:" + role.value for role in Role)  # of the dialer's proof, and of the listener's


@dataclass(frozen=True, slots=True)
class HandshakeKeys:
    """The X25519 private keys of one handshake: `static` is drawn once per process, `ephemeral` for every
    connection.
    """

    static: bytes | X25519PrivateKey = field(repr=False)
    ephemeral: bytes = field(repr=False)


class Handshake:
    """One side of the exchange above. Call `start()`, feed `receive_data`, send `data_to_send()` after each.

    States: a dialer sends preamble and message 1, waits for message 2, sends message 3 and is established. A listener
    waits for the preamble, then message 1, sends message 2, waits for message 3 and is established; before that it
    knows no id and does no work for one. A HandshakeFailed in any state is final, and so is `refuse_busy()`;
    `data_to_send()` may then hold a refusal.
    """

    def __init__(
        self,
        role: Role,
        *,
        identity: Identity,
        network_id: bytes,
        keys: HandshakeKeys,
        parameters: Parameters,
        expected_id: NodeID | None = None,
        network_key: bytes | None = None,
    ) -> None:
        """`network_key`, 32 bytes, is mixed in as a pre-shared key: both ends have it, or neither does.

        `expected_id` is whom a dialer wants; None takes any peer.
        """
        self._role = role
        self._label, self._peer_label = _LABELS if role is Role.DIALER else reversed(_LABELS)
        self._identity = identity
        self._network_id = network_id
        self._network_key = network_key
        self._suite = SUITE_AESGCM if network_key is None else SUITE_AESGCM_PSK
        self._keys = keys
        self._parameters = parameters
        self._expected_id = expected_id
        self._noise: NoiseXX | None = None
        self._preamble = b""
        self._received = bytearray()
        self._to_send = bytearray()
        self._has_answered = False  # a listener's message 2 is out, or waits to be sent
        self._failure: HandshakeFailed | None = None

    def start(self) -> None:
        """The first move: the dialer's preamble and message 1. A listener waits."""
        if self._role is Role.DIALER:
            self._preamble = MAGIC + bytes((VERSION, self._suite, self._network_id[0]))
            self._to_send += self._preamble
            self._begin_noise()
            self._send_message(self._noise_state.write_message())

    def data_to_send(self) -> bytes:
        """What to write now; empty when there is nothing."""
        data = bytes(self._to_send)
        self._to_send.clear()
        return data

    def receive_data(self, data: bytes) -> Established | None:
        """Go on with these bytes. Raises HandshakeFailed, for good: whatever comes after it raises the same."""
        if self._failure is not None:
            raise self._failure
        self._received += data
        try:
            return self._advance()
        except HandshakeFailed as error:
            self._failure = error
            raise

    def refuse_busy(self) -> None:
        """A listener has no room for this caller: the handshake is over, and the refusal is there to send.

        From message 2 on the wire has no place for a refusal, and the caller sees the end of the stream alone.
        """
        assert self._role is Role.LISTENER, "a dialer has nobody to refuse"
        if self._failure is None:
            if not self._has_answered:
                self._queue_refusal(Refusal.BUSY)
            self._failure = HandshakeFailed("refused", "no room for another connection", refusal="busy")

    def _advance(self) -> Established | None:
        if self._role is Role.LISTENER and not self._preamble and not self._take_preamble():
            return None
        while (message := self._take_message()) is not None:
            if (established := self._on_message(message)) is not None:
                return established
        return None

    @property
    def _noise_state(self) -> NoiseXX:
        assert self._noise is not None, "the handshake has not started"
        return self._noise

    def _begin_noise(self) -> None:
        self._noise = NoiseXX(
            self._role is Role.DIALER,
            prologue=_PROLOGUE + self._preamble + self._network_id,
            static=self._keys.static,
            ephemeral=self._keys.ephemeral,
            psk=self._network_key,
        )

    def _take_preamble(self) -> bool:
        """Whether the whole preamble is here. A wrong one is refused as soon as it differs."""
        head = bytes(self._received[: len(MAGIC)])
        if head != MAGIC[: len(head)]:
            raise HandshakeFailed("preamble", "the peer's first bytes are no preamble of this protocol")
        if len(self._received) < PREAMBLE_BYTES:
            return False
        self._preamble = bytes(self._received[:PREAMBLE_BYTES])
        del self._received[:PREAMBLE_BYTES]
        version, suite, hint = self._preamble[len(MAGIC) :]
        if version != VERSION:
            self._refuse(Refusal.VERSION)
        if suite != self._suite:
            self._refuse(Refusal.SUITE)
        if hint != self._network_id[0]:
            self._refuse(Refusal.NETWORK)
        self._begin_noise()
        return True

    def _refuse(self, code: Refusal) -> NoReturn:
        self._queue_refusal(code)
        word = code.name.lower()
        raise HandshakeFailed("preamble", f"refused a preamble: {word}", refusal=word)

    def _queue_refusal(self, code: Refusal) -> None:
        self._to_send += REFUSAL_MAGIC + bytes((code,))

    def _take_message(self) -> bytes | None:
        """The next whole Noise message, None while it is not all here."""
        if self._role is Role.DIALER and self._received[:1] == REFUSAL_MAGIC[:1]:
            self._take_refusal()
            return None
        if len(self._received) < _LENGTH_BYTES:
            return None
        size_bytes = int.from_bytes(self._received[:_LENGTH_BYTES], "big")
        if self._role is Role.DIALER and size_bytes == 0:
            self._take_plain_answer()
            return None
        if not 0 < size_bytes <= MAX_MESSAGE_BYTES:
            raise HandshakeFailed("message", f"a handshake message of {size_bytes} bytes")
        end = _LENGTH_BYTES + size_bytes
        if len(self._received) < end:
            return None
        message = bytes(self._received[_LENGTH_BYTES:end])
        del self._received[:end]
        return message

    def _take_refusal(self) -> None:
        # A5 as the top byte of a length would be over the limit, so it can be nothing but a refusal.
        if len(self._received) < REFUSAL_BYTES:
            return
        if self._received[: len(REFUSAL_MAGIC)] != REFUSAL_MAGIC:
            raise HandshakeFailed("message", "the peer's answer is no handshake message")
        try:
            code = Refusal(self._received[len(REFUSAL_MAGIC)])
        except ValueError:
            raise HandshakeFailed("refused", "the peer refused the connection, for a reason unknown here") from None
        raise HandshakeFailed("refused", f"the peer refused: {_REFUSAL_TEXT[code]}", refusal=code.name.lower())

    def _take_plain_answer(self) -> None:
        """Gather one plain frame: no message of ours is empty, but the length of a short frame begins 00 00.

        What follows the frame is not looked at, so that it makes no difference how the bytes were split.
        """
        reader = FrameReader(MAX_PLAIN_ANSWER_BYTES - HEADER_SIZE_BYTES)
        try:
            if (payload := reader.receive_data(bytes(self._received))) is None:
                return
            answer = MessagePackRPCSerializer.deserialize(payload)
        except (FrameTooLarge, InvalidMessageError) as error:
            raise HandshakeFailed("message", "the peer's answer is no handshake message") from error
        if not _is_answer_to_preamble(answer):
            raise HandshakeFailed("message", "the peer's answer is of the plain wire, but not one to our preamble")
        raise HandshakeFailed("plain", "the peer speaks only the plain wire of releases 1 and 2")

    def _on_message(self, message: bytes) -> Established | None:
        noise = self._noise_state
        try:
            payload, hash_before_payload = noise.read_message_and_hash(message)
        except HandshakeFailed as error:
            if self._role is Role.DIALER:
                raise HandshakeFailed(error.reason, f"{error}; {_NETWORKS_DIFFER}") from error
            if error.reason == "crypto" and not self._has_answered:
                # Only a network key seals message 1. The dialer's people would otherwise see a closed connection and
                # no reason; who tries keys learns no more from this word than from the close.
                self._queue_refusal(Refusal.NETWORK)
                raise HandshakeFailed(error.reason, str(error), refusal="network") from error
            raise
        if self._role is Role.LISTENER and not noise.is_finished:
            self._send_proof()  # message 1 says nothing of who calls
            self._has_answered = True
            return None
        peer = self._check_proof(payload, hash_before_payload)
        if self._role is Role.DIALER:
            self._send_proof()
        send, receive = noise.split()
        return Established(peer, send, receive, noise.handshake_hash, bytes(self._received))

    def _send_proof(self) -> None:
        noise = self._noise_state
        head = noise.begin_message()
        signature = self._identity.sign(self._label, noise.handshake_hash)
        proof = [_PROOF_VERSION, self._identity.public_key, signature, self._parameters.to_map()]
        self._send_message(head + noise.finish_message(pack(proof)))

    def _check_proof(self, payload: bytes, hash_before_payload: bytes) -> PeerProof:
        """Shape, then signature, then whether it is whom we want: the dearest check comes last but one."""
        try:
            proof = unpack(payload, _LIMITS)
        except InvalidMessageError as error:
            raise HandshakeFailed("proof", "the peer's identity proof is not readable") from error
        match proof:
            case [version, bytes() as public_key, bytes() as signature, dict() as values, *_] if (
                type(version) is int and version >= _PROOF_VERSION
            ):
                pass
            case _:
                raise HandshakeFailed("proof", "the peer's identity proof has another shape")
        if len(public_key) != KEY_SIZE_BYTES or len(pack(values)) > MAX_PARAMETERS_BYTES:
            raise HandshakeFailed("proof", "the peer's identity proof has a wrong size")
        parameters = Parameters.from_map(values)
        if not verify(public_key, self._peer_label, hash_before_payload, signature):
            raise HandshakeFailed("proof", "the peer's identity proof is not valid")
        node_id = node_id_of(public_key)
        if node_id == self._identity.node_id:
            raise HandshakeFailed("self", "the peer is ourselves")
        if self._expected_id is not None and node_id != self._expected_id:
            found = f"expected {self._expected_id.hex()} here, found {node_id.hex()}"
            raise HandshakeFailed("identity", f"{found}; if that is who you want, write its id, or the address alone")
        newest = min(parameters.versions[1], SESSION_VERSIONS[1])
        if newest < max(parameters.versions[0], SESSION_VERSIONS[0]):
            raise HandshakeFailed("version", f"no session version in common: the peer speaks {parameters.versions}")
        return PeerProof(node_id, public_key, parameters, newest)

    def _send_message(self, message: bytes) -> None:
        assert len(message) <= MAX_MESSAGE_BYTES, "our own handshake message is over the limit"
        self._to_send += len(message).to_bytes(_LENGTH_BYTES, "big") + message


def _is_answer_to_preamble(answer: RPCMessage) -> bool:
    """Whether this is how releases 1 and 2 refuse a frame as long as our first four bytes would have it."""
    match answer:
        case RPCResponse(id="", ok=False, result=None, error=RPCError(code="bad_request", message=text)):
            return str(_MAGIC_AS_LENGTH) in text
    return False


def _malformed(name: str) -> HandshakeFailed:
    return HandshakeFailed("proof", f"the peer's handshake parameter {name!r} is missing or malformed")
