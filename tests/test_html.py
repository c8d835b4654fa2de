"""The HTML page: what is in it, what cannot break out of it, and, where there is a browser, that it works.

`pytest -m slow` runs the second half; it needs Chromium and chromedriver (Debian: apt-get install chromium chromium-driver)
and skips without them.
"""

from __future__ import annotations

import base64
import copy
import html
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from test_report import make

from kdrun.cli import run
from kdrun.report.page.page import page
from kdrun.report.page.pictures import ticks
from kdrun.report.pivot import tables
from kdrun.report.text import spread
from kdrun.runs import record as records
from kdrun.tasks import classes as image

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`&amp;"


def sweep(root: Path | None = None, methods=("kd", "none", "rkd", "at"), seeds=3, **changed) -> list[dict]:
    """Made-up runs; under `root` with folders that hold a record and curves."""
    made = [
        make(method, seed, 0.90 + 0.003 * number * (method != "none") + 0.004 * seed + 0.0007 * ((number + seed) % 3), **changed)
        for number, method in enumerate(methods)
        for seed in range(seeds)
    ]  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    for record in made:
        labels = torch.randint(10, (597,), generator=draw)
        logits = torch.randn(597, 10, generator=draw) + 4 * torch.eye(10)[labels]
        record["details"] = {
            "calibration": image.calibration(logits, labels),
            "class_scores": image.class_scores(logits, labels),
        }
    for number, record in enumerate(made if root else []):
        folder = root / f"run{number}"
        folder.mkdir(parents=True)
        records.write(folder, record)
        points = [
            {"stage": "distil", "epoch": e, "test": {"score": record["score"] - 0.3 * 0.8**e + 0.3 * 0.8**30}}
            for e in range(1, 31)
        ]
        (folder / "curves.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
        record["folder"] = str(folder)
    return made


class Reader(HTMLParser):
    """Tags, their attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.parts: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())


def shown(made: list[dict], skipped=()) -> str:
    return page(tables(made), list(skipped), made)


def test_the_page_holds_what_the_table_holds(tmp_path):
    made = sweep(tmp_path)
    failed = make("sp", 1, 0.0, status="nan", error="loss became NaN at step 7")
    text = shown([*made, failed], ["other/record.json is not a record of a kdrun run (no key 'id')"])
    visible = Reader(text).text
    for word in (
        "digits: 1,200 training and 597 test images; recipe quick, 30 epochs",
        "last epoch",
        "best epoch",
        "gain over none",
        "significant?",
        "78.04 k",
        "Learning curves",
        "Accuracy per class",
        "Calibration",
        "ECE",
        "DivergedError: loss became NaN at step 7",
        "no key 'id'",
        "Skipped: 1 file",
        "All runs: 13",
        "python 3.11.7, torch 2.6.0",
        "0123abcd",
        "kdrun method=rkd seed=2",
        "12 finished runs, 1 not finished",
        "93.00",
        "10 columns: scroll sideways →",  # shown where the table is wider than its box
    ):
        assert word in visible, word
    (table,) = tables(made)
    for line in table.cells.values():
        for cell in line.values():
            for number in (spread(cell, "last"), spread(cell, "best")):
                assert number in visible
            assert cell.gain is None or cell.display.gain(cell.gain, cell.low, cell.high) in visible
    assert text.count('class="line" data-series') == 4
    assert text.count('class="band" data-series') == 4
    assert f"{tmp_path}/run0/record.json" in visible


@pytest.mark.parametrize("where", ["method", "dataset", "class", "student", "error", "command", "host", "skipped"])
def test_no_text_of_a_record_becomes_markup(where, tmp_path):
    """The same tags as with harmless names, whatever a record says; and the text is shown as it is."""

    def built(text: str, folder: Path) -> tuple[str, list]:
        made = sweep(folder, methods=("kd", "none"), seeds=2)
        failed = make("sp", 0, 0.0, status="failed", error=text if where == "error" else "fell over")
        for record in [*made, failed]:
            if where == "method" and record["method"] == ["kd"]:
                record["method"] = [text]
            if where == "dataset":
                record["dataset"]["name"] = text
            if where == "class":
                record["dataset"]["classes"] = [text] * 10
            if where == "student":
                record["student"]["name"] = text
            if where == "command":
                record["command"], record["versions"], record["git"] = (
                    text,
                    {text: text},
                    {"commit": text, "dirty": True},
                )
            if where == "host":
                record["engine"]["device"] = record["host"] = text
        html_text = shown([*made, failed], [text if where == "skipped" else "some/record.json"])
        return html_text, [tag for tag, _ in Reader(html_text).tags]

    evil, tags = built(EVIL, tmp_path / "evil")
    _, harmless = built("name", tmp_path / "good")
    assert tags == harmless
    assert "<script>alert" not in evil
    assert "<img" not in evil
    assert evil.count("</script") == evil.count("<script") == 2
    assert where == "host" or " ".join(EVIL[:32].split()) in Reader(evil).text
    assert not [value for _, attrs in Reader(evil).tags for name, value in attrs.items() if name.startswith("on")]


def test_nothing_is_loaded(tmp_path):
    made = sweep(tmp_path, methods=("none", "kd"))
    reader = Reader(page(tables(made), [], made, tmp_path))
    for tag, attrs in reader.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attrs.get(name) or ""
            assert not re.match(r"(?i)\s*(https?:|//|javascript:)", value), (tag, name, value)
        assert tag not in ("link", "iframe", "object", "base")
    policy = next(
        attrs["content"] for tag, attrs in reader.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy
    assert "url(" not in (Path(__file__).parents[1] / "kdrun/report/page/page.css").read_text()


def test_the_same_runs_give_the_same_bytes(tmp_path):
    made = sweep(tmp_path)
    assert shown(made) == shown(made)


def test_records_without_a_folder_make_a_page_that_says_what_is_missing(tmp_path):
    text = Reader(shown(sweep())).text
    assert "none seed 0 is not in the curves: its folder is not known" in text
    assert "and 6 more runs" in text
    older = [{**run, "details": None} for run in sweep(tmp_path)]
    assert "12 runs without calibration in the record" in Reader(shown(older)).text


def test_torn_files_are_left_out_and_counted(tmp_path):
    made = sweep(tmp_path)
    (tmp_path / "run1" / "curves.jsonl").write_text('{"stage": ')
    text = Reader(shown(made)).text
    assert f"kd seed 1 is not in the curves: {tmp_path}/run1/curves.jsonl cannot be read (line 1: " in text


def test_the_data_inside_is_the_json_of_the_cells(tmp_path):
    made = sweep(tmp_path)
    for record in made:
        record["dataset"]["name"] = EVIL
    text = shown(made)
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    cells = json.loads(data)
    assert [cell["row"] for cell in cells] == ["none", "kd", "rkd", "at"]
    assert cells[0]["dataset"] == EVIL
    (comma,) = re.findall(r'href="data:text/csv;base64,([^"]*)"', text)
    assert base64.b64decode(comma).decode().splitlines()[0].startswith("row,dataset,column,protocol,")


def test_several_pairs_have_a_matrix_and_a_part_each():
    second = [
        {**record, "teacher": {**record["teacher"], "name": "resnet20"}} for record in sweep(methods=("kd",), lr=0.1)
    ]
    for record in second:
        record["group"] = "another"
        record["id"] = f"another{record['seed']}"
        record["identity"] = {**record["identity"], "teacher": {"name": "resnet20"}}
    reader = Reader(shown([*sweep(), *second]))
    assert "All pairs of teacher and student" in reader.text
    assert [attrs["id"] for tag, attrs in reader.tags if tag == "section"] == ["t0", "t0c0", "t0c1", "runs"]
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_links_lead_to_the_records(tmp_path, monkeypatch, capsys):
    """From where the page lies, percent-encoded, whatever the folder is called."""
    root = tmp_path / "runs of mine" / "a#b%20?javascript:x"
    sweep(root, methods=("none", "kd"), seeds=1)
    (tmp_path / "pages").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(["report", "runs of mine", "--format", "html", "--output", "pages/table.html"]) == 0
    assert capsys.readouterr().out == "table    pages/table.html\n"
    reader = Reader((tmp_path / "pages/table.html").read_text(encoding="utf-8"))
    links = [attrs["href"] for tag, attrs in reader.tags if tag == "a" and "record.json" in (attrs.get("href") or "")]
    assert len(links) == 2
    for link in links:
        assert (tmp_path / "pages" / urllib.request.url2pathname(link)).is_file()


def variants(root: Path | None = None) -> list[dict]:
    """none and kd at three temperatures, and one seed of it that failed."""
    made = sweep(root and root / "none", methods=("none",))
    for temperature in (2, 4, 8):
        runs = sweep(root and root / f"t{temperature}", methods=("kd",))
        runs += [make("kd", 7, 0.0, status="nan", error="loss became NaN")] * (temperature == 8)
        for record in runs:
            record["identity"]["method"]["kd"] = {"temperature": temperature}
            record["group"] += str(temperature)
            record["id"] += str(temperature)
        made += runs
    return made


def body(text: str, table: str) -> list[list[str]]:
    """The rows of a table of the page, as text."""
    (part,) = re.findall(rf'<table id="{table}".*?</table>', text, re.S)
    rows = re.findall(r"<tr role=\"row\".*?</tr>", part.partition("<tbody")[2], re.S)
    return [
        [html.unescape(re.sub("<.*?>", "", c)) for c in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)] for row in rows
    ]


def test_lists_of_runs_say_what_was_swept():
    text = shown(variants())
    assert [row[0] for row in body(text, "all")] == [
        *["none"] * 3, *["kd (temperature=2)"] * 3, *["kd (temperature=4)"] * 3, *["kd (temperature=8)"] * 4,
    ]  # fmt: skip
    assert [row[:4] for row in body(text, "failed")] == [["kd (temperature=8)", "resnet8", "7", "nan"]]


def test_lists_of_runs_compare_within_a_student_alone():
    """A student or a teacher has a column of its own: what else differs stands beside the method."""
    made = variants()
    for record in made[:]:
        other = copy.deepcopy(record)
        other["student"]["name"] = other["identity"]["student"]["name"] = "resnet20"
        other["group"] += "b"
        other["id"] += "b"
        made.append(other)
    assert {row[0] for row in body(shown(made), "all")} == {"none", *(f"kd (temperature={t})" for t in (2, 4, 8))}


def test_a_method_has_one_hue_on_the_page():
    reader = Reader(shown([*variants(), *sweep(methods=("at", "rkd"))]))
    styles = dict.fromkeys(attrs["style"] for tag, attrs in reader.tags if tag == "i")
    days = [re.match("--day:(#......)", style)[1] for style in styles]
    assert len(days) == len(set(days)) == 6
    css = (Path(__file__).parents[1] / "kdrun/report/page/page.css").read_text()
    assert css.index("--c: var(--day)") < css.index("--c: var(--night)")
    assert not re.search(r"var\(--c\d", css)


def test_bins_of_a_few_images_are_faded():
    made = sweep(methods=("none",), seeds=2)
    images = [0, 1, 10, 50, 536]
    for record in made:
        record["details"]["calibration"] = {
            "ece": 0.1, "images": images, "confidence": [0, 0.3, 0.5, 0.7, 0.9], "accuracy": [0, 0.4, 0.6, 0.8, 1.0]
        }  # fmt: skip
    text = shown(made)
    bins = re.findall(r'<circle class="bin" cx="(.*?)" cy="(.*?)" r="2" opacity="(.*?)"', text)
    assert bins == [
        ("30.0", "60.0", "0.12"),
        ("50.0", "40.0", "0.20"),
        ("70.0", "20.0", "1.00"),
        ("90.0", "0.0", "1.00"),
    ]
    lines = re.findall(r'<path class="line" d="(.*?)" opacity="(.*?)"', text)
    assert [opacity for _, opacity in lines] == ["0.12", "0.20", "1.00"]  # no stronger than the weaker of its ends
    assert lines[0][0] == "M30.0 60.0L50.0 40.0"
    visible = Reader(text).text
    assert "A bin of fewer than 50 images is faded" in visible
    assert "overconfident by" not in visible
    assert "underconfident by 10.00 points" in visible


@pytest.mark.parametrize("change", ["other bins", "torn", "no images"])
def test_calibrations_that_do_not_fit_are_left_out(change):
    made = sweep(methods=("none", "kd"), seeds=2)
    old = made[1]["details"]["calibration"]
    new = {
        "other bins": {key: value[:-1] if key != "ece" else value for key, value in old.items()},
        "torn": old | {"accuracy": old["accuracy"][:3]},
        "no images": old | {"images": [0] * len(old["images"])},
    }
    made[1]["details"]["calibration"] = new[change]
    assert "1 run without calibration in the record" in Reader(shown(made)).text


def test_classes_of_another_number_are_left_out():
    made = sweep(methods=("none", "kd"), seeds=1)
    made[1]["details"]["class_scores"] = made[1]["details"]["class_scores"][:4]
    head = re.findall(r'<table id="t0c0k".*?</thead>', shown(made), re.S)[0]
    assert ">none<" in head
    assert ">kd<" not in head


def test_long_names_stand_below_the_curves(tmp_path):
    """Where they have its whole width; short ones stand beside it."""
    assert 'class="curves"' in shown(sweep(tmp_path / "a", methods=("none", "kd")))
    long = shown(sweep(tmp_path / "b", methods=("none", "a_method_whose_name_is_longer_than_forty_letters")))
    assert 'class="curves below"' in long


def test_strips_show_arrows_and_stacked_seeds():
    made = sweep(methods=("none", "kd"), seeds=2)
    for record in made:
        record["last"]["score"] = 0.97 + 0.02 * record["seed"] if record["method"] == ["none"] else 0.999
    text = shown(made)
    assert "arrow: continues beyond the axis" in Reader(text).text
    none, kd = (re.search(rf'<span class="name">{name}</span>.*?</div></div>', text)[0] for name in ("none", "kd"))
    assert none.count('class="arrow"') == 2
    assert kd.count('class="arrow"') == 0
    moved = re.findall(r'cx="(.*?)" cy="50%" r="3.2" transform="translate\(0 (.*?)\)"><title>(.*?)</title>', kd)
    assert [(up, what) for _, up, what in moved] == [("-0.0", "seed 0: 99.90"), ("-7.0", "seed 1: 99.90")]
    names = re.findall(r'<span class="name">([^<]*)</span><span class="value">([^<]*)</span>', text)
    assert names == [  # highest first, then the differences
        ("kd", "99.90 ± 0.00"), ("none", "98.00 ± 1.41"), ("teacher resnet14", "95.81"), ("kd", "+1.90 [-10.81, +14.61] ="),
    ]  # fmt: skip
    assert text.count('class="teach"') == 3  # in the window: a line through the rows of the scores
    assert "teacher resnet14" in text  # a row of its own, not a letter on a line
    assert "<text" not in text


@pytest.mark.parametrize("form", ["html", "md"])
def test_a_broken_curve_costs_no_page(tmp_path, monkeypatch, capsys, form):
    sweep(tmp_path / "runs", methods=("none", "kd"), seeds=1)
    (tmp_path / "runs/run0/curves.jsonl").write_text('{"stage": "distil", "epoch": 1, "test": {"score": NaN}}')
    (tmp_path / "runs/run1/curves.jsonl").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)
    assert run(["report", "runs", "--format", form, "--output", "table", "--plots", "plots"]) == 0
    caught = capsys.readouterr()
    assert "Traceback" not in caught.err
    assert (
        "note     no learning curves of none, ...: none seed 0 is not in the curves: runs/run0/curves.jsonl"
        in caught.err
    )
    assert len(list((tmp_path / "plots").iterdir())) == 4
    visible = Reader((tmp_path / "table").read_text()).text
    assert (
        form == "md" or "kd seed 0 is not in the curves: runs/run1/curves.jsonl cannot be read (not UTF-8)" in visible
    )


def test_ticks_are_round_numbers():
    assert ticks(58.3, 62.9, 5) == [59.0, 60.0, 61.0, 62.0]
    assert ticks(-0.4, 0.9, 5) == [-0.0, 0.5] or ticks(-0.4, 0.9, 5) == [0.0, 0.5]
    assert ticks(1, 1, 5) == [1]


# In a browser ------------------------------------------------------------------------------------------------------------


class Browser:
    """Chromium through chromedriver's own protocol (W3C WebDriver): no package is needed for it."""

    def __init__(self, chromium: str, driver: str, folder: Path):
        self.process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = ""
        while self.process.poll() is None and not (port := re.search(r"started successfully on port (\d+)", line)):
            line = self.process.stdout.readline()
        self.root = f"http://127.0.0.1:{port[1]}/session"
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={folder}",
        ]
        options = {"binary": chromium, "args": arguments}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.root += "/" + self.ask("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def ask(self, path: str, data: dict, method: str = "POST"):
        body = json.dumps(data).encode() if method == "POST" else None
        request = urllib.request.Request(self.root + path, body, {"Content-Type": "application/json"}, method=method)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from error

    def devtools(self, command: str, **parameters):
        return self.ask("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, path: Path, width: int = 1400, dark: bool = False) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.devtools("Emulation.setEmulatedMedia", features=scheme)
        self.ask("/url", {"url": path.as_uri()})

    def run(self, script: str):
        return self.ask("/execute/sync", {"script": script, "args": []})

    def errors(self) -> list[str]:
        return [
            f"{e['level']}: {e['message']}" for e in self.ask("/se/log", {"type": "browser"}) if e["level"] != "INFO"
        ]

    def picture(self, path: Path) -> None:
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        try:
            self.ask("", {}, "DELETE")
        finally:
            self.process.terminate()
            self.process.wait(10)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    chromium, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no Chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    started = Browser(chromium, driver, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page with every part: two students, a failed run, a skipped file, a long and an evil name."""
    root = tmp_path_factory.mktemp("page")
    made = sweep(root / "a", methods=("kd", "none", "rkd", "at", "a_very_long_name_of_a_method_of_ones_own", EVIL))
    made += sweep(root / "b", methods=("kd", "none"), student="resnet20")
    made.append(make("sp", 0, 0.0, status="oom", error="out of memory: " + "x" * 300))
    path = root / "table.html"
    path.write_text(page(tables(made), ["a/record.json is torn"], made, root), encoding="utf-8")
    return path


FIRST = "[...document.getElementById('t0c0t').tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].textContent)"


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1400, 768, 390, 320])
def test_no_errors_and_no_sideways_scrolling(browser, written, width, dark):
    browser.open(written, width, dark)
    assert browser.errors() == []
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return window.innerWidth") == width
    light = "rgb(21, 23, 26)" if dark else "rgb(255, 255, 255)"
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == light


OVER = """return [...document.querySelectorAll('.strip')].flatMap((strip) => {
  const tracks = [...strip.querySelectorAll('.track')].map((track) => track.getBoundingClientRect());
  return [...strip.querySelectorAll('.row > .name, .value')].filter((text) => {
    const box = text.getBoundingClientRect();
    return tracks.some((t) => box.left < t.right && t.left < box.right && box.top < t.bottom - 1 && t.top < box.bottom - 1);
  }).map((text) => text.textContent);
})"""
CUT = """return [...document.querySelectorAll('.ends > *, .strip span, figcaption')].filter((e) =>
  e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflow !== 'visible').map((e) => e.textContent)"""
TOP = "document.querySelector('#t0c0 {}').getBoundingClientRect().top"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 800, 390])
def test_letters_stand_beside_lines_and_are_whole(browser, written, width):
    browser.open(written, width)
    assert browser.run(OVER) == []
    assert browser.run(CUT) == []
    right = "return Math.max(...[...document.querySelectorAll('.ends > *, .strip span')].map((e) => e.getBoundingClientRect().right))"
    assert browser.run(right) <= width


LEVEL = """return [...document.querySelectorAll('.strip .row:has(.track)')].map((row) => {
  const [name, value, track] = [...row.children].map((e) => e.getBoundingClientRect());
  return name.top < track.bottom - 4 && track.top < name.bottom - 4 && value.top < track.bottom - 4;
})"""
CROWDED = """return [...document.querySelectorAll('.ends')].map((ends) => [...ends.children].map((e) => e.getBoundingClientRect()))
  .some((boxes) => boxes.some((a, i) => boxes.slice(i + 1).some((b) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2)))"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 390])
def test_a_row_is_one_line_and_on_a_phone_two(browser, written, width):
    browser.open(written, width)
    assert set(browser.run(LEVEL)) == {width == 1400}
    assert not browser.run(CROWDED)
    assert browser.run("return document.querySelectorAll('.curves.below .ends > *').length") > 3


@pytest.mark.slow
@pytest.mark.parametrize(("width", "first"), [(1400, ".numbers"), (390, ".pictures")])
def test_on_a_phone_pictures_come_first(browser, written, width, first):
    browser.open(written, width)
    tops = {name: browser.run(f"return {TOP.format(name)}") for name in (".numbers", ".pictures", ".rest")}
    assert min(tops, key=tops.get) == first
    assert max(tops, key=tops.get) == ".rest"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 800])
def test_a_table_fits_or_says_that_it_scrolls(browser, written, width):
    browser.open(written, width)
    boxes = """return [...document.querySelectorAll('.box')].map((box) => [box.scrollWidth > box.clientWidth + 1,
      getComputedStyle(box.previousElementSibling.querySelector('.hint')).display !== 'none'])"""
    hints = browser.run(boxes)
    assert all(wide == hinted for wide, hinted in hints)
    assert any(wide for wide, _ in hints)  # the list of all runs
    assert any(not wide for wide, _ in hints)


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_row_has_its_colour_by_day_and_by_night(browser, written, dark):
    browser.open(written, 1400, dark)
    look = "return getComputedStyle(document.querySelector('.strip .row:nth-child(2)')).getPropertyValue('--c').trim()"
    wanted = "return getComputedStyle(document.querySelector('.strip .row:nth-child(2)')).getPropertyValue('{}').trim()"
    assert browser.run(look) == browser.run(wanted.format("--night" if dark else "--day")) != ""


@pytest.mark.slow
def test_the_page_runs_its_own_script_alone(browser, written):
    """What a name brings along is shown; a script that comes in later is refused by the page's policy."""
    browser.open(written)
    assert browser.run("return document.documentElement.classList.contains('js')")
    assert browser.run("return document.querySelectorAll('img').length") == 0
    browser.run(
        "const s = document.createElement('script'); s.textContent = 'window.broken = 1'; document.body.append(s)"
    )
    assert browser.run("return window.broken === undefined")
    assert any("Content Security Policy" in error for error in browser.errors())
    assert len(browser.run("return JSON.parse(document.getElementById('data').textContent)")) == 8


@pytest.mark.slow
def test_a_click_on_a_head_sorts(browser, written):
    browser.open(written)
    before = browser.run(f"return {FIRST}")
    head = "[...document.querySelectorAll('#t0c0t thead th')].find((th) => th.textContent.startsWith('last epoch'))"
    values = f"[...document.getElementById('t0c0t').tBodies[0].rows].map((row) => +row.cells[{head}.cellIndex].dataset.value)"
    assert browser.run(f"return {head}.getAttribute('aria-sort')") == "none"
    browser.run(f"{head}.querySelector('button').click()")
    assert browser.run(f"return {head}.getAttribute('aria-sort')") == "descending"
    downwards = browser.run(f"return {values}")
    assert downwards == sorted(downwards, reverse=True)
    assert browser.run(f"return {FIRST}") != before
    browser.run(f"{head}.querySelector('button').click()")
    assert browser.run(f"return {head}.getAttribute('aria-sort')") == "ascending"
    assert browser.run(f"return {values}") == downwards[::-1]
    browser.run("document.querySelector('#t0c0t thead button').click()")  # by name; only one column says that it sorts
    names = [name for name in browser.run(f"return {FIRST}") if name[0].isalpha()]
    assert names == sorted(names, key=str.lower)
    assert browser.run("return document.querySelectorAll('#t0c0t th[aria-sort=ascending]').length") == 1


@pytest.mark.slow
def test_rows_without_a_value_stay_below(browser, written):
    browser.open(written)
    head = "[...document.querySelectorAll('#t0c0t thead th')].find((th) => th.textContent.startsWith('gain'))"
    for _ in range(2):
        browser.run(f"{head}.querySelector('button').click()")
        assert browser.run(f"return {FIRST}")[-1] == "none"


@pytest.mark.slow
def test_the_filter_hides_rows(browser, written):
    browser.open(written)
    field = "document.querySelector('input[aria-controls=t0c0t]')"
    for typed, left in (("very LONG", ["a_very_long_name_of_a_method_of_ones_own"]), ("nothing like it", [])):
        browser.run(f"{field}.value = {typed!r}; {field}.dispatchEvent(new Event('input'))")
        assert browser.run(f"return {FIRST}") == left
        count = browser.run(f"return {field}.closest('.tools').querySelector('[role=status]').textContent")
        assert count == f"{len(left)} of 6 rows"
    browser.run(f"{field}.value = ''; {field}.dispatchEvent(new Event('input'))")
    assert len(browser.run(f"return {FIRST}")) == 6


@pytest.mark.slow
def test_the_keyboard_reaches_what_a_mouse_does(browser, written):
    """Real keys: tab to a head and press enter; tab to a curve's name and press space."""
    browser.open(written)

    def press(key: str) -> None:
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        browser.ask("/actions", {"actions": [{"type": "key", "id": "keys", "actions": keys}]})

    browser.run("document.querySelector('input[aria-controls=t0c0t]').focus()")
    press("\ue004")  # tab: the box, that arrows can scroll
    assert browser.run("return document.activeElement.className") == "box cards"
    press("\ue004")
    press("\ue007")  # enter
    assert browser.run("return document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"
    browser.run("document.querySelector('.ends button').focus()")
    press("\ue00d")  # space
    assert browser.run("return document.querySelector('.ends button').getAttribute('aria-pressed')") == "true"
    assert browser.run("return document.querySelectorAll('.curves.dim .line.on').length") == 1
    assert browser.errors() == []
