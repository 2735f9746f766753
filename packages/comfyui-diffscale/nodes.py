"""The nodes: what they ask for, and what they give."""

import functools
import math
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import ComfyExtension, io
from PIL import Image

import diffscale
from diffscale.engine import noise

from .sampler import ComfySampler

CATEGORY = "sampling/diffscale"


def _inputs(*own: Any) -> list[Any]:
    """The inputs of KSampler, and what is searched by; `own` are those of one search."""
    sampler = comfy.samplers.KSampler
    return [
        io.Model.Input("model"),
        io.Conditioning.Input("positive"),
        io.Conditioning.Input("negative"),
        io.Vae.Input("vae", tooltip="Decodes the candidates, which the verifier sees as pictures."),
        io.Latent.Input("latent_image", tooltip="Of one picture; the search makes the candidates."),
        io.String.Input("prompt", multiline=True, tooltip="What the verifier compares the pictures with."),
        io.String.Input(
            "verifier",
            default="clip",
            tooltip="A verifier of diffscale: clip, image_reward, pick_score, hps, aesthetic, vqa, detector, "
            "ensemble of=clip,aesthetic, ...",
        ),
        io.Int.Input("candidates", default=16, min=1, max=4096, tooltip="How many pictures the search may sample."),
        *own,
        io.Int.Input("keep", default=1, min=1, max=64, tooltip="How many of the best pictures come out, best first."),
        io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True),
        io.Int.Input("steps", default=20, min=1, max=10000),
        io.Float.Input("cfg", default=8.0, min=0.0, max=100.0, step=0.1, round=0.01),
        io.Combo.Input("sampler_name", options=sampler.SAMPLERS),
        io.Combo.Input("scheduler", options=sampler.SCHEDULERS),
        io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01),
    ]


def _schema(name: str, title: str, description: str, *own: Any) -> io.Schema:
    return io.Schema(
        node_id=name,
        display_name=title,
        category=CATEGORY,
        description=description,
        inputs=_inputs(*own),
        outputs=[
            io.Latent.Output(display_name="latent"),
            io.Image.Output(display_name="images"),
            io.Float.Output(display_name="score"),
            io.String.Output(display_name="report"),
        ],
        is_experimental=True,
    )


class DiffscaleBestOfN(io.ComfyNode):
    """Random search: the best of N samples."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "DiffscaleBestOfN",
            "Best of N (diffscale)",
            "Samples N pictures, each from a noise of its own, and gives those that a verifier scores best.",
        )

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return _found("random", **given)


class DiffscaleZeroOrder(io.ComfyNode):
    """Zero-order search: from noise to neighbouring noise (Ma et al. 2025, arXiv 2501.09732)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "DiffscaleZeroOrder",
            "Zero-order search (diffscale)",
            "Samples neighbours of a noise, moves to the one that a verifier scores best, and goes on from there.",
            io.Int.Input("neighbours", default=4, min=1, max=256, tooltip="Samples of one round."),
            io.Float.Input(
                "cosine",
                default=0.95,
                min=-0.99,
                max=0.99,
                step=0.01,
                tooltip="How near neighbours lie; less is farther.",
            ),
            io.Combo.Input("policy", options=["best", "greedy", "restart"], tooltip="See zero_order in diffscale."),
        )

    @classmethod
    def execute(cls, neighbours: int, cosine: float, policy: str, **given: Any) -> io.NodeOutput:
        return _found(f"zero_order n={neighbours} cosine={cosine} policy={policy}", **given)


