"""The page of `weakseg annotate` in a real browser."""

import threading

import numpy as np
import pytest

from browser import PROGRAM, Browser
from common.ops.batch import IGNORE
from datamodules.scenes import CLASSES
from drawing_desk import NAME, photos, scribble, served
from experiments.annotate.drawings import NO_MASK, Drawings
from experiments.annotate.server import Desk

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium to open the page in")
READY = "document.getElementById('view').dataset.state === 'ready'"
SAYS = "document.getElementById('message').textContent"
WAY = "document.getElementById('way')"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium):
    chromium.resize(900, 700)
    yield chromium
    chromium("Page.navigate", url="about:blank")
    errors, chromium.errors = chromium.errors, []
    assert errors == []  # exceptions, and what the page's own policy has blocked


@pytest.fixture
def root(tmp_path):
    return photos(tmp_path / "photos")


@pytest.fixture
def drawings(root):
    return Drawings(root, CLASSES)


@pytest.fixture
def page(browser, drawings):
    """The browser, with the first image open."""
    with served(Desk(drawings, None, None)) as server:
        browser.open(server.address)
        browser.until(READY)
        yield browser
        browser("Page.navigate", url="about:blank")


def on_screen(browser, x, y):
    """Where a pixel of the image is on the screen."""
    left, top, scale = browser.value(
        "(() => { const b = view.getBoundingClientRect(); return [b.left + left, b.top + top_, scale]; })()"
    )
    return left + (x + 0.5) * scale, top + (y + 0.5) * scale


def test_a_stroke_is_in_the_mask_and_there_after_a_reload(page, drawings):
    page.key("3")
    page.value("resize(5)")
    page.drag(*(on_screen(page, x, 20) for x in (10, 25, 40)))
    page.until(f"{READY} && page.version !== 'none'")
    mask, version = drawings.mask(NAME)
    y, x = np.mgrid[:64, :64]
    inside = np.hypot(np.maximum(np.maximum(10 - x, x - 40), 0), y - 20) <= 2.5
    np.testing.assert_array_equal(mask, np.where(inside, 2, IGNORE))

    page.key("e")
    page.drag(on_screen(page, 25, 20))
    page.until(f"{READY} && page.version !== '{version}'")
    assert (drawings.mask(NAME)[0] == 2).sum() < inside.sum()
    for key, as_before in (("z", "true"), ("y", "false"), ("z", "true")):
        page.key(key)
        page.until(f"{READY} && (page.version === '{version}') === {as_before}")
    np.testing.assert_array_equal(drawings.mask(NAME)[0], mask)

    page.key("d")
    page.until("state.images[0].done")
    assert drawings.done() == [NAME]

    page("Page.reload")
    page.until(f"{READY} && page.undo.length === 0")
    assert page.value("[...page.mask].join()") == ",".join(map(str, mask.ravel()))
    assert page.value("document.getElementById('done').checked") is True
    assert page.value("document.getElementById('count').textContent") == "1/6, 1 done"


def test_keys_alone_draw_and_go_on(page, drawings):
    page.value("view.focus(), resize(1), choose(4)")
    page.key("ArrowRight")
    page.key("Enter")
    for _ in range(5):
        page.key("ArrowDown")
    page.key("Enter", shift=True)
    page.until(f"{READY} && page.undo.length === 2 && !page.saving")
    mask, _ = drawings.mask(NAME)
    assert np.argwhere(mask != IGNORE).tolist() == [[y, 33] for y in range(32, 38)]
    assert {*mask[32:38, 33]} == {4}
    page.key("n")
    page.until(f"{READY} && at === 1")
    page.key("n")
    page.until(f"{READY} && at === 2")
    page.key("s")  # back to the first one without labels
    page.until(f"{READY} && at === 1 && {SAYS}.includes('without labels')")


def test_a_page_that_is_behind_says_so_and_loads_the_other_version(page, drawings):
    other = scribble(drawings)
    drawings.write(NAME, other, NO_MASK)  # another page
    page.drag(on_screen(page, 50, 50))
    page.until(f"!{WAY}.hidden")
    assert "was not written over" in page.value(SAYS)
    np.testing.assert_array_equal(drawings.mask(NAME)[0], other)
    page.value(f"{WAY}.click()")
    page.until(f"{READY} && page.version !== 'none'")
    page.drag(on_screen(page, 50, 50))
    page.until("page.undo.length === 1 && !page.saving")
    mask, _ = drawings.mask(NAME)
    assert mask[50, 50] == 1
    assert (mask[other == 1] == 1).all()


