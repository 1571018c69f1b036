"""``demo``: a page on this machine that generates, inpaints and interpolates images, for a colleague to see."""
