"""`raftdb status`: one table of a cluster, asked from any of its nodes.

The node that is asked names the members; each member is then asked for itself, at the same time, with a short
time-out, since one that hangs must not hide the others. What only the leader knows (how far the others are behind)
comes from the leader's own answer. Nothing here needs more than `INFO raft` over the Redis protocol.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import hiredis

from raftdb.config import split_address
from raftdb.errors import CommandError, RaftdbError

CONNECT_TIMEOUT_S: Final = 2.0
REPLY_BYTES_MAX: Final = 1 << 20
MEMBERS_MAX: Final = 64


class Unreachable(RaftdbError):
    """Nobody answers at this address; the text says why."""


class MemberStatus(NamedTuple):
    """One row. None: not known."""

    id: str
    address: str
    role: str  # leader, follower, candidate, learner; "unreachable: ..." when it did not answer
    voter: bool
    is_reachable: bool
    term: int | None
    last_index: int | None
    commit_index: int | None
    applied_index: int | None
    lag_entries: int | None  # behind the leader's last entry, as the leader knows
    lag_ms: int | None  # age of the first entry that the leader does not know to be there
    contact_ms: int | None  # since the leader heard of it
    flush_us: int | None  # mean of a log flush


class ClusterStatus(NamedTuple):
    cluster_id: str
    leader_id: str  # "": none is known
    term: int
    failures_survivable: int  # how many more voters may be lost without losing the majority; -1: it is lost now
    members: tuple[MemberStatus, ...]


# --- asking -----------------------------------------------------------------------------------------------------------


def ask(address: str, password: str, *words: str, timeout_s: float = CONNECT_TIMEOUT_S) -> Any:
    """One command to one node; its reply. Raises Unreachable, or CommandError for an error reply."""
    host, port = split_address(address)
    reader = hiredis.Reader(encoding="utf-8", errors="replace")
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.settimeout(timeout_s)
            if password:
                # (hiredis' stub knows only commands of one word)
                connection.sendall(hiredis.pack_command(("AUTH", password)))  # type: ignore[arg-type]
                _reply(connection, reader)
            connection.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]
            return _reply(connection, reader)
    except (OSError, hiredis.HiredisError) as error:
        raise Unreachable(
            f"{address}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"
        ) from None


def _reply(connection: socket.socket, reader: hiredis.Reader) -> Any:
    received = 0
    while True:
        reply = reader.gets()
        if reply is not False:
            if isinstance(reply, hiredis.ReplyError):
                raise CommandError(str(reply))
            return reply
        data = connection.recv(65_536)
        received += len(data)
        if not data or received > REPLY_BYTES_MAX:
            raise OSError("the connection was closed" if not data else "the reply is too long")
        reader.feed(data)


def raft_section(address: str, password: str) -> dict[str, str]:
    """The lines of INFO raft, without their `raft_`. Raises Unreachable, CommandError."""
    text = ask(address, password, "INFO", "raft")
    found = {}
    for line in str(text).splitlines():
        name, colon, value = line.partition(":")
        if colon and name.startswith("raft_"):
            found[name.removeprefix("raft_")] = value
    if "role" not in found:
        raise Unreachable(f"{address}: not a raftdb node")
    return found


def peer_rows(section: dict[str, str]) -> Iterator[dict[str, str]]:
    """The raft_peer<n> lines, each `name=value,...`."""
    for name, value in section.items():
        if name.startswith("peer") and name[4:].isdigit():
            yield dict(part.split("=", 1) for part in value.split(",") if "=" in part)


# --- putting together -------------------------------------------------------------------------------------------------


def cluster_status(address: str, password: str = "") -> ClusterStatus:
    """Ask `address`, then everybody it names. Raises Unreachable or CommandError when `address` does not answer."""
    asked = raft_section(address, password)
    rows = list(peer_rows(asked))[:MEMBERS_MAX]
    addresses = {row["id"]: row.get("addr", "") for row in rows}
    answers: dict[str, dict[str, str] | str] = {asked.get("node_id", ""): asked}
    others = [(node_id, where) for node_id, where in addresses.items() if node_id not in answers]
    with ThreadPoolExecutor(max_workers=max(1, len(others))) as pool:
        for (node_id, _), answer in zip(others, pool.map(lambda o: _try(o[1], password), others), strict=True):
            answers[node_id] = answer
    leader = _newest_leader(answers)
    lag = {row["id"]: row for row in peer_rows(leader)} if leader else {}
    members = tuple(_member(row, answers.get(row["id"], "unknown"), lag.get(row["id"], {})) for row in rows)
    voters = [member for member in members if member.voter]
    alive = sum(member.is_reachable and member.role != "candidate" for member in voters) if leader else 0
    return ClusterStatus(
        asked.get("cluster_id", ""),
        leader.get("node_id", "") if leader else "",
        max((int(answer.get("term", 0)) for answer in answers.values() if isinstance(answer, dict)), default=0),
        max(alive - (len(voters) // 2 + 1), -1),
        members,
    )


def _try(address: str, password: str) -> dict[str, str] | str:
    try:
        return raft_section(address, password)
    except (Unreachable, CommandError) as error:
        return str(error).removeprefix(f"{address}: ")


def _newest_leader(answers: dict[str, dict[str, str] | str]) -> dict[str, str] | None:
    leaders = [answer for answer in answers.values() if isinstance(answer, dict) and answer["role"] == "leader"]
    return max(leaders, key=lambda answer: int(answer.get("term", 0)), default=None)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.lstrip("-").isdigit() else None


def _member(row: dict[str, str], answer: dict[str, str] | str, lag: dict[str, str]) -> MemberStatus:
    own = answer if isinstance(answer, dict) else {}
    return MemberStatus(
        row["id"],
        row.get("addr", ""),
        own.get("role") or f"unreachable: {answer}",
        row.get("voter", "").lower() in ("true", "yes", "1"),
        bool(own),
        _number(own.get("term")),
        _number(own.get("last_index")),
        _number(own.get("commit_index")),
        _number(own.get("applied_index")),
        _number(lag.get("lag")),
        _number(lag.get("lag_ms")),
        _number(lag.get("contact_ms")),
        _number(own.get("flush_mean_us")),
    )


# --- showing ----------------------------------------------------------------------------------------------------------


def as_data(status: ClusterStatus) -> dict[str, Any]:
    """For --json."""
    return {**status._asdict(), "members": [member._asdict() for member in status.members]}


def headline(status: ClusterStatus) -> str:
    if not status.leader_id:
        return f"cluster {status.cluster_id or '(not formed)'}: no leader"
    survives = {-1: "the majority is lost", 0: "survives no further failure", 1: "survives 1 failure"}
    able = survives.get(status.failures_survivable, f"survives {status.failures_survivable} failures")
    return f"cluster {status.cluster_id}: leader {status.leader_id} in term {status.term}, {able}"


def table(status: ClusterStatus) -> Any:
    """A rich table. In 80 columns nothing is cut off: long addresses and reasons go on in the next line."""
    from rich.table import Table

    result = Table(title=headline(status), title_justify="left", box=None, header_style="bold", pad_edge=False)
    result.padding = (0, 1, 0, 0)
    for name in ("node", "address", "role", "vote"):
        result.add_column(name, overflow="fold")
    for name in ("term", "last", "commit", "applied", "lag", "lag\nms", "heard\nms", "flush\nus"):
        result.add_column(name, justify="right", no_wrap=True)
    for member in status.members:
        numbers = (
            member.term,
            member.last_index,
            member.commit_index,
            member.applied_index,
            member.lag_entries,
            member.lag_ms,
            member.contact_ms,
            member.flush_us,
        )
        style = "green" if member.role == "leader" else "" if member.is_reachable else "red"
        vote = "yes" if member.voter else "no"
        cells = ["-" if number is None else str(number) for number in numbers]
        result.add_row(member.id, member.address, member.role, vote, *cells, style=style)
    return result


def watch(
    fetch: Callable[[], ClusterStatus],
    every_s: float,
    rounds: int | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Redraw the table until interrupted (or for `rounds`). An address that does not answer is shown, not fatal."""
    from rich.live import Live
    from rich.text import Text

    with Live(refresh_per_second=4, transient=False) as live:
        while rounds is None or rounds > 0:
            try:
                live.update(table(fetch()))
            except (Unreachable, CommandError) as error:
                live.update(Text(f"no answer: {error}", style="red"))
            rounds = None if rounds is None else rounds - 1
            pause(every_s)
