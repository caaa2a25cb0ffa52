"""The page: what is on it, and what its buttons do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from dit4sr.data.images import UnreadableImage
from dit4sr.demo.studio import Choices, Studio
from dit4sr.errors import UserError
from dit4sr.restoration.batches import is_out_of_memory
from dit4sr.restoration.sampler_settings import COLOURS

WAITING = 16
"""So many restorations may wait for their turn; one runs at a time."""

FONTS = ("system-ui", "sans-serif")  # the visitor's own: nothing is fetched
MONO = ("ui-monospace", "monospace")

STYLE = """
.gradio-container {max-width: 1280px !important; margin: 0 auto !important}
#title h1 {font-size: 1.5rem; margin-bottom: .1rem}
#title p {color: var(--body-text-color-subdued); margin: 0}
#model p {font-family: var(--font-mono); font-size: .75rem; color: var(--body-text-color-subdued)}
#said p {color: var(--body-text-color-subdued)}
"""


def theme() -> gr.themes.Base:
    """The look, with the visitor's own fonts."""
    return gr.themes.Soft(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONO)


def build_page(studio: Studio, examples: Sequence[Path] = ()) -> gr.Blocks:
    """Put the page together; ``launch`` it.

    Args:
        studio: what restores.
        examples: photos to try.
    """
    sampler, ranges = studio.restorer.sampler, studio.ranges
    with gr.Blocks(title="DiT4SR", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown(
            "# DiT4SR\nReal-world image super-resolution with a diffusion transformer. "
            "Photos stay on the machine that serves this page.",
            elem_id="title",
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                photo = gr.Image(
                    label="Photo",
                    type="filepath",
                    image_mode=None,  # the file as it is: restoration reads it by itself
                    sources=["upload", "clipboard"],
                    height=280,
                    elem_id="photo",
                )
                button = gr.Button("Restore", variant="primary", size="lg", elem_id="restore")
                prompt = gr.Textbox(
                    studio.prompt,
                    label="Prompt",
                    placeholder="What the photo shows; may be left empty",
                    lines=2,
                    elem_id="prompt",
                )
                describe = gr.Button("Describe the photo", size="sm", visible=studio.captioner is not None)
                with gr.Group():
                    with gr.Row():
                        upscale = gr.Slider(
                            *ranges["upscale"], studio.upscale, step=0.25, label="Upscale", elem_id="upscale"
                        )
                        seed = gr.Number(studio.seed, precision=0, label="Seed", elem_id="seed", min_width=100)
                    with gr.Row():
                        steps = gr.Slider(*ranges["steps"], sampler.steps, step=1, label="Steps", elem_id="steps")
                        guidance = gr.Slider(
                            *ranges["guidance"], sampler.guidance, step=0.1, label="Guidance", elem_id="guidance"
                        )
                    colour = gr.Radio(
                        list(COLOURS), value=sampler.colour, label="Align colours to the photo", elem_id="colour"
                    )
                with gr.Accordion("More", open=False):
                    negative = gr.Textbox(sampler.negative_prompt, label="Negative prompt", elem_id="negative")
            with gr.Column(scale=3, min_width=320):
                slider = gr.ImageSlider(
                    label="Before and after",
                    type="filepath",
                    format="png",
                    interactive=False,
                    max_height=640,
                    height=560,
                    elem_id="result",
                )
                said = gr.Markdown("Upload a photo and press Restore.", elem_id="said")
                download = gr.DownloadButton("Download the result", visible=False, elem_id="download")
                if examples:
                    gr.Examples([[str(path)] for path in examples], [photo], label="Photos to try")
        gr.Markdown(studio.described, elem_id="model")

        for field in (upscale, steps, guidance):
            as_it_comes(field, lambda value: value)  # a field can be emptied, which choices_of knows
        # What is no image, or too large a one, is for restoration to say.
        as_it_comes(photo, lambda file: None if file is None else file.path)
        chosen = [photo, prompt, negative, steps, guidance, colour, upscale, seed]

        def restore(
            photo: str | None,
            prompt: str | None,
            negative_prompt: str | None,
            steps: float | None,
            guidance: float | None,
            colour: str | None,
            upscale: float | None,
            seed: float | None,
            progress: gr.Progress = gr.Progress(),  # noqa: B008 (how Gradio is told to give one)
        ) -> tuple[Any, str, Any]:
            def tell(done: int, of: int) -> None:
                progress((done, of), desc="Sampling", unit="steps")

            with told_on_the_page():
                choices = choices_of(prompt, negative_prompt, steps, guidance, colour, upscale, seed, ranges)
                restored = studio.restore(uploaded(photo), choices, tell)
            download = gr.DownloadButton(value=str(restored.after), visible=True)
            return (str(restored.before), str(restored.after)), restored.said, download

        def caption(path: str | None) -> str:
            with told_on_the_page():
                return studio.describe(uploaded(path))

        # One computation at a time, whoever asks; the page itself answers everybody meanwhile.
        one: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "device"}
        button.click(restore, chosen, [slider, said, download], api_name="restore", show_progress_on=slider, **one)
        describe.click(caption, [photo], [prompt], api_name="describe", **one)
    page.queue(max_size=WAITING, api_open=True)
    return page


def as_it_comes(component: Any, preprocess: Callable[[Any], Any]) -> None:
    """Take a field's value as the browser sends it, in place of Gradio's own checks, which end in a bare "Error".

    On the component itself: Gradio writes a stub file into the source tree for each subclass of one.
    """
    component.preprocess = preprocess


def uploaded(path: str | None) -> Path:
    """The uploaded file.

    Raises:
        UserError: there is none.
    """
    if path is None:
        raise UserError("upload a photo first")
    return Path(path)


def choices_of(
    prompt: str | None,
    negative_prompt: str | None,
    steps: float | None,
    guidance: float | None,
    colour: str | None,
    upscale: float | None,
    seed: float | None,
    ranges: Mapping[str, tuple[float, float]],
) -> Choices:
    """What the page's fields hold; a field may have been emptied.

    Args:
        prompt … seed: the fields.
        ranges: least and most of some of them.

    Raises:
        UserError: for one that is empty and must not be, or holds no sensible number.
    """
    fields = {"steps": steps, "guidance": guidance, "upscale": upscale, "seed": seed}
    numbers: dict[str, float] = {}
    for name, value in fields.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{name} is empty or no number: fill it in")
        least, most = ranges.get(name, (-math.inf, math.inf))
        if not least <= value <= most:
            raise UserError(f"{name} is {value:g}: choose from {least:g} to {most:g}")
        numbers[name] = value
    return Choices(
        prompt=prompt or "",
        negative_prompt=negative_prompt or "",
        steps=int(numbers["steps"]),
        guidance=float(numbers["guidance"]),
        colour=str(colour),
        upscale=float(numbers["upscale"]),
        seed=int(numbers["seed"]),
    )


@contextmanager
def told_on_the_page() -> Iterator[None]:
    """Show what the visitor can mend as a message on the page, without a traceback anywhere."""
    try:
        yield
    except (UserError, UnreadableImage) as error:
        raise gr.Error(str(error), print_exception=False) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise gr.Error("not enough memory: choose a lower upscale or a smaller photo", print_exception=False) from error
