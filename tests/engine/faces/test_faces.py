"""Faces found, brought upright, restored and pasted back, by a restorer that changes nothing or one known thing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from webui.core.requests import FaceRestoration
from webui.engine.faces import FaceNetwork, load_face_detector, restore_faces
from webui.engine.faces.alignment import SIDE, TEMPLATE, Similarity, extract, paste, similarity
from webui.engine.faces.detector import Face

CPU = torch.device("cpu")
# Eileen Collins, NASA, in the public domain; the picture that scikit-image calls "astronaut".
PHOTO = Path(__file__).with_name("astronaut.jpg")
# Her eyes, nose and corners of the mouth, by the reference implementation (facenet-pytorch 2.6.0) on the same crop.
POINTS = np.array([[54.8, 91.5], [97.0, 93.8], [74.9, 118.6], [51.9, 129.3], [95.4, 131.9]])


class Restorer(nn.Module):
    """Takes and gives -1…1, as GFPGAN and CodeFormer do; notes the weights it was told."""

    def __init__(self, change=lambda x: x):
        super().__init__()
        self.change = change
        self.weights = []

    def forward(self, x, weight, **options):
        assert x.shape == (1, 3, SIDE, SIDE)
        assert x.min() >= -1
        self.weights.append(weight)
        return self.change(x), None


class Found:
    """A detector that finds what it was given."""

    def __init__(self, *points):
        self.points = points

    def detect(self, image):
        return [Face(box=np.zeros(4), score=1.0, points=points) for points in self.points]


def network(change=lambda x: x):
    return FaceNetwork(name="restorer", kind="CodeFormer", network=Restorer(change), device=CPU, weight_bytes=0)


def smooth_picture(width, height, seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(40, 216, (4, 5, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def placed(x, y, scale, angle=0.0):
    """The five points of a face that is `scale` times the template's size, its square's corner at (x, y)."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (TEMPLATE * scale) @ turn.T + (x, y)


@pytest.fixture(scope="module")
def detector():
    return load_face_detector(CPU)


@pytest.fixture(scope="module")
def photo():
    return Image.open(PHOTO).convert("RGB")


# --- detection


def test_a_face_is_found_where_the_reference_finds_it(detector, photo):
    (face,) = detector.detect(photo)
    assert face.score > 0.99
    assert np.abs(face.points - POINTS).max() < 3
    assert (face.box[:2] < POINTS.min(axis=0)).all()
    assert (face.box[2:] > POINTS.max(axis=0)).all()


def test_several_faces_of_several_sizes_are_found(detector, photo):
    scene = Image.new("RGB", (420, 220), (90, 120, 90))
    scene.paste(photo, (10, 20))
    scene.paste(photo.resize((72, 81)), (200, 10))
    scene.paste(photo.rotate(12, Image.Resampling.BICUBIC), (255, 40))
    centres = sorted(tuple(face.points.mean(axis=0).round(-1)) for face in detector.detect(scene))
    assert len(centres) == 3
    for (x, y), (left, top) in zip(centres, [(85, 133), (234, 61), (330, 153)], strict=True):
        assert abs(x - left) < 12
        assert abs(y - top) < 12


@pytest.mark.parametrize("size", [(200, 120), (19, 300), (1, 1)])
def test_where_there_is_no_face_none_is_found(detector, size):
    assert detector.detect(smooth_picture(*size)) == []


def test_a_face_at_the_border_is_found(detector, photo):
    faces = detector.detect(photo.crop((40, 30, 160, 180)))
    assert len(faces) == 1


# --- geometry


def test_a_similarity_is_found_again():
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    found = similarity(TEMPLATE, TEMPLATE @ turn.T * 0.25 + (30, -7))
    assert found.scale == pytest.approx(0.25)
    np.testing.assert_allclose(found.matrix, turn * 0.25, atol=1e-12)
    np.testing.assert_allclose(found.shift, (30, -7), atol=1e-9)
    np.testing.assert_allclose(found.inverse()(found(TEMPLATE)), TEMPLATE)


def test_a_mirrored_face_is_not_mirrored_back():
    found = similarity(TEMPLATE * (-1, 1), TEMPLATE)
    assert np.linalg.det(found.matrix) > 0


