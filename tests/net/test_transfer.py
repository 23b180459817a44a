"""Snapshot files: cut at every piece, doubled, swapped, corrupted, from another leader, on a full disk."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from raftdb.errors import Damaged, DiskFull, PeerError, StorageError
from raftdb.net import transfer
from raftdb.net.transfer import WINDOW_CHUNKS, SnapshotFetcher, SnapshotSource, TokenBucket, plain_name
from raftdb.net.wire import CHUNK_BYTES_MAX, ChunkReply, ChunkRequest
from raftdb.types import Membership, NodeRef, SnapshotMeta

LEADER = NodeRef("n1", 1)
OTHER = NodeRef("n3", 3)
ME = NodeRef("n2", 2)
PATIENCE_S = 20.0


def digest_of(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes(), digest_size=32).digest()


def make_snapshot(directory: Path, size: int, name: str = "raft_n1_1_9.dat", seed: int = 1) -> SnapshotMeta:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(random.Random(seed).randbytes(size))
    return SnapshotMeta(name, 9, 1, 1, 1, Membership(0, ()), size, digest_of(directory / name))


class Clock:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


class Rig:
    """A source and a fetcher with a line between them that a test can hold, reorder and spoil."""

    def __init__(self, tmp_path: Path, size: int, *, bandwidth_bytes: int = 1 << 40) -> None:
        self.clock = Clock()
        self.from_dir, self.to_dir = tmp_path / "leader", tmp_path / "follower"
        self.to_dir.mkdir(parents=True)
        self.meta = make_snapshot(self.from_dir, size)
        self.known = {self.meta.name: self.meta}
        self.requests: list[ChunkRequest] = []
        self.replies: list[ChunkReply] = []
        self.fetched: list[SnapshotMeta] = []
        self.failed: list[tuple[SnapshotMeta, Exception]] = []
        self.source = SnapshotSource(
            self.from_dir, self.known.get, self._reply, bandwidth_bytes=bandwidth_bytes, now=self.clock
        )
        self.fetcher = self.new_fetcher()
        self.line_up = True

    def new_fetcher(self, **options: Any) -> SnapshotFetcher:
        options = {"free_bytes_min": 0, **options}
        return SnapshotFetcher(
            self.to_dir,
            self._request,
            options.pop("check", digest_of),
            self.fetched.append,
            lambda meta, error: self.failed.append((meta, error)),
            now=self.clock,
            **options,
        )

    def _request(self, to: NodeRef, request: ChunkRequest) -> bool:
        if self.line_up:
            self.requests.append(request)
        return self.line_up

    def _reply(self, to: NodeRef, reply: ChunkReply) -> bool:
        if self.line_up:
            self.replies.append(reply)
        return self.line_up

    def cut(self) -> None:
        """The connection is lost, with everything on it."""
        self.requests.clear()
        self.replies.clear()
        self.source.lost(ME)
        self.fetcher.lost(LEADER)

    def step(self, sender: NodeRef = LEADER) -> None:
        """What is under way arrives, once."""
        requests, self.requests = self.requests, []
        for request in requests:
            self.source.on_request(ME, request)
        replies, self.replies = self.replies, []
        for reply in replies:
            self.fetcher.on_reply(sender, reply)
        self.fetcher.tick()

    def until_settled(self, sender: NodeRef = LEADER) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.fetcher.busy:
            assert time.monotonic() < deadline, "waited in vain"
            self.step(sender)
            job = self.fetcher._job
            if job is not None:
                job.done.wait(PATIENCE_S)

    def assert_whole(self) -> None:
        assert self.fetched == [self.meta]
        assert self.failed == []
        assert (self.to_dir / self.meta.name).read_bytes() == (self.from_dir / self.meta.name).read_bytes()
        assert os.listdir(self.to_dir) == [self.meta.name]


class TestWhole:
    @pytest.mark.parametrize("size", [1, CHUNK_BYTES_MAX - 1, CHUNK_BYTES_MAX, CHUNK_BYTES_MAX + 1, 2_500_000])
    def test_a_file_arrives(self, tmp_path, size):
        rig = Rig(tmp_path, size)
        rig.fetcher.start(rig.meta, LEADER)
        assert rig.fetcher.busy
        rig.until_settled()
        rig.assert_whole()
        assert rig.source.sent_bytes == size

    def test_the_window_is_bounded(self, tmp_path):
        rig = Rig(tmp_path, 20 * CHUNK_BYTES_MAX)
        rig.fetcher.start(rig.meta, LEADER)
        for _ in range(5):
            rig.fetcher.tick()
        assert len(rig.requests) == WINDOW_CHUNKS

    def test_nothing_stands_under_its_name_before_it_is_whole(self, tmp_path):
        rig = Rig(tmp_path, 5 * CHUNK_BYTES_MAX)
        rig.fetcher.start(rig.meta, LEADER)
        while rig.fetcher._job is None:
            assert not (rig.to_dir / rig.meta.name).exists()
            rig.step()
        assert not rig.fetched
        rig.until_settled()
        rig.assert_whole()

    def test_durable_before_it_is_told(self, tmp_path, monkeypatch):
        """fsync of the file, whole check, rename, fsync of the directory: in this order."""
        calls: list[str] = []
        real = {name: getattr(os, name) for name in ("fsync", "rename")}
        kind = {True: "fsync directory", False: "fsync file"}
        monkeypatch.setattr(
            os, "fsync", lambda fd: (calls.append(kind[os.path.isdir(f"/proc/self/fd/{fd}")]), real["fsync"](fd))
        )
        monkeypatch.setattr(os, "rename", lambda a, b: (calls.append("rename"), real["rename"](a, b)))
        rig = Rig(tmp_path, 1000)
        rig.fetcher = rig.new_fetcher(check=lambda path: (calls.append("check"), digest_of(path))[1])
        rig.fetcher.start(rig.meta, LEADER)
        rig.until_settled()
        assert calls == ["fsync file", "check", "rename", "fsync directory"]

    def test_the_check_does_not_run_in_the_drivers_thread(self, tmp_path):
        rig = Rig(tmp_path, 1000)
        threads: list[str] = []
        rig.fetcher = rig.new_fetcher(
            check=lambda p: (threads.append(threading.current_thread().name), digest_of(p))[1]
        )
        rig.fetcher.start(rig.meta, LEADER)
        rig.until_settled()
        assert threads == ["raftdb-snapshot-check"]

    def test_the_same_file_again_is_not_fetched_again(self, tmp_path):
        rig = Rig(tmp_path, 1_000_000)
        rig.fetcher.start(rig.meta, LEADER)
        rig.until_settled()
        rig.fetcher.start(rig.meta, LEADER)
        rig.until_settled()
        assert rig.fetched == [rig.meta, rig.meta]
        assert rig.source.sent_bytes == 1_000_000

    def test_another_file_of_the_same_name_is_not_overwritten(self, tmp_path):
        rig = Rig(tmp_path, 1_000)
        (rig.to_dir / rig.meta.name).write_bytes(b"my own snapshot")
        rig.fetcher.start(rig.meta, LEADER)
        rig.until_settled()
        assert "another snapshot has the name" in str(rig.failed[0][1])
        assert (rig.to_dir / rig.meta.name).read_bytes() == b"my own snapshot"

    def test_a_damaged_file_of_the_same_name_is_replaced(self, tmp_path):
        rig = Rig(tmp_path, 1_000)
        (rig.to_dir / rig.meta.name).write_bytes(b"rotten")

        def check(path: Path) -> bytes:
            if path.read_bytes() == b"rotten":
                raise Damaged(str(path), "checksum")
            return digest_of(path)

        rig.fetcher = rig.new_fetcher(check=check)
        rig.fetcher.start(rig.meta, LEADER)
        rig.until_settled()
        rig.assert_whole()


class TestFaults:
    def test_cut_at_every_piece(self, tmp_path):
        """However often it is cut it goes on from where it was: what was written is not sent again."""
        rig = Rig(tmp_path, 9 * CHUNK_BYTES_MAX + 77)
        rig.fetcher.start(rig.meta, LEADER)
        pieces = 0
        while rig.fetcher._job is None:
            requests, rig.requests = rig.requests, []
            for request in requests[:1]:
                rig.source.on_request(ME, request)
            for reply in list(rig.replies):
                rig.fetcher.on_reply(LEADER, reply)
                pieces += 1
            rig.cut()
            rig.fetcher.tick()
        rig.until_settled()
        rig.assert_whole()
        assert pieces == 10

    @pytest.mark.parametrize("cut_after", range(0, 11, 2))
    def test_a_restart_at_every_piece_goes_on_from_the_part(self, tmp_path, cut_after):
        rig = Rig(tmp_path, 10 * CHUNK_BYTES_MAX)
        rig.fetcher.start(rig.meta, LEADER)
        while rig.fetcher.progress()[0] < cut_after * CHUNK_BYTES_MAX and rig.fetcher._job is None:
            rig.source.on_request(ME, rig.requests.pop(0))
            rig.fetcher.on_reply(LEADER, rig.replies.pop(0))
        if rig.fetcher._job is not None:
            rig.fetcher._job.done.wait(PATIENCE_S)
        rig.fetcher.stop()
        rig.cut()
        sent = rig.source.sent_bytes
        rig.fetcher = rig.new_fetcher()
        rig.fetcher.start(rig.meta, LEADER)
        rig.until_settled()
        rig.assert_whole()
        assert rig.source.sent_bytes - sent <= (10 - cut_after) * CHUNK_BYTES_MAX

    def test_another_leader_with_the_same_file_goes_on(self, tmp_path):
        rig = Rig(tmp_path, 10 * CHUNK_BYTES_MAX)
        rig.fetcher.start(rig.meta, LEADER)
        rig.step()
        have = rig.fetcher.progress()[0]
        assert have == WINDOW_CHUNKS * CHUNK_BYTES_MAX
        late = list(rig.requests)
        rig.requests.clear()
        rig.fetcher.start(rig.meta, OTHER)
        rig.fetcher.tick()
        assert [request.offset for request in rig.requests] == [request.offset for request in late]
        rig.until_settled(OTHER)
        rig.assert_whole()
        assert rig.source.sent_bytes == rig.meta.size_bytes

    def test_pieces_of_the_former_leader_are_ignored(self, tmp_path):
        rig = Rig(tmp_path, 3 * CHUNK_BYTES_MAX)
        rig.fetcher.start(rig.meta, LEADER)
        rig.fetcher.start(rig.meta, OTHER)
        rig.fetcher.tick()  # asks the new one for the same pieces
        rig.fetcher.on_reply(LEADER, ChunkReply(rig.meta.name, rig.meta.digest, 0, bytes(CHUNK_BYTES_MAX), ""))
        assert rig.fetcher.progress()[0] == 0
        assert rig.fetcher.ignored == 1

    def test_doubled_and_reordered_pieces_do_no_harm(self, tmp_path):
        rig = Rig(tmp_path, 17 * CHUNK_BYTES_MAX + 5)
        rig.fetcher.start(rig.meta, LEADER)
        chance = random.Random(7)
        old: list[ChunkReply] = []
        while rig.fetcher._job is None:
            requests, rig.requests = rig.requests, []
            for request in requests:
                rig.source.on_request(ME, request)
            replies, rig.replies = rig.replies + chance.sample(old, min(3, len(old))), []
            old += replies
            chance.shuffle(replies)
            for reply in replies * 2:
                rig.fetcher.on_reply(LEADER, reply)
            rig.fetcher.tick()
        rig.until_settled()
        rig.assert_whole()
        assert rig.fetcher.ignored > 10

    def test_lost_pieces_are_asked_for_again(self, tmp_path):
        rig = Rig(tmp_path, 6 * CHUNK_BYTES_MAX)
        rig.fetcher.start(rig.meta, LEADER)
        lost = list(rig.requests)
        rig.requests.clear()
        rig.fetcher.tick()
        assert rig.requests == []
        rig.clock.s += transfer.ANSWER_TIMEOUT_S + 1
        rig.fetcher.tick()
        assert rig.requests == lost
        rig.until_settled()
        rig.assert_whole()

    def test_a_full_outbox_is_waited_for(self, tmp_path):
        rig = Rig(tmp_path, 3 * CHUNK_BYTES_MAX)
        rig.line_up = False
        rig.fetcher.start(rig.meta, LEADER)
        rig.fetcher.tick()
        rig.line_up = True
        rig.fetcher.tick()
        rig.line_up = False
        for request in rig.requests:
            rig.source.on_request(ME, request)
        rig.line_up = True
        rig.source.tick()
        assert len(rig.replies) == 3
        rig.requests.clear()
        rig.until_settled()
        rig.assert_whole()

    def test_a_corrupted_piece_is_found_at_the_end_and_all_is_fetched_again(self, tmp_path):
        rig = Rig(tmp_path, 3 * CHUNK_BYTES_MAX)
        rig.fetcher.start(rig.meta, LEADER)
        rig.source.on_request(ME, rig.requests.pop(0))
        reply = rig.replies.pop()
        rig.fetcher.on_reply(LEADER, reply._replace(data=reply.data[:-1] + bytes([reply.data[-1] ^ 1])))
        rig.until_settled()
        rig.assert_whole()
        assert rig.source.sent_bytes == 6 * CHUNK_BYTES_MAX

    def test_a_part_with_rotten_bytes_is_found_at_the_end(self, tmp_path):
        """Power loss: the part has its length and not its bytes."""
        rig = Rig(tmp_path, 3 * CHUNK_BYTES_MAX)
        part = rig.to_dir / f"{rig.meta.digest.hex()[:40]}.{rig.meta.size_bytes}.part"
        part.write_bytes(bytes(2 * CHUNK_BYTES_MAX))
        rig.fetcher.start(rig.meta, LEADER)
        rig.until_settled()
        rig.assert_whole()

    def test_a_source_that_lies_is_given_up(self, tmp_path):
        rig = Rig(tmp_path, CHUNK_BYTES_MAX)
        rig.meta = rig.meta._replace(digest=b"?" * 32)
        rig.known[rig.meta.name] = rig.meta
        rig.fetcher.start(rig.meta, LEADER)
        rig.until_settled()
        assert rig.fetched == []
        assert "does not have the promised digest" in str(rig.failed[0][1])
        assert os.listdir(rig.to_dir) == []

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda r: r._replace(data=r.data + b"x"),
            lambda r: r._replace(data=r.data[:-1]),
            lambda r: r._replace(data=b""),
            lambda r: r._replace(offset=r.offset + 1),
            lambda r: r._replace(offset=2**61),
            lambda r: r._replace(digest=b"!" * 32),
            lambda r: r._replace(name="other.dat"),
        ],
    )
    def test_pieces_that_nobody_asked_for_are_ignored(self, tmp_path, spoil):
        rig = Rig(tmp_path, 2 * CHUNK_BYTES_MAX)
        rig.fetcher.start(rig.meta, LEADER)
        rig.source.on_request(ME, rig.requests.pop(0))
        good = rig.replies.pop()
        rig.fetcher.on_reply(LEADER, spoil(good))
        assert rig.fetcher.progress()[0] == 0
        assert rig.fetcher.ignored == 1
        rig.fetcher.on_reply(LEADER, good)
        rig.until_settled()
        rig.assert_whole()

    def test_a_newer_file_takes_the_place_of_one_under_way(self, tmp_path):
        rig = Rig(tmp_path, 5 * CHUNK_BYTES_MAX)
        newer = make_snapshot(rig.from_dir, 2 * CHUNK_BYTES_MAX, "raft_n1_2_19.dat", seed=2)
        rig.known[newer.name] = newer
        rig.fetcher.start(rig.meta, LEADER)
        rig.step()
        rig.fetcher.start(newer, LEADER)
        rig.until_settled()
        assert rig.fetched == [newer]
        assert os.listdir(rig.to_dir) == [newer.name]

    def test_a_newer_file_offered_during_the_last_check_comes_after_it(self, tmp_path):
        rig = Rig(tmp_path, 1000)
        newer = make_snapshot(rig.from_dir, 2000, "raft_n1_2_19.dat", seed=2)
        rig.known[newer.name] = newer
        go_on = threading.Event()

        def slow_check(*args: Any) -> Any:
            assert go_on.wait(60)
            return digest_of(*args)

        rig.fetcher = rig.new_fetcher(check=slow_check)
        rig.fetcher.start(rig.meta, LEADER)
        while rig.fetcher._job is None:
            rig.step()
        rig.fetcher.start(newer, LEADER)
        go_on.set()
        rig.until_settled()
        assert rig.fetched == [rig.meta, newer]

    def test_a_file_that_the_source_has_no_longer(self, tmp_path):
        rig = Rig(tmp_path, 2 * CHUNK_BYTES_MAX)
        rig.known.clear()
        rig.fetcher.start(rig.meta, LEADER)
        rig.until_settled()
        assert isinstance(rig.failed[0][1], PeerError)
        assert "no such snapshot" in str(rig.failed[0][1])
        assert not rig.fetcher.busy

    def test_a_file_that_vanished_from_the_disk_of_the_source(self, tmp_path):
        rig = Rig(tmp_path, 2 * CHUNK_BYTES_MAX)
        (rig.from_dir / rig.meta.name).unlink()
        rig.fetcher.start(rig.meta, LEADER)
        rig.until_settled()
        assert isinstance(rig.failed[0][1], PeerError)

    def test_parts_of_other_files_are_swept(self, tmp_path):
        rig = Rig(tmp_path, 1000)
        (rig.to_dir / "aa.5.part").write_bytes(b"old")
        rig.fetcher.start(rig.meta, LEADER)
        rig.until_settled()
        rig.assert_whole()


class TestDisk:
    def test_no_room_is_seen_before_the_first_piece(self, tmp_path):
        rig = Rig(tmp_path, 1000)
        rig.fetcher = rig.new_fetcher(free_bytes_min=1 << 60)
        rig.fetcher.start(rig.meta, LEADER)
        assert isinstance(rig.failed[0][1], DiskFull)
        assert rig.requests == []
        assert not rig.fetcher.busy

    @pytest.mark.parametrize(("code", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
    @pytest.mark.parametrize("call", ["pwrite", "fsync"])
    def test_errors_of_the_disk(self, tmp_path, monkeypatch, code, full, call):
        rig = Rig(tmp_path, 3 * CHUNK_BYTES_MAX)
        rig.fetcher.start(rig.meta, LEADER)

        def fail(*args: Any) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, call, fail)
        if full:
            rig.until_settled()
            assert isinstance(rig.failed[0][1], DiskFull)
            assert os.listdir(rig.to_dir) == []
        else:
            with pytest.raises(StorageError):
                rig.until_settled()
        assert rig.fetched == []

    def test_a_short_write_is_gone_on_with(self, tmp_path, monkeypatch):
        rig = Rig(tmp_path, 2 * CHUNK_BYTES_MAX)
        real = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, bytes(data)[:1000], offset))
        rig.fetcher.start(rig.meta, LEADER)
        rig.until_settled()
        rig.assert_whole()

    def test_an_error_of_the_sources_disk_is_the_sources(self, tmp_path, monkeypatch):
        rig = Rig(tmp_path, 1000)
        rig.fetcher.start(rig.meta, LEADER)

        def fail(*args: Any) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(StorageError):
            rig.source.on_request(ME, rig.requests[0])


class TestSource:
    @pytest.mark.parametrize(
        "request_",
        [
            ChunkRequest("../../etc/passwd", b"d" * 32, 0, 10),
            ChunkRequest("/etc/passwd", b"d" * 32, 0, 10),
            ChunkRequest("", b"d" * 32, 0, 10),
            ChunkRequest("a\0b", b"d" * 32, 0, 10),
            ChunkRequest("raft_n1_1_9.dat", b"wrong digest", 0, 10),
            ChunkRequest("unknown.dat", b"d" * 32, 0, 10),
        ],
    )
    def test_hostile_requests_get_no_data(self, tmp_path, request_):
        rig = Rig(tmp_path, 1000)
        rig.source.on_request(ME, request_)
        assert rig.replies[0].data == b""
        assert rig.replies[0].error

    def test_names_are_checked_even_if_somebody_registers_a_hostile_one(self, tmp_path):
        rig = Rig(tmp_path, 1000)
        (tmp_path / "secret").write_bytes(bytes(1000))
        name = "../secret"
        rig.known[name] = rig.meta._replace(name=name)
        rig.source.on_request(ME, ChunkRequest(name, rig.meta.digest, 0, 1000))
        assert rig.replies[0].data == b""
        assert "not a snapshot name" in rig.replies[0].error

    @pytest.mark.parametrize(
        ("offset", "length"), [(1000, 1), (2**61, 1), (0, 0), (0, CHUNK_BYTES_MAX + 1), (0, 2**61)]
    )
    def test_pieces_outside_get_no_data(self, tmp_path, offset, length):
        rig = Rig(tmp_path, 1000)
        rig.source.on_request(ME, ChunkRequest(rig.meta.name, rig.meta.digest, offset, length))
        assert rig.replies[0].data == b""
        assert "outside" in rig.replies[0].error

    def test_a_link_out_of_the_directory_is_not_followed(self, tmp_path):
        rig = Rig(tmp_path, 1000)
        secret = tmp_path / "secret"
        secret.write_bytes(bytes(1000))
        (rig.from_dir / rig.meta.name).unlink()
        (rig.from_dir / rig.meta.name).symlink_to(secret)
        with pytest.raises(StorageError):
            rig.source.on_request(ME, ChunkRequest(rig.meta.name, rig.meta.digest, 0, 10))
        assert rig.replies == []

    def test_bandwidth_is_bounded(self, tmp_path):
        rig = Rig(tmp_path, 40 * CHUNK_BYTES_MAX, bandwidth_bytes=4 * CHUNK_BYTES_MAX)
        rig.fetcher.start(rig.meta, LEADER)
        spent_s = 0.0
        while rig.fetcher._job is None:
            rig.step()
            rig.source.tick()
            rig.clock.s += 0.05
            spent_s += 0.05
        assert 9 < spent_s < 11  # 10 MiB at 1 MiB/s, of the rig's clock
        rig.until_settled()
        rig.assert_whole()

    def test_bandwidth_is_shared_in_turn(self, tmp_path):
        rig = Rig(tmp_path, 10 * CHUNK_BYTES_MAX, bandwidth_bytes=CHUNK_BYTES_MAX)
        served: list[NodeRef] = []
        rig.source._send = lambda to, reply: served.append(to) is None
        for i in range(6):
            for peer in (ME, OTHER):
                rig.source.on_request(
                    peer, ChunkRequest(rig.meta.name, rig.meta.digest, i * CHUNK_BYTES_MAX, CHUNK_BYTES_MAX)
                )
        for _ in range(12):
            rig.clock.s += 1.0
            rig.source.tick()
        assert served.count(ME) == served.count(OTHER) == 6
        assert all(served[i] != served[i + 1] for i in range(1, 9))

    def test_four_times_the_bandwidth_sends_four_times_as_much(self, tmp_path):
        sent = []
        for factor in (1, 4):
            rig = Rig(tmp_path / str(factor), 400 * CHUNK_BYTES_MAX, bandwidth_bytes=factor * CHUNK_BYTES_MAX)
            rig.fetcher.start(rig.meta, LEADER)
            for _ in range(20 * 20):  # 20 s of the rig's clock
                rig.step()
                rig.source.tick()
                rig.clock.s += 0.05
            sent.append(rig.source.sent_bytes)
        assert 3.6 <= sent[1] / sent[0] <= 4.4, sent
        assert sent[0] <= 21 * CHUNK_BYTES_MAX

    @pytest.mark.parametrize("bandwidth_bytes", [8 * 1024, 64 * 1024, CHUNK_BYTES_MAX])
    def test_a_low_bandwidth_sends_each_piece_once(self, tmp_path, bandwidth_bytes):
        """A piece waited longer for its turn than the fetcher for the piece: it was asked for and sent again."""
        rig = Rig(tmp_path, 12 * CHUNK_BYTES_MAX, bandwidth_bytes=bandwidth_bytes)
        rig.fetcher.start(rig.meta, LEADER)
        while rig.fetcher._job is None:
            rig.step()
            rig.source.tick()
            rig.clock.s += 0.5
        assert rig.source.sent_bytes == 12 * CHUNK_BYTES_MAX
        rig.until_settled()
        rig.assert_whole()

    def test_a_slow_line_carries_few_pieces_twice(self, tmp_path):
        """A piece takes longer than the fetcher's first patience: the line filled up with copies of it."""
        rig = Rig(tmp_path, 30 * CHUNK_BYTES_MAX)
        rig.fetcher.start(rig.meta, LEADER)
        line: list[ChunkReply] = []
        rig.step()
        while rig.fetcher._job is None:
            rig.clock.s += 12.0  # of one piece
            requests, rig.requests = rig.requests, []
            for request in requests:
                rig.source.on_request(ME, request)
            line += rig.replies
            rig.replies = []
            if line:
                rig.fetcher.on_reply(LEADER, line.pop(0))
            rig.fetcher.tick()
        assert rig.source.sent_bytes <= 40 * CHUNK_BYTES_MAX
        rig.until_settled()
        rig.assert_whole()

    def test_a_peer_whose_outbox_is_full_spends_no_bandwidth(self, tmp_path):
        rig = Rig(tmp_path, 40 * CHUNK_BYTES_MAX, bandwidth_bytes=CHUNK_BYTES_MAX)
        served: list[NodeRef] = []
        rig.source._send = lambda to, reply: to == OTHER and served.append(to) is None
        for i in range(8):
            for peer in (ME, OTHER):
                rig.source.on_request(
                    peer, ChunkRequest(rig.meta.name, rig.meta.digest, i * CHUNK_BYTES_MAX, CHUNK_BYTES_MAX)
                )
        for _ in range(8):
            rig.clock.s += 1.0
            rig.source.tick()
        assert len(served) == 8

    def test_requests_that_wait_are_bounded(self, tmp_path):
        rig = Rig(tmp_path, 1000, bandwidth_bytes=1)
        for offset in range(1000):
            rig.source.on_request(ME, ChunkRequest(rig.meta.name, rig.meta.digest, offset, 1000 - offset))
        assert len(rig.source._waiting[ME]) <= transfer.REQUESTS_MAX

    def test_files_are_closed_when_idle(self, tmp_path):
        rig = Rig(tmp_path, 1000)
        before = len(os.listdir("/proc/self/fd"))
        rig.source.on_request(ME, ChunkRequest(rig.meta.name, rig.meta.digest, 0, 1000))
        assert len(os.listdir("/proc/self/fd")) == before + 1
        rig.clock.s += transfer.FILE_IDLE_S + 1
        rig.source.tick()
        assert len(os.listdir("/proc/self/fd")) == before

    def test_no_descriptor_is_left_behind(self, tmp_path):
        rig = Rig(tmp_path, 3 * CHUNK_BYTES_MAX)
        before = len(os.listdir("/proc/self/fd"))
        rig.fetcher.start(rig.meta, LEADER)
        rig.until_settled()
        rig.source.close()
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "a\0b", ".hidden", "-rf", "x" * 300, "a.part", "a..b", "é", "a\n", "a b"]
)
def test_names_that_are_not_plain(name):
    with pytest.raises(PeerError, match="not a snapshot name"):
        plain_name(name)


@pytest.mark.parametrize(
    "name", ["raft_n1_1700000000_42.dat", "raft_127.0.0.1:6379_1_2.dat", "raft_[::1]:6379_1_2.dat"]
)
def test_names_that_are_plain(name):
    assert plain_name(name) == name


def test_a_token_bucket_saves_up_little():
    bucket = TokenBucket(1000, 0.0)
    assert bucket.take(200, 100.0)  # a fifth of a second, however long nobody asked
    assert not bucket.take(1, 100.0)
    assert bucket.take(1, 100.01)
    taken = sum(bucket.take(100, 101 + i / 100) for i in range(1000)) * 100
    assert 9_900 <= taken <= 10_400
