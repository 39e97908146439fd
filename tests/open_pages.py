"""Pages open in a browser."""

import base64
import io

import numpy as np
from PIL import Image


class OpenPage:
    """A page open in the browser, with what it complained about."""

    def __init__(self, browser, path, **options):
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.context.set_default_timeout(120_000)  # ms; a busy machine is slow
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def settle(self):
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def picture(self, selector, number=0):
        """What a canvas shows: `(height, width, 3)`. As PNG, because a list of numbers takes a second to arrive."""
        address = self.page.locator(selector).nth(number).evaluate("(canvas) => canvas.toDataURL('image/png')")
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as shown:
            return np.asarray(shown.convert("RGB"))

    def choose(self, name, value):
        self.page.locator(f"#{name}").select_option(value)
        self.settle()

    def check(self, name, value):
        self.page.locator(f"#{name}").set_checked(value)
        self.settle()

    def slide(self, name, value):
        self.page.locator(f"#{name}").fill(str(value))
        self.settle()
