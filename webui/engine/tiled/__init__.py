"""Large pictures in a small memory: the VAE run in strips, the UNet run in tiles."""
