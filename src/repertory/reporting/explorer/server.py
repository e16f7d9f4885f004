"""Who may see the explorer, and on which address."""

from __future__ import annotations

import errno
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from flask import Flask, Response, redirect, request
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from repertory.errors import UserError, first_line

LOCAL = {"localhost", "127.0.0.1", "::1"}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address holds the token once
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(24)


def protect(server: Flask, policy: Callable[[], str], token: str | None) -> None:
    """Refuses who may not ask, and tells the browser to load nothing from elsewhere.

    Args:
        policy: gives the Content-Security-Policy.
        token: must come in the address (``?token=``), which sets a cookie, or in that cookie. None: only requests
            that name this machine as localhost are answered, so that no other site's name can be made to lead here.
    """
    cookie = f"repertory-{secrets.token_hex(4)}"  # explorers on other ports of this host have their own

    def right(given: str | None) -> bool:
        return token is not None and given is not None and hmac.compare_digest(given.encode(), token.encode())

    @server.before_request
    def check() -> Response | None:
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            return _refused("another site asked")
        if token is None:
            allowed = urlsplit(f"//{request.host}").hostname in LOCAL
            return None if allowed else _refused("this explorer answers to localhost only; start it with --host")
        if right(request.args.get("token")):
            if request.path != "/":
                return None
            answer = redirect("/")
            answer.set_cookie(cookie, token, httponly=True, samesite="Lax")
            return answer  # type: ignore[return-value]
        if right(request.cookies.get(cookie)):
            return None
        return _refused("the token is missing or wrong: use the whole address that repertory explore printed")

    @server.after_request
    def harden(response: Response) -> Response:
        response.headers.update({**HEADERS, "Content-Security-Policy": policy()})
        return response


def _refused(why: str) -> Response:
    return Response(f"403: {why}\n", 403, content_type="text/plain; charset=utf-8")


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:
        """Nothing: requests are not news, and the first one holds the token."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: the port is in use or not allowed, or the host is not this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        raise UserError(f"--host {host}: {first_line(error)}") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} is in use: choose another with --port, or 0 for any free one") from None
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror or first_line(error)}") from None


def serving(app: Flask, listening: socket.socket) -> BaseWSGIServer:
    """The server on a socket, ready for ``serve_forever``."""
    host, port = listening.getsockname()[:2]
    return make_server(host, port, app, threaded=True, request_handler=_Quiet, fd=listening.fileno())
