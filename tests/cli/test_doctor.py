"""The doctor's report, on this machine and on a pretended graphics card."""

import json
from types import SimpleNamespace

import pytest
import torch

from webui import cli, doctor
from webui.commands.common import engine_flags
from webui.core.paths import Folders
from webui.settings.schema import Settings

GIB = 2**30


@pytest.fixture
def folders(tmp_path):
    for name in ("models", "outputs"):
        (tmp_path / name).mkdir()
    return Folders.at(tmp_path)


class FakeSelector:
    """Finds sdpa best, and says so without trying anything."""

    def __init__(self, _remembered):
        pass

    def verdicts(self, _device, dtype, head_sizes, *, length):
        assert (tuple(head_sizes), length) in {((40, 80, 160), 4096), ((64,), 16384)}
        return {"xformers": "refused: it is not installed", "sdpa": f"chosen for {dtype}"}

    def select(self, *_arguments, **_options):
        raise doctor.UserError("The attention backend 'spam' is not known.")


@pytest.fixture
def untried(monkeypatch):
    monkeypatch.setattr(doctor, "AttentionSelector", FakeSelector)


@pytest.fixture
def card(monkeypatch, untried):
    """A card whose free memory, in GiB, the test says."""
    free = {"gib": 24}
    properties = SimpleNamespace(total_memory=24 * GIB, major=8, minor=9)
    monkeypatch.setattr(doctor.devices, "choose_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(doctor.devices, "describe", lambda _: "A Card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    monkeypatch.setattr(doctor, "limit", lambda *_: None)
    monkeypatch.setattr(doctor, "why_not_compiled", lambda _: "")
    timed = doctor.Choice(name="channels last", seconds={"contiguous": 0.002, "channels last": 0.001})
    monkeypatch.setattr(doctor, "choose_layout", lambda *_, compiled: timed)
    monkeypatch.setattr(doctor, "free_bytes", lambda _: int(free["gib"] * GIB))
    return free


def plans(folders, **settings):
    return list(doctor.examine(folders, Settings(**settings))["Memory plan"].values())


def test_the_report_of_this_machine(folders, untried, tmp_path):
    report = doctor.examine(folders, Settings(), nvidia=tmp_path / "none")
    assert report["Device"]["computes on"] == "CPU"
    assert report["Precision"]["checkpoints"].startswith("float32; this processor does not multiply in bfloat16")
    assert report["Precision"]["upscalers"] == "float32"
    assert report["Attention for SD 1.5 at 512x512"]["xformers"] == "refused: it is not installed"
    assert "main memory" in report["Memory plan"]["SDXL at 1024x1024"]
    assert report["Versions"]["torch"] == torch.__version__
    assert report["Folders"]["models"].startswith(f"{tmp_path}/models: writable")
    assert "not there yet" in report["Folders"]["data"]
    assert "graphics card" in report["To be faster"]["1"]
    text = doctor.as_text(report)
    assert max(len(line) for line in text.splitlines()) < 160
    assert "\n\nMemory plan\n" in text


def test_a_folder_that_cannot_be_written_is_told(folders, untried, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, _: path != folders.outputs)
    assert "CANNOT BE WRITTEN" in doctor.examine(folders, Settings())["Folders"]["outputs"]


def test_a_card_that_torch_was_not_built_for_is_told(folders, untried, tmp_path):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: 550\n")
    advice = doctor.examine(folders, Settings(), nvidia=driver)["To be faster"]
    assert "NVIDIA card" in advice["1"]


def test_plans_for_cards_of_several_sizes(folders, card):
    assert all(words.startswith("everything stays on the device (") for words in plans(folders))
    card["gib"] = 4
    small, large = plans(folders)
    assert small.startswith("everything stays")
    assert "unet streamed layer by layer" in large
    assert "the VAE in tiles" in large
    assert "unet streamed" in plans(folders, video_memory_use="lowvram")[0]
    assert "unet brought for its phase" in plans(folders, video_memory_use="medvram")[0]


def test_a_card_has_a_driver_precision_and_advice(folders, card):
    report = doctor.examine(folders, Settings())
    assert report["Device"]["video memory"] == "24.0 GiB free of 24.0 GiB"
    assert report["Precision"]["checkpoints"] == "float16; a network that overflows goes on in bfloat16"
    assert "launch.py --xformers" in report["To be faster"]["1"]


def test_a_setting_that_does_not_work_is_told(folders, untried):
    told = doctor.examine(folders, Settings(attention="spam"))["Attention for SD 1.5 at 512x512"]["setting"]
    assert "'spam' is not known" in told


def test_a_precision_that_does_not_work_is_told(folders, untried):
    told = doctor.examine(folders, Settings(precision="float16"))["Precision"]
    assert "float16 is for graphics cards" in told["setting"]
    assert told["checkpoints"].startswith("float32")


def test_a_processor_that_multiplies_bfloat16_is_told(folders, untried, monkeypatch):
    monkeypatch.setattr("webui.hardware.device.multiplies_bfloat16", lambda: True)
    told = doctor.examine(folders, Settings())["Precision"]
    assert told["checkpoints"] == told["pipelines"] + "; a network that overflows goes on in float32"
    assert (told["pipelines"], told["upscalers"]) == ("bfloat16", "float32")


def test_the_command_prints_json(folders, untried, capsys):
    assert cli.main(["doctor", "--json", "--root", str(folders.root), "--lowvram"]) == 0
    assert json.loads(capsys.readouterr().out)["Device"]["computes on"] == "CPU"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"attention": "", "video_memory_use": "", "video_memory_gib": 0.0, "precision": "", "weights": ""}),
        (["--precision", "bfloat16"], {"precision": "bfloat16"}),
        (["--weights", "fp8"], {"weights": "fp8"}),
        (["--medvram", "--gpu-memory", "4GB"], {"video_memory_use": "medvram", "video_memory_gib": 4.0}),
        (["--gpu-memory", "3.5", "doctor", "--lowvram"], {"video_memory_use": "lowvram", "video_memory_gib": 3.5}),
    ],
)
def test_bounds_of_memory_are_flags(flags, expected):
    assert engine_flags(cli.make_parser().parse_args(flags)).items() >= expected.items()


