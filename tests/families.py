"""Tiny pipelines with random weights of many families: text to image, to video, and from pictures."""

import inspect
from types import SimpleNamespace
from typing import Any

import diffusers
import signed
import torch
import unusual
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    IFPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LDMTextToImagePipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from pipelines import _unet, _vae, letters, tiny_pixart, tiny_sd, tiny_sdxl, tiny_zimage

N = 3  # prompts


def _given(pipe: Any, net: Any, args: dict[str, Any], forwards: int = 1, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(pipe=pipe, net=net, args=args, forwards=forwards, **more)


def _embeds(width: int, length: int = 5) -> torch.Tensor:
    return torch.randn(N, length, width)


def _mask() -> torch.Tensor:
    return torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


def _pair(name: str, make: Any, guided: bool, negative: str = "negative_{}") -> dict[str, Any]:
    return {name: make(), **({negative.format(name): make()} if guided else {})}


def _flux_net(guidance: bool, channels: int = 4, pooled: int = 32) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=channels,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=pooled,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=guidance,
    ).eval()


def _flow_vae(channels: int = 1) -> Any:
    return _vae(channels, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5)


def sd(scheduler: Any, guided: bool) -> SimpleNamespace:
    t = tiny_sd(scheduler)
    t.args["guidance_scale"] = 5.0 if guided else 1.0
    t.forwards = 1 + guided
    return t


def sdxl(scheduler: Any, guided: bool) -> SimpleNamespace:
    t = tiny_sdxl(scheduler)
    t.args["guidance_scale"] = 5.0 if guided else 1.0
    t.forwards = 1 + guided
    return t


def sd3(scheduler: Any, guided: bool) -> SimpleNamespace:
    torch.manual_seed(0)
    net = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=16,
        pos_embed_max_size=8,
    ).eval()
    pipe = StableDiffusion3Pipeline(net, scheduler, _flow_vae(16), None, None, None, None, None, None)
    args = {
        **_pair("prompt_embeds", lambda: _embeds(16), guided),
        **_pair("pooled_prompt_embeds", lambda: torch.randn(N, 16), guided),
        "guidance_scale": 5.0 if guided else 1.0,
        "height": 8,
        "width": 8,
    }
    return _given(pipe, net, args, 1 + guided)


def _flux_args(guided: bool) -> dict[str, Any]:
    return {
        **_pair("prompt_embeds", lambda: _embeds(32), guided),
        **_pair("pooled_prompt_embeds", lambda: torch.randn(N, 32), guided),
        **({"true_cfg_scale": 2.0} if guided else {}),
        "height": 16,
        "width": 16,
    }


def flux_dev(scheduler: Any, guided: bool) -> SimpleNamespace:
    torch.manual_seed(0)
    net = _flux_net(True)
    pipe = FluxPipeline(scheduler, _flow_vae(), None, None, None, None, net)
    return _given(pipe, net, _flux_args(guided), 1 + guided)


def flux_schnell(scheduler: Any, guided: bool) -> SimpleNamespace:
    torch.manual_seed(0)
    net = _flux_net(False)
    pipe = FluxPipeline(scheduler, _flow_vae(), None, None, None, None, net)
    return _given(pipe, net, _flux_args(guided), 1 + guided)


def _flux2_net(guidance: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    ).eval()


def _flux2_vae() -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        sample_size=16,
    ).eval()


def _unpacked(packed: torch.Tensor) -> torch.Tensor:
    """FLUX.2 takes latents [B, C, h, w] and gives them back as [B, h w, C]."""
    side = round(packed.shape[1] ** 0.5)
    return packed.transpose(1, 2).unflatten(2, (side, side))


def flux2(scheduler: Any, guided: bool) -> SimpleNamespace:
    torch.manual_seed(0)
    net = _flux2_net(True)
    pipe = Flux2Pipeline(scheduler, _flux2_vae(), None, None, net)
    return _given(pipe, net, {"prompt_embeds": _embeds(16), "height": 16, "width": 16}, handed=_unpacked)


def flux2_klein(scheduler: Any, guided: bool) -> SimpleNamespace:
    torch.manual_seed(0)
    net = _flux2_net(False)
    pipe = Flux2KleinPipeline(scheduler, _flux2_vae(), None, None, net)
    args = {
        **_pair("prompt_embeds", lambda: _embeds(16), guided),
        "guidance_scale": 4.0 if guided else 1.0,
        "height": 16,
        "width": 16,
    }
    return _given(pipe, net, args, 1 + guided, handed=_unpacked)


