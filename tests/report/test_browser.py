"""Reports in a real browser: no error on the console, and everything that can be clicked does what it says."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest

from onnxq.recipe import Recipe
from onnxq.report.job import Job, run_job
from onnxq.report.page import (
    Bar,
    BarPlot,
    Card,
    Column,
    GraphNode,
    GraphView,
    Page,
    Point,
    ScatterPlot,
    Section,
    Table,
    render,
)
from tests.graphs import build, normal
from tests.report.browser import Shown, chromium

ROWS = 3000
KINDS = ("quantized", "float", "shared", "absorbed")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report on a small model."""
    folder = tmp_path_factory.mktemp("report")
    text = """g (float[N, 3, 8, 8] x) => (float[N, 4] y) {
        c = Conv<pads=[1, 1, 1, 1]>(x, W)
        r = Relu(c)
        e = Erf(r)
        d = Conv<pads=[1, 1, 1, 1]>(e, V)
        s = Add(r, d)
        p = GlobalAveragePool(s)
        f = Flatten(p)
        y = Gemm(f, G)
    }"""
    model = build(text, W=normal(4, 3, 3, 3), V=normal(4, 4, 3, 3), G=normal(4, 4))
    for node in model.graph.node:
        node.name = f"block/{node.op_type.lower()}/{node.output[0]}"
    onnx.save(model, folder / "m.onnx")
    np.savez(folder / "d.npz", x=normal(8, 3, 8, 8))
    file = folder / "r.html"
    run_job(Job(folder / "m.onnx", folder / "q.onnx", folder / "d.npz", Recipe(), file, threads=1))
    return file


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A page about a model of thousands of nodes, with one block of each kind that others feed."""
    values = [(i * 7919) % ROWS / 10 for i in range(ROWS)]
    rows = [(f"layer{i}/conv", KINDS[i % 4], value, None) for i, value in enumerate(values)]
    rows[5] = ("exact", "float", float("inf"), "a reason")
    nodes = [GraphNode(f"layer{i}/conv", "Conv", KINDS[i // 40 % 4], (("scale", f"{i}"),)) for i in range(ROWS)]
    edges = [*itertools.pairwise(range(ROWS)), *((i, i + 4) for i in range(0, ROWS - 4, 4)), (0, ROWS - 1)]
    columns = (Column("node", "code"), Column("is", "choice"), Column("SQNR", "number", 6), Column("why"))
    plots = (
        BarPlot("few", [Bar(f"layer{i}", values[i], KINDS[i % 4]) for i in range(12)], unit="dB"),
        BarPlot("many", [Bar(f"layer{i}", value) for i, value in enumerate(values)], unit="dB"),
        ScatterPlot("front", [Point(i, i * i, f"p{i}", "best") for i in range(9)], "ms", "points", line=("best",)),
    )
    page = Page(
        "large",
        "of many layers",
        (Card("a", "1"),),
        (
            Section("Plots", plots),
            Section("Table", (Table(columns, rows, label="layers", sort=2, descending=True),)),
            Section("Graph", (GraphView("graph", nodes, edges),)),
        ),
    )
    file = tmp_path_factory.mktemp("large") / "large.html"
    file.write_text(render(page), encoding="utf-8")
    return file


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_it_opens_without_an_error_and_fits_the_window(driver, report, width, dark, tmp_path):
    shown = Shown(driver, report, width, dark=dark)
    assert shown.js("return document.documentElement.scrollWidth") == width
    beyond = """
        return [...document.querySelectorAll('main *')].filter((e) => !e.closest('.wide, svg, pre, nav') &&
            e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"""
    assert shown.js(beyond) == []
    assert driver.save_screenshot(str(tmp_path / "shot.png"))
    assert shown.errors() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(driver, report, dark):
    """The contrast of WCAG 2.1 AA: at least 4.5."""
    shown = Shown(driver, report, dark=dark)
    script = """
        const parse = (c) => c.match(/[\\d.]+/g).map(Number);
        const light = (c) => parse(c).slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const behind = (e) => { for (; e; e = e.parentElement) {
            const c = getComputedStyle(e).backgroundColor; if (parse(c)[3] !== 0) return c; } };
        const found = [];
        const texts = 'h1, h2, p, dt, dd, td, a, figcaption, li, summary, label, button, .count, .brand';
        for (const e of document.querySelectorAll(texts)) {
            if (!e.textContent.trim() || !e.checkVisibility()) continue;
            const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
            const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            if (contrast < 4.5) found.push([e.outerHTML.slice(0, 100), contrast]);
        }
        return found"""
    assert shown.js(script) == []


def test_the_theme_follows_the_system_until_it_is_chosen(driver, report):
    background = "return getComputedStyle(document.body).backgroundColor"
    light, dark = Shown(driver, report).js(background), Shown(driver, report, dark=True).js(background)
    assert light != dark
    shown = Shown(driver, report)
    shown.find("#theme").click()
    assert shown.js(background) == dark
    assert shown.js("return getComputedStyle(document.documentElement).colorScheme") == "dark"
    shown.find("#theme").click()
    assert shown.js(background) == light
    shown.js("localStorage.clear()")


def test_rows_are_sorted_by_each_column_in_both_directions(driver, large):
    shown = Shown(driver, large)
    block = shown.block("layers")
    heads = shown.all("th", block)
    assert [h.get_attribute("aria-sort") for h in heads] == ["none", "none", "descending", "none"]
    assert shown.column(block, 2)[:3] == ["∞", "299.9", "299.8"]
    shown.find("button", heads[2]).click()
    assert heads[2].get_attribute("aria-sort") == "ascending"
    numbers = [float(text) for text in shown.column(block, 2)]
    assert numbers == sorted(numbers)
    assert numbers[0] == 0
    shown.find("button", heads[0]).click()
    assert [h.get_attribute("aria-sort") for h in heads] == ["ascending", "none", "none", "none"]
    assert shown.column(block, 0)[:4] == ["exact", "layer0/conv", "layer1/conv", "layer2/conv"]  # and not layer10
    shown.find("button", heads[0]).click()
    assert shown.column(block, 0)[0] == f"layer{ROWS - 1}/conv"
    shown.find("button", heads[3]).click()  # cells without anything come first or last, none is lost
    assert len(shown.column(block, 3)) == 100
    assert shown.errors() == []


def test_rows_are_filtered_by_words_and_by_choice(driver, large):
    shown = Shown(driver, large)
    block = shown.block("layers")
    words, count = shown.find("input", block), shown.find(".count", block)
    assert count.text == "3,000 rows"
    words.send_keys("Layer123 conv")
    assert set(shown.column(block, 0)) == {f"layer{i}/conv" for i in (123, *range(1230, 1240))}
    assert count.text == "11 of 3,000 rows"
    shown.js(
        "const s = arguments[0]; s.value = 'float'; s.dispatchEvent(new Event('change'))", shown.find("select", block)
    )
    assert set(shown.column(block, 1)) == {"float"}
    words.clear()
    words.send_keys("nothing like it")
    assert shown.column(block, 0) == []
    assert count.text == "0 of 3,000 rows"


def test_more_rows_come_into_sight_by_scrolling(driver, large):
    shown = Shown(driver, large)
    block = shown.block("layers")
    assert len(shown.all("tbody tr", block)) == 100
    frame = shown.find(".wide", block)
    shown.js("arguments[0].scrollTop = arguments[0].scrollHeight", frame)
    shown.until("return arguments[0].querySelectorAll('tbody tr').length >= 200", block)
    assert len(set(shown.column(block, 0))) == len(shown.column(block, 0))


def test_a_tensor_is_picked_from_the_list_with_the_arrows_and_from_a_table(driver, report):
    shown = Shown(driver, report)
    block = shown.block("Activations")
    chosen = "return arguments[0].querySelector('select').selectedOptions[0].textContent"
    path = "return arguments[0].querySelector('path.counts').getAttribute('d')"
    names = [option.text for option in shown.all("option", block)]
    assert shown.js(chosen, block) == names[0]
    first = shown.js(path, block)
    shown.find("[aria-label='next tensor']", block).click()
    assert shown.js(chosen, block) == names[1]
    assert shown.js(path, block) != first
    shown.find("[aria-label='previous tensor']", block).click()
    shown.find("[aria-label='previous tensor']", block).click()
    assert shown.js(chosen, block) == names[-1]
    assert len(shown.all("line.clip", block)) == 2
    (button,) = [b for b in shown.all("button.go", shown.block("layers")) if b.text == "r"]
    shown.js("arguments[0].click()", button)
    assert shown.js(chosen, block) == "r"
    last = shown.js(path, block)
    shown.find("input[type=checkbox]", block).click()
    assert shown.js(path, block) != last
    assert shown.errors() == []


def test_charts_tell_their_values_to_the_keyboard(driver, large):
    shown = Shown(driver, large)
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    for title, text in (
        ("few", "layer0\n0 dB, quantized"),
        ("many", "layer0\n0 dB"),
        ("front", "p0\nbest\nms: 0\npoints: 0"),
    ):
        block = shown.block(title)
        chart = shown.find("svg", block)
        chart.send_keys(keys.ARROW_RIGHT)
        assert shown.find(".tip.on", block).text == text
        chart.send_keys(keys.ESCAPE)
        assert shown.all(".tip.on", block) == []


def test_the_graph_is_zoomed_moved_searched_and_tells_about_nodes(driver, large):
    shown = Shown(driver, large)
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    block = shown.block("graph")
    place = "return arguments[0].querySelector('.stage svg > g').getAttribute('transform')"
    shown.until("return /scale/.test(arguments[0].querySelector('.stage svg > g').getAttribute('transform'))", block)
    whole = shown.js(place, block)
    inside = """
        const [stage, all] = ['.stage', '.overview'].map((s) => arguments[0].querySelector(s).getBoundingClientRect());
        return all.left >= stage.left && all.right <= stage.right &&
            all.top >= stage.top && all.bottom <= stage.bottom"""
    assert shown.js(inside, block)
    shown.find("[aria-label='zoom in']", block).click()
    zoomed = shown.until(f"const now = (() => {{ {place} }})(); return now !== arguments[1] && now", block, whole)
    stage = shown.find(".stage svg", block)
    stage.send_keys(keys.ARROW_DOWN)
    shown.until(f"return (() => {{ {place} }})() !== arguments[1]", block, zoomed)
    shown.find("[aria-label='show all of the graph']", block).click()
    shown.until(f"return (() => {{ {place} }})() === arguments[1]", block, whole)
    search = shown.find("input", block)
    search.send_keys("layer1234/", keys.ENTER)
    shown.until("return arguments[0].querySelector('.node.on')?.dataset.node === 'layer1234/conv'", block)
    assert "1234" in shown.find(".about", block).text
    assert 0 < len(shown.all(".node", block)) < 400  # only what is in sight
    node = shown.js(
        "return [...arguments[0].querySelectorAll('.node')].find((n) => n.dataset.node === 'layer1233/conv')", block
    )
    actions = pytest.importorskip("selenium.webdriver.common.action_chains").ActionChains
    actions(driver).move_to_element(node).perform()
    shown.until("return arguments[0].querySelector('.node.on')?.dataset.node === 'layer1233/conv'", block)
    assert shown.errors() == []


def test_a_large_report_opens_on_a_phone(driver, large):
    shown = Shown(driver, large, 390)
    assert shown.js("return document.documentElement.scrollWidth") == 390
    assert shown.js("return document.querySelectorAll('*').length") < 6000
    assert shown.errors() == []
