import pytest
import torch

from webui.core.catalogue import PRECISIONS
from webui.core.errors import UserError
from webui.hardware import device, memory
from webui.hardware.device import multiplies_bfloat16


def test_the_first_cuda_device_is_taken_when_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    assert device.choose_device() == torch.device("cuda", 0)


def test_the_cpu_is_taken_when_there_is_nothing_else(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    assert device.choose_device() == torch.device("cpu")


@pytest.mark.parametrize(("kind", "dtype"), [("cpu", torch.float32), ("cuda", torch.float16), ("mps", torch.float16)])
def test_precision_follows_the_device(kind, dtype):
    assert device.choose_dtype(torch.device(kind)) == dtype


@pytest.mark.parametrize(("multiplies", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_processor_that_multiplies_bfloat16_computes_in_it(monkeypatch, multiplies, dtype):
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda: multiplies)
    assert device.choose_dtype(torch.device("cpu")) == dtype
    assert device.choose_pipeline_dtype(torch.device("cpu")) == dtype
    assert device.choose_picture_dtype(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("amx", [True, False])
def test_either_kind_of_instructions_is_enough(monkeypatch, amx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not amx)
    assert multiplies_bfloat16()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert not multiplies_bfloat16()


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_precision_that_is_asked_for_is_taken(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: True)
    card = torch.device("cuda")
    assert device.choose_dtype(card, name) == device.choose_pipeline_dtype(card, name) == getattr(torch, name)


def test_the_catalogue_has_every_precision():
    assert {device.AUTOMATIC, *device._DTYPES} == set(PRECISIONS)


def test_a_precision_that_the_device_lacks_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GTX 1080")
    with pytest.raises(UserError, match=r"float16 is for graphics cards.* choose bfloat16"):
        device.choose_dtype(torch.device("cpu"), "float16")
    with pytest.raises(UserError, match=r"GTX 1080 does not compute in the precision bfloat16; choose float16"):
        device.choose_pipeline_dtype(torch.device("cuda"), "bfloat16")


@pytest.mark.parametrize(
    ("dtype", "bfloat16", "wider"),
    [
        (torch.float16, True, torch.bfloat16),
        (torch.float16, False, torch.float32),
        (torch.bfloat16, True, torch.float32),
        (torch.float32, True, None),
    ],
)
def test_what_comes_after_a_precision_that_overflowed(monkeypatch, dtype, bfloat16, wider):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: bfloat16)
    assert device.wider_dtype(dtype, torch.device("cuda")) == wider


def test_without_a_card_half_precision_goes_straight_to_full():
    assert device.wider_dtype(torch.float16, torch.device("cpu")) == torch.float32


def test_the_cpu_has_a_name():
    assert device.describe(torch.device("cpu")) == "CPU"


def test_free_memory_is_what_linux_calls_available(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:    7000000 kB\n")

    assert memory.free_ram_bytes(meminfo, tmp_path / "none") == 7_000_000 * 1024


@pytest.mark.parametrize(
    ("limit", "used", "stat", "free"),
    [
        (3_000_000, 1_000_000, "anon 900000\ninactive_file 60000\nactive_file 40000\n", 2_100_000),
        (3_000_000, 4_000_000, "", 0),
        (9_000_000_000_000, 0, "", 7_000_000 * 1024),
        ("max", 0, "", 7_000_000 * 1024),
    ],
)
def test_a_container_has_no_more_than_its_limit(tmp_path, limit, used, stat, free):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable:    7000000 kB\n")
    for name, text in (("memory.max", limit), ("memory.current", used), ("memory.stat", stat)):
        (tmp_path / name).write_text(f"{text}\n")

    assert memory.free_ram_bytes(meminfo, tmp_path) == free


def test_giving_back_what_was_dropped_harms_nothing():
    memory.give_back(torch.device("cpu"))


def test_without_meminfo_half_of_the_memory_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)

    assert memory.free_ram_bytes(tmp_path / "none") == 4096 * 500


@pytest.mark.parametrize(("fraction", "free"), [(1.0, 130), (0.1, 80), (0.01, -10)])
def test_cuda_counts_torchs_unused_cache_as_free_within_what_is_allowed(monkeypatch, fraction, free):
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: fraction)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 20)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: [segment(pool=(0, 0), total=30, used=5)])

    assert memory.free_bytes(torch.device("cuda", 0)) == free


def segment(*, pool, total, used, device=0):
    """A piece of a card's memory, as torch tells of it."""
    return {"device": device, "segment_pool_id": pool, "total_size": total, "allocated_size": used}


def test_what_recorded_graphs_hold_is_not_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 20)
    pools = [segment(pool=(0, 0), total=10, used=5), segment(pool=(0, 1), total=40, used=15)]
    monkeypatch.setattr(
        torch.cuda, "memory_snapshot", lambda: [*pools, segment(pool=(0, 1), total=9, used=0, device=1)]
    )

    assert memory.free_bytes(torch.device("cuda", 0)) == 130 - 25


def test_what_is_given_back_of_a_card_is_also_page_locked_memory(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("card"))
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: emptied.append("host"), raising=False)

    memory.give_back(torch.device("cuda", 0))

    assert emptied == ["card", "host"]


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_the_libraries_of_a_card_run_out_of_memory_in_their_own_words(words):
    assert memory.is_out_of_memory(RuntimeError(words))


def test_the_cpus_free_memory_is_the_machines():
    assert memory.free_bytes(torch.device("cpu")) > 1 << 20


def test_fast_arithmetic_is_for_cards_alone(monkeypatch):
    from webui.hardware.device import set_fast_arithmetic

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    before = torch.get_float32_matmul_precision()
    try:
        set_fast_arithmetic(torch.device("cpu"), wanted=True)
        assert torch.get_float32_matmul_precision() == before
        for wanted, precision in ((True, "high"), (False, "highest")):
            set_fast_arithmetic(torch.device("cuda", 0), wanted=wanted)
            assert torch.get_float32_matmul_precision() == precision
            assert torch.backends.cudnn.benchmark is wanted
    finally:
        torch.set_float32_matmul_precision(before)
