"""The page in a real browser: Chromium, driven by Playwright, on a server that may talk to nobody.

They run where gradio, playwright and chromium are, which .ci/run sees to: see constraints-ui.txt.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from PIL import Image

pytest.importorskip("gradio", reason='gradio is not installed: pip install -c constraints-ui.txt "diffscale[ui]"')
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt)")]
expect = playwright.expect
LONG = 120_000  # milliseconds: a search begins with the imports of torch and the loading of a model

# The server, which writes down every host that it or a library of its asks for.
SERVER = """
import sys
def heard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        with open("asked.txt", "a") as file:
            file.write(f"{arguments[1] if event == 'socket.connect' else arguments[0]!r}\\n")
sys.addaudithook(heard)
from diffscale.cli.main import run
run()
"""
# A verifier that takes its time, so that there is some to stop in, and counts what it is paid for.
SLOWLY = """
import time
def brightness(images, prompts):
    time.sleep(0.25)
    with open("scored.txt", "a") as file:
        file.write("one\\n" * len(prompts))
    return images.mean((1, 2, 3))
"""


class Server:
    """`diffscale ui runs` in a folder of its own, at a port that is free, or at the one given."""

    def __init__(self, home: Path, port: int = 0, **environment: str) -> None:
        (home / "slowly.py").write_text(SLOWLY)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = port or free.getsockname()[1]
        self.home, self.address = home, f"http://127.0.0.1:{self.port}/"
        command = [sys.executable, "-c", SERVER, "ui", "runs", "--port", str(self.port)]
        self.process = subprocess.Popen(
            command, cwd=home, env=os.environ | environment, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.address in self.process.stdout.readline()

    def end(self) -> str:
        self.process.send_signal(signal.SIGINT)
        said, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return said


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("page"))
    yield started
    if started.process.poll() is None:
        started.end()


@pytest.fixture
def opened(chromium: Any, server: Server) -> Iterator[Any]:
    """A function that opens the page in a browser of its own; none of them may ask another host for anything."""
    asked: list[str] = []
    contexts = []

    def browse(address: str = "") -> Any:
        contexts.append(chromium.new_context(viewport={"width": 1280, "height": 900}))
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address or server.address)
        expect(page.locator("#prompt textarea")).not_to_have_value("", timeout=30_000)
        return page

    yield browse
    for context in contexts:
        context.close()
    hosts = {urlparse(url).hostname for url in asked if urlparse(url).scheme not in ("data", "blob")}
    assert hosts == {"127.0.0.1"}


def fill(page: Any, prompt: str, budget: int, more: str = "", **named: str) -> None:
    page.fill("#prompt textarea", prompt)
    named = {"model": "shapes-flux", "search": "random", "verifier": "slowly:brightness", **named}
    for name, value in named.items():
        page.fill(f"#{name} input", value)
        page.press(f"#{name} input", "Enter")
    page.fill("#budget input", str(budget))
    if not page.locator("#more textarea").is_visible():
        page.get_by_text("Further settings").click()
    page.fill("#more textarea", f"steps: 2\ndtype: float32\nbatch_size: 1\n{more}")


def says(page: Any, pattern: str, timeout: int = LONG) -> str:
    expect(page.locator("#status")).to_have_text(re.compile(pattern), timeout=timeout)
    return str(page.locator("#status").inner_text())


def count(page: Any) -> int:
    return int(page.locator("#pictures .candidates figure").count())


def test_a_search_from_start_to_end(opened: Any, server: Server) -> None:
    page = opened()
    fill(page, "two red stars", 80)
    page.click("#start")
    says(page, "The model is being loaded")
    says(page, r"Searching: \d+ of 80 NFE, best score")

    # Candidates and the curve grow.
    expect(page.locator("#pictures .candidates figure").nth(2)).to_be_visible(timeout=LONG)
    before, ended = count(page), spent(page)
    expect(page.locator("#pictures .candidates figure").nth(before + 2)).to_be_visible(timeout=LONG)
    assert spent(page) > ended
    assert page.locator("canvas, .vega-embed svg").count() == 1
    shown = page.locator("#pictures .candidates img").first
    assert shown.evaluate("image => image.complete && image.naturalWidth") == 64

    # A reload in the middle, and a second browser, see the same run, which goes on.
    page.reload()
    says(page, r"Searching: \d+ of 80 NFE", 10_000)
    assert "run=" in page.url and page.input_value("#prompt textarea") == "two red stars"
    other = opened()
    says(other, r"Searching: \d+ of 80 NFE.*two red stars", 10_000)

    other.click("#stop")
    for each in (page, other):
        stopped = says(each, r"Stopped at \d+ of 80 NFE")
    at = int(re.findall(r"Stopped at (\d+)", stopped)[0])
    assert 0 < at < 80
    scored = len((server.home / "scored.txt").read_text().split())
    page.wait_for_timeout(1500)
    assert len((server.home / "scored.txt").read_text().split()) == scored

    page.click("#go-on")
    for each in (page, other):
        assert "best of 40" in says(each, "Done: first sample .* for 80 NFE")
    assert count(page) == 40
    # Nothing was paid for twice, but the one row that the stop cut off.
    assert 40 <= len((server.home / "scored.txt").read_text().split()) <= 41
    (folder,) = (server.home / "runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert result["candidates"] == 40 and f"{result['best']['score']:.4f}" in page.locator("#status").inner_text()

    # Its report, in a frame that cannot act as the page.
    if not (folder / "report.html").exists():
        (folder / "report.html").write_text("<!doctype html><title>report</title><h1>two red stars</h1>")
    page.get_by_text("Report", exact=True).click()
    page.click("#open-report")
    frame = page.frame_locator("#report iframe")
    expect(frame.locator("body")).to_contain_text("two red stars", timeout=20_000)
    assert page.locator("#report iframe").get_attribute("sandbox") == "allow-scripts allow-popups"


def spent(page: Any) -> int:
    return int(re.findall(r"Searching: ([\d,]+) of", page.locator("#status").inner_text())[0])


def test_what_is_wrong_is_a_sentence_on_the_page(opened: Any, server: Server) -> None:
    page = opened()
    fill(page, "rain", 40, search="randem")
    page.click("#start")
    expect(page.locator("#wrong")).to_have_text(re.compile("did you mean 'random'"), timeout=30_000)
    fill(page, "rain", 40, more="steppes: 3")
    page.click("#start")
    expect(page.locator("#wrong")).to_have_text(re.compile("steppes"))
    runs = len(list((server.home / "runs").iterdir()))

    fill(page, "a model that is none", 40, model="nowhere/none")
    page.click("#start")
    expect(page.locator("#wrong")).to_have_text("")
    says(page, "a model that is none")
    # Another browser's search waits for it, and says so.
    other = opened()
    fill(other, "a budget too small", 1)
    other.click("#start")
    says(other, "Waiting: 1 search comes first.*a budget too small", 10_000)
    says(page, "Failed: .*nowhere/none")
    says(other, "Failed: A budget of 1 NFE does not pay for one sample; one costs 2 NFE, so give at least that.")
    assert len(list((server.home / "runs").iterdir())) == runs + 2
    for each in (page, other):
        assert "Traceback" not in each.inner_text("body")
    # What failed is started again with another budget: the form still has the rest.
    other.reload()
    expect(other.locator("#prompt textarea")).to_have_value("a budget too small")
    other.fill("#budget input", "4")
    other.click("#start")
    says(other, "Done: .*best of 2")


def finished(folder: Path, prompt: str, budget: int) -> None:
    """Files as those of a run that is done."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"prompt: {prompt}\nbudget: {budget}\nverifier: clip\n")
    ends = {name: {"score": score, "image": f"{name}.png"} for name, score in (("baseline", 0.25), ("best", 0.5))}
    for each in ends.values():
        Image.new("RGB", (64, 64)).save(folder / str(each["image"]))
    result = {"nfe": budget, "seconds": 1.0, "candidates": 4, "trace": [[20, 0.25], [budget, 0.5]], **ends}
    (folder / "result.json").write_text(json.dumps(result))


