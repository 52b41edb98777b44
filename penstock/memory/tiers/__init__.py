"""Where sealed blocks live: RAM, and below it a disk.

    pool = Pool(ram=64 << 20, disk=1 << 30, folder=path)      limits in bytes, for all stores together
    store = pool.open((2, heads, 64, width), torch.float16, "layer 3")
    first = store.append(blocks)                              sealed: never altered again
    blocks, present = store.fetch(ids)

append ──► RAM slabs ──least recently used──► files ──oldest──► dropped, and an event says so
             ▲                                   │
             └──── fetch, prefetch (a thread) ───┘              every read is verified

Without a disk the oldest blocks are dropped from RAM.  The last tier always drops what was appended first, so that
what remains of a store is, but for damage, a suffix of its ids.

What `append` promises when it returns: the blocks can be fetched.  They are in RAM, and a killed process loses them;
what has been moved to the disk was written, synced and indexed before its RAM copy was released, and survives.  With
`durable=True` each block is on the disk before `append` returns.  `Pool.recover` brings back what was on the disk.
Forks end with the process: their blocks are written without waiting for the disk, and not indexed.

This room knows nothing of keys, values or models.
"""

from penstock.memory.tiers.journal import TierEvent
from penstock.memory.tiers.limits import Tiers
from penstock.memory.tiers.pool import Pool
from penstock.memory.tiers.store import BlockStore

__all__ = ["BlockStore", "Pool", "TierEvent", "Tiers"]
