"""The key goes to the server and nowhere else, though the server sends it back in every way it can."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_server import KEY, Asked, ChatServer, Make, Reply, fails, good, pictures, written
from PIL import Image
from pydantic import SecretStr

from diffscale._util.errors import DiffscaleError
from diffscale.bench.config import GenerateConfig
from diffscale.bench.evaluation import features
from diffscale.bench.generate import prepare
from diffscale.cli.main import run
from diffscale.train.data import sources
from diffscale.verifiers import load
from diffscale.verifiers.grader.endpoint import Endpoint, _written_address, resolve
from diffscale.verifiers.grader.grade import ASPECTS, Grade, GradeCache, default_path
from diffscale.verifiers.grader.verifier import LlmGrader

pytest_plugins = ["grader_fixtures"]
PROMPT = "a red circle above a blue square"


def indiscreet(asked: Asked) -> Reply:
    """Says the key in what the model wrote, of one picture or of two."""
    if len(asked.pictures) == 2:
        said = f"first, {asked.headers['Authorization']}"
        likely = [{"token": "first", "logprob": -0.5}, {"token": KEY, "logprob": -1.0}]
        return written(said, logprobs={"content": [likely[0] | {"top_logprobs": likely}, likely[1]]})
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
    assert "3 candidates shared the best score; chosen by 3 comparisons" in said
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
            grader = make_grader(tries=2)
            grader(pictures(1, seed=len(said)), ["p"])
            grader.compare(pictures(1, seed=len(said)), pictures(1, seed=99), ["p"])
        said += [str(one.message) for one in caught]
    assert sum("***" in text or "answer" in text for text in said) >= 8
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


IN_PATHS = [
    "sk-proj-abcdefgh", "sk-ant-api03-AbCdEf123456", "hf_abcdefghijklmnop", "a3f5c9d2e1b40786", "AbCdEfGhIjKlMnOpQrSt",
    "0123456789abcdef0123456789abcdef", "123e4567-e89b-42d3-a456-426614174000", "x%2Fsk_1234567890abcdef",
    "KEY-12345678",    "9876543210987654", "token_abcdefghijk",
]  # fmt: skip
WITHOUT_KEYS = [
    "https://api.openai.com/v1", "http://localhost:11434/v1", "https://openrouter.ai/api/v1", "https://api.deepseek.com",
    "https://name.openai.azure.com/openai/deployments/gpt-4o-2024-08-06", "https://api.groq.com/openai/v1",
    "https://generativelanguage.googleapis.com/v1beta/openai", "https://api.fireworks.ai/inference/v1",
    "https://us-central1-aiplatform.googleapis.com/v1/projects/my-project-123/locations/us-central1/endpoints/openapi",
    "https://router.huggingface.co/hf-inference/models/meta-llama/Llama-3.2-11B-Vision-Instruct/v1",
    "https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "https://abcdefghij1234567890.endpoints.huggingface.cloud/v1",
]  # fmt: skip


@pytest.mark.parametrize("part", IN_PATHS)
def test_a_key_in_the_path_of_an_address_is_in_no_command_and_in_no_message(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"https://gateway.example/{part}/openai/v1"
    command = ["generate", PROMPT, "--output", str(tmp_path / "run")]
    command += ["--verifier", f"llm_grader model=seer base_url={address}"]
    monkeypatch.setattr(sys, "argv", ["diffscale", *command])
    with pytest.raises(SystemExit) as stopped:
        run()
    said = "".join(capsys.readouterr())
    assert stopped.value.code == 2 and "OPENAI_BASE_URL" in said and part not in said
    assert not (tmp_path / "run").exists()
    # From the environment it is used, and hidden wherever a server or a client tells of it.
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    endpoint = resolve("seer", None, "OPENAI_API_KEY")
    assert part in endpoint.url and part not in endpoint.redact(f"POST {endpoint.url} failed: no such path {part}")


@pytest.mark.parametrize("address", WITHOUT_KEYS)
def test_usual_addresses_pass(address: str) -> None:
    endpoint = resolve("seer", _written_address(address), "OPENAI_API_KEY")
    assert endpoint.redact(endpoint.url) == endpoint.url


def test_grades_and_caches_are_for_their_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o022)
    try:
        monkeypatch.setenv("DIFFSCALE_CACHE", str(tmp_path / "made" / "cache"))
        old = tmp_path / "old.sqlite"
        old.touch(0o644)
        for path in (default_path(), old):
            cache = GradeCache(path)
            aspect = {"reason": "x", "score": 5.0}
            cache.put("p", PROMPT, "m", "g", Grade(**dict.fromkeys(ASPECTS, aspect), overall=5.0))
            files = list(path.parent.glob(f"{path.name}*"))
            assert len(files) == 3 and {file.stat().st_mode & 0o777 for file in files} == {0o600}
            cache.close()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        for folder in (default_path().parent, sources.cache_folder().parent, features.cache_folder().parent):
            assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