def sana(scheduler: Any, guided: bool) -> SimpleNamespace:
    torch.manual_seed(0)
    net = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=8,
    ).eval()
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
    ).eval()
    pipe = SanaPipeline(None, None, vae, net, scheduler)
    args = {
        "negative_prompt": None,
        **_pair("prompt_embeds", lambda: _embeds(8), guided),
        **_pair("prompt_attention_mask", _mask, guided),
        "guidance_scale": 4.5 if guided else 1.0,
        "use_resolution_binning": False,
        "height": 32,
        "width": 32,
    }
    if guided:
        args["negative_prompt_attention_mask"] = torch.ones_like(_mask())
    return _given(pipe, net, args, 1 + guided)


def qwen(scheduler: Any, guided: bool) -> SimpleNamespace:
    torch.manual_seed(0)
    net = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    ).eval()
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1],
        num_res_blocks=1,
        temperal_downsample=[],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()
    pipe = QwenImagePipeline(scheduler, vae, None, None, net)
    args = {
        **_pair("prompt_embeds", lambda: _embeds(16), guided),
        **_pair("prompt_embeds_mask", lambda: torch.ones(N, 5, dtype=torch.int64), guided),
        "true_cfg_scale": 3.0,
        "height": 8,
        "width": 8,
    }
    return _given(pipe, net, args, 1 + guided)


def lumina2(scheduler: Any, guided: bool) -> SimpleNamespace:
    torch.manual_seed(0)
    net = Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=8,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128),
        cap_feat_dim=8,
    ).eval()
    pipe = Lumina2Pipeline(net, scheduler, _flow_vae(4), None, None)
    args = {
        **_pair("prompt_embeds", lambda: _embeds(8), guided),
        **_pair("prompt_attention_mask", lambda: _mask().bool(), guided),
        "guidance_scale": 4.0 if guided else 1.0,
        "height": 32,
        "width": 32,
    }
    return _given(pipe, net, args, 1 + guided)


def chroma(scheduler: Any, guided: bool) -> SimpleNamespace:
    torch.manual_seed(0)
    net = ChromaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    ).eval()
    pipe = ChromaPipeline(scheduler, _flow_vae(), None, None, net)
    args = {
        **_pair("prompt_embeds", lambda: _embeds(16), guided),
        **_pair("prompt_attention_mask", lambda: torch.ones(N, 5), guided),
        "guidance_scale": 5.0 if guided else 1.0,
        "height": 16,
        "width": 16,
    }
    return _given(pipe, net, args, 1 + guided)


def aura(scheduler: Any, guided: bool) -> SimpleNamespace:
    torch.manual_seed(0)
    net = AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=64,
    ).eval()
    pipe = AuraFlowPipeline(None, None, _vae(), net, scheduler)
    args = {
        **_pair("prompt_embeds", lambda: _embeds(16), guided),
        **_pair("prompt_attention_mask", lambda: torch.ones(N, 5), guided),
        "guidance_scale": 3.5 if guided else 1.0,
        "height": 8,
        "width": 8,
    }
    return _given(pipe, net, args, 1 + guided)


def cogview4(scheduler: Any, guided: bool) -> SimpleNamespace:
    torch.manual_seed(0)
    net = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=16,
        sample_size=8,
        rope_axes_dim=(16, 16),
    ).eval()
    pipe = CogView4Pipeline(None, None, _vae(), net, scheduler)
    args = {
        **_pair("prompt_embeds", lambda: _embeds(16), guided),
        "guidance_scale": 5.0 if guided else 1.0,
        "height": 16,
        "width": 16,
    }
    return _given(pipe, net, args, 1 + guided)


def _wan_net() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=16,
    ).eval()


def _wan_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        scale_factor_temporal=2,
        scale_factor_spatial=2,
    ).eval()


def wan(scheduler: Any, guided: bool, two: bool = False) -> SimpleNamespace:
    torch.manual_seed(0)
    nets = [_wan_net() for _ in range(1 + two)]
    pipe = WanPipeline(
        None, None, _wan_vae(), scheduler, nets[0], nets[-1] if two else None, boundary_ratio=0.8 if two else None
    )
    args = {
        **_pair("prompt_embeds", lambda: _embeds(16), guided),
        "guidance_scale": 5.0 if guided else 1.0,
        "height": 16,
        "width": 16,
        "num_frames": 5,
    }
    return _given(pipe, torch.nn.ModuleList(nets), args, 1 + guided, frames=4)


