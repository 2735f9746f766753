"""Other wordings of prompts: where they are from, and that each of them is what the model is asked in."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from pipelines import Brightness, tiny_sd, with_text

import diffscale
from diffscale._util.errors import DiffscaleError
from diffscale.api import make_sampler
from diffscale.api.wordings import arguments_with_wordings, wordings_of
from diffscale.bench.config import BenchConfig, GenerateConfig
from diffscale.bench.generate import prepare
from diffscale.bench.generate import run as generate
from diffscale.bench.run import run as bench
from diffscale.bench.series import Cell
from diffscale.models.load import load_pipeline, plain_call
from diffscale.models.options import LoadOptions
from diffscale.samplers.whole import WholeSampler, sampler_of
from diffscale.types import ClassLabel, Wording

PROMPT = "a green star and a yellow circle"
OTHERS = ["a yellow circle with a green star", "an image of a green star and a yellow circle"]


class Listening(Brightness):
    def __init__(self):
        self.told = []

    def __call__(self, images, prompts):
        self.told += prompts
        return super().__call__(images, prompts)


def lines(path, **wordings):
    path.write_text("".join(json.dumps({"prompt": name, "wordings": each}) + "\n" for name, each in wordings.items()))
    return str(path)


@pytest.mark.parametrize(
    "model", ["shapes-sdxl", "shapes-flux", "shapes-pixart"]
)  # guided; several text encoders; masks
def test_each_candidate_is_what_the_pipeline_draws_of_its_wording(model):
    """Against the pipeline's own call with that text and that noise."""
    pipe, verifier = load_pipeline(model, LoadOptions()), Listening()
    pipe.set_progress_bar_config(disable=True)
    found = diffscale.search(
        pipe, PROMPT, search="rewrites n=2", verifier=verifier, nfe=8, steps=2, keep_best=4, wordings={PROMPT: OTHERS}
    )
    assert set(found.wordings) == {PROMPT, *OTHERS} and set(verifier.told) == {PROMPT} == {found.prompt}
    for each in found.best_candidates:
        assert each.wording == found.wordings[each.number]
        call = {**plain_call(pipe).args, "num_inference_steps": 2, "output_type": "np"}
        drawn = {
            text: pipe(prompt=text, latents=each.noise[None].clone(), **call).images[0] for text in (PROMPT, *OTHERS)
        }
        own = each.image.permute(1, 2, 0).numpy()
        apart = {text: float(np.abs(own - picture).max()) for text, picture in drawn.items()}
        assert apart.pop(str(each.wording)) < 0.01 < min(apart.values())


def tiny():
    t = tiny_sd(DDIMScheduler(clip_sample=False, steps_offset=1))
    with_text(t.pipe)
    t.pipe.set_progress_bar_config(disable=True)
    return t.pipe


def test_a_searched_pipeline_gives_its_output_of_the_wording_that_won(monkeypatch):
    """Windowed and whole, several prompts with a negative prompt each;"""
    wordings = {"a cat": ["one cat", "this is a cat"], "a dog": ["the dog"]}
    call = {"num_inference_steps": 3, "height": 8, "width": 8, "negative_prompt": ["grey", "ugly"], "output_type": "np"}
    for whole in (False, True):
        if whole:
            monkeypatch.setattr("diffscale.api.sampler_of", WholeSampler)
        searched = diffscale.Searched(tiny(), search="rewrites n=2", verifier=Listening(), nfe=18, wordings=wordings)
        together = searched([*wordings], generator=torch.manual_seed(3), **call).images
        assert set(searched._verifier.told) == {*wordings}
        for i, prompt in enumerate(wordings):
            best = searched.results[i].best
            assert set(searched.results[i].wordings) == {prompt, *wordings[prompt]} and len(together) == 2
            pipe_args = {k: v for k, v in call.items() if k not in ("num_inference_steps", "output_type")}
            pipe_args["negative_prompt"] = call["negative_prompt"][i]
            sampler = (WholeSampler if whole else sampler_of)(tiny(), [str(best.wording)], 3, pipe_args)
            state = sampler.prior(torch.tensor([best.key]), torch.tensor([0]))
            picture = sampler.decode(sampler.run(state).x)[0].permute(1, 2, 0).numpy()
            assert np.abs(picture - together[i]).max() < 1e-3
    assert any(isinstance(result.best.wording, Wording) for result in searched.results)