@pytest.mark.parametrize("amount", ["0", "much", "inf"])
def test_no_amount_of_memory_is_refused(amount, capsys):
    with pytest.raises(SystemExit):
        cli.main(["--gpu-memory", amount])
    assert "such as 4GB" in capsys.readouterr().err


def test_flags_stand_over_the_settings():
    from webui.bootstrap import overridden

    stored = Settings(attention="sdpa", video_memory_gib=8)
    flags = {"attention": "", "video_memory_gib": 4.0, "video_memory_use": "medvram"}
    settings = overridden(lambda: stored, **flags)()
    assert (settings.attention, settings.video_memory_gib, settings.video_memory_use) == ("sdpa", 4.0, "medvram")


def test_weights_in_few_bits_make_the_plan_smaller(folders, card):
    card["gib"] = 6
    assert "unet streamed" in plans(folders)[1]
    assert "unet streamed" not in plans(folders, weights="fp8")[1]
    assert doctor.examine(folders, Settings(weights="nf4"))["Precision"]["the network's weights"] == "nf4"


def test_what_is_on_for_speed_and_why_the_rest_is_not(folders, untried):
    speed = doctor.examine(folders, Settings())["Speed"]
    assert speed["CUDA graphs"].startswith("off: it is for NVIDIA cards")
    assert "not channels last" in speed["feature maps"]


def test_what_is_on_for_speed_on_a_card(folders, card):
    speed = doctor.examine(folders, Settings())["Speed"]
    assert speed["compiled blocks"] == "off: the setting Compile turns it on"
    assert speed["CUDA graphs"] == "off: so is Compile"
    assert speed["projections in one"].startswith("on")
    assert speed["feature maps"] == "channels last; contiguous took 2 ms, channels last took 1 ms"
    speed = doctor.examine(folders, Settings(compile=True, fast_arithmetic=True, weights="int8"))["Speed"]
    assert speed["compiled blocks"] == speed["fast arithmetic"] == "on"
    assert speed["CUDA graphs"].startswith("on")
    assert speed["projections in one"] == "off: weights are packed in int8"