def wan22(scheduler: Any, guided: bool) -> SimpleNamespace:
    """A network for high noise and one for low."""
    return wan(scheduler, guided, two=True)


def ltx(scheduler: Any, guided: bool, timed: bool = False) -> SimpleNamespace:
    torch.manual_seed(0)
    net = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    ).eval()
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(4, 4),
        down_block_types=("LTXVideoDownBlock3D", "LTXVideoDownBlock3D"),
        decoder_block_out_channels=(4, 4),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False, False, False),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        timestep_conditioning=timed,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    ).eval()
    pipe = LTXPipeline(scheduler, vae, None, None, net)
    args = {
        **_pair("prompt_embeds", lambda: _embeds(16), guided),
        **_pair("prompt_attention_mask", lambda: torch.ones(N, 5), guided),
        "guidance_scale": 3.0 if guided else 1.0,
        "height": 32,
        "width": 32,
        "num_frames": 9,
    }
    return _given(pipe, net, args, 1 + guided, frames=4)


def _picture(channels: int = 3, side: int = 8) -> torch.Tensor:
    return torch.rand(1, channels, side, side)


def sd_image(scheduler: Any, guided: bool) -> SimpleNamespace:
    t = sd(scheduler, guided)
    t.pipe = StableDiffusionImg2ImgPipeline(**t.pipe.components, requires_safety_checker=False)
    t.args = {k: v for k, v in t.args.items() if k not in ("height", "width")}
    t.args |= {"image": _picture(), "strength": 0.75}
    return t


def sd_instructed(scheduler: Any, guided: bool) -> SimpleNamespace:
    """Without an `encode_prompt`; its guidance, by the text and by the picture, takes three rows."""
    t = sd(scheduler, guided)
    t.net, t.forwards = _unet(in_channels=8, out_channels=4), 3 if guided else 1
    parts = {**t.pipe.components, "unet": t.net}
    t.pipe = StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    t.args = {k: v for k, v in t.args.items() if k not in ("height", "width")} | {"image": _picture()}
    return t


def sdxl_image(scheduler: Any, guided: bool) -> SimpleNamespace:
    t = sdxl(scheduler, guided)
    # The refiner's kind of micro-conditioning has five numbers where the base's has six.
    t.pipe = StableDiffusionXLImg2ImgPipeline(**t.pipe.components, add_watermarker=False)
    t.args = {k: v for k, v in t.args.items() if k not in ("height", "width")}
    t.args |= {"image": _picture(), "strength": 0.75}
    return t


def flux_image(scheduler: Any, guided: bool) -> SimpleNamespace:
    t = flux_dev(scheduler, guided)
    t.pipe = FluxImg2ImgPipeline(scheduler, t.pipe.vae, None, None, None, None, t.net)
    t.args |= {"image": _picture(side=16), "strength": 0.75}
    return t


def sd_inpaint(scheduler: Any, guided: bool, channels: int = 9) -> SimpleNamespace:
    t = sd(scheduler, guided)
    net = _unet(in_channels=channels, out_channels=4)
    parts = {**t.pipe.components, "unet": net}
    t.pipe, t.net = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False), net
    t.args |= {"image": _picture(), "mask_image": (_picture(1) > 0.5).float(), "strength": 1.0}
    return t


def sd_blended(scheduler: Any, guided: bool) -> SimpleNamespace:
    """Its network does not know of the mask: after each step the pipeline pastes what is to be kept."""
    return sd_inpaint(scheduler, guided, channels=4)


def flux_inpaint(scheduler: Any, guided: bool) -> SimpleNamespace:
    t = flux_dev(scheduler, guided)
    t.pipe = FluxInpaintPipeline(scheduler, t.pipe.vae, None, None, None, None, t.net)
    t.args |= {"image": _picture(side=16), "mask_image": (_picture(1, 16) > 0.5).float(), "strength": 1.0}
    return t


def derived(cls: str, parent: Any, scheduler: Any, guided: bool = True, drop: Any = (), **more: Any) -> SimpleNamespace:
    """Another pipeline class of a family, from the parts of its text-to-image pipeline."""
    t = parent(scheduler, guided)
    made = getattr(diffusers, cls)
    wanted = inspect.signature(made.__init__).parameters
    parts = {name: part for name, part in t.pipe.components.items() if name in wanted}
    missing = {
        name: None
        for name, p in wanted.items()
        if name not in (*parts, "self") and p.default is inspect.Parameter.empty
    }
    flags = {name: False for name in ("requires_safety_checker", "add_watermarker") if name in wanted}
    t.pipe = made(**parts, **missing, **flags)
    taken = inspect.signature(made.__call__).parameters
    t.args = {name: value for name, value in t.args.items() if name in taken and name not in drop} | more
    return t


