"""raftdb.net.session: what a connection remembers, and the limits of MULTI."""

from __future__ import annotations

import inspect

from raftdb.commands.context import SessionPort
from raftdb.net import session as module
from raftdb.net.session import BOUNDED, LINEARIZABLE, STALE, Session


def test_a_new_session_is_a_plain_resp2_client_of_database_0():
    session = Session(7, "10.0.0.1:5555", "10.0.0.2:6379", now_s=12.5)
    assert (session.id, session.address, session.laddr) == (7, "10.0.0.1:5555", "10.0.0.2:6379")
    assert (session.protocol, session.db, session.name, session.user) == (2, 0, b"", "default")
    assert (session.authenticated, session.consistency, session.readonly) == (True, LINEARIZABLE, False)
    assert (session.in_multi, session.queue, session.watches, session.written_index) == (False, [], {}, 0)
    assert session.connected_s == session.last_command_s == 12.5


def test_it_is_what_commands_expect():
    session = Session()
    for name in SessionPort.__annotations__:
        assert hasattr(session, name), name
    for name, _ in inspect.getmembers(SessionPort, inspect.isfunction):
        if not name.startswith("_"):
            assert callable(getattr(session, name)), name


def test_nothing_can_be_remembered_by_mistake():
    assert not hasattr(Session(), "__dict__")


def test_reset_forgets_all_but_identity_and_what_was_written():
    session = Session(7, "a:1", "b:2", consistency=BOUNDED)
    session.protocol, session.db, session.name, session.readonly = 3, 4, b"me", True
    session.reply_mode, session.maintenance, session.no_touch = "off", True, True
    session.written_index = 99
    session.begin_multi()
    session.enqueue([b"SET", b"a", b"b"])
    session.watch(0, b"k", 5)
    session.reset(consistency=STALE)
    assert (session.protocol, session.db, session.name, session.readonly) == (2, 0, b"", False)
    assert (session.reply_mode, session.maintenance, session.no_touch) == ("on", False, False)
    assert (session.in_multi, session.queue, session.queued_bytes, session.watches) == (False, [], 0, {})
    assert (session.id, session.address, session.written_index, session.consistency) == (7, "a:1", 99, STALE)


def test_the_first_watch_of_a_key_counts():
    session = Session()
    session.watch(0, b"k", 5)
    session.watch(0, b"k", 9)
    session.watch(1, b"k", 9)
    assert session.watches == {(0, b"k"): 5, (1, b"k"): 9}
    session.unwatch()
    assert session.watches == {}


def test_watches_outlive_multi_and_the_queue_does_not_outlive_the_transaction():
    session = Session()
    session.watch(0, b"k", 5)
    session.begin_multi()
    assert session.enqueue([b"SET", b"k", b"v"])
    assert session.queue == [[b"SET", b"k", b"v"]]
    assert session.watches
    session.clear_transaction()
    assert (session.in_multi, session.dirty_exec, session.queue, session.queued_bytes) == (False, False, [], 0)


def test_too_many_commands_make_exec_fail_and_free_the_queue(monkeypatch):
    monkeypatch.setattr(module, "MULTI_COMMANDS_MAX", 3)
    session = Session()
    session.begin_multi()
    assert [session.enqueue([b"PING"]) for _ in range(5)] == [True, True, True, False, True]
    assert session.dirty_exec
    assert (session.queue, session.queued_bytes) == ([], 0)


def test_too_many_bytes_make_exec_fail(monkeypatch):
    monkeypatch.setattr(module, "MULTI_BYTES_MAX", 1000)
    session = Session()
    session.begin_multi()
    assert session.enqueue([b"SET", b"k", b"x" * 800])
    assert not session.enqueue([b"SET", b"k", b"x" * 800])
    assert session.dirty_exec
    assert session.queued_bytes == 0


def test_a_command_that_cannot_be_queued_spoils_the_transaction():
    session = Session()
    session.begin_multi()
    session.enqueue([b"SET", b"k", b"v"])
    session.refuse_exec()
    assert session.dirty_exec
    assert session.queue == []
    assert session.enqueue([b"SET", b"k", b"v"])  # answered QUEUED, not kept
    assert session.queue == []
