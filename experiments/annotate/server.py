"""The page's server: Python's own, for this machine alone.

Whoever knows the address may draw; nobody else may do anything. Each request has to name this machine as `Host`, so
that a foreign site whose name was made to point here (DNS rebinding) gets nothing, and the token of the address, which
other sites and other users of the machine do not know. Names of images are looked up among those of the folder, and
become no paths.
"""

from __future__ import annotations

import errno
import io
import json
import secrets
import socketserver
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from datamodules.splits import in_hash_order
from experiments.annotate.drawings import Drawings, Stale, from_runs, to_runs
from experiments.annotate.predictions import Predictions
from experiments.annotate.suggestion import next_image
from experiments.annotate.training import Training

HERE = "127.0.0.1"
PORT, PORTS = 8765, 20  # the first that is tried, and how many
MOST_BYTES = 2**26  # of a request
MOST_SCORED = 100  # images that a suggestion chooses among
DARK, LIGHT = 64, (245, 245, 245)  # a class drawn in black would not be seen
PAGE = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refusal(Exception):
    """An answer other than OK: its status and one sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Desk:
    """What the page works with: the drawings, and perhaps a model and its training."""

    def __init__(self, drawings: Drawings, predictions: Predictions | None, training: Training | None) -> None:
        self.drawings, self.predictions, self.training = drawings, predictions, training

    def close(self) -> None:
        """End what runs beside the page."""
        if self.training:
            self.training.stop()
        if self.predictions:
            self.predictions.stop()

    def state(self) -> dict[str, Any]:
        drawings, done = self.drawings, {*self.drawings.done()}
        shown = [color if max(color) >= DARK else LIGHT for color in drawings.colors]
        return {
            "folder": drawings.root.resolve().name,
            "classes": [{"name": n, "color": c} for n, c in zip(drawings.class_names, shown, strict=True)],
            "images": [
                {"name": name, "done": name in done, "labelled": drawings.is_labelled(name)} for name in drawings.images
            ],
            **self.news(),
        }

    def news(self) -> dict[str, Any]:
        """What changes by itself: the model (0: there is none), and how the training is."""
        return {
            "model": self.predictions.generation if self.predictions else 0,
            "training": self.training.status() if self.training else None,
        }

    def mask(self, name: str) -> dict[str, Any]:
        mask, version = self.drawings.mask(name)
        return {"version": version, "size": mask.shape, "runs": to_runs(mask)}

    def draw(self, name: str, content: dict[str, Any]) -> dict[str, Any]:
        mask = from_runs(content.get("runs"), self.drawings.size(name))
        return {"version": self.drawings.write(name, mask, str(content.get("version")))}

    def mark(self, name: str, content: dict[str, Any]) -> dict[str, Any]:
        if type(content.get("done")) is not bool:
            raise ValueError("done is true or false")
        self.drawings.set_done(name, content["done"])
        if self.training:
            self.training.consider(self.drawings.done())
        return {"done": content["done"]}

    def prediction(self, name: str) -> dict[str, Any]:
        if not self.predictions or not self.predictions.generation:
            raise ValueError("there is no model yet: start with --run DIR, or --train N and mark N images done")
        self.drawings.images[name]
        found = self.predictions.ask(name)
        return {"pending": True} if found is None else found._asdict()

    def suggestion(self) -> dict[str, Any]:
        """The image to label next, once the model has seen all that it could be; without a model the next in order."""
        done = {*self.drawings.done()}
        names = [one for one in self.drawings.images if one not in done and not self.drawings.is_labelled(one)]
        if not self.predictions or not self.predictions.generation:
            return {"name": names[0] if names else None, "scored": 0, "of": 0}
        names = in_hash_order(names)[:MOST_SCORED]
        scores = self.predictions.score(names)
        name = next_image(scores) if len(scores) == len(names) else None
        return {"name": name, "scored": len(scores), "of": len(names)}


class Server(ThreadingHTTPServer):
    """Serves a desk at 127.0.0.1.

    Args:
        desk: what the page works with.
        port: the first one that is tried, 0: any that is free.

    Raises:
        OSError: this port and the next ones are taken.
    """

    daemon_threads = True
    allow_reuse_port = False

    def __init__(self, desk: Desk, port: int = PORT) -> None:
        self.desk, self.token = desk, secrets.token_urlsafe(24)
        for number in range(port, port + PORTS if port else 1):
            try:
                super().__init__((HERE, number), Handler)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        else:
            raise OSError(f"ports {port} to {port + PORTS - 1} of {HERE} are taken: choose another with --port")
        self.hosts = {f"{HERE}:{self.server_port}", f"localhost:{self.server_port}"}
        self.address = f"http://{HERE}:{self.server_port}/{self.token}/"

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # http.server asks for the machine's name, which may take seconds
        self.server_name, self.server_port = HERE, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a browser that went away


class Handler(BaseHTTPRequestHandler):
    """One request: in HTTP/1.0, so that no connection outlives the server, or the body of a refused request."""

    server: Server
    server_version, sys_version = "weakseg", ""
    timeout = 60  # seconds without a byte

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, find: Any) -> None:
        try:
            content, kind = find(*self._checked())
            self._send(HTTPStatus.OK, content, kind)
        except Refusal as error:
            self._refuse(error.status, str(error))
        except Stale as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
        except KeyError:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such image")
        except (ValueError, FileNotFoundError) as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except Exception as error:  # of the disk, or a mistake of ours: the page tells it
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")

    def _checked(self) -> tuple[str, str]:
        """What is asked for, and of which image. Raises Refusal."""
        server, parts = self.server, urlsplit(self.path)
        if self.headers.get("Host") not in server.hosts:
            raise Refusal(HTTPStatus.FORBIDDEN, f"only for {HERE} on this machine, port {server.server_port}")
        _, token, *rest = [*parts.path.split("/"), ""]  # "/TOKEN/what"
        if not secrets.compare_digest(token.encode("utf-8", "replace"), server.token.encode()):
            raise Refusal(HTTPStatus.FORBIDDEN, "open the address that weakseg annotate has printed")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in server.hosts}:
            raise Refusal(HTTPStatus.FORBIDDEN, "another site asks")
        return "/".join(rest[:-1]), parse_qs(parts.query).get("name", [""])[0]

    def _get(self, what: str, name: str) -> tuple[bytes, str]:
        desk = self.server.desk
        if what in PAGE:
            file, kind = PAGE[what]
            return (Path(__file__).parent / file).read_bytes(), kind
        if what == "image":
            content = io.BytesIO()
            Image.fromarray(desk.drawings.image(name)).save(content, "JPEG", quality=95, subsampling=0)
            return content.getvalue(), "image/jpeg"
        match what:
            case "state":
                return as_json(desk.state())
            case "news":
                return as_json(desk.news())
            case "mask":
                return as_json(desk.mask(name))
            case "prediction":
                return as_json(desk.prediction(name))
            case "suggestion":
                return as_json(desk.suggestion())
        raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _post(self, what: str, name: str) -> tuple[bytes, str]:
        content = self._body()
        match what:
            case "mask":
                return as_json(self.server.desk.draw(name, content))
            case "done":
                return as_json(self.server.desk.mark(name, content))
        raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "say how long it is")
        if len(length) > 12 or int(length) > MOST_BYTES:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a mask takes at most {MOST_BYTES} bytes")
        if self.headers.get_content_type() != "application/json":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON")
        try:
            content = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise Refusal(HTTPStatus.BAD_REQUEST, "this is no JSON") from None
        if not isinstance(content, dict):
            raise Refusal(HTTPStatus.BAD_REQUEST, "this is no JSON object")
        return content

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self._send(status, *as_json({"error": sentence}))

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass  # the token is in every address


def as_json(content: dict[str, Any]) -> tuple[bytes, str]:
    return json.dumps(content).encode(), "application/json"
