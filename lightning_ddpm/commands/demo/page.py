"""The page, in gradio: controls, three tabs, and what connects them with a :class:`Studio`."""

import random
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr
from fastapi import FastAPI
from torch import OutOfMemoryError

from lightning_ddpm.commands.demo import components
from lightning_ddpm.commands.demo.settings import MAX_GUIDANCE, MAX_SEED, OWN, Settings
from lightning_ddpm.commands.demo.studio import MAX_PASSES, Frame, Studio
from lightning_ddpm.commands.restore_tasks import PASSES
from lightning_ddpm.utils.console import count
from lightning_ddpm.utils.errors import UserError

ANY = -1
"""Value of the control of classes for the frequencies of the training data."""
WAITING = 32
"""Largest number of requests that wait; further ones are refused."""
SHOWN = 16
"""Number of images where a visitor asks for no other."""
AT_ONCE: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
"""Settings of events that need no device."""
IN_TURN: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 1, "api_visibility": "private"}
"""Settings of events that compute: one after another, whoever sent them."""
CLICK = "element.addEventListener('click', ({target}) => target.matches('img') && trigger('click', {url: target.src}))"


def build_app(studio: Studio, name: str, raw: bool, more: Sequence[str]) -> FastAPI:
    """Return the page as a web application.

    Args:
        studio: generates the images.
        name: of the checkpoint, for the heading.
        raw: whether its raw weights are used.
        more: the options of ``sample`` with which that generates the same images.
    """
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # nothing is downloaded
    page = Page(studio, name, raw, more).blocks
    page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    off: dict[str, Any] = {"run_history": False, "enable_monitoring": False, "mcp_server": False, "ssr_mode": False}
    app = FastAPI(openapi_url=None)
    return gr.mount_gradio_app(
        app, page, "/", theme=theme, css=components.STYLE, footer_links=[], max_file_size=0, **off
    )


