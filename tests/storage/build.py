"""Small builders that the storage tests share."""

from __future__ import annotations

from raftdb.storage.checksum import chain_of
from raftdb.storage.kv import KvStore
from raftdb.types import Entry, HardState, Kind, Member, Membership, Persist, SnapshotMeta

MEMBERS = Membership(0, (Member("n1", 5, "127.0.0.1:1", "127.0.0.1:2", True),))
THREE = Membership(0, tuple(Member(name, 5, f"{name}:1", f"{name}:2", True) for name in ("n1", "n2", "n3")))
MAP_BYTES = 64 << 20


def entry(previous_chain: int, index: int, term: int = 1, payload: bytes = b"k=v", stamp: int | None = None) -> Entry:
    """An entry that continues the chain."""
    stamp = index * 10 if stamp is None else stamp
    header = (index, term, Kind.COMMANDS, stamp, index * 7, payload)
    return Entry(*header, chain_of(previous_chain, *header))


def entries(first: int, count: int, previous_chain: int = 0, term: int = 1, payload=None) -> tuple[Entry, ...]:
    """`count` entries from `first` on; `payload(index)` makes theirs."""
    made = []
    for index in range(first, first + count):
        data = b"k%d=v%d" % (index, index) if payload is None else payload(index)
        made.append(entry(previous_chain, index, term, data))
        previous_chain = made[-1].chain
    return tuple(made)


def persist(
    *,
    hard: HardState | None = None,
    truncate_from: int | None = None,
    entries: tuple[Entry, ...] = (),
    rewrite: tuple[Entry, ...] = (),
    membership: Membership | None = None,
    previous: Membership | None = None,
    install: SnapshotMeta | None = None,
    keep_suffix: bool = False,
) -> Persist:
    return Persist(hard, truncate_from, entries, rewrite, membership, previous, install, keep_suffix)


def snapshot_meta(index: int, term: int, chain: int, name: str = "raft_n1_1_1.dat") -> SnapshotMeta:
    return SnapshotMeta(name, index, term, chain, index * 10, MEMBERS, 100, bytes(32))


def apply(kv: KvStore, found, membership: Membership | None = None) -> None:
    """Apply entries whose payload is name=value, one batch each."""
    for one in found:
        batch = kv.batch()
        batch.begin(one.index, one.stamp, one.seed)
        name, _, value = one.payload.partition(b"=")
        batch.put_string(0, name, value)
        batch.commit(one.index, one.term, one.stamp, one.chain, membership)


def content(kv: KvStore) -> dict[bytes, bytes]:
    with kv.view() as view:
        return {name: head.value for _, name, head in view.scan_heads(0)}
