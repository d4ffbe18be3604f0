"""Image files of every kind that users have, drawn here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def drawing(width: int, height: int) -> Image.Image:
    """Return an RGB image with edges, gradients and noise that looks different in every orientation."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(width * 10_000 + height).integers(0, 30, (height, width))
    pixels = np.stack([x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + y) % 200 + noise], axis=2)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.1, height * 0.2, width * 0.5, height * 0.6), fill=(250, 30, 10))
    draw.polygon(
        [(width * 0.6, height * 0.9), (width * 0.9, height * 0.9), (width * 0.9, height * 0.3)], fill=(5, 200, 90)
    )
    return image


def odd_images(folder: Path) -> dict[str, Path]:
    """Write one file of each kind and return their paths by name."""
    wide, tall = drawing(90, 50), drawing(41, 97)
    paths: dict[str, Path] = {}

    def save(name: str, image: Image.Image, **options: object) -> None:
        paths[name] = folder / name
        image.save(paths[name], **options)  # type: ignore[arg-type]

    save("wide.jpg", wide, quality=95)
    save("tall.jpg", tall, quality=80, progressive=True)
    save("gray.jpg", wide.convert("L"))
    save("cmyk.jpg", wide.convert("CMYK"))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(f"orientation-{orientation}.jpg", wide, exif=exif)
        save(f"orientation-{orientation}.tif", wide, exif=exif)
    save("huge.jpg", drawing(900, 700))
    exif = Image.Exif()
    exif[0x0112] = 6
    save("huge-sideways.jpg", drawing(1100, 640), exif=exif)
    save("several-in-one.jpg", drawing(800, 500), format="MPO", save_all=True, append_images=[wide])
    save("plain.png", tall)
    save("tiny.png", drawing(3, 2))
    save("one-bit.png", wide.convert("1"))
    save("palette.png", wide.convert("P", palette=Image.Palette.ADAPTIVE, colors=17))
    alpha = wide.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(wide.size))
    save("alpha.png", alpha)
    save("gray-alpha.png", alpha.convert("LA"))
    save("transparent-palette.png", wide.convert("P", palette=Image.Palette.ADAPTIVE, colors=9), transparency=3)
    save("transparent-color.png", wide, transparency=wide.getpixel((20, 20)))
    ramp = np.linspace(0, 65535, 60 * 40).round().astype(np.uint16).reshape(40, 60)
    save("sixteen-bit.png", Image.fromarray(ramp))
    save("sixteen-bit.tif", Image.fromarray(ramp))
    save("plain.bmp", wide)
    save("plain.tif", wide, compression="tiff_lzw")
    save("plain.webp", wide, lossless=True)
    save("plain.ppm", wide)
    save("gray.pgm", wide.convert("L"))
    save("animated.gif", wide, save_all=True, append_images=[drawing(90, 50).rotate(180)], duration=50, loop=0)
    return paths
