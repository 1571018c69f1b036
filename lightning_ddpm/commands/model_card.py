"""The model card of a release: what it was trained on and how, what was measured, and how to load it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_ddpm.commands.list_options import as_list
from lightning_ddpm.interop import hub
from lightning_ddpm.utils.yaml_text import dump_yaml

UNNAMED = "USER/MODEL"
"""The model's name on the Hub in a card that was not pushed; ``push`` replaces it."""


class ModelFacts(NamedTuple):
    """What a model card states.

    Attributes:
        name: title of the card.
        license: identifier of the licence; ``None`` where none was chosen.
        parts: name and description of each part of the model, such as the network and the schedule.
        config: the run's config; empty where there is none.
        modules: modules of other packages that its classes are in.
        exports: whether `export` can write the model as a pipeline of diffusers, without further options.
        samples: how the images were generated; ``None`` without images.
        classes: names of the classes; empty for an unconditional model.
        digest: SHA-256 of the checkpoint that the release was made from.
        step: its number of optimizer steps.
        given: options of ``sample`` that give what it is conditioned on besides classes.
    """

    name: str
    license: str | None
    parts: Mapping[str, str]
    config: Mapping[str, Any]
    modules: Sequence[str]
    exports: bool
    samples: str | None
    classes: Sequence[str]
    digest: str
    step: int
    given: Sequence[str]


def write_card(facts: ModelFacts, results: Sequence[Mapping[str, Any]]) -> str:
    """Return the card as Markdown, with the front matter that the Hub reads.

    Args:
        facts: the model.
        results: what ``evaluate`` wrote about it.
    """
    front: dict[str, Any] = {"license": facts.license} if facts.license else {}
    front |= {
        "library_name": "lightning-ddpm",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusion", "ddpm", "pytorch-lightning"],
    }
    sections = [
        f"---\n{dump_yaml(front)}---\n\n# {facts.name}",
        "A denoising diffusion model of images, trained by lightning_ddpm on PyTorch Lightning.",
        f"![Samples]({hub.SAMPLES})\n\n{facts.samples}." if facts.samples else "",
        f"## Model\n\n{_make_table(('part', 'setting'), facts.parts.items())}",
        f"## Data and recipe\n\n{_describe_training(facts.config)}",
        f"## Metrics\n\n{_describe_results(results)}",
        f"## Load it\n\n{_describe_loading(facts)}",
        "## Intended use and limits\n\n"
        "It generates images like those that it was trained on, for research and teaching. "
        "It repeats what those images hold, their errors and their bias included, and may repeat single ones of them. "
        "Do not take its images for records of anything that exists.",
        f"## Licence\n\n{facts.license or 'None was stated: ask whoever published it before you use it'}. "
        "The terms of the training data are another matter.",
        f"Made from the checkpoint with SHA-256 `{facts.digest}`, after step {facts.step}.",
    ]
    return "\n\n".join(each for each in sections if each) + "\n"


def _make_table(header: Sequence[str], rows: Any) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def _describe_training(config: Mapping[str, Any]) -> str:
    """Return the data and the recipe of a run's config, as a table."""
    if not config:
        return "The run's config was not at hand when this release was made."
    trainer, data, model = (config.get(name) or {} for name in ("trainer", "data", "model"))
    arguments, source = model.get("init_args") or {}, data.get("source") or {}
    callbacks = {str(each.get("class_path", "")).rpartition(".")[2]: each for each in as_list(trainer.get("callbacks"))}
    rows = {
        "dataset": _describe_class(source),
        "steps": trainer.get("max_steps"),
        "batch size": f"{data.get('batch_size')} on each device, devices: {trainer.get('devices')}",
        "flips": data.get("flip"),
        "optimizer": _describe_class(arguments.get("optimizer")),
        "learning rate schedule": _describe_class(arguments.get("lr_scheduler")),
        "EMA": _describe_class(callbacks.get("EMA")),
        "precision": trainer.get("precision"),
        "seed": config.get("seed_everything"),
    }
    table = _make_table(
        ("setting", "value"), [(name, value) for name, value in rows.items() if value not in (None, "")]
    )
    return (
        f"{table}\n\n`{hub.CONFIG}` is the complete config: `lightning-ddpm fit --config {hub.CONFIG}` trains it again."
    )


def _describe_class(named: Any) -> str:
    """Return a class of a config with its arguments, as in ``Adam(lr=0.001)``; one of another package by its path."""
    if not isinstance(named, Mapping) or "class_path" not in named:
        return ""
    arguments = {name: value for name, value in (named.get("init_args") or {}).items() if value is not None}
    plain = (f"{name}={value}" for name, value in arguments.items() if isinstance(value, str | int | float | list))
    path = str(named["class_path"])
    name = path.rpartition(".")[2] if path.startswith(("lightning_ddpm.", "torch.")) else path
    return f"`{name}({', '.join(plain)})`"


def _describe_results(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of the metrics, and below it where each of them comes from."""
    if not results:
        return "None are stated."
    rows, notes = [], []
    for number, result in enumerate(results, 1):
        for name, each in result["metrics"].items():
            error = next((f"± {each[key]:.2g}" for key in ("std", "standard_error") if each.get(key) is not None), "")
            value = "not finite" if each["value"] is None else f"{each['value']:.5g}"
            rows.append((name, value, error, each.get("n", result["n"]), each["protocol"], number))
        images, reference = result["images"], result.get("reference") or {}
        kept = ("weights", "sampler", "clipping", "nfe", "seed", "classes", "guidance")
        settings = ", ".join(f"{name} {images[name]}" for name in kept if name in images)
        compared = f"compared with {reference['n']} images" if reference.get("n") else "without a reference"
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        notes.append(f"{number}. {settings}; {compared}; {result['devices']}; {result['finished']}; {versions}.")
    header = ("metric", "value", "error", "images", "protocol", "measurement")
    errors = "The error, where a metric has one, is the standard deviation over subsets or splits, or that of a mean."
    return f"{_make_table(header, rows)}\n\n{errors}\n\n" + "\n".join(notes)


def _describe_loading(facts: ModelFacts) -> str:
    """Return the commands that load the model here and in diffusers."""
    trust = f"LIGHTNING_DDPM_TRUST={','.join(facts.modules)} " if facts.modules else ""
    own = ", ".join(f"`{each}`" for each in facts.modules)
    note = f" Its classes are in {own}, which you need, too." if own else ""
    label = f" --labels {','.join(map(str, range(len(facts.classes))))}" if 0 < len(facts.classes) <= 10 else ""
    given = "".join(f" {each}" for each in facts.given)
    address = f"{hub.SCHEME}{UNNAMED}"
    lines = [
        f"{trust}lightning-ddpm sample --ckpt {address} --n 64 --out samples{label}{given}",
    ]
    exports = "diffusers has no pipeline of this kind."
    if facts.exports:
        lines.append(f"lightning-ddpm export --ckpt {address} --format diffusers --out FOLDER")
        exports = "The last line writes a folder for diffusers: `DiffusionPipeline.from_pretrained('FOLDER')`."
    commands = "\n".join(lines)
    return (
        "Where lightning_ddpm and huggingface_hub are installed:\n\n"
        f"```bash\n{commands}\n```\n\nIn Python it is `lightning_ddpm.load('{address}')`.{note} `{hub.WEIGHTS}` holds "
        f"the averaged (EMA) weights alone, and `{hub.CHECKPOINT}` the same with what builds the model; reading "
        f"either runs no code. {exports}"
    )
