"""`diffscale generate` end to end on the shipped networks, and what bad input gets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from diffscale._util import config
from diffscale._util.errors import DiffscaleError
from diffscale.bench import generate
from diffscale.bench.config import GenerateConfig
from diffscale.bench.generate import prepare
from diffscale.cli.main import run
from diffscale.engine.ledger import Ledger
from diffscale.engine.results import Candidate, Result
from diffscale.models.shipped import locate

PROMPT = "a red circle above a blue square"


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["diffscale", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run()
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("generate") / "run"
    command = [sys.executable, "-c", "from diffscale.cli.main import run; run()", "generate", PROMPT]
    command += ["--search", "random", "--budget", "130", "--steps", "20", "--dtype", "float32", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "first sample" in done.stdout
    assert str(output.name) in done.stdout
    return output


def test_the_folder_holds_what_is_promised(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    assert result["nfe"] == 120  # six candidates of 20, the rest of 130 buys none
    assert result["decodes"] == result["verifier_calls"] == 6
    assert result["network_forwards"] >= result["nfe"]
    assert result["flops"] > 1e9
    assert result["best"]["score"] == max(score for _, score in result["trace"]) >= result["baseline"]["score"]
    assert result["trace"][-1] == [120, result["best"]["score"]]
    assert set(result["judges"]["shapes-judge"]["best"]) == {"score", "cleanliness"}
    assert config.resolve(GenerateConfig, folder / "config.yaml").budget == 130
    assert Image.open(folder / "best.png").size == (64, 64)
    assert len(list((folder / "images").iterdir())) == 6 and (folder / "report.html").stat().st_size > 10_000
    for sheet in ("candidates.png", "scaling.png"):
        assert min(Image.open(folder / sheet).size) > 300


def test_by_default_it_says_what_it_chose_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--steps", "8", "--budget", "90", "--dtype", "float32", "--output", str(tmp_path / "out")]
    assert _run(monkeypatch, "generate", PROMPT, *settings) == 0
    said = " ".join(capsys.readouterr().out.split())
    (decision,) = json.loads((tmp_path / "out" / "result.json").read_text())["decisions"]
    assert decision.startswith("Chosen: ") and decision in said


def test_running_it_again_computes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diffscale.bench.generate.run", None)
    again = ["generate", "--config", str(folder / "config.yaml"), "--output", str(folder)]
    assert _run(monkeypatch, *again) == 0
    assert "nothing was computed" in capsys.readouterr().out


def test_the_folder_of_another_run_is_not_touched(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert _run(monkeypatch, "generate", PROMPT, "--seed", "7", "--output", str(folder)) == 2
    assert "holds another run" in capsys.readouterr().err
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_without_an_output_each_run_has_a_folder_of_its_own_and_goes_on_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of somebody who gives one command after another, edits a search, and gives a command again."""
    monkeypatch.chdir(tmp_path)
    places = []

    def begin(settings: GenerateConfig, folder: Path, *_: object) -> dict[str, object]:
        places.append(folder.name)
        (folder / "journal.sqlite").touch()  # so it was paid for
        raise DiffscaleError("stopped")

    monkeypatch.setattr(generate, "run", begin)
    monkeypatch.setattr(generate, "check_sources", lambda *_: None)
    for seed in ("1", "2", "1", "3", "2"):
        assert _run(monkeypatch, "generate", PROMPT, "--dtype", "float32", "--seed", seed) == 2
    assert places == ["generate", "generate-2", "generate", "generate-3", "generate-2"]
    (tmp_path / "outputs" / "generate-4").mkdir()
    (tmp_path / "outputs" / "generate-4" / "mine.txt").touch()  # something else, which stays as it is
    assert _run(monkeypatch, "generate", PROMPT, "--dtype", "float32", "--seed", "4") == 2
    assert places[-1] == "generate-5"


def test_a_result_prints_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    picture, one = torch.zeros(3, 64, 64), torch.zeros(1, dtype=torch.float64)
    candidate = Candidate(picture, picture, 7, 0.5, 20, 0, one, 0.5, one, "two")
    found = Result(candidate, candidate, [candidate], [], [], {}, one[None], one[None], Ledger(20), 1, 0, "two")
    print(found, [candidate])
    said = capsys.readouterr().out
    assert "score=0.5" in said and "'two'" in said and "tensor" not in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "shapes-flx"], "did you mean 'shapes-flux'?"),
        (["--model", "./my-modl"], "There is no folder ./my-modl, did you mean 'my-model'?"),
        (["--search", "best_of_n"], "`diffscale list searches` says what each does"),
        (["--guidance-scale", "3"], "--pipe-arg guidance_scale=VALUE"),
        (["--search", "randon"], "did you mean 'random'?"),
        (["--search", "random m=3"], "argument of search random"),
        (["--search", "random n=many"], "takes n as int"),
        (["--verifier", "clop"], "did you mean 'clip'?"),
        (["--budget", "7"], "one costs 20 NFE"),
        (["--budget", "-1"], "budget"),
        (["--dtype", "float3"], "did you mean 'float32'?"),
        (["--pipe-arg", "height"], "name=value"),
        (["--pipe-arg", "hight=64"], "'hight', did you mean 'height'?"),
        (["--config", "nowhere.yaml"], "There is no configuration nowhere.yaml"),
        (["--search", "svdd", "--verifier", "clip_ssl", "--steps", "3"], "cannot score unfinished ones: use a search"),
    ],
)
def test_bad_input_gets_one_sentence(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert _run(monkeypatch, "generate", PROMPT, *arguments, "--output", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert said in " ".join(error.replace("│", "").split())
    assert "Traceback" not in error


def test_settings_resolve_in_order(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"budget": 40, "seed": 5}))
    settings = config.resolve(GenerateConfig, file, {"seed": 6, "budget": None})
    assert (settings.budget, settings.seed, settings.model) == (40, 6, "shapes-flux")
    config.save(settings, file)
    assert config.resolve(GenerateConfig, file) == settings


