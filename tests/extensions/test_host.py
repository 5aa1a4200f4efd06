"""The host: loading, hooks, crashes, settings, on and off."""

import logging
import sys

import pytest
from PIL import Image

from webui.core.errors import ExtensionError, ResourceError, UserError
from webui.core.events import Step
from webui.core.requests import Txt2Img
from webui.extensions.host import ExtensionHost
from webui.extensions.installer import Installer

REQUEST = Txt2Img(prompt="a red circle", seed=1)
STEP = Step(index=1, total=2, batch=0)
PICTURE = Image.new("RGB", (8, 8), "red")

STEADY = """
import dataclasses
seen = []
@hookimpl
def atelier_settings(): return [ExtensionSetting(key="k", label="K", default=1, kind="int")]
@hookimpl
def atelier_tabs(): return [Tab(title="Steady", id="steady", build=lambda: seen.append("built"))]
@hookimpl
def atelier_before_job(request): return dataclasses.replace(request, prompt=request.prompt + "!")
@hookimpl
def atelier_on_step(step): seen.append(step.index)
@hookimpl
def atelier_process_image(image): return image.resize((4, 4))
@hookimpl
def atelier_after_job(state): seen.append(state)
"""


def run_a_job(host: ExtensionHost) -> tuple[Txt2Img, Image.Image]:
    request = host.before_job(REQUEST)
    host.on_step(request, STEP)
    image = host.process_image(PICTURE, request)
    host.after_job(request, "finished")
    for _, tab in host.tabs():
        tab.build()
    return request, image


def seen(name: str) -> list:
    modules = [m for key, m in sys.modules.items() if key.startswith(f"atelier_extension_{name}_")]
    return next(module.seen for module in modules if hasattr(module, "seen"))


def view(host, name):
    return next(one for one in host.extensions() if one.name == name)


def test_every_hook_is_called(host, write):
    write("steady", STEADY)
    host.load()
    request, image = run_a_job(host)
    assert request.prompt == "a red circle!"
    assert image.size == (4, 4)
    assert seen("steady") == [1, "finished", "built"]
    assert [(name, tab.title) for name, tab in host.tabs()] == [("steady", "Steady")]
    assert host.settings()["steady"][0].key == "k"


CRASHES = ["ValueError('boom')", "SystemExit(3)", "GeneratorExit()", "type('E', (Exception,), {'__str__': 1})()"]


@pytest.mark.parametrize("crash", CRASHES)
@pytest.mark.parametrize(
    "hook",
    [
        "atelier_settings()",
        "atelier_tabs(context)",
        "atelier_before_job(request)",
        "atelier_on_step(request)",
        "atelier_process_image(image)",
        "atelier_after_job(state)",
    ],
)
def test_a_crash_in_a_hook_is_named_and_the_others_go_on(host, write, caplog, hook, crash):
    write("a-crasher", f"@hookimpl\ndef {hook}: raise {crash}")
    write("steady", STEADY)
    host.load()
    request, image = run_a_job(host)
    assert request.prompt == "a red circle!"
    assert image.size == (4, 4)
    assert seen("steady") == [1, "finished", "built"]
    error = view(host, "a-crasher").error
    assert error is not None
    assert "'a-crasher' failed in " + hook.partition("(")[0] in error
    assert view(host, "a-crasher").loaded
    assert view(host, "steady").error is None
    assert error in caplog.text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import no_such_package_at_all", "ModuleNotFoundError"),
        ("1 / 0", "division by zero"),
        ("@hookimpl\ndef atelier_on_stepp(): ...", "atelier_on_stepp"),
        ("@hookimpl\ndef atelier_on_step(sigma): ...", "sigma"),
        ("@hookimpl(wrapper=True)\ndef atelier_on_step():\n    yield", "hook wrapper"),
    ],
)
def test_a_crash_at_load_leaves_one_out(host, write, caplog, body, said):
    write("broken", body)
    write("steady", STEADY)
    host.load()
    broken = view(host, "broken")
    assert broken.enabled
    assert not broken.loaded
    assert said in (broken.error or "")
    assert "'broken' failed while it was loaded" in caplog.text
    assert not [name for name in sys.modules if name.startswith("atelier_extension_broken")]
    assert run_a_job(host)[1].size == (4, 4)


def test_ctrl_c_is_not_swallowed(host, write):
    write("stopper", "@hookimpl\ndef atelier_on_step(): raise KeyboardInterrupt")
    host.load()
    with pytest.raises(KeyboardInterrupt):
        host.on_step(REQUEST, STEP)


