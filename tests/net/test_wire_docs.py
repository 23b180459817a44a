"""docs/peer-protocol.md says what the code does: the worked example, the codes and the limits."""

from __future__ import annotations

import re
from pathlib import Path

from raftdb.consensus.messages import MESSAGES, Heartbeat
from raftdb.net.handshake import Handshake, Side, cluster_key
from raftdb.net.wire import CONSENSUS_CODE, TYPES, Codec, FrameWriter, Ping

PAGE = (Path(__file__).parents[2] / "docs" / "peer-protocol.md").read_text()
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20}


def test_the_worked_example_is_what_the_code_does():
    key = cluster_key(b"correct horse battery staple")
    dialer = Handshake(Side.DIALER, key, "n1", bytes(range(32)))
    acceptor = Handshake(Side.ACCEPTOR, key, "n2", bytes(range(32, 64)))
    hello_d = dialer.start()
    hello_a = acceptor.receive(hello_d)
    proof_d = dialer.receive(hello_a)
    proof_a = acceptor.receive(proof_d)
    dialer.receive(proof_a)
    values = {
        "K": key,
        "hello_d": hello_d,
        "hello_a": hello_a,
        "proof_d": proof_d,
        "proof_a": proof_a,
        "key d>a": dialer.keys.send,
        "key a>d": dialer.keys.receive,
    }
    told = dict(re.findall(r"^(K|hello_.|proof_.|key .>.) +([0-9a-f]{64,})$", PAGE, re.MULTILINE))
    assert told == {name: value.hex() for name, value in values.items()}
    codec, writer = Codec(), FrameWriter(dialer.keys.send)
    frames = [
        writer.frame(*codec.dump(message))
        for message in (Ping(1_000_000, 1_700_000_000_000), Heartbeat(3, 1, 10, 1_700_000_000_000, None))
    ]
    shown = re.findall(r"^([0-9a-f]{8} [0-9a-f]{2} +00 +[0-9a-f]{16} [0-9a-f ]+)$", PAGE, re.MULTILINE)
    assert [line.replace(" ", "") for line in shown] == [frame.hex() for frame in frames]


def test_the_table_of_messages_is_complete_and_true():
    rows = re.findall(
        r"^\| ([0-9, ]+) \| ([A-Za-z, ]+) \| ([0-9A-Za-z, ]+) \| (\w+) \| (yes)? ?\|$", PAGE, re.MULTILINE
    )
    told = {}
    for codes, names, sizes, lane, common in rows:
        for i, (code, name) in enumerate(zip(codes.split(", "), names.split(", "), strict=True)):
            count, unit = (sizes.split(", ") * 2)[i if ", " in sizes else 0].split()
            told[int(code)] = (name, int(count) * UNITS[unit], lane == "urgent", common == "yes")
    assert told == {
        code: (row.cls.__name__, row.bytes_max, row.urgent, row.members_only)
        for code, row in TYPES.items()
        if code < CONSENSUS_CODE
    }
    bulk = {cls.__name__ for cls in MESSAGES if not TYPES[CONSENSUS_CODE + MESSAGES.index(cls)].urgent}
    assert bulk == {"Append", "SnapshotOffer", "TimeoutNow"}
