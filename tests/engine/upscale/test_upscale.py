"""The upscale recipe: sizes, two upscalers, transparency, faces, and what the picture says."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from PIL.PngImagePlugin import PngInfo

from webui.core.errors import OutOfMemory, UnreadableImage
from webui.core.events import Finished, ImageReady, Notice, Started, Step
from webui.core.geometry import Size
from webui.core.infotext import parse_infotext
from webui.core.ports import Control
from webui.core.requests import FaceRestoration, Upscale
from webui.engine.upscale import TiledNetwork, built_in, recipe, upscale


@pytest.fixture
def run(network, smooth_picture, png):
    """Runs a request for a picture of 90 x 70, by the network called "net" unless asked otherwise."""

    def run(*, restore=None, control=None, network=network, **values):
        request = Upscale(**({"image": png(smooth_picture(90, 70)), "upscaler": "net", "scale": 2.0} | values))

        def find(name):
            return built_in(name) or TiledNetwork(network, tile=request.tile, overlap=request.overlap)

        return list(upscale(request, find, control=control or Control(), restore=restore))

    return run


def image_of(events):
    return next(event.image for event in events if isinstance(event, ImageReady))


def text_of(events):
    return next(event.infotext for event in events if isinstance(event, ImageReady))


def levels(image):
    return np.asarray(image, int)


def test_the_events_of_a_tiled_upscale(run):
    events = run(tile=40, overlap=8)
    steps = [event for event in events if isinstance(event, Step)]
    assert events[0] == Started(total_images=1, total_steps=len(steps))
    assert [step.index for step in steps] == list(range(1, 4 * 3 + 1))
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize("scale", [1.0, 1.5, 2.0, 5.0])
def test_any_scale_is_reached(run, scale):
    size = (round(90 * scale), round(70 * scale))
    assert image_of(run(scale=scale)).size == size
    assert image_of(run(scale=scale, upscaler="Lanczos")).size == size


@pytest.mark.parametrize(
    ("asked", "crop", "enlarged", "made"),
    [
        ((200, 200), True, (257, 200), (200, 200)),
        ((200, 200), False, (200, 156), (200, 156)),
        ((181, 61), True, (181, 141), (181, 61)),
        ((30, 30), True, (39, 30), (30, 30)),
    ],
)
def test_a_target_size_is_filled_or_fitted_into(run, asked, crop, enlarged, made):
    request = Upscale(image=b"", width=asked[0], height=asked[1], crop=crop)
    frame = recipe.frame_of(request, Size(90, 70))
    assert (frame.size.width, frame.size.height) == enlarged
    image = image_of(run(width=asked[0], height=asked[1], crop=crop, upscaler="Nearest"))
    assert image.size == made


def test_cropping_keeps_the_middle(run, smooth_picture):
    image = image_of(run(width=180, height=80, upscaler="Nearest"))
    whole = smooth_picture(90, 70).resize((180, 140), Image.Resampling.NEAREST)
    assert image.tobytes() == whole.crop((0, 30, 180, 110)).tobytes()


@pytest.mark.parametrize("visibility", [0.0, 0.25, 1.0])
def test_a_second_upscaler_is_blended_in(run, visibility):
    one, other = levels(image_of(run(upscaler="Lanczos"))), levels(image_of(run(upscaler="Nearest")))
    events = run(upscaler="Lanczos", upscaler_2="Nearest", upscaler_2_visibility=visibility)
    wanted = one * (1 - visibility) + other * visibility
    assert np.abs(levels(image_of(events)) - wanted).max() <= 1
    assert sum(isinstance(event, Step) for event in events) == (2 if visibility else 1)


@pytest.fixture
def cut_out(smooth_picture):
    """A round picture on nothing, with black below what is transparent."""
    picture = smooth_picture(90, 70).convert("RGBA")
    disc = Image.radial_gradient("L").resize((90, 70)).point(lambda level: 255 if level < 110 else 0)
    picture.putalpha(disc)
    return Image.composite(picture, Image.new("RGBA", (90, 70), (0, 0, 0, 0)), disc)


@pytest.mark.parametrize("upscaler", ["net", "Lanczos", "Nearest"])
def test_transparency_is_kept(run, png, cut_out, upscaler):
    made = image_of(run(image=png(cut_out), upscaler=upscaler))
    assert (made.mode, made.size) == ("RGBA", (180, 140))
    given = levels(cut_out.getchannel("A").resize((180, 140), Image.Resampling.NEAREST))
    alpha = levels(made.getchannel("A"))
    # What is far from an edge keeps its value exactly, though a network may make 254 of 255.
    inside = np.asarray(cut_out.getchannel("A").filter(ImageFilter.MinFilter(3)).resize((180, 140), 0)) == 255
    outside = np.asarray(cut_out.getchannel("A").filter(ImageFilter.MaxFilter(3)).resize((180, 140), 0)) == 0
    assert inside.any()
    assert outside.any()
    assert (alpha[inside] == 255).all()
    assert (alpha[outside] == 0).all()
    if upscaler == "Nearest":
        assert (alpha == given).all()


def test_black_below_transparent_pixels_does_not_reach_the_edges(run, png, cut_out, smooth_picture):
    whole = levels(image_of(run(image=png(smooth_picture(90, 70)), upscaler="Lanczos")))
    made = image_of(run(image=png(cut_out), upscaler="Lanczos"))
    seen = levels(made.getchannel("A")) > 128
    assert np.abs(levels(made.convert("RGB"))[seen] - whole[seen]).max() < 40
    dark = levels(cut_out.convert("RGB").resize((180, 140), Image.Resampling.LANCZOS))
    assert np.abs(dark[seen] - whole[seen]).max() > 60


def test_an_opaque_picture_with_alpha_keeps_its_colours(run, png, smooth_picture):
    with_alpha, without = smooth_picture(90, 70).convert("RGBA"), smooth_picture(90, 70)
    made = image_of(run(image=png(with_alpha)))
    assert levels(made.getchannel("A")).min() == 255
    assert made.convert("RGB").tobytes() == image_of(run(image=png(without))).tobytes()


class Painter:
    """Takes every picture for a face, and paints it red."""

    def __init__(self, kind, faces=1):
        self.kind = kind
        self.faces = faces
        self.seen = []

    def __call__(self, image):
        self.seen.append(image.size)
        return Image.new("RGB", image.size, "red"), self.faces


@pytest.mark.parametrize("faces", [0, 2])
def test_faces_are_restored_last_and_none_is_told(run, faces):
    events = run(faces=FaceRestoration(model="face"), restore=(restorer := Painter("GFPGAN", faces)))
    assert restorer.seen == [(180, 140)]
    assert image_of(events).getpixel((3, 3)) == (255, 0, 0)
    assert sum(isinstance(event, Step) for event in events) == events[0].total_steps
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert notices == ([] if faces else ["No face was found in the picture, so none was restored."])


def test_a_picture_keeps_what_it_said(run, png, smooth_picture):
    info = PngInfo()
    info.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler, Seed: 1")
    text = text_of(run(image=png(smooth_picture(90, 70), pnginfo=info), upscaler="Lanczos"))
    assert text == (
        "a cat\nSteps: 20, Sampler: Euler, Seed: 1, Postprocess upscale by: 2, Postprocess upscaler: Lanczos"
    )


@pytest.mark.parametrize(
    ("values", "pairs"),
    [
        ({"scale": 1.5}, {"Postprocess upscale by": "1.5"}),
        (
            {"width": 60, "height": 50},
            {"Postprocess upscale to": "60x50", "Postprocess crop to": "60x50"},
        ),
        ({"width": 60, "height": 50, "crop": False}, {"Postprocess upscale to": "60x50"}),
        (
            {"upscaler_2": "Nearest"},
            {"Postprocess upscale by": "2", "Postprocess upscaler 2": "Nearest"},
        ),
    ],
)
def test_what_was_done_is_said_in_a1111s_pairs(run, values, pairs):
    said = parse_infotext(text_of(run(upscaler="Lanczos", **values)))
    assert said.prompt == ""
    assert {key: text for key, text in said.pairs.items() if key not in ("Postprocess upscaler", "Version")} == pairs


@pytest.mark.parametrize(
    ("kind", "pairs"),
    [
        ("GFPGAN", "GFPGAN visibility: 0.5"),
        ("CodeFormer", "CodeFormer visibility: 0.5, CodeFormer weight: 0.25"),
    ],
)
def test_restored_faces_are_said(run, kind, pairs):
    faces = FaceRestoration(model="face", visibility=0.5, weight=0.25)
    assert f"Postprocess upscaler: Lanczos, {pairs}, Version" in text_of(
        run(upscaler="Lanczos", faces=faces, restore=Painter(kind))
    )


def test_skipping_leaves_no_picture(network, smooth_picture, png):
    control = Control()
    request = Upscale(image=png(smooth_picture(90, 70)), tile=40, overlap=8)
    kinds = []
    for event in upscale(request, lambda _: TiledNetwork(network, tile=40, overlap=8), control=control):
        kinds.append(type(event))
        control.skip()
    assert kinds == [Started, Finished]


def test_an_unreadable_picture_is_named(run):
    with pytest.raises(UnreadableImage, match="picture to upscale"):
        run(image=b"nothing")


def test_a_result_that_memory_cannot_hold_is_refused_before_work_begins(run, monkeypatch):
    monkeypatch.setattr(recipe, "free_ram_bytes", lambda: 1000)
    with pytest.raises(OutOfMemory, match=r"A picture of 180x140 needs .* choose a smaller scale"):
        run()


def test_notices_come_through(run, scripted):
    def little_memory(pixels, model):
        if max(pixels.shape[2:]) > 60:
            raise MemoryError
        return model(pixels)

    events = run(network=scripted(little_memory), tile=0)
    assert [event.text for event in events if isinstance(event, Notice)]
    assert image_of(events).size == (180, 140)