def test_two_runs_are_compared(opened: Any, server: Server) -> None:
    for prompt, budget in (("hail", 80), ("fog", 40)):
        finished(server.home / "runs" / "by hand" / prompt, prompt, budget)
    page = opened()
    page.get_by_role("tab", name="Compare").click()
    for mark, prompt in (("A", "hail"), ("B", "fog")):
        page.click(f"#run-{mark} input")
        page.locator(f"#run-{mark}").get_by_role("option").filter(has_text=prompt).click()
    table = page.locator("#comparison")
    expect(table.get_by_role("row", name="budget 80 40", exact=True)).to_be_visible()
    expect(table.get_by_role("row", name="best score 0.5000 0.5000", exact=True)).to_be_visible()
    pictures = table.locator("img")
    assert pictures.count() == 4
    for i in range(4):
        pictures.nth(i).scroll_into_view_if_needed()
        page.wait_for_function("image => image.naturalWidth == 64", arg=pictures.nth(i).element_handle())


def test_an_address_of_no_run_is_told(opened: Any, server: Server) -> None:
    page = opened()
    page.fill("#run input", "/etc")
    page.press("#run input", "Enter")
    says(page, "There is no run /etc here", 10_000)


def test_the_page_goes_on_with_a_server_that_was_started_again(
    chromium: Any, opened: Any, tmp_path: Path, server: Server
) -> None:
    first = Server(tmp_path)
    page = opened(first.address)
    fill(page, "snow", 400)
    page.click("#start")
    says(page, r"Searching: \d+ of 400 NFE")
    assert "was stopped: it can go on" in first.end()
    again = Server(tmp_path)
    page = opened(again.address)
    says(page, r"Stopped at \d+ of 400 NFE.*snow", 10_000)
    again.end()
    # Neither the server nor a library of it asks for anything elsewhere.
    asked = (tmp_path / "asked.txt").read_text().splitlines()
    assert asked and not [line for line in asked if not re.search(r"127\.0\.0\.1|localhost|::1|None", line)]


