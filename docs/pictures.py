"""Draw the two pictures of the front page into nbs/images: paintings of the studio, and the model. Part of `make readme`.

    python docs/pictures.py
"""
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from artgpt4.files import replacing
from artgpt4.render import INK, PALETTE, PAPER, save_figure, set_style
from artgpt4.studio.corpora import sample_paintings
from artgpt4.studio.painter import PALETTES, SCHOOLS, paint

IMAGES = Path(__file__).resolve().parent.parent / "nbs" / "images"
FROZEN, TRAINED = "#DCE6EE", "#F6DCC8"


def paintings(columns: int = 6, size: int = 200, gap: int = 6) -> Image.Image:
    "One painting of each school, in palettes that differ from neighbour to neighbour."
    stream, chosen, palettes = sample_paintings(7, "test", 600), [], list(PALETTES)
    for i, school in enumerate(SCHOOLS):
        palette = palettes[(3 * i + 1) % len(palettes)]
        fits = [p for p in stream if p.artwork.school == school]
        chosen.append(next((p for p in fits if p.artwork.palette == palette), fits[0]))
    rows = len(chosen) // columns
    sheet = Image.new("RGB", (columns * (size + gap) - gap, rows * (size + gap) - gap), PAPER)
    for i, painting in enumerate(chosen):
        picture = paint(painting.artwork, painting.seed, 2 * size).resize((size, size), Image.Resampling.LANCZOS)
        sheet.paste(picture, (i % columns * (size + gap), i // columns * (size + gap)))
    return sheet


def box(ax, x: float, y: float, width: float, height: float, text: str, colour: str, size: float = 9.5) -> None:
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.09", facecolor=colour,
                                edgecolor=INK, linewidth=0.9))  # fmt: skip
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, linespacing=1.35)


def arrow(ax, start: tuple[float, float], end: tuple[float, float]) -> None:
    shape = dict(arrowstyle="-|>", color=INK, linewidth=1.0, shrinkA=0, shrinkB=0, mutation_scale=9)
    ax.annotate("", end, start, arrowprops=shape)


def plus(ax, x: float, y: float) -> None:
    ax.add_patch(plt.Circle((x, y), 0.14, facecolor=PAPER, edgecolor=INK, linewidth=0.9, zorder=3))
    ax.text(x, y - 0.005, "+", ha="center", va="center", fontsize=10, zorder=4)


def model_figure():
    "The path from picture to text above, one block of the language model below."
    fig, ax = plt.subplots(figsize=(9.2, 3.6))
    ax.set(xlim=(0, 12.4), ylim=(0, 4.85), aspect="equal")
    ax.axis("off")
    path = [("picture", PAPER, 1.3), ("ViT", FROZEN, 1.3), ("Q-Former\n32 queries", FROZEN, 1.7), ("linear\nprojection", TRAINED, 1.6),
            ("language model, $L$ blocks", FROZEN, 3.1), ("text", PAPER, 1.0)]  # fmt: skip
    x, top = 0.1, 3.75
    for i, (text, colour, width) in enumerate(path):
        box(ax, x, top, width, 0.95, text, colour)
        if "blocks" in text:
            left, right = x, x + width
        if i < len(path) - 1:
            arrow(ax, (x + width, top + 0.475), (x + width + 0.43, top + 0.475))
        x += width + 0.43
    low, high, middle = 0.15, 3.05, 1.55
    ax.add_patch(FancyBboxPatch((0.1, low), 12.1, high - low, boxstyle="round,pad=0,rounding_size=0.12", facecolor="none",
                                edgecolor=PALETTE["grey"], linewidth=0.9, linestyle=(0, (4, 3))))  # fmt: skip
    for corner, edge in ((left, 0.1 + 2.2), (right, 12.2 - 0.6)):
        ax.plot([corner, edge], [top, high], color=PALETTE["grey"], linewidth=0.8, linestyle=(0, (4, 3)))
    steps = [(0.95, 1.25, "norm", TRAINED), (2.6, 1.5, "attention", FROZEN), (5.25, 2.1, "image adapter\n$h \\to h/4 \\to h$", TRAINED),
             (7.95, 1.2, "norm", TRAINED), (9.55, 1.1, "MLP", FROZEN)]  # fmt: skip
    for at, width, text, colour in steps:
        box(ax, at, middle - 0.45, width, 0.9, text, colour)
    for start, end in ((0.3, 0.95), (2.2, 2.6), (4.1, 4.5), (4.78, 5.25), (7.35, 7.95), (9.15, 9.55), (10.65, 11.06), (11.34, 12.0)):
        arrow(ax, (start, middle), (end, middle))
    for start, end in ((0.6, 4.64), (7.62, 11.2)):
        ax.plot([start, start, end], [middle, 0.55, 0.55], color=INK, linewidth=1.0)
        arrow(ax, (end, 0.55), (end, middle - 0.14))
        plus(ax, end, middle)
    ax.text(1.575, middle + 0.62, "trained in every\nsecond block", ha="center", fontsize=7.5, color=PALETTE["grey"], linespacing=1.2)
    for at, colour, text in ((8.65, TRAINED, "trained"), (10.3, FROZEN, "frozen")):
        box(ax, at, 2.5, 0.34, 0.28, "", colour)
        ax.text(at + 0.45, 2.63, text, fontsize=8.5, va="center")
    return fig


def main() -> None:
    set_style()
    IMAGES.mkdir(parents=True, exist_ok=True)
    with replacing(IMAGES / "paintings.jpg") as temporary:
        paintings().save(temporary, "JPEG", quality=84, optimize=True, progressive=True)
    print(IMAGES / "paintings.jpg")
    print(save_figure(model_figure(), IMAGES / "model.svg"))


if __name__ == "__main__":
    main()
