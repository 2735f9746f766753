"""What networks and rewards are told in a training: kept embeddings, sizes of pictures, captions that were left out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from diffscale.train import base, configs, training_data
from diffscale.train.base import Base
from diffscale.train.policy import Policy
from diffscale.train.selection import select_trajectories
from diffscale.train.training_data import PromptCache

ROWS = torch.arange(3)


@pytest.fixture
def config(data: SimpleNamespace) -> configs.TrainConfig:
    flags = {
        "pretrained_model_name_or_path": str(data.base), "train_data_dir": str(data.pictures), "rank": 2,
        "cache_dir": str(data.cache), "train_batch_size": 3, "proportion_empty_prompts": 0.4,
    }  # fmt: skip
    return configs.resolve("sft", None, flags)


@pytest.fixture
def loaded(config: configs.TrainConfig) -> Base:
    return base.load_base(config, "no", "cpu")


def output(loaded: Base) -> torch.Tensor:
    x = loaded.policy.prior(torch.arange(3))
    with torch.no_grad():
        return loaded.policy.output(x, torch.tensor([900.0, 500.0, 100.0]), ROWS)


def test_kept_embeddings_say_what_the_encoders_say(loaded: Base, tmp_path: Path) -> None:
    told = PromptCache([loaded.policy.sampler.pipeline], ["", *tiny.PROMPTS], tmp_path, {})
    prompts = [tiny.PROMPTS[2], "", tiny.PROMPTS[0]]
    loaded.policy.set_prompts(prompts)
    wanted = output(loaded)
    loaded.policy.set_prompts([tiny.PROMPTS[1]] * 3)
    assert not torch.allclose(output(loaded), wanted, rtol=1e-4)
    told.set_prompts(prompts)
    torch.testing.assert_close(output(loaded), wanted)
    again = PromptCache([loaded.policy.sampler.pipeline], tiny.PROMPTS, tmp_path, {})
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1, "what was there is not made again"
    again.set_prompts(prompts)
    torch.testing.assert_close(output(loaded), wanted)


def test_prompts_of_other_lengths_are_encoded_anew_for_each_batch(loaded: Base, tmp_path: Path) -> None:
    own = loaded.pipe.encode_prompt

    def encode_prompt(prompt: Any, **more: Any) -> Any:
        embeds, negative, pooled, negative_pooled = own(prompt, **more)
        return embeds[:, : 2 + len(prompt)], negative, pooled, negative_pooled

    loaded.pipe.encode_prompt = encode_prompt
    policy = Policy(loaded.pipe, [""], 3, loaded.call.args)
    told = PromptCache([policy.sampler.pipeline], tiny.PROMPTS, tmp_path, {})
    assert told.embeddings is None and not list(tmp_path.iterdir())
    told.set_prompts(["a red tree", "", "two blue cars"])
    assert policy.output(policy.prior(ROWS), torch.tensor([900.0, 500.0, 100.0]), ROWS).isfinite().all()


def test_the_network_is_told_the_sizes_of_each_picture(config: configs.TrainConfig, loaded: Base) -> None:
    made = training_data.prepare(config, loaded, training_data.load_data(config), 0, 1)
    batch, seen = made.batches.batch_of(0), []
    hook = loaded.pipe.unet.add_time_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].view(-1, 6)))
    made.set_prompts(batch)
    output(loaded)
    made.set_own_prompts(["a red tree"])
    loaded.sampler.run(loaded.sampler.prior(torch.tensor([0]), torch.tensor([0])))
    hook.remove()
    assert batch.sizes is not None
    assert torch.equal(seen[0], batch.sizes[:, 0].to(seen[0])) and seen[0][0, :2].tolist() == [10, 9]
    assert seen[1][0].tolist() == [8, 8, 0, 0, 8, 8], "plain samples are told what the pipeline says"


def test_rewards_are_told_the_caption_of_a_prompt_that_was_left_out(config: configs.TrainConfig, loaded: Base) -> None:
    made = training_data.prepare(config, loaded, training_data.load_data(config), 0, 1)
    number = next(i for i in range(50) if "" in made.batches.batch_of(i).prompts)
    batch, seen = made.batches.batch_of(number), set()

    class Verifier:
        name = "listening"

        def __call__(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            seen.update(prompts)
            return images.mean((1, 2, 3))

    made.set_prompts(batch)
    assert loaded.policy.prompts == batch.prompts
    latents = made.latents(batch)[:, 0]
    select_trajectories(loaded.policy, Verifier(), latents, ROWS, ROWS, 2, 1, captions=batch.captions)
    assert seen == set(batch.captions) and "" not in seen
