"""Reports: one page from many results, safe against what files contain, and looked at in a real browser where there is one."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from bayes_sym.errors import DataError, OptionError
from bayes_sym.experiments.cli import app
from bayes_sym.experiments.figures import plot_ranges
from bayes_sym.experiments.report import collect, write_report


EVIL = "<script>alert('x')</script>&\"'"
VOID = {"meta", "img", "br", "link"}


def row(method, value, **more):
    return {
        "method": method, "accuracy": value, "accuracy_se": 0.01, "nll": 1 - value, "equivariance_error": 0.1 * value,
        "averaged_nll": 0.2, "log_evidence": None if method == "map" else -value, "evidence_kind": None if method == "map" else "elbo",
        "parameters": 1234, "steps": 10, **more,
    }  # fmt: skip


def save(folder, rows, figure=None, **about):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({**about, "versions": {"jax": "1.2.3"}, "rows": rows}))
    if figure is not None:
        drawing = Figure(figsize=(2, 1))
        drawing.add_subplot().plot([0, 1])
        drawing.savefig(folder / figure)


@pytest.fixture
def results(tmp_path):
    """Three seeds of one comparison, and findings with two kinds of rows and names that want to be markup."""
    for seed in range(3):
        rows = [row("map", 0.5 + 0.1 * seed), row("vi", 0.7 + 0.05 * seed)]
        save(tmp_path / "digits" / f"seed-{seed}", rows, "tradeoff.png", experiment="digits", seed=seed)
    found = [{"model": EVIL, "score": 0.123444, "kept": True}, {"model": "b", "score": None, "kept": False}]
    found += [{"model": EVIL, "pathway": "conv", "share": 1e-7, "count": 1234567}]
    save(tmp_path / EVIL.replace("/", "_"), found, "path_ways.png", experiment=EVIL, seed=None, task="t")
    return tmp_path


class Page(HTMLParser):
    """Reads a page strictly: every element that opens must close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.seen if name == tag]


def test_the_page_holds_all_tables_and_figures_and_nothing_else(results):
    path = write_report(results, results / "report.html")
    text = path.read_text()
    page = Page(text)
    for value in ("digits: 3 seeds", "digits, seed 2", EVIL, "0.1234", "1e-07", "1,234,567", "jax", "1.2.3", "yes", "no"):
        assert value in page.text, value
    assert not page.of("script") and "<script" not in text
    images = page.of("img")
    assert len(images) == 3 + 1 + 2  # those that were saved, and two drawn over the seeds
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert not re.search(r"(src|href)=\"(?!data:|#)", text) and "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text
    assert all("scope" in heading for heading in page.of("th")) and page.of("html") == [{"lang": "en"}]
    anchors = {attributes["href"].removeprefix("#") for attributes in page.of("a")}
    assert anchors == {attributes["id"] for attributes in page.of("h2")} and len(anchors) == 5
    assert "prefers-color-scheme: dark" in text


def test_several_seeds_are_averaged_with_the_interval_over_them(results):
    text = Page(write_report(results, results / "r.html").read_text()).text
    # 0.5, 0.6, 0.7: s = 0.1, and the 97.5% quantile of t with 2 degrees of freedom is 4.30265
    assert f"0.60 ± {4.30265 * 0.1 / np.sqrt(3):.2f}" in text and "95% t-interval over seeds" in text
    assert "0.500 ± 0.010" in text  # one seed: standard error
    assert "The same in all rows: " in text and "weights 1,234, steps 10." in text


def test_two_seeds_have_no_interval(tmp_path):
    for seed in range(2):
        save(tmp_path / str(seed), [row("map", 0.5 + seed / 4)], experiment="digits", seed=seed)
    text = Page(write_report(tmp_path, tmp_path / "r.html").read_text()).text
    assert "three seeds or more would give intervals" in text and "0.625" in text


