"""The pages: what they link to is there, what they tell to write is understood."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from deepcomp import arguments
from deepcomp.recipe import Recipe, names
from deepcomp.steps import STEPS

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    p for folder in ("", "docs", "docs/recipes", "benchmarks", "checkpoints") for p in (ROOT / folder).glob("*.md")
)
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
BLOCKS = [
    (page, *block) for page, whole in TEXTS.items() for block in re.findall(r"^```(\w*)\n(.*?)^```", whole, re.S | re.M)
]
RECIPES = [(page, text) for page, language, text in BLOCKS if language == "toml"]
COMMANDS = [
    (page, line.removeprefix("$ "))
    for page, language, text in BLOCKS
    if not language
    for line in text.replace("\\\n", " ").splitlines()
    if re.match(r"(\$ )?deepcomp ", line)
]
SETTINGS = sorted(
    {
        (page, step, key)
        for page, whole in TEXTS.items()
        for step, key in re.findall(r"`([a-z]+(?:-[a-z]+)*)\.([a-z_]+)(?:=[^`]*|\.[a-z_…]+)?`", whole)
        if step in STEPS and page not in ("docs/design.md", "docs/format.md")  # where operations have such names
    }
)


def test_the_page_of_steps_is_what_their_docstrings_say():
    """Where this fails: `python docs/write_steps.py`."""
    assert runpy.run_path(str(ROOT / "docs" / "write_steps.py"))["page"]() == TEXTS["docs/steps.md"]


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", TEXTS[page])
    missing = [target for target in targets if not ((ROOT / page).parent / target).exists()]
    assert not missing


@pytest.mark.parametrize(("page", "text"), RECIPES)
def test_recipes_on_pages_are_recipes(page, text):
    for data in (False, True):
        assert Recipe.parse(text, page, data=data).steps


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_on_pages_are_understood(page, line):
    assert arguments.parse(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize(("page", "step", "key"), SETTINGS)
def test_settings_on_pages_exist(page, step, key):
    assert key in {*STEPS[step].__dataclass_fields__}


def test_every_recipe_and_every_step_is_on_a_page():
    listed = TEXTS["docs/recipes/README.md"].replace("`-lenet-5`", "`deep-compression-lenet-5`")
    assert not [name for name in names() if f"`{name}`" not in listed]
    assert not [do for do in STEPS if f"## `{do}`" not in TEXTS["docs/steps.md"]]
