"""Who is answered, and what is imported."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("nicegui")

from guidestack.guidance.errors import GuidestackError, InputError
from guidestack.scripts.play.addresses import check_port, is_local
from guidestack.scripts.play.page import stack_of
from guidestack.scripts.play.serving import LOCAL, POLICY, Guard


def answered(scope: str = "http", method: str = "GET", hosts: frozenset[str] | None = LOCAL, **headers: str) -> Any:
    """The first message of the answer to a request."""
    sent: list[dict[str, Any]] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    asked = {"type": scope, "method": method, "headers": lines, "path": "/"}
    asyncio.run(Guard(behind, hosts)(asked, None, send))  # type: ignore[arg-type]
    return sent[0]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:7860"}, 200),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:7860"}, 403),
        ({}, 403),
        ({"host": "127.0.0.1:7860", "origin": "https://evil.example"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "null"}, 403),
        ({"method": "POST", "host": "localhost", "content_length": "10"}, 200),
        ({"method": "POST", "host": "localhost", "content_length": str(2**40)}, 413),
        ({"method": "POST", "host": "localhost"}, 411),
    ],
)
def test_only_this_computers_own_pages_are_answered(headers: dict[str, str], status: int) -> None:
    assert answered(**headers)["status"] == status


def test_a_socket_of_another_site_is_closed() -> None:
    assert answered("websocket", host="localhost", origin="http://evil.example")["type"] == "websocket.close"


def test_the_browser_is_told_to_ask_nobody_else() -> None:
    headers = dict(answered(host="localhost")["headers"])
    assert headers[b"content-security-policy"].decode() == POLICY
    assert "http" not in POLICY
    assert answered(hosts=None, host="a.name.of.this.network")["status"] == 200


def test_addresses() -> None:
    assert [is_local(one) for one in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.0.0.1", "example.org")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="choose another --port"):
            check_port("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(InputError, match="--host"):
        check_port("no.such.host.invalid", 7860)


@pytest.mark.parametrize(
    "text", ["@/etc/passwd", "@../cfg", "linear_ag(cfg(4), '/etc/passwd')", "@nothing", "import os"]
)
def test_a_text_reads_no_files_and_runs_nothing(text: str) -> None:
    with pytest.raises(GuidestackError):
        stack_of(text)


def test_presets_by_name() -> None:
    assert str(stack_of("@interval-edm2")).startswith("during(")


HELP = """
import sys
from guidestack.scripts.cli import main
sys.argv = ["guidestack", "--help"]
try:
    main()
finally:
    print(sorted({"nicegui", "torch"} & set(sys.modules)))
"""


def test_the_help_imports_neither_the_page_nor_torch() -> None:
    said = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True).stdout
    assert "play " in said
    assert said.endswith("[]\n")
