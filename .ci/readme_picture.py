"""Make the README's picture from the log of the digits example.

    python examples/digits.py && python .ci/readme_picture.py runs/digits/cfc-u48-s0

It shows the last image of each tag.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = ("attribution/heatmap", "time_delta/curve", "hidden/pca", "backbone/unit_activity")
GAP = 24


def main(run: str) -> None:
    events = EventAccumulator(run, size_guidance={"tensors": 0})
    events.Reload()
    # The first two strings of an image summary are its width and height.
    pngs = [events.Tensors(tag)[-1].tensor_proto.string_val[2] for tag in TAGS]
    images = [Image.open(BytesIO(png)).convert("RGB") for png in pngs]
    width, height = images[0].size
    sheet = Image.new("RGB", (2 * width + 3 * GAP, 2 * height + 3 * GAP), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, 2)
        sheet.paste(image, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    out = Path(__file__).parent.parent / "examples" / "digits.png"
    sheet.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
