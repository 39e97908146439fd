"""A report open in the browser."""

import base64
import io

import numpy as np
from PIL import Image


class Page:
    """A report open in the browser, with what it complained about."""

    def __init__(self, browser, path, **options):
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def settle(self):
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def choose(self, name, value):
        self.page.locator(f"#{name}").select_option(value)
        self.settle()

    def check(self, name, value):
        self.page.locator(f"#{name}").set_checked(value)
        self.settle()

    def slide(self, name, value):
        self.page.locator(f"#{name}").fill(str(value))
        self.settle()

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
