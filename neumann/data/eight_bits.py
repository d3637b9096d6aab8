"""The conversion of every image to 8-bit grey or RGB, and what it loses; no torch.

As in torchvision's ImageFolder, EXIF orientation is ignored and transparency dropped. `losses` names what is lost, and
`neumann.data.copies` refuses a folder whose classes cannot be told apart afterwards.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from PIL import ExifTags, Image

DEEP = "have more than 8 bits a channel, of which 8 are kept (of 16 bits the upper ones)"
TRANSPARENT = "have transparency, which is dropped"
TURNED = "have an EXIF orientation, which is not applied"
MOVING = "have several frames, of which the first is taken"
SINGULAR = (("have ", "has "), ("are PNG files", "is a PNG file"), ("their", "its"))  # of what is said of images
# Pillow warns from 89 million pixels on and refuses from 179 million; the refusal is told, and half of it is allowed
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def as_eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """Return ``image``, decoded, as 8-bit grey (1 channel) or RGB (3).

    Raises ValueError for pixels whose full value is not known, and for EPS under an image's name.
    """
    if image.format == "EPS":  # decoding it would start Ghostscript, if it is installed, on a program from the file
        raise ValueError("EPS is a program that draws: convert it to PNG")
    if image.mode == "F":  # Pillow would clip to 0 to 255: black where the full value is 1
        raise ValueError("its pixels are floating-point numbers, whose full value is not known: convert it to 8 bits")
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to 255 rather than scale
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:  # whose upper 8 of 16 bits would be noise
            raise ValueError(
                f"its pixels go from {values.min()} to {values.max()}, which is not 0 to 65535: convert it"
            )
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image.load()
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # which would copy one that is so already


def losses(image: Image.Image) -> tuple[str, ...]:
    """Return what `as_eight_bits` loses of ``image``, just opened, each as the end of a sentence about images."""
    found = []
    deep = image.mode[0] in "IF"
    if deep or any(_is_deep(tile) for tile in getattr(image, "tile", ())):  # Pillow reads RGB of 16 bits as RGB
        found.append(DEEP)
    if getattr(image, "is_animated", False):
        found.append(MOVING)
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    except Exception:  # noqa: BLE001 - the pixels may be read all the same
        turned = False
    if turned:
        found.append(TURNED)
    if not deep and image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        found.append(TRANSPARENT)
    return tuple(found)


def counted(count: int, what: str) -> str:
    """Return how many images something is said of; ``what`` says it of several."""
    if count != 1:
        return f"{count} images {what}"
    for several, one in SINGULAR:
        what = what.replace(several, one, 1)
    return f"1 image {what}"


def _is_deep(tile: Any) -> bool:
    """Return whether ``tile``, Pillow's plan of decoding, begins at more than 8 bits a channel.

    It names the raw mode (``RGB;16B``), for PPM the file's full value.
    """
    args = tile[3]
    return ";16" in str(args) or (str(tile[0]).startswith("ppm") and isinstance(args, tuple) and args[1] > 255)
