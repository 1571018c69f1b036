"""The words of the package, the configs, the README and the documentation are those of the field.

Each rule names words that are not used, and what is written instead. The places where a word is right stand in
``ALLOWED``, each with its reason.
"""

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parent.parent


class Rule(NamedTuple):
    """Words that are not used.

    Attributes:
        pattern: a regular expression that finds them in a line.
        instead: what is written in their place.
    """

    pattern: str
    instead: str


RULES = {
    "draw": Rule(r"(?i)\b(re)?draw(s|n|ing|ings)?\b|\bdrew\b", "sample, generate; draw is for plots"),
    "tell": Rule(r"(?i)\b(told|tells?|telling)\b", "conditioned on, given; shows, states"),
    "judge": Rule(r"(?i)\bjudg\w*|\bverdicts?\b", "evaluate, compare; prediction"),
    "figure": Rule(r"(?i)\bfigures?\b", "metric; a figure is a plot"),
    "bound": Rule(r"(?i)(?<!upper )(?<!lower )\bthe bounds?\b|\bbound_terms?\b", "ELBO, variational bound"),
    "left out": Rule(r"(?i)\bleft out\b", "skipped"),
    "evaluations": Rule(r"(?i)(?<!network )\bevaluations (each|per|an image)\b", "network evaluations (NFE)"),
    "way down": Rule(r"(?i)\bway down\b|\bhalf[ -]?u-?net\b", "encoder"),
    "names": Rule(
        r"(?:[.`\"]|\bclass |\bimport )(Smaller|Grey|Noisy|Variation|Inpainting|HalfUNet|Data|Bound|LossAware)\b",
        "Downsample, Grayscale, Identity, SDEdit, RePaint, UNetEncoder, X0, ELBOTerms, LossAwareTimesteps",
    ),
    "between": Rule(r"\bbetween\(", "interpolate"),
    "world": Rule(r"\bworld\b|\bby all ranks together\b", "rank, world_size; on all ranks"),
    "say": Rule(r"(?i)\b(says|said)\b", "logs, prints, reports, states"),
    "data set": Rule(r"(?i)\bdata[ -]sets?\b|\bdata_sets?\b", "dataset"),
    "picture": Rule(r"(?i)\bpictures?\b|\bphotos?\b|\bphotograph\w*", "image"),
    "grey": Rule(r"(?i)\bgrey(s|ish|scale)?\b", "grayscale"),
    "mend": Rule(r"(?i)\bmend(s|ed|ing)?\b", "fix"),
    "go on": Rule(r"(?i)\b(go|goes|going|gone|went) on (after|from|with)\b", "resume, resumed"),
    "dialect": Rule(r"(?i)\b(so many|dealt|set aside)\b", "the number of, split, held out"),
}

ALLOWED = [
    ("lightning_ddpm/callbacks/*.py", "figure", r"\bfigure(?= = create_figure|\.|\))|of an? figure|figure:", "a plot"),
    ("lightning_ddpm/callbacks/plots.py", "figure", r"(?i)figure", "a plot of matplotlib"),
    ("lightning_ddpm/callbacks/plots.py", "draw", r"canvas\.draw\(", "matplotlib's method"),
    ("lightning_ddpm/data/image_io.py", "draw", r"Draw black text|ImageDraw\.Draw\(", "text is drawn, by Pillow"),
    ("lightning_ddpm/data/previews.py", "draw", r"ImageDraw\.Draw\(", "Pillow's class"),
    ("benchmarks/*.py", "figure", r"(?i)(import |a |: )figure|\bfigure(?= = |[.(),]| import|:)", "matplotlib's plot"),
    ("docs/*", "figure", r"plt\.figure\(", "matplotlib's function"),
    ("docs/tutorials/your_images.md", "picture", r"photographs?", "two photographs that scikit-learn ships"),
]
"""Places where a word is right: (files, rule, what is skipped in a line, why)."""


def list_texts() -> dict[str, list[str]]:
    """Return the lines of every file that is read by people, by its path; of a notebook those of its cells.

    Those of the changelog's table, which has old names beside the new ones, are empty.
    """
    found = [
        *REPOSITORY.glob("lightning_ddpm/**/*.py"),
        *REPOSITORY.glob("benchmarks/**/*.py"),
        *REPOSITORY.glob("configs/**/*.yaml"),
        *(path for kind in ("md", "py", "ipynb", "yaml") for path in REPOSITORY.glob(f"docs/**/*.{kind}")),
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ]
    texts = {}
    for path in sorted(found):
        name = path.relative_to(REPOSITORY).as_posix()
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        if name == "CHANGELOG.md":
            text = re.sub(r"(?m)^\|.*\|$", "", text)
        if not name.startswith("docs/_build/"):
            texts[name] = text.splitlines()
    return texts


TEXTS = list_texts()


def find_words(rule: str, name: str, line: str) -> str | None:
    """Return the words of a line that a rule forbids."""
    for files, allowed_rule, skipped, _ in ALLOWED:
        if allowed_rule == rule and fnmatch(name, files):
            line = re.sub(skipped, "", line)
    found = re.search(RULES[rule].pattern, line)
    return found[0] if found else None


@pytest.mark.parametrize("rule", RULES)
def test_no_word_is_used_that_the_field_does_not_use(rule: str) -> None:
    found = [
        f"{name}:{number}: {words!r}"
        for name, lines in TEXTS.items()
        for number, line in enumerate(lines, 1)
        if (words := find_words(rule, name, line))
    ]
    assert not found, "\n".join([f"write instead: {RULES[rule].instead}", *found])


@pytest.mark.parametrize("allowed", ALLOWED, ids=lambda allowed: f"{allowed[0]} {allowed[1]}")
def test_every_exception_is_needed(allowed: tuple[str, str, str, str]) -> None:
    files, rule, skipped, _ = allowed
    lines = [line for name, lines in TEXTS.items() if fnmatch(name, files) for line in lines]
    assert any(re.search(RULES[rule].pattern, line) and re.search(skipped, line) for line in lines)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("draw", "images are drawn from the model"),
        ("tell", "the network is told the class"),
        ("bound", "the mean of the bound"),
        ("evaluations", "20 evaluations each"),
        ("names", "class_path: lightning_ddpm.diffusion.Variation"),
        ("world", "def reduce(rank, world):"),
        ("say", "as the config says"),
        ("data set", "a data set of images"),
        ("picture", "a folder of pictures"),
    ],
)
def test_a_rule_finds_its_words(rule: str, text: str) -> None:
    assert find_words(rule, "README.md", text)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("draw", "withdraw the drawback of drawers"),
        ("bound", "an upper bound; the upper bound; the variational bound; bound to the device"),
        ("evaluations", "20 network evaluations each; evaluations of the metrics"),
        ("names", "Smaller batches of Noisy images; DataLoader"),
        ("between", "the distance between (a) and (b)"),
        ("world", "world_size"),
        ("data set", "datasets; data; a set of data"),
    ],
)
def test_a_rule_finds_no_other_words(rule: str, text: str) -> None:
    assert find_words(rule, "README.md", text) is None
