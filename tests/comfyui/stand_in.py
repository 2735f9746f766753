"""A small stand-in of ComfyUI: what the nodes touch, with the signatures and meanings that its documentation gives.

Sources: docs.comfy.org/custom-nodes/v3_migration (V3 schema), comfy_api/latest, comfy/sample.py, comfy/samplers.py,
comfy/model_patcher.py, comfy/utils.py and latent_preview.py of github.com/comfyanonymous/ComfyUI. Inputs take no other
settings than those that the schema knows, so that a misspelt one fails here too.
"""

import math
import sys
from abc import ABC, abstractmethod
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

WIDGET = {"optional", "tooltip", "lazy", "default", "display_name", "advanced", "socketless"}
NUMBER = WIDGET | {"min", "max", "step", "display_mode", "control_after_generate"}
ALLOWED = {
    "INT": NUMBER,
    "FLOAT": NUMBER | {"round"},
    "STRING": WIDGET | {"multiline", "placeholder", "dynamic_prompts"},
    "COMBO": WIDGET | {"options", "control_after_generate", "upload", "image_folder", "remote"},
}
SOCKET = {"display_name", "optional", "tooltip", "lazy", "raw_link", "advanced"}


class Slot:
    def __init__(self, kind: str, name: str | None, **settings: Any) -> None:
        unknown = settings.keys() - ALLOWED.get(kind, SOCKET)
        assert not unknown, f"{kind} takes no {unknown}"
        self.kind, self.id, self.settings = kind, name, settings


def kind_of(kind: str) -> Any:
    class Input(Slot):
        def __init__(self, id: str, **settings: Any) -> None:
            super().__init__(kind, id, **settings)

    class Output:
        def __init__(self, id: str | None = None, display_name: str | None = None, tooltip: str | None = None) -> None:
            self.kind, self.id, self.display_name = kind, id, display_name

    return SimpleNamespace(Input=Input, Output=Output)


class Schema:
    def __init__(
        self,
        node_id: str,
        display_name: str | None = None,
        category: str = "sd",
        inputs: Any = None,
        outputs: Any = None,
        description: str = "",
        is_output_node: bool = False,
        is_deprecated: bool = False,
        is_experimental: bool = False,
    ) -> None:
        self.node_id, self.display_name, self.category, self.description = node_id, display_name, category, description
        self.inputs, self.outputs, self.is_experimental = list(inputs or ()), list(outputs or ()), is_experimental
        assert len({each.id for each in self.inputs}) == len(self.inputs)


class ComfyNode:
    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError

    @classmethod
    def execute(cls, **given: Any) -> Any:
        raise NotImplementedError


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None, expand: Any = None, block_execution: Any = None) -> None:
        self.args, self.ui = args, ui

    @property
    def result(self) -> tuple[Any, ...]:
        return self.args


class ComfyExtension(ABC):
    async def on_load(self) -> None:
        return None

    @abstractmethod
    async def get_node_list(self) -> list[type[ComfyNode]]: ...


class InterruptProcessingException(Exception):
    pass


class Management:
    """comfy.model_management: `stop_after` calls the user stops the run."""

    def __init__(self) -> None:
        self.calls, self.stop_after = 0, math.inf

    def throw_exception_if_processing_interrupted(self) -> None:
        self.calls += 1
        if self.calls > self.stop_after:
            raise InterruptProcessingException

    def get_torch_device(self) -> torch.device:
        return torch.device("cpu")


class ProgressBar:
    made: ClassVar[list[Any]] = []

    def __init__(self, total: int, node_id: Any = None) -> None:
        self.total, self.seen = total, []
        ProgressBar.made.append(self)

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        self.seen.append((value, total, preview))


class Previewer:
    def decode_latent_to_preview_image(self, preview_format: str, x0: Tensor) -> Any:
        assert x0.ndim == 4
        return (preview_format, "of a latent", 512)


