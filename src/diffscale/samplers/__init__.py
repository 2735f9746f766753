"""Models that can be searched: anything of diffusers, any denoising network, and an analytic toy."""
