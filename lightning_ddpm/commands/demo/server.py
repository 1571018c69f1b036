"""The web server of the page, and what it refuses before gradio sees it.

Gradio can do much more than this page needs: serve and take files, fetch addresses, run functions past the queue. Only
the addresses that the page uses are let through, so that there is no path, file or address to give at all.
"""

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from lightning_ddpm.utils.errors import UserError

MAX_BYTES = 4 * 2**20
"""Largest request: what the editor sends of 800x800 pixels even without compression, four bytes of each in base64, and
the mask."""
ALLOWED = {
    "GET": r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static|svelte)(/\w[\w.-]*)+"
    r"|/gradio_api/(info|startup-events|theme\.css|queue/data|heartbeat/\w+)",
    "POST": r"/gradio_api/(queue/join|cancel|reset)",
}
ALLOWED["HEAD"] = ALLOWED["GET"]
HEADERS = {
    # gradio evaluates templates; nothing comes from, or goes to, another server
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gate:
    """An ASGI application that passes on to another what the page needs, and answers everything else itself.

    Args:
        app: the other one.
        hosts: names that the Host header may have; ``None`` for any. A page elsewhere whose name is made to lead to
            this machine (DNS rebinding) has another one.
    """

    def __init__(self, app: App, hosts: frozenset[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or the start and the end of the application."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close"})
        if refusal := self._refuse(scope):
            status, reason = refusal
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            return await send({"type": "http.response.body", "body": f"{reason}\n".encode()})

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        await self.app(scope, receive, send_with_headers)
        return None

    def _refuse(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the reason of a refusal; ``None`` for a request that is let through."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name, sender = urlsplit(f"//{host}").hostname, None if origin is None else urlsplit(origin).netloc
        except ValueError:
            return 400, "the Host or the Origin header is no address"
        if self.hosts is not None and name not in self.hosts:
            return 403, "the demo is open to this machine only; start it with --host to open it to others"
        if sender is not None and sender != host:
            return 403, "a page of another server asks for this"
        allowed, path = ALLOWED.get(scope["method"]), scope["path"]
        if allowed is None or ".." in path or not re.fullmatch(allowed, path):
            return 404, "there is nothing here: the demo has one page, and neither serves nor takes files"
        if scope["method"] == "POST":
            length = headers.get("content-length", "")
            if "transfer-encoding" in headers:  # it would be read by its chunks, whatever length is stated beside them
                return 411, "the request must not be sent in chunks"
            if not re.fullmatch(r"\d{1,12}", length):
                return 411, "the length of the request must be known"
            if int(length) > MAX_BYTES:
                return 413, f"the request has {length} bytes, and {MAX_BYTES} are the most"
        return None


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address, for the caller to close.

    Raises:
        UserError: this machine has no such address, or its port is in use.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port must lie in 0..65535, got {port}; 0 takes any that is free")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as opened:
            listener = opened.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
            opened.pop_all()  # it stays open
            return listener
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot listen on {host}, port {port}: {reason}; choose another by --host or --port"
        ) from error


def serve(app: App, listener: socket.socket, report: Callable[[str, bool], None]) -> None:
    """Serve an application until the process ends.

    Args:
        app: the application.
        listener: from :func:`listen`.
        report: called with the address, and whether only this machine reaches it, once the page can be opened.

    Raises:
        UserError: the application does not start.
    """
    address, port = listener.getsockname()[:2]
    is_local = ipaddress.ip_address(address).is_loopback
    hosts = frozenset({"localhost", "127.0.0.1", "::1", address}) if is_local else None
    server = uvicorn.Server(uvicorn.Config(Gate(app, hosts), log_level="warning", access_log=False, lifespan="on"))
    # Outside the main thread, uvicorn leaves the signals to this program.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True, name="server")
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.05)
    if not server.started:
        raise UserError("the page could not be started; the lines above say why")
    shown = f"[{address}]" if ":" in address else address
    report(f"http://{shown}:{port}", is_local)
    thread.join()
