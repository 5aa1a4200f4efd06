"""Makes the weights of the face detector from the package that carries them."""