def _found(
    search: str,
    model: Any,
    positive: Any,
    negative: Any,
    vae: Any,
    latent_image: dict[str, Any],
    prompt: str,
    verifier: str,
    candidates: int,
    keep: int,
    seed: int,
    **settings: Any,
) -> io.NodeOutput:
    """Search, and give the best latents, pictures [keep, H, W, 3] in [0, 1], the best score and a report."""
    if keep > candidates:
        raise diffscale.DiffscaleError(f"{keep} pictures are to be kept of {candidates}: ask for more candidates.")
    loaded = _verifier(verifier, str(comfy.model_management.get_torch_device()))
    key = noise.fold(noise.root(seed), prompt, 0)  # that of `diffscale.search`
    bar = comfy.utils.ProgressBar(settings["steps"] * candidates)
    # The picture that is made to measure what one costs is the first candidate.
    sampler = ComfySampler(
        model, positive, negative, vae, latent_image, prompt, noise.fold(key, "candidate", 0), settings
    )
    shown = _Shown(bar, model, settings["steps"], settings["steps"] * candidates, sampler.steps)
    sampler.step_seen = shown.step
    try:
        result = diffscale.search(
            sampler,
            prompt,
            search=search,
            verifier=loaded,
            nfe=candidates * sampler.steps,
            seed=seed,
            batch_size=1,
            keep_best=keep,
            observers=[shown.candidates],
        )
    except diffscale.DiffscaleError as error:
        # Whatever a model raises is told as its failure; that the user stopped it is for ComfyUI to hear.
        if isinstance(error.__cause__, comfy.model_management.InterruptProcessingException):
            raise error.__cause__ from None
        raise
    best = torch.stack([each.latents for each in result.best_candidates])
    images = vae.decode(best)
    images = images.flatten(0, 1) if images.ndim == 5 else images  # frames of videos, as VAE Decode gives them
    return io.NodeOutput({"samples": best}, images, result.best.score, _report(result, search, verifier))


@functools.lru_cache(maxsize=2)
def _verifier(text: str, device: str) -> Any:
    """A verifier, whose networks stay loaded from one run of the graph to the next."""
    return diffscale.load_verifier(text, device=device)


class _Shown:
    """Tells the user how far the search is: the latents of the sample that is made, and each new best picture."""

    def __init__(self, bar: Any, model: Any, steps: int, total: int, nfe: int) -> None:
        self._bar, self._steps, self._total, self._nfe = bar, steps, total, nfe
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self._finished, self._best = 0, -math.inf

    def step(self, step: int, x0: torch.Tensor) -> None:
        preview = None if self._previewer is None else self._previewer.decode_latent_to_preview_image("JPEG", x0)
        self._bar.update_absolute(self._finished * self._steps + step + 1, self._total, preview)

    def candidates(
        self, search: int, keys: torch.Tensor, scores: torch.Tensor, images: torch.Tensor, nfe: list[int]
    ) -> None:
        """Told by the engine of candidates that were scored."""
        self._finished = max(self._finished, nfe[-1] // self._nfe)
        best, where = scores.max(0)
        preview = None
        if float(best) > self._best:
            self._best = float(best)
            pixels = (images[where] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            preview = ("JPEG", Image.fromarray(pixels), latent_preview.MAX_PREVIEW_RESOLUTION)
        self._bar.update_absolute(self._finished * self._steps, self._total, preview)
        comfy.model_management.throw_exception_if_processing_interrupted()


def _report(result: diffscale.Result, search: str, verifier: str) -> str:
    """What was found and what it cost, one fact a line."""
    ledger = result.ledger
    return "\n".join(
        [
            f"search: {search}",
            f"verifier: {verifier}",
            f"best score: {result.best.score:.4f} (first sample: {result.baseline.score:.4f})",
            f"candidates: {result.candidates}, of which {result.dropped} got no score",
            f"denoiser evaluations (NFE): {ledger.nfe}, rows through the network: {ledger.network_forwards}",
            f"key of the best: {result.best.key}",
        ]
    )


class DiffscaleExtension(ComfyExtension):
    """What ComfyUI loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [DiffscaleBestOfN, DiffscaleZeroOrder]


async def comfy_entrypoint() -> DiffscaleExtension:
    """What ComfyUI calls to find the nodes of this package."""
    return DiffscaleExtension()