class Page:
    """The components of the page, and their events.

    Attributes:
        blocks: the page.
        controls: the components whose values make :class:`Settings`, in its order.
    """

    def __init__(self, studio: Studio, name: str, raw: bool, more: Sequence[str]) -> None:
        self.studio, self.model, self.name, self.raw, self.more = studio, studio.model, name, raw, more
        with gr.Blocks(title=name, analytics_enabled=False) as self.blocks:
            gr.HTML(self._describe_model())
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    self.controls = self._add_controls()
                with gr.Column(scale=2, min_width=320), gr.Tabs() as tabs:
                    with gr.Tab("Generate", id="generate"):
                        generated = self._add_run("Generate", studio.generate, [])
                    with gr.Tab("Inpaint", id="inpaint"):
                        editor = self._add_inpainting()
                    with gr.Tab("Interpolate", id="interpolate"):
                        second = gr.Number(1, label="Second seed", precision=0, minimum=0, maximum=MAX_SEED)
                        self._add_run("Interpolate", studio.interpolate, [second])
            if editor:
                generated.click(self._take_image, None, [editor, tabs], **AT_ONCE)

    def _describe_model(self) -> str:
        channels, height, width = self.model.image_shape
        parameters = sum(each.numel() for each in self.model.network.parameters())
        facts = (
            f"{width}x{height} images of {count(channels, 'channel')}",
            f"{type(self.model.network).__name__} with {parameters:,} parameters",
            f"T = {self.model.schedule.T}",
            f"{'raw' if self.raw else 'EMA'} weights on {self.studio.fabric.device.type}",
        )
        return f"<h1>{escape(self.name)}</h1><p>{escape(', '.join(facts))}</p>"

    def _add_controls(self) -> list[Any]:
        choices, names, T = self.studio.choices, self.model.class_names, self.model.schedule.T
        labels = [("as in the training data", ANY), *((name, index) for index, name in enumerate(names))]
        label = gr.Dropdown(labels, value=ANY, label="Class", visible=bool(names))
        format = self.model.condition_format
        vector = [gr.Number(mean, label=name) for name, mean in zip(format.vector, choices.vector, strict=True)]
        present = [(name, index) for index, name in enumerate(format.multilabel)]
        multilabel = gr.CheckboxGroup(present, value=[], label="Classes", visible=bool(present))
        guidance = gr.Slider(0, MAX_GUIDANCE, 1, step=0.1, label="Guidance scale", visible=choices.is_guidable)
        own = f"The checkpoint's own is {self.model.sampler}."
        sampler = gr.Dropdown([OWN, *choices.samplers], value=OWN, label="Sampler", info=own)
        steps = gr.Slider(1, T, min(50, T), step=1, label="Steps", visible=False)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
        another = gr.Button("Another seed", size="sm")
        n = gr.Slider(1, choices.max_images, min(SHOWN, choices.max_images), step=1, label="Number of images")

        def show_steps(name: str) -> Any:
            return gr.Slider(visible=name != OWN and choices.samplers[name].takes_steps)

        sampler.change(show_steps, sampler, steps, **AT_ONCE)
        another.click(lambda: random.randrange(MAX_SEED), None, seed, **AT_ONCE)
        return [label, guidance, sampler, steps, seed, n, multilabel, *vector]

    def _add_run(self, verb: str, run: Callable[..., Iterator[Frame]], inputs: list[Any]) -> Any:
        """Add a button that starts, one that stops, and what they show; return the component of the images.

        Args:
            verb: what the button does.
            run: yields the frames of settings and of the values of the inputs.
            inputs: components besides the controls.
        """
        with gr.Row():
            start, stop = gr.Button(verb, variant="primary"), gr.Button("Stop")
        progress, images, strip = gr.HTML(), gr.HTML(js_on_load=CLICK), gr.HTML()

        def show(*values: Any) -> Iterator[tuple[Any, Any, Any]]:
            settings = _read_settings(*values[: len(self.controls)])
            try:
                for frame in run(settings, *values[len(self.controls) :]):
                    is_sample = run == self.studio.generate and frame.is_last
                    command = self.studio.choices.write_command(settings, self.name, self.more) if is_sample else ""
                    shown = components.show_progress(frame, command)
                    yield shown, components.show_images(frame), components.show_strip(frame)
            except UserError as error:
                raise gr.Error(escape(str(error)), print_exception=False) from error
            except OutOfMemoryError as error:
                fix = "the device has too little memory; take fewer images"
                raise gr.Error(fix, print_exception=False) from error

        running = start.click(show, [*self.controls, *inputs], [progress, images, strip], **IN_TURN)
        stop.click(None, None, None, cancels=[running], **AT_ONCE)
        return images

    def _add_inpainting(self) -> Any:
        """Add the tab of inpainting; return the editor, ``None`` where images cannot be inpainted."""
        if self.studio.why_no_inpainting:
            gr.HTML(f"<p>{escape(self.studio.why_no_inpainting)}</p>")
            return None
        shape = self.model.image_shape
        gr.HTML("<p>Click an image of the first tab, or open one, and paint over what is to be generated anew.</p>")
        editor = gr.HTML(
            html_template=components.show_editor(shape), js_on_load=components.EDITOR_SCRIPT, apply_default_css=False
        )
        passes = gr.Slider(1, MAX_PASSES, PASSES, step=1, label="Passes: number of times each step is made")

        def inpaint(settings: Settings, edited: Any, passes: Any) -> Iterator[Frame]:
            yield from self.studio.inpaint(settings, *components.read_editor(edited, shape), passes)

        self._add_run("Inpaint", inpaint, [editor, passes])
        return editor

    def _take_image(self, event: gr.EventData) -> tuple[Any, Any]:
        """Put an image that was clicked into the editor, and show it."""
        _, height, width = self.model.image_shape
        return {"image": getattr(event, "url", ""), "mask": "0" * (height * width)}, gr.Tabs(selected="inpaint")


def _read_settings(
    label: Any, guidance: Any, sampler: Any, steps: Any, seed: Any, n: Any, multilabel: Any, *vector: Any
) -> Settings:
    return Settings(None if label == ANY else label, guidance, sampler, steps, seed, n, vector, multilabel or ())
