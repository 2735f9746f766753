"""Serving the page: to this machine alone, or to others who know the password; it asks nothing of any other host."""

import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from gradio.themes import Default
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffscale._util.errors import DiffscaleError
from diffscale._util.signals import signals_noted
from diffscale.bench.config import check_names
from diffscale.registry import DEFAULT_SEARCH
from diffscale.ui.html import STYLE
from diffscale.ui.jobs import Jobs
from diffscale.ui.page import Page, build

USER: Final = "diffscale"
"""The name that is given beside the password."""

# With this a browser asks no other host for anything, whatever a library's or a run's files name.
_POLICY: Final = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
_FONTS: Final = ["system-ui", "sans-serif"]


class _Confined:
    """Adds the policy to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the app does."""

        async def confined(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = _POLICY
            await send(message)

        await self.app(scope, receive, confined)


def serve(roots: Sequence[Path], host: str, port: int, password: str | None, say: Callable[[str], None]) -> list[Path]:
    """Serve the page of the run folders in `roots` until a signal ends the process; returns the runs that stopped then.

    `say` is told the address in a sentence. Raises DiffscaleError if the port cannot be had.
    """
    # What the first search is checked with takes seconds to import.
    threading.Thread(target=check_names, args=([DEFAULT_SEARCH], []), daemon=True).start()
    jobs = Jobs()
    blocks = build(Page(roots, jobs))
    given, address = password or "", f"[{host}]" if ":" in host else host
    # Without a password a page of a stranger, whose name is made to lead to this machine, could act in the user's name.
    names = ["*"] if password else [host, address, "127.0.0.1", "localhost"]

    def allowed(user: str, word: str) -> bool:
        return secrets.compare_digest(word.encode(), given.encode())

    try:
        blocks.launch(
            server_name=address, server_port=port, auth=allowed if password else None,
            auth_message=f"The username is {USER}.", share=False, quiet=True, prevent_thread_lock=True, pwa=False,
            ssr_mode=False, mcp_server=False, run_history=False, enable_monitoring=False, footer_links=[],
            allowed_paths=[str(root) for root in roots], theme=Default(font=_FONTS, font_mono=["monospace"]), css=STYLE,
            app_kwargs={"middleware": [Middleware(_Confined), Middleware(TrustedHostMiddleware, allowed_hosts=names)]},
        )  # fmt: skip
    except OSError as error:
        jobs.close()
        raise DiffscaleError(f"Port {port} of {host} cannot be used: choose another --port, or --host.") from error
    try:
        with signals_noted() as ended:
            say(f"diffscale is at http://{address}:{port}/ (to end it: Ctrl+C)")
            ended.wait()
    finally:
        left = jobs.close()
        blocks.close(verbose=False)
    return left
