"""The page, and nothing but the page: Gradio lives here. `webui.ui.page` has `build_page` and `page_style`.

Requests go to `webui.jobs`; nothing here imports the engine, the checkpoints or torch.
"""
