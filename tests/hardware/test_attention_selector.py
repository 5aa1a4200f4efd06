import itertools
import json
import logging
import re

import pytest
import torch

from webui.core.catalogue import ATTENTION_KERNELS
from webui.core.errors import UserError
from webui.hardware.attention import chunked, selector
from webui.hardware.attention.backend import Backend
from webui.hardware.attention.remembered import RememberedChoices, installed_versions
from webui.hardware.attention.selector import BACKENDS, AttentionSelector
from webui.hardware.attention.trial import TOLERANCES

CPU = torch.device("cpu")


def good(name, **options):
    """A backend of its own, so that a clock can tell whose turn it is."""

    def attend(query, key, value, mask=None):
        attend.calls += 1
        if query.shape[2] >= selector.SHORTEST:  # it is only being timed, by a clock that does not look
            return query
        return chunked.attend(query, key, value, mask)

    attend.calls = 0
    return Backend(name, lambda: attend, **options)


def missing():
    raise ImportError("No module named 'spam'")


def failing():
    def attend(query, key, value, mask=None):
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    return attend


def wrong():
    return lambda query, key, value, mask=None: query * 0.5


def slightly_wrong():
    return lambda query, key, value, mask=None: chunked.attend(query, key, value, mask) + 2 * TOLERANCES[torch.float32]


def not_a_number():
    return lambda query, key, value, mask=None: query * float("nan")


def only_small_heads():
    def attend(query, key, value, mask=None):
        if query.shape[-1] > 64:
            raise ValueError("head size 128 is not supported")
        return chunked.attend(query, key, value, mask)

    return attend


def only_half():
    def attend(query, key, value, mask=None):
        if query.dtype == torch.float32:
            raise ValueError("float32 is not supported")
        return chunked.attend(query, key, value, mask)

    return attend


def clock(*seconds):
    """A clock by which each of the timed backends, in their order, takes as long as `seconds` say.

    They run three times, or once where they take longer than the first.
    """
    ticks = itertools.chain.from_iterable((0.0, taken) * (3 if taken <= seconds[0] else 1) for taken in seconds)
    return lambda: next(ticks)


def select(*backends, override="auto", head_size=8, seconds=None, remembered=None, dtype=torch.float32):
    chosen_by = clock(*(seconds or [1.0] * len(backends)))
    made = AttentionSelector(remembered, backends=backends, clock=chosen_by)
    return made.select(CPU, dtype, head_size, override=override)


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (missing, r"not installed \(No module named 'spam'\)"),
        (failing, "RuntimeError: no kernel image is available$"),
        (wrong, "wrong by"),
        (slightly_wrong, "wrong by"),
        (not_a_number, "wrong by nan"),
    ],
)
def test_what_does_not_work_is_refused_with_the_reason(load, reason):
    choice = select(Backend("broken", load), good("works"))

    assert choice.name == "works"
    assert choice.refused.keys() == {"broken"}
    assert re.search(reason, choice.refused["broken"])


def test_a_kernel_that_is_known_to_round_may():
    assert select(Backend("rounds", slightly_wrong, slack=4)).name == "rounds"


@pytest.mark.parametrize(
    ("seconds", "name"),
    [((1.5, 1.0), "first"), ((5.0, 1.0), "second"), ((1.0, 5.0), "first"), ((5.0, 2.0, 1.0), "third")],
)
def test_the_first_stays_unless_another_is_clearly_faster(seconds, name):
    backends = [good(each) for each in ("first", "second", "third")[: len(seconds)]]
    choice = select(*backends, seconds=seconds)
    assert choice.name == name
    assert tuple(choice.seconds.values()) == seconds


def test_on_a_gpu_less_is_clearly_faster():
    assert selector._fastest({"first": 1.05, "second": 1.0}, torch.device("cuda")) == "first"
    assert selector._fastest({"first": 1.2, "second": 1.0}, torch.device("cuda")) == "second"
    assert selector._fastest({"first": 1.2, "second": 1.0}, CPU) == "first"


def test_a_backend_alone_is_not_timed():
    assert select(good("only"), Backend("broken", failing), seconds=[]).seconds == {}


def test_some_are_only_for_those_who_name_them():
    backends = (good("exact"), good("rounding", chosen="by name"), good("gpu", chosen="on a GPU"))
    assert select(*backends, seconds=[9.0]).name == "exact"
    assert select(*backends, override="rounding").name == "rounding"
    assert select(*backends, override="gpu").name == "gpu"


def test_a_backend_that_fails_at_full_length_is_passed_over():
    def load():
        def attend(query, key, value, mask=None):
            if query.shape[2] >= selector.SHORTEST:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return chunked.attend(query, key, value, mask)

        return attend

    choice = select(Backend("greedy", load), good("modest"), seconds=[1.0, 1.0])
    assert choice.name == "modest"
    assert choice.refused == {"greedy": "it fails at length 1024 with OutOfMemoryError"}


def test_a_backend_must_work_for_every_head_size_and_dtype():
    backends = (Backend("small", only_small_heads), good("any"))

    assert select(*backends, head_size=64, seconds=[1.0, 1.0]).refused == {}
    assert select(*backends, head_size={64, 128}).name == "any"
    assert "head size 128" in select(*backends, head_size={64, 128}).refused["small"]
    assert select(Backend("half", only_half), good("any"), dtype=(torch.bfloat16, torch.float32)).name == "any"


