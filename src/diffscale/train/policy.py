"""The network that is trained: the denoiser of any windowed pipeline, called as its pipeline does, with gradients."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.samplers.arguments import call_parameters, embeddings
from diffscale.samplers.calls import networks_of
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.samplers.windowed.training import PerRowDenoiser, PictureEncoder
from diffscale.train.times import Times


class Policy:
    """The denoiser of `pipe`, unguided: only what it says of the condition is trained.

    `pipe`: any diffusers pipeline of pictures that `DiffusersSampler` takes; its networks are shared, so what is
    trained here is trained there. `prompts`: what rows point into; the empty prompt is added if its own text encoders
    are used, and must be among them for dropout if embeddings are given as `pipe_args`. `steps`: of the grid that
    on-policy methods sample on. `pipe_args`: as of `DiffusersSampler`; where guidance is told to the network (Flux dev)
    it is what the pipeline's argument says. `adapter`: the name of the LoRA that is trained, None for full weights.
    `snr_gamma`: errors are weighted by it, see `Times.weight`; None for no weights.

    `sampler`: a Sampler of the same prompts, for plain samples. `times`: see `Times`. All latents are the network's own
    input: of variance preserving models they have variance 1, whatever scheduler the pipeline has.

    Raises NotWindowed for pipelines that cannot be windowed, DiffscaleError for those whose guidance cannot be switched
    off.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str],
        steps: int = 25,
        pipe_args: Mapping[str, Any] | None = None,
        adapter: str | None = None,
        snr_gamma: float | None = None,
    ) -> None:
        args = {**(pipe_args or {}), **switch_guidance_off(pipe)}
        self._embedded = bool(embeddings(args))
        self.sampler = DiffusersSampler(pipe, self._with_empty(prompts), steps, args)
        if self.sampler.forwards_per_nfe != 1:
            raise DiffscaleError(f"{type(pipe).__name__} guides whatever it is told, so it cannot be trained here.")
        self.adapter, self._gamma = adapter, snr_gamma
        self._frozen: dict[str, nn.Module] = {}
        self._pipeline = self.sampler.pipeline
        self.times = Times.of_scheduler(self._pipeline.scheduler)
        one = torch.zeros(1, dtype=torch.int64)
        self.like = self.sampler.prior(one, one).x[:0]
        self._network = PerRowDenoiser(self._pipeline, self.like)
        self._encoder: PictureEncoder | None = None

    @property
    def prompts(self) -> list[str]:
        """The prompts that rows point into."""
        return self._pipeline.prompts

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that are trained, by the pipeline's names; two where one is for high and one for low noise."""
        return self._pipeline.denoisers

    def set_prompts(self, prompts: Sequence[str], pipe_args: Mapping[str, Any] | None = None) -> None:
        """Have rows point into these `prompts`: those of the next batch, where all are too many to hold.

        `pipe_args`: their embeddings, if embeddings were given from the start; else they are encoded now.
        """
        with torch.no_grad():
            self._pipeline.set_prompts(self._with_empty(prompts), pipe_args or {})
        self.sampler.prompts = self.prompts

    def set_embedded_prompts(
        self, prompts: Sequence[str], embeddings: Mapping[str, Tensor], sizes: Tensor | None
    ) -> None:
        """Do as `set_prompts` does, with what `embed` made of these prompts before.

        `sizes`: int64 [B, 6], see `PerRowDenoiser`, of the pictures that belong to them.
        """
        self._pipeline.set_embedded_prompts(prompts, embeddings)
        self._network.sizes = sizes
        self.sampler.prompts = self.prompts

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Text embeddings of `prompts` to be kept, see `WindowedPipeline.embed`."""
        return self._pipeline.embed(prompts)

    def output(self, x: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        """The network's output like `x` [B, ...] at times `time` [B] for the prompts `rows` [B], with gradients."""
        return self._network(x, time, rows).to(x)

    def errors(self, x: Tensor, time: Tensor, rows: Tensor, target: Tensor) -> Tensor:
        """The output's squared distances to `target` [B, ...], each the mean over elements, weighted: [B]."""
        return self.distances(self.output(x, time, rows), time, target)

    def distances(self, output: Tensor, time: Tensor, target: Tensor) -> Tensor:
        """Of an `output` [B, ...] at times `time` [B], what `errors` gives: [B]."""
        errors = (output - target).square().flatten(1).mean(1)
        return errors if self._gamma is None else errors * self.times.weight(time, self._gamma).to(errors)

    @torch.no_grad()
    def sample(self, unit: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
        """Clean latents like `unit` of unguided samples from that noise [B, ...] for the prompts `rows` [B]."""
        return self.sampler.run(self.sampler.start(unit, keys, rows)).x.to(unit)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures float32 [B, 3, H, W] in [0, 1] of clean latents, with gradients where they are on."""
        with self._pipeline.graph_kept(torch.is_grad_enabled()):
            return self.sampler.decode(latents.to(self.like))

    def encode(self, pictures: Tensor) -> Tensor:
        """Clean latents float32 [B, ...] of `pictures` [B, 3, H, W] in [0, 1], see `PictureEncoder`."""
        if self._encoder is None:
            # Scales are found by what the pipeline does to ones: not in half precision.
            self._encoder = PictureEncoder(self._pipeline, self.like.to(self._wide))
        return self._encoder(pictures)

    def prior(self, keys: Tensor) -> Tensor:
        """Unit noise [B, ...] of `keys` int64 [B] alone; float32, or float64 if the model is."""
        return noise.normal(keys, self.like.shape[1:]).to(self.like.device, self._wide)

    def grid(self) -> Tensor:
        """The times that a plain sample visits, falling, float64 [steps], without the clean end."""
        if self.times.table is None:
            return self.times.count * torch.tensor(self.sampler.levels[:-1], dtype=torch.float64)
        # Some schedulers evaluate a timestep twice.
        return self._pipeline.scheduler.timesteps.double().cpu().unique().flip(0)

    @property
    def copies(self) -> dict[str, nn.Module]:
        """The copies that are the reference of full weights; empty without `freeze`."""
        return self._frozen

    def freeze(self) -> None:
        """Keep a copy of full weights as the reference; this is called once, before the first update."""
        if self.adapter is None:
            self._frozen = {
                name: copy.deepcopy(network).requires_grad_(False).eval() for name, network in self.networks.items()
            }

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Have the network be what it was before training until the block ends; no graph is kept.

        Raises DiffscaleError for full weights without `freeze`.
        """
        if self.adapter is not None:
            with torch.no_grad(), _without_lora(self.networks.values(), self.adapter):
                yield
        elif self._frozen:
            with torch.no_grad(), self._pipeline.with_networks(self._frozen):
                yield
        else:
            raise DiffscaleError("Full weights have no reference: call freeze() before the first update.")

    @property
    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.like.dtype, torch.float32)

    def _with_empty(self, prompts: Sequence[str]) -> list[str]:
        return [*prompts] if self._embedded or "" in prompts else [*prompts, ""]