@pytest.mark.parametrize("text", ["budgte: 3", "budget: many", "- 1", "a: [", "prompt: ''"])
def test_a_broken_configuration_is_told(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(DiffscaleError):
        config.resolve(GenerateConfig, file, {})


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(DiffscaleError, match="not a run of diffscale"):
        prepare(tmp_path, GenerateConfig(prompt=PROMPT))


def test_batch_size_does_not_make_another_run() -> None:
    one = GenerateConfig(prompt=PROMPT)
    assert one.difference(one.model_copy(update={"batch_size": 4})) == ""
    assert one.difference(one.model_copy(update={"seed": 4})) == "seed was 4, now 0"


def test_a_full_disk_is_told_with_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffscale.bench.generate.save_picture", full)
    settings = GenerateConfig(prompt=PROMPT, steps=2, budget=4)
    assert prepare(tmp_path / "out", settings) is None
    with pytest.raises(DiffscaleError, match=r"best score .*, key .*make room"):
        generate.run(settings, tmp_path / "out")
    assert not (tmp_path / "out" / "result.json").exists()


def test_corrupt_weights_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(locate("shapes-flux"), tmp_path / "model")
    weights = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    arguments = ["--model", str(tmp_path / "model"), "--verifier", "shapes-clip", "--output", str(tmp_path / "out")]
    assert _run(monkeypatch, "generate", PROMPT, *arguments) == 2
    assert f"The model {str(tmp_path / 'model')!r} could not be loaded" in capsys.readouterr().err


def test_a_pipeline_object_can_be_searched() -> None:
    import diffscale
    from diffscale.models.load import load_pipeline

    pipe = load_pipeline("shapes-flux", diffscale.LoadOptions(device="cpu"))
    result = diffscale.search(pipe, PROMPT, nfe=8, steps=4, device="cpu")
    again = diffscale.search("shapes-flux", PROMPT, nfe=8, steps=4, batch_size=1, device="cpu")
    assert result.best.key == again.best.key
    torch.testing.assert_close(result.best.image, again.best.image, atol=1 / 255 + 1e-3, rtol=0)


def test_killed_and_run_again_it_ends_with_the_same_files(tmp_path: Path) -> None:
    settings = GenerateConfig(prompt=PROMPT, budget=40, steps=4, batch_size=3, search="zero_order policy=greedy")
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def interrupt(what: str, nfe: int, budget: int, **figures: float) -> None:
        assert what == "searching" and budget == 40 and set(figures) == {"best"}
        if nfe > 20:
            raise KeyboardInterrupt

    prepare(whole, settings)
    expected = generate.run(settings, whole)
    prepare(killed, settings)
    with pytest.raises(KeyboardInterrupt):
        generate.run(settings, killed, interrupt)
    assert prepare(killed, settings) is None
    spent = []
    result = generate.run(settings, killed, lambda what, nfe, budget, **_: spent.append(nfe))
    assert spent[0] > 20  # what was paid for before is not run again
    assert {k: v for k, v in result.items() if "seconds" not in k} == {
        k: v for k, v in expected.items() if "seconds" not in k
    }
    names = sorted(path.name for path in (whole / "images").iterdir())
    assert names == sorted(path.name for path in (killed / "images").iterdir()) and len(names) == 10
    for name in ("best.png", "baseline.png", "candidates.png", "scaling.png", *(f"images/{name}" for name in names)):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_every_search_is_measured_by_the_same_plain_sample() -> None:
    import diffscale

    results = [
        diffscale.search("shapes-flux", PROMPT, search=search, nfe=24, steps=4, device="cpu")
        for search in ("random", "zero_order", "svdd")
    ]
    assert [result.ledger.nfe for result in results] == [24, 24, 22]
    for result in results[1:]:
        assert result.baseline.key == results[0].baseline.key and result.baseline.number == -1
        assert abs(result.baseline.score - results[0].baseline.score) < 1e-4


def test_how_many_shared_the_best_score_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "marks_that_tie.py").write_text(
        "class Marks:\n"
        "    def __call__(self, images, prompts):\n"
        "        return 0 * images.mean((1, 2, 3))\n"
        "    def compare(self, first, second, prompts):\n"
        "        return (10 * (first - second).mean((1, 2, 3))).sigmoid()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--verifier", "marks_that_tie:Marks", "--budget", "12", "--steps", "4", "--dtype", "float32"]
    for _ in range(2):  # the second finds it done
        assert _run(monkeypatch, "generate", PROMPT, *options, "--output", str(tmp_path / "out")) == 0
        assert "3 candidates shared the best score; chosen by 3 comparisons" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [pair for *pair, _ in result["compared"]] == [[0, 1], [0, 2], [1, 2]]
    assert result["comparisons"] == 3 and result["verifier_calls"] == 3
    best = torch.tensor(list(Image.open(tmp_path / "out" / "best.png").getdata())).float().mean()
    first = torch.tensor(list(Image.open(tmp_path / "out" / "baseline.png").getdata())).float().mean()
    assert best >= first
