"""The pages in a real Chromium, against a real server: what a person does, and what they see."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import pytest

from conftest import MODELS, Server
from model_server.compile.build import compile_model

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

QUIET = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
QUIET += " --disable-component-update --disable-dev-shm-usage --window-size=1200,1000"


class Page:
    """The page as its reader sees it."""

    def __init__(self, driver: webdriver.Chrome, server: Server) -> None:
        self.driver = driver
        self.server = server

    def open(self, model: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(f"{self.server.address}/#{model}")
        self.wait_for("#models input:checked")

    def open_operation(self, name: str) -> WebElement:
        """Open the page of the API with one operation unfolded."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.server.address}/docs#{name}")
        return self.wait_for(f"#{name}[open] form")

    def sent(self, form: WebElement) -> tuple[str, str]:
        """Send an operation's form; return the answer's status and text."""
        form.find_element(By.CSS_SELECTOR, ".primary").click()
        status = self.wait_for("details[open] .answer .status").text
        return status, self.texts("details[open] .answer[aria-live] pre")[0]

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait_for(self, selector: str) -> WebElement:
        return WebDriverWait(self.driver, 10).until(lambda _: next(iter(self.all(selector)), None))

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.all(selector)]

    def answer(self) -> list[str]:
        """The headlines of the answer, when it is there."""
        self.wait_for("#answer:not([aria-busy]) .time")
        assert self.all("#answer .bars .fill")
        return self.texts("#answer .headline")

    def error(self) -> str:
        return self.wait_for("#answer:not([aria-busy]) [role=alert]").text

    def call(self) -> list[str]:
        return shlex.split(self.all("#curl")[0].text)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in [*QUIET.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome, server: Server) -> Page:
    driver.get_log("browser")
    return Page(driver, server)


def test_an_upload_becomes_bars(page: Page) -> None:
    page.open("digits")
    page.all("#ask input[type=file]")[0].send_keys(str(MODELS / "digits/examples/seven.png"))
    [headline] = page.answer()
    assert headline.startswith("7")
    assert len(page.all("#answer .bars li")) == 10
    assert page.texts("#answer .bars .best .label") == ["7"]
    assert "ms on the server" in page.texts("#answer .time")[0]
    assert page.call() == ["curl", "-F", "file=@seven.png", f"{page.server.address}/predict/digits"]


def test_another_model_answers_the_same_picture(page: Page) -> None:
    page.open("digits")
    page.all("#ask input[type=file]")[0].send_keys(str(MODELS / "digits/examples/eight.png"))
    page.answer()
    page.all("#models input[value=digits]")[0].send_keys(Keys.ARROW_DOWN)
    page.wait_for("#models input[value=digits_even]:checked")
    [headline] = page.answer()
    assert headline.startswith("even")


def test_a_sample_becomes_bars_from_the_keyboard(page: Page) -> None:
    page.open("wine")
    sample = page.all("#samples button")[2]
    sample.send_keys(Keys.ENTER)
    alcohol, cultivar = page.answer()
    assert 11 < float(alcohol) < 15
    assert cultivar.startswith("Barbera")
    assert sample.get_attribute("aria-pressed") == "true"


def test_a_row_becomes_a_bar_and_its_call_can_be_repeated(page: Page) -> None:
    page.open("xor")
    for field, value in zip(page.all("#inputs input"), ("0", "1"), strict=True):
        field.clear()
        field.send_keys(value)
    page.all("#predict")[0].click()
    assert float(page.answer()[0]) > 0.9
    curl, header, kind, flag, body, url = page.call()
    assert (curl, header, kind, flag) == ("curl", "-H", "Content-Type: application/json", "-d")
    status, answer = page.server.request(url.removeprefix(page.server.address), body.encode())
    assert status == 200
    assert answer["answers"][0]["activation_2"]["values"][0] > 0.9
    assert json.loads(body) == {"row": [0, 1]}


def test_a_picture_sample_is_shown_and_answered(page: Page) -> None:
    page.open("digits_even")
    assert len(page.all("#samples img")) == 2
    page.all("#samples button")[1].click()
    assert page.answer()[0].startswith("odd")
    assert page.all(".drop img")[0].get_attribute("alt") == "nine.png"


