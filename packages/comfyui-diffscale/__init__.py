"""Nodes of ComfyUI (V3) that search over noises with diffscale; experimental until tried in ComfyUI itself."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
