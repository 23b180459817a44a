"""What a client says about its own connection: HELLO, AUTH, SELECT, CLIENT ... Nothing of this touches the records.

A handler changes the session; the node encodes the reply afterwards, so that the answer to HELLO 3 is RESP3 already.
`SILENCE` (no bytes at all) is the reply of CLIENT REPLY OFF and SKIP.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Final

from ..errors import CommandError
from ..types import OK, Encoded, Reply, Verbatim
from .args import (
    INT64_MAX,
    SYNTAX,
    Bytes,
    Int,
    Many,
    OneOf,
    Optional,
    integer,
    printable,
)
from .context import LocalContext, SessionPort
from .keyspace import database
from .table import ADMIN, CONNECTION, DANGEROUS, FAST, LOADING, LOCAL, NOAUTH, NOSCRIPT, SLOW, Command, command

REDIS_VERSION: Final = "7.2.4"
SILENCE: Final = Encoded(b"")
NAME_BYTES_MAX: Final = 4096
PONG: Final = Encoded(b"+PONG\r\n")
NAME_ERROR: Final = "ERR {} cannot contain spaces, newlines or special characters."
WRONG_PASSWORD: Final = "WRONGPASS invalid username-password pair or user is disabled."
NO_PASSWORD_SET: Final = (
    "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration "
    "is correct?"
)
HELLO_FIRST: Final = (
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> "
    "option can be used to authenticate the client and select the RESP protocol version at the same time"
)

TALK: Final = LOCAL | FAST | LOADING | CONNECTION
CLIENT: Final = LOCAL | NOSCRIPT | LOADING | CONNECTION
CLIENT_ADMIN: Final = CLIENT | ADMIN | DANGEROUS


@command("PING", Optional(Bytes("message")), flags=TALK, group="connection", summary="Is the node there?", words_max=2)
def ping(ctx: LocalContext, message: bytes | None) -> Reply:
    return PONG if message is None else message


@command("ECHO", Bytes("message"), flags=TALK, group="connection", summary="Send the message back")
def echo(ctx: LocalContext, message: bytes) -> Reply:
    return message


@command(
    "QUIT",
    Many(Bytes("ignored"), least=0),
    flags=TALK | NOAUTH | NOSCRIPT,
    group="connection",
    summary="Close the connection",
)
def quit_(ctx: LocalContext, _ignored: list[bytes]) -> Reply:
    """The node closes the connection behind this reply."""
    return OK


@command(
    "RESET",
    flags=TALK | NOAUTH | NOSCRIPT,
    since="6.2.0",
    group="connection",
    summary="Bring this connection back to its first state",
)
def reset(ctx: LocalContext) -> Reply:
    ctx.session.reset(consistency=ctx.server.default_consistency())
    ctx.session.authenticated = not ctx.server.password_required()
    ctx.session.user = "default"
    return "RESET"


@command(
    "SELECT",
    Bytes("index", "integer"),
    flags=TALK,
    group="connection",
    summary="Choose the database of this connection, 0 to 15",
)
def select(ctx: LocalContext, index: bytes) -> Reply:
    ctx.session.db = database(index)
    return OK


# --- authentication ---------------------------------------------------------------------------------------------------


def _authenticate(ctx: LocalContext, user: bytes, password: bytes) -> None:
    """Raises CommandError (WRONGPASS) when the pair is wrong. Without a password set, `default` may say anything."""
    if (ctx.server.password_required() or user != b"default") and not ctx.server.authenticate(user, password):
        raise CommandError(WRONG_PASSWORD)
    ctx.session.authenticated = True
    ctx.session.user = user.decode("utf-8", "replace")


@command(
    "AUTH",
    Bytes("username"),
    Optional(Bytes("password")),
    flags=TALK | NOAUTH | NOSCRIPT,
    group="connection",
    summary="Prove who the client is",
    words_max=3,
)
def auth(ctx: LocalContext, first: bytes, second: bytes | None) -> Reply:
    """AUTH password, or AUTH user password."""
    if second is not None:
        _authenticate(ctx, first, second)
        return OK
    if not ctx.server.password_required():
        raise CommandError(NO_PASSWORD_SET)
    _authenticate(ctx, b"default", first)
    return OK


def _hello_options(words: list[bytes]) -> tuple[tuple[bytes, bytes] | None, bytes | None]:
    credentials, name, at = None, None, 0
    while at < len(words):
        word, left = words[at].upper(), len(words) - at - 1
        if word == b"AUTH" and left >= 2:
            credentials = (words[at + 1], words[at + 2])
            at += 3
        elif word == b"SETNAME" and left >= 1:
            name = _checked_name(words[at + 1], "Client names")
            at += 2
        else:
            raise CommandError(f"ERR Syntax error in HELLO option '{printable(words[at])}'")
    return credentials, name


@command(
    "HELLO",
    Optional(Bytes("protover", "integer")),
    Many(Bytes("option"), least=0),
    flags=TALK | NOAUTH | NOSCRIPT,
    since="6.0.0",
    group="connection",
    summary="Agree on the protocol, and log in if asked to",
)
def hello(ctx: LocalContext, version: bytes | None, words: list[bytes]) -> Reply:
    """HELLO [2|3 [AUTH user password] [SETNAME name]]."""
    session = ctx.session
    protocol = session.protocol
    if version is not None:
        protocol = integer(version, "ERR Protocol version is not an integer or out of range")
        if protocol not in (2, 3):
            raise CommandError("NOPROTO unsupported protocol version")
    credentials, name = _hello_options(words)
    if credentials is not None:
        _authenticate(ctx, *credentials)
    if not session.authenticated:
        raise CommandError(HELLO_FIRST)
    if name is not None:
        session.name = name
    session.protocol = protocol
    return {
        b"server": b"redis",
        b"version": REDIS_VERSION.encode(),
        b"proto": protocol,
        b"id": session.id,
        b"mode": b"standalone",
        b"role": b"master" if ctx.server.role().leader else b"replica",
        b"modules": [],
    }


# --- CLIENT -----------------------------------------------------------------------------------------------------------


def _checked_name(name: bytes, what: str) -> bytes:
    """Printable ASCII without spaces, so that CLIENT LIST stays one line per client. Raises CommandError."""
    if len(name) > NAME_BYTES_MAX:
        raise CommandError(f"ERR {what} cannot be longer than {NAME_BYTES_MAX} bytes.")
    if any(byte < 0x21 or byte > 0x7E for byte in name):
        raise CommandError(NAME_ERROR.format(what))
    return name


@command("CLIENT ID", flags=CLIENT, since="5.0.0", group="connection", summary="The number of this connection")
def client_id(ctx: LocalContext) -> Reply:
    return ctx.session.id


@command("CLIENT GETNAME", flags=CLIENT, since="2.6.9", group="connection", summary="The name of this connection")
def client_getname(ctx: LocalContext) -> Reply:
    return ctx.session.name or None


@command(
    "CLIENT SETNAME",
    Bytes("connection-name"),
    flags=CLIENT,
    since="2.6.9",
    group="connection",
    summary="Name this connection",
)
def client_setname(ctx: LocalContext, name: bytes) -> Reply:
    ctx.session.name = _checked_name(name, "Client names")
    return OK


@command(
    "CLIENT SETINFO",
    Bytes("attribute"),
    Bytes("value"),
    flags=CLIENT,
    since="7.2.0",
    group="connection",
    summary="Tell the name and version of the client library",
)
def client_setinfo(ctx: LocalContext, attribute: bytes, value: bytes) -> Reply:
    option = attribute.lower()
    if option == b"lib-name":
        ctx.session.lib_name = _checked_name(value, "lib-name")
    elif option == b"lib-ver":
        ctx.session.lib_version = _checked_name(value, "lib-ver")
    else:
        raise CommandError(f"ERR Unrecognized option '{printable(attribute)}'")
    return OK


def describe(session: SessionPort, now_s: float) -> str:
    """The line of one client in CLIENT LIST. Figures that raftdb does not keep are left out or 0."""
    flags = "".join(flag for flag, on in (("x", session.in_multi), ("r", session.readonly)) if on) or "N"
    fields: dict[str, Any] = {
        "id": session.id,
        "addr": session.address,
        "laddr": session.laddr,
        "fd": -1,
        "name": session.name.decode(),
        "age": int(now_s - session.connected_s),
        "idle": int(now_s - session.last_command_s),
        "flags": flags,
        "db": session.db,
        "sub": 0,
        "psub": 0,
        "ssub": 0,
        "multi": len(session.queue) if session.in_multi else -1,
        "multi-mem": session.queued_bytes,
        "events": "r",
        "cmd": session.last_command.decode("utf-8", "replace").lower() or "NULL",
        "user": session.user,
        "redir": -1,
        "resp": session.protocol,
        "lib-name": session.lib_name.decode(),
        "lib-ver": session.lib_version.decode(),
        "tot-cmds": session.commands,
    }
    return " ".join(f"{name}={value}" for name, value in fields.items())


@command(
    "CLIENT INFO",
    flags=CLIENT,
    since="6.2.0",
    group="connection",
    summary="The line of CLIENT LIST about this connection",
)
def client_info(ctx: LocalContext) -> Reply:
    return Verbatim(describe(ctx.session, ctx.server.monotonic_s()) + "\n")


def _client_type(token: bytes) -> str:
    kind = printable(token)
    if kind.lower() not in ("normal", "master", "replica", "slave", "pubsub"):
        raise CommandError(f"ERR Unknown client type '{kind}'")
    return kind.lower()


@command(
    "CLIENT LIST",
    Many(Bytes("filter"), least=0),
    flags=CLIENT_ADMIN | SLOW,
    since="2.4.0",
    group="connection",
    summary="One line per connection to this node",
)
def client_list(ctx: LocalContext, words: list[bytes]) -> Reply:
    """CLIENT LIST [TYPE kind | ID id ...]."""
    sessions = sorted(ctx.server.sessions(), key=lambda session: session.id)
    if words and words[0].upper() == b"TYPE" and len(words) == 2:
        sessions = sessions if _client_type(words[1]) == "normal" else []
    elif words and words[0].upper() == b"ID" and len(words) >= 2:
        wanted = {integer(word, "ERR Invalid client ID") for word in words[1:]}
        sessions = [session for session in sessions if session.id in wanted]
    elif words:
        raise CommandError(SYNTAX)
    now_s = ctx.server.monotonic_s()
    return Verbatim("".join(describe(session, now_s) + "\n" for session in sessions))


def _kill_filters(words: list[bytes]) -> dict[str, Any]:
    if len(words) % 2:
        raise CommandError(SYNTAX)
    filters: dict[str, Any] = {"SKIPME": True}
    for option, value in zip(words[::2], words[1::2], strict=True):
        name = option.upper().decode("latin-1")
        text = printable(value)
        if name == "ID":
            filters[name] = integer(value, "ERR client-id should be greater than 0")
            if filters[name] <= 0:
                raise CommandError("ERR client-id should be greater than 0")
        elif name == "TYPE":
            filters[name] = _client_type(value)
        elif name == "USER":
            if text != "default":
                raise CommandError(f"ERR No such user '{text}'")
            filters[name] = text
        elif name in ("ADDR", "LADDR"):
            filters[name] = text
        elif name == "SKIPME" and text.lower() in ("yes", "no"):
            filters[name] = text.lower() == "yes"
        else:
            raise CommandError(SYNTAX)
    return filters


def _matches(session: SessionPort, filters: dict[str, Any]) -> bool:
    return bool(
        filters.get("ID", session.id) == session.id
        and filters.get("ADDR", session.address) == session.address
        and filters.get("LADDR", session.laddr) == session.laddr
        and filters.get("TYPE", "normal") == "normal"
        and filters.get("USER", session.user) == session.user
    )


@command(
    "CLIENT KILL",
    Many(Bytes("filter")),
    flags=CLIENT_ADMIN,
    since="2.4.0",
    group="connection",
    summary="Close connections to this node",
)
def client_kill(ctx: LocalContext, words: list[bytes]) -> Reply:
    """CLIENT KILL addr, or CLIENT KILL [ID n] [ADDR a] [LADDR a] [TYPE t] [USER u] [SKIPME yes|no]."""
    if len(words) == 1:
        filters: dict[str, Any] = {"ADDR": printable(words[0]), "SKIPME": False}
    else:
        filters = _kill_filters(words)
    own = ctx.session.id
    victims = [s.id for s in ctx.server.sessions() if _matches(s, filters) and not (filters["SKIPME"] and s.id == own)]
    killed = sum(1 for victim in victims if ctx.server.kill_session(victim))
    if len(words) > 1:
        return killed
    if not killed:
        raise CommandError("ERR No such client")
    return OK


@command(
    "CLIENT REPLY",
    OneOf("ON", "OFF", "SKIP"),
    flags=CLIENT,
    since="3.2.0",
    group="connection",
    summary="Switch replies to this connection off, or on again",
)
def client_reply(ctx: LocalContext, mode: str) -> Reply:
    ctx.session.reply_mode = mode.lower()
    return OK if mode == "ON" else SILENCE


@command(
    "CLIENT PAUSE",
    Bytes("timeout", "integer"),
    Optional(OneOf("WRITE", "ALL", name="mode")),
    flags=CLIENT_ADMIN,
    since="3.0.0",
    group="connection",
    summary="Hold commands back for some milliseconds",
    words_max=4,
)
def client_pause(ctx: LocalContext, timeout: bytes, mode: str | None) -> Reply:
    error = "ERR timeout is not an integer or out of range"
    span_ms = integer(timeout, error)
    if span_ms < 0:
        raise CommandError("ERR timeout is negative")
    until_ms = ctx.server.now_us() // 1000 + span_ms
    if until_ms > INT64_MAX:
        raise CommandError(error)
    ctx.server.pause_clients(until_ms, mode == "WRITE")
    return OK


@command(
    "CLIENT UNPAUSE",
    flags=CLIENT_ADMIN,
    since="6.2.0",
    group="connection",
    summary="End CLIENT PAUSE",
)
def client_unpause(ctx: LocalContext) -> Reply:
    ctx.server.unpause_clients()
    return OK


@command(
    "CLIENT UNBLOCK",
    Int("client-id"),
    Optional(OneOf("TIMEOUT", "ERROR", name="mode", error="ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")),
    flags=CLIENT_ADMIN,
    since="5.0.0",
    group="connection",
    summary="End the wait of a blocked connection",
    words_max=4,
)
def client_unblock(ctx: LocalContext, session_id: int, mode: str | None) -> Reply:
    return int(ctx.server.unblock_client(session_id, mode == "ERROR"))


@command(
    "CLIENT NO-EVICT",
    OneOf("ON", "OFF", name="enabled"),
    flags=CLIENT_ADMIN,
    since="7.0.0",
    group="connection",
    summary="Accepted for clients that send it; nobody is evicted",
)
def client_no_evict(ctx: LocalContext, mode: str) -> Reply:
    ctx.session.no_evict = mode == "ON"
    return OK


@command(
    "CLIENT NO-TOUCH",
    OneOf("ON", "OFF", name="enabled"),
    flags=CLIENT,
    since="7.2.0",
    group="connection",
    summary="Accepted for clients that send it; reads leave no trace anyway",
)
def client_no_touch(ctx: LocalContext, mode: str) -> Reply:
    ctx.session.no_touch = mode == "ON"
    return OK


@command(
    "CLIENT MAINT_NOTIFICATIONS",
    OneOf("ON", "OFF", name="enabled"),
    Many(Bytes("option"), least=0),
    flags=CLIENT,
    since="8.2.0",
    group="connection",
    summary="Accepted for clients that send it; nothing is pushed: every node forwards, so a hand-over fails nobody",
)
def client_maint_notifications(ctx: LocalContext, mode: str, _options: list[bytes]) -> Reply:
    ctx.session.maintenance = mode == "ON"
    return OK


@command(
    "CLIENT TRACKINGINFO",
    flags=CLIENT,
    since="6.2.0",
    group="connection",
    summary="Always off: client side caching is not offered",
)
def client_trackinginfo(ctx: LocalContext) -> Reply:
    """Client side caching is not offered: always off."""
    return {b"flags": [b"off"], b"redirect": -1, b"prefixes": []}


@command(
    "CLIENT GETREDIR",
    flags=CLIENT,
    since="6.0.0",
    group="connection",
    summary="Always -1: client side caching is not offered",
)
def client_getredir(ctx: LocalContext) -> Reply:
    return -1


# --- reads on a replica -----------------------------------------------------------------------------------------------


@command("READONLY", flags=TALK, since="3.0.0", group="cluster", summary="Read from this node, at any age")
def readonly(ctx: LocalContext) -> Reply:
    ctx.session.readonly = True
    return OK


@command("READWRITE", flags=TALK, since="3.0.0", group="cluster", summary="Undo READONLY")
def readwrite(ctx: LocalContext) -> Reply:
    ctx.session.readonly = False
    return OK


def _commands() -> Iterator[Command]:
    talk = (ping, echo, quit_, reset, select, auth, hello, readonly, readwrite)
    about = (client_id, client_getname, client_setname, client_setinfo, client_info, client_list, client_trackinginfo)
    control = (client_kill, client_reply, client_pause, client_unpause, client_unblock, client_getredir)
    modes = (client_no_evict, client_no_touch, client_maint_notifications)
    return itertools.chain(talk, about, control, modes)


COMMANDS: list[Command] = list(_commands())
