"""Where the upscalers in models/ESRGAN come from, and the proof that they do what their originals do."""