def test_a_prompt_that_is_a_kind_of_string_goes_with_a_negative_prompt():
    """Of which pipelines ask that it is of the same type."""
    for prompts in ([ClassLabel("a cat", 3)], ["a cat", Wording("the cat", "a cat")]):
        sampler = make_sampler(
            tiny(), prompts, steps=2, pipe_args={"negative_prompt": "grey", "height": 8, "width": 8},
            loading=LoadOptions(),
        )  # fmt: skip
        assert list(map(type, sampler.prompts)) == list(map(type, prompts))


def test_what_is_given_for_each_prompt_is_given_for_its_wordings_too():
    prompts = ["a", "b", Wording("b2", "b"), Wording("a2", "a"), Wording("a3", "a")]
    args = {
        "negative_prompt": ["x", "y"], "prompt_2": "z", "image": torch.arange(2.0).view(2, 1), "guidance_scale": 2.0,
        "sigmas": torch.ones(3), "ip_adapter_image_embeds": torch.arange(2.0).view(2, 1),
    }  # fmt: skip
    dealt = arguments_with_wordings(args, prompts)
    assert dealt["negative_prompt"] == ["x", "y", "y", "x", "x"] and dealt["prompt_2"] == ["z"] * 5
    assert dealt["image"].flatten().tolist() == dealt["ip_adapter_image_embeds"].flatten().tolist() == [0, 1, 1, 0, 0]
    assert dealt["guidance_scale"] == 2.0 and len(dealt["sigmas"]) == 3 and dealt.keys() == args.keys()
    assert arguments_with_wordings(args, ["a", "b"]) == args
    one = arguments_with_wordings({"image": torch.zeros(1, 3, 8, 8)}, ["a", Wording("a2", "a")])
    assert len(one["image"]) == 1  # which pipelines encode once for the batch


def refused(match, **options):
    options = {"search": "rewrites", "verifier": Brightness(), "nfe": 12, "steps": 3, **options}
    model, prompt = options.pop("model", None) or tiny(), options.pop("prompt", "a cat")
    with pytest.raises(DiffscaleError, match=match):
        diffscale.search(model, prompt, **options)


def test_refusals_say_what_to_do(tmp_path):
    refused(r"no other wordings of 'a cat' .* \(--wordings FILE\), have a language model write them")
    refused("no other wordings of 'a cat'", wordings={"a dog": ["the dog"]})
    refused("no other wordings of 'a cat'", wordings={"a cat": ["a cat", "a cat"]})  # its own is no other one
    refused("no search draws from several wordings: leave them out", search="random", wordings={"a cat": ["cat"]})
    t = tiny_sd(DDIMScheduler(clip_sample=False, steps_offset=1))
    embeds = {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in t.args.items()}
    refused("prompt_embeds stand for one wording of a prompt", wordings={"a cat": ["cat"]}, pipe_args=embeds)
    refused("takes a class, which has no other wordings", model="shapes-sit-s", prompt="red circle")
    refused("used as it was made", model=make_sampler(tiny(), ["a cat"], steps=3, pipe_args={"height": 8, "width": 8},
            loading=LoadOptions()), steps=None, wordings={"a cat": ["cat"]})  # fmt: skip
    for wrong in ({"a cat": "the cat"}, {"a cat": []}, {"a cat": [3]}, {"a cat": [" "]}):
        refused("a dictionary of prompts, with a list of texts for each", wordings=wrong)
    file = tmp_path / "wordings.jsonl"
    refused(r"cannot be read .*give a JSONL file, or \"llm model=NAME\"", wordings=file)
    for text, match in (
        ("{", "Line 1 of .* cannot be read"),
        ('{"prompt": "a cat"}', "Mend wordings in"),
        ('{"prompt": "a cat", "wordings": []}', "Mend wordings in"),
        ('{"prompt": "a cat", "wordings": ["x"]}\n{"prompt": "a cat", "wordings": ["y"]}', "write one line for both"),
    ):
        file.write_text(text)
        refused(match, wordings=str(file))
    refused("argument of source of wordings llm 'modle'", wordings="llm modle=x")
    refused("needs an address", wordings="llm model=x")


