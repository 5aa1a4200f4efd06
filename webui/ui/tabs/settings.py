"""settings: the few that Atelier itself has, and those of its extensions."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.components import Component

from webui.core.catalogue import ATTENTION_KERNELS
from webui.extensions.access import require_local
from webui.extensions.hookspecs import ExtensionSetting
from webui.ui.kinds import number
from webui.ui.services import Services
from webui.ui.toasts import guarded, inform
from webui.ui.visitors import client_host

_TITLES = {
    "sdpa": "PyTorch SDPA",
    "sage": "sage (faster, rounds more)",
    "chunked": "chunked, for little memory",
}
_ATTENTION = (
    ("Automatic: the fastest that works here", "auto"),
    *((_TITLES.get(name, name), name) for name in ATTENTION_KERNELS),
)
_MEMORY_USE = (
    ("What fits", "auto"),
    ("Only what is at work (medvram)", "medvram"),
    ("Only some layers of what is at work (lowvram)", "lowvram"),
)
_PRECISION = (
    ("Automatic: the fastest that this machine is made for", "auto"),
    ("float32, the exact one", "float32"),
    ("bfloat16", "bfloat16"),
    ("float16, for graphics cards", "float16"),
)
_WEIGHTS = (
    ("As it computes; GGUF as in its file", "full"),
    ("fp8, half the size", "fp8"),
    ("int8, half the size, more exact", "int8"),
    ("nf4, a quarter", "nf4"),
)
_OWN_VAE = "The checkpoint's own"


def build_settings(page: gr.Blocks, services: Services) -> None:
    """Fills the tab."""
    store = services.settings
    gr.HTML("<h2>Generating</h2>")
    attention = gr.Dropdown(list(_ATTENTION), label="Attention", elem_id="setting_attention")
    previews = gr.Checkbox(label="Show the picture while it forms", elem_id="setting_previews")
    rate = gr.Number(label="Previews per second, at most", elem_id="setting_previews_per_second", step=0.5)
    vae = gr.Dropdown(
        label="VAE",
        info="For checkpoints without a VAE beside them, where a request leaves it open.",
        elem_id="setting_vae",
    )
    precision = gr.Dropdown(
        list(_PRECISION),
        label="Precision",
        info="What networks compute in. Half the bits take half the memory; a network that overflows gets more.",
        elem_id="setting_precision",
    )
    compiling = gr.Checkbox(
        label="Compile",
        info="The first picture of each size takes some minutes, the next ones are faster. Meant for graphics cards.",
        elem_id="setting_compile",
    )
    fast = gr.Checkbox(
        label="Fast arithmetic",
        info="Graphics cards round float32 to TF32 and time their convolutions; the last bits of pictures may vary.",
        elem_id="setting_fast_arithmetic",
    )
    gr.HTML("<h2>Memory</h2>")
    main_memory = gr.Number(
        label="Main memory for loaded models, in GiB",
        info="0 takes half of what is free. What was used least recently leaves first.",
        elem_id="setting_model_memory",
        step=1,
    )
    video_memory = gr.Number(
        label="Video memory for models and their work, in GiB",
        info="0 takes what is free. What does not fit waits in main memory.",
        elem_id="setting_video_memory",
        step=1,
    )
    memory_use = gr.Radio(list(_MEMORY_USE), label="What stays in video memory", elem_id="setting_video_memory_use")
    weights = gr.Radio(
        list(_WEIGHTS),
        label="Weights of the network",
        info="Fewer bits take less memory and, on most machines, more time; pictures change a little.",
        elem_id="setting_weights",
    )
    save = gr.Button("Save settings", variant="primary", elem_id="settings_save")
    fields: list[Component] = [
        *(attention, previews, rate, vae, precision, compiling, fast),
        *(main_memory, video_memory, memory_use, weights),
    ]

    def show() -> list[Any]:
        now = store.current
        known = now.attention in [value for _, value in _ATTENTION]
        vaes = [
            (_OWN_VAE, ""),
            *((name, name) for name in dict.fromkeys([*services.catalogue.vaes(), now.vae]) if name),
        ]
        return [
            now.attention if known else gr.skip(),
            now.previews,
            now.previews_per_second,
            gr.Dropdown(choices=vaes, value=now.vae),
            now.precision,
            now.compile,
            now.fast_arithmetic,
            now.model_memory_gib,
            now.video_memory_gib,
            now.video_memory_use,
            now.weights,
        ]

    def keep(
        attention: str,
        previews: bool,
        rate: object,
        vae: str,
        precision: str,
        compiling: bool,
        fast: bool,
        main_memory: object,
        video_memory: object,
        memory_use: str,
        weights: str,
    ) -> None:
        store.update(
            attention=attention,
            previews=previews,
            previews_per_second=number("Previews per second", rate),
            vae=vae,
            precision=precision,
            compile=compiling,
            fast_arithmetic=fast,
            model_memory_gib=number("Main memory", main_memory),
            video_memory_gib=number("Video memory", video_memory),
            video_memory_use=memory_use,
            weights=weights,
        )
        inform("The settings are saved; the next picture uses them.")

    save.click(guarded(keep), inputs=fields, show_progress="hidden")
    page.load(guarded(show), outputs=fields, show_progress="hidden", queue=False)

    @gr.render(triggers=[page.load], show_progress="hidden")
    def extension_settings() -> None:
        for name, settings in services.extensions.settings().items():
            _extension_form(services, name, settings)


def _extension_form(services: Services, name: str, settings: tuple[ExtensionSetting, ...]) -> None:
    gr.Markdown(f"## {name}")
    made = [_field(name, setting, services.extensions.value(name, setting.key)) for setting in settings]
    save = gr.Button(f"Save settings of {name}", elem_id=f"settings_save_{name}")

    def keep(request: gr.Request, *values: object) -> None:
        require_local(client_host(request), dict(request.headers))
        services.extensions.save(name, dict(zip([setting.key for setting in settings], values, strict=True)))
        inform(f"The settings of {name} are saved.")

    save.click(guarded(keep), inputs=made, show_progress="hidden")


def _field(name: str, setting: ExtensionSetting, value: Any) -> Component:
    options: dict[str, Any] = {
        "label": setting.label,
        "info": setting.help or None,
        "interactive": True,
        "elem_id": f"setting_{name}_{setting.key}",
    }
    if setting.kind == "bool":
        return gr.Checkbox(value, **options)
    if setting.kind == "choice":
        return gr.Dropdown(list(setting.choices), value=value, **options)
    if setting.kind == "str":
        return gr.Textbox(value, **options)
    return gr.Number(value, precision=0 if setting.kind == "int" else None, **options)
