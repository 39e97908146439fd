"""Viewers open in the browser."""

import re

import torch

from attnhook.attribution.map_making import placed
from tests.open_pages import OpenPage


class Page(OpenPage):
    """A viewer open in the browser."""

    def __init__(self, browser, path, **options):
        super().__init__(browser, path, **({"viewport": {"width": 1280, "height": 800}} | options))
        self.page.wait_for_selector("#canvas[data-drawn]")

    def source(self, name):
        self.page.locator(f'[name="source"][value="{name}"]').check()
        self.settle()

    def position(self, one, patch, block=-1):
        """The middle of a patch, from the canvas's corner."""
        grid = torch.rand(one.maps[block].layout.grid)
        top, left, bottom, right = placed(one.maps, grid, one.maps[block]).box(one.geometry, patch)
        box, (width, height) = self.page.locator("#canvas").bounding_box(), one.image.size
        return {"x": (left + right) / 2 * box["width"] / width, "y": (top + bottom) / 2 * box["height"] / height}

    def hover(self, one, patch, block=-1):
        self.page.locator("#canvas").hover(position=self.position(one, patch, block))

    def click(self, one, patch, block=-1):
        self.page.locator("#canvas").click(position=self.position(one, patch, block))
        self.settle()

    def press(self, key):
        self.page.keyboard.press(key)
        self.settle()

    def value(self, one, patch, block=-1):
        """Under the pointer: the patch, the value and its bound, as kept and as written."""
        self.hover(one, patch, block)
        out = self.page.locator("#value")
        facts = out.evaluate("(node) => ({...node.dataset})")
        assert (int(facts["row"]), int(facts["column"])) == patch
        written = re.search(r"column \d+: ([\d.]+) ± ([\d.]+), ", out.inner_text())
        return float(facts["value"]), float(facts["bound"]), float(written[1]), float(written[2])

    def pixels(self):
        return self.picture("#canvas").astype(int)

    def text(self, name):
        return self.page.locator(f"#{name}").inner_text()
