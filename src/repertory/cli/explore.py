"""The command explore: the map of a run's embeddings, live in the browser."""

from __future__ import annotations

import threading
import webbrowser
from importlib.util import find_spec
from typing import Annotated

import typer

from repertory import catalog
from repertory.cli.look import console
from repertory.cli.work import Data, RunPath
from repertory.errors import MissingExtraError


def explore(
    run: RunPath,
    data: Data = None,
    umap: Annotated[bool, typer.Option("--umap", help="Add a view by UMAP: all points; minutes for many.")] = False,
    host: Annotated[
        str, typer.Option(help="Address to listen on; other than this machine's own asks for a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8050,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
) -> None:
    """The map of a run's embeddings in the browser: hover, colour, click for neighbours, query."""
    for module, package in (("dash", "dash"), *([("umap", "umap-learn")] if umap else [])):
        if find_spec(module) is None:
            raise MissingExtraError(package, "explore")
    from repertory.reporting.explorer import gather
    from repertory.reporting.explorer.app import build
    from repertory.reporting.explorer.server import bind, is_loopback, new_token, serving

    with bind(host, port) as listening:
        system = catalog.load(run)
        exploration, note = gather(system, run, data, umap=umap)
        console.print(f"{len(exploration.embeddings):,} vectors ({note}): placing them on the plane")
        token = None if is_loopback(host) else new_token()
        app = build(exploration, title=system.card.title, about=system.record.get("source", ""), token=token)
        address = _address(host, listening.getsockname()[1], token)
        with serving(app.server, listening) as server:
            console.print(f"[bold]{address}[/]   (Ctrl-C ends it)", soft_wrap=True)
            if not no_browser:
                threading.Timer(0.5, webbrowser.open, [address]).start()
            server.serve_forever()


def _address(host: str, port: int, token: str | None) -> str:
    """What to type into a browser; a host that stands for all addresses is given this machine's name."""
    import socket

    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")
