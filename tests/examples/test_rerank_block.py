"""The block of the examples in modular pipelines of diffusers, loaded as users load it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.modular_pipelines import (
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.stable_diffusion_xl.decoders import StableDiffusionXLDecodeStep
from PIL import Image

import diffscale

FOLDER = Path(__file__).parents[2] / "examples" / "rerank_block"


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers copies custom code into a folder of its own, which is not to be the user's."""
    for module in ("diffusers.utils.dynamic_modules_utils", "diffusers.utils.constants"):
        monkeypatch.setattr(f"{module}.HF_MODULES_CACHE", str(tmp_path / "modules"))


def redness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    assert images.shape[1] == 3 and images.max() <= 1
    return images[:, 0].mean((1, 2)) * torch.tensor([-1.0 if "blue" in prompt else 1.0 for prompt in prompts])


class Given(ModularPipelineBlocks):  # type: ignore[misc]
    """Stands where a pipeline samples: hands on the pictures that a test gives."""

    @property
    def inputs(self) -> list[Any]:
        return [InputParam("sampled", required=True)]

    @property
    def intermediate_outputs(self) -> list[Any]:
        return [OutputParam("images")]

    def __call__(self, components: Any, state: Any) -> Any:
        block = self.get_block_state(state)
        block.images = block.sampled
        self.set_block_state(state, block)
        return components, state


def rerank(verifier: Any = redness) -> Any:
    return ModularPipelineBlocks.from_pretrained(str(FOLDER), trust_remote_code=True, verifier=verifier)


def pipeline(**blocks: Any) -> Any:
    return SequentialPipelineBlocks.from_blocks_dict({**blocks, "rerank": rerank()}).init_pipeline()


def pictures(reds: list[int]) -> list[Image.Image]:
    return [Image.new("RGB", (4, 3), (red, 9, 9)) for red in reds]


def red(picture: Any) -> int:
    return int(np.asarray(picture)[0, 0, 0])


def test_the_best_of_each_prompt_come_first() -> None:
    pipe = pipeline(given=Given())
    out = pipe(sampled=pictures([10, 200, 90, 40, 20, 30]), prompt=["a red star", "a blue star"], keep=2)
    assert [red(each) for each in out.get("images")] == [200, 90, 20, 30]
    torch.testing.assert_close(
        out.get("scores") * 255, torch.tensor([[200, 90], [-20, -30]]).double(), atol=1e-4, rtol=0
    )
    assert [red(each) for each in pipe(sampled=pictures([1, 2, 3]), prompt="a star", output="images")] == [3]


@pytest.mark.parametrize("kind", ["pt", "np"])
def test_tensors_and_arrays(kind: str) -> None:
    values = torch.tensor([0.1, 0.9, 0.5]).view(3, 1, 1, 1).expand(3, 3, 4, 5)
    given = values if kind == "pt" else values.permute(0, 2, 3, 1).numpy()
    best = pipeline(given=Given())(sampled=given, prompt="a star", keep=2, output="images")
    assert best.shape[0] == 2 and np.asarray(best)[:, 0, 0, 0].tolist() == pytest.approx([0.9, 0.5])


def test_after_the_decoder_of_a_real_pipeline() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(4,), layers_per_block=1, latent_channels=4, norm_num_groups=1).eval()
    pipe = pipeline(decode=StableDiffusionXLDecodeStep())
    pipe.update_components(vae=vae)
    latents = torch.randn(5, 4, 8, 8)
    [best] = pipe(latents=latents.clone(), prompt="a star", output="images")
    decode = StableDiffusionXLDecodeStep().init_pipeline()
    decode.update_components(vae=vae)
    every = decode(latents=latents.clone(), output="images")
    means = [np.asarray(each)[..., 0].mean() for each in every]
    assert (np.asarray(best) == np.asarray(every[int(np.argmax(means))])).all()


def test_numbers_that_do_not_fit_are_told_in_a_sentence() -> None:
    pipe = pipeline(given=Given())
    for given, keep in ((pictures([1, 2, 3]), 1), (pictures([1, 2]), 2)):
        with pytest.raises(diffscale.DiffscaleError, match="pictures for 2 prompts and keep is"):
            pipe(sampled=given, prompt=["a", "b"], keep=keep)
