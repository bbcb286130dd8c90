"""The encrypted flow after a handshake: what we say sealed into records, what arrives opened.

    record:  u16 length (17 to 65,535) | ciphertext with its 16-byte tag

Pure. A whole flush is sealed as one record, because sealing costs per record, not per byte. Any fault ends the channel:
the counter of the cipher makes a record that is repeated, dropped or out of order undecipherable. After each 2^20
records of one direction both ends replace its key. Source: Noise sections 13 (length field) and 11.3 (rekey), and
docs/spec/wire.md.
"""

from __future__ import annotations

import struct

from synapse_p2p.exceptions import ProtocolViolation
from synapse_p2p.protocol.noise import TAG_SIZE_BYTES, CipherState

LENGTH_BYTES = 2
MAX_CIPHERTEXT_BYTES = 65_535
MAX_PLAINTEXT_BYTES = MAX_CIPHERTEXT_BYTES - TAG_SIZE_BYTES
LONG_RECORD_BYTES = 4096
RECORDS_PER_KEY = 2**20  # of one direction; the other end counts the same


class SecureChannel:
    """Both directions of one connection. Invariant: what is buffered is less than one record."""

    __slots__ = ("_buffer", "_is_failed", "_receive", "_records_per_key", "_send")

    def __init__(self, send: CipherState, receive: CipherState, *, records_per_key: int | None = None) -> None:
        """Where it is given, `records_per_key` stands for RECORDS_PER_KEY."""
        self._send = send
        self._receive = receive
        self._records_per_key = records_per_key or RECORDS_PER_KEY
        self._buffer = bytearray()
        self._is_failed = False

    def seal(self, plaintext: bytes) -> bytes:
        """Records that carry `plaintext`, as few as can be; none for nothing, as a record of nothing is a fault."""
        size_bytes = len(plaintext)
        if not 0 < size_bytes <= MAX_PLAINTEXT_BYTES:  # nearly every flush is one record
            starts = range(0, size_bytes, MAX_PLAINTEXT_BYTES)
            return b"".join(self.seal(plaintext[start : start + MAX_PLAINTEXT_BYTES]) for start in starts)
        send = self._send
        ciphertext = send.encrypt(plaintext)
        if not send.nonce % self._records_per_key:
            send.rekey()
        return _LENGTH.pack(size_bytes + TAG_SIZE_BYTES) + ciphertext

    def open(self, data: bytes) -> bytes:
        """What the whole records in `data` (with what was left over before) say, joined.

        Raises ProtocolViolation at the first bad record, and from then on; nothing of that call is delivered.
        """
        if self._is_failed:
            raise ProtocolViolation("nothing is read after a bad record")
        self._is_failed = True  # until all of it was good
        if self._buffer:
            self._buffer += data
            data = bytes(self._buffer)
            self._buffer.clear()
        arrived_bytes = len(data)
        position = 0
        opened: list[bytes] = []
        while arrived_bytes - position >= LENGTH_BYTES:
            start = position + LENGTH_BYTES
            (record_bytes,) = _LENGTH.unpack_from(data, position)
            end = start + record_bytes
            if record_bytes <= TAG_SIZE_BYTES:
                raise ProtocolViolation(f"a record of {record_bytes} bytes is too short")
            if end > arrived_bytes:
                break
            # A view where the record is long, and the copy is what costs.
            record = data[start:end] if record_bytes < LONG_RECORD_BYTES else memoryview(data)[start:end]
            plaintext = self._receive.decrypt(record)
            if not self._receive.nonce % self._records_per_key:
                self._receive.rekey()
            if end == arrived_bytes and not position:  # one whole record, as most that arrives is
                self._is_failed = False
                return plaintext
            opened.append(plaintext)
            position = end
        if position < arrived_bytes:
            self._buffer += data[position:]
        self._is_failed = False
        return b"".join(opened)


_LENGTH = struct.Struct(">H")
