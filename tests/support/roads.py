"""Peers of the roads beside DICOM: an MLLP listener, HTTP servers, a small UPS-RS server.

The MLLP listener is asyncio and reads HL7 by the `hl7` library, not by the one that wrote it. The
UPS-RS server is this suite's own, since no free one is at hand: it holds the state machine of
PS3.4 Table CC.1.1-1 as far as Create, Update, Change State and Retrieve go.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

import hl7


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MllpListener:
    """Acknowledges what comes, and remembers it.

    Parameters
    ----------
    answer
        From the received message and how often this control id has come (1 for the first) to
        (MSA-1, ERR-3) or None: close without an answer.
    """

    def __init__(
        self,
        port: int = 0,
        answer: Callable[[hl7.Message, int], tuple[str, str] | None] = lambda _m, _n: ("AA", ""),
    ) -> None:
        self.port = port
        self.received: list[bytes] = []
        self._answer = answer
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def messages(self) -> list[hl7.Message]:
        return [parse(body) for body in self.received]

    def __enter__(self) -> MllpListener:
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", self.port), self._loop
        )
        self._server = starting.result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_exc: object) -> None:
        async def stop() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                block = await reader.readuntil(b"\x1c\r")
                assert block[:1] == b"\x0b"
                body = block[1:-2]
                self.received.append(body)
                message = parse(body)
                control_id = str(message.segment("MSH")[10])
                seen = sum(str(m.segment("MSH")[10]) == control_id for m in self.messages)
                answer = self._answer(message, seen)
                if answer is None:
                    break
                code, error = answer
                lines = [
                    f"MSH|^~\\&|RIS||||20260101||ACK^R01|a1|P|2.5.1\rMSA|{code}|{control_id}|x"
                ]
                if error:
                    lines.append(f"ERR|||{error}^words^HL70357|E||||PATIENT DOE^JANE unknown")
                writer.write(b"\x0b" + "\r".join(lines).encode() + b"\r\x1c\r")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


HL7_CODECS = {"UNICODE UTF-8": "utf-8", "8859/1": "latin-1", "8859/5": "iso8859_5", "": "ascii"}


def parse(body: bytes) -> hl7.Message:
    """Read an HL7 message in the character set that it names itself."""
    header = body.split(b"\r", 1)[0].split(b"|")
    codec = HL7_CODECS[header[17].decode() if len(header) > 17 else ""]
    return hl7.parse(body.decode(codec))


@dataclass
class Request:
    """What a server was sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Answer = tuple[int, dict[str, str], bytes]


