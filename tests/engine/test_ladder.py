"""Which measure comes next when memory has run out: values in, values out."""

import pytest

from webui.core.requests import Txt2Img
from webui.engine.ladder import Economy, Remembered, Rung, offered, size_class

SMALL = Txt2Img(width=512, height=512)
BATCH = Txt2Img(width=512, height=512, batch_size=4)
ALL = frozenset(Rung)


def climbed(phase, rungs=ALL):
    """All rungs that are taken while memory keeps running out in `phase`."""
    economy, taken = Economy(), []
    while (step := economy.after(phase, offered=rungs)) is not None:
        rung, economy = step
        taken.append(rung)
        assert len(taken) <= len(Rung)
    assert economy.rungs == set(taken)
    return taken


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("load", [Rung.FREE, Rung.OFFLOAD]),
        ("encode", [Rung.FREE, Rung.OFFLOAD]),
        ("prepare", [Rung.FREE, Rung.CHUNKED, Rung.TILED, Rung.OFFLOAD]),
        ("denoise", [Rung.FREE, Rung.CHUNKED, Rung.SPLIT, Rung.SINGLY, Rung.OFFLOAD]),
        ("decode", [Rung.FREE, Rung.CHUNKED, Rung.TILED, Rung.OFFLOAD]),
        ("something new", list(Rung)),
        ("", list(Rung)),
    ],
)
def test_the_cheapest_measure_that_helps_comes_first_and_each_once(phase, expected):
    assert climbed(phase) == expected


def test_a_second_phase_goes_on_from_what_the_first_took():
    economy = Economy(frozenset({Rung.FREE, Rung.CHUNKED, Rung.SPLIT}))
    rung, economy = economy.after("decode", offered=ALL)
    assert rung is Rung.TILED
    assert Rung.SPLIT in economy


def test_what_changes_nothing_is_not_offered():
    assert Rung.SINGLY not in offered(SMALL, offload=True)
    assert offered(BATCH, offload=True) == ALL
    assert offered(BATCH, offload=False) == ALL - {Rung.OFFLOAD}
    assert climbed("encode", offered(SMALL, offload=False)) == [Rung.FREE]


def test_what_worked_is_remembered_for_the_checkpoint_and_the_size():
    remembered = Remembered()
    economy = Economy(frozenset({Rung.FREE, Rung.CHUNKED}))
    remembered.keep("a", SMALL, economy)
    assert remembered.of("a", SMALL) == Economy(frozenset({Rung.CHUNKED}))
    assert remembered.of("a", Txt2Img(width=448, height=512)) == remembered.of("a", SMALL)
    assert remembered.of("a", BATCH) == remembered.of("b", SMALL) == Economy()


def test_emptied_caches_alone_are_nothing_to_remember():
    remembered = Remembered()
    remembered.keep("a", SMALL, Economy(frozenset({Rung.CHUNKED})))
    remembered.keep("a", SMALL, Economy(frozenset({Rung.FREE})))
    assert remembered.of("a", SMALL) == Economy(frozenset({Rung.CHUNKED}))


def test_sizes_are_classed_by_the_pixels_of_a_batch():
    assert size_class(SMALL) == 18
    assert size_class(Txt2Img(width=520, height=512)) == 19
    assert size_class(BATCH) == size_class(Txt2Img(width=1024, height=1024))
