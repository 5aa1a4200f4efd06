"""The training pictures: every word of a caption is made true, and the judge tells drawings apart."""

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tools.builtin_model.analysis import colour_name, ground_colour
from tools.builtin_model.art import FAVOURITES, plain_name
from tools.builtin_model.features import dominant_tint, features, make_gallery, read_gallery
from tools.builtin_model.pictures import GROUNDS, TINTS, caption, held_out, plural, turned_hue


def test_pictures_show_the_ground_and_the_colour_that_they_name(studio):
    rng = random.Random(1)
    tinted = 0
    for _ in range(60):
        picture = studio.choose(rng)
        image = studio.paint(picture, 128, rng)
        assert colour_name(ground_colour(image), GROUNDS) == picture.ground
        item = picture.placed[0]
        if item.tint and len(picture.placed) == 1 and item.reach > 0.3:
            assert dominant_tint(image) == item.tint
            assert item.tint in picture.subject
            tinted += 1
    assert tinted > 3


def test_held_out_combinations_are_never_shown_alone(studio):
    rng = random.Random(2)
    alone = [picture for picture in (studio.choose(rng) for _ in range(400)) if len(picture.placed) == 1]
    assert len(alone) > 200
    assert not any(held_out(picture.placed[0].sprite.subject, picture.ground) for picture in alone)
    share = sum(held_out(subject, ground) for subject in FAVOURITES for ground in GROUNDS)
    assert 0.1 < share / (len(FAVOURITES) * len(GROUNDS)) < 0.2


def test_captions_name_subject_style_and_ground(studio):
    rng = random.Random(3)
    picture = studio.choose(rng)
    said = [caption(picture, rng) for _ in range(200)]
    assert all(words.startswith(picture.subject) for words in said)
    assert 0.6 < sum(picture.ground in words for words in said) / 200 < 0.99
    assert 0.6 < sum(f"{picture.style} style" in words for words in said) / 200 < 0.99


def test_the_gallery_knows_each_drawing_whatever_its_ground_size_and_place(studio, tmp_path):
    make_gallery(studio, 128).write(tmp_path / "drawings.npz")
    gallery = read_gallery(tmp_path / "drawings.npz")
    rng = random.Random(4)
    right = 0
    for index in range(30):
        sprite = studio.sprites[index % len(studio.sprites)]
        picture = studio.alone(sprite, rng.choice(("white", "black", "green", "teal")))
        seen = features(studio.paint(picture, 128, rng))
        assert seen is not None
        right += gallery.nearest(seen, 5)[0] == sprite.subject
    assert right >= 28


def test_nothing_on_the_ground_is_nothing():
    assert features(Image.new("RGB", (64, 64), (10, 200, 30))) is None
    assert dominant_tint(Image.new("RGB", (64, 64), (10, 200, 30))) == ""


@pytest.mark.parametrize("tint", TINTS)
def test_a_turned_hue_leaves_outline_and_greys_alone(tint):
    before = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    pen = ImageDraw.Draw(before)
    pen.rectangle((12, 20, 52, 60), fill=(200, 30, 30, 255))
    pen.rectangle((14, 22, 20, 30), fill=(128, 128, 128, 255))
    after = turned_hue(before, tint)
    assert np.array_equal(np.asarray(after)[..., 3], np.asarray(before)[..., 3])
    assert after.getpixel((16, 25)) == (128, 128, 128, 255)
    assert after.getpixel((45, 30)) != before.getpixel((45, 30)) or tint == "red"


@pytest.mark.parametrize(
    ("name", "plain"), [("tiger face", "tiger"), ("red apple", "apple"), ("cat with wry smile", "cat with wry smile")]
)
def test_names_are_what_people_say(name, plain):
    assert plain_name(name) == plain


@pytest.mark.parametrize(("one", "many"), [("fox", "foxes"), ("butterfly", "butterflies"), ("monkey", "monkeys")])
def test_several_of_a_thing(one, many):
    assert plural(one) == many