@dataclass
class HttpPeer:
    """A small HTTP server that remembers what it was sent and answers as told."""

    answer: Callable[[Request], Answer] = lambda _request: (200, {}, b"{}")
    port: int = 0
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> HttpPeer:
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                request = Request(
                    self.command,
                    self.path,
                    {k.lower(): v for k, v in self.headers.items()},
                    self.rfile.read(length),
                )
                peer.requests.append(request)
                status, headers, body = peer.answer(request)
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                if status != 204:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = handle_any  # noqa: N815

            def log_message(self, *_args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class UpsServer:
    """Workitems by UID, with the states and transaction UIDs of UPS-RS (PS3.18 Section 11)."""

    def __init__(self) -> None:
        self.workitems: dict[str, dict[str, Any]] = {}
        self.order: list[str] = []
        self.lose_after: set[str] = set()
        """Requests (method and path's end) that are carried out, but answered 503 once."""
        self.keys = dict(SEARCH_KEYS)
        """Keys that a search can match; one with any other is answered 400."""

    def __call__(self, request: Request) -> Answer:
        status, body = self._handle(request)
        for marker in list(self.lose_after):
            if f"{request.method} {request.path}".find(marker) >= 0 and status < 300:
                self.lose_after.discard(marker)
                return 503, {}, b""
        if status == 204:
            return status, {}, b""
        return status, {"Content-Type": "application/dicom+json"}, json.dumps(body).encode()

    def _handle(self, request: Request) -> tuple[int, Any]:
        path, _, query = request.path.partition("?")
        parts = path.strip("/").split("/")
        assert parts[0] == "workitems"
        if request.method == "POST" and len(parts) == 1:
            return self._create(query, request.json)
        if request.method == "GET" and len(parts) == 1:
            return self._search(query)
        uid = parts[1]
        item = self.workitems.get(uid)
        if item is None:
            return 404, []
        if request.method == "GET":
            return 200, [item]
        (change,) = request.json
        if request.method == "PUT" and parts[2:] == ["state"]:
            return self._change_state(item, change)
        if request.method == "POST" and len(parts) == 2:
            return self._update(item, change, query)
        return 405, []

    def _create(self, uid: str, content: list[dict[str, Any]]) -> tuple[int, Any]:
        (item,) = content
        if uid in self.workitems:
            return 409, []
        missing = [tag for tag in REQUIRED_AT_CREATION if not item.get(tag, {}).get("Value")]
        empty = [tag for tag in EMPTY_AT_CREATION if tag not in item or item[tag].get("Value")]
        if missing or empty or item["00741000"]["Value"] != ["SCHEDULED"]:
            return 400, [missing, empty]
        self.workitems[uid] = dict(item)
        self.order.append(uid)
        return 201, []

    def _change_state(self, item: dict[str, Any], change: dict[str, Any]) -> tuple[int, Any]:
        (now,), (wanted,) = item["00741000"]["Value"], change["00741000"]["Value"]
        transaction = change.get("00081195", {}).get("Value")
        if not transaction:
            return 400, []
        if (now, wanted) == ("SCHEDULED", "IN PROGRESS"):
            item["00081195"] = {"vr": "UI", "Value": transaction}
        elif (now, wanted) == ("IN PROGRESS", "COMPLETED"):
            performed = item["00741216"].get("Value")
            if item["00081195"]["Value"] != transaction or not performed:
                return 409, []
        else:
            return 409, []
        item["00741000"] = {"vr": "CS", "Value": [wanted]}
        return 200, []

    def _search(self, query: str) -> tuple[int, Any]:
        found = list(self.workitems.items())
        for key, value in parse_qsl(query, strict_parsing=True):
            if key not in self.keys:
                return 400, []
            path = self.keys[key]
            found = [(uid, item) for uid, item in found if value in values_at(item, path)]
        # Only what every server returns: the identifier and the state.
        answer = [
            {"00080018": {"vr": "UI", "Value": [uid]}, "00741000": item["00741000"]}
            for uid, item in found
        ]
        return (200, answer) if answer else (204, [])

    def _update(
        self, item: dict[str, Any], change: dict[str, Any], transaction: str
    ) -> tuple[int, Any]:
        if item["00741000"]["Value"] == ["SCHEDULED"]:
            # PS3.4 Section CC.2.6.2: without a Transaction UID, and never the state.
            if transaction or "00081195" in change or "00741000" in change:
                return 400, []
            item.update(change)
            return 200, []
        if item["00741000"]["Value"] != ["IN PROGRESS"]:
            return 409, []
        if item["00081195"]["Value"] != [transaction]:
            return 409, []
        item.update({k: v for k, v in change.items() if k != "00081195"})
        return 200, []


SEARCH_KEYS = {
    "StudyInstanceUID": ("0020000D",),
    "ReferencedRequestSequence.StudyInstanceUID": ("0040A370", "0020000D"),
    "ReferencedRequestSequence.AccessionNumber": ("0040A370", "00080050"),
}


def values_at(item: dict[str, Any], path: tuple[str, ...]) -> list[Any]:
    """Values of an attribute, inside sequences along the path, of a DICOM JSON object."""
    values = item.get(path[0], {}).get("Value") or []
    if len(path) == 1:
        return list(values)
    return [value for inner in values for value in values_at(inner, path[1:])]


REQUIRED_AT_CREATION = ("00741200", "00741204", "00404041", "00404005", "00741000", "00741202")
"""Type 1 of PS3.4 Table CC.2.5-3: priority, label, readiness, start, state; worklist label."""

EMPTY_AT_CREATION = ("00081195", "00741216", "00741002")
"""Transaction UID, performed procedure and progress: present and empty."""