class Model:
    """A model patcher: the network pulls latents towards the mean of the condition."""

    def __init__(self) -> None:
        self.model_options: dict[str, Any] = {}
        self.load_device, self.model = torch.device("cpu"), SimpleNamespace(latent_format="tiny")

    def clone(self) -> "Model":
        copy = Model()
        copy.model_options = {k: list(v) if isinstance(v, list) else v for k, v in self.model_options.items()}
        return copy

    def set_model_unet_function_wrapper(self, wrapper: Any) -> None:
        self.model_options["model_function_wrapper"] = wrapper

    def set_model_sampler_post_cfg_function(self, function: Any, disable_cfg1_optimization: bool = False) -> None:
        known = self.model_options.get("sampler_post_cfg_function", [])
        self.model_options["sampler_post_cfg_function"] = [*known, function]

    def denoised(self, x: Tensor, sigma: float, positive: Tensor, negative: Tensor, cfg: float) -> Tensor:
        """One evaluation: both conditions in one batch, combined, and shown to the post-cfg functions."""

        def apply_model(x: Tensor, timestep: Tensor, **c: Any) -> Tensor:
            return (x + timestep.view(-1, 1, 1, 1) ** 2 * c["c_crossattn"]) / (1 + timestep.view(-1, 1, 1, 1) ** 2)

        both = [positive] if cfg == 1 else [positive, negative]
        count = len(both) * len(x)
        given = {
            "input": x.repeat(len(both), 1, 1, 1),
            "timestep": torch.full((count,), sigma),
            "c": {"c_crossattn": torch.stack(both).repeat_interleave(len(x)).view(-1, 1, 1, 1)},
            "cond_or_uncond": [0, 1][: len(both)],
        }
        wrapper = self.model_options.get("model_function_wrapper")
        out = (
            apply_model(given["input"], given["timestep"], **given["c"])
            if wrapper is None
            else wrapper(apply_model, given)
        )
        with_, without = out[: len(x)], out[-len(x) :]
        result = without + cfg * (with_ - without)
        for function in self.model_options.get("sampler_post_cfg_function", []):
            result = function({"denoised": result, "input": x, "sigma": sigma, "model": self})
        return result


def fix_empty_latent_channels(model: Model, latent_image: Tensor, downscale_ratio_spacial: int | None = None) -> Tensor:
    """The model's autoencoder makes pictures eight times as large as latents."""
    return (
        latent_image
        if downscale_ratio_spacial is None
        else latent_image.repeat(1, 1, *[downscale_ratio_spacial // 8] * 2)
    )


def sample(
    model: Model, noise: Tensor, steps: int, cfg: float, sampler_name: str, scheduler: str, positive: Any,
    negative: Any, latent_image: Tensor, denoise: float = 1.0, disable_noise: bool = False, start_step: Any = None,
    last_step: Any = None, force_full_denoise: bool = False, noise_mask: Any = None, sigmas: Any = None,
    callback: Any = None, disable_pbar: bool = False, seed: Any = None,
) -> Tensor:  # fmt: skip
    """As comfy.sample.sample: Euler, Heun (two evaluations a step but for the last) or Euler with fresh noise."""
    assert noise.shape == latent_image.shape and scheduler == "normal"
    levels = torch.linspace(10 * denoise, 0, steps + 1).tolist()
    x = latent_image + levels[0] * noise
    generator = torch.Generator().manual_seed(seed)
    for i, (here, there) in enumerate(pairwise(levels)):
        x0 = model.denoised(x, here, positive, negative, cfg)
        slope = (x - x0) / here
        if callback is not None:
            callback(i, x0, x, steps)
        if sampler_name == "heun" and there > 0:
            ahead = x + (there - here) * slope
            slope = (slope + (ahead - model.denoised(ahead, there, positive, negative, cfg)) / there) / 2
        x = x + (there - here) * slope
        if sampler_name == "euler_ancestral" and there > 0:
            x = x + 0.1 * there * torch.randn(x.shape, generator=generator)
    return x


class Vae:
    """Latents [B, 4, h, w] as pictures [B, h, w, 3] in [0, 1]."""

    def decode(self, samples: Tensor) -> Tensor:
        return (samples[:, :3] / 4 + 0.5).clamp(0, 1).movedim(1, -1)


def install(monkeypatch: Any) -> Management:
    """Make `import comfy...`, `comfy_api.latest` and `latent_preview` find these."""
    management = Management()
    ProgressBar.made.clear()
    kinds = {"Model": "MODEL", "Conditioning": "CONDITIONING", "Vae": "VAE", "Latent": "LATENT", "Image": "IMAGE",
             "Int": "INT", "Float": "FLOAT", "String": "STRING", "Combo": "COMBO"}  # fmt: skip
    io = SimpleNamespace(
        ComfyNode=ComfyNode, Schema=Schema, NodeOutput=NodeOutput, **{k: kind_of(v) for k, v in kinds.items()}
    )
    parts: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.model_management": {
            "throw_exception_if_processing_interrupted": management.throw_exception_if_processing_interrupted,
            "get_torch_device": management.get_torch_device,
            "InterruptProcessingException": InterruptProcessingException,
        },
        "comfy.sample": {"sample": sample, "fix_empty_latent_channels": fix_empty_latent_channels},
        "comfy.samplers": {
            "KSampler": SimpleNamespace(SAMPLERS=["euler", "heun", "euler_ancestral"], SCHEDULERS=["normal"])
        },
        "comfy.utils": {"ProgressBar": ProgressBar},
        "comfy_api": {},
        "comfy_api.latest": {"io": io, "ComfyExtension": ComfyExtension},
        "latent_preview": {
            "get_previewer": lambda device, latent_format: Previewer(), "MAX_PREVIEW_RESOLUTION": 512
        },
    }  # fmt: skip
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)
    return management
