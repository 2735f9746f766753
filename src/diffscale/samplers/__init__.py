"""Models that can be searched: anything of diffusers, and an analytic toy."""
