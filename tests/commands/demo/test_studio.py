"""What the page generates is what the commands generate, for the same settings; wrong settings are refused."""

import shlex
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.command_line import REPOSITORY
from helpers.command_outputs import read_images
from helpers.tiny import tiny_model, tiny_network
from jsonargparse import Namespace
from lightning_fabric import Fabric

from lightning_ddpm.commands.demo.settings import OWN, Settings
from lightning_ddpm.commands.demo.studio import STRIP, Studio
from lightning_ddpm.commands.options import place_model
from lightning_ddpm.data.image_io import save_image
from lightning_ddpm.data.value_range import ValueRange
from lightning_ddpm.diffusion import DDIM, ClassifierFree
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.generate import generate
from lightning_ddpm.networks import MultiLabelEmbedding, VectorEmbedding
from lightning_ddpm.utils.errors import UserError

PRETRAINED = REPOSITORY / "checkpoints" / "pretrained"


def make_studio(model, max_images=64):
    fabric = Fabric(accelerator="cpu", devices=1)
    return Studio(model, fabric, place_model(model, Namespace(compile=False), fabric), max_images)


def ask(**changes):
    return Settings(**({"label": None, "guidance": 1, "sampler": "DDIM", "steps": 4, "seed": 0, "n": 3} | changes))


@pytest.fixture(scope="module")
def studio():
    return make_studio(load(PRETRAINED / "digits_conditional.ckpt"))


def get_last(frames):
    *_, last = frames
    assert last.is_last
    return last


