"""Captions by a tiny random LLaVA saved as transformers saves it: from disk alone, in batches, each image once."""

import json

import numpy as np
import pytest
import torch
from tiny_checkpoint import compose_verb, picture
from tiny_llava import write_tiny_llava, write_tiny_llava_next

from dit4sr.errors import UserError
from dit4sr.prompts import PromptSettings, build_captioner
from dit4sr.prompts.captions import Captions, Photo
from dit4sr.prompts.llava import LlavaCaptioner
from dit4sr.prompts.optics import OPTICS, drop_optics

SIZES = [(16, 16), (40, 24), (16, 48), (33, 17), (64, 64), (128, 128), (9, 100)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture
def images():
    return [picture(*size, seed) for seed, size in enumerate(SIZES)]


def settings_of(folder, *overrides):
    config = compose_verb("restore", "captioner=llava", f"captioner.model={folder}", "out=unused", *overrides)
    return {**config.captioner}


def captioner_of(folder, cache=None, **changes):
    settings = settings_of(folder, "captioner.max_new_tokens=12")
    return build_captioner({**settings, "cache": cache, "drop_optics": False, **changes})


def test_a_batch_gives_what_each_image_gives_alone(folder, images):
    one_by_one = captioner_of(folder, batch_size=1)
    alone = [one_by_one.caption([image])[0] for image in images]
    assert len(set(alone)) > 3  # the images decide
    assert all(3 < len(text.split()) <= 12 and "USER" not in text and "<" not in text for text in alone)
    assert captioner_of(folder, batch_size=3).caption(images) == alone
    assert captioner_of(folder, batch_size=8).caption(images[::-1]) == alone[::-1]


def test_questions_of_different_lengths_share_a_batch(folder, images, tmp_path):
    """Another kind of model, whose image tokens follow from the image's size: the shorter are padded on the left."""
    captioner = captioner_of(write_tiny_llava_next(tmp_path / "next", folder), batch_size=8)
    together = captioner.caption(images)
    assert len(set(together)) > 3
    assert [captioner.caption([image])[0] for image in images] == together


def test_the_answer_is_transformers_own(folder, images):
    """The same by hand: the chat template's text, one image, the likeliest token each time, the new tokens alone."""
    from PIL import Image
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    processor = LlavaProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    text = "USER: <image> What is there ? ASSISTANT:"
    inputs = processor(images=Image.fromarray(images[4]), text=text, return_tensors="pt")
    tokens = inputs["input_ids"]
    with torch.no_grad():
        for _ in range(12):
            mask = torch.ones_like(tokens)
            logits = model(input_ids=tokens, pixel_values=inputs["pixel_values"], attention_mask=mask).logits
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    wanted = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert captioner_of(folder, prompt="What is there ?").caption([images[4]]) == [" ".join(wanted.split())]


def test_the_question_counts_and_a_processor_may_lack_a_template(folder, images, tmp_path):
    asked = captioner_of(folder)
    assert captioner_of(folder, prompt="What is there ?").caption(images) != asked.caption(images)
    assert asked._question() == "USER: <image> Describe this image in detail. ASSISTANT:"
    bare = captioner_of(write_tiny_llava(tmp_path / "bare", chat_template=False))
    assert bare.caption(images[:1])[0]
    assert bare._question() == "USER: <image>\nDescribe this image in detail. ASSISTANT:"


def test_no_image_is_described_twice(folder, images, tmp_path, capsys):
    first = captioner_of(folder, tmp_path)
    captions = first.caption([*images, images[0]])
    assert captions[-1] == captions[0]
    first.release()
    assert not first.loaded
    again = captioner_of(folder, tmp_path)
    assert again.caption(images) == captions[:-1]
    assert not again.loaded
    other = images[0].copy()
    other[0, 0, 0] ^= 255
    again.caption([other])
    assert again.loaded  # another image
    asked = captioner_of(folder, tmp_path, prompt="What is there ?")
    asked.caption(images[:1])
    assert asked.loaded  # another question
    files = sorted(path for path in tmp_path.rglob("*.json") if path.parent.name != "weights")
    assert len(files) == len(SIZES) + 2
    assert json.loads(files[0].read_text())["caption"]
    for path in files:
        path.write_text("{")
    assert captioner_of(folder, tmp_path).caption(images[:1]) == captions[:1]
    assert "cannot be used" in capsys.readouterr().err


def test_the_filter_runs_over_what_is_kept(folder, images, tmp_path):
    raw = captioner_of(folder, tmp_path).caption(images)
    filtered = captioner_of(folder, tmp_path, drop_optics=True)
    assert filtered.caption(images) == [drop_optics(text) for text in raw]
    assert not filtered.loaded
    assert any(OPTICS.search(text) for text in raw)  # the words are in the tiny model's vocabulary


def test_drawn_answers_follow_from_image_and_seed(folder, images):
    def drawn(**changes):
        return captioner_of(folder, temperature=1.5, **changes)

    captions = drawn().caption(images)
    torch.randn(3)
    assert drawn(batch_size=1).caption(images[::-1]) == captions[::-1]
    assert drawn(seed=1).caption(images) != captions


def test_a_model_that_is_not_there_is_one_line(folder, images, tmp_path):
    def message(model, **changes):
        with pytest.raises(UserError) as caught:
            captioner_of(model, **changes).caption(images[:1])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "captioner.model=/nowhere: there is no such folder: download it" in message("/nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in message(tmp_path / "empty")
    assert "hf download" in message("nobody/nothing-of-that-name", local_files_only=True)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80")
    assert "holds no *.safetensors" in message(tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").write_bytes(b"\x00" * 20)
    assert "cannot be loaded as an image-text-to-text model" in message(tmp_path / "pickled")
    for changes in ({"max_new_tokens": 0}, {"batch_size": 0}, {"dtype": "int4"}, {"temperature": -1}):
        assert f"captioner.{next(iter(changes))}=" in message(folder, **changes)


def test_photos_are_described_before_restoring(folder, tmp_path):
    """All at once, in the LQ image; the caption is written beside the result, and the model leaves memory."""
    from PIL import Image

    from dit4sr.data.images import read_image

    names = ["a.png", "sub/b.png", "broken.png"]
    for seed, name in enumerate(names[:2]):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(32, 24, seed)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    captions = Captions(PromptSettings(), settings_of(folder, "captioner.max_new_tokens=6", "captioner.cache=null"))
    photos = [Photo(tmp_path / "in" / name, name, tmp_path / "out" / name) for name in names]
    captions.prepare(photos, read_image)
    assert isinstance(captions.captioner, LlavaCaptioner) and not captions.captioner.loaded
    prompts = [captions.prompt_for(photo.path, photo.name) for photo in photos]
    wanted = captions.captioner.caption([np.asarray(Image.open(photo.path)) for photo in photos[:2]])
    assert prompts == [*wanted, ""]
    assert (tmp_path / "out" / "sub" / "b.txt").read_text().strip() == wanted[1]
    assert not (tmp_path / "out" / "broken.txt").exists()
    assert f"captions of the LQ image by {folder}" == captions.words

    beside = [Photo(tmp_path / "in" / "a.png", "a.png", tmp_path / "in" / "a.png")]
    captions.prepare(beside, read_image)
    assert not (tmp_path / "in" / "a.txt").exists()  # it would pass for the photographer's own
