"""Programs for kv, run against a dictionary model at the same time: every read inside is compared.

A program is a list of entries, an entry a list of commands, a command (operations, fails). A failing command is rolled
back after its operations. `run()` groups entries into batches as it is told; digests must not depend on that.
"""

from __future__ import annotations

import copy

from hypothesis import strategies as st

from raftdb.storage.keys import hash48
from raftdb.storage.kv import HASH, LIST, STRING, Head, KvStore, state_digest
from raftdb.types import Member, Membership

DBS = 3
MEMBERS = Membership(1, (Member("n1", 5, "127.0.0.1:1", "127.0.0.1:2", True),))

names = st.sampled_from([b"", b"a", b"b", b"c", b"\x00\xff", b"k" * 480, b"k" * 481, b"L" * 600, b"L" * 599 + b"x"])
values = st.binary(max_size=12)
dbs = st.integers(0, DBS - 1)
expiries = st.sampled_from([0, 0, 0, 50, 120, 200, 10**12])
operations = st.one_of(
    st.tuples(st.just("set"), dbs, names, values, expiries),
    st.tuples(st.just("set_head"), dbs, names, values, expiries),
    st.tuples(st.just("drop"), dbs, names),
    st.tuples(st.just("move"), dbs, names, dbs, names),
    st.tuples(st.just("hset"), dbs, names, names, values),
    st.tuples(st.just("hset"), dbs, names, names, values),
    st.tuples(st.just("hdel"), dbs, names, names),
    st.tuples(st.just("push"), dbs, names, values),
    st.tuples(st.just("get"), dbs, names),
    st.tuples(st.just("scan"), dbs),
    st.tuples(st.just("elements"), dbs, names),
    st.tuples(st.just("count"), dbs),
    st.tuples(st.just("flush"), dbs),
    st.tuples(st.just("swap"), dbs, dbs),
    st.tuples(st.just("expire"), st.integers(0, 3)),
    st.tuples(st.just("fold"), values),
)
commands = st.tuples(st.lists(operations, min_size=1, max_size=5), st.booleans())
programs = st.lists(st.lists(commands, max_size=4), min_size=1, max_size=8)


class Key:
    """A key of the model."""

    def __init__(self, kind: int, content, expiry: int) -> None:
        self.kind = kind
        self.content = content
        self.expiry = expiry


class Model:
    """Databases as dictionaries."""

    def __init__(self) -> None:
        self.dbs: list[dict[bytes, Key]] = [{} for _ in range(16)]

    def listing(self, db: int) -> list[bytes]:
        return sorted(self.dbs[db], key=lambda name: (hash48(name), name))


def write_hash(batch, model, db, name, field, value):
    head = batch.head(db, name)
    if head is None or head.type != HASH:
        head = Head(HASH, 0, 0, b"", batch.new_collection())
        model.dbs[db][name] = Key(HASH, {}, 0)
    key = model.dbs[db][name]
    new = batch.field(head.collection, field) is None
    assert new == (field not in key.content)
    batch.put_field(head.collection, field, value)
    batch.put_head(db, name, head._replace(count=head.count + new))
    key.content[field] = value


def remove_field(batch, model, db, name, field):
    head = batch.head(db, name)
    if head is None or head.type != HASH or batch.field(head.collection, field) is None:
        return
    batch.delete_field(head.collection, field)
    del model.dbs[db][name].content[field]
    if head.count == 1:
        batch.drop_head(db, name)
        del model.dbs[db][name]
    else:
        batch.put_head(db, name, head._replace(count=head.count - 1))


def push(batch, model, db, name, value):
    head = batch.head(db, name)
    if head is None or head.type != LIST:
        head = Head(LIST, 0, 0, b"", batch.new_collection(), 0, 0, -1)
        model.dbs[db][name] = Key(LIST, [], 0)
    batch.put_item(head.collection, head.last + 1, value)
    batch.put_head(db, name, head._replace(count=head.count + 1, last=head.last + 1))
    model.dbs[db][name].content.append(value)


