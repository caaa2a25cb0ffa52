"""The user study as a volunteer meets it: the real server, and a real headless Chromium, from consent to results."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
from chromium import PATIENCE

chromium.need("fastapi", "playwright")

from user_study_folders import TOKEN, create, serving  # noqa: E402

from dit4sr.studies.user_study import main  # noqa: E402

DESKTOP = {"width": 1280, "height": 800}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create(tmp_path_factory.mktemp("study"), "length=3", "checks=1")


@pytest.fixture(scope="module")
def address(study: Path) -> Iterator[str]:
    with serving(study) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium.launched() as browser:
        yield browser


def open_page(browser: Any, address: str, **options: Any) -> Any:
    """A page of a new volunteer; what its console complains of is kept in ``page.complaints``."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(PATIENCE)
    page.complaints = []
    page.on("console", lambda message: message.type == "error" and page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(address)
    return page


def begin(page: Any) -> None:
    page.check("#agree")
    with page.expect_navigation():  # until all is loaded, scripts and pictures
        page.click("#begin")
    page.wait_for_selector("#answers")


def transforms(page: Any) -> list[str]:
    """Where each picture is, and how large."""
    return page.evaluate("[...document.querySelectorAll('.view img')].map(i => i.style.transform)")


def chosen(page: Any) -> dict[str, str]:
    return page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('input:checked')].map(i => [i.name, i.value]))"
    )


def pictures_shown(page: Any) -> bool:
    return page.evaluate("[...document.querySelectorAll('.view img')].every(i => i.complete && i.naturalWidth > 0)")


def test_from_the_first_page_to_the_result(browser: Any, address: str, study: Path) -> None:
    page = open_page(browser, address, viewport=DESKTOP)
    assert "Taking part is voluntary" in page.inner_text("main")
    page.click("#begin")  # without consent the browser says what is missing, and nothing is sent
    assert page.url == f"{address}/" and page.evaluate("document.querySelector('#agree').validity.valueMissing")
    begin(page)
    assert "Pair 1 of 4" in page.inner_text("header") and pictures_shown(page)
    legends = page.locator("legend").all_inner_texts()
    assert legends == [
        "Which restoration result has higher image realism?",
        "Which restoration result has better fidelity to the original image content?",
    ]
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")  # judged without scrolling
    # By keyboard.
    page.keyboard.press("Enter")  # nothing is answered: nothing is sent
    assert "Pair 1 of 4" in page.inner_text("header")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("2")
    assert chosen(page) == {"realism": "left", "fidelity": "right"}
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    assert chosen(page) == {"realism": "right", "fidelity": "right"}
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Pair 2 of 4")
    # By mouse.
    page.check("#realism input[value=left]", force=True)
    page.check("#fidelity input[value=left]", force=True)
    page.click("#next")
    page.wait_for_selector("text=Pair 3 of 4")
    # Away and back: the same place; the page before cannot change what was answered.
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector("text=Pair 3 of 4")
    for _ in range(2):
        page.keyboard.press("1")
        page.keyboard.press("1")
        with page.expect_navigation():
            page.keyboard.press("Enter")
    page.wait_for_selector("text=Thank you")
    code = page.inner_text("#code")
    assert page.complaints == []

    # The results, with the token.
    page.goto(f"{address}/results")
    page.fill("#token", TOKEN)
    page.click("#enter")
    page.wait_for_selector("#counts")
    with page.expect_download() as download:
        page.click("#csv")
    rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    mine = [(row["realism_side"], row["fidelity_side"]) for row in rows if row["volunteer"] == code]
    assert mine == [("right", "right"), ("left", "left"), ("left", "left"), ("left", "left")]
    assert page.complaints == []
    assert main(["results", f"out={study}", "allowed_failures=4"]) == 0
    assert "| all of them | fidelity |" in (study / "table.md").read_text()
    page.context.close()


def test_zoom_is_in_step(browser: Any, address: str) -> None:
    page = open_page(browser, address, viewport=DESKTOP)
    begin(page)
    still = transforms(page)
    assert len(set(still)) == 1 and "scale(1)" in still[0]
    box = page.locator("figure.left .view").bounding_box()
    at = box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.25
    page.mouse.move(*at)
    page.mouse.wheel(0, -400)
    page.wait_for_function("document.querySelector('#level').value != '1×'")
    zoomed = transforms(page)
    assert len(set(zoomed)) == 1 and zoomed != still
    # What was under the pointer stays there, in all three pictures.
    corner, scale = page.evaluate(
        """() => { const v = document.querySelector('figure.right .view').getBoundingClientRect();
        const i = document.querySelector('figure.right img').getBoundingClientRect();
        return [[(i.left - v.left) / v.width, (i.top - v.top) / v.height], i.width / v.width]; }"""
    )
    assert corner == pytest.approx([0.75 * (1 - scale), 0.25 * (1 - scale)], abs=0.01) and scale > 1.2
    page.mouse.down()
    page.mouse.move(at[0] - 25, at[1] + 10, steps=4)
    page.mouse.up()
    dragged = transforms(page)
    assert len(set(dragged)) == 1 and dragged != zoomed
    page.keyboard.press("0")
    assert transforms(page) == still
    page.mouse.click(*at)  # a click enlarges, another takes it back
    assert "scale(4)" in transforms(page)[0]
    page.mouse.click(*at)
    assert transforms(page) == still
    page.click("#in")
    assert page.inner_text("#level") == "1.5×"
    assert page.complaints == [] and page.url.endswith("/pair")
    page.context.close()


def test_on_a_phone(browser: Any, address: str) -> None:
    page = open_page(browser, address, **PHONE)
    begin(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = {slot: page.locator(f"figure.{slot} .view").bounding_box() for slot in ("lq", "left", "right")}
    assert boxes["lq"]["y"] < boxes["left"]["y"] == boxes["right"]["y"]
    assert boxes["left"]["x"] < boxes["right"]["x"]
    heights = page.evaluate("[...document.querySelectorAll('.choices label, #next')].map(b => b.offsetHeight)")
    assert min(heights) >= 44  # a finger's width
    # Two fingers, as the browser's own input: all pictures follow.
    session = page.context.new_cdp_session(page)
    box = boxes["left"]
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def touch(kind: str, *points: tuple[float, float]) -> None:
        given = [{"x": px, "y": py, "id": i} for i, (px, py) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": given})

    touch("touchStart", (x - 10, y), (x + 10, y))
    for spread in (20, 30, 40):
        touch("touchMove", (x - spread, y), (x + spread, y))
    touch("touchEnd")
    page.wait_for_function("document.querySelector('#level').value != '1×'")
    assert len(set(transforms(page))) == 1
    for name, side in (("realism", "right"), ("fidelity", "left")):
        page.locator(f"#{name} label", has_text=f"{side.title()} image").tap()
    assert chosen(page) == {"realism": "right", "fidelity": "left"}
    page.locator("#next").tap()
    page.wait_for_selector("text=Pair 2 of 4")
    assert page.complaints == []
    page.context.close()


def test_without_scripts(browser: Any, address: str) -> None:
    page = open_page(browser, address, viewport=DESKTOP, java_script_enabled=False)
    begin(page)
    for number in range(1, 5):
        page.wait_for_selector(f"text=Pair {number} of 4")
        assert page.locator("#zoom").is_hidden()
        page.locator("#realism label").first.click()
        page.locator("#fidelity label").last.click()
        page.click("#next")
    page.wait_for_selector("text=Thank you")
    page.context.close()
