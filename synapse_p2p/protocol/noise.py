"""The Noise XX handshake, with or without a pre-shared key, over the primitives of `cryptography`.

Pure: bytes in, bytes out; the state machine is ours, all arithmetic is theirs. Source: The Noise Protocol Framework,
revision 34 (sections 5, 7.5 and 9); X25519 RFC 7748, ChaCha20-Poly1305 RFC 8439, HKDF RFC 5869.

    XX:       -> e        <- e, ee, s, es        -> s, se
    XXpsk0:   -> psk, e   <- e, ee, s, es        -> s, se

Roles take turns, the initiator first. `read_message` and `write_message` out of turn, and `split` too early, are our
own bugs and assert; anything wrong in a peer's bytes raises HandshakeFailed and ends the handshake for good.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Literal, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from synapse_p2p.exceptions import HandshakeFailed, ProtocolViolation

CipherName: TypeAlias = Literal["AESGCM", "ChaChaPoly"]

KEY_SIZE_BYTES = 32
TAG_SIZE_BYTES = 16
MAX_NONCE = 2**64 - 1  # reserved by the specification for rekeying

# Of nonces: four zeros and the counter, for which section 12 gives each cipher its order.
_PACK_NONCE = {"AESGCM": struct.Struct(">4xQ").pack, "ChaChaPoly": struct.Struct("<4xQ").pack}

_PATTERN = (("e",), ("e", "ee", "s", "es"), ("s", "se"))


class CipherState:
    """One direction of an encrypted flow: a key and a counter of messages (section 5.1).

    The counter moves on success alone, so that a forged message costs nothing but the connection.
    """

    __slots__ = ("_aead", "_make_aead", "_pack_nonce", "nonce")

    def __init__(self, name: CipherName, key: bytes) -> None:
        self._pack_nonce = _PACK_NONCE[name]
        self._make_aead = AESGCM if name == "AESGCM" else ChaCha20Poly1305
        self._aead = self._make_aead(key)
        self.nonce = 0

    def encrypt(self, plaintext: bytes, associated: bytes = b"") -> bytes:
        """Ciphertext and tag, 16 bytes longer. Raises ProtocolViolation when the counter is used up."""
        nonce = self.nonce
        if nonce >= MAX_NONCE:
            raise ProtocolViolation(_USED_UP)
        ciphertext = self._aead.encrypt(self._pack_nonce(nonce), plaintext, associated)
        self.nonce = nonce + 1
        return ciphertext

    def decrypt(self, ciphertext: bytes | memoryview, associated: bytes = b"") -> bytes:
        """The plaintext. Raises ProtocolViolation when it was not made by the other end for this place in the flow."""
        nonce = self.nonce
        if nonce >= MAX_NONCE:
            raise ProtocolViolation(_USED_UP)
        try:
            plaintext = self._aead.decrypt(self._pack_nonce(nonce), ciphertext, associated)
        except (InvalidTag, ValueError) as error:
            raise ProtocolViolation("a record could not be decrypted") from error
        self.nonce = nonce + 1
        return plaintext

    def rekey(self) -> None:
        """Take the next key, from which this one cannot be found (sections 4.2 and 11.3). The counter goes on."""
        last_nonce = self._pack_nonce(MAX_NONCE)
        self._aead = self._make_aead(self._aead.encrypt(last_nonce, bytes(KEY_SIZE_BYTES), b"")[:KEY_SIZE_BYTES])


_USED_UP = "the cipher's counter is used up"


class _SymmetricState:
    """The running hash and chaining key of a handshake (section 5.2)."""

    def __init__(self, protocol_name: bytes, cipher: CipherName) -> None:
        padded = protocol_name.ljust(32, b"\0")
        self.hash = padded if len(protocol_name) <= 32 else hashlib.sha256(protocol_name).digest()
        self._chaining_key = self.hash
        self._cipher_name: CipherName = cipher
        self._cipher: CipherState | None = None

    def mix_hash(self, data: bytes) -> None:
        self.hash = hashlib.sha256(self.hash + data).digest()

    def mix_key(self, material: bytes) -> None:
        self._chaining_key, key = _hkdf(self._chaining_key, material, 2)
        self._cipher = CipherState(self._cipher_name, key)

    def mix_key_and_hash(self, material: bytes) -> None:
        self._chaining_key, extra, key = _hkdf(self._chaining_key, material, 3)
        self.mix_hash(extra)
        self._cipher = CipherState(self._cipher_name, key)

    @property
    def has_key(self) -> bool:
        return self._cipher is not None

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = plaintext if self._cipher is None else self._cipher.encrypt(plaintext, self.hash)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        plaintext = ciphertext if self._cipher is None else self._cipher.decrypt(ciphertext, self.hash)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        first, second = _hkdf(self._chaining_key, b"", 2)
        return CipherState(self._cipher_name, first), CipherState(self._cipher_name, second)


def _hkdf(chaining_key: bytes, material: bytes, count: int) -> list[bytes]:
    secret = hmac.digest(chaining_key, material, "sha256")
    outputs: list[bytes] = []
    previous = b""
    for index in range(1, count + 1):
        previous = hmac.digest(secret, previous + bytes((index,)), "sha256")
        outputs.append(previous)
    return outputs


class NoiseXX:
    """One side of a Noise XX handshake.

    `static` and `ephemeral` are X25519 private keys, raw or, for one that serves many handshakes, loaded: loading takes
    40 us. Without `ephemeral` a fresh one is generated. `psk`, 32 bytes, selects XXpsk0. After the third message
    `handshake_hash` binds the whole exchange and `split()` gives the two flows. Cost: one key and three exchanges a
    side, about 0.15 ms.
    """

    def __init__(
        self,
        initiator: bool,
        *,
        prologue: bytes,
        static: bytes | X25519PrivateKey,
        ephemeral: bytes | None = None,
        psk: bytes | None = None,
        cipher: CipherName = "AESGCM",
    ) -> None:
        assert psk is None or len(psk) == KEY_SIZE_BYTES, "a pre-shared key has 32 bytes"
        pattern = "XX" if psk is None else "XXpsk0"
        self._symmetric = _SymmetricState(f"Noise_{pattern}_25519_{cipher}_SHA256".encode(), cipher)
        self._symmetric.mix_hash(prologue)
        self._is_initiator = initiator
        self._static = X25519PrivateKey.from_private_bytes(static) if isinstance(static, bytes) else static
        self._ephemeral = (
            X25519PrivateKey.generate() if ephemeral is None else X25519PrivateKey.from_private_bytes(ephemeral)
        )
        self._psk = psk
        self._remote_static: X25519PublicKey | None = None
        self._remote_ephemeral: X25519PublicKey | None = None
        self._step = 0
        self._is_failed = False

    @property
    def handshake_hash(self) -> bytes:
        """32 bytes that cover everything sent so far, in order; equal on both sides between messages."""
        return self._symmetric.hash

    @property
    def is_finished(self) -> bool:
        """Whether all three messages have passed."""
        return self._step == len(_PATTERN)

    def begin_message(self) -> bytes:
        """The tokens of our next message, before its payload; `finish_message` completes it.

        Between the two, `handshake_hash` covers our keys: what a proof of identity signs.
        """
        assert not self._is_failed and self._is_ours(), "not our turn to write"
        try:
            return b"".join([self._write_token(token) for token in self._tokens()])
        except ValueError as error:
            self._is_failed = True
            raise HandshakeFailed("crypto", "the peer's key is of low order") from error

    def finish_message(self, payload: bytes) -> bytes:
        """The payload, encrypted where a key is known already; ends our turn."""
        self._step += 1
        return self._symmetric.encrypt_and_hash(payload)

    def write_message(self, payload: bytes = b"") -> bytes:
        """Our next message."""
        return self.begin_message() + self.finish_message(payload)

    def read_message(self, message: bytes) -> bytes:
        """The payload of the peer's next message. Raises HandshakeFailed for anything but what the peer had to send."""
        payload, _ = self.read_message_and_hash(message)
        return payload

    def read_message_and_hash(self, message: bytes) -> tuple[bytes, bytes]:
        """The payload, and the handshake hash as it stood before the payload was read: what the peer's proof signs."""
        assert not self._is_failed and not self._is_ours() and not self.is_finished, "not our turn to read"
        self._is_failed = True  # until it is whole
        try:
            for token in self._tokens():
                message = self._read_token(token, message)
            hash_before_payload = self._symmetric.hash
            payload = self._symmetric.decrypt_and_hash(message)
        except HandshakeFailed:
            raise
        except (ProtocolViolation, ValueError) as error:
            # ValueError: the primitives' word for a key of the wrong size and for a point of low order.
            raise HandshakeFailed("crypto", "a handshake message was not made for this handshake") from error
        self._is_failed = False
        self._step += 1
        return payload, hash_before_payload

    def split(self) -> tuple[CipherState, CipherState]:
        """The flows (to send, to receive). Section 5.2: the initiator sends under the first key."""
        assert self.is_finished, "the handshake is not finished"
        first, second = self._symmetric.split()
        return (first, second) if self._is_initiator else (second, first)

    def _is_ours(self) -> bool:
        return not self.is_finished and (self._step % 2 == 0) == self._is_initiator

    def _tokens(self) -> tuple[str, ...]:
        tokens = _PATTERN[self._step]
        return ("psk", *tokens) if self._psk is not None and self._step == 0 else tokens

    def _write_token(self, token: str) -> bytes:
        match token:
            case "e":
                return self._mix_ephemeral(self._ephemeral.public_key().public_bytes_raw())
            case "s":
                return self._symmetric.encrypt_and_hash(self._static.public_key().public_bytes_raw())
        self._mix_secret(token)
        return b""

    def _read_token(self, token: str, message: bytes) -> bytes:
        match token:
            case "e":
                key, message = _cut(message, KEY_SIZE_BYTES)
                self._remote_ephemeral = X25519PublicKey.from_public_bytes(self._mix_ephemeral(key))
            case "s":
                size = KEY_SIZE_BYTES + (TAG_SIZE_BYTES if self._symmetric.has_key else 0)
                sealed, message = _cut(message, size)
                self._remote_static = X25519PublicKey.from_public_bytes(self._symmetric.decrypt_and_hash(sealed))
            case _:
                self._mix_secret(token)
        return message

    def _mix_ephemeral(self, key: bytes) -> bytes:
        self._symmetric.mix_hash(key)
        if self._psk is not None:
            self._symmetric.mix_key(key)  # section 9.2: with a psk, an ephemeral key enters the chain too
        return key

    def _mix_secret(self, token: str) -> None:
        if token == "psk":  # noqa: S105 - the name of a token in the pattern
            assert self._psk is not None
            self._symmetric.mix_key_and_hash(self._psk)
            return
        # "es": the initiator's ephemeral with the responder's static key; "se": the other way round.
        ours, theirs = token if self._is_initiator else reversed(token)
        key = self._ephemeral if ours == "e" else self._static
        remote_key = self._remote_ephemeral if theirs == "e" else self._remote_static
        assert remote_key is not None
        self._symmetric.mix_key(key.exchange(remote_key))


def _cut(message: bytes, size: int) -> tuple[bytes, bytes]:
    if len(message) < size:
        raise HandshakeFailed("message", "a handshake message is too short")
    return message[:size], message[size:]