@pytest.mark.parametrize(
    "body",
    [
        "@hookimpl\ndef atelier_before_job(request): return 'text'",
        "from webui.core.requests import Upscale\n@hookimpl\ndef atelier_before_job(): return Upscale(image=b'x')",
        "from dataclasses import replace\n@hookimpl\ndef atelier_before_job(request): return replace(request, steps=0)",
        "@hookimpl\ndef atelier_process_image(image): return image.tobytes()",
        "@hookimpl\ndef atelier_process_image(image): return image.convert('CMYK')",
        "@hookimpl\ndef atelier_process_image(image): image.paste('blue', (0, 0, 8, 8)); raise ValueError",
        "@hookimpl\ndef atelier_tabs(): return 'tab'",
        "@hookimpl\ndef atelier_tabs(): return [Tab(title='T', id='t', build=print)] * 2",
        "@hookimpl\ndef atelier_settings(): return [ExtensionSetting(key='k', label='K', default=1, kind='bool')]",
        "@hookimpl\ndef atelier_tabs(): return [Tab(title='T', id='t', build=lambda: 1 / 0)]",
    ],
)
def test_a_wrong_answer_is_dropped_and_named(host, write, body):
    write("wrong", body)
    host.load()
    assert run_a_job(host) == (REQUEST, PICTURE)
    assert PICTURE.getpixel((0, 0)) == (255, 0, 0)
    assert "'wrong' failed in" in (host.error("wrong") or "")


def test_a_seed_left_open_is_settled(host, write):
    write(
        "dice",
        "from dataclasses import replace\n@hookimpl\ndef atelier_before_job(request): return replace(request, seed=-1)",
    )
    host.load()
    assert host.before_job(REQUEST).seed >= 0


def test_pictures_pass_through_in_the_order_of_names(host, write):
    body = (
        "from PIL.ImageOps import expand\n@hookimpl{}\ndef atelier_process_image(image): return expand(image, 1, {!r})"
    )
    for name, mark, colour in (("c", "", "blue"), ("a", "", "green"), ("b", "(trylast=True)", "white")):
        write(name, body.format(mark, colour))
    host.load()
    image = host.process_image(PICTURE, REQUEST)
    found = [image.getpixel((depth, depth)) for depth in range(4)]
    assert found == [(255, 255, 255), (0, 0, 255), (0, 128, 0), (255, 0, 0)]
    assert PICTURE.size == (8, 8)


def test_a_repeated_crash_fills_the_log_once(host, write, caplog):
    write("noisy", "@hookimpl\ndef atelier_on_step(): raise ValueError('again')")
    host.load()
    with caplog.at_level(logging.INFO):
        for _ in range(20):
            host.on_step(REQUEST, STEP)
    assert caplog.text.count("ValueError: again).") == 1


def test_relative_imports_and_names_do_not_collide(host, write):
    for name in ("one", "one-", "tw_o", "tw-o"):
        folder = write(name, "from . import other\nfrom .other import WHO\nseen = [WHO]")
        (folder / "other.py").write_text(f"WHO = {name!r}")
    (folder / "__init__.py").write_text("FROM_INIT = 1")
    (folder / "extension.py").write_text("from . import FROM_INIT\nfrom .other import WHO\nseen = [WHO]")
    path = list(sys.path)
    host.load()
    assert [one.error for one in host.extensions()] == [None] * 4
    marks = {m.seen[0] for key, m in sys.modules.items() if key.startswith("atelier_extension_") and hasattr(m, "seen")}
    assert marks == {"one", "one-", "tw_o", "tw-o"}
    assert sys.path == path


def test_disabling_lasts(host, reopen, write):
    write("steady", STEADY)
    host.load()
    assert host.disable("steady") == "steady is disabled. Its tab goes when Atelier is restarted."
    assert run_a_job(host) == (REQUEST, PICTURE)
    again = reopen()
    again.load()
    assert (view(again, "steady").enabled, view(again, "steady").loaded) == (False, False)
    assert again.enable("steady") == "steady is enabled. Its tab appears when Atelier is restarted."
    assert again.before_job(REQUEST).prompt == "a red circle!"
    third = reopen()
    third.load()
    assert view(third, "steady").loaded


def test_reload_runs_the_code_anew(host, write):
    write("changing", "1 / 0")
    host.load()
    with pytest.raises(ExtensionError, match="division by zero"):
        host.enable("changing")
    write("changing", "@hookimpl\ndef atelier_process_image(image): return image.resize((2, 2))")
    assert host.reload("changing") == "changing is enabled."
    assert host.process_image(PICTURE, REQUEST).size == (2, 2)
    assert host.error("changing") is None
    host.disable("changing")
    with pytest.raises(UserError, match="enable it first"):
        host.reload("changing")