def test_trials_are_remembered(caplog):
    loads = []

    def load():
        loads.append(1)
        return chunked.attend

    made = AttentionSelector(backends=(Backend("counted", load),))
    with caplog.at_level(logging.INFO):
        assert {made.select(CPU, torch.float32, 8).name for _ in range(2)} == {"counted"}

    assert len(loads) == 1
    assert caplog.text.count("Attention: counted") == 1


def test_an_override_is_obeyed():
    assert select(good("first"), good("second"), override="second", seconds=(1.0, 99.0)).name == "second"


def test_an_unknown_override_lists_the_names():
    with pytest.raises(UserError, match=r"'spam' is not known; choose one of auto, xformers, sdpa, .*, split"):
        select(*BACKENDS, override="spam")


def test_an_override_that_does_not_work_is_told_and_not_replaced():
    with pytest.raises(UserError, match="'broken' does not work here: it fails with RuntimeError"):
        select(Backend("broken", failing), good("works"), override="broken")


def test_no_backend_at_all_is_told():
    with pytest.raises(UserError, match="No attention backend works on cpu"):
        select(Backend("broken", failing))


def test_each_backend_has_a_verdict():
    backends = (Backend("broken", failing), good("a"), good("b"), good("named", chosen="by name"))
    made = AttentionSelector(backends=(*backends, Backend("absent", missing, "on a GPU")), clock=clock(0.002, 0.003))
    assert made.verdicts(CPU, torch.float32, [8]) == {
        "broken": "refused: it fails with RuntimeError: no kernel image is available",
        "a": "chosen, 2 ms a call",
        "b": "works, 3 ms a call",
        "named": "works, for those who name it",
        "absent": "refused: it is not installed (No module named 'spam')",
    }


def test_a_choice_is_kept_in_a_file_and_not_measured_again(tmp_path):
    file = tmp_path / "data" / "attention.json"
    first = select(Backend("broken", failing), good("slow"), good("fast"), seconds=(5, 1), remembered=kept(file))
    backends = (Backend("broken", failing), good("slow"), good("fast"))
    again = select(*backends, seconds=[], remembered=kept(file))  # the clock would run out

    assert first.name == again.name == "fast"
    assert again.refused == {"broken": first.refused["broken"]}
    assert again.seconds == {"slow": 5, "fast": 1}
    assert backends[1].load().calls == 0


def kept(file, **versions):
    return RememberedChoices(file, {"torch": "2.13", **versions})


def test_other_versions_measure_anew(tmp_path):
    file = tmp_path / "attention.json"
    assert select(good("a"), good("b"), seconds=(5, 1), remembered=kept(file)).name == "b"
    assert select(good("a"), good("b"), seconds=(1, 5), remembered=kept(file, driver="551")).name == "a"
    assert json.loads(file.read_text())["versions"] == {"torch": "2.13", "driver": "551"}


def test_a_remembered_backend_that_no_longer_works_is_chosen_anew(tmp_path):
    file = tmp_path / "attention.json"
    assert select(good("a"), good("b"), seconds=(5, 1), remembered=kept(file)).name == "b"
    assert select(good("a"), Backend("b", failing), remembered=kept(file)).name == "a"
    assert select(good("a"), remembered=kept(file)).name == "a"


@pytest.mark.parametrize("content", ["", "[]", '{"versions": {"torch": "2.13"}, "choices": {"x": {"spam": 1}}}'])
def test_a_damaged_file_is_told_and_replaced(tmp_path, caplog, content):
    file = tmp_path / "attention.json"
    file.write_text(content)
    assert select(good("a"), good("b"), remembered=kept(file)).name == "a"
    assert "cannot be read" in caplog.text
    assert kept(file).get(next(iter(json.loads(file.read_text())["choices"]))).name == "a"


def test_a_file_that_cannot_be_written_is_told(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert select(good("a"), remembered=kept(tmp_path / "file" / "attention.json")).name == "a"
    assert "cannot be kept" in caplog.text


def test_the_driver_counts_among_the_versions(tmp_path):
    driver = tmp_path / "version"
    assert installed_versions(driver)["torch"] == torch.__version__
    driver.write_text("NVRM version: NVIDIA UNIX x86_64  550.54\nGCC version: 12\n")
    assert installed_versions(driver)["driver"] == "NVRM version: NVIDIA UNIX x86_64  550.54"


def test_lengths_are_classed_on_a_gpu_and_one_on_the_cpu():
    gpu = torch.device("cuda")
    assert [selector._class_of(length, gpu) for length in (1, 1024, 1025, 4096, 10**6)] == [
        1024,
        1024,
        2048,
        4096,
        16384,
    ]
    assert selector._class_of(10**6, CPU) == 1024


def test_the_backends_have_the_names_that_the_page_offers():
    assert tuple(backend.name for backend in BACKENDS) == ATTENTION_KERNELS


def test_the_real_backends_on_this_machine():
    choice = AttentionSelector().select(CPU, torch.float32, 32)

    assert choice.name in {"sdpa", "chunked", "split"}
    assert choice.refused.keys() == {"xformers"}
    assert choice.seconds.keys() == {"sdpa", "chunked", "split"}
    made = AttentionSelector()
    for backend in BACKENDS:
        if backend.name not in ("sdpa", "sdpa-flash", "sdpa-math", "chunked", "split"):
            with pytest.raises(UserError, match="does not work here"):
                made.select(CPU, torch.float32, 32, override=backend.name)
