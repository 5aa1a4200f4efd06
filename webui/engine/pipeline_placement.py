"""Where the components of a diffusers pipeline are while it runs: each comes to the device when the pipeline calls it.

Owns how a call is noticed, and who leaves for it. How a component comes there is `placement`'s to say, and in which way
the plan's. diffusers' own offloading brings components whole, which fails where one alone is larger than the card; and
by leaves it brings all of them so, also those that would fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from webui.engine.placement import placed
from webui.engine.plan import Place

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

# What pipelines call of components beside `forward`.
_ENTRIES = ("encode", "decode", "generate")
# Where a pipeline looks for the device to run on, of the components that wait elsewhere (`_execution_device`).
_HOOK = "_hf_hook"


@contextmanager
def pipeline_at_work(pipeline: DiffusionPipeline, places: Mapping[str, Place], device: torch.device) -> Iterator[None]:
    """Within the block the components of `pipeline` work on `device`, where they come as `places` (by name) says.

    One that is not kept there comes when it is called, and leaves when another one is. Without places, as where there
    is one memory, nothing moves.
    """
    if not places:
        yield
        return
    visits = _Visits(device)
    with ExitStack() as stack:
        stack.callback(visits.leave)
        for name, module in pipeline.components.items():
            if isinstance(module, nn.Module):
                setattr(module, _HOOK, SimpleNamespace(execution_device=device))
                stack.callback(delattr, module, _HOOK)
            if name in places:
                visits.watch(module, places[name], stack)
        yield


class _Visits:
    """Who is on `device` beside those that are kept there: the component that was called last. For one thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._visitor: nn.Module | None = None  # or, of those that are kept, the one at work
        self._stay = ExitStack()

    def watch(self, module: nn.Module, place: Place, stack: ExitStack) -> None:
        """Has `module` on the device whenever it is called, until `stack` is closed."""

        def arrive(
            _module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            self._arrive(module, place)
            return self._moved(inputs, named)

        def entered(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(*inputs: Any, **named: Any) -> Any:
                self._arrive(module, place)
                inputs, named = self._moved(inputs, named)
                return method(*inputs, **named)

            return call

        stack.callback(module.register_forward_pre_hook(arrive, with_kwargs=True).remove)
        for entry in _ENTRIES:
            method = getattr(module, entry, None)
            if method is not None:
                stack.callback(delattr, module, entry)
                setattr(module, entry, entered(method))

    def leave(self) -> None:
        """Has the device hold only what is kept there."""
        self._stay.close()
        self._visitor = None

    def _arrive(self, module: nn.Module, place: Place) -> None:
        if module is self._visitor:
            return
        self.leave()  # also for one that is kept, whose work needs the room
        if place is not Place.KEPT:
            self._stay.enter_context(placed(module, self._device, place=place))
        self._visitor = module

    def _moved(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The tensors among the inputs on the device: some pipelines bring them to where the component waited."""
        return tuple(map(self._there, inputs)), {name: self._there(value) for name, value in named.items()}

    def _there(self, value: Any) -> Any:
        return value.to(self._device) if isinstance(value, Tensor) else value


def set_tiled(modules: Iterable[nn.Module], *, tile: int | None) -> None:
    """Has the VAE among a pipeline's `modules` work in tiles of `tile` pixels a side, or on whole pictures (None)."""
    for module in modules:
        vae: Any = module
        if not hasattr(vae, "use_tiling"):
            continue
        if tile is None:
            vae.disable_tiling()
            continue
        vae.enable_tiling()
        if hasattr(vae, "tile_latent_min_size"):  # by itself as large as the pictures that it was trained on
            factor = vae.tile_sample_min_size // vae.tile_latent_min_size
            vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // factor
