"""Programs that make what the repository ships; nothing in `webui` imports them."""
