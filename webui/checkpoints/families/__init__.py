"""Model families, one descriptor each; `webui.checkpoints.detect` holds their order. No torch here."""