def test_labels_of_steps_and_a_picture_are_shown(
    driver: webdriver.Chrome, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    words = keras.Input((None,), dtype="int32", name="words")
    tags = keras.layers.Softmax(name="tag")(keras.layers.Embedding(9, 2)(words))
    picture = keras.Input((8, 8, 1), name="picture")
    copy = keras.layers.Activation("linear", name="copy")(picture)
    for name, model, card in (
        ("copier", keras.Model(picture, copy), "{inputs: {picture: {kind: image}}, outputs: {copy: {kind: image}}}"),
        (
            "tagger",
            keras.Model(words, tags),
            "{outputs: {tag: {kind: classes, labels: [no, yes]}}, examples: [{input: [1, 2, 1]}]}",
        ),
    ):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        model.save(folder / "m.keras")
        (folder / "model.yml").write_text(card)
        compile_model(folder, tmp_path / "compiled")
    page = Page(driver, start_server(MODEL_SERVER_MODELS=str(tmp_path / "compiled"), MODEL_SERVER_WORKERS="1"))
    page.open("tagger")
    page.all("#samples button")[0].click()
    page.wait_for("#answer .bars")
    labels = page.texts("#answer .bars .label")
    assert len(labels) == 3 and labels[0] == labels[2] and set(labels) <= {"no", "yes"}
    page.open("copier")
    page.all("#ask input[type=file]")[0].send_keys(str(MODELS / "digits/examples/seven.png"))
    page.wait_for("#answer img.small")
    assert page.all("#answer img")[0].get_property("naturalWidth") == 8


def test_the_page_shows_the_servers_error(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    page.open("digits")
    page.all("#ask input[type=file]")[0].send_keys(str(tmp_path / "notes.png"))
    assert page.error().startswith("not a picture that can be read")


def test_the_page_says_that_the_server_does_not_answer(page: Page) -> None:
    page.open("xor")
    conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.enable", {})
    try:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": True, **conditions})
        page.all("#predict")[0].click()
        assert page.error().startswith("The server did not answer")
    finally:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": False, **conditions})
    page.all("#predict")[0].click()
    page.answer()


def test_the_pages_lead_to_each_other(page: Page) -> None:
    page.open("xor")
    page.driver.find_element(By.LINK_TEXT, "API").click()
    assert page.wait_for("#operations h2").text == "Predictions"
    page.driver.find_element(By.LINK_TEXT, "Ask the models").click()
    page.wait_for("#models input:checked")


def test_the_api_page_sends_an_example_and_its_call_can_be_repeated(page: Page) -> None:
    form = page.open_operation("predict_xor")
    WebDriverWait(page.driver, 10).until(
        lambda _: "row" in form.find_element(By.TAG_NAME, "textarea").get_property("value")
    )
    status, answer = page.sent(form)
    assert status.startswith("200 ")
    assert round(json.loads(answer)["answers"][0]["activation_2"]["values"][0]) == 1
    [call] = [text for text in page.texts("details[open] pre") if text.startswith("curl")]
    curl, header, kind, flag, body, url = shlex.split(call)
    assert (curl, header, kind, flag) == ("curl", "-H", "Content-Type: application/json", "-d")
    assert url == f"{page.server.address}/predict/xor"
    assert json.loads(body) == {"row": [1, 0]}


def test_the_api_page_sends_a_picture(page: Page) -> None:
    form = page.open_operation("predict_digits")
    [seven] = [button for button in form.find_elements(By.TAG_NAME, "button") if button.text == "seven"]
    seven.click()
    WebDriverWait(page.driver, 10).until(
        lambda _: any("@seven.png" in text for text in page.texts("details[open] pre"))
    )
    assert json.loads(page.sent(form)[1])["answers"][0]["digit"]["label"] == "7"


def test_the_api_page_shows_what_a_model_takes_and_answers(page: Page) -> None:
    page.open_operation("predict_wine")
    texts = "\n".join(page.texts("details[open] pre"))
    assert "row: {" in texts
    assert "malic_acid" in texts
    assert '"Barolo" | "Grignolino" | "Barbera" | null' in texts


def test_the_api_page_shows_every_operation(page: Page) -> None:
    page.open_operation("predict_xor")
    page.driver.execute_script("for (const one of document.querySelectorAll('.operation')) one.open = true")
    count = len(page.server.request("/openapi.json")[1]["paths"])
    WebDriverWait(page.driver, 10).until(lambda _: len(page.all(".operation form pre")) >= count)
    assert len(page.all(".operation form")) == len(page.all(".operation")) == count
    assert page.driver.get_log("browser") == []


def test_the_api_page_fills_in_an_address(page: Page) -> None:
    form = page.open_operation("tfserving_status")
    model = form.find_element(By.NAME, "model")
    model.clear()
    model.send_keys("nope")
    status, answer = page.sent(form)
    assert status.startswith("404 ")
    assert "nope" in json.loads(answer)["error"]


@pytest.mark.parametrize("of", ["models", "API"])
def test_a_page_loads_only_from_the_server_and_its_policy_blocks_nothing(page: Page, of: str) -> None:
    if of == "models":
        page.open("digits")
        page.all("#samples button")[0].click()
        page.answer()
    else:
        page.sent(page.open_operation("predict_digits"))
    loaded = page.driver.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert len(loaded) > 4
    assert all(name.startswith((page.server.address, f"blob:{page.server.address}")) for name in loaded)
    assert page.driver.get_log("browser") == []


@pytest.mark.parametrize("of", ["models", "API"])
def test_a_narrow_screen_needs_no_sideways_scrolling(page: Page, of: str) -> None:
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True},
    )
    try:
        if of == "models":
            page.open("wine")
            page.all("#samples button")[0].click()
            page.answer()
        else:
            page.open_operation("tfserving_predict_wine")
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