def test_it_generates_the_images_of_the_python_api_and_counts_their_cost(studio):
    frames = [*studio.generate(ask(label=7, guidance=2.5, seed=3, n=5, steps=6))]
    expected = generate(studio.model, 5, 3, sampler=DDIM(6), guidance=ClassifierFree(2.5), labels=[7])
    assert torch.equal(frames[-1].pixels, expected)
    assert [frame.is_last for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert (frames[0].step, frames[0].nfe, frames[0].total) == (0, 0, 12)
    assert (frames[-1].step, frames[-1].nfe) == (6, 12)
    assert [frame.step for frame in frames] == sorted(frame.step for frame in frames)
    assert not torch.equal(frames[0].pixels, expected)
    assert frames[-1].strip.shape == (1 + 6, 1, 8, 8)
    assert torch.equal(frames[-1].strip[-1], expected[0])
    assert torch.equal(frames[-1].strip[0], frames[0].pixels[0])
    longer = get_last(studio.generate(ask(steps=99, n=1)))  # the last step is between two that are kept
    assert longer.strip.shape[0] == STRIP
    assert torch.equal(longer.strip[-1], longer.pixels[0])


@pytest.mark.parametrize(
    "settings",
    [
        ask(sampler=OWN, n=2),
        ask(sampler="Ancestral", label=3, guidance=0.5),
        ask(sampler="DPMSolverPP", seed=2**31 - 1),
    ],
    ids=lambda each: each.sampler,
)
def test_the_command_that_it_shows_writes_the_same_images(settings, studio, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shown = shlex.split(studio.choices.write_command(settings, "digits_conditional", ["--accelerator", "cpu"]))
    assert shown[0] == "lightning-ddpm"
    status, _, err = command(*shown[1:])
    assert status == 0, err
    frame = get_last(studio.generate(settings))
    assert frame.pixels[:, 0].tolist() == read_images(tmp_path / "samples", settings.n).tolist()
    assert len(frame.titles) == (0 if settings.label is not None else settings.n)


def test_the_command_that_it_shows_repeats_numbers_and_batches_exactly(studio):
    shown = studio.choices.write_command(ask(guidance=1.2345678, n=100), "digits_conditional")
    assert " --guidance 1.2345678 " in shown
    assert " --n 100 " in shown
    assert " --batch_size 100 " in shown


def test_it_inpaints_as_restore_does(studio, command, tmp_path):
    image = generate(studio.model, 1, 5, sampler=DDIM(10))[0]
    hole = torch.zeros(1, 8, 8, dtype=torch.bool)
    hole[:, 2:5, 3:] = True
    (tmp_path / "given").mkdir()
    save_image(image, tmp_path / "given" / "0.png")
    save_image(hole.byte() * 255, tmp_path / "mask.png")
    restore = ["restore", "--task", "inpaint", "--mask", tmp_path / "mask.png", "--images", tmp_path / "given"]
    restore += ["--ckpt", PRETRAINED / "digits_conditional.ckpt", "--sampler", "DDIM", "--steps", 5, "--passes", 2]
    status, _, err = command(*restore, "--out", tmp_path / "out", "--accelerator", "cpu")
    assert status == 0, err
    frame = get_last(studio.inpaint(ask(n=1, steps=5), image, hole, 2))
    assert frame.pixels[0].tolist() == read_images(tmp_path / "out", 1).tolist()
    assert frame.nfe == frame.total == 10
    guided = get_last(studio.inpaint(ask(n=1, steps=5, guidance=3), image, hole, 2))
    assert guided.nfe == guided.total == 10, "towards no class"
    assert torch.equal(guided.pixels, frame.pixels)
    several = get_last(studio.inpaint(ask(n=4, steps=5), image, hole, 1)).pixels
    assert all(torch.equal(each[~hole], image[~hole]) for each in several)
    assert len({tuple(each[hole].tolist()) for each in several}) == 4


@pytest.mark.parametrize("sampler", ["DDIM", "Ancestral"])
def test_an_interpolation_runs_from_one_image_to_the_other(sampler, studio):
    between = get_last(studio.interpolate(ask(sampler=sampler, n=5, steps=10), 9)).pixels
    label = int(get_last(studio.generate(ask(n=1))).titles[0])
    first, last = (
        get_last(studio.generate(ask(sampler=sampler, n=1, steps=10, seed=seed, label=label))).pixels for seed in (0, 9)
    )
    assert torch.equal(between[:1], first)
    assert torch.equal(between[-1:], last) == (sampler == "DDIM")  # the others get the first one's noise
    assert not torch.equal(between[2], first[0])
    steps = between.float().diff(dim=0).abs().mean((1, 2, 3))
    assert steps.max() < (between[-1].float() - between[0].float()).abs().mean()


def test_requests_that_overlap_count_their_own_evaluations(studio):
    """A visitor's request may begin while the last step of one that was stopped is still computed."""
    first, second = (studio.generate(ask(seed=seed, steps=6)) for seed in (1, 2))
    assert (next(first).nfe, next(second).nfe) == (0, 0)
    assert (get_last(first).nfe, get_last(second).nfe) == (6, 6)


def test_each_step_may_run_in_another_thread(studio):
    grads = []
    handle = studio.model.network.register_forward_hook(lambda *_: grads.append(torch.is_grad_enabled()))
    frames = studio.generate(ask())
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        first = one.submit(next, frames).result()
        last = other.submit(get_last, frames).result()
    handle.remove()
    assert first.step == 0
    assert grads == [False] * 4
    assert torch.equal(last.pixels, get_last(studio.generate(ask())).pixels)


def test_samplers_of_other_tasks_are_not_offered(studio):
    assert {"DDIM", "Ancestral", "DPMSolverPP", "Heun", "AdaptiveODE"} <= set(studio.choices.samplers)
    assert not {"RePaint", "DDRM", "SDEdit", "PredictorCorrector"} & set(studio.choices.samplers)
    assert not studio.choices.samplers["AdaptiveODE"].takes_steps


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n": 65}, "the number of images must be a whole number from 1 to 64, got 65"),
        ({"n": 0}, "the number of images"),
        ({"n": 1.5}, "the number of images must be a whole number"),
        ({"n": "8"}, "the number of images"),
        ({"n": True}, "the number of images"),
        ({"seed": -1}, "the seed must be a whole number from 0 to 2147483647"),
        ({"seed": float("nan")}, "the seed"),
        ({"seed": 10**400}, "the seed must be a whole number from 0 to 2147483647, got 1000"),
        ({"seed": None}, "the seed"),
        ({"steps": 1001}, "the number of steps must be a whole number from 1 to 1000"),
        ({"label": 10}, "the class must be a whole number from 0 to 9"),
        ({"label": "/etc/passwd"}, "the class"),
        ({"guidance": 21}, "the guidance scale must be a number from 0 to 20"),
        ({"guidance": float("inf")}, "the guidance scale"),
        ({"sampler": "os.system"}, "there is no such sampler; there are AdaptiveODE, Ancestral"),
        ({"sampler": ["DDIM"]}, "there is no such sampler"),
        ({"sampler": "EDMHeun", "steps": 1}, "EDMHeun needs at least 2 steps"),
    ],
)
def test_wrong_settings_are_refused(changes, expected, studio):
    with pytest.raises(UserError, match="^" + expected.replace("(", "\\(")):
        next(studio.generate(ask(**changes)))