def test_a_page_that_stays_open_tells_that_the_server_ended_and_comes_back_with_it(
    chromium: Any, tmp_path: Path
) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "config.yaml").write_text("prompt: two red stars\nbudget: 4\n")
    started = Server(tmp_path)
    page = chromium.new_page()
    page.goto(started.address)
    says(page, "two red stars|Stopped|stopped")
    before = page.evaluate("window.stays = 1")
    started.end()
    lost = page.get_by_text("Connection to the server was lost")
    expect(lost).to_be_visible(timeout=LONG)
    started = Server(tmp_path, started.port)
    expect(lost).to_be_hidden(timeout=LONG)
    says(page, "two red stars|Stopped|stopped")
    assert before == 1 and page.evaluate("window.stays") is None and "run=" in page.url  # it was loaded anew
    page.close()
    started.end()


def test_a_password_keeps_others_out(chromium: Any, tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "config.yaml").write_text("prompt: secret\nbudget: 4\n")
    started = Server(tmp_path, DIFFSCALE_UI_PASSWORD="open sesame")
    context = chromium.new_context()
    page = context.new_page()
    secret = f"{started.address}gradio_api/file={tmp_path / 'runs' / 'one' / 'config.yaml'}"
    assert context.request.get(secret).status == 401
    assert context.request.get(f"{started.address}config").status == 401
    page.goto(started.address)
    for word, there in (("wrong", 0), ("open sesame", 1)):
        page.get_by_label("username").fill("diffscale")
        page.get_by_label("password").fill(word)
        page.get_by_role("button", name="Login").click()
        page.wait_for_timeout(3000)
        assert page.locator("#prompt textarea").count() == there
    assert context.request.get(secret).status == 200
    assert context.request.get(f"{started.address}gradio_api/file={tmp_path / 'slowly.py'}").status == 403
    context.close()
    started.end()


def test_names_that_lead_here_are_refused_without_a_password(server: Server) -> None:
    for host, status in (("evil.example", 400), ("localhost", 200)):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", "/config", headers={"Host": f"{host}:{server.port}"})
        answer = connection.getresponse()
        assert answer.status == status and "default-src 'self'" in answer.headers["Content-Security-Policy"]
        connection.close()


def test_a_port_that_is_taken_is_told(server: Server) -> None:
    command = [sys.executable, "-m", "diffscale", "ui", "runs", "--port", str(server.port)]
    done = subprocess.run(command, cwd=server.home, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and f"Port {server.port} of 127.0.0.1 cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
