"""Quantised loading: the named networks and no others, and a sentence where it cannot be."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
import transformers

from diffscale._util.errors import DiffscaleError
from diffscale.api import make_sampler
from diffscale.models import quantization
from diffscale.models.load import load_pipeline
from diffscale.models.options import LoadOptions

INDEX = {
    "_class_name": "FluxPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "image_encoder": [None, None],
}


@pytest.fixture
def all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "installed", lambda _: True)


@pytest.mark.parametrize(
    ("text", "diffusers_says", "transformers_says"),
    [
        ("bitsandbytes_4bit quant_type=fp4 double_quant=true",
         {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True,
          "bnb_4bit_compute_dtype": torch.bfloat16}, {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
        ("bitsandbytes_8bit threshold=4", {"load_in_8bit": True, "llm_int8_threshold": 4.0}, {"load_in_8bit": True}),
        ("quanto weights=int4", {"weights_dtype": "int4"}, {"weights": "int4"}),
    ],
)  # fmt: skip
def test_each_library_is_told_in_its_own_words(
    text: str,
    diffusers_says: dict[str, Any],
    transformers_says: dict[str, Any],
    all_installed: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(diffusers.BitsAndBytesConfig, "post_init", lambda _: None)  # asks for the library
    monkeypatch.setattr(transformers.BitsAndBytesConfig, "post_init", lambda _: None)
    chosen = quantization.parse_quantizer(f"{text} components=transformer,text_encoder", "cuda")
    mapping = quantization.configuration(chosen, INDEX, torch.bfloat16).quant_mapping
    assert mapping.keys() == {"transformer", "text_encoder"}
    for name, says in (("transformer", diffusers_says), ("text_encoder", transformers_says)):
        assert {key: getattr(mapping[name], key) for key in says} == says
    assert type(mapping["transformer"]).__module__.startswith("diffusers.")
    assert type(mapping["text_encoder"]).__module__.startswith("transformers.")


def test_the_denoiser_alone_unless_others_are_named(all_installed: None) -> None:
    chosen = quantization.parse_quantizer("quanto", "cpu")
    assert quantization.configuration(chosen, INDEX, torch.float32).quant_mapping.keys() == {"transformer"}
    two = INDEX | {"transformer_2": ["diffusers", "WanTransformer3DModel"]}
    mapping = quantization.configuration(chosen, two, torch.float32).quant_mapping
    assert mapping.keys() == {"transformer", "transformer_2"}
    with pytest.raises(DiffscaleError, match="Name what to quantise"):
        quantization.configuration(chosen, {"vae": ["diffusers", "AutoencoderKL"]}, torch.float32)
    with pytest.raises(DiffscaleError, match="did you mean 'transformer'"):
        quantization.configuration(
            quantization.parse_quantizer("quanto components=trnsformer", "cpu"), INDEX, torch.float32
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bitsandbytes", "did you mean 'bitsandbytes_"),
        ("quanto weights=int3", "takes weights as"),
        ("torchao bits=4", "argument of quantisation torchao"),
    ],
)
def test_wrong_names_are_told(text: str, said: str, sd_folder: str) -> None:
    with pytest.raises(DiffscaleError, match=said):
        load_pipeline(sd_folder, LoadOptions(device="cpu", quantize=text))


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("bitsandbytes_4bit", "bitsandbytes"),
        ("bitsandbytes_8bit", "bitsandbytes"),
        ("torchao", "torchao"),
        ("quanto", "optimum-quanto"),
    ],
)
def test_a_missing_library_is_told(name: str, library: str, sd_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "installed", lambda _: False)
    with pytest.raises(DiffscaleError, match=f"{name} needs the library {library}, .*: pip install {library}"):
        load_pipeline(sd_folder, LoadOptions(device="cpu", quantize=name))


def test_what_is_installed_is_found() -> None:
    assert quantization.installed("torch") and quantization.installed("torch.nn")
    assert not quantization.installed("no_such_package") and not quantization.installed("no_such_package.part")


def test_bitsandbytes_without_a_gpu_is_told(sd_folder: str, all_installed: None) -> None:
    with pytest.raises(DiffscaleError, match="needs a GPU, and the device is cpu"):
        load_pipeline(sd_folder, LoadOptions(device="cpu", quantize="bitsandbytes_8bit"))


def _eight_bit(weight: torch.Tensor) -> bool:
    return type(weight.data).__module__.partition(".")[0] in ("torchao", "optimum")


@pytest.mark.parametrize(("name", "package"), [("torchao", "torchao"), ("quanto", "optimum.quanto")])
def test_the_network_is_quantised_and_sampled_from(sd_folder: str, name: str, package: str) -> None:
    pytest.importorskip(package)
    loading = LoadOptions(device="cpu", dtype="bfloat16" if name == "torchao" else "float32", quantize=name)
    args = {"height": 8, "width": 8}
    sampler = make_sampler(sd_folder, ["a star"], steps=2, pipe_args=args, loading=loading)
    plain = make_sampler(sd_folder, ["a star"], steps=2, pipe_args=args, loading=LoadOptions(device="cpu"))
    linear = [module for module in sampler.pipeline._pipe.unet.modules() if isinstance(module, torch.nn.Linear)]
    assert linear and all(_eight_bit(module.weight) for module in linear)
    assert not any(_eight_bit(p) for p in sampler.pipeline._pipe.text_encoder.parameters())
    key, row = torch.tensor([7]), torch.tensor([0])
    done = sampler.run(sampler.prior(key, row)).x.float()
    expected = plain.run(plain.prior(key, row)).x
    assert 0 < (done - expected).norm() / expected.norm() < 0.1
