"""The page in a real browser: what is clicked appears, from this server alone, and others cannot misuse it."""

import base64
import http.client
import io
import json
import shutil
import signal
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from helpers.command_line import REPOSITORY
from PIL import Image

from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.generate import generate

pytestmark = pytest.mark.slow
CKPT = REPOSITORY / "checkpoints" / "pretrained" / "digits_conditional.ckpt"
# Each connection to another machine, or to a server on this one that is not the demo's, ends with a traceback.
PROGRAM = """
import socket, sys
def refuse(event, arguments):
    if event == "socket.connect":
        raise AssertionError(f"the demo connects to {arguments[1]}")
from lightning_ddpm.commands.main import main
sys.addaudithook(refuse)
sys.exit(main())
"""
WIDTH = "document.querySelector('[role=tablist]').getBoundingClientRect().width"
SHOWN = "[...document.querySelectorAll('.strip')].some((each) => each.offsetParent)"


@pytest.fixture(scope="module")
def port():
    """The port of a running demo, which Ctrl-C stops in the end."""
    options = ("demo", "--ckpt", CKPT, "--port", "0", "--accelerator", "cpu")
    command = [str(each) for each in (sys.executable, "-c", PROGRAM, *options)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        try:
            line = demo.stdout.readline()
            assert line.startswith("the demo is at http://127.0.0.1:"), line + demo.stderr.read()
            yield int(line.partition(";")[0].rpartition(":")[2])
        finally:
            demo.send_signal(signal.SIGINT)
            out, err = demo.communicate(timeout=60)
    assert (out, demo.returncode) == ("SIGINT: the demo has stopped\n", 0)
    assert "the demo connects to" not in err


@pytest.fixture(scope="module")
def browser():
    """Chromium, which does not come with Python's packages."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium on this machine (Debian: apt install chromium)")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, port):
    """Opens the page; whatever the browser complains about, or asks another server for, fails the test."""
    wrong, pages = [], []

    def open_page(width=1280, height=900):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(60_000)
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda response: wrong.append(response.url) if response.status >= 400 else None)
        address = f"http://127.0.0.1:{port}/"
        page.on("request", lambda each: None if each.url.startswith((address, "data:")) else wrong.append(each.url))
        page.goto(address)
        page.get_by_role("button", name="Generate").wait_for()
        pages.append(page)
        return page

    yield open_page
    for each in pages:
        each.close()
    assert wrong == []


def set_number(page, label, value):
    page.get_by_label(label, exact=True).first.fill(str(value))
    page.get_by_label(label, exact=True).first.press("Enter")


def read_pixels(page):
    """Return the images that are visible, (n, h, w), after they are complete."""
    page.wait_for_function(SHOWN)
    urls = page.eval_on_selector_all(".images img", "all => all.filter(e => e.offsetParent).map(e => e.src)")
    files = [io.BytesIO(base64.b64decode(each.partition(",")[2])) for each in urls]
    return np.stack([np.asarray(Image.open(each)) for each in files])


def test_images_appear_are_inpainted_by_mouse_and_interpolated(visit):
    page = visit()
    width = page.evaluate(WIDTH)
    set_number(page, "Seed", 4)
    page.get_by_role("button", name="Generate").click()
    images = read_pixels(page)
    expected = generate(load(CKPT), 16, 4)[:, 0].numpy()
    assert np.array_equal(images, expected)
    assert "50 network evaluations (NFE) each" in page.locator(".progress").first.inner_text()

    page.locator(".images img").nth(2).click()
    canvas = page.locator(".editor canvas")
    canvas.wait_for()
    page.wait_for_function("document.querySelector('.editor canvas').getContext('2d').getImageData(4, 4, 1, 1).data[3]")
    box = canvas.bounding_box()
    pixel = box["width"] / 8
    page.locator(".brush").fill("1")
    page.mouse.move(box["x"] + 1.5 * pixel, box["y"] + 3.5 * pixel)
    page.mouse.down()
    page.mouse.move(box["x"] + 6.5 * pixel, box["y"] + 3.5 * pixel, steps=3)
    page.mouse.up()
    page.get_by_label("Passes").first.fill("1")
    page.get_by_role("button", name="Inpaint").click()
    inpainted = read_pixels(page)
    painted = np.zeros((8, 8), bool)
    painted[3, 1:7] = True
    assert np.array_equal(inpainted[:, ~painted], np.broadcast_to(images[2][~painted], (16, 58)))
    assert len(np.unique(inpainted[:, painted], axis=0)) > 8

    page.get_by_role("tab", name="Interpolate").click()
    page.get_by_role("button", name="Interpolate").click()
    between = read_pixels(page)
    assert np.array_equal(between[0], images[0])
    assert not np.array_equal(between[-1], images[0])
    assert page.evaluate(WIDTH) == width  # the page keeps its layout from tab to tab


def test_two_visitors_wait_for_each_other_and_one_can_stop(visit):
    model = load(CKPT)
    first, second = visit(), visit(390, 844)
    assert second.evaluate("document.documentElement.scrollWidth") <= 390  # nothing is cut off on a phone
    for page, seed in ((first, 1), (second, 2)):
        set_number(page, "Seed", seed)
        page.get_by_role("button", name="Generate").click()
    for page, seed in ((first, 1), (second, 2)):
        assert np.array_equal(read_pixels(page), generate(model, 16, seed)[:, 0].numpy())
        # evaluations of requests that ran at once would have been counted together
        assert "50 network evaluations (NFE) each" in page.locator(".progress").first.inner_text()

    first.get_by_label("Sampler").click()
    first.get_by_role("option", name="DDIM").click()
    first.get_by_label("Steps").first.wait_for()
    set_number(first, "number input for Steps", 1000)
    first.get_by_role("button", name="Generate").click()
    first.wait_for_function("document.querySelector('.progress').innerText.includes(' of 1000 network')")
    first.get_by_role("button", name="Stop").click()
    second.get_by_role("button", name="Another seed").click()
    second.wait_for_function("document.querySelector('input[type=number][aria-label=Seed]')?.value !== '2'")
    second.get_by_role("button", name="Generate").click()
    second.wait_for_function("!document.querySelector('.strip')")
    read_pixels(second)
    assert first.locator(".strip").count() == 0


def send(port, method, path, body=None, **headers):
    """Return the status and the text of the answer to a request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with closing(connection):
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")


def test_paths_files_and_oversize_requests_are_refused(port):
    assert send(port, "GET", "/")[0] == 200
    for path in ("/etc/passwd", CKPT, REPOSITORY / "README.md", "../README.md"):
        for address in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/assets/", "/static/", "/svelte/"):
            status, text = send(port, "GET", f"{address}{path}")
            assert (status, "root:" in text) == (404, False), address
    boundary = "--b\r\nContent-Disposition: form-data; name=files; filename=a.png\r\n\r\nx\r\n--b--\r\n"
    kind = "multipart/form-data; boundary=b"
    assert send(port, "POST", "/gradio_api/upload", boundary, content_type=kind)[0] == 404
    assert send(port, "POST", "/gradio_api/queue/join", b"x", content_length=str(5 * 2**20))[0] == 413
    assert send(port, "GET", "/", host="evil.example")[0] == 403


def test_a_request_that_no_page_sends_is_refused_in_a_sentence(port):
    config = json.loads(send(port, "GET", "/config")[1])
    inputs = {len(each["inputs"]): each["id"] for each in config["dependencies"] if len(each["inputs"]) > 2}
    path = {"path": "/etc/passwd", "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    requests = [
        (9, [-1, 1, "DDIM", 2, 0, 1, [], {"image": path, "mask": "01" * 32}, 1]),
        (9, [-1, 1, "DDIM", 2, 0, 1, [], {"image": "/etc/passwd", "mask": "01" * 32}, 1]),
        (7, [-1, 1, "DDIM", 2, 0, 100_000, []]),
        (7, ["/etc/passwd", 1, "DDIM", 2, 0, 1, []]),
        (8, [-1, 1, "DDIM", 2, 0, 1, [], {"path": "/etc/passwd"}]),
    ]
    for number, (count, values) in enumerate(requests):
        session = f"s{number}"
        body = json.dumps({"data": values, "fn_index": inputs[count], "session_hash": session})
        status, text = send(port, "POST", "/gradio_api/queue/join", body, content_type="application/json")
        if status == 200:
            text = send(port, "GET", f"/gradio_api/queue/data?session_hash={session}")[1]
            ends = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
            assert [each["success"] for each in ends if each["msg"] == "process_completed"] == [False], text
        assert "data:image/png" not in text, text
        assert "root:" not in text
    allowed = json.dumps({"data": [-1, 1, "DDIM", 2, 0, 1, []], "fn_index": inputs[7], "session_hash": "t"})
    assert send(port, "POST", "/gradio_api/queue/join", allowed, content_type="application/json")[0] == 200
    assert '"success":true' in send(port, "GET", "/gradio_api/queue/data?session_hash=t")[1].replace(" ", "")
