"""The paper's mathematics: schedules, levels, spacings, the forward process, parameterizations,
weightings.

Images have zero mean and unit variance here. x_t = a x_0 + b noise, with the signal rate a and the
noise rate b of the diffusion time t, which runs from 0 at the image to 1 at the noise. Rates come
in this order: signal, noise.
"""
