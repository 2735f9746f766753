"""The custom pipeline of the examples, loaded by diffusers as users load it, against `Searched` and the plain class."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from pipelines import Brightness, tiny_flux, tiny_sd, tiny_sdxl, with_text

import diffscale

CODE = Path(__file__).parents[2] / "examples" / "custom_pipeline" / "pipeline.py"
STEPS, NFE = 2, 8


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers copies custom code into a folder of its own, which is not to be the user's."""
    for module in ("diffusers.utils.dynamic_modules_utils", "diffusers.utils.constants"):
        monkeypatch.setattr(f"{module}.HF_MODULES_CACHE", str(tmp_path / "modules"))


def sd() -> SimpleNamespace:
    t = tiny_sd(DDIMScheduler(clip_sample=False, steps_offset=1))
    with_text(t.pipe)
    t.pipe.register_modules(tokenizer=t.pipe.tokenizer, text_encoder=t.pipe.text_encoder)
    t.args = {"guidance_scale": 5.0, "height": 8, "width": 8}
    return t


FAMILIES: dict[str, tuple[Any, type[DiffusionPipeline]]] = {
    "sd": (sd, StableDiffusionPipeline),
    "sdxl": (lambda: tiny_sdxl(EulerDiscreteScheduler()), StableDiffusionXLPipeline),
    "flux": (lambda: tiny_flux(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)), FluxPipeline),
}


def saved(name: str, folder: Path) -> tuple[Path, dict[str, Any], type[DiffusionPipeline]]:
    """A folder with a tiny pipeline, the arguments of its call for one prompt, and its class."""
    make, own = FAMILIES[name]
    t = make()
    t.pipe.save_pretrained(folder / "model")
    args = {key: value[:1] if isinstance(value, torch.Tensor) else value for key, value in t.args.items()}
    return folder / "model", args | {"num_inference_steps": STEPS}, own


def load(model: Path, **more: Any) -> Any:
    pipe = DiffusionPipeline.from_pretrained(model, custom_pipeline=str(CODE), trust_remote_code=True, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("name", FAMILIES)
def test_gives_what_a_search_of_the_models_own_pipeline_gives(name: str, tmp_path: Path) -> None:
    model, args, own = saved(name, tmp_path)
    pipe = load(model, search="random", verifier=Brightness(), nfe=NFE)
    assert isinstance(pipe, own)
    found = pipe(prompt="a cat", generator=seeded(), output_type="np", **args).images
    # SDXL's and FLUX's text encoders are None here, which their own class only takes if that is said.
    absent = {key: None for key, value in json.loads((model / "model_index.json").read_text()).items()
              if isinstance(value, list) and value[0] is None}  # fmt: skip
    plain = own.from_pretrained(model, **absent)
    searched = diffscale.Searched(plain, search="random", verifier=Brightness(), nfe=NFE)
    assert (found == searched(prompt="a cat", generator=seeded(), output_type="np", **args).images).all()
    (result,) = pipe.results
    assert result.ledger.nfe == NFE and len(result.trace) > 0 and pipe.seeds == [3]


def test_a_call_may_have_other_settings_and_the_signature_is_the_pipelines_own(tmp_path: Path) -> None:
    model, args, own = saved("sd", tmp_path)
    pipe = load(model, search="random", verifier=Brightness(), nfe=NFE)
    pipe("a cat", generator=seeded(), search="zero_order n=2", nfe=12, verifier=lambda i, p: -i.mean((1, 2, 3)), **args)
    (other,) = pipe.results
    assert other.ledger.nfe == 12 and other.best.score < 0
    pipe("a cat", generator=seeded(), **args)
    assert pipe.results[0].ledger.nfe == NFE and pipe.results[0].best.score > 0
    names = list(inspect.signature(type(pipe).__call__).parameters)
    assert [each for each in names if each not in ("search", "verifier", "nfe")] == list(
        inspect.signature(own.__call__).parameters
    )
    with pytest.raises(diffscale.DiffscaleError, match="'hight', did you mean 'height'"):
        pipe("a cat", hight=8)


def test_components_that_are_given_are_taken_and_what_is_set_later_counts(tmp_path: Path) -> None:
    model, args, own = saved("sd", tmp_path)
    scheduler = EulerDiscreteScheduler()
    pipe = load(model, verifier=Brightness(), search="random", nfe=NFE, scheduler=scheduler, dtype=torch.float64)
    assert pipe.scheduler is scheduler and pipe.unet.dtype == torch.float64
    pipe.to(torch.float32)
    before = pipe("a cat", generator=seeded(), output_type="np", **args).images
    pipe.scheduler = DDIMScheduler(clip_sample=False)
    assert (before != pipe("a cat", generator=seeded(), output_type="np", **args).images).any()
    pipe.save_pretrained(tmp_path / "again")
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "again")) is own


def test_diffusers_asks_for_trust_also_for_a_local_file(tmp_path: Path) -> None:
    """The page says so; if it ever changes, the page does."""
    model, _, _ = saved("sd", tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(model, custom_pipeline=str(CODE))


def test_a_model_of_an_unknown_class_is_told_in_a_sentence(tmp_path: Path) -> None:
    model, _, _ = saved("sd", tmp_path)
    index = model / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "TomorrowsPipeline"))
    with pytest.raises(diffscale.DiffscaleError, match="names 'TomorrowsPipeline', which is no pipeline of diffusers"):
        load(model)
