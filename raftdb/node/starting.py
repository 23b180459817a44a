"""What happens before a node speaks: ports, the cluster's secret, the data directory.

The order is chosen so that a mistake touches nothing: first the settings are looked at, then the ports are bound, then
the secret is read, and only then is a data directory opened or made.

    no -e, no data      a cluster of one
    -l FILE, no data    a cluster of one that starts from this snapshot
    data                what the directory says; -e only helps to find the others
    -e, no data         forming.py: join a formed cluster, or form a new one when everybody listed has no data either
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from raftdb.config import Config, join_address, peer_address, split_address
from raftdb.errors import Damaged, StorageError, UsageError
from raftdb.node import forerunner
from raftdb.node.recovering import check_finished
from raftdb.storage import snapshot
from raftdb.storage.datadir import DataDir, check_place, read_identity
from raftdb.storage.snapshot import Progress
from raftdb.types import Member, Membership

if TYPE_CHECKING:
    from raftdb.net.server import Server
    from raftdb.node.peering import Peering

log = logging.getLogger("raftdb.start")

PORT_TRIES: Final = 50  # for port 0: a free port whose successor is free, too
SECRET_BYTES: Final = 32


# --- ports ----------------------------------------------------------------------------------------------------------


def check_protected(config: Config) -> None:
    """Protected mode: beyond loopback only with a password and a secret file. Raises UsageError."""
    if not config.protected_mode or _is_loopback(config.bind or config.host):
        return
    if not config.requirepass:
        raise UsageError(
            f"{config.bind or config.host} is not a loopback address: set --requirepass, or switch protection off with "
            "--protected-mode no"
        )
    if not config.cluster_secret_file:
        raise UsageError(
            f"{config.bind or config.host} is not a loopback address: name the cluster's secret with "
            "--cluster-secret-file, or switch protection off with --protected-mode no"
        )


def warn_unprotected(config: Config) -> None:
    """One line for who has switched the protection off beyond loopback."""
    if not config.protected_mode and not config.requirepass and not _is_loopback(config.bind or config.host):
        log.warning("protected mode is off: whoever reaches %s can read and change everything", config.address)


def _is_loopback(host: str) -> bool:
    if host in ("localhost", ""):
        return host == "localhost"
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def listen(config: Config, server: Server) -> Config:
    """Take the client port and make sure that the peers' port is free. Returns the settings with the real port.

    Raises UsageError that says which port it is, and whose.
    """
    host = config.bind or config.host
    wanted = config.port
    for attempt in range(PORT_TRIES):
        port = wanted or _free_pair(host)
        try:
            _check_free(host, port)
            _check_free(host, port + 1)
            server.listen(host, port)
        except OSError as error:
            if wanted or attempt == PORT_TRIES - 1 or error.errno != errno.EADDRINUSE:
                raise UsageError(_why_not(config, host, port, error)) from None
            continue
        break
    if wanted:
        return config
    address = join_address(config.host, port)
    return _replace(config, address=address, node_id=config.node_id or address)


def _free_pair(host: str) -> int:
    with socket.create_server((host, 0), family=_family(host)) as probe:
        port: int = probe.getsockname()[1]
        return min(port, 65_534)


def _check_free(host: str, port: int) -> None:
    """Raises OSError, with the port in `filename`, when nothing could listen there."""
    try:
        socket.create_server((host, port), family=_family(host)).close()
    except OSError as error:
        error.filename = str(port)
        raise


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _why_not(config: Config, host: str, port: int, error: OSError) -> str:
    if str(error.filename) == str(port + 1):
        return (
            f"cannot listen on {join_address(host, port + 1)}, the peers' port of node {config.own_id} "
            f"(its client port + 1): {_reason(error)}"
        )
    return f"cannot listen on {join_address(host, port)}: {_reason(error)}"


def _reason(error: OSError) -> str:
    """The system's own words, without what the socket module adds."""
    return os.strerror(error.errno) if error.errno and not isinstance(error, socket.gaierror) else str(error)


def _replace(config: Config, **changes: object) -> Config:
    from dataclasses import replace

    return replace(config, **changes)  # type: ignore[arg-type]


# --- the secret -----------------------------------------------------------------------------------------------------


