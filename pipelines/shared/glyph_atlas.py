"""Printed letters of many scripts: the source domain's classes, one per code point.

The fonts that ship inside matplotlib draw far more than Latin: Greek, Cyrillic, Armenian, Georgian, Hebrew, Arabic,
Lao, N'Ko, Tifinagh, Ogham, Lisu, Old Italic and Canadian syllabics. Each letter is one class, whichever faces draw
it, so a network that tells the classes apart learns hundreds of shapes and its weights are rich in directions.

A code point is a class when all of this holds:

1. it is a letter (Unicode category Lu, Ll or Lo) and has no decomposition: accented letters, ligatures and the
   mathematical copies of the alphabet repeat a letter that is already there;
2. the reference face (DejaVu Sans) has it;
3. its 8x8 picture is further than `MIN_DISTANCE` (relative, Euclidean) from every class taken before it, in code point
   order: Latin A, Greek Alpha and Cyrillic A are one shape, and telling them apart cannot be learnt.

Digits are *not* among the classes (rule 1: they are category Nd). The target domain then holds no class of the
source, as birds or flowers are not the classes of ImageNet alone; what transfers is the strokes.

An atlas holds a signed distance field per (letter, face): positive inside the stroke, in pixels of the 32x32 bitmap.
A field survives rotation and shear, and a threshold on it is the thickness of the pen. This file draws no random
number and writes no file; the atlas depends on the versions of matplotlib, Pillow and Unicode alone.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageFont
from scipy.ndimage import distance_transform_edt

REFERENCE_FACE = "DejaVuSans"
FACES = (
    REFERENCE_FACE,
    "DejaVuSerif",
    "DejaVuSans-Bold",
    "STIXGeneral",
    "DejaVuSansMono",
    "DejaVuSerif-BoldItalic",
    "DejaVuSans-Oblique",
    "STIXGeneralItalic",
)
"""Faces in order of preference: upright first, then the ones that differ most from it. Display and symbol faces and
the TeX faces (whose character maps are not Unicode beyond ASCII) stay out."""

LETTERS = frozenset({"Lu", "Ll", "Lo"})
BITMAP = 32
"""Side of the bitmap that the UCI digits were reduced from, in pixels."""
MARGIN = 8
"""Pixels of field around the bitmap on each side, so that a moved glyph meets no border."""
FINE = 2
"""Field samples are averaged from a drawing this many times finer."""
GLYPH_HEIGHT, GLYPH_WIDTH = 30, 24
"""The box, in bitmap pixels, a letter is scaled into with its proportions kept (UCI digits fill the height)."""
MIN_DISTANCE = 0.5
"""Rule 3. At 0.5, 862 of 1,750 letters are left with matplotlib 3.11; at 0.3, 1,355, many alike but for a dot."""
DRAWING_SIZE = 72
"""Font size in pixels of the drawing that is scaled into the box."""


@dataclass(frozen=True, slots=True)
class GlyphAtlas:
    """Distance fields of every class in every face that has it.

    Parameters
    ----------
    code_points
        The classes, ascending; the class label is the position.
    fields
        (p, side, side) float32, one per (class, face) pair, side = 32 + 2 x 8, in bitmap pixels.
    first
        (classes + 1,) int64: pictures ``first[c] : first[c + 1]`` belong to class c.
    """

    code_points: tuple[int, ...]
    fields: NDArray[np.float32]
    first: NDArray[np.int64]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.code_points)


@functools.lru_cache(maxsize=2)
def glyph_atlas(classes: int, faces: int) -> GlyphAtlas:
    """Draw the atlas of ``classes`` letters in up to ``faces`` faces each (1 ms a picture; kept for the next call).

    Parameters
    ----------
    classes
        How many letters. Fewer than there are: spread evenly over the code points, each script keeping its share.
    faces
        At most this many faces a letter, in the order of `FACES`.

    Raises
    ------
    ValueError
        If there are fewer letters than ``classes``, or ``faces`` is not in 1..len(FACES).
    """
    letters = distinct_letters()
    if not 2 <= classes <= len(letters):
        raise ValueError(
            f"glyph_atlas: classes must lie in 2..{len(letters)} (the distinct letters there are), got {classes}"
        )
    taken = [letters[i] for i in np.linspace(0, len(letters) - 1, classes).round().astype(int)]
    return _atlas(taken, faces)


@functools.lru_cache(maxsize=1)
def digit_atlas(faces: int) -> GlyphAtlas:
    """Draw the atlas of the ten digits, which `glyph_atlas` leaves out: class = digit, in the first ``faces`` faces.

    Raises ValueError where ``faces`` is not in 1..len(FACES).
    """
    return _atlas([ord("0") + digit for digit in range(10)], faces)


def _atlas(code_points: Sequence[int], faces: int) -> GlyphAtlas:
    if not 1 <= faces <= len(FACES):
        raise ValueError(f"glyph atlas: faces must lie in 1..{len(FACES)}, got {faces}")
    pens = [(set(_charmap(face)), _font(face)) for face in FACES]
    fields: list[NDArray[np.float32]] = []
    first = [0]
    for code_point in code_points:
        drawn = [font for charmap, font in pens if code_point in charmap][:faces]
        fields += [_distance_field(_boxed(_ink(font, code_point), FINE)) for font in drawn]
        first.append(len(fields))
    return GlyphAtlas(tuple(code_points), np.stack(fields), np.array(first, dtype=np.int64))


@functools.cache
def distinct_letters() -> tuple[int, ...]:
    """Code points that are classes, by the three rules above, ascending (0.5 s, kept in memory for the next call)."""
    font = _font(REFERENCE_FACE)
    kept: list[int] = []
    pictures = np.empty((0, (BITMAP // 4) ** 2))
    for code_point in sorted(_charmap(REFERENCE_FACE)):
        letter = chr(code_point)
        if unicodedata.category(letter) not in LETTERS or unicodedata.decomposition(letter):
            continue
        ink = _ink(font, code_point)
        if not ink.any():
            continue
        picture = _counts(_boxed(ink, 1)).ravel()
        distances = np.linalg.norm(pictures - picture, axis=1)
        if distances.min(initial=np.inf) > MIN_DISTANCE * np.linalg.norm(picture):
            kept.append(code_point)
            pictures = np.vstack([pictures, picture])
    return tuple(kept)


def _font_path(face: str) -> Path:
    return Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"


def _charmap(face: str) -> dict[int, int]:
    return dict(FT2Font(str(_font_path(face))).get_charmap())


def _font(face: str) -> ImageFont.FreeTypeFont:
    # The basic layout draws a lone letter as it stands; raqm, where installed, would shape Arabic.
    return ImageFont.truetype(str(_font_path(face)), DRAWING_SIZE, layout_engine=ImageFont.Layout.BASIC)


def _ink(font: ImageFont.FreeTypeFont, code_point: int) -> NDArray[np.uint8]:
    """Grey drawing of one letter, cropped by the font's own bounding box."""
    mask = font.getmask(chr(code_point), mode="L")
    width, height = mask.size
    return np.asarray(mask, dtype=np.uint8).reshape(height, width)


