"""The programs under examples/, run as a person would run them, and the readme's programs of the forerunner."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from tests.e2e.processes import wait_for
from tests.sources import ROOT

from .programs import leader_of, programs

EXAMPLES = ROOT / "examples"

#: The forerunner's readme, as it stands but for the import (and a shorter sleep, so that the test need not wait).
README_URL_CHECKER = """
import threading, time, urllib.request
from raftdb import raft

def url_checker(node):
	while not node.shutdown_flag:
		time.sleep(SLEEP)

		if node.state != 'l':
			continue

		for k, v in node.data.items():
			if not k.startswith('url_'):
				continue

			try:
				url = v
				if not v.startswith('http'):
					url = 'https://' + v

				result = urllib.request.urlopen(url).read()
				print('url %s is ok' % k, flush=True)
			except Exception as e:
				print('url %s is bad - %s' % (k, e), flush=True)


def url_check_start(node):
	print('url check start...', flush=True)
	if not hasattr(node, 'checker'):
		node.checker = threading.Thread(target=url_checker, args=(node,))
		node.checker.start()


node = raft.make_default_node()

node.worker.handler['on_leader'] = url_check_start

node.start()
node.join()
"""


@pytest.fixture
def site() -> Iterator[str]:
    """A web site that is up."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def test_cas(tmp_path):
    with programs(tmp_path, EXAMPLES / "cas.py", 1) as (one,):
        with one.client() as r:
            assert r.execute_command("CAS", "color", "none", "red") == "none"
            assert r.execute_command("CAS", "color", "blue", "green") == "red"
            assert r.execute_command("CAS", "color", "red", "green") == "red"
            assert r.get("color") == "green"
            assert r.execute_command("CAS", "absent", "x", "y") is None
        assert one.terminate() == 0, one.output


def test_sessions_end(tmp_path):
    more = ("--keep", "2", "--every", "0.1")
    with programs(tmp_path, EXAMPLES / "session_expiry.py", 1, *more) as (one,), one.client() as r:
        assert r.execute_command("TOUCH_SESSION", "anna") == 2
        assert r.execute_command("TOUCH_SESSION", "bert") == 2
        assert r.execute_command("SESSIONS") == ["anna", "bert"]
        wait_for("both to end", lambda: "anna has ended" in one.output and "bert has ended" in one.output)
        assert r.execute_command("SESSIONS") == []


@pytest.mark.e2e
def test_cas_on_three_nodes_counts_to_the_end_though_the_leader_dies(tmp_path):
    """Each of three clients adds one by compare-and-set again and again: no addition is lost, none is done twice."""
    done = []

    def add(port: int, stop: threading.Event) -> None:
        with redis.Redis("127.0.0.1", port, decode_responses=True, socket_timeout=20) as r:
            while not stop.is_set():
                held = r.get("n")
                if r.execute_command("CAS", "n", held, int(held) + 1) == held:
                    done.append(port)

    with programs(tmp_path, EXAMPLES / "cas.py", 3) as running:
        first = wait_for("a leader", lambda: leader_of(running))
        others = [program for program in running if program is not first]
        with others[0].client() as r:
            r.set("n", 0)
        stop = threading.Event()
        threads = [threading.Thread(target=quietly, args=(add, program.port, stop)) for program in others]
        for thread in threads:
            thread.start()
        wait_for("some additions", lambda: len(done) > 50)
        first.kill()
        before = len(done)
        wait_for("more additions", lambda: len(done) > before + 50 or not any(thread.is_alive() for thread in threads))
        stop.set()
        for thread in threads:
            thread.join()
        with others[1].client() as r:
            # A compare-and-set whose outcome is not known ends its client: at most one each.
            assert len(done) <= int(r.get("n")) <= len(done) + len(threads)


def quietly(work: Callable[..., None], *arguments: object) -> None:
    """Until a command's outcome is unknown, or it was not executed."""
    with contextlib.suppress(redis.RedisError):
        work(*arguments)


@pytest.mark.e2e
def test_sessions_end_under_the_next_leader(tmp_path):
    with programs(tmp_path, EXAMPLES / "session_expiry.py", 3, "--keep", "6", "--every", "0.1") as running:
        first = wait_for("a leader", lambda: leader_of(running))
        others = [program for program in running if program is not first]
        with others[0].client() as r:
            assert r.execute_command("TOUCH_SESSION", "anna") == 6
        with others[1].client() as r:
            assert r.execute_command("SESSIONS") == ["anna"]
        first.kill()
        second = wait_for("another leader", lambda: leader_of(others))
        with second.client() as r:
            r.execute_command("TOUCH_SESSION", "bert")
        wait_for("the new leader to tell", lambda: "session bert has ended" in second.output, 30)
        with others[0].client() as r:
            assert r.execute_command("SESSIONS") == []
        assert sum("bert has ended" in program.output for program in running) == 1


@pytest.mark.e2e
@pytest.mark.parametrize("which", ["example", "readme"])
def test_the_url_checker_moves_with_the_leader(tmp_path, site, which):
    script = EXAMPLES / "url_checker.py"
    more = ["--every", "0.2"]
    if which == "readme":
        script, more = tmp_path / "readme.py", []
        script.write_text(README_URL_CHECKER.replace("SLEEP", "0.2"))
    with programs(tmp_path, script, 3, *more) as running:
        with running[1].client() as r:
            r.set("url_site", site)
            r.set("url_dead", "http://127.0.0.1:1/")
        first = wait_for("a leader", lambda: leader_of(running))
        wait_for("the leader to check", lambda: "url_site is ok" in first.output and "url_dead is bad" in first.output)
        others = [program for program in running if program is not first]
        assert not any(re.search("url_site is", program.output) for program in others)
        first.kill()
        second = wait_for("another leader", lambda: leader_of(others), 15)
        wait_for("the new leader to check", lambda: "url_site is ok" in second.output, 15)