def _unguided(tiny: Any) -> Any:
    return lambda scheduler, guided: tiny(scheduler)


def _from_picture(cls: str, parent: Any, side: int, mask: bool = False, **more: Any) -> Any:
    picture = {"image": _picture(side=side), **({"mask_image": (_picture(1, side) > 0.5).float()} if mask else {})}
    return lambda scheduler, guided: derived(cls, parent, scheduler, guided, **picture, **more)


def if_pixels(scheduler: Any, guided: bool) -> SimpleNamespace:
    """In pixels, and without a `latents` argument."""
    torch.manual_seed(0)
    net = _unet(in_channels=3, out_channels=6)
    pipe = IFPipeline(None, None, net, scheduler, None, None, None, requires_safety_checker=False)
    args = {
        **_pair("prompt_embeds", lambda: _embeds(16), guided),
        "guidance_scale": 5.0 if guided else 1.0,
        "height": 8,
        "width": 8,
    }
    return _given(pipe, net, args, 1 + guided)


def lcm(scheduler: Any, guided: bool) -> SimpleNamespace:
    """Guidance is told to its network, and its scheduler draws noise at every step."""
    t = sd(scheduler, False)
    t.net = _unet(time_cond_proj_dim=8)
    parts = {**t.pipe.components, "unet": t.net}
    t.pipe = LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    t.args = {name: value for name, value in t.args.items() if not name.startswith("negative")}
    return t


def ldm(scheduler: Any, guided: bool) -> SimpleNamespace:
    """Whatever it is asked for, it decodes."""
    torch.manual_seed(0)
    config = LDMBertConfig(
        vocab_size=64, encoder_layers=1, encoder_ffn_dim=16, encoder_attention_heads=2, head_dim=8, d_model=16
    )
    net = _unet(in_channels=4, out_channels=4)
    pipe = LDMTextToImagePipeline(_vae(), LDMBertModel(config).eval(), None, net, scheduler)
    pipe.tokenizer = letters(77)
    return _given(pipe, net, {"guidance_scale": 5.0 if guided else 1.0, "height": 64, "width": 64}, 1 + guided)


def _flow(**more):
    return FlowMatchEulerDiscreteScheduler(**more)


def _if():
    return DDPMScheduler(variance_type="learned_range")


def _ddim(**more):
    return DDIMScheduler(clip_sample=False, steps_offset=1, **more)


