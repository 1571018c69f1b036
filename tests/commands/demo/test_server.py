"""What the server refuses before gradio sees it, and what it prints where it cannot start."""

import asyncio
import socket
import sys

import pytest
from helpers.command_line import REPOSITORY
from helpers.command_outputs import get_error_sentence

from lightning_ddpm.commands.demo import server
from lightning_ddpm.commands.demo.server import MAX_BYTES, Gate
from lightning_ddpm.models.checkpoint_source import locate_checkpoint, name_checkpoint
from lightning_ddpm.utils.errors import UserError

JOIN = "/gradio_api/queue/join"


async def pass_through(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
    await send({"type": "http.response.body", "body": b"page"})


def request(path, method="GET", hosts=frozenset({"127.0.0.1", "localhost"}), kind="http", **headers):
    """Return the messages with which the gate answers."""
    sent = []
    headers = {"host": "127.0.0.1:7860"} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {"type": kind, "method": method, "path": path}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def send(message):
        sent.append(message)

    asyncio.run(Gate(pass_through, hosts)(scope, None, send))
    return sent


def get_status(*arguments, **headers):
    return request(*arguments, **headers)[0]["status"]


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css", "/assets/index-1.js", "/gradio_api/queue/data"])
def test_the_page_and_its_parts_are_served_without_leave_for_other_servers(path):
    start, body = request(path)
    assert (start["status"], body["body"]) == (200, b"page")
    policy = dict(start["headers"])[b"content-security-policy"].decode()
    assert policy.startswith("default-src 'self';")
    assert "http" not in policy


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/gradio_api/file=/etc/passwd", "GET"),
        ("/gradio_api/file/etc/passwd", "GET"),
        ("/file=/etc/passwd", "GET"),
        ("/assets/../../../etc/passwd", "GET"),
        ("/assets//etc/passwd", "GET"),
        ("/static/..", "HEAD"),
        ("/gradio_api/proxy=http://127.0.0.1:22/", "GET"),
        ("/gradio_api/upload", "POST"),
        ("/gradio_api/run/predict", "POST"),
        ("/gradio_api/call/show", "POST"),
        ("/gradio_api/component_server", "POST"),
        ("/gradio_api/process_recording", "POST"),
        ("/gradio_api/vibe-edit", "POST"),
        ("/gradio_api/run-history/connect", "POST"),
        ("/monitoring", "GET"),
        ("/login", "POST"),
        ("/docs", "GET"),
        (JOIN, "PUT"),
        (JOIN, "GET"),
        ("/", "DELETE"),
    ],
)
def test_no_other_address_reaches_gradio(path, method):
    assert get_status(path, method, content_length="2") == 404


def test_oversize_requests_and_those_of_unknown_length_are_refused():
    assert get_status(JOIN, "POST", content_length=str(MAX_BYTES)) == 200
    assert get_status(JOIN, "POST", content_length=str(MAX_BYTES + 1)) == 413
    assert get_status(JOIN, "POST", content_length="9" * 13) == 411
    assert get_status(JOIN, "POST", transfer_encoding="chunked") == 411
    assert get_status(JOIN, "POST", transfer_encoding="chunked", content_length="2") == 411
    assert get_status(JOIN, "POST", content_length="-1") == 411