def _boxed(ink: NDArray[np.uint8], fine: int) -> NDArray[np.bool_]:
    """Letter scaled into the glyph box with its proportions kept, centred on the field, black or white."""
    side = (BITMAP + 2 * MARGIN) * fine
    letter = Image.fromarray(ink)
    letter = letter.crop(letter.getbbox())
    scale = min(GLYPH_HEIGHT * fine / letter.height, GLYPH_WIDTH * fine / letter.width)
    size = (max(1, round(letter.width * scale)), max(1, round(letter.height * scale)))
    sheet = Image.new("L", (side, side))
    sheet.paste(letter.resize(size, Image.Resampling.BILINEAR), ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(sheet) > 127


def _counts(sheet: NDArray[np.bool_]) -> NDArray[np.int64]:
    bitmap = sheet[MARGIN:-MARGIN, MARGIN:-MARGIN]
    counts: NDArray[np.int64] = bitmap.reshape(BITMAP // 4, 4, BITMAP // 4, 4).sum(axis=(1, 3))
    return counts


def _distance_field(sheet: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Signed distance to the edge of the stroke, in bitmap pixels, averaged down to one sample a pixel."""
    # A border of paper all round: the transform needs at least one pixel of each kind.
    signed = (distance_transform_edt(sheet) - distance_transform_edt(~sheet)) / FINE
    side = len(sheet) // FINE
    field: NDArray[np.float32] = signed.reshape(side, FINE, side, FINE).mean(axis=(1, 3)).astype(np.float32)
    return field
