"""Waveforms: resampling and log-mel spectrograms."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from scipy.signal import resample_poly


def resampled(waveform: np.ndarray, rate: int, target: int) -> np.ndarray:
    """A waveform [n] at another rate (samples a second), float32."""
    if rate == target:
        return waveform
    divisor = math.gcd(rate, target)
    return resample_poly(waveform, target // divisor, rate // divisor).astype(np.float32)


def log_mel(waveforms: np.ndarray, rate: int, bands: int = 32, window: int = 1024, hop: int = 512) -> np.ndarray:
    """Log-mel spectrograms [N, bands, frames], float32, of waveforms [N, samples] in -1..1.

    Power in triangular bands from 50 Hz to 8 kHz (at most half the rate), evenly spaced in mel; logarithm to base 10,
    at most 8 decades below the loudest point, scaled to about [-1, 1].
    """
    frames = np.lib.stride_tricks.sliding_window_view(waveforms, window, axis=1)[:, ::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window).astype(np.float32))) ** 2
    mel = np.moveaxis(power @ _filters(rate, bands, window).T, 1, 2)
    decades = np.log10(np.maximum(mel, 1e-10))
    decades = np.maximum(decades, decades.max(axis=(1, 2), keepdims=True) - 8)
    return ((decades + 4) / 4).astype(np.float32)


@cache
def _filters(rate: int, bands: int, window: int) -> np.ndarray:
    """Triangular mel filters [bands, frequencies]."""
    top = min(8000.0, rate / 2)
    mel = np.linspace(2595 * np.log10(1 + 50 / 700), 2595 * np.log10(1 + top / 700), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequencies = np.fft.rfftfreq(window, 1 / rate)
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    return np.clip(np.minimum(rising, falling), 0, None).astype(np.float32)
