"""Servers answer to their own names, and not to pages of other sites."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from vlmface.demo import uploads
from vlmface.demo.security_middleware import RouteAllowlist
from vlmface.demo.uploads import Uploads
from vlmface.errors import UserError
from vlmface.utils.hosts import Hosts
from vlmface.utils.terminal import json_line, one_line, printable


def headers(**values: str) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in values.items()]


@pytest.mark.parametrize(
    ("listening", "host", "good"),
    [
        *(
            ("127.0.0.1", host, True)
            for host in (
                "127.0.0.1:8080",
                "localhost",
                "LocalHost:1",
                "[::1]:8080",
                "localhost.",
                "faces.test",
                "FACES.test:443",
            )
        ),
        *(
            ("127.0.0.1", host, False)
            for host in (
                "attacker.test",
                "127.0.0.1.attacker.test",
                "localhost.attacker.test",
                "localhost@a.b",
                "192.168.0.7",
                "[fe80::1]",
                "",
                "localhost:8080:1",
                "localhost/",
                "a b",
                "0.0.0.0",
                "127.0.0.1, attacker.test",
                "faces.test.attacker.test",
                "xfaces.test",
            )
        ),
        *(
            ("0.0.0.0", host, True)
            for host in ("192.168.0.7:8080", "[fe80::1]:80", socket.gethostname(), "localhost")
        ),
        *(("0.0.0.0", host, False) for host in ("attacker.test", "1.2.3.4.attacker.test", "1.2.3")),
        ("192.168.0.7", "192.168.0.7:80", True),
        ("192.168.0.7", "192.168.0.8:80", False),
    ],
)
def test_a_server_answers_to_its_names(listening: str, host: str, good: bool) -> None:
    hosts = Hosts.for_server(listening, ["faces.test"])
    assert (hosts.problem(headers(host=host)) is None) == good


@pytest.mark.parametrize(
    ("origin", "good"),
    [
        ("http://localhost:7860", True),
        ("https://localhost:7860", True),
        ("null", False),
        ("http://localhost:3000", False),
        ("http://localhost", False),
        ("http://attacker.test", False),
        ("http://localhost:7860.attacker.test", False),
        ("file://", False),
        ("", False),
        ("http://localhost:7860/", False),
        ("http://faces.test", True),
        ("https://faces.test:1", True),
        ("http://127.0.0.1:7860", False),
    ],
)
def test_pages_of_other_sites_send_no_requests(origin: str, good: bool) -> None:
    """Another port of this machine is another site, too."""
    hosts = Hosts.for_server("127.0.0.1", ["faces.test"])
    given = headers(host="localhost:7860", origin=origin)
    assert (hosts.problem(given) is None) == good


def test_the_host_is_given_once() -> None:
    hosts = Hosts.for_server("127.0.0.1")
    assert hosts.problem([]) is not None
    assert hosts.problem(headers(host="localhost") * 2) is not None
    good, bad = headers(origin="http://localhost"), headers(origin="http://attacker.test")
    assert hosts.problem([*headers(host="localhost"), *good, *bad]) is not None


@pytest.mark.parametrize("name", ["http://a.test", "a.test:80", "a/b", "*", "", "a b", "-a", "a."])
def test_an_allowed_host_is_a_name(name: str) -> None:
    with pytest.raises(UserError, match="--allowed-hosts"):
        Hosts.for_server("127.0.0.1", [name])


# --- the demo -------------------------------------------------------------------------------------


async def _inside(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads all of a body, as Gradio does."""
    while (message := await receive()).get("more_body"):
        pass
    assert message["type"] == "http.request"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"in"})


def demo(folder: Path) -> Any:
    testclient = pytest.importorskip("starlette.testclient")
    door = RouteAllowlist(_inside, folder, Hosts.for_server("127.0.0.1"), Uploads(folder))
    return testclient.TestClient(door, base_url="http://127.0.0.1:7860")


