"""The look of every figure: one colour and one marker a method, the same wherever the method appears.

Families are told apart by hue (SVD grey and orange, DALR blues, selections greens and purples, heads reds), variants of
a family by lightness and marker, and the methods a reader looks for first by a heavier line and a filled marker. So the
identity of a curve never rests on colour alone, and line style stays free to say training or held-out.

Each colour has a twin for dark pages. Figures are drawn once, in the light colours; `svg.inline_svg` then replaces
each of them by a CSS variable of the same name. That is why no two entries of the palette may share a light colour.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.methods import Method


@dataclass(frozen=True, slots=True)
class Ink:
    """One colour on light and on dark paper, as `#rrggbb`."""

    light: str
    dark: str


@dataclass(frozen=True, slots=True)
class Look:
    """How one method is drawn."""

    ink: Ink
    marker: str
    emphasised: bool = False
    """Drawn heavier, above the others and with a filled marker."""

    @property
    def width(self) -> float:
        """Line width, points."""
        return 1.9 if self.emphasised else 1.0

    @property
    def marker_size(self) -> float:
        """Marker size, points."""
        return 5.4 if self.emphasised else 4.4

    @property
    def marker_face(self) -> str:
        """Filled where the method is emphasised, else open: the colour of the paper."""
        return self.ink.light if self.emphasised else PAPER.light

    @property
    def layer_order(self) -> int:
        """Where the curve lies in the stack: emphasised methods above the variants."""
        return 4 if self.emphasised else 3


PAPER = Ink("#fefefe", "#16191d")
TEXT = Ink("#23272e", "#e7e9ec")
MUTED = Ink("#68707c", "#9aa4b1")
GRID = Ink("#e4e7eb", "#2c323a")
FRAME = Ink("#b3bac4", "#525c69")
BAND = Ink("#dfeee3", "#1e3228")
BASELINE = Ink("#3c7a57", "#86c9a4")

LOOKS: Mapping[Method, Look] = MappingProxyType(
    {
        Method.SVD: Look(Ink("#4a4f57", "#c9ced6"), "o", emphasised=True),
        Method.SVD_BC: Look(Ink("#d9730d", "#f2a154"), "s", emphasised=True),
        Method.DALR_PUBLISHED: Look(Ink("#3f93dd", "#4f9be6"), "^", emphasised=True),
        Method.DALR_PUBLISHED_BC: Look(Ink("#7fb0de", "#3a6fa5"), "v"),
        Method.DALR_PUBLISHED_AFFINE: Look(Ink("#5b86b8", "#6c93bd"), "<"),
        Method.DALR_OPTIMAL: Look(Ink("#35a7b8", "#3fa9ba"), "d"),
        Method.DALR_OPTIMAL_AFFINE: Look(Ink("#55b1bd", "#2f7f8c"), ">"),
        Method.DALR_ANCHORED: Look(Ink("#6a78c9", "#7f8de0"), "h"),
        Method.DALR_ANCHORED_AFFINE: Look(Ink("#17368f", "#a9c2ff"), "D", emphasised=True),
        Method.DALR_WEIGHTED_AFFINE: Look(Ink("#7a62b8", "#8f78cf"), "*"),
        Method.PRUNE_MEAN: Look(Ink("#7d8430", "#a3aa55"), "4"),
        Method.PRUNE_MAX: Look(Ink("#a2a758", "#777c3c"), "3"),
        Method.SPECTRAL: Look(Ink("#0b9a72", "#35cf8f"), "P", emphasised=True),
        Method.SPECTRAL_READERS: Look(Ink("#57b394", "#1f8a67"), "1"),
        Method.SPECTRAL_WEIGHTED: Look(Ink("#3c8f78", "#69c9ac"), "2"),
        Method.MOMASP_NODE: Look(Ink("#b5489c", "#e882ce"), "X", emphasised=True),
        Method.MOMASP_SUBSET: Look(Ink("#d193c3", "#99588a"), "p"),
        Method.MOMASP_WEIGHTED: Look(Ink("#c06fae", "#b872a6"), "+"),
        Method.HEADS: Look(Ink("#b03a2e", "#f1948a"), "H"),
        Method.HEADS_WEIGHTED: Look(Ink("#cd6155", "#d98880"), "8"),
    }
)

SERIES: tuple[Ink, ...] = (
    Ink("#a8324a", "#f0808f"),
    Ink("#55718f", "#92b4d6"),
    Ink("#7d6a2f", "#cdb566"),
    Ink("#5d4b8a", "#ab9ae0"),
    Ink("#2f6f6a", "#6fc2ba"),
)
"""Colours of what is no method: domains, and the spectra of weight and outputs. Taken in order, then round again."""

_SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "font.size": 9.0,
        "font.family": "DejaVu Sans",
        "axes.titlesize": 9.0,
        "axes.labelsize": 9.0,
        "axes.labelcolor": TEXT.light,
        "axes.labelpad": 5.0,
        "axes.edgecolor": FRAME.light,
        "axes.linewidth": 0.8,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.unicode_minus": False,
        "grid.color": GRID.light,
        "grid.linewidth": 0.7,
        "text.color": TEXT.light,
        "xtick.color": FRAME.light,
        "ytick.color": FRAME.light,
        "xtick.labelcolor": MUTED.light,
        "ytick.labelcolor": MUTED.light,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "lines.solid_capstyle": "round",
        "figure.facecolor": PAPER.light,
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "dalr_stream",
    }
)


@contextmanager
def drawing() -> Iterator[None]:
    """Put the report's settings in force, whatever the user's matplotlibrc says, and take them back afterwards.

    Figures must be both made and saved inside the block. Matplotlib's settings belong to the process: two threads
    must not draw at once.
    """
    import matplotlib.style

    with matplotlib.style.context(["default", dict(_SETTINGS)]):
        yield


def method_named(name: str, layer: str) -> Method:
    """Return the method of that name; a record made by another version may hold one that is unknown here."""
    try:
        return Method(name)
    except ValueError:
        known = ", ".join(Method)
        raise InvalidInputError(f"layer {layer!r}: method must be one of {known}; got {name!r}") from None


def css_name(method: Method) -> str:
    """Return the CSS variable that holds the method's colour."""
    return f"--m-{method.value.replace('_', '-')}"


def inks() -> dict[str, Ink]:
    """Return every colour of the palette, by its CSS variable."""
    chrome = {
        "--paper": PAPER,
        "--text": TEXT,
        "--muted": MUTED,
        "--grid": GRID,
        "--frame": FRAME,
        "--band": BAND,
        "--baseline": BASELINE,
    }
    methods = {css_name(method): look.ink for method, look in LOOKS.items()}
    return {**chrome, **methods, **{f"--series-{i}": ink for i, ink in enumerate(SERIES)}}
