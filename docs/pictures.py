"""Draw the two pictures of the front page into nbs/images: paintings of the studio, and the model.

    python docs/pictures.py

Part of `make readme`. Nothing is typed in: the paintings come from the studio's painter, the model from the model.
"""

from pathlib import Path

import torch
from PIL import Image

from artgpt4.figures import draw_architecture
from artgpt4.files import replacing
from artgpt4.model import ArtGPT4Config, ArtGPT4ForConditionalGeneration
from artgpt4.render import PAPER, save_figure, set_style
from artgpt4.studio.corpora import sample_paintings
from artgpt4.studio.painter import PALETTES, SCHOOLS, Artwork, paint

IMAGES = Path(__file__).resolve().parent.parent / "nbs" / "images"
SAILBOAT = Artwork("impressionist", "a sailboat", "ember", "center", "dim", "calm")


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
        large = paint(painting.artwork, painting.seed, 2 * size)
        place = i % columns * (size + gap), i // columns * (size + gap)
        sheet.paste(large.resize((size, size), Image.Resampling.LANCZOS), place)
    return sheet


def model_figure():
    "The model at the paper's size, built without a number in it, with a painting for it to look at."
    vision = dict(hidden_size=1408, intermediate_size=6144, num_hidden_layers=39, num_attention_heads=16)
    text = dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40)
    config = ArtGPT4Config(
        vision_config=dict(vision, image_size=224, patch_size=14), text_config=dict(text, vocab_size=32000)
    )
    with torch.device("meta"):
        model = ArtGPT4ForConditionalGeneration(config)
    few_bytes = paint(SAILBOAT, seed=3).resize((112, 112), Image.Resampling.LANCZOS).quantize(32).convert("RGB")
    set_style()
    return draw_architecture(model, few_bytes)


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with replacing(IMAGES / "paintings.jpg") as temporary:
        paintings().save(temporary, "JPEG", quality=84, optimize=True, progressive=True)
    print(IMAGES / "paintings.jpg")
    print(save_figure(model_figure(), IMAGES / "model.svg"))


if __name__ == "__main__":
    main()