def test_the_demo_checks_host_and_origin_of_all_requests(tmp_path: Path) -> None:
    client = demo(tmp_path)
    for path in ("/", "/config", "/gradio_api/queue/data", "/gradio_api/heartbeat/a", "/nowhere"):
        assert client.get(path, headers={"Host": "attacker.test"}).status_code == 403
        reply = client.get(path, headers={"Origin": "http://attacker.test"})
        assert reply.status_code == 403 and "Origin" in reply.text
    for path in ("/gradio_api/upload", "/gradio_api/queue/join"):
        reply = client.post(path, content=b"{}", headers={"Origin": "http://attacker.test"})
        assert reply.status_code == 403
    own = {"Origin": "http://127.0.0.1:7860"}
    assert client.post("/gradio_api/queue/join", content=b"{}", headers=own).status_code == 200
    assert client.get("/").status_code == 200


def test_the_demo_opens_no_websocket(tmp_path: Path) -> None:
    from starlette.websockets import WebSocketDisconnect

    client = demo(tmp_path)
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/gradio_api/queue/join"):
        pass


def test_uploads_are_bounded_in_size_and_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_BYTES", 10_000)
    monkeypatch.setattr(uploads, "MAX_REQUEST_BYTES", 5_000)
    client, path = demo(tmp_path), "/gradio_api/upload"
    assert client.post(path, content=bytes(4_000)).status_code == 200
    assert client.post(path, content=bytes(6_000)).status_code == 413
    assert client.post(path, content=(bytes(1_000) for _ in range(9))).status_code == 413
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old.png").write_bytes(bytes(9_000))
    assert client.post(path, content=bytes(4_000)).status_code == 413
    (tmp_path / "broken-off").write_bytes(bytes(2_000))
    reply = client.post(path, content=bytes(10))
    assert reply.status_code == 503 and "No room" in reply.text


def test_a_slow_upload_is_ended_and_gives_its_place_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "UPLOAD_S", 0.1)
    monkeypatch.setattr(uploads, "MAX_AT_ONCE", 1)
    store = Uploads(tmp_path)
    door = RouteAllowlist(_inside, tmp_path, None, store)
    scope = {"type": "http", "path": "/gradio_api/upload", "headers": []}

    async def upload(wait_s: float) -> int:
        replies: list[Any] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(wait_s)
            return {"type": "http.request", "body": b"a" * 100, "more_body": wait_s > 0}

        async def send(message: Any) -> None:
            replies.append(message)

        await door(dict(scope), receive, send)
        return int(replies[0]["status"])

    async def both() -> list[int]:
        slow = asyncio.create_task(upload(0.03))
        await asyncio.sleep(0.05)
        second = await upload(0)
        return [await slow, second, await upload(0)]

    assert asyncio.run(both()) == [408, 503, 200]
    assert (store.at_once, store.arriving) == (0, 0)


def test_old_uploads_are_deleted_and_those_that_were_broken_off(tmp_path: Path) -> None:
    now = [0.0]
    example = tmp_path / "examples" / "fear.png"
    whole, broken_off = tmp_path / "sha" / "face.png", tmp_path / "tmpabc"
    for path in (example, whole, broken_off):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"a")
    began = whole.stat().st_mtime
    store = Uploads(tmp_path, lambda: {str(example)}, clock=lambda: began + now[0])
    assert store.size == 2
    left = []
    for now[0] in (1.0, uploads.UPLOAD_S + 5, uploads.KEEP_S + 5):
        store.sweep()
        left.append([path.exists() for path in (example, whole, broken_off)])
    assert left == [[True, True, True], [True, True, False], [True, False, False]]
    store.start()
    store.close()


# --- text for a terminal --------------------------------------------------------------------------

