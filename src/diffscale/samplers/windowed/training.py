"""What training needs of a windowed pipeline: its denoiser at a timestep for every row, and latents of pictures."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.samplers.calls import overridden
from diffscale.samplers.windowed.pipeline import WindowedPipeline
from diffscale.samplers.windowed.scheduler import StepWindow

_NOT_INVERTED: Final = "This pipeline decodes its latents by more than scale, shift and order: use another."


class PerRowDenoiser:
    """The denoiser of `pipeline`, which must be unguided: given text, sizes and packing as its pipeline does.

    Pipelines hand their timestep on to every row; most take one that is a vector already. Whether this one does is
    tried once, by an evaluation of two rows: if not, rows run together only where their timesteps are equal.
    `like`: an empty tensor [0, ...] shaped, typed and placed as latents are. `sizes`: int64 [P, 6], what the network is
    told of each prompt's picture where it is told sizes and crops (SDXL's time ids), in the place of what the pipeline
    says of all; None leaves that.
    """

    def __init__(self, pipeline: WindowedPipeline, like: Tensor) -> None:
        self._pipeline, self._like = pipeline, like
        self.sizes: Tensor | None = None
        self._names = list(pipeline.denoisers)
        own = pipeline.scheduler.timesteps
        self._dtype = own.dtype if own.is_floating_point() else torch.float32
        self.mixes_times = self._try_mixed_times()

    def __call__(self, x: Tensor, times: Tensor, rows: Tensor) -> Tensor:
        """The network's raw output [B, ...], in its own dtype, for latents `x` [B, ...] told `times` [B].

        `rows`: int64 [B], the prompts. A graph is kept where torch's gradients are on. Latents are the network's own
        input: of variance preserving models they are of variance 1, whatever scheduler the pipeline has.
        """
        groups = self._pipeline.groups(rows.tolist(), None if self.mixes_times else times.tolist())
        if len(groups) == 1:
            return self._run(x, times if self.mixes_times else times[0], rows)
        outputs = [self._run(x[g], times[g] if self.mixes_times else times[g[0]], rows[g]) for g in groups]
        order = torch.tensor([i for group in groups for i in group]).argsort()
        return torch.cat(outputs)[order.to(outputs[0].device)]

    def _run(self, x: Tensor, times: Tensor, rows: Tensor) -> Tensor:
        window = StepWindow(0, 1, predict_only=True, times=times.to(x.device, self._dtype))
        with self._pipeline.graph_kept(torch.is_grad_enabled()), self._with_sizes(rows):
            self._pipeline.run(x.to(self._like), rows.tolist(), window)
        assert window.model_output is not None
        return window.model_output

    @contextmanager
    def _with_sizes(self, rows: Tensor) -> Iterator[None]:
        """Within it whatever is the denoiser now is told the sizes of `rows`."""
        sizes = None if self.sizes is None else self.sizes[rows]

        def replaced(network: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
            more = kwargs.get("added_cond_kwargs") or {}
            if sizes is not None and "time_ids" in more:
                kwargs = {**kwargs, "added_cond_kwargs": {**more, "time_ids": sizes.to(more["time_ids"])}}
            return args, kwargs

        with ExitStack() as hooks:
            for name in self._names if sizes is not None else ():
                network = self._pipeline.components[name]
                hooks.enter_context(network.register_forward_pre_hook(replaced, with_kwargs=True))
            yield

    @torch.no_grad()
    def _try_mixed_times(self) -> bool:
        own = self._pipeline.scheduler.timesteps
        x = noise.normal(torch.arange(2), self._like.shape[1:]).to(self._like)
        times, rows = torch.stack([own[0], own[-1]]).cpu(), torch.zeros(2, dtype=torch.int64)
        apart = torch.cat([self._run(x[i : i + 1], times[i], rows[:1]) for i in range(2)])
        try:
            together = self._run(x, times, rows)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError):
            return False  # such as one that compares its timestep with a boundary
        # Rows of a batch differ by rounding from rows alone; one told another row's time differs by far more.
        return together.shape == apart.shape and bool((together - apart).abs().max() <= 0.02 * apart.abs().max())


class PictureEncoder:
    """Encodes pictures to latents of any pipeline, in its scale and layout: what its own decoding does, inverted.

    Between its latents and its autoencoder a pipeline scales, shifts and unpacks; it may do so with one scale (Stable
    Diffusion), a shift too (Flux, Stable Diffusion 3), means and deviations of every channel (Qwen-Image), in patches
    (Flux). Each entry of what the autoencoder gets is one entry of the latents, scaled and shifted. Which one is found
    by decoding a few latents of zeros and ones with the autoencoder left out.

    `like`: an empty tensor [0, ...] shaped, typed and placed as latents are. Raises DiffscaleError for pipelines
    without an autoencoder, or that do more than that.
    """

    def __init__(self, pipeline: WindowedPipeline, like: Tensor) -> None:
        self._pipeline, self._like = pipeline, like
        self._vae: Any = pipeline.components.get("vae")
        if self._vae is None or not hasattr(self._vae, "encode"):
            raise DiffscaleError("This pipeline has no autoencoder that encodes pictures: give latents.")
        size = like.shape[1:].numel()
        self._shift = self._decoder_input(torch.zeros(size))
        self._scale = self._decoder_input(torch.ones(size)) - self._shift
        if self._scale.numel() != size or not self._scale.abs().min() > 0:
            raise DiffscaleError(_NOT_INVERTED)
        # The place of each entry among the latents, bit by bit: signs survive any precision.
        place = torch.zeros(size, dtype=torch.int64)
        for bit in range((size - 1).bit_length()):
            ones = (torch.arange(size) >> bit & 1).float()
            place += ((self._decoder_input(ones) - self._shift) / self._scale > 0.5).flatten().cpu().long() << bit
        if not torch.equal(place.sort().values, torch.arange(size)):
            raise DiffscaleError(_NOT_INVERTED)
        self._order = place.argsort()

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Clean latents float32 [B, ...] of `pictures` [B, 3, H, W] in [0, 1], of the size that the pipeline makes.

        The mode of the autoencoder's distribution, so that latents can be kept; the pictures of videos are one frame.
        """
        given = pictures.to(self._like.device, next(self._vae.parameters()).dtype) * 2 - 1
        if self._shift.ndim == 5:
            given = given.unsqueeze(2)
        coded = self._vae.encode(given)
        code = (coded.latent_dist.mode() if hasattr(coded, "latent_dist") else coded.latent).float()
        if code.shape[1:] != self._shift.shape[1:]:
            raise DiffscaleError(
                f"Pictures of {tuple(pictures.shape[2:])} pixels are encoded to {tuple(code.shape[1:])}, but the "
                f"pipeline makes latents of {tuple(self._shift.shape[1:])}: give height and width as the pictures' own."
            )
        flat = ((code - self._shift) / self._scale).flatten(1)[:, self._order.to(code.device)]
        return flat.view(len(flat), *self._like.shape[1:])

    def _decoder_input(self, flat: Tensor) -> Tensor:
        """What the autoencoder is given to decode of latents with entries `flat`: float32 [1, ...]."""
        given: list[Tensor] = []

        def decode(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
            given.append(latents)
            return DecoderOutput(sample=latents)

        end = self._pipeline.scheduler.count
        with overridden(self._vae, decode=decode):
            self._pipeline.run(flat.view(1, *self._like.shape[1:]).to(self._like), [0], StepWindow(end, end), "pt")
        if len(given) != 1:
            raise DiffscaleError("This pipeline does not decode its latents in one call of its autoencoder.")
        return given[0].float()
