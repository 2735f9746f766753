"""A chat endpoint on this machine that does what a test tells it to, and time that a test can hold."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffscale.verifiers.grader.tries import Timing
from diffscale.verifiers.grader.verifier import LlmGrader

KEY = "sk-test-0123456789abcdef"
Make = Callable[..., LlmGrader]
NAMES = ("accuracy", "creativity", "quality", "consistency", "resonance")


@dataclass
class Asked:
    """A request as it arrived; the names of headers, which have no case, in Title-Case."""

    body: dict[str, Any]
    headers: dict[str, str]
    path: str

    @property
    def text(self) -> str:
        return self.body["messages"][0]["content"][0]["text"]

    @property
    def prompt(self) -> str:
        return json.loads(self.text.rpartition("Prompt: ")[2])

    @property
    def picture(self) -> NDArray[np.uint8]:
        (picture,) = self.pictures
        return picture

    @property
    def pictures(self) -> list[NDArray[np.uint8]]:
        return [_decoded(part["image_url"]["url"]) for part in self.body["messages"][0]["content"][1:]]

    @property
    def format(self) -> str | None:
        return self.body.get("response_format", {}).get("type")


def _decoded(url: str) -> NDArray[np.uint8]:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format == "PNG"
    return np.asarray(image)


@dataclass
class Reply:
    """What goes back; `cut`: the connection is dropped after so many bytes of the body, -1: before the status line.

    `pause`: seconds before every byte of the body.
    """

    body: str | bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    pause: float = 0.0


def grade(overall: float = 7.0, reason: str = "seen", **scores: float) -> dict[str, Any]:
    """A grade as a model writes it: aspects 1 to 5 in order, unless given."""
    aspects = {name: scores.get(name, float(at)) for at, name in enumerate(NAMES, 1)}
    return {name: {"reason": reason, "score": score} for name, score in aspects.items()} | {"overall": overall}


def written(content: str | None, prompt_tokens: int = 100, completion_tokens: int = 10, logprobs: Any = None) -> Reply:
    """A chat completion of that text, with what the server says of log-probabilities."""
    message = {"role": "assistant", "content": content}
    return Reply(
        json.dumps(
            {
                "id": "x",
                "object": "chat.completion",
                "choices": [{"index": 0, "finish_reason": "stop", "message": message, "logprobs": logprobs}],
                "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": 0},
            }
        )
    )


def good(overall: float = 7.0, **more: Any) -> Reply:
    return written(json.dumps(grade(overall, **more)))


def fails(status: int, message: str = "no", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(json.dumps({"error": {"message": message}}), status, named)


def pictures(n: int, seed: int = 0) -> Tensor:
    """Small noise pictures, all different: [n, 3, 6, 4]."""
    return torch.rand(n, 3, 6, 4, generator=torch.Generator().manual_seed(seed))


Script = Callable[[Asked], Reply]


class ChatServer:
    """Replies with `script` (requests count up in `asked`), or with the `replies` in order, the last for ever."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.replies: list[Reply] = [good()]
        self.script: Script = lambda asked: self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked = Asked(body, {name.title(): value for name, value in self.headers.items()}, self.path)
                with server.lock:
                    server.asked.append(asked)
                    script = server.script
                server.send(self, script(asked))

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        data = reply.body if isinstance(reply.body, bytes) else reply.body.encode()
        try:
            if reply.cut != -1:
                handler.send_response(reply.status)
                for name, value in reply.headers.items():
                    handler.send_header(name, value)
                handler.send_header("Content-Length", str(len(data)))
                handler.end_headers()
                for byte in range(len(data) if reply.pause else 0):
                    time.sleep(reply.pause)
                    handler.wfile.write(data[byte : byte + 1])
                if not reply.pause:
                    handler.wfile.write(data[: reply.cut])
            if reply.cut is not None:
                handler.close_connection = True
        except OSError:
            handler.close_connection = True  # the client gave up

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class Time:
    """Time that passes in waits alone, or never (`frozen`); `jitter` from 0, shortest waits, to 1, longest."""

    def __init__(self, jitter: float = 1.0, frozen: bool = False) -> None:
        self.at = 1_000_000.0
        self.waits: list[float] = []
        self._lock = threading.Lock()
        self._jitter = jitter
        self._frozen = frozen

    def _wait(self, stop: threading.Event, seconds: float) -> None:
        with self._lock:
            self.waits.append(seconds)
            self.at += 0 if self._frozen else seconds

    @property
    def timing(self) -> Timing:
        def uniform(low: float, high: float) -> float:
            assert (low, high) == (0.5, 1.0)
            return low + self._jitter * (high - low)

        return Timing(clock=lambda: self.at, now=lambda: self.at, wait=self._wait, uniform=uniform)