def test_the_same_seed_twice_is_no_repetition(tmp_path):
    for name in "ab":
        save(tmp_path / name, [row("map", 0.5)], experiment="digits", seed=0)
    assert len(Page(write_report(tmp_path, tmp_path / "r.html").read_text()).of("h2")) == 2


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "cannot read .*results.json: Expecting property name.*move the file away"),
        ("[]", "cannot read .*results.json"),
        ('{"seed": 0}', "it has no 'rows'"),
        ('{"rows": [1]}', "rows must be a list of objects"),
        ('{"rows": 3}', "cannot read .*results.json"),
    ],
)
def test_broken_results_are_refused(tmp_path, content, match):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=match):
        collect(tmp_path)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 2 and "bayes-sym: cannot read" in done.output and not (tmp_path / "report.html").exists()


def test_empty_folders_and_broken_figures_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no results.json in .*bayes-sym run NAME --out"):
        write_report(tmp_path, tmp_path / "r.html")
    with pytest.raises(DataError, match="there is no folder"):
        write_report(tmp_path / "none", tmp_path / "r.html")
    save(tmp_path / "a", [row("map", 0.5)], experiment="digits", seed=0)
    (tmp_path / "a" / "curve.png").write_text("no image")
    with pytest.raises(DataError, match="curve.png is not a PNG image"):
        write_report(tmp_path, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_the_command_writes_into_the_folder_or_where_it_is_told(results):
    done = CliRunner().invoke(app, ["report", str(results)])
    assert done.exit_code == 0 and done.output.strip() == str(results / "report.html")
    done = CliRunner().invoke(app, ["report", str(results), "--out", str(results / "page.html"), "--quiet"])
    assert done.exit_code == 0 and done.output == "" and (results / "page.html").exists()


def browser():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    cached = sorted(Path.home().glob(".cache/ms-playwright/chromium-*/chrome-linux*/chrome"))
    return str(cached[-1]) if cached else None


@pytest.mark.skipif(browser() is None, reason="no Chromium is installed")
def test_a_browser_shows_the_page(results, tmp_path):
    path = write_report(results, results / "report.html")
    # The page may not run scripts, so a copy that may measures what the browser has laid out.
    measured = path.with_name("measured.html")
    probe = (
        "<script>addEventListener('load', () => { const images = [...document.images];"
        "document.title = JSON.stringify({images: images.filter(i => i.complete && i.naturalWidth > 100).length,"
        "tables: document.querySelectorAll('table').length, wide: document.documentElement.scrollWidth,"
        "inner: innerWidth, alerts: document.querySelectorAll('main script').length}); });</script></body>"
    )
    text = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text()).replace("</body>", probe)
    measured.write_text(text)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]

    def show(*more):
        return subprocess.run([browser(), *options, *more], capture_output=True, text=True, timeout=120).stdout

    title = re.search(r"<title>(.*?)</title>", show("--dump-dom", measured.as_uri())).group(1)
    found = json.loads(title)
    assert found["images"] == 6 and found["tables"] == 6 and found["alerts"] == 0
    assert found["wide"] <= found["inner"]  # wide tables scroll within themselves
    show(f"--screenshot={tmp_path / 'page.png'}", path.as_uri())
    assert len((tmp_path / "page.png").read_bytes()) > 20_000


def test_ranges_lie_where_they_were_learned():
    learned = {"evidence": [0.4, 0.1], "elbo": [0.6, 0.2]}
    figure = plot_ranges(["rotation", "scale"], learned, [0.5, None], {"evidence": [(0.3, 0.5), None]}, unit="turns")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rotation", "scale"]
    assert [patch.get_width() for patch in axes.patches] == [0.5]
    by_label = {line.get_label(): line for line in axes.lines}
    assert list(by_label["evidence"].get_xdata()) == [0.4, 0.1] and list(by_label["elbo"].get_xdata()) == [0.6, 0.2]
    assert axes.get_xlabel() == "range [turns]"
    with pytest.raises(OptionError, match="as many learned ranges, oracles and intervals as names, 2"):
        plot_ranges(["a", "b"], {"x": [1.0]}, [1.0, 1.0])
    with pytest.raises(OptionError, match="have no learned ranges"):
        plot_ranges(["a"], {"x": [1.0]}, [1.0], {"y": [None]})
