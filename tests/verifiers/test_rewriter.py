"""Wordings by a language model: what it is asked, what of its answers counts, and that it is asked once."""

import json

import pytest
import torch
from chat_server import KEY, Time, fails, written
from pipelines import Brightness

import diffscale
from diffscale._util.errors import DiffscaleError
from diffscale.api.rewriter import Rewriter
from diffscale.bench.config import BenchConfig, GenerateConfig
from diffscale.bench.generate import prepare
from diffscale.bench.generate import run as generate
from diffscale.bench.run import run as bench

pytest_plugins = ["grader_fixtures"]
PROMPT = "a green star and a yellow circle"


def answer(*texts):
    return written(json.dumps({"wordings": texts}))


def echo(asked):
    """Two wordings of whatever prompt is asked for, other ones each time."""
    prompt = json.loads(asked.body["messages"][0]["content"][0]["text"].rpartition("Prompt: ")[2])
    echo.times += 1
    return answer(f"an image of {prompt}", f"{prompt} number {echo.times}")


@pytest.fixture
def llm(server):
    server.script, echo.times = echo, 0
    return f"llm model=writer base_url={server.url} n=2"


def rewriter(server, **more):
    return Rewriter("writer", server.url, timing=Time().timing, **more)


def test_what_is_asked_and_what_is_read(server):
    server.replies = [written('Sure:\n```json\n{"wordings": ["one", " two "]}\n```', 70, 9)]
    writer = rewriter(server, n=3)
    assert writer(' "now ignore this"\nand more') == ["one", "two"]
    (asked,) = server.asked
    assert asked.body["model"] == "writer" and asked.headers["Authorization"] == f"Bearer {KEY}"
    assert asked.format == "json_schema" and asked.prompt == ' "now ignore this"\nand more'
    assert "in 3 other ways" in asked.text and len(asked.body["messages"][0]["content"]) == 1
    assert (writer.costs.requests, writer.costs.prompt_tokens, writer.costs.completion_tokens) == (1, 70, 9)
    writer.close()


@pytest.mark.parametrize(
    "wrong",
    [
        answer(),
        answer("a", "a"),
        answer("a", " a"),
        answer("the prompt"),
        answer("a", "b", "c", "d"),
        answer("a", ""),
        answer("a", "two\nlines"),
        answer("a", 3),
        written('{"wordings": ["a"], "more": 1}'),
        written('{"wordings": ["a"], "wordings": ["b"]}'),
        written('["a"]'),
        written("a picture of the prompt"),
        fails(500),
    ],
)
def test_an_answer_that_is_none_is_asked_for_again_and_then_told(server, wrong):
    server.replies = [wrong, answer("a", "b")]
    assert rewriter(server, n=3)("the prompt") == ["a", "b"]
    assert len(server.asked) == 2
    server.replies = [wrong]
    with pytest.raises(DiffscaleError, match=r"gave no usable answer \(.*give the same command again"):
        rewriter(server, n=3, tries=2)("the prompt")


def test_a_key_that_is_refused_is_told_and_not_shown(server):
    server.replies = [fails(401, f"wrong key {KEY}")]
    with pytest.raises(DiffscaleError, match="OPENAI_API_KEY") as told:
        rewriter(server)("the prompt")
    assert KEY not in str(told.value) and len(server.asked) == 1


def test_a_resumed_run_asks_nothing_twice_and_has_the_same_wordings(server, llm, tmp_path):
    settings = GenerateConfig(
        model="shapes-flux", prompt=PROMPT, search="rewrites n=1", verifier="clip", budget=10, steps=2, wordings=llm
    )
    folder = tmp_path / "out"
    prepare(folder, settings)

    def stop(name, nfe, total, **_):
        if nfe >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(settings, folder, stop)
    assert prepare(folder, settings) is None
    summary = generate(settings, folder)
    assert len(server.asked) == 1 and {f"an image of {PROMPT}", f"{PROMPT} number 1"} < set(summary["wordings"])
    assert prepare(folder, settings)["wordings"] == summary["wordings"] and len(server.asked) == 1
    assert KEY not in "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_a_bench_asks_once_a_prompt_whatever_is_added_and_refuses_another_model(server, llm, tmp_path):
    settings = BenchConfig(model="shapes-flux", search=["rewrites n=1"], budget=[6], steps=2, wordings=llm)
    prompts = [PROMPT, "a red circle"]
    bench(settings, prompts[:1], tmp_path)
    more = settings.model_copy(update={"search": ["rewrites n=1", "rewrites n=2"]})
    found = bench(more, prompts, tmp_path)
    assert [asked.prompt for asked in server.asked] == prompts
    assert set(found[1]["wordings"]) == {"a red circle", "an image of a red circle", "a red circle number 2"}
    other = settings.model_copy(update={"wordings": llm.replace("writer", "author")})
    with pytest.raises(DiffscaleError, match=r"list of wordings of 'a green star .* has changed since this run began"):
        bench(other, prompts, tmp_path)


def test_a_searched_pipeline_asks_once_a_prompt(server, llm):
    pipe = diffscale.Searched("shapes-flux", search="rewrites n=1", verifier=Brightness(), nfe=6, wordings=llm)
    for seed in (0, 1):
        pipe([PROMPT, "a red circle", PROMPT], num_inference_steps=2, generator=torch.manual_seed(seed))
    assert [asked.prompt for asked in server.asked] == [PROMPT, "a red circle"]
    assert all(len(set(result.wordings)) == 3 for result in pipe.results)
