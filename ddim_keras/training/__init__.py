"""How a denoising network is trained by Keras's `fit`: what is minimised, on which data, watched by
whom.
"""
