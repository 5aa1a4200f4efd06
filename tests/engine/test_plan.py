"""Plans for graphics cards of many sizes, as numbers; no card is needed."""

import pytest

from webui.engine.plan import Bound, Need, Place, all_kept_bytes, in_words, needs_tiles, plan, visit, working_bytes

GIB = 2**30
KEPT, VISITING, STREAMED = Place.KEPT, Place.VISITING, Place.STREAMED


def needs(text, unet, vae, pixels=0, batch_size=1):
    """A model's needs, its weights in GiB."""
    sizes = {"text_encoder_1": text, "unet": unet, "vae": vae}
    return {
        name: Need(
            weight_bytes=int(size * GIB),
            working_bytes=working_bytes(name, pixels=pixels, batch_size=batch_size) if pixels else 0,
        )
        for name, size in sizes.items()
    }


@pytest.mark.parametrize(
    ("free_gib", "places"),
    [
        (10, (KEPT, KEPT, KEPT)),
        (7, (KEPT, KEPT, KEPT)),  # exactly
        (6.9, (VISITING, KEPT, VISITING)),  # either may come to the UNet, not both
        (6, (VISITING, KEPT, VISITING)),
        (5.5, (KEPT, VISITING, VISITING)),  # the VAE cannot come to the UNet: so the UNet comes to the text encoder
        (4, (VISITING, VISITING, VISITING)),
        (3.9, (KEPT, STREAMED, KEPT)),  # the UNet cannot come at all: the others may stay
        (1.2, (KEPT, STREAMED, STREAMED)),
        (0.1, (STREAMED, STREAMED, STREAMED)),
    ],
)
def test_what_fits_stays_and_what_cannot_visits_or_streams(free_gib, places):
    assert tuple(plan(needs(text=1, unet=4, vae=2), free_bytes=int(free_gib * GIB)).values()) == places


def test_work_needs_room_too():
    """The same weights on the same card, at two sizes of picture."""
    small = needs(0.25, 1.6, 0.16, pixels=512 * 512)
    large = needs(0.25, 1.6, 0.16, pixels=2048 * 2048, batch_size=1)
    assert set(plan(small, free_bytes=4 * GIB).values()) == {KEPT}
    assert plan(large, free_bytes=4 * GIB)["unet"] is not KEPT


def test_every_plan_holds_what_it_promises():
    """At no moment of any plan is there more on the card than it has, wherever some plan can keep that."""
    wanted = needs(0.5, 2.5, 0.3, pixels=768 * 768, batch_size=2)
    for free in range(0, 12 * GIB, GIB // 5):
        places = plan(wanted, free_bytes=free)
        base = sum(wanted[name].weight_bytes for name, place in places.items() if place is KEPT)
        for name, need in wanted.items():
            coming = need.weight_bytes if places[name] is VISITING else 0
            if base or coming:
                assert base + coming + (need.working_bytes if places[name] is not STREAMED else 0) <= free


def test_all_is_kept_exactly_from_the_size_that_is_asked_for():
    wanted = needs(0.5, 2.5, 0.3, pixels=768 * 768)
    enough = all_kept_bytes(wanted)
    assert set(plan(wanted, free_bytes=enough).values()) == {KEPT}
    assert set(plan(wanted, free_bytes=enough - 1).values()) != {KEPT}


def test_a_batch_needs_more_of_the_unet_alone():
    single, double = (working_bytes("unet", pixels=512 * 512, batch_size=size) for size in (1, 2))
    assert double > single
    assert working_bytes("vae", pixels=512 * 512, batch_size=1) == working_bytes("vae", pixels=512 * 512, batch_size=2)


def test_a_visitor_needs_room_for_itself_and_its_work():
    need = Need(weight_bytes=100, working_bytes=10)
    assert visit(need, free_bytes=110) is VISITING
    assert visit(need, free_bytes=109) is STREAMED


@pytest.mark.parametrize(
    ("bound", "free_gib", "places"),
    [
        (Bound.AUTO, 100, (KEPT, KEPT, KEPT)),
        (Bound.MEDVRAM, 100, (VISITING, VISITING, VISITING)),
        (Bound.MEDVRAM, 3.9, (VISITING, STREAMED, VISITING)),
        (Bound.LOWVRAM, 100, (VISITING, STREAMED, VISITING)),
        (Bound.LOWVRAM, 1.5, (VISITING, STREAMED, STREAMED)),
    ],
)
def test_a_bound_lets_less_stay_than_fits(bound, free_gib, places):
    made = plan(needs(text=1, unet=4, vae=2), free_bytes=int(free_gib * GIB), bound=bound)
    assert tuple(made.values()) == places


def test_sdxl_at_its_size_runs_on_a_card_of_four_gigabytes():
    """What is on the card at one moment, streamed weights aside, of which there are two groups of at most 96 MiB."""
    wanted, free = needs(1.6, 4.8, 0.16, pixels=1024 * 1024), 4 * GIB - 2 * 96 * 2**20
    assert needs_tiles(wanted["vae"], free_bytes=free)
    wanted["vae"] = needs(1.6, 4.8, 0.16, pixels=512 * 512)["vae"]  # a tile
    places = plan(wanted, free_bytes=free)
    assert places["unet"] is STREAMED
    kept = sum(wanted[name].weight_bytes for name, place in places.items() if place is KEPT)
    assert kept + max(need.working_bytes for need in wanted.values()) <= 4 * GIB


def test_a_plan_has_words():
    sizes = {"text_encoder_1": 2**30 // 4, "text_encoder_2": 9 * 2**30, "unet": 13 * 2**27, "vae": 5 * 2**20}
    assert in_words(dict.fromkeys(sizes, KEPT), sizes) == "everything stays on the device"
    words = in_words({"text_encoder_1": VISITING, "text_encoder_2": STREAMED, "unet": STREAMED, "vae": VISITING}, sizes)
    assert words == (
        "text encoder 1 brought for its phase, 0.2 GiB a picture; text encoder 2 streamed layer by layer, 9.0 GiB a"
        " picture; unet streamed layer by layer, 1.6 GiB a step; vae brought for its phase, 5 MiB a picture"
    )
    assert in_words({"unet": VISITING, "vae": KEPT}, sizes) == "unet brought for its phase, 1.6 GiB a picture"
