"""A chat endpoint, and graders of it: a plugin, as tests elsewhere import the conftest by its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import KEY, ChatServer, Make, Time

from diffscale.verifiers.grader.verifier import LlmGrader


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture
def make_grader(server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Graders of that server with one cache file, one request at a time and time that stands still."""
    made = []
    monkeypatch.setenv("DIFFSCALE_CACHE", str(tmp_path))

    def make(model: str = "seer", **options: Any) -> LlmGrader:
        made.append(LlmGrader(model, server.url, **{"concurrency": 1, "timing": Time().timing} | options))
        return made[-1]

    yield make
    for grader in made:
        grader.close()
