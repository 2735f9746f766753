"""The key goes to the server and nowhere else, though the server sends it back in every way it can."""

from __future__ import annotations

import dataclasses
import logging
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_server import KEY, Asked, ChatServer, Make, Reply, fails, good, pictures
from PIL import Image
from pydantic import SecretStr

from diffscale._util.errors import DiffscaleError
from diffscale.bench.config import GenerateConfig
from diffscale.bench.generate import prepare
from diffscale.cli.main import run
from diffscale.verifiers import load
from diffscale.verifiers.grader.endpoint import Endpoint, resolve
from diffscale.verifiers.grader.verifier import LlmGrader

pytest_plugins = ["grader_fixtures"]
PROMPT = "a red circle above a blue square"


def indiscreet(asked: Asked) -> Reply:
    """Says the key in what the model wrote."""
    return good(6.0, reason=f"You sent {asked.headers['Authorization']}.")


def holding_the_key(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_a_run_leaves_the_key_nowhere(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = indiscreet
    output = tmp_path / "run"
    monkeypatch.setenv("DIFFSCALE_CACHE", str(tmp_path / "cache"))
    command = ["generate", PROMPT, "--budget", "6", "--steps", "2", "--output", str(output)]
    command += ["--verifier", f"llm_grader model=seer base_url={server.url}"]
    monkeypatch.setattr(sys, "argv", ["diffscale", *command])
    with pytest.raises(SystemExit) as stopped:
        run()
    said = "".join(capsys.readouterr())
    assert not stopped.value.code, said
    assert "best of 3 6.0000" in said
    assert len(list(output.iterdir())) >= 5
    assert {asked.headers["Authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
    assert KEY not in said
    assert holding_the_key(tmp_path) == []
    # The best picture as it lies there is known, and what is known of it holds no key either.
    requests = len(server.asked)
    pixels = torch.from_numpy(np.array(Image.open(output / "best.png").convert("RGB")))
    grader = LlmGrader("seer", server.url)
    (grade,) = grader.grades((pixels.permute(2, 0, 1) / 255)[None], [PROMPT])
    grader.close()
    assert len(server.asked) == requests
    assert grade is not None
    assert grade.accuracy.reason == "You sent Bearer ***."


def test_no_log_warning_or_error_holds_it(
    server: ChatServer, make_grader: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    for name in ("openai", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(1)
    echo = f"what is {'x' * 150} Bearer {KEY}?"
    said: list[str] = []
    # Dropped pictures: server errors, refusals, malformed answers; then what ends the run.
    for last in (fails(500, echo), fails(400, echo), Reply(echo), good(99.0, reason=echo), good(reason=f'"}}{KEY}')):
        server.replies = [last]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make_grader(tries=2)(pictures(1, seed=len(said)), ["p"])
        said += [str(one.message) for one in caught]
    assert sum("***" in text or "answer" in text for text in said) >= 4
    for status in (401, 402, 404, 302):
        server.replies = [fails(status, echo, Location=f"/{KEY}", Set_Cookie=KEY)]
        with pytest.raises(DiffscaleError) as caught_error:
            make_grader()(pictures(1), ["q"])
        said.append("".join(traceback.format_exception(caught_error.value)))
    server.replies = [fails(429, echo, Retry_After="99999")]
    with pytest.raises(DiffscaleError) as caught_error:
        make_grader()(pictures(1), ["q"])
    said.append("".join(traceback.format_exception(caught_error.value)))
    assert len(server.asked) > 10
    assert len(caplog.records) > 10  # the client does log
    assert not any(KEY[:12] in text for text in [*said, caplog.text, *(repr(r.__dict__) for r in caplog.records)])


def test_no_object_shows_it(server: ChatServer, make_grader: Make) -> None:
    endpoint = resolve("m", server.url, "OPENAI_API_KEY")
    grader = make_grader()
    shown = [
        repr(endpoint),
        str(endpoint.key),
        repr(endpoint.key),
        f"{endpoint}",
        repr(dataclasses.asdict(endpoint)),
        repr(grader),
    ]
    shown += [repr(vars(grader)), repr(vars(grader._client)), repr(vars(grader._client._client)), repr(grader.costs)]
    assert not any(KEY in text for text in shown)
    assert endpoint.key.get_secret_value() == KEY


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (f"llm_grader model=m base_url=http://x/v1 key_env={KEY}", "never the key"),
        (f"llm_grader model=m base_url=http://user:{KEY}@x/v1", "no user, password"),
        (f"llm_grader model=m base_url=http://x/v1?key={KEY}", "no user, password, query"),
        (f"llm_grader model=m base_url=http://x:{KEY}/v1", "cannot be read"),
        (f"llm_grader model=m base_url=http://x/v1 key={KEY}", "Unknown argument of verifier llm_grader 'key'"),
    ],
)
def test_a_key_in_a_command_is_refused_before_anything_is_written(
    command: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DiffscaleError, match=says) as error:
        prepare(tmp_path / "run", GenerateConfig(verifier=command))
    assert not (tmp_path / "run").exists()
    assert KEY not in "".join(traceback.format_exception(error.value))
    with pytest.raises(DiffscaleError, match=says):
        load(command)


def test_a_key_that_is_no_header_is_refused_unquoted(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (f"{KEY}\nX-Other: 1", f"{KEY} b", f"{KEY}é"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(DiffscaleError, match="variable OPENAI_API_KEY has blanks") as error:
            resolve("m", "http://x/v1", "OPENAI_API_KEY")
        assert KEY not in str(error.value)
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")  # as `export KEY=$(cat file)` has it
    assert resolve("m", "http://x/v1", "OPENAI_API_KEY").key.get_secret_value() == KEY


def test_a_program_may_give_the_key(server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSCALE_CACHE", str(tmp_path))
    grader = LlmGrader("m", server.url, key="given-by-hand-42")
    grader(pictures(1), ["p"])
    assert server.asked[0].headers["Authorization"] == "Bearer given-by-hand-42"
    grader.close()


def test_the_logs_are_left_as_they_were(make_grader: Make) -> None:
    names = ("openai._base_client", "httpx2", "httpcore2.http11")
    before = [list(logging.getLogger(name).filters) for name in names]
    make_grader().close()
    assert [list(logging.getLogger(name).filters) for name in names] == before


def test_a_placeholder_is_not_hidden_from_words() -> None:
    for key in ("ollama", ""):
        endpoint = Endpoint("http://x/v1", "m", SecretStr(key), "OPENAI_API_KEY")
        assert endpoint.redact("ollama has no such model") == "ollama has no such model"
