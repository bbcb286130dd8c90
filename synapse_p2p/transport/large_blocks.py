"""Lets the allocator keep the memory of long messages.

glibc's malloc gives the end of its heap back to the system where 128 KiB of it are free, and then every page of the
next long message is zeroed and mapped anew: an echo of 1 MiB caused 1,500 page faults, half of what it cost. It learns
from what it frees: once a block was freed that was mapped by itself, blocks of that size come from the heap, of which
twice as much may be free (mallopt(3), M_MMAP_THRESHOLD). So it is shown one. Other allocators take no notice.
"""

from __future__ import annotations

import functools

from synapse_p2p.config import MIB

KEPT_BYTES = 4 * MIB
"""A process keeps twice as much that is free: both directions of some messages of 1 MiB."""


@functools.cache
def keep_large_blocks() -> None:
    """Once in a process, when it has its first long message. Cost: 10 us, for the block is never touched."""
    bytearray(KEPT_BYTES)
