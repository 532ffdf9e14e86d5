"""The server on Ray Serve, through the official client, a browser, faults and malformed requests.

Its model is the random one: what it answers means nothing, and comes fast.
"""

import json
import os
import re
import shutil
import signal
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.launch.serving.asgi import question
from tests.launch.serving.malformed import encoded_image, malformed, url_of
from tests.launch.serving.running import GATEWAY, REPLICA, RunningServer
from tests.launch.serving.test_exposition import dashboard_names
from tests.rollout import rig

pytestmark = pytest.mark.slow

BODY_TIMEOUT_S = 3.0
LIMIT_S = 30.0
"""Longest time that any request of these tests may take, by the server's limits."""

PICTURE = url_of(encoded_image((300, 200)))


@pytest.fixture(scope="module")
def server(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    rig.controller().save(folder / "controller")
    server = RunningServer(
        folder / "log",
        *(folder / "controller", "--model.model", model_folder, "--model.device", "cpu"),
        *("--model.max-new-tokens", 8, "--scaling.replicas", 2, "--budget-ms", 5000),
        *("--limits.body-timeout-s", BODY_TIMEOUT_S, "--limits.episode-timeout-s", 10),
        *("--scaling.health-check-s", 1),
    )
    yield server
    assert server.stop() == 0, server.log.read_text()


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_the_official_client_asks_about_text_and_images(client):
    assert [model.id for model in client.models.list()] == ["controller", "full", "cheapest"]
    for messages in (question(), question("what is it", PICTURE)):
        reply = client.chat.completions.create(
            model="controller", messages=messages, extra_body={"latency_budget_ms": 4000}
        )
        told = reply.latency_budget
        assert told["budget_ms"] == 4000
        assert told["within_budget"]
        assert reply.usage.completion_tokens >= 1
        assert (
            told["total_ms"]
            >= told["latency_ms"]
            == pytest.approx(sum(told["stages_ms"].values()), abs=0.1)
        )
    assert told["stages_ms"]["vision_global"] > 0
    fixed = client.chat.completions.create(model="low-p1-k4-b12", messages=question())
    assert fixed.latency_budget["choices"]["tier"] == "low"
    assert fixed.latency_budget["budget_ms"] == 5000


def test_the_readmes_lines(server, capsys):
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (lines,) = [block for block in blocks if "OpenAI(" in block]
    assert "http://127.0.0.1:8000/v1" in lines
    exec(lines.replace("http://127.0.0.1:8000", server.url), {})
    assert re.search(r"(True|False)$", capsys.readouterr().out.strip())


def test_the_official_client_streams(client):
    whole = client.chat.completions.create(model="full", messages=question("a", PICTURE))
    stream = client.chat.completions.create(
        model="full", messages=question("a", PICTURE), stream=True
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].latency_budget["choices"]["num_blocks"] == 16


def test_the_official_client_sees_errors_as_openais(client):
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4o'"):
        client.chat.completions.create(model="gpt-4o", messages=question())
    far = "https://example.org/cat.png"
    with pytest.raises(openai.BadRequestError, match="does not fetch addresses") as error:
        client.chat.completions.create(model="full", messages=question("a", far))
    assert error.value.code == "invalid_image_url"
    with pytest.raises(openai.BadRequestError, match="latency_budget_ms is -1"):
        client.chat.completions.create(
            model="full", messages=question(), extra_body={"latency_budget_ms": -1}
        )
    with pytest.raises(openai.BadRequestError, match="stop is supported only as null"):
        client.chat.completions.create(model="full", messages=question(), stop="a")


def test_the_dashboards_metrics_of_the_server_are_exposed(server):
    wanted = {name for name in dashboard_names() if "_serve_" in name}
    server.post({"model": "full", "messages": question(), "latency_budget_ms": 0.001})
    deadline = time.monotonic() + 40
    while True:
        text = server.get("/metrics")[1].decode()
        exposed = set(re.findall(r"^(ray_\w+)", text, re.MULTILINE))
        if wanted <= exposed:
            break
        assert time.monotonic() < deadline, wanted - exposed
        time.sleep(1)
    assert all(name.startswith("ray_latency_budget_serve_") for name in exposed)


def latency_s(server):
    """Median time of a request."""
    times = []
    for _ in range(15):
        started = time.monotonic()
        assert server.post({"model": "cheapest", "messages": question()})[0] == 200
        times.append(time.monotonic() - started)
    return statistics.median(times)


def test_malformed_requests_leave_the_server_as_it_was(server):
    bodies = malformed()
    for body in bodies[:20]:
        server.post(body)  # what is loaded once, such as decoders
    memory_mib, before_s = server.memory_mib(), latency_s(server)
    for body in bodies:
        status, _, content = server.post(body)
        assert 400 <= status < 500, (status, body[:200])
        assert content["error"]["message"]
    assert server.memory_mib() < memory_mib + 60
    assert latency_s(server) < 2 * before_s + 0.05


def raw(server, data, wait_s):
    """What comes back for some bytes, until the server closes or time is up."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait_s) as connection:
        connection.sendall(data)
        found = b""
        try:
            while chunk := connection.recv(65_536):
                found += chunk
        except TimeoutError:
            pass
        return found


HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
)


def test_slow_and_large_requests_are_cut_off(server):
    started = time.monotonic()
    reply = raw(server, HEAD + b"Content-Length: 1000\r\n\r\n{", 4 * BODY_TIMEOUT_S)
    assert b" 408 " in reply.partition(b"\r\n")[0]
    assert time.monotonic() - started < 3 * BODY_TIMEOUT_S
    reply = raw(server, HEAD + b"Content-Length: 99999999999\r\n\r\n{", BODY_TIMEOUT_S)
    assert b" 413 " in reply.partition(b"\r\n")[0]
    memory_mib = server.memory_mib()
    chunk = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
    reply = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(200):
                connection.sendall(chunk)
        except OSError:
            pass  # the server has closed the connection
    assert server.memory_mib() < memory_mib + 60
    assert server.post({"model": "full", "messages": question()})[0] == 200


def test_many_slow_clients_do_not_keep_others_waiting(server):
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
    for connection in idle:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
    started = time.monotonic()
    assert server.post({"model": "full", "messages": question()})[0] == 200
    assert time.monotonic() - started < BODY_TIMEOUT_S
    for connection in idle:
        connection.close()


def test_a_killed_replica_costs_no_request_more_than_its_limit(server):
    stop, found = threading.Event(), []

    def ask():
        while not stop.is_set():
            started = time.monotonic()
            status, headers, content = server.post(
                {"model": "controller", "messages": question("what is it", PICTURE)}
            )
            found.append((status, headers, content, time.monotonic() - started))
            if status != 200:
                time.sleep(0.05)

    with ThreadPoolExecutor(6) as pool:
        for _ in range(6):
            pool.submit(ask)
        time.sleep(2)
        os.kill(server.processes(REPLICA)[0].pid, signal.SIGKILL)
        time.sleep(6)
        stop.set()
    statuses = {status for status, *_ in found}
    assert len(found) > 20
    assert 200 in statuses
    assert statuses <= {200, 429, 503}, statuses
    assert all("error" in content for status, _, content, _ in found if status != 200)
    assert max(seconds for *_, seconds in found) < LIMIT_S
    deadline = time.monotonic() + 90
    while json.loads(server.get("/healthz")[1])["replicas"] < 2:
        assert time.monotonic() < deadline, "the replica did not come back"
        time.sleep(0.5)
    for _ in range(4):
        assert server.post({"model": "full", "messages": question()})[0] == 200


def test_a_killed_gateway_is_back_within_seconds(server):
    body = {"model": "cheapest", "messages": question()}
    assert server.post(body)[0] == 200
    replicas = {process.pid for process in server.processes(REPLICA)}
    (gateway,) = server.processes(GATEWAY)
    os.kill(gateway.pid, signal.SIGKILL)
    gateway.wait(30)
    deadline = time.monotonic() + 60
    while server.get("/healthz")[0] != 200:
        assert time.monotonic() < deadline, "the gateway did not come back"
        time.sleep(0.2)
    assert server.post(body)[0] == 200
    assert {process.pid for process in server.processes(REPLICA)} == replicas


def test_clients_that_go_away_leave_room_for_others(server):
    body = json.dumps({"model": "full", "messages": question("what is it", PICTURE)}).encode()
    head = HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(30):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head + body)
    started = time.monotonic()
    assert server.post({"model": "full", "messages": question()})[0] == 200
    assert time.monotonic() - started < LIMIT_S / 3


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_replicas_are_added_under_load(model_folder, tmp_path):
    server = RunningServer(
        tmp_path / "log",
        *("--model.model", model_folder, "--model.device", "cpu", "--scaling.replicas", 1),
        *("--scaling.max-replicas", 2, "--scaling.upscale-delay-s", 1),
    )
    try:
        deadline = time.monotonic() + 120
        while json.loads(server.get("/healthz")[1])["replicas"] < 2:
            server.post({"model": "full", "messages": question("what is it", PICTURE)})
            assert time.monotonic() < deadline, "no replica was added"
    finally:
        assert server.stop() == 0


DOTS = "#dots .kept, #dots .missed"


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1200,1000"):
        options.add_argument(argument)
    service = webdriver.ChromeService(driver)
    browser = webdriver.Chrome(options=options, service=service)
    browser.implicitly_wait(20)
    yield browser
    browser.quit()


def test_the_page_in_a_browser(server, browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def element(name):
        return browser.find_element(By.CSS_SELECTOR, name)

    def wait_for(check):
        deadline = time.monotonic() + 20
        while not check():
            assert time.monotonic() < deadline, element("#error").text
            time.sleep(0.1)

    picture = tmp_path / "picture.png"
    picture.write_bytes(encoded_image((320, 240)))
    browser.get(server.url)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#model option")) >= 3
    trained = rig.BUDGETS.range
    wait_for(lambda: element("#price").get_attribute("placeholder").startswith("0 "))
    shown_ms = float(element("#budget-number").get_attribute("value"))
    assert trained.low_ms - 1 <= shown_ms <= trained.high_ms + 1, "the server's default is 5000"
    element("#price").send_keys("0.3")
    element("#file").send_keys(str(picture))
    wait_for(lambda: element("#preview").is_displayed())
    element("#question").send_keys("what is it")
    for number, budget in enumerate(("3000", "4000"), start=1):
        box = element("#budget-number")
        box.clear()
        box.send_keys(budget)
        element("#question").send_keys(Keys.ENTER)  # by keyboard alone
        wait_for(lambda n=number: len(browser.find_elements(By.CSS_SELECTOR, DOTS)) == n)
        assert "empty" not in element("#answer").get_attribute("class")
        assert f"budget {budget} ms" in element("#bar").get_attribute("aria-label")
        assert len(browser.find_elements(By.CSS_SELECTOR, "#bar .part")) == 6
        assert "experts" in element("#words").text
        assert "Price 0.3." in element("#words").text
        assert "in time" in element("#count").text
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []
    browser.set_window_size(500, 900)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_a_server_without_room_for_its_replicas_says_so(model_folder, tmp_path):
    arguments = ("--model.model", model_folder, "--model.device", "cpu")
    room = ("--scaling.replicas", os.cpu_count() + 1, "--scaling.start-timeout-s", 1)
    with pytest.raises(AssertionError, match=r"not ready after 1 s: lower scaling\.replicas"):
        RunningServer(tmp_path / "log", *arguments, *room)