def test_a_model_of_a_world_has_the_wordings_of_its_world():
    found = wordings_of(None, "shapes-sdxl").find([PROMPT], {}, lambda _: None)
    assert len(found) == 7 and all(each.own == PROMPT for each in found) and PROMPT not in found
    assert found == wordings_of(None, "shapes-flux").find([PROMPT], {}, lambda _: None)
    with pytest.raises(DiffscaleError, match="no other wordings of 'a bear'"):
        wordings_of(None, "shapes-sdxl").find([PROMPT, "a bear"], {}, lambda _: None)


def test_a_generated_folder_says_which_wording_won_and_knows_its_wordings_again(tmp_path):
    file = lines(tmp_path / "w.jsonl", **{PROMPT: OTHERS})
    settings = GenerateConfig(
        model="shapes-flux", prompt=PROMPT, search="rewrites n=1", verifier="clip", budget=10, steps=2, wordings=file
    )
    folder = tmp_path / "out"
    assert prepare(folder, settings) is None
    summary = generate(settings, folder)
    assert sum(summary["wordings"].values()) == summary["candidates"] == 5
    assert summary["wording"] in summary["wordings"] and set(summary["wordings"]) == {PROMPT, *OTHERS}
    lines(tmp_path / "w.jsonl", **{"another": ["x"], PROMPT: OTHERS})  # what is said of others does not matter
    assert prepare(folder, settings) == json.loads((folder / "result.json").read_text())
    lines(tmp_path / "w.jsonl", **{PROMPT: OTHERS[:1]})
    with pytest.raises(DiffscaleError, match=f"list of wordings of '{PROMPT}' has changed since this run began"):
        prepare(folder, settings)


def test_a_bench_searches_all_its_prompts_in_their_wordings_and_samples_again_in_them(tmp_path):
    prompts = [PROMPT, "two red squares and a star"]
    settings = BenchConfig(model="shapes-flux", search=["random", "rewrites n=1"], budget=[8], steps=2)
    found = bench(settings, prompts, tmp_path / "one")
    plain, worded = found[:2], found[2:]
    for one, other in zip(plain, worded, strict=True):
        assert one["score"]["baseline"] == pytest.approx(other["score"]["baseline"], rel=1e-4)
        assert "wordings" not in one and sum(other["wordings"].values()) == 4 == len(other["wordings"])
        assert other["wording"] in other["wordings"] and other["prompt"] in other["wordings"]
    assert bench(settings, prompts, tmp_path / "one") == json.loads(json.dumps(found))
    (again,) = bench(
        settings, prompts[:1], tmp_path / "one", only=[Cell("rewrites n=1", "clip", 8, final_steps=2)]
    )  # in as many steps the same picture
    assert again["scores"]["clip"]["best"] == pytest.approx(worded[0]["scores"]["clip"]["best"], rel=1e-3)
    with pytest.raises(DiffscaleError, match="no other wordings of 'a bear'"):
        bench(settings, ["a bear"], tmp_path / "two")
    with pytest.raises(DiffscaleError, match="no search draws from several wordings"):
        bench(BenchConfig(search=["random"], wordings="x.jsonl"), prompts, tmp_path / "three")
