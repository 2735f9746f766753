"""A policy small enough to compute by hand, and tiny pipelines of four families in float64."""

import copy
from contextlib import contextmanager

import families
import torch
from diffusers import DDIMScheduler
from pipelines import PROMPTS

from diffscale.engine import noise
from diffscale.train.policy import Policy
from diffscale.train.times import Times

TABLE = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod.double()
TIMES = {
    "epsilon": Times(TABLE, 1000, "epsilon"),
    "v_prediction": Times(TABLE, 1000, "v_prediction"),
    "flow_prediction": Times(None, 1000, "flow_prediction"),
}


class ToyPolicy:
    """Latents [B, 2, 2, 2]; the network is a x + b t + c with a number for each prompt; a picture is its latents."""

    errors, distances = Policy.errors, Policy.distances
    _gamma = None

    def __init__(self, prediction="epsilon", steps=6):
        self.times, self.prompts, self.steps = TIMES[prediction], ["one", "two", ""], steps
        self.network = torch.nn.ParameterDict(
            {
                "a": torch.tensor(0.6, dtype=torch.float64),
                "b": torch.tensor(0.0003, dtype=torch.float64),
                "c": torch.tensor([0.1, -0.2, 0.05], dtype=torch.float64),
            }
        )
        self.before = copy.deepcopy(self.network)
        self.used = self.network
        self.like = torch.empty(0, 2, 2, 2, dtype=torch.float64)

    def output(self, x, time, rows):
        shift = self.used["b"] * time + self.used["c"][rows]
        return self.used["a"] * x + shift[:, None, None, None]

    @contextmanager
    def reference(self):
        self.used = self.before
        with torch.no_grad():
            yield
        self.used = self.network

    def change(self, by=0.05):
        with torch.no_grad():
            for parameter in self.network.values():
                parameter += by * parameter.abs()

    def prior(self, keys):
        return noise.normal(keys, (2, 2, 2)).double()

    def grid(self):
        return torch.linspace(950, 50, self.steps, dtype=torch.float64)

    def decode(self, latents):
        pictures = (latents[:, :1] / 8 + 0.5).clamp(0, 1).float()
        return pictures.expand(-1, 3, -1, -1)


class Red:
    """The mean red of a picture: differentiable, and known of a toy's latents."""

    name = "red"

    def __call__(self, images, prompts):
        return images[:, 0].mean((1, 2))


def red(latents):
    """What `Red` says of the toy's pictures of `latents` [B, 2, 2, 2]."""
    return (latents[:, 0] / 8 + 0.5).clamp(0, 1).float().mean((1, 2)).double()


def _vp(**more):
    return DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, **more)


FAMILIES = {
    "sdxl": (families.sdxl, _vp),
    "sd21": (families.sd, lambda: _vp(prediction_type="v_prediction")),
    "flux": (families.flux_dev, lambda: families._flow(use_dynamic_shifting=True)),
    "sd3": (families.sd3, lambda: families._flow(shift=3.0)),
}


def tiny(name, scheduler=None, dtype=torch.float64):
    """A tiny pipeline of `FAMILIES` or `families.WINDOWED` in `dtype`, as of `families`."""
    make, own = FAMILIES.get(name) or families.WINDOWED[name][:2]
    t = make(own() if scheduler is None else scheduler, False)
    for part in (t.net, t.pipe.vae):
        part.to(dtype)
    t.args = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in t.args.items()}
    return t


def policy_of(name, adapter=None, steps=4, **more):
    t = tiny(name, **more)
    return t, Policy(t.pipe, PROMPTS, steps, t.args, adapter)
