"""Flags become folders and options; what cannot be done is one sentence and exit code 2."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from webui import cli
from webui.core.paths import REPOSITORY, Folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


def test_the_folders_lie_in_the_repository_unless_told_otherwise():
    assert cli.folders_from(cli.make_parser().parse_args([])) == Folders.at(REPOSITORY)


def test_each_folder_has_a_flag(tmp_path):
    chosen = cli.make_parser().parse_args(["--root", str(tmp_path), "--models-dir", str(tmp_path / "m")])
    folders = cli.folders_from(chosen)

    assert folders.models == tmp_path / "m"
    assert folders.outputs == tmp_path / "outputs"


@pytest.mark.parametrize("before", [True, False])
def test_folders_may_stand_on_either_side_of_a_command(tmp_path, before):
    flags = ["--root", str(tmp_path)]
    command = ["generate", "--prompt", "x", "--out", "x.png"]
    chosen = cli.make_parser().parse_args([*flags, *command] if before else [*command, *flags])

    assert cli.folders_from(chosen).root == tmp_path
    assert chosen.attention == ""


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1"])
def test_a_port_that_is_none_is_refused(port, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--port", port])
    assert ended.value.code == 2
    assert "give a number from 1 to 65535" in capsys.readouterr().err


def test_a_missing_models_folder(tmp_path, capsys):
    assert cli.main(["--root", str(tmp_path)]) == 2
    assert f"{tmp_path}/models does not exist" in sentence(capsys)


@pytest.mark.parametrize("kind", ["output", "data", "extensions"])
def test_a_folder_that_cannot_be_written(root, capsys, kind):
    (root / "file").write_text("")

    assert cli.main(["--root", str(root), f"--{kind}-dir", str(root / "file/folder")]) == 2

    message = sentence(capsys)
    assert f"The {kind} folder {root}/file/folder cannot be written" in message
    assert f"--{kind}-dir" in message


@pytest.mark.parametrize("inside", ["extensions/mine", "models/../extensions"])
def test_pictures_do_not_go_where_code_is_run_from(root, capsys, inside):
    assert cli.main(["--root", str(root), "--output-dir", str(root / inside)]) == 2
    assert "programs are run from" in sentence(capsys)


def test_a_port_in_use(root, capsys, monkeypatch):
    monkeypatch.setattr(cli, "set_up_logging", lambda *_: None)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        assert cli.main(["--root", str(root), "--port", str(port)]) == 2

    assert f"Port {port} is in use" in sentence(capsys)


def test_an_account_without_a_password(root, capsys):
    assert cli.main(["--root", str(root), "--auth", "ada"]) == 2
    assert "--auth needs a name and a password" in sentence(capsys)


def test_infotext_prints_one_object(tmp_path, capsys):
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "parameters",
        "a red circle\nNegative prompt: blur\n"
        "Steps: 12, Sampler: Euler a, Schedule type: Karras, CFG scale: 6.5, Seed: 7, Size: 128x64, Model: m",
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)

    assert cli.main(["infotext", str(tmp_path / "a.png")]) == 0

    values = json.loads(capsys.readouterr().out)
    assert {"prompt": "a red circle", "negative_prompt": "blur", "steps": 12}.items() <= values.items()
    assert values["sampler"] == "Euler a"
    assert {"scheduler": "Karras", "cfg_scale": 6.5, "seed": 7, "width": 128, "height": 64}.items() <= values.items()
    assert values["Model"] == "m"


def test_infotext_of_a_picture_without_any(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    assert cli.main(["infotext", str(tmp_path / "a.png")]) == 1
    assert "holds no generation parameters" in sentence(capsys)


@pytest.mark.parametrize("content", [b"no picture", None])
def test_infotext_of_what_is_no_picture(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)

    assert cli.main(["infotext", str(tmp_path / "a.png")]) == 2
    assert "a.png" in sentence(capsys)
