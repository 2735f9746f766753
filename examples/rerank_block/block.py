"""A block for modular pipelines of diffusers that sorts what was sampled by a verifier, and hands on the best.

    blocks.sub_blocks.insert("rerank", RerankStep("image_reward"), len(blocks.sub_blocks))
    pipe = blocks.init_pipeline(MODEL)
    pipe(prompt="a cat", num_images_per_prompt=8, keep=2, output="images")

It needs `pip install diffscale`, and only what that package makes public.
"""

from typing import Any

import numpy as np
import torch
from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks, OutputParam
from PIL.Image import Image

import diffscale


class RerankStep(ModularPipelineBlocks):
    """Takes `images` of all prompts, as a list of pictures, a tensor [B, 3, H, W] or an array [B, H, W, 3] in [0, 1].

    `verifier`: as of `diffscale.search`; its networks are loaded when the first pictures come, on the device that these
    are made on.
    """

    def __init__(self, verifier: Any = "clip") -> None:
        super().__init__()
        self.verifier = verifier

    @property
    def description(self) -> str:
        return "Sorts the pictures of each prompt by a verifier of diffscale, best first, and hands on the best."

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("images", required=True, description="The pictures, prompt by prompt."),
            InputParam("prompt", required=True, type_hint=str | list, description="What they are compared with."),
            InputParam("keep", default=1, type_hint=int, description="How many pictures of each prompt are handed on."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("images", description="The best `keep` pictures of each prompt, best first."),
            OutputParam("scores", type_hint=torch.Tensor, description="Their scores, float64 [prompts, keep]."),
        ]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block = self.get_block_state(state)
        prompts = [block.prompt] if isinstance(block.prompt, str) else list(block.prompt)
        count, keep = len(block.images), block.keep
        if count % len(prompts) or not 1 <= keep <= count // len(prompts):
            raise diffscale.DiffscaleError(
                f"There are {count} pictures for {len(prompts)} prompts and keep is {keep}: sample as many for each, "
                "and keep 1 to as many."
            )
        if isinstance(self.verifier, str):
            device = str(components._execution_device)
            self.verifier = diffscale.load_verifier(self.verifier, device=device)
        each = count // len(prompts)
        asked = [prompt for prompt in prompts for _ in range(each)]
        scores = torch.as_tensor(self.verifier(_tensor(block.images), asked)).double().cpu().view(len(prompts), each)
        # What could not be scored is last.
        order = scores.nan_to_num(-torch.inf).argsort(dim=1, descending=True, stable=True)[:, :keep]
        chosen = (order + torch.arange(len(prompts))[:, None] * each).flatten().tolist()
        block.scores = scores.gather(1, order)
        block.images = [block.images[i] for i in chosen] if isinstance(block.images, list) else block.images[chosen]
        self.set_block_state(state, block)
        return components, state


def _tensor(images: Any) -> torch.Tensor:
    """Pictures as float32 [B, 3, H, W] in [0, 1]."""
    if isinstance(images, list) and isinstance(images[0], Image):
        images = np.stack([np.asarray(each.convert("RGB"), np.float32) / 255 for each in images])
    if isinstance(images, np.ndarray):
        return torch.from_numpy(images).float().movedim(-1, 1)
    return torch.as_tensor(images).float()
