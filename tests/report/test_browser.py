"""The page in a real browser: chromium without a window, asked through its DevTools pipe."""

import base64
import io
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from csrtrain import report

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium: nobody has looked at the report (apt-get install chromium)"),
]
WIDTHS = (1280, 400)
# What scrolls in its own container does not count as wide.
OVERFLOWING = """[...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.right > innerWidth + 1 && !e.closest('.scroll, pre, svg');
}).map(e => e.tagName + '.' + e.className).slice(0, 5)"""
# Relative luminance and contrast: WCAG 2.1.
CONTRASTS = """(() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => sum + share * linear(c[i] / 255), 0);
  const back = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll('p, th, td, dt, dd, li, b, a, h1, h2, h3, summary, caption, figcaption')) {
    const pair = [light(parse(getComputedStyle(e).color)), light(back(e))].sort((a, b) => a - b);
    const ratio = (pair[1] + 0.05) / (pair[0] + 0.05);
    if (e.textContent && ratio < 4.5) found.push(e.tagName + ' ' + ratio.toFixed(2));
  }
  return found.slice(0, 5);
})()"""
# The smallest text of a figure, in pixels of the screen.
SMALLEST = """Math.min(...[...document.querySelectorAll('svg.chart')].map(
  e => 12 * e.getBoundingClientRect().width / e.viewBox.baseVal.width))"""


class Browser:
    """A chromium that is spoken to in JSON between zero bytes, on file descriptors 3 and 4."""

    def __init__(self, profile):
        from_browser, their_out = os.pipe()
        their_in, to_browser = os.pipe()
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "about:blank"]
        # The shell puts the pipes where chromium looks for them.
        wrapped = ["bash", "-c", f'exec "$@" 3<&{their_in} 4>&{their_out}', "bash", *command]
        self.process = subprocess.Popen(
            wrapped, pass_fds=(their_in, their_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(their_in)
        os.close(their_out)
        self._in, self._out = from_browser, to_browser
        self._buffer, self._number, self.events = b"", 0, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def _receive(self, deadline):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("chromium is silent")
            part = os.read(self._in, 2**20)
            if not part:
                raise EOFError("chromium has ended")
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        deadline = time.monotonic() + 60
        while True:
            got = self._receive(deadline)
            if got.get("id") == self._number:
                assert "error" not in got, got
                return got["result"]
            self.events.append(got)

    def open(self, path, width, dark=False, script=True, height=900):
        """Load a file; the events since are kept."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        deadline = time.monotonic() + 60
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.events.append(self._receive(deadline))
        time.sleep(0.3)  # for late requests, whose events the next answer brings
        self.evaluate("1")

    def evaluate(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)[
            "result"
        ].get("value")

    def requests(self):
        """Addresses that were asked for."""
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [e["params"]["request"]["url"][:200] for e in sent]

    def complaints(self):
        """What the console says: messages, exceptions, and what the browser itself notes."""
        found = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [e["params"] for e in self.events if e["method"] in found]

    def screenshot(self, path):
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        try:
            self._session = None
            self.call("Browser.close")
            self.process.wait(10)
        except (EOFError, TimeoutError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def page(full, tmp_path):
    """All that a report can show, and a picture."""
    (tmp_path / "a.png").write_bytes(b"")
    found = report.read(full)
    buffer = io.BytesIO()
    Image.new("L", (1320, 900), 128).save(buffer, "PNG")
    report.write(tmp_path / "report.html", found, {"a": [report.Picture("views", buffer.getvalue())]})
    return tmp_path / "report.html"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_readable_quiet_and_asks_for_nothing(browser, page, width, dark):
    browser.open(page, width, dark)
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.resolve().as_uri()]
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(OVERFLOWING) == []
    assert browser.evaluate(CONTRASTS) == []
    assert browser.evaluate("document.querySelectorAll('svg.chart').length") >= 9
    assert browser.evaluate(SMALLEST) >= 10
    assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    color = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (color == "rgb(21, 23, 26)") == dark


def test_tables_and_pictures_scroll_by_themselves(browser, page):
    browser.open(page, 400)
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert browser.evaluate(wide) >= 3


def test_without_javascript_it_is_the_same(browser, page):
    browser.open(page, 1280)
    height = browser.evaluate("document.documentElement.scrollHeight")
    browser.open(page, 1280, script=False)
    assert browser.evaluate("document.documentElement.scrollHeight") == height > 2000
    assert browser.evaluate("document.scripts.length") == 0


def test_details_open_within_the_page(browser, page):
    browser.open(page, 400)
    browser.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 400
    assert browser.evaluate(OVERFLOWING) == []


def test_long_and_hostile_names_do_not_widen_the_page(browser, make_run, tmp_path):
    name = "<script>document.title='in'<!--" + "x" * 200
    folder = make_run(name.replace("/", ""), f"step,train/loss,train/{'y' * 200}\n0,1,2\n1,2,3\n")
    report.write(tmp_path / "r.html", report.read([folder, make_run("b")]))
    browser.open(tmp_path / "r.html", 400)
    assert browser.complaints() == [] and browser.evaluate("document.title") != "in"
    assert browser.evaluate("document.documentElement.scrollWidth") <= 400
    assert browser.evaluate(OVERFLOWING) == []


def test_the_browser_would_notice(browser, tmp_path):
    """What the tests above look for is found where it is."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!DOCTYPE html><meta name=viewport content='width=device-width'><body style='background:#fff'>"
        "<p style='width:2000px;color:#bbb'>wide and pale</p><img src='http://127.0.0.1:9/x.png'>"
        "<script>console.error('no'); undefinedFunction()</script>"
    )
    browser.open(bad, 400)
    assert any("127.0.0.1:9" in url for url in browser.requests())
    assert "undefinedFunction" in json.dumps(browser.complaints()) and "no" in json.dumps(browser.complaints())
    assert browser.evaluate("document.documentElement.scrollWidth") > 400
    assert browser.evaluate(OVERFLOWING) == ["P."] and browser.evaluate(CONTRASTS)[0].startswith("P ")


def test_the_policy_of_the_page_stops_requests(browser, page):
    page.write_text(page.read_text().replace("<main>", "<main><img src='http://127.0.0.1:9/x.png'>"))
    browser.open(page, 400)
    assert any("Content Security Policy" in json.dumps(one) for one in browser.complaints())
