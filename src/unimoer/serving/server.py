"""The process: load, listen, and at the end finish what was accepted."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from unimoer.errors import UserError
from unimoer.library import UniMoER
from unimoer.runtime import in_passing
from unimoer.search import SearchIndex
from unimoer.serving.settings import Settings

try:
    import uvicorn

    from unimoer.serving.app import create_app
    from unimoer.serving.observe import Metrics, log_as_json
    from unimoer.serving.service import Service
except ImportError as error:
    raise UserError(f"the server needs {error.name}; pip install 'unimoer[serve]'") from None


class _Server(uvicorn.Server):
    """Says that it is not ready from the first signal on; a second one stops at once."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.draining = True  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def serve(
    model: str | None,
    index: Path | None,
    settings: Settings,
    *,
    host: str,
    port: int,
    device: str,
    tell: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C; then answer all requests that were accepted, and return.

    Raises:
        UserError: nothing to serve, the index is of another model, or the address is taken.
    """
    if model is None and index is None:
        raise UserError("serve: name a model, or an index with --index")
    loaded, opened = in_passing(lambda: _open(model, index, device))
    listening = _listen(host, port)
    metrics = Metrics()
    service = Service(loaded, settings, index=opened, observe=metrics.batch)
    app = create_app(service, metrics)
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="on")
    log_as_json()
    address = f"http://{host if ':' not in host else f'[{host}]'}:{listening.getsockname()[1]}"
    documents = "" if opened is None else f" and {len(opened):,} documents"
    tell(f"{service.name}{documents} at {address}")
    _Server(config).run(sockets=[listening])


def _open(model: str | None, index: Path | None, device: str) -> tuple[UniMoER, SearchIndex | None]:
    if index is None:
        return UniMoER.load(str(model), device=device), None
    opened = SearchIndex.open(index, model=model, device=device)
    return opened.model, opened


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise UserError(
            f"serve: cannot listen on {host}, port {port}: {error.strerror}; choose another --port"
        ) from None
    listening.listen(1024)
    return listening