@pytest.mark.parametrize("act", ["enable", "disable", "reload", "remove"])
def test_unknown_names(host, act):
    with pytest.raises(UserError, match="no-such"):
        getattr(host, act)("no-such")


def test_install_runs_nothing_until_enabled(host, repository, git, tmp_path):
    name = host.install(str(repository))
    shown = view(host, name)
    host.load()
    assert not (tmp_path / "was-run").exists()
    assert (shown.enabled, shown.loaded, shown.description, shown.version) == (False, False, "Leaves a mark.", "2.1")
    assert shown.commit == git("-C", repository, "rev-parse", "HEAD")
    host.enable(name)
    assert (tmp_path / "was-run").exists()


def test_remove_stops_it(host, folder, store, write):
    write("steady", STEADY)
    host.load()
    host.remove("steady")
    assert run_a_job(host) == (REQUEST, PICTURE)
    assert host.extensions() == ()
    assert host.settings() == {}
    assert store.current.disabled_extensions == []


def test_what_cannot_be_removed_is_off(host, folder, write, monkeypatch):
    write("steady", STEADY)
    host.load()

    def refuse(self, name):
        raise ResourceError("the disk says no")

    monkeypatch.setattr(Installer, "remove", refuse)
    with pytest.raises(ResourceError):
        host.remove("steady")
    host.load()
    assert run_a_job(host) == (REQUEST, PICTURE)


def test_a_folder_that_went_away_is_unloaded(host, write):
    path = write("steady", STEADY)
    host.load()
    (path / "extension.py").unlink()
    host.load()
    assert run_a_job(host) == (REQUEST, PICTURE)


def test_what_is_no_extension_is_not_listed(host, folder, write):
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "extension.py").write_text("1 / 0")
    (folder / "empty").mkdir()
    (folder / "README.md").write_text("")
    write("real", "")
    host.load()
    assert [one.name for one in host.extensions()] == ["real"]


def test_no_folder_is_no_extensions(store, tmp_path):
    host = ExtensionHost(tmp_path / "missing", store)
    host.load()
    assert host.extensions() == ()


DECLARES = """
@hookimpl
def atelier_settings():
    return [
        ExtensionSetting(key="on", label="On", default=True, kind="bool"),
        ExtensionSetting(key="count", label="Count", default=3, kind="int", minimum=1, maximum=9),
        ExtensionSetting(key="share", label="Share", default=0.5, kind="float"),
        ExtensionSetting(key="word", label="Word", default="hi", kind="str"),
        ExtensionSetting(key="colour", label="Colour", default="red", kind="choice", choices=("red", "blue")),
    ]
@hookimpl
def atelier_before_job(request, context):
    import dataclasses
    return dataclasses.replace(request, prompt=context.value("word"))
"""


def test_settings_are_typed_and_kept(host, reopen, write):
    write("declares", DECLARES)
    host.load()
    assert host.value("declares", "count") == 3
    host.save("declares", {"on": False, "count": 4.0, "share": 1, "word": "", "colour": "blue"})
    again = reopen()
    again.load()
    found = {setting.key: again.value("declares", setting.key) for setting in again.settings()["declares"]}
    assert found == {"on": False, "count": 4, "share": 1.0, "word": "", "colour": "blue"}
    assert [type(value) for value in found.values()] == [bool, int, float, str, str]
    assert again.before_job(REQUEST).prompt == ""


MISFITS = [("on", 1), ("on", "yes"), ("word", 1), ("word", None), ("colour", "green")]
MISFITS += [("count", value) for value in (0, 10, 1.5, True, 10**400, "3")]
MISFITS += [("share", value) for value in (float("nan"), float("inf"), "1", None)]


@pytest.mark.parametrize(("key", "value"), MISFITS)
def test_values_that_misfit(host, write, key, value):
    write("declares", DECLARES)
    host.load()
    before = host.value("declares", "on")
    with pytest.raises(UserError, match="must be"):
        host.save("declares", {"on": not before, key: value})
    assert host.value("declares", "on") == before


def test_a_hand_edited_misfit_is_reported_and_the_default_used(host, store, write):
    store.update(extensions={"declares": {"count": "many"}})
    write("declares", DECLARES)
    host.load()
    assert host.value("declares", "count") == 3
    assert "Count is 'many'" in (host.error("declares") or "")


def test_an_undeclared_setting(host, write):
    write("declares", DECLARES)
    host.load()
    with pytest.raises(ExtensionError, match="no setting 'colr'"):
        host.value("declares", "colr")
