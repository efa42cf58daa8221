"""The demo's page: what all tabs share, the page around them, and its server."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from vlmface.demo import (
    clips,
    example_media,
    model_choices,
    security_middleware,
    tabs,
    theme,
    views,
)
from vlmface.demo.face_detection import Finder
from vlmface.demo.uploads import KEEP_S, Uploads
from vlmface.errors import UserError
from vlmface.infer.predictor import Local, Predictor
from vlmface.utils import isolated
from vlmface.utils.hosts import Hosts

TITLE = "vlmface demo"
MOST_UPLOADED = "64mb"  # one file
_MOST_WAITING = 32
_SERVED_AT_ONCE = 8  # a model in this process answers one at a time, a server as many as it can
_LOOK_EVERY_S = 300  # for uploads that Gradio deletes when they are older than KEEP_S


class Demo:
    """The models that answer, the first of them everywhere, and what they are told about."""

    def __init__(
        self, predictors: Sequence[Predictor], cards: Sequence[model_choices.Card], folder: Path
    ) -> None:
        self.predictors, self.cards = list(predictors), list(cards)
        self.folder = folder  # that Gradio keeps uploads in
        self.predictor = self.predictors[0]
        self.voices = model_choices.voices(self.predictors)
        self.finder = Finder()
        self.at_once = 1 if isinstance(self.predictor.backend, Local) else _SERVED_AT_ONCE
        self.limits = self.predictor.limits or views.LIMITS
        self.examples, self.scene = example_media.write(folder / "examples")
        if model_choices.sees_around(self.predictor):
            self.examples = example_media.write_scenes(folder / "examples")
        self.clip = example_media.write_clip(folder / "examples") if clips.readable() else None

    def close(self) -> None:
        self.finder.close()

    def page(self) -> gr.Blocks:
        """The page with all its tabs."""
        with gr.Blocks(
            title=TITLE, analytics_enabled=False, delete_cache=(_LOOK_EVERY_S, int(KEEP_S))
        ) as page:
            gr.HTML(views.header(self.predictor.name or "a server's model", self.limits))
            with gr.Tabs(overflow_behavior="wrap"):
                for name, build in tabs.ALL.items():
                    with gr.Tab(name), gr.Column(elem_classes="vf-tab"):
                        build(self)
        return page

    def serve(self, host: str, port: int, allowed_hosts: Sequence[str] = ()) -> None:
        """Answer until the process is told to stop, at the name `host`, those of this machine and
        `allowed_hosts`. Raises UserError if the port is taken."""
        from starlette.middleware import Middleware

        hosts = Hosts.of(host, allowed_hosts)
        page = self.page()
        page.queue(max_size=_MOST_WAITING, default_concurrency_limit=1, api_open=False)

        def kept() -> set[str]:
            own = {str(path) for path in (self.folder / "examples").rglob("*")}
            return own.union(*(block.keep_in_cache for block in page.blocks.values()
                               if hasattr(block, "keep_in_cache")))  # fmt: skip

        store = Uploads(self.folder, kept)
        guards = [
            Middleware(security_middleware.Door, uploads=self.folder, hosts=hosts, store=store)
        ]
        closed = {"docs_url": None, "redoc_url": None, "openapi_url": None,
                  "redirect_slashes": False}  # fmt: skip
        try:
            page.launch(
                server_name=host, server_port=port, share=False, prevent_thread_lock=True,
                quiet=True, show_error=False, max_file_size=MOST_UPLOADED, footer_links=[],
                run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False,
                mcp_server=False, app_kwargs={"middleware": guards, **closed},
                theme=theme.theme(), css=theme.css(), head=theme.head(),
            )  # fmt: skip
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