def switch_guidance_off(pipe: Any) -> dict[str, float]:
    """The arguments that switch classifier-free guidance off; a scale that the network is told stays."""
    taken = call_parameters(pipe)
    if "true_cfg_scale" in taken:
        return {"true_cfg_scale": 1.0}
    configs = [getattr(network, "config", None) for network in networks_of(pipe)]
    told = any(
        getattr(config, "guidance_embeds", False) or getattr(config, "time_cond_proj_dim", None) for config in configs
    )
    return {} if told or "guidance_scale" not in taken else {"guidance_scale": 1.0}


@contextmanager
def _without_lora(networks: Iterable[nn.Module], name: str) -> Iterator[None]:
    """Switch the LoRA `name` off until the block ends; others, that the base came with, stay.

    Raises DiffscaleError if there is none of that name.
    """
    modules: Iterable[Any] = (layer for network in networks for layer in network.modules())
    layers = [layer for layer in modules if name in (getattr(layer, "scaling", None) or {})]
    if not layers:
        raise DiffscaleError(f"The network has no LoRA called {name!r}: add it before training.")
    own = [layer.scaling[name] for layer in layers]
    for layer in layers:
        layer.scaling[name] = 0.0
    try:
        yield
    finally:
        for layer, scale in zip(layers, own, strict=True):
            layer.scaling[name] = scale
