"""A real browser for tests: Chromium, driven through chromedriver's plain HTTP."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = None if CHROMIUM and DRIVER else "chromium and chromedriver are not installed"


class Page:
    """A page that is open in the browser."""

    def __init__(self, call):
        self._call = call

    def command(self, name, **parameters):
        """A command of the DevTools protocol."""
        return self._call("POST", "goog/cdp/execute", {"cmd": name, "params": parameters})

    def show(self, path, width, dark=False, media=""):
        """Load a file at a width in CSS pixels."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self._call("POST", "url", {"url": path.absolute().as_uri()})

    def evaluate(self, script):
        return self._call("POST", "execute/sync", {"script": f"return {script}", "args": []})

    def console(self):
        """What the page has written to its console so far, errors of loading included."""
        return self._call("POST", "se/log", {"type": "browser"})

    def requests(self):
        """Addresses that were asked for since the last call."""
        entries = [
            json.loads(entry["message"])["message"] for entry in self._call("POST", "se/log", {"type": "performance"})
        ]
        return [
            entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"
        ]

    def picture(self):
        """The whole page as PNG."""
        return base64.b64decode(self.command("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def printed(self):
        """The page as PDF."""
        return base64.b64decode(self.command("Page.printToPDF", preferCSSPageSize=True)["data"])


@contextmanager
def browser(profile):
    """Open Chromium with a new profile in a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(method, path, values=None):
        body = None if values is None else json.dumps(values).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", body, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    try:
        for _ in range(100):
            try:
                ask("GET", "status")
                break
            except OSError:
                time.sleep(0.1)
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ]
        options = {"binary": CHROMIUM, "args": arguments}
        logging = {"browser": "ALL", "performance": "ALL"}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logging}
        session = ask("POST", "session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        page = Page(lambda method, path, values=None: ask(method, f"session/{session}/{path}", values))
        page.command("Page.navigate", url="about:blank")
        time.sleep(0.5)  # Chromium's own first page finishes loading
        page.requests()
        yield page
        ask("DELETE", f"session/{session}")
    finally:
        driver.terminate()
        driver.wait(timeout=20)
