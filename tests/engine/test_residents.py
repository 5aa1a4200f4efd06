"""What stays loaded, as numbers of bytes."""

from dataclasses import dataclass

import pytest

from webui.core.errors import UnsupportedModel
from webui.engine.residents import FixedPart, Resident, Residents


@dataclass
class MovablePart:
    weight_bytes: int
    in_main_memory: bool = True


def resident(name, size):
    return Resident(name=name, parts={"unet": FixedPart(size - 1), "vae": FixedPart(1)}, model=name)


@pytest.fixture
def released():
    return []


@pytest.fixture
def residents(released):
    return Residents(lambda: 100, lambda: released.append("released"))


def use(residents, *models, **options):
    """One request that needs these models, as (name, size) or as residents."""
    with residents.turn(**options):
        for model in models:
            made = model if isinstance(model, Resident) else resident(*model)
            size = sum(part.weight_bytes for part in made.parts.values())
            residents.get(made.name, lambda made=made: made, expected_bytes=size)


def names(residents):
    return [each.name for each in residents.all()]


def test_the_least_recently_used_leaves_first(residents, released):
    for name in ("a", "b", "a", "c"):
        use(residents, (name, 40))
    assert names(residents) == ["a", "c"]
    assert released == ["released"]


def test_a_failing_load_leaves_the_last(residents):
    use(residents, ("a", 90))

    def fail():
        raise UnsupportedModel("no")

    with pytest.raises(UnsupportedModel), residents.turn():
        residents.get("b", fail, expected_bytes=90)
    assert names(residents) == ["a"]


def test_a_request_that_fails_after_its_checkpoint_is_there_leaves_the_last_too(residents):
    use(residents, ("a", 90))

    def half_a_request():
        with residents.turn():
            residents.get("b", lambda: resident("b", 90), expected_bytes=90)
            raise UnsupportedModel("the VAE does not fit")

    with pytest.raises(UnsupportedModel):
        half_a_request()
    assert "a" in names(residents)
    use(residents, ("a", 90))
    assert names(residents) == ["a"]


def test_one_larger_than_the_budget_stays_alone(residents):
    use(residents, ("a", 10))
    use(residents, ("b", 500))
    assert names(residents) == ["b"]
    with residents.turn():
        assert residents.get("b", lambda: pytest.fail("loaded twice"), expected_bytes=500).model == "b"


def test_what_one_request_needs_stays_together(residents):
    use(residents, ("a", 60), ("vae", 60))
    assert names(residents) == ["a", "vae"]
    use(residents, ("b", 30), ("vae", 60))
    assert names(residents) == ["b", "vae"]


def test_an_upscaler_leaves_the_checkpoint_in_use_alone(residents):
    use(residents, ("a", 90))
    use(residents, ("upscaler", 50), beside_last=True)
    assert names(residents) == ["a", "upscaler"]


def test_a_part_that_two_models_share_counts_once(residents):
    vae = FixedPart(50)
    use(residents, Resident(name="a", parts={"unet": FixedPart(20), "vae": vae}, model="a"))
    use(residents, Resident(name="b", parts={"unet": FixedPart(20), "vae": vae}, model="b"))
    assert residents.bytes_in_main_memory() == 90
    assert names(residents) == ["a", "b"]


def test_what_is_on_the_graphics_card_takes_no_main_memory(residents):
    parts = {"unet": MovablePart(80, in_main_memory=False), "vae": MovablePart(10)}
    use(residents, Resident(name="a", parts=parts, model="a"))
    use(residents, ("b", 80))
    assert names(residents) == ["a", "b"]
    parts["unet"].in_main_memory = True  # it had to make room there
    residents.settle()
    assert names(residents) == ["b"]


def test_when_memory_ran_out_only_the_last_stays(residents):
    use(residents, ("a", 10))
    use(residents, ("b", 10))
    residents.release_others()
    assert names(residents) == ["b"]
