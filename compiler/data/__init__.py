"""Images for evaluation and calibration: where they come from, and how they become inputs.

Nothing here imports torch before the first image is read, so that what is wrong with an option is said at once.
"""
