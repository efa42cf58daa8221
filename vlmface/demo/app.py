"""The demo's page with all its tabs, and its server."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence

import gradio as gr

from vlmface.demo import (
    security_middleware,
    tabs,
    theme,
    views,
)
from vlmface.demo.state import Demo
from vlmface.demo.uploads import KEEP_S, Uploads
from vlmface.errors import UserError
from vlmface.utils import isolated
from vlmface.utils.hosts import Hosts

TITLE = "vlmface demo"
MOST_UPLOADED = "64mb"  # one file
_MOST_WAITING = 32
_LOOK_EVERY_S = 300  # for uploads that Gradio deletes when they are older than KEEP_S


def build_page(demo: Demo) -> gr.Blocks:
    """The page with all its tabs."""
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(_LOOK_EVERY_S, int(KEEP_S))
    ) as page:
        gr.HTML(views.header(demo.predictor.name or "a server's model", demo.limitations))
        with gr.Tabs(overflow_behavior="wrap"):
            for name, build in tabs.ALL.items():
                with gr.Tab(name), gr.Column(elem_classes="vf-tab"):
                    build(demo)
    return page


def serve(demo: Demo, host: str, port: int, allowed_hosts: Sequence[str] = ()) -> None:
    """Answer until the process is told to stop, at the name `host`, those of this machine and
    `allowed_hosts`. Raises UserError if the port is taken."""
    from starlette.middleware import Middleware

    hosts = Hosts.of(host, allowed_hosts)
    page = build_page(demo)
    page.queue(max_size=_MOST_WAITING, default_concurrency_limit=1, api_open=False)

    def kept() -> set[str]:
        own = {str(path) for path in (demo.folder / "examples").rglob("*")}
        return own.union(
            *(
                block.keep_in_cache
                for block in page.blocks.values()
                if hasattr(block, "keep_in_cache")
            )
        )

    store = Uploads(demo.folder, kept)
    guards = [Middleware(security_middleware.Door, uploads=demo.folder, hosts=hosts, store=store)]
    closed = {"docs_url": None, "redoc_url": None, "openapi_url": None, "redirect_slashes": False}
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            max_file_size=MOST_UPLOADED,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            app_kwargs={"middleware": guards, **closed},
            theme=theme.theme(),
            css=theme.css(),
            head=theme.head(),
        )
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port}: another program may use it, choose another "
            "--port or --host"
        ) from error
    print(f"the demo is at http://{host}:{port} (stop it with Ctrl+C)", flush=True)
    if host not in ("127.0.0.1", "localhost", "::1"):
        print("anybody who can reach this machine can use it: there is no password", flush=True)
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    store.start()
    try:
        told.wait()
    finally:
        store.close()
        page.close(verbose=False)
        isolated.close()