def cluster_secret(config: Config) -> bytes:
    """The bytes of the secret file; the first node makes it. Raises UsageError."""
    path = config.own_secret_file
    try:
        return _read_secret(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(f"cluster secret {path}: {error.strerror or error}") from None
    if config.cluster_secret_file or _others_elsewhere(config):
        raise UsageError(
            f"no cluster secret at {path}: copy it from another node of the cluster (it stands beside that node's data "
            "directory) and name it with --cluster-secret-file"
        )
    return _make_secret(path)


def _read_secret(path: Path) -> bytes:
    secret = path.read_bytes().strip()
    if not 16 <= len(secret) <= 4096:
        raise UsageError(f"cluster secret {path}: expected 16 to 4096 bytes")
    if path.stat().st_mode & 0o077:
        log.warning("cluster secret %s can be read by other users: chmod 600 it", path)
    return secret


def _others_elsewhere(config: Config) -> bool:
    """Does -e name a node that is not on this machine? Then a secret of our own would only be refused there."""
    for entry in config.ensemble.split(","):
        address = entry.rpartition("/")[2].strip()
        if address and not _is_loopback(split_address(address)[0]):
            return True
    return False


def _make_secret(path: Path) -> bytes:
    """Written aside, then linked: two nodes that start at once agree on one of the two. Raises UsageError."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, secrets.token_hex(SECRET_BYTES).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(aside, path)
            log.info("made the cluster's secret: %s", path)
        except FileExistsError:
            log.debug("another node made the cluster's secret at the same moment")
        finally:
            os.unlink(aside)
        return _read_secret(path)
    except OSError as error:
        raise UsageError(f"cluster secret {path}: {error.strerror or error}") from None


# --- the data directory ---------------------------------------------------------------------------------------------


def own_member(config: Config, incarnation: int, voter: bool) -> Member:
    return Member(config.own_id, incarnation, config.address, peer_address(config.address), voter)


def create_alone(config: Config, progress: Progress = lambda _: None) -> None:
    """A cluster of one. Raises UsageError or StorageError; nothing stands under the final name before it is whole."""
    incarnation = secrets.randbits(64)
    with _source(config, progress) as (file, digest):
        try:
            DataDir.create(
                config.own_data_dir,
                node_id=config.own_id,
                cluster_id=secrets.token_hex(16),
                incarnation=incarnation,
                membership=Membership(0, (own_member(config, incarnation, voter=True),)),
                snapshot=file,
                source_digest=digest,
                map_size_bytes=config.map_size_bytes or None,
                progress=progress,
            )
        except Damaged as error:
            if file is None:
                raise
            raise UsageError(f"{config.load} is damaged: {error}") from None


@contextlib.contextmanager
def _source(config: Config, progress: Progress) -> Iterator[tuple[Path | None, str]]:
    """The snapshot that -l means (made from pyraft's text, if it is that), and the digest of such a text."""
    if not config.load:
        yield None, ""
    elif not forerunner.is_checkpoint(Path(config.load)):
        yield Path(config.load), ""
    else:
        work = config.own_data_dir.absolute()
        work = work.with_name(f".{work.name}.import")
        with forerunner.converted(Path(config.load), work, config.own_id, progress) as found:
            yield found


def create_member(config: Config, incarnation: int, cluster_id: str, members: tuple[Member, ...]) -> None:
    """What forming.py has decided. Durable when it returns."""
    DataDir.create(
        config.own_data_dir,
        node_id=config.own_id,
        cluster_id=cluster_id,
        incarnation=incarnation,
        membership=Membership(0, tuple(sorted(members))),
    )


def check_loaded(config: Config) -> None:
    """There is data and -l: fine if it came from this very file. Raises UsageError."""
    path = Path(config.load)
    try:
        digest = forerunner.digest(path) if forerunner.is_checkpoint(path) else snapshot.file_digest(path).hex()
    except Damaged as error:
        raise UsageError(f"{path} is damaged: {error}") from None
    if read_identity(config.own_data_dir).source_digest != digest:
        raise UsageError(f"{config.own_data_dir} holds other data than {config.load}: -l starts a new cluster only")
    log.info("%s came from %s: -l is ignored", config.own_data_dir, config.load)


def has_data(config: Config) -> bool:
    """Is there a data directory? Raises UsageError for half of one, or one that cannot be used; for -l without a file.

    With -o and -e half a directory is moved aside: the node joins anew and replaces its former self.
    """
    path = config.own_data_dir
    check_place(path, config.map_size_bytes or None)
    if config.load and not os.access(config.load, os.R_OK):
        raise UsageError(
            f"-l {config.load}: {os.strerror(errno.EACCES if os.path.exists(config.load) else errno.ENOENT)}"
        )
    try:
        return DataDir.exists(path)
    except UsageError:
        if not (config.overwrite and config.ensemble and (path / "identity").exists() != (path / "log").exists()):
            raise
    aside = path.with_name(f"{path.name}.old-{int(time.time())}")
    os.rename(path, aside)
    log.warning("half a data directory: moved to %s, this node joins anew (-o)", aside)
    return False


def listen_for_peers(config: Config, peering: Peering) -> None:
    """Raises UsageError."""
    try:
        peering.listen()
    except OSError as error:
        host = config.bind or config.host
        error.filename = str(config.port + 1)
        raise UsageError(_why_not(config, host, config.port, error)) from None


def open_data(config: Config) -> DataDir:
    """Open what is there. Raises UsageError (also when it belongs to another id) or StorageError."""
    check_finished(config.own_data_dir)
    try:
        data = DataDir.open(
            config.own_data_dir,
            map_size_bytes=config.map_size_bytes or None,
            readers_max=512,
            kv_sync_always=config.kv_sync == "always",
        )
    except Damaged as error:
        raise StorageError(f"{error}; what can be done: raftdb check -d {config.own_data_dir}") from error
    if data.identity.node_id != config.own_id:
        found = data.identity.node_id
        data.close(clean=data.was_clean)
        raise UsageError(
            f"{config.own_data_dir} holds the data of node {found!r}, not of {config.own_id!r}: give -i {found}"
        )
    return data