def pen(browser, kind, x, y):
    """Press, move or let go of the left button at a pixel of the image."""
    x, y = on_screen(browser, x, y)
    browser("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, button="left", buttons=1, clickCount=1)


@pytest.fixture
def slow(monkeypatch):
    """Two functions: from the first on, the desk's answers to a method wait until the second is called."""
    go_on = threading.Event()

    def wait(cls, method):
        answer = getattr(cls, method)
        monkeypatch.setattr(cls, method, lambda self, *args: (go_on.wait(30), answer(self, *args))[1])

    yield wait, go_on.set
    go_on.set()


def test_nothing_is_drawn_on_an_image_that_is_left(page, drawings, slow):
    wait, go_on = slow
    wait(Desk, "mask")
    page.key("n")
    page.until("view.dataset.state === 'loading'")
    pen(page, "Pressed", 10, 10)
    pen(page, "Moved", 40, 10)
    go_on()
    page.until(f"{READY} && at === 1")
    pen(page, "Moved", 40, 40)
    pen(page, "Released", 40, 40)
    assert page.value("page.undo.length") == 0
    assert not any(drawings.is_labelled(name) for name in drawings.images)


def test_a_stroke_that_is_begun_while_the_last_one_is_saved_is_saved_too(page, drawings, slow):
    wait, go_on = slow
    wait(Drawings, "write")
    page.drag(on_screen(page, 10, 10))
    page.key("n")
    pen(page, "Pressed", 40, 40)
    go_on()
    page.until(f"{READY} && at === 1")
    pen(page, "Released", 40, 40)
    mask, _ = drawings.mask(NAME)
    assert mask[10, 10] == mask[40, 40] == 1


def test_a_stroke_that_becomes_a_pinch_is_not_saved(page, drawings, slow):
    wait, go_on = slow
    wait(Drawings, "write")
    for x in (10, 20):
        page.drag(on_screen(page, x, 10))
    fingers = [dict(zip("xy", on_screen(page, x, 40), strict=True)) for x in (40, 50)]
    page("Input.dispatchTouchEvent", type="touchStart", touchPoints=fingers[:1])
    page.until("stroke")
    go_on()
    page.until("!page.saving")
    page("Input.dispatchTouchEvent", type="touchStart", touchPoints=fingers)
    page("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.until("!stroke && !pointers.size")
    mask, _ = drawings.mask(NAME)
    assert [mask[10, 10], mask[10, 20], mask[40, 40]] == [1, 1, IGNORE]


def test_a_stroke_during_a_refused_one_is_not_called_saved(page, drawings, slow):
    wait, go_on = slow
    drawings.write(NAME, scribble(drawings), NO_MASK)  # another page
    wait(Desk, "draw")
    page.drag(on_screen(page, 50, 50))
    pen(page, "Pressed", 20, 50)
    go_on()
    page.until(f"!{WAY}.hidden")
    pen(page, "Released", 30, 50)
    assert "was not written over" in page.value(SAYS)
    page.value(f"{WAY}.click()")
    page.until(f"{READY} && page.version !== 'none'")
    page.key("n")
    page.until(f"{READY} && at === 1")


def test_what_is_not_saved_stays_said(page, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Drawings, "write", full)
    page.drag(on_screen(page, 9, 9))
    page.until(f"{SAYS}.startsWith('not saved') && !page.saving")
    page.value("suggest()")
    assert "No space left" in page.value(SAYS)
    assert page.value(f"{WAY}.hidden") is False
    monkeypatch.undo()
    page.value(f"{WAY}.click()")
    page.until(f"{READY} && {SAYS} === 'saved'")


def test_a_message_of_more_lines_leaves_zoom_and_stroke_as_they_are(page, drawings):
    page.value("resize(1), zoom(2)")
    scale, height = page.value("scale"), page.value("view.height")
    pen(page, "Pressed", 20, 32)
    page.value("say('why. '.repeat(400))")
    page.until(f"view.height < {height}")
    pen(page, "Moved", 40, 32)
    pen(page, "Released", 40, 32)
    page.until(f"{READY} && page.version !== 'none'")
    assert page.value("scale") == scale
    assert np.argwhere(drawings.mask(NAME)[0] != IGNORE).tolist() == [[32, x] for x in range(20, 41)]
    page.key("0")
    for text in ("'why. '.repeat(400)", "''"):  # the whole image stays whole
        page.value(f"say({text})")
        page.until("Math.abs(scale * page.height - .97 * view.clientHeight) < 1")


def test_a_stroke_is_kept_while_the_server_is_away(browser, drawings):
    desk = Desk(drawings, None, None)
    with served(desk) as server:
        browser.open(server.address)
        browser.until(READY)
    browser.drag(on_screen(browser, 9, 9))
    browser.until(f"{SAYS}.startsWith('not saved')")
    browser.key("n")  # nobody leaves what is not saved
    assert browser.value("at") == 0
    assert not drawings.is_labelled(NAME)
    with served(desk, server.server_port, server.token):
        browser.value(f"{WAY}.click()")
        browser.until(f"{READY} && page.version !== 'none'")
    assert drawings.mask(NAME)[0][9, 9] == 1


def test_an_image_that_cannot_be_drawn_on_says_why(browser, drawings, root):
    path = root / "masks" / f"{NAME}.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no picture")
    with served(Desk(drawings, None, None)) as server:
        browser.open(server.address)
        browser.until("document.getElementById('view').dataset.state === 'closed'")
        assert "cannot be read as an image" in browser.value(SAYS)
        browser.drag(on_screen(browser, 9, 9))
        browser.key("n")
        browser.until(f"{READY} && at === 1")
    assert path.read_bytes() == b"no picture"


def test_the_page_fits_a_phone_and_a_finger_draws(page):
    page.resize(360, 640, touch=True)
    page.until("view.clientWidth === 360 && view.width === 360")
    assert page.value("document.documentElement.scrollWidth") <= 360
    assert page.value("view.clientHeight") > 250
    buttons = page.value(
        "[...document.querySelectorAll('button, .button')].filter(one => one.offsetHeight).map(one => one.offsetHeight)"
    )
    assert len(buttons) > 10
    assert min(buttons) >= 32
    x, y = on_screen(page, 30, 30)
    page("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    page("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.until(f"{READY} && page.version !== 'none'")
