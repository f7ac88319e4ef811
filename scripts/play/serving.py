"""The server of the page: for this computer only by default; the page loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

import click
from fastapi import Response
from nicegui import app, ui
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...pipelines.models.generator import Generator
from ...pipelines.models.loading import chosen_device, chosen_dtype, chosen_sampler
from .addresses import is_local
from .making import Maker
from .page import Model, Page
from .uploads import LARGEST_FILE

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; frame-ancestors 'none'"
"""What the browser is told: load nothing and connect to nothing but this server. NiceGUI's page is made of scripts that
stand in it."""
ICON = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'><circle cx='4' cy='4' r='3' fill='#0072b2'/></svg>"


class Guard:
    """Answers who is meant to ask only.

    A page of another site that is open in the same browser can send requests here, and under a name of its own that it
    lets point to this computer it could read the answers. Both are refused, and so is a body that is too large.

    Args:
        app: what is behind it.
        hosts: the names that this server goes by; None for any.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what may be asked, with the policy in the answer."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if (status := self.refusal(scope.get("method", "GET"), headers)) is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await Response("refused", status)(scope, receive, send)
            return

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self.app(scope, receive, with_policy)

    def refusal(self, method: str, headers: Mapping[str, str]) -> int | None:
        """The status of the answer to a request that is refused; None for the others."""
        host = headers.get("host", "")
        if self.hosts is not None and urlsplit(f"//{host}").hostname not in self.hosts:
            return 403
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403
        if method == "POST":
            length = headers.get("content-length", "")
            if not length.isdecimal():
                return 411
            if int(length) > LARGEST_FILE + 2**20:
                return 413
        return None


def serve(
    model: str | None,
    networks: Mapping[str, str],
    dtype: str | None,
    device: str | None,
    offload: bool,
    allow_pickle: bool,
    port: int,
    host: str,
    browser: bool,
) -> None:
    """Load the model and serve the page until Ctrl-C.

    Raises:
        InputError: the model or the device cannot be used.
    """
    where = chosen_device(device)
    dtype = chosen_dtype(dtype, where, model)
    generator = Generator(
        model, dtype, where, allow_pickle, offload, networks, advice="try --offload or a smaller size"
    )
    about = Model(model, dtype, networks, chosen_sampler(None, model))
    maker = Maker(generator)

    @app.get("/made/{name}")
    def made(name: str) -> Response:
        if (found := maker.picture(name)) is None:
            return Response("no such picture", 404)
        return Response(found[1], media_type="image/png")

    app.add_middleware(Guard, hosts=LOCAL if is_local(host) else None)
    app.on_shutdown(maker.close)
    shown = f"[{host}]" if ":" in host else host
    app.on_startup(lambda: click.echo(f"guidestack play: http://{shown}:{port}  (Ctrl-C ends it)", err=True))
    if not is_local(host):
        click.echo(f"warning: whoever reaches {host} can use this page and its model", err=True)
    ui.run(
        lambda: Page(maker, about) and None,
        host=host,
        port=port,
        title="guidestack play",
        favicon=ICON,
        dark=None,
        show=browser,
        reload=False,
        tailwind=False,
        reconnect_timeout=60,
        show_welcome_message=False,
    )