_FLOW_SOLVER = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
# The scheduler that each family is published with, and whether it has classifier-free guidance.
WINDOWED = {
    "sd15": (sd, _ddim, (True, False)),
    "sd21": (sd, lambda: _ddim(prediction_type="v_prediction"), (True, False)),
    "sdxl": (sdxl, EulerDiscreteScheduler, (True, False)),
    # Variance exploding: its prior has a standard deviation of 80.
    "sd_ve": (sd, lambda: EulerDiscreteScheduler(use_karras_sigmas=True, sigma_min=0.002, sigma_max=80.0), (True,)),
    "sd3": (sd3, lambda: _flow(shift=3.0), (True, False)),
    "sd35": (sd3, lambda: _flow(use_dynamic_shifting=True), (True,)),
    "flux_dev": (flux_dev, lambda: _flow(use_dynamic_shifting=True), (True, False)),
    "flux_schnell": (flux_schnell, _flow, (False,)),
    "flux2": (flux2, lambda: _flow(use_dynamic_shifting=True), (False,)),
    "flux2_klein": (flux2_klein, lambda: _flow(use_dynamic_shifting=True), (True, False)),
    "sana": (sana, lambda: DPMSolverMultistepScheduler(flow_shift=3.0, **_FLOW_SOLVER), (True, False)),
    "qwen": (qwen, lambda: _flow(use_dynamic_shifting=True, shift_terminal=0.02), (True, False)),
    "lumina2": (lumina2, _flow, (True, False)),
    "chroma": (chroma, _flow, (True, False)),
    "aura": (aura, lambda: _flow(shift=1.73), (True, False)),
    "cogview4": (cogview4, lambda: _flow(use_dynamic_shifting=True, base_shift=0.25), (True, False)),
    "wan": (wan, lambda: UniPCMultistepScheduler(flow_shift=3.0, **_FLOW_SOLVER), (True, False)),
    "wan22": (wan22, lambda: UniPCMultistepScheduler(flow_shift=3.0, **_FLOW_SOLVER), (True,)),
    "ltx": (ltx, lambda: _flow(use_dynamic_shifting=True), (True, False)),
    "sd_image": (sd_image, _ddim, (True, False)),
    "sd_instructed": (sd_instructed, _ddim, (True, False)),
    "sdxl_image": (sdxl_image, EulerDiscreteScheduler, (True,)),
    "flux_image": (flux_image, lambda: _flow(use_dynamic_shifting=True), (True, False)),
    "sd3_image": (_from_picture("StableDiffusion3Img2ImgPipeline", sd3, 8, strength=0.75), _flow, (True,)),
    "qwen_image": (_from_picture("QwenImageImg2ImgPipeline", qwen, 8, strength=0.75), _flow, (True,)),
    "chroma_image": (_from_picture("ChromaImg2ImgPipeline", chroma, 16, strength=0.75), _flow, (True,)),
    "flux_kontext": (
        _from_picture("FluxKontextPipeline", flux_dev, 16, _auto_resize=False, max_area=256),
        _flow,
        (False,),
    ),
    "sd_inpaint": (sd_inpaint, _ddim, (True,)),
    "bria": (unusual.bria, _flow, (True, False)),
    "hidream": (unusual.hidream, _flow, (True, False)),
    "prx": (unusual.prx, _flow, (True, False)),
    "prx_pixels": (signed.prx_pixels, _flow, (True,)),
    "kandinsky3": (signed.kandinsky3, _ddim, (True,)),
}
# Those that cannot be windowed.
WHOLE = {
    "if": (if_pixels, _if, "handed over"),
    "sd_blended": (sd_blended, _ddim, "after the solver's step"),
    "flux_inpaint": (flux_inpaint, _flow, "after the solver's step"),
    "sd3_inpaint": (
        _from_picture("StableDiffusion3InpaintPipeline", sd3, 8, mask=True, strength=0.75),
        _flow,
        "after the solver",
    ),
    "qwen_inpaint": (
        _from_picture("QwenImageInpaintPipeline", qwen, 8, mask=True, strength=0.75),
        _flow,
        "after the solver",
    ),
    "sdxl_inpaint": (
        _from_picture("StableDiffusionXLInpaintPipeline", sdxl, 8, mask=True, strength=0.75),
        _ddim,
        "after the solver",
    ),
}
# More classes of the same families, and those tested elsewhere.
OTHERS = {
    "pixart_sigma": (lambda scheduler, _: tiny_pixart(scheduler), _ddim),
    "pixart_alpha": (lambda scheduler, _: derived("PixArtAlphaPipeline", _unguided(tiny_pixart), scheduler), _ddim),
    "zimage": (lambda scheduler, _: tiny_zimage(scheduler), _flow),
    "lcm": (lcm, LCMScheduler),
    "ldm": (ldm, _ddim),
    "sd_pag": (lambda scheduler, _: derived("StableDiffusionPAGPipeline", sd, scheduler), _ddim),
    "sdxl_pag": (lambda scheduler, _: derived("StableDiffusionXLPAGPipeline", sdxl, scheduler), _ddim),
    "sana_pag": (lambda scheduler, _: derived("SanaPAGPipeline", sana, scheduler), _flow),
    "kandinsky": (signed.kandinsky("KandinskyPipeline"), _ddim),
    "kandinsky_image": (signed.kandinsky("KandinskyImg2ImgPipeline", image=_picture(side=64), strength=0.75), _ddim),
    "kandinsky_inpaint": (
        signed.kandinsky("KandinskyInpaintPipeline", 9, image=_picture(side=64), mask_image=torch.ones(1, 1, 64, 64)),
        _ddim,
    ),
    "if_image": (signed.deepfloyd("IFImg2ImgPipeline"), _if),
    "if_inpaint": (signed.deepfloyd("IFInpaintingPipeline", mask_image=torch.ones(1, 1, 8, 8)), _if),
    "if_larger": (signed.deepfloyd("IFSuperResolutionPipeline", height=8, width=8), _if),
    "if_image_larger": (signed.deepfloyd("IFImg2ImgSuperResolutionPipeline", original_image=_picture()), _if),
    "if_inpaint_larger": (
        signed.deepfloyd(
            "IFInpaintingSuperResolutionPipeline", original_image=_picture(), mask_image=torch.ones(1, 1, 8, 8)
        ),
        _if,
    ),
}