def test_points_land_on_the_template():
    """White dots at the five points of a turned face are at the template's places afterwards, to half a pixel."""
    points = placed(200, 30, 0.5, angle=0.4)
    to_square = similarity(points, TEMPLATE)
    rows, columns = np.mgrid[0:400, 0:400]
    for index, (x, y) in enumerate(points):
        dot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8)
        square = extract(Image.fromarray(dot.round().astype(np.uint8)).convert("RGB"), to_square)[..., 0]
        grid = np.mgrid[0:SIDE, 0:SIDE]
        centre = [(square * axis).sum() / square.sum() for axis in grid[::-1]]
        assert np.abs(centre - TEMPLATE[index]).max() < 0.5


@pytest.mark.parametrize(
    ("points", "size"),
    [
        (placed(60, 40, 0.3), (300, 260)),  # smaller than the square
        (placed(90, 20, 0.4, angle=0.35), (300, 260)),  # turned
        (placed(-40, -60, 0.5), (180, 160)),  # over the border
        (placed(10, 10, 2.4), (1250, 1250)),  # larger than the square, so that it is reduced on the way
    ],
)
def test_a_restorer_that_changes_nothing_leaves_the_picture(points, size):
    image = smooth_picture(*size)
    made, count = restore_faces(image, network(), Found(points), FaceRestoration(model="restorer"))
    assert count == 1
    difference = np.abs(np.asarray(made, int) - np.asarray(image, int))
    assert difference.max() <= 1


def test_only_the_place_of_the_face_changes():
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8))
    points = placed(80, 60, 0.3)
    inverted = network(lambda x: -x)
    made, _ = restore_faces(image, inverted, Found(points), FaceRestoration(model="restorer"))
    changed = (np.asarray(made) != np.asarray(image)).any(axis=2)
    side = SIDE * 0.3
    outside = np.ones_like(changed)
    outside[60 : int(60 + side) + 1, 80 : int(80 + side) + 1] = False
    assert not changed[outside].any()
    assert changed[100:180, 120:200].mean() > 0.95


def test_visibility_is_the_share_of_the_restored_face():
    image = smooth_picture(300, 300)
    change = lambda x: x * 0.5 + 0.1 * torch.sign(torch.arange(SIDE) % 128 - 64.0)  # noqa: E731  # told in place
    results = {}
    for visibility in (0.0, 0.5, 1.0):
        options = FaceRestoration(model="restorer", visibility=visibility)
        results[visibility], _ = restore_faces(image, network(change), Found(placed(60, 60, 0.3)), options)
    none, half, whole = (np.asarray(results[share], float) for share in (0.0, 0.5, 1.0))
    np.testing.assert_array_equal(none, np.asarray(image))
    assert np.abs(whole - none).max() > 20
    assert np.abs(half - (none + whole) / 2).max() <= 1


def test_the_face_keeps_its_colour():
    image = smooth_picture(300, 300)
    tinted = network(lambda x: (x + torch.tensor([0.3, 0.0, -0.2])[None, :, None, None]).clamp(-1, 1))
    made, _ = restore_faces(image, tinted, Found(placed(60, 60, 0.3)), FaceRestoration(model="restorer"))
    assert np.abs(np.asarray(made, int) - np.asarray(image, int)).max() <= 2


def test_the_weight_reaches_the_network_and_every_face_is_restored():
    restorer = network()
    faces = Found(placed(10, 10, 0.2), placed(140, 60, 0.25))
    _, count = restore_faces(smooth_picture(300, 260), restorer, faces, FaceRestoration(model="restorer", weight=0.8))
    assert count == 2
    assert restorer.network.weights == [0.8, 0.8]


def test_without_faces_the_picture_itself_comes_back():
    image = smooth_picture(64, 48)
    made, count = restore_faces(image, network(), Found(), FaceRestoration(model="restorer"))
    assert made is image
    assert count == 0


def test_a_face_wholly_outside_the_picture_changes_nothing():
    image = smooth_picture(64, 48)
    away = Similarity(np.eye(2), np.array([5000.0, 0.0]))
    assert paste(image, np.zeros((SIDE, SIDE, 3), np.float32), away, 1.0) is image
