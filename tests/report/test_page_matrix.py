"""The matrix block of pages."""

from __future__ import annotations

from onnxq.report.page import Matrix, MatrixCell, Page, Section, render


def test_cells_stand_where_names_meet_and_have_the_colour_of_their_heat():
    cells = (
        (MatrixCell("1 <dB>", "first\nsecond", -0.5, marked=True), None),
        (MatrixCell("2", heat=1.0), MatrixCell("3")),
    )
    text = render(Page("p", sections=(Section("s", (Matrix("title", ("a&b", "c"), ("x", "y"), cells, "below"),)),)))
    body = text[text.index('<figure class="matrix">') : text.index("</figure>")]
    assert body.count("<tr>") == 3
    assert '<th scope="row">a&amp;b</th>' in body
    assert '<td class="bad marked" style="--heat: 0.50" title="first\nsecond">1 &lt;dB&gt;</td><td></td>' in body
    assert '<td class="good" style="--heat: 1.00">2</td><td class="good">3</td>' in body
    assert "<figcaption>title</figcaption>" in body
    assert '<p class="below">below</p>' in body
