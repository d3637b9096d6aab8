"""The conversion of every image to 8-bit grey or RGB, and what it loses; no torch.

As in torchvision's ImageFolder, EXIF orientation is ignored and transparency dropped. `losses` names what is lost, and
`neumann.data.copies` refuses a folder whose classes cannot be told apart afterwards.
"""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image

DEEP = "have more than 8 bits a channel, of which 8 are kept (of 16 bits the upper ones)"
TRANSPARENT = "have transparency, which is dropped"
TURNED = "have an EXIF orientation, which is not applied"
MOVING = "have several frames, of which the first is taken"


def as_eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """Return ``image``, decoded, as 8-bit grey (1 channel) or RGB (3)."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to 255 rather than scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image.load()
    return image.convert("L" if channels == 1 else "RGB")


def losses(image: Image.Image) -> tuple[str, ...]:
    """Return what `as_eight_bits` loses of ``image``, just opened, each as the end of a sentence about images."""
    found = []
    deep = image.mode[0] in "IF"
    if deep or any(";16" in str(tile) for tile in getattr(image, "tile", ())):  # Pillow reads RGB of 16 bits as RGB
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
