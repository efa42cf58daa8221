"""The demo's page with all its tabs, and its web server."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence

import gradio as gr

from vlmface.demo import security_middleware, tabs, theme, views
from vlmface.demo.state import Demo
from vlmface.demo.uploads import KEEP_S, Uploads
from vlmface.errors import UserError
from vlmface.utils import isolated
from vlmface.utils.hosts import LOOPBACK, Hosts

TITLE = "vlmface demo"
MAX_UPLOAD = "64mb"  # one file
_MAX_QUEUE = 32
_CLEANUP_INTERVAL_S = 300  # after which Gradio deletes uploads that are older than KEEP_S


def build_page(demo: Demo) -> gr.Blocks:
    """The page with all its tabs.

    Args:
        demo: The models.
    """
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(_CLEANUP_INTERVAL_S, int(KEEP_S))
    ) as page:
        gr.HTML(views.header(demo.predictor.name or "a server's model", demo.limitations))
        with gr.Tabs(overflow_behavior="wrap"):
            for name, build in tabs.TABS.items():
                with gr.Tab(name), gr.Column(elem_classes="vf-tab"):
                    build(demo)
    return page


def serve(demo: Demo, host: str, port: int, allowed_hosts: Sequence[str] = ()) -> None:
    """Serve the page until the process is terminated.

    Args:
        demo: The models.
        host: The address to listen at.
        port: Of the server.
        allowed_hosts: Host names that it answers to, in addition to `host` and this machine's.

    Raises:
        UserError: The port is not free.
    """
    hosts = Hosts.for_server(host, allowed_hosts)
    page = build_page(demo)
    page.queue(max_size=_MAX_QUEUE, default_concurrency_limit=1, api_open=False)

    def protected_files() -> set[str]:
        examples = {str(path) for path in (demo.folder / "examples").rglob("*")}
        blocks = [block for block in page.blocks.values() if hasattr(block, "keep_in_cache")]
        return examples.union(*(block.keep_in_cache for block in blocks))

    store = Uploads(demo.folder, protected_files)
    try:
        _launch(page, demo, hosts, store, (host, port))
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port}: another program may use it, choose another "
            "--port or --host"
        ) from error
    print(f"the demo is at http://{host}:{port} (stop it with Ctrl+C)", flush=True)
    if host not in LOOPBACK:
        print("warning: no password is set; the demo accepts requests from anyone", flush=True)
    terminated = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    store.start()
    try:
        terminated.wait()
    finally:
        store.close()
        page.close(verbose=False)
        isolated.close()


def _launch(
    page: gr.Blocks, demo: Demo, hosts: Hosts, store: Uploads, address: tuple[str, int]
) -> None:
    """Start Gradio's server without its API pages, sharing and monitoring."""
    from starlette.middleware import Middleware

    allowlist = Middleware(
        security_middleware.RouteAllowlist, uploads=demo.folder, hosts=hosts, store=store
    )
    host, port = address
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        max_file_size=MAX_UPLOAD,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        app_kwargs={
            "middleware": [allowlist],
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
            "redirect_slashes": False,
        },
        theme=theme.theme(),
        css=theme.css(),
        head=theme.head(),
    )