def compare_key(txn, db, name, key):
    head = txn.head(db, name)
    if key is None:
        assert head is None
        return
    assert head is not None
    assert (head.type, head.expiry_ms) == (key.kind, key.expiry)
    if head.type == STRING:
        assert head.value == key.content
    elif head.type == HASH:
        assert head.count == len(key.content)
        expected = sorted((hash48(field), field, value) for field, value in key.content.items())
        assert list(txn.scan_fields(head.collection)) == expected
    else:
        expected = list(enumerate(key.content))
        assert list(txn.scan_items(head.collection, head.first, head.last)) == expected
        assert list(txn.scan_items(head.collection, head.first, head.last, True)) == expected[::-1]


def compare_all(txn, model):
    for db in range(DBS):
        assert [name for _, name, _ in txn.scan_heads(db)] == model.listing(db)
        assert txn.count(db) == len(model.dbs[db])
        assert txn.expiring(db) == sum(1 for key in model.dbs[db].values() if key.expiry)
        for name, key in model.dbs[db].items():
            compare_key(txn, db, name, key)


def apply_operation(batch, model, op):
    verb, *args = op
    if verb in ("set", "set_head"):
        db, name, value, expiry = args
        if verb == "set":
            batch.put_string(db, name, value, expiry)
        else:
            batch.put_head(db, name, Head(STRING, expiry, 0, value))
        model.dbs[db][name] = Key(STRING, value, expiry)
        assert batch.head(db, name).version == batch.index
    elif verb == "drop":
        db, name = args
        assert (batch.drop_head(db, name) is None) == (model.dbs[db].pop(name, None) is None)
    elif verb == "move":
        db, name, other, new_name = args
        if (db, name) != (other, new_name):
            key = model.dbs[db].pop(name, None)
            assert (batch.move_head(db, name, other, new_name) is None) == (key is None)
            if key is not None:
                model.dbs[other][new_name] = key
    elif verb == "hset":
        write_hash(batch, model, *args)
    elif verb == "hdel":
        remove_field(batch, model, *args)
    elif verb == "push":
        push(batch, model, *args)
    elif verb == "get" or verb == "elements":
        compare_key(batch, args[0], args[1], model.dbs[args[0]].get(args[1]))
    elif verb == "scan":
        assert [name for _, name, _ in batch.scan_heads(args[0])] == model.listing(args[0])
    elif verb == "count":
        assert batch.count(args[0]) == len(model.dbs[args[0]])
    elif verb == "flush":
        batch.flush_db(args[0])
        model.dbs[args[0]] = {}
    elif verb == "swap":
        one, other = args
        batch.swap_db(one, other)
        model.dbs[one], model.dbs[other] = model.dbs[other], model.dbs[one]
    elif verb == "expire":
        expire(batch, model, args[0])
    elif verb == "fold":
        batch.fold(args[0])


def expire(batch, model, keys_max):
    """Between commands in the product; here anywhere."""
    stamp = batch.stamp
    due = [(key.expiry, db, name) for db in range(16) for name, key in model.dbs[db].items() if 0 < key.expiry <= stamp]
    found = batch.due(stamp, keys_max)
    assert len(found) == min(keys_max, len(due))
    times = [model.dbs[db][name].expiry for db, name in found]
    assert times == sorted(times)
    assert times == sorted(when for when, _, _ in due)[: len(times)]
    for db, name in found:
        batch.drop_head(db, name)
        del model.dbs[db][name]


def run(kv: KvStore, model: Model, program, batch_sizes, reclaim: int = 0) -> None:
    """Apply the program from entry kv.applied + 1 on; `batch_sizes`: entries per batch, used in turn."""
    index = kv.applied
    place = 0
    turn = 0
    while place < len(program):
        size = batch_sizes[turn % len(batch_sizes)]
        turn += 1
        batch = kv.batch()
        for entry in program[place : place + size]:
            index += 1
            batch.begin(index, index * 10, index)
            for ops, fails in entry:
                # due() tells keys that the caller must remove for good: not inside what is rolled back
                ops = [op for op in ops if not (fails and op[0] == "expire")]
                batch.savepoint()
                before = copy.deepcopy(model.dbs)
                for op in ops:
                    apply_operation(batch, model, op)
                if fails:
                    batch.rollback()
                    batch.fold(b"failed")
                    model.dbs = before
        if reclaim:
            batch.reclaim(reclaim)
        batch.commit(index, 1, index * 10, index, MEMBERS)
        place += size


def digests(kv: KvStore) -> tuple[bytes, bytes]:
    with kv.view() as view:
        return kv.digest, state_digest(view)