def test_a_request_that_has_no_answer_is_refused(studio):
    image, none = torch.zeros(1, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.bool)
    for hole in (none, ~none):
        with pytest.raises(UserError, match="paint over a part of the image"):
            next(studio.inpaint(ask(), image, hole, 1))
    half = torch.arange(64).reshape(1, 8, 8) < 32
    with pytest.raises(UserError, match="passes must be a whole number from 1 to 20"):
        next(studio.inpaint(ask(), image, half, 21))
    with pytest.raises(UserError, match="inpainting needs a sampler that takes single steps, got DPMSolverPP"):
        next(studio.inpaint(ask(sampler="DPMSolverPP"), image, half, 1))
    with pytest.raises(UserError, match="an interpolation has two ends"):
        next(studio.interpolate(ask(n=1), 1))
    with pytest.raises(UserError, match="the second seed"):
        next(studio.interpolate(ask(), -1))


def test_a_model_of_other_values_is_shown_and_not_inpainted():
    other = make_studio(tiny_model(network=tiny_network(), values=ValueRange("float32", -2.0, 3.0)))
    frame = get_last(other.generate(ask(steps=3)))
    assert frame.pixels.dtype == torch.uint8
    assert "inpainting needs images of uint8" in (other.why_no_inpainting or "")
    assert "val/loss" not in (other.why_no_inpainting or ""), "the visitor has no logs"
    assert not other.choices.is_guidable
    with pytest.raises(UserError, match="inpainting needs images of uint8"):
        next(other.inpaint(ask(), torch.zeros(1, 8, 8), torch.ones(1, 8, 8) > 0, 1))
    with pytest.raises(UserError, match="the class must be a whole number"):
        next(other.generate(ask(label=0)))


def test_images_are_conditioned_on_numbers_and_several_classes():
    network = tiny_network(conditions=[VectorEmbedding(["a", "b"]), MultiLabelEmbedding(["x", "y", "z"])])
    own = make_studio(tiny_model(network=network))
    seen = []
    hook = network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    frame = get_last(own.generate(ask(vector=(1.5, -2), multilabel=[2], n=2, steps=4)))
    hook.remove()
    assert seen[0].vector.tolist() == [[1.5, -2.0]] * 2
    assert seen[0].multilabel.tolist() == [[0, 0, 1]] * 2
    other = get_last(own.generate(ask(vector=(9.0, -2), multilabel=[2], n=2, steps=4)))
    assert not torch.equal(frame.pixels, other.pixels)
    assert own.choices.write_command(ask(vector=(1.5, -2)), "x") == ""
    for wrong in ({"vector": (1, "/etc/passwd")}, {"vector": (1, 1), "multilabel": [3]}):
        with pytest.raises(UserError, match="must be a"):
            next(own.generate(ask(**wrong)))
