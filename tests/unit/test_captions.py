"""Where a photo's prompt comes from: files matched by name, a fixed text, or none; and the filter of optics."""

import unicodedata

import numpy as np
import pytest
from tiny_checkpoint import compose_verb

from dit4sr.errors import UserError
from dit4sr.prompts import PromptSettings, build_captioner
from dit4sr.prompts.captions import Captions, Photo, described_file
from dit4sr.prompts.optics import drop_optics, sentences

CAPTIONS = PromptSettings()  # fixes no prompt


def write(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        path = folder / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def unreadable(path):
    raise AssertionError(f"{path} need not be read")


def prompts_of(captions, folder, *names):
    photos = [Photo(folder / name, name) for name in names]
    captions.prepare(photos, unreadable)
    return [captions.prompt_for(photo.path, photo.name) for photo in photos]


def test_captions_beside_the_photos(tmp_path):
    write(tmp_path, a="  a red cup\n", sub__b="ein Schloß\nam See\n")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfa cat")
    captions = Captions(CAPTIONS, {"name": "beside"})
    assert captions.from_files_beside
    assert prompts_of(captions, tmp_path, "a.jpg", "sub/b.png", "c.png", "bom.webp") == [
        "a red cup", "ein Schloß am See", "", "a cat",
    ]  # fmt: skip
    write(tmp_path, d="A cup. The background is blurry.")
    assert prompts_of(Captions(CAPTIONS, {"name": "beside", "drop_optics": True}), tmp_path, "d.png") == ["A cup."]


def folder_of(path, **more):
    return Captions(CAPTIONS, {"name": "folder", "path": str(path), **more})


def test_a_folder_is_matched_by_name_never_by_order(tmp_path):
    texts = write(tmp_path / "texts", b="of b", a="of a", **{"img.v2": "of img.v2"}, z="unused")
    (texts / ".hidden.txt").write_text("no")
    (texts / "notes.md").write_text("no")
    assert prompts_of(folder_of(texts), tmp_path, "a.jpg", "b.png", "img.v2.png") == ["of a", "of b", "of img.v2"]
    # a photo in a folder has the caption in the same folder, or the only one with its stem
    nested = write(tmp_path / "nested", x__a="of x/a", y__a="of y/a", c="of c")
    assert prompts_of(folder_of(nested), tmp_path, "y/a.png", "x/a.png", "deep/c.png") == ["of y/a", "of x/a", "of c"]


def test_accents_match_however_a_file_system_writes_them(tmp_path):
    decomposed, composed = (unicodedata.normalize(form, "café") for form in ("NFD", "NFC"))
    texts = write(tmp_path / "texts", **{decomposed: "a café"})
    assert prompts_of(folder_of(texts), tmp_path, f"{composed}.png") == ["a café"]


def test_missing_captions_are_listed(tmp_path):
    texts = write(tmp_path / "texts", a="of a")
    with pytest.raises(UserError, match=r"no caption for 2 of 3 photos \(b\.png, c\.png\)"):
        prompts_of(folder_of(texts), tmp_path, "a.png", "b.png", "c.png")
    with pytest.raises(UserError, match=r"for 7 of 7 photos \(p0\.png, .*p4\.png and 2 more\)"):
        prompts_of(folder_of(texts), tmp_path, *(f"p{n}.png" for n in range(7)))
    assert prompts_of(folder_of(texts, allow_missing=True), tmp_path, "a.png", "b.png") == ["of a", ""]


def test_ambiguous_captions_are_refused(tmp_path):
    twice = write(tmp_path / "twice", x__a="one", y__a="another")
    with pytest.raises(UserError, match=r"x/a\.txt and .*y/a\.txt could both caption a\.png"):
        prompts_of(folder_of(twice), tmp_path, "a.png")
    (write(tmp_path / "cases", a="one") / "a.TXT").write_text("another")
    with pytest.raises(UserError, match="caption the same photo"):
        folder_of(tmp_path / "cases")
    shared = write(tmp_path / "shared", a="one")
    with pytest.raises(UserError, match=r"x/a\.png and y/a\.png would share the caption"):
        prompts_of(folder_of(shared), tmp_path, "x/a.png", "y/a.png")
    for path, says in ((tmp_path / "none", "is no folder"), (write(tmp_path / "empty"), r"holds no \.txt file")):
        with pytest.raises(UserError, match=says):
            folder_of(path)
    with pytest.raises(UserError, match="needs captioner.path"):
        Captions(CAPTIONS, {"name": "folder", "path": None})


def test_fixed_and_null_prompts(tmp_path):
    write(tmp_path, a="not used")
    for captioner, settings, wanted in [
        ({"name": "none"}, CAPTIONS, ""),
        (None, CAPTIONS, ""),  # ~captioner
        ({"name": "fixed", "prompt": "a cup"}, CAPTIONS, "a cup"),
        ({"name": "beside"}, PromptSettings(fixed="a photo"), "a photo"),
        ({"name": "beside"}, PromptSettings.from_config({"encoding": "null"}), ""),
    ]:
        assert prompts_of(Captions(settings, captioner), tmp_path, "a.png", "b.png") == [wanted] * 2
    with pytest.raises(UserError, match="captioner=llava would never be asked"):
        Captions(PromptSettings(fixed=""), {"name": "llava"})
    with pytest.raises(UserError, match="choose one of beside, folder, llava, fixed, none"):
        Captions(CAPTIONS, {"name": "blip"})
    with pytest.raises(UserError, match=r'captioner=fixed needs captioner\.prompt="…"'):
        Captions(CAPTIONS, {"name": "fixed", "prompt": None})


def test_captioners_that_look_at_no_model(tmp_path):
    images = [np.zeros((4, 4, 3), np.uint8)] * 2
    assert build_captioner({"name": "none"}).caption(images) == ["", ""]
    assert build_captioner({"name": "fixed", "prompt": "a cup"}).caption(images) == ["a cup", "a cup"]
    with pytest.raises(UserError, match="captioner=folder reads text files"):
        build_captioner({"name": "folder", "path": str(tmp_path)})


def test_which_image_is_described(tmp_path):
    lq, hq = tmp_path / "lq.png", tmp_path / "hq.png"
    assert described_file("lq", lq=lq, hq=hq) == lq
    assert described_file("hq", lq=lq, hq=hq) == hq
    with pytest.raises(UserError, match=r"lq\.png has no HQ image"):
        described_file("hq", lq=lq, hq=None)


@pytest.mark.parametrize("verb", ["train", "restore", "evaluate"])
def test_the_configs_say_what_captions_describe(verb):
    for override in ((), ("prompt=cached",), ("prompt=none",), ("~prompt",)):
        settings = PromptSettings.from_config(compose_verb(verb, *override, "out=unused").get("prompt"))
        assert settings.describes == ("hq" if verb == "train" else "lq")


@pytest.mark.parametrize("name", ["beside", "folder", "llava", "fixed", "none"])
def test_every_captioner_composes(name):
    config = compose_verb("restore", f"captioner={name}", "out=unused")
    assert config.captioner.name == name
    assert compose_verb("evaluate", f"captioner={name}", "out=unused").captioner == config.captioner


OPTICAL = [
    "The focus is on the cup.", "It is out of focus.", "A focused look.", "The camera is focusing on her.",
    "An unfocused background.", "The focal point is a tree.", "A dog stands prominently in front.",
    "The most prominent object is a car.", "It is a close-up of a leaf.", "A close up shot.", "CLOSE-UPS of bees.",
    "The photo is black and white.", "A black-and-white image.", "The image is blurry.", "Blurred lights.",
    "There is motion blur.", "The blurriness hides it.", "It has a shallow depth of field.", "A dense forest.",
    "The trees stand densely.", "The house is located on a hill.", "Two cups are positioned on a table.",
    "The position of the sun is low.", "They try to locate it.",
]  # fmt: skip
PLAIN = [
    "A red cup stands on a table.", "The composition is balanced.", "A condensed milk tin.", "A man opposes the law.",
    "A black cat and a white dog.", "The shop is close. Upstairs is a flat.", "Two bluish flowers.",
    "A local shop in the street.", "He wears bifocals.", "A deposit box.",
]  # fmt: skip


@pytest.mark.parametrize("sentence", OPTICAL)
def test_sentences_about_optics_are_dropped(sentence):
    assert drop_optics(sentence) == ""
    assert drop_optics(f"A cup. {sentence} A plate.") == "A cup. A plate."


@pytest.mark.parametrize("sentence", PLAIN)
def test_other_sentences_stay(sentence):
    assert drop_optics(f"A cup. {sentence} A plate.") == f"A cup. {sentence} A plate."


def test_sentences():
    text = (
        'Dr. Who says "No!" to 3.5 cups, e.g. red ones. Is it?  Yes!\nA new line 1. A list… and 城は赤い。猫もいる。End'
    )
    assert sentences(text) == [
        'Dr. Who says "No!"', "to 3.5 cups, e.g. red ones.", "Is it?", "Yes!", "A new line 1.", "A list…",
        "and 城は赤い。", "猫もいる。", "End",
    ]  # fmt: skip
    assert sentences("1. A cup. 2. A plate.") == ["1. A cup.", "2. A plate."]
    assert sentences("") == sentences(" \n ") == []
    assert drop_optics("no final stop but a blurry one") == ""
