"""LoRA files: found by name (`scan`, no torch), read (`read`), their keys (`names`) and their mathematics (`kinds`)."""