ATTACKS = [
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\x07",
    "a\rb",
    "\x08",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "\u200f",
    "\u2028",
    "\x7f",
    "\ud800",
    "\x1b]52;c;aGk=\x1b\\",
    "\x00",
    "\x85",
    "\u061c",
    "\x0b",
    "\ufeff",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_terminal_would_obey_is_written_out(attack: str) -> None:
    import json

    for text in (
        printable(f"a{attack}b"),
        printable(f"a{attack}b", lines=True),
        one_line(f"a{attack}b"),
        json_line({"a": f"a{attack}b"}),
    ):
        assert all(mark.isprintable() for mark in text), ascii(text)
        text.encode("utf-8")
    assert json.loads(json_line([attack, "ü"])) == [attack, "ü"]


def test_ordinary_text_stays() -> None:
    text = "Größe 1 μm: 笑顔 😀 \\x1b [0] {}"
    assert printable(text) == one_line(text) == text and printable("a\n\tb", lines=True) == "a\n\tb"
    assert one_line(" a\n  b\tc ") == "a b c"


@pytest.mark.parametrize("attack", ["\x1b[31m", "\u202e", "\x9b2J"])
def test_a_file_name_is_shown_without_its_escapes(
    attack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlmface.cli import main

    path = tmp_path / f"face{attack}.png"
    path.write_bytes(b"no picture")
    for name in (str(path), str(path) + "missing"):
        assert main(["predict", name, "--model", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert attack not in error and error.startswith("error: ") and error.count("\n") == 1
    assert main(["merge", f"run{attack}", str(tmp_path / "out")]) == 2
    assert attack not in capsys.readouterr().err


def test_a_cell_of_a_markdown_table_is_text() -> None:
    from vlmface.evaluate.tables import markdown_cell

    assert markdown_cell("a|b\n![x](http://attacker.test/a.png)<img src=x>") == (
        "a\\|b ![x]\\(http://attacker.test/a.png)\\<img src=x>"
    )


@pytest.mark.parametrize(
    "value",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        " =1",
        "\u00a0=1",
        "＝1",
        "＋1",
        "'=1",
        '"=1',
        "\ufeff=1",
    ],
)
def test_a_cell_of_a_table_is_no_formula(value: str) -> None:
    from vlmface.utils.spreadsheet import safe_cell

    assert str(safe_cell(value)).startswith("'")
    assert [safe_cell(plain) for plain in ("a=1", "", "face.png", None, 3)] == [
        "a=1",
        "",
        "face.png",
        None,
        3,
    ]


def test_gradio_itself_runs_behind_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its page, uploads, files and events; and what it leaves of an upload that is broken off."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    gradio = pytest.importorskip("gradio")
    import httpx2
    from starlette.middleware import Middleware

    store = Uploads(tmp_path)
    with gradio.Blocks(analytics_enabled=False) as page:
        field = gradio.File()
        field.upload(lambda path: path, field, field)
    guard = Middleware(RouteAllowlist, tmp_path, Hosts.for_server("127.0.0.1"), store)
    _, url, _ = page.launch(
        server_name="127.0.0.1",
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        app_kwargs={"middleware": [guard], "redirect_slashes": False},
    )
    try:
        origin = url.rstrip("/")
        with httpx2.Client(base_url=origin, headers={"Origin": origin}, timeout=30) as client:
            assert client.get("/").status_code == client.get("/config").status_code == 200
            sent = {"files": ("face.png", b"a" * 5_000)}
            (path,) = client.post("/gradio_api/upload", files=sent).json()
            assert client.get(f"/gradio_api/file={path}").content == b"a" * 5_000
            event = {
                "data": [{"path": path, "meta": {"_type": "gradio.FileData"}}],
                "fn_index": 0,
                "session_hash": "s",
            }
            assert client.post("/gradio_api/queue/join", json=event).status_code == 200
            other = {"Origin": "http://attacker.test"}
            assert client.post("/gradio_api/upload", files=sent, headers=other).status_code == 403
        _break_off_upload(url)
        until = time.monotonic() + 20
        while store.at_once and time.monotonic() < until:
            time.sleep(0.05)
        assert (store.at_once, store.arriving) == (0, 0)
        store._clock = lambda: time.time() + uploads.UPLOAD_S + 1
        store.sweep()
        assert [path for path in tmp_path.iterdir() if path.is_file()] == []
        assert Path(path).exists()
    finally:
        page.close(verbose=False)


def _break_off_upload(url: str) -> None:
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 9000000\r\n"
        "Content-Type: multipart/form-data; boundary=B\r\n\r\n--B\r\n"
        'Content-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + b"a" * 300_000)
        time.sleep(0.5)
