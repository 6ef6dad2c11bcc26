"""OHIF, the web viewer, in a headless browser on an Orthanc's DICOMweb.

OHIF's built pages are the npm package ``@ohif/app``; one pinned version is fetched with
``npm pack`` into pytest's cache, or taken from the folder that ``OHIF_DIST`` names. A small server
gives them to Chromium with the headers that they need and passes ``/dicom-web/`` on to Orthanc.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.support.peers import missing, require_program

VERSION = "3.13.2"
_SCREEN = (1600, 1000)

_CONFIG = """window.config = {
  routerBasename: null, extensions: [], modes: [], showStudyList: true,
  customizationService: {}, maxNumberOfWebWorkers: 2, showLoadingIndicator: true,
  showWarningMessageForCrossOrigin: false, showCPUFallbackMessage: false,
  strictZSpacingForVolumeViewport: true, investigationalUseDialog: { option: 'never' },
  defaultDataSourceName: 'orthanc',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'orthanc',
    configuration: {
      friendlyName: 'Orthanc', name: 'orthanc',
      wadoUriRoot: '/dicom-web', qidoRoot: '/dicom-web', wadoRoot: '/dicom-web',
      qidoSupportsIncludeField: false, imageRendering: 'wadors', thumbnailRendering: 'wadors',
      enableStudyLazyLoad: true, supportsFuzzyMatching: false, supportsWildcard: true,
      dicomUploadEnabled: false, omitQuotationForMultipartRequest: true,
      bulkDataURI: { enabled: true, relativeResolution: 'studies' },
    },
  }],
};
"""


def ohif_pages(cache: Path) -> Path:
    """Folder of OHIF's built pages; `missing` where it can be had neither here nor by npm."""
    given = os.environ.get("OHIF_DIST")
    if given:
        return Path(given)
    folder = cache / f"ohif-{VERSION}"
    if not (folder / "package" / "dist" / "index.html").is_file():
        npm = shutil.which("npm")
        if npm is None:
            missing("npm, which fetches the viewer's pages (@ohif/app),", "npm")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        done = subprocess.run(
            [npm, "pack", f"@ohif/app@{VERSION}"], cwd=folder, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        archives = list(folder.glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            missing(f"@ohif/app {VERSION} (npm could not fetch it: {done.stderr[-300:]})", "npm")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(folder, filter="data")
        archives[0].unlink()
    return folder / "package" / "dist"


@contextmanager
def serve_ohif(pages: Path, dicomweb: str) -> Iterator[str]:
    """Serve OHIF on a free port of loopback; the address.

    `dicomweb` is the root to pass ``/dicom-web`` on to. Every answer asks for cross-origin
    isolation, without which the browser gives OHIF no shared memory.
    """

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, directory=str(pages), **kwargs)

        def end_headers(self) -> None:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/dicom-web/"):
                self._pass_on()
            elif path == "/app-config.js":
                self._answer(200, "application/javascript", _CONFIG.encode())
            else:
                if not (pages / path.lstrip("/")).is_file():
                    self.path = "/index.html"  # the page's own router knows the rest
                super().do_GET()

        def _pass_on(self) -> None:
            request = urllib.request.Request(
                dicomweb + self.path.removeprefix("/dicom-web"),
                headers={"Accept": self.headers.get("Accept", "*/*")},
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as got:
                    self._answer(got.status, got.headers["Content-Type"], got.read())
            except urllib.error.HTTPError as error:
                self._answer(error.code, "text/plain", error.read())

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def browser(profile: Path) -> Iterator[Any]:
    """Chromium without a screen and without the network; a selenium driver."""
    from selenium import webdriver  # a real browser's driver: only where one is opened

    program = require_program("chromium", "chromium")
    driver_program = require_program("chromedriver", "chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader", "--disable-dev-shm-usage", "--disable-extensions",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-default-apps", "--no-first-run", "--no-pings", "--disable-domain-reliability",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={profile}", f"--window-size={_SCREEN[0]},{_SCREEN[1]}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=driver_program)
    )
    try:
        yield driver
    finally:
        driver.quit()


class OhifViewer:
    """One study opened in OHIF's basic viewer.

    Parameters
    ----------
    driver
        Of `browser`.
    address
        Of `serve_ohif`.
    shots
        Folder that screenshots are written to.
    """

    def __init__(self, driver: Any, address: str, shots: Path) -> None:
        self.driver = driver
        self.address = address
        self.shots = shots
        shots.mkdir(parents=True, exist_ok=True)

    def open(self, study_uid: str, mode: str = "viewer") -> None:
        """Open the study, wait for its thumbnails and dismiss the tour."""
        self.driver.get("about:blank")
        self.console()
        self.driver.get(f"{self.address}/{mode}?StudyInstanceUIDs={study_uid}")
        self.wait(lambda: self.thumbnails(), 60, "thumbnails of the study")
        self.wait(lambda: self._canvases(), 60, "a viewport")
        time.sleep(2)
        self.press_if_there("Skip all")

    def show(self, query: str, settle_s: float = 6.0) -> None:
        """Open a page of the viewer and let it draw."""
        self.driver.get(self.address + query)
        time.sleep(settle_s)

    def thumbnails(self) -> list[str]:
        """Texts of the series in the study browser."""
        found = self.driver.find_elements(
            "css selector",
            '[data-cy="study-browser-thumbnail"],[data-cy="study-browser-thumbnail-no-image"]',
        )
        return [element.text for element in found]

    def open_series(self, description: str, settle_s: float = 6.0) -> None:
        """Double-click the series whose thumbnail names `description`."""
        from selenium.webdriver import ActionChains

        for element in self.driver.find_elements(
            "css selector",
            '[data-cy="study-browser-thumbnail"],[data-cy="study-browser-thumbnail-no-image"]',
        ):
            if description in element.text:
                self.driver.execute_script("arguments[0].scrollIntoView()", element)
                ActionChains(self.driver).double_click(element).perform()
                time.sleep(settle_s)
                return
        raise AssertionError(f"no series {description!r} among {self.thumbnails()}")

    def press_if_there(self, text: str) -> bool:
        """Press a button by its text; whether there was one."""
        for element in self.driver.find_elements("xpath", f"//button[contains(., '{text}')]"):
            if element.is_displayed():
                element.click()
                time.sleep(0.5)
                return True
        return False

    def text(self) -> str:
        """All text on the page."""
        return str(self.driver.find_element("tag name", "body").text)

    def image_number(self) -> int:
        """Instance Number of the image in the viewport, from its corner."""
        found = re.search(r"I:\s*(\d+)\s*\(", self.text())
        assert found, "no image number in the viewport's corner"
        return int(found[1])

    def next_measurement(self, settle_s: float = 3.0) -> None:
        """Press the report's arrow to the right."""
        self.driver.find_element("css selector", '[data-cy="viewport-action-arrows-right"]').click()
        time.sleep(settle_s)

    def arrow_tip(self) -> tuple[float, float] | None:
        """(x, y) within the viewport of the tip of the arrow that OHIF draws for a POINT."""
        tip = self.driver.execute_script(
            "const l = document.querySelector('svg.svg-layer line');"
            "return l && [l.getAttribute('x2'), l.getAttribute('y2')]"
        )
        return tip and (float(tip[0]), float(tip[1]))

    def on_screen(self, column: float, row: float, columns: int, rows: int) -> tuple[float, float]:
        """Where a place on the image (square pixels) lies within the viewport that it fills."""
        width, height = self.driver.execute_script(
            "const r = document.querySelector('svg.svg-layer').getBoundingClientRect();"
            "return [r.width, r.height]"
        )
        scale = min(width / columns, height / rows)
        return (
            width / 2 + (column - columns / 2) * scale,
            height / 2 + (row - rows / 2) * scale,
        )

    def shot(self, name: str) -> NDArray[np.uint8]:
        """Take a screenshot, keep it as a file, return RGB."""
        png = self.driver.get_screenshot_as_png()
        (self.shots / f"{name}.png").write_bytes(png)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def viewport(self, name: str) -> NDArray[np.uint8]:
        """Take a screenshot and return the first viewport's part of it, RGB."""
        picture = self.shot(name)
        box = self.driver.execute_script(
            "const r = document.querySelector('[data-cy=viewport-grid]').getBoundingClientRect();"
            "return [r.left, r.top, r.right, r.bottom]"
        )
        left, top, right, bottom = (round(v) for v in box)
        return picture[top:bottom, left:right]

    def console(self) -> list[str]:
        """Messages of level SEVERE since the last call."""
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] == "SEVERE"]

    def wait(self, what: Callable[[], Any], timeout_s: float, message: str) -> Any:
        """Poll until `what` is truthy; its value."""
        deadline = time.monotonic() + timeout_s
        while True:
            value = what()
            if value:
                return value
            if time.monotonic() > deadline:
                self.shot("timeout")
                raise AssertionError(f"not within {timeout_s:g} s: {message}; {self.console()}")
            time.sleep(0.3)

    def _canvases(self) -> list[Any]:
        return list(self.driver.find_elements("css selector", "canvas"))


def upload(http_port: int, content: bytes) -> None:
    """Store one Part 10 file by Orthanc's REST interface."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{http_port}/instances", data=content,
        headers={"Content-Type": "application/dicom"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as got:
        assert json.loads(got.read())["Status"] in ("Success", "AlreadyStored")
