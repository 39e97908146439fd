"""A report open in the browser."""

import base64
import io

import numpy as np
from PIL import Image

from tests.open_pages import OpenPage


class Page(OpenPage):
    """A report open in the browser."""

    def cell(self, model, photo):
        """The place of a model's map; the photo itself is model -1."""
        return self.page.locator("#rows > tr").nth(photo).locator(":scope > *").nth(model + 1)

    def canvas(self, model, photo):
        canvas = self.cell(model, photo).locator("canvas")
        canvas.scroll_into_view_if_needed()
        self.cell(model, photo).locator("canvas[data-drawn]").wait_for(state="attached")
        return canvas

    def pixels(self, model, photo):
        url = self.canvas(model, photo).evaluate("(canvas) => canvas.toDataURL()")  # PNG: nothing is lost
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
            return np.asarray(picture.convert("RGB")).astype(int)

    def point(self, model, photo, y, x):
        """Move the pointer to a place relative to the picture."""
        box = self.canvas(model, photo).bounding_box()
        self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])

    def value(self, model, photo):
        return self.cell(model, photo).locator(".value")

    def column(self, table, place):
        rows = self.page.locator(f"#table-{table} tbody tr")
        return [row.locator(":scope > *").nth(place).inner_text() for row in rows.all()]
