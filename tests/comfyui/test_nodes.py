"""The nodes of ComfyUI against plain sampling, on a stand-in of its interface."""

import asyncio
import importlib.util
import inspect
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stand_in
import torch

import diffscale
from diffscale.engine import noise

HOME = Path(__file__).parents[2] / "packages" / "comfyui-diffscale"
STEPS = 4


def redness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    assert set(prompts) == {"a cat"} and images.shape[1] == 3 and images.min() >= 0 and images.max() <= 1
    return images[:, 0].mean((1, 2))


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """ComfyUI's stand-in, and the package loaded as ComfyUI loads a folder of custom_nodes."""
    management = stand_in.install(monkeypatch)
    name = "custom_nodes_comfyui-diffscale"
    spec = importlib.util.spec_from_file_location(name, HOME / "__init__.py", submodule_search_locations=[str(HOME)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for each in (name, f"{name}.nodes", f"{name}.sampler"):
        monkeypatch.delitem(sys.modules, each, raising=False)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    nodes = asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())
    diffscale.register("verifiers", "redness_of_tests", redness)
    best_of_n, zero_order = nodes
    return SimpleNamespace(
        management=management,
        nodes=nodes,
        best_of_n=best_of_n,
        zero_order=zero_order,
        sampler=sys.modules[f"{name}.sampler"],
    )


def given(**changed: Any) -> dict[str, Any]:
    """Inputs as ComfyUI hands them to `execute`."""
    return {
        "model": stand_in.Model(), "positive": torch.tensor(0.5), "negative": torch.tensor(-0.5), "vae": stand_in.Vae(),
        "latent_image": {"samples": torch.zeros(1, 4, 3, 5)}, "prompt": "a cat", "verifier": "redness_of_tests",
        "candidates": 5, "keep": 2, "seed": 7, "steps": STEPS, "cfg": 3.0, "sampler_name": "euler",
        "scheduler": "normal", "denoise": 1.0, **changed,
    }  # fmt: skip


@torch.inference_mode()  # as ComfyUI runs its nodes
def run(node: Any, **changed: Any) -> tuple[Any, ...]:
    return node.execute(**given(**changed)).result


def by_hand(number: int, **changed: Any) -> torch.Tensor:
    """The candidate of that number of best-of-N: ComfyUI's own sampling of diffscale's noise, alone."""
    inputs = given(**changed)
    key = noise.fold(noise.fold(noise.root(inputs["seed"]), inputs["prompt"], 0), "candidate", number)
    names = ("positive", "negative", "steps", "cfg", "sampler_name", "scheduler", "denoise")
    start = noise.normal(torch.tensor([key]), (4, 3, 5))
    return stand_in.sample(
        inputs["model"], start, latent_image=inputs["latent_image"]["samples"], seed=key % 2**64,
        **{name: inputs[name] for name in names},
    )  # fmt: skip


def test_every_input_is_an_argument_of_execute(comfy: SimpleNamespace) -> None:
    for node in comfy.nodes:
        schema = node.define_schema()
        assert schema.is_experimental and schema.node_id == node.__name__
        names = {each.id for each in schema.inputs}
        own = [p.name for p in inspect.signature(node.execute).parameters.values() if p.kind is not p.VAR_KEYWORD]
        assert names == given().keys() | set(own)
        assert [each.kind for each in schema.outputs] == ["LATENT", "IMAGE", "FLOAT", "STRING"]


@pytest.mark.parametrize("sampler_name", ["euler", "heun", "euler_ancestral"])
def test_best_of_n_gives_the_best_of_comfyuis_own_samples(comfy: SimpleNamespace, sampler_name: str) -> None:
    latent, images, score, report = run(comfy.best_of_n, sampler_name=sampler_name)
    samples = torch.cat([by_hand(number, sampler_name=sampler_name) for number in range(5)])
    scores = redness(stand_in.Vae().decode(samples).movedim(-1, 1), ["a cat"])
    order = scores.argsort(descending=True)
    torch.testing.assert_close(latent["samples"], samples[order[:2]])
    torch.testing.assert_close(images, stand_in.Vae().decode(samples[order[:2]]))
    assert score == pytest.approx(float(scores.max()), abs=1 / 255)
    nfe = {"heun": 2 * STEPS - 1}.get(sampler_name, STEPS)
    assert f"(NFE): {5 * nfe}, rows through the network: {2 * 5 * nfe}" in report


def test_what_the_model_has_been_given_by_other_nodes_stays(comfy: SimpleNamespace) -> None:
    seen = []
    model = stand_in.Model()
    model.set_model_unet_function_wrapper(
        lambda apply, given: seen.append(1) or 1.1 * apply(given["input"], given["timestep"], **given["c"])
    )
    before = dict(model.model_options)
    latent, *_ = run(comfy.best_of_n, model=model, candidates=1, keep=1, cfg=1.0)
    assert seen and model.model_options == before
    torch.testing.assert_close(latent["samples"], by_hand(0, model=model, cfg=1.0))


def test_one_candidate_costs_one_sample(comfy: SimpleNamespace) -> None:
    calls = []
    model = stand_in.Model()
    model.set_model_sampler_post_cfg_function(lambda args: calls.append(1) or args["denoised"])
    run(comfy.best_of_n, model=model, candidates=3, keep=1)
    assert len(calls) == 3 * STEPS  # the one that measures the price is the first candidate


@pytest.mark.parametrize("policy", ["best", "greedy", "restart"])
def test_zero_order_is_that_of_diffscale(comfy: SimpleNamespace, policy: str) -> None:
    own = {"neighbours": 2, "cosine": 0.9, "policy": policy}
    latent, _, score, report = run(comfy.zero_order, candidates=8, keep=1, **own)
    inputs = given()
    settings = {name: inputs[name] for name in ("steps", "cfg", "sampler_name", "scheduler", "denoise")}
    names = ("model", "positive", "negative", "vae")
    sampler = comfy.sampler.ComfySampler(
        *(inputs[name] for name in names), inputs["latent_image"], "a cat", 0, settings
    )
    wanted = diffscale.search(
        sampler, "a cat", search=f"zero_order n=2 cosine=0.9 policy={policy}", verifier=redness, nfe=8 * STEPS, seed=7
    )
    torch.testing.assert_close(latent["samples"][0], wanted.best.latents)
    assert score == pytest.approx(wanted.best.score) and f"(NFE): {8 * STEPS}" in report


def test_progress_rises_to_its_end_and_shows_latents_and_each_new_best(comfy: SimpleNamespace) -> None:
    run(comfy.best_of_n)
    (bar,) = stand_in.ProgressBar.made
    values = [value for value, _, _ in bar.seen]
    assert values == sorted(values) and values[-1] == bar.total == 5 * STEPS
    previews = [preview for _, _, preview in bar.seen if preview is not None]
    assert ("JPEG", "of a latent", 512) in previews
    pictures = [preview[1] for preview in previews if preview[1] != "of a latent"]
    assert 1 <= len(pictures) <= 5 and pictures[0].size == (5, 3)


@pytest.mark.parametrize("calls", [0, 1, 4])
def test_a_user_who_stops_the_run_is_heard(comfy: SimpleNamespace, calls: int) -> None:
    comfy.management.stop_after = calls
    with pytest.raises(stand_in.InterruptProcessingException):
        run(comfy.best_of_n)
    assert comfy.management.calls == calls + 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"latent_image": {"samples": torch.zeros(3, 4, 3, 5)}}, "holds 3 pictures: set its batch size to 1"),
        ({"keep": 6}, "6 pictures are to be kept of 5"),
        ({"verifier": "klip"}, "did you mean 'clip'"),
        ({"verifier": "clip_ssl"}, "run whole"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    comfy: SimpleNamespace, changed: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if changed.get("verifier") == "clip_ssl":  # without its network: a verifier that looks at predictions too

        class Early:
            name, record_level = "early", 0.4

            def __call__(self, images: torch.Tensor, prompts: list[str], early: torch.Tensor) -> torch.Tensor:
                return images.mean((1, 2, 3))

        diffscale.register("verifiers", "early_of_tests", Early)
        changed = {"verifier": "early_of_tests"}
    with pytest.raises(diffscale.DiffscaleError, match=said):
        run(comfy.best_of_n, **changed)


def test_an_empty_latent_is_brought_to_the_models_size(comfy: SimpleNamespace) -> None:
    empty = {"samples": torch.zeros(1, 4, 3, 5), "downscale_ratio_spacial": 16}
    latent, *_ = run(comfy.best_of_n, latent_image=empty, candidates=1, keep=1)
    assert latent["samples"].shape == (1, 4, 6, 10) and latent.keys() == {"samples"}


def test_frames_of_videos_are_scored_and_come_out_one_after_another(comfy: SimpleNamespace) -> None:
    class Video(stand_in.Vae):
        def decode(self, samples: torch.Tensor) -> torch.Tensor:
            picture = super().decode(samples)
            return torch.stack([picture, picture], 1)

    latent, images, score, _ = run(comfy.best_of_n, vae=Video(), candidates=3, keep=2)
    pictures = stand_in.Vae().decode(latent["samples"])
    torch.testing.assert_close(images, pictures.repeat_interleave(2, 0))
    assert score == pytest.approx(float(pictures[0, ..., 0].mean()), abs=1 / 255)


def test_the_package_is_described_as_the_registry_asks() -> None:
    described = tomllib.loads((HOME / "pyproject.toml").read_text())
    assert described["tool"]["comfy"].keys() == {"DisplayName"}  # the rest is its publisher's, as the README says
    assert "comfyui" not in described["project"]["name"] and described["project"]["version"].count(".") == 2
    assert described["project"]["dependencies"] == (HOME / "requirements.txt").read_text().split()
