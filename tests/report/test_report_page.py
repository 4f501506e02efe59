"""The page stands alone, is sound HTML, and escapes what it is given."""

import dataclasses
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
import synthetic_results as synthetic
from hypothesis import given
from hypothesis import strategies as st

from dalr_stream.report.naming import slugs
from dalr_stream.report.page import render_page

VOID = {"meta", "br", "hr", "img", "link", "input", "col"}
EVIL = "features.0<script>alert('x')</script>&"


class Outline(HTMLParser):
    """Checks that tags balance, and gathers ids, references and text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._note(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.text.append(data)

    def _note(self, tag, attrs):
        self.seen[tag] += 1
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value)


@pytest.fixture(scope="module")
def results():
    return synthetic.results()


@pytest.fixture(scope="module")
def page(results):
    return render_page(results)


@pytest.fixture(scope="module")
def outline(page):
    return Outline(page)


@pytest.fixture(scope="module")
def odd_page():
    odd = dataclasses.replace(
        synthetic.layer(EVIL, 48, 64, None, 0, heldout=False),
        activity=synthetic.layer("a", 48, 64, None, 0).activity[:1],
    )
    other = synthetic.layer("fc7", 48, 48, "fc8<b>", 10)
    return render_page(
        synthetic.results(
            odd,
            other,
            name="run <script>alert(1)</script> $x$ {{ 1 + 1 }}",
            metric="top-1 <i>",
            decisions=("<script>decided()</script>",),
            caveats=(),
            provenance={
                "<key>": {"</dl>": "<script>"},
                "empty": {},
                "list": [],
                "flag": True,
                "nothing": None,
                "pairs": [{"a": 1.5, "b": (2, False)}],
            },
        )
    )


def test_tags_balance(outline, odd_page):
    assert outline.open == []
    assert Outline(odd_page).open == []


def test_nothing_outside_the_page_is_referred_to(page, outline):
    assert "http" not in page
    assert "@import" not in page
    assert outline.seen["script"] == outline.seen["link"] == outline.seen["iframe"] == outline.seen["object"] == 0
    references = [value for _, name, value in outline.attributes if name in ("src", "href", "xlink:href", "srcset")]
    assert references
    assert all(value.startswith(("#", "data:")) for value in references)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_ids_are_unique_and_every_reference_arrives(page, outline):
    assert [name for name, count in Counter(outline.ids).items() if count > 1] == []
    targets = {value[1:] for _, name, value in outline.attributes if name == "href"}
    targets |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert targets <= set(outline.ids)


def test_names_from_the_record_are_escaped(odd_page):
    outline = Outline(odd_page)
    assert outline.seen["script"] == outline.seen["i"] == 0
    text = "".join(outline.text)
    for name in (EVIL, "run <script>alert(1)</script> $x$ {{ 1 + 1 }}", "<script>decided()</script>", "<key>", "</dl>"):
        assert name in text


def test_drawings_of_odd_names_hold_them_as_text(odd_page):
    drawn = "".join(Outline("".join(re.findall(r"<svg.*?</svg>", odd_page, flags=re.DOTALL))).text)
    assert f"parameters left in {EVIL}" in drawn


def test_order_of_the_page(page):
    marks = [
        "What came out",
        "4.0 times fewer parameters than SVD in fc6",
        "smallest size with",
        "Before and after</h2>",
    ]
    marks += ["Layer fc6</h2>", "Figure 1.", "fc6: test accuracy in per cent", "Reconstruction error against rank</h3>"]
    marks += ["How often the inputs fire</h3>", "Spectra of weight and outputs</h3>", "Information retained"]
    marks += ["Layer fc7</h2>", "Decisions and warnings</h2>", "What this run does not show</h2>", "Provenance</h2>"]
    body = page[page.index("<main>") :]
    places = [body.index(mark) for mark in marks]
    assert places == sorted(places)


def test_where_no_layer_was_evaluated_alone_the_whole_network_comes_first(results):
    alone = tuple(dataclasses.replace(layer, headline=()) for layer in results.layers)
    page = render_page(dataclasses.replace(results, layers=alone))
    Outline(page)
    body = page[page.index("<main>") :]
    assert body.index("Before and after</h2>") < body.index("The layers</h2>")
    assert page.index('href="#sizes"') < page.index('href="#headline"')


def test_the_lead_says_how_the_saved_network_does(results):
    before, saved = results.sizes[0], dataclasses.replace(results.sizes[0], label="compressed: x", score=0.5)
    small = dataclasses.replace(saved, parameters=before.parameters // 4)
    other = dataclasses.replace(saved, label="compared: y", score=0.25)
    lead = re.search(
        r'<p class="lead">(.*?)</p>', render_page(dataclasses.replace(results, sizes=(before, small, other))), re.DOTALL
    )
    assert "The network that was saved: 50.00" in lead[1]
    assert "with 25.0" in lead[1]
    assert "The network that was saved" not in render_page(dataclasses.replace(results, sizes=(before, other)))


def test_every_number_of_the_headline_is_on_the_page(results, outline):
    text = "".join(outline.text)
    for layer in results.layers:
        for row in layer.headline:
            for number in (row.size, row.layer_parameters, row.pair_parameters):
                assert number is None or f"{number:,}" in text
    for line in (*results.decisions, *results.caveats):
        assert line in text
    assert results.provenance["run"]["fingerprint"] in text


def test_twelve_figures_follow_the_schemes_of_the_page(page):
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 12
    for drawing in drawings:
        assert "var(--text)" in drawing
        assert not re.search(r"#[0-9a-f]{6}\b", drawing), "a colour that would not follow the scheme"
        assert "<metadata" not in drawing
    numbers = [int(n) for n in re.findall(r"<b>Figure (\d+)\.</b>", page)]
    assert numbers == list(range(1, 13))


def test_provenance_is_a_nested_definition_table(odd_page, outline):
    assert outline.seen["dl"] == 6, "the whole and the five mappings inside it"
    shown = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", odd_page)
    assert ("empty", "none") in shown
    assert ("list", "none") in shown
    assert ("flag", "yes") in shown
    assert ("nothing", "none") in shown
    assert ("pairs", "a = 1.5, b = 2, no") in shown


def test_layers_named_like_parts_of_the_page_do_not_clash():
    named = [synthetic.layer(name, 24, 32, None, 0) for name in ("layer", "accuracy", "headline", "sizes")]
    lean = [dataclasses.replace(layer, score_curves=layer.score_curves[:1], error_curves=()) for layer in named]
    ids = Outline(render_page(synthetic.results(*lean))).ids
    assert len(set(ids)) == len(ids)


def test_figures_left_out_say_why(odd_page):
    assert re.search(
        r'class="left-out"[^>]*><b>Top-1 &lt;i&gt; against the size of both layers</b>: left out\. .*no next', odd_page
    )
    assert "no nodes can be selected" in odd_page
    assert "No rows were held out" in odd_page


def test_empty_sections_say_so(odd_page):
    assert "The run file names no limits." in odd_page
    quiet = render_page(synthetic.results(synthetic.layer("a", 48, 64, None, 0), decisions=(), sizes=()))
    assert "took no decision of its own" in quiet
    assert "The run saved no network." in quiet


def test_a_layer_of_which_nothing_is_known_still_gives_a_page():
    bare = dataclasses.replace(
        synthetic.layer("a", 48, 64, None, 0),
        activity=(),
        error_curves=(),
        score_curves=(),
        retention_curves=(),
        spectra=dataclasses.replace(synthetic.layer("a", 48, 64, None, 0).spectra, weight=(), outputs=()),
        headline=(),
    )
    outline = Outline(render_page(synthetic.results(bare)))
    assert outline.open == []
    assert outline.seen["svg"] == 0
    assert "".join(outline.text).count("left out.") == 6


def test_numbers_stay_with_their_units(page):
    prose = re.findall(r"<figcaption>.*?</figcaption>", page, flags=re.DOTALL)
    assert len(prose) == 12
    assert not [caption for caption in prose if re.search(r"\d %|Fig\. \d|Eq\. \d", caption)]


@given(st.lists(st.text("aA0.-_/<é \n", max_size=4), max_size=8))
def test_slugs_are_safe_and_never_coincide(names):
    made = slugs(names)
    assert len(made) == len(names)
    assert len({slug.casefold() for slug in made}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", slug) for slug in made)


def test_slugs_keep_dots_and_number_what_would_coincide():
    assert slugs(["classifier.0", "classifier-0", "classifier/0", "Classifier.0", "..", "<>"]) == (
        "classifier.0",
        "classifier-0",
        "classifier-0-2",
        "Classifier.0-2",
        "layer",
        "layer-2",
    )


def test_a_layer_with_shards_is_answered_and_one_without_says_nothing():
    plain = synthetic.layer("fc6", 48, 64, "fc7", 10), synthetic.layer("fc7", 48, 48, None, 0)
    answered = dataclasses.replace(plain[0], stability=synthetic.stability(48, 48, enough=False))
    outline = Outline(render_page(synthetic.results(answered, plain[1])))
    text = " ".join("".join(outline.text).replace("\N{NO-BREAK SPACE}", " ").split())
    assert text.count("Is the calibration set large enough?") == 1
    assert "The calibration set is too small: the error is 0.2 \N{PLUS-MINUS SIGN} 0.01." in text
    assert "Half of the layer kept: 74% of the nodes." in text
    assert "8 shards; error bars at every rank: tables/fc6-stability.csv" in text
    assert text.count("The calibration set is too small: see below.") == 1
    assert "large enough?" not in render_page(synthetic.results(*plain))