def test_pages_of_other_servers_cannot_use_it():
    assert get_status("/", host="localhost:7860") == 200
    assert get_status("/", host="evil.example:7860") == 403  # a name that was made to lead here
    assert get_status("/", host="evil.example", hosts=None) == 200  # opened to others by --host
    assert get_status(JOIN, "POST", content_length="2", origin="http://127.0.0.1:7860") == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:8080"):
        assert get_status(JOIN, "POST", content_length="2", origin=origin) == 403
    for header in ({"host": "["}, {"host": "127.0.0.1]"}, {"origin": "http://[127.0.0.1:7860"}):
        assert get_status("/", **header) == 400, "no address at all"
    assert request("/", kind="websocket") == [{"type": "websocket.close"}]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--port", "65536"), "--port must lie in 0..65535"),
        (("--host", "no such host"), "cannot listen on no such host, port 7860"),
        (("--host", "192.0.2.1"), "cannot listen on 192.0.2.1, port 7860: Cannot assign requested address"),
        (("--max_images", "0"), "--max_images must be at least 1"),
        (("--share",), "there is no option --share"),
    ],
)
def test_bad_options_are_refused_before_the_model_is_loaded(options, expected, command):
    status, out, err = command("demo", "--ckpt", REPOSITORY / "none.ckpt", *options)
    assert expected in get_error_sentence(status, err)
    assert out == ""


def test_a_port_that_is_in_use_is_named(command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = command("demo", "--ckpt", REPOSITORY / "none.ckpt", "--port", port)
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in get_error_sentence(status, err)


def test_the_port_is_closed_where_the_model_cannot_be_loaded(command, monkeypatch):
    listen, opened = server.listen, []
    monkeypatch.setattr(server, "listen", lambda *address: opened.append(listen(*address)) or opened[-1])
    status, _, err = command("demo", "--ckpt", REPOSITORY / "none.ckpt", "--port", "0")
    assert "there is no checkpoint" in get_error_sentence(status, err)
    assert [each.fileno() for each in opened] == [-1]


def test_it_listens_to_this_machine_and_shows_the_options_that_change_the_images(command, monkeypatch):
    shown, addresses = [], []
    monkeypatch.setattr("lightning_ddpm.commands.demo.page.build_app", lambda *each: shown.append(each[1:]))
    monkeypatch.setattr("lightning_ddpm.commands.demo.command.release_signals", lambda sentence: None)
    monkeypatch.setattr(server, "serve", lambda app, listener, report: addresses.append(listener.getsockname()[0]))
    for more in (["--accelerator", "cpu", "--precision", "bf16-mixed"], ["--accelerator", "cpu"]):
        status, _, err = command("demo", "--ckpt", "digits", "--port", "0", "--precision", "32-true", *more)
        assert status == 0, err
        assert shown.pop() == ("digits", False, more)
    assert set(addresses) == {"127.0.0.1"}, "others reach it, without an option that opens it to them"


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("models--someone--my-tiny_1.0/snapshots/0f1e/model.ckpt", "hf://someone/my-tiny_1.0@0f1e"),
        ("models--someone--tiny/snapshots/0f1e/last.ckpt", "last.ckpt"),
        ("runs/digits/last.ckpt", "last.ckpt"),
        ("elsewhere/digits.ckpt", "digits.ckpt"),
    ],
)
def test_a_checkpoint_of_the_hub_is_called_by_its_address(place, name, tmp_path):
    assert name_checkpoint(tmp_path / place) == name


def test_a_checkpoint_that_ships_has_its_name_wherever_it_is_named_from(monkeypatch):
    monkeypatch.chdir(REPOSITORY / "checkpoints")
    assert name_checkpoint(locate_checkpoint("pretrained/digits.ckpt")) == "digits"
    assert name_checkpoint(locate_checkpoint("digits")) == "digits"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # uvicorn exits
def test_a_page_that_does_not_start_is_an_error():
    async def fail(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no page"})

    reported = []
    with server.listen("127.0.0.1", 0) as listener, pytest.raises(UserError, match="the page could not be started"):
        server.serve(fail, listener, lambda *each: reported.append(each))
    assert reported == []


def test_without_gradio_the_extra_is_named(command, monkeypatch):
    for name in ("page", "server"):
        monkeypatch.delitem(sys.modules, f"lightning_ddpm.commands.demo.{name}", raising=False)
    monkeypatch.delattr("lightning_ddpm.commands.demo.page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    status, _, err = command("demo", "--ckpt", "digits")
    assert "pip install 'gradio>=6.27'" in get_error_sentence(status, err)
