"""What every layer speaks: requests, events, errors, ports, infotext, prompts. No torch, gradio or fastapi."""
