"""How many pixels of an image one position of a smaller grid stands for, from the two lengths alone."""


def pixels_per_step(pixels: int, positions: int) -> int:
    """Find the step of a grid that a CNN or the stages of a model made of an image, halving it again and again.

    What is halved and has an odd length is padded, as by convolutions with padding and by Swin: the last position then reaches beyond the image,
    and the step is still a power of two. 240 pixels and 8 positions are steps of 32, not of 30.

    Example:
        >>> pixels_per_step(240, 8), pixels_per_step(240, 20), pixels_per_step(240, 14)
        (32, 12, 0)
    """
    step = 1
    while step < pixels:
        if -(-pixels // step) == positions:
            return step
        step *= 2
    return pixels // positions if pixels % positions == 0 else 0
