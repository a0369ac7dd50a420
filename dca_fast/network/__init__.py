"""The integer network: its weights, its program at a quality, and the walk over the latents."""
