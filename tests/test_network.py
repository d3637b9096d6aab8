"""A server that does not answer is told within seconds, before a library tries for minutes."""

from __future__ import annotations

import http.server
import socket
import threading

import pytest
from huggingface_hub import constants

from neumann import network
from neumann.network import hub_that_answers, reason_of, why_unreachable


class Refusal(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_a_server_that_refuses_is_reached_and_a_silent_or_absent_one_is_not() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert why_unreachable(f"http://127.0.0.1:{server.server_port}/x") is None
    assert why_unreachable("http://127.0.0.1:9/x") == "127.0.0.1:9 cannot be reached: Connection refused"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        assert why_unreachable(f"http://{place}", seconds=0.1) == f"{place} cannot be reached: timed out"
    assert why_unreachable("no address") == "no address cannot be reached: unknown url type: 'no address'"


def test_reasons_are_without_numbers_and_decoration() -> None:
    assert reason_of(OSError("<urlopen error [Errno -2] Name or service not known>")) == "Name or service not known"
    assert reason_of(OSError(111, "Connection refused")) == "Connection refused"
    assert reason_of(RuntimeError("Error:\nTried http://x, got:\nFile not found.\n")) == "File not found"
    assert reason_of(EOFError()) == "EOFError"


@pytest.mark.parametrize("why", [None, "x cannot be reached: timed out"])
def test_the_hubs_client_tries_only_a_server_that_answers(why: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "why_unreachable", lambda address: why)
    with hub_that_answers() as said:
        assert said == why
        assert (why is not None) == constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # by the user's own variable: nothing is asked
    with hub_that_answers() as said:
        assert (said, constants.HF_HUB_OFFLINE) == (None, True)
    assert constants.HF_HUB_OFFLINE
