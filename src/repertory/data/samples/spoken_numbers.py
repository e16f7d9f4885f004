"""Spoken numbers: images, texts and speech of which only all three together make sense.

An image shows a handwritten digit, a text holds five number words (English, German, French, Spanish, Italian, each an
independent random digit), a voice says "the number" in one of the five languages; the image shows the digit that the
word of that language names. A small sibling of Symile-M3 (Saporta et al. 2024). Digits: scikit-learn's copy of the
UCI handwritten digits. Speech: synthesised by eSpeak NG (GPL-3, a separate library in a process of its own).
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from repertory.data.manifest import Manifest, Modality
from repertory.data.samples import Package, Sample
from repertory.errors import DataError

LANGUAGES = ("en", "de", "fr", "es", "it")
PHRASES = {"en": "the number", "de": "die Zahl", "fr": "le nombre", "es": "el número", "it": "il numero"}
NUMBERS = {
    "en": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "de": ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"],
    "fr": ["zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"],
    "es": ["cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"],
    "it": ["zero", "uno", "due", "tre", "quattro", "cinque", "sei", "sette", "otto", "nove"],
}
SAMPLE_RATE = 22050  # Hz
SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}
UTTERANCES = 400


class Phrase(NamedTuple):
    """What eSpeak NG is to say: ``rate`` in words a minute (80 to 450), ``pitch`` 0 to 99."""

    text: str
    voice: str
    rate: int
    pitch: int


def speak(phrases: Sequence[Phrase], engine: Path) -> list[np.ndarray]:
    """Waveforms of the phrases: int16 at 22,050 Hz. ``engine``: the folder of the unpacked ``espeakng_loader``.

    The engine varies the voice a little from one call to the next and cannot be reset, so it says the whole list in a
    fresh process: the same list gives the same samples. DataError where it is not there or refuses.
    """
    if not (engine / "espeak-ng-data").is_dir():
        raise DataError(f"no eSpeak NG in {engine}: 'espeak-ng-data' is missing")
    child = subprocess.run(
        [sys.executable, "-P", __file__, str(engine)],
        input=json.dumps(list(phrases)).encode(),
        capture_output=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if child.returncode:
        reason = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise DataError(f"eSpeak NG in {engine} failed: {reason}")
    lengths, _, samples = child.stdout.partition(b"\n")
    ends = np.cumsum(json.loads(lengths))
    return np.split(np.frombuffer(samples, "<i2").astype(np.int16), ends[:-1])


def _serve(engine: Path) -> None:
    """In the child process: phrases as JSON on standard input; on standard output a line of lengths, then samples."""
    names = {"linux": "libespeak-ng.so", "darwin": "libespeak-ng.dylib", "win32": "espeak-ng.dll"}
    library = ctypes.CDLL(str(engine / names[sys.platform]))
    retrieval, default_buffer = 2, 0
    if library.espeak_Initialize(retrieval, default_buffer, os.fsencode(engine), 0) != SAMPLE_RATE:
        raise RuntimeError("espeak_Initialize failed")
    heard = bytearray()

    def listen(samples: int | None, count: int, events: int | None) -> int:
        if samples:
            heard.extend(ctypes.string_at(samples, 2 * count))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(listen)
    library.espeak_SetSynthCallback(callback)
    waveforms = []
    for text, voice, rate, pitch in json.loads(sys.stdin.buffer.read()):
        heard.clear()
        encoded = text.encode() + b"\0"
        rate_parameter, pitch_parameter, utf8 = 1, 3, 1
        if (
            library.espeak_SetVoiceByName(voice.encode())
            or library.espeak_SetParameter(rate_parameter, rate, 0)
            or library.espeak_SetParameter(pitch_parameter, pitch, 0)
            or library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 1, 0, utf8, None, None)
        ):
            raise RuntimeError(f"cannot say '{text}' with voice '{voice}', rate {rate}, pitch {pitch}")
        waveforms.append(bytes(heard))
    sys.stdout.buffer.write(json.dumps([len(w) // 2 for w in waveforms]).encode() + b"\n" + b"".join(waveforms))


def build(engine: Path, triples: int = 60_000, seed: int = 0) -> dict[str, Any]:
    """The sample as banks and triples that point into them; a function of ``triples`` (<= 100,000) and ``seed``.

    - ``images`` [1797, 8, 8] uint8 (0 to 255), ``image_digits``;
    - ``texts``: one string of five number words a triple, all different; ``text_digits`` [triples, 5];
    - ``utterances`` [400, 22050] int16, padded with silence to 1 s, ``utterance_languages`` (index into LANGUAGES);
    - for each triple ``image``, ``text``, ``utterance`` (index into its bank), ``digit``, ``language`` and ``split``
      ("train", "val", "test"; 8 : 1 : 1). No image, text or utterance is in two splits.
    """
    from sklearn.datasets import load_digits

    if not 100 <= triples <= 100_000:
        raise DataError(f"triples must lie between 100 and 100,000, the number of different texts; got {triples}")
    random = np.random.default_rng(seed)
    digits = load_digits()
    image_digits = digits.target.astype(np.int64)
    utterance_languages = np.arange(UTTERANCES) % len(LANGUAGES)
    rates = random.integers(120, 221, UTTERANCES)
    pitches = random.integers(20, 81, UTTERANCES)
    phrases = [
        Phrase(PHRASES[LANGUAGES[language]], LANGUAGES[language], int(rate), int(pitch))
        for language, rate, pitch in zip(utterance_languages, rates, pitches, strict=True)
    ]
    utterances = np.zeros((UTTERANCES, SAMPLE_RATE), np.int16)
    for row, waveform in zip(utterances, speak(phrases, engine), strict=True):
        row[: len(waveform)] = waveform[:SAMPLE_RATE]

    text_digits = random.permutation(10 ** len(LANGUAGES))[:triples, None] // 10 ** np.arange(len(LANGUAGES)) % 10
    words = np.array([NUMBERS[language] for language in LANGUAGES], dtype=object)
    texts = [" ".join(row) for row in words[np.arange(len(LANGUAGES)), text_digits]]
    language = random.integers(len(LANGUAGES), size=triples)
    digit = text_digits[np.arange(triples), language]

    split = _splits(np.zeros(triples, np.int64), random)
    image = _matching(image_digits, _splits(image_digits, random), digit, split, random)
    utterance = _matching(utterance_languages, _splits(utterance_languages, random), language, split, random)
    return {
        "images": np.round(digits.images * (255 / 16)).astype(np.uint8),
        "image_digits": image_digits,
        "texts": texts,
        "text_digits": text_digits,
        "utterances": utterances,
        "utterance_languages": utterance_languages,
        "image": image,
        "text": np.arange(triples),
        "utterance": utterance,
        "digit": digit,
        "language": language,
        "split": np.array(list(SPLITS))[split],
    }


def _splits(strata: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A split (number) for each item, in the proportions of SPLITS within each stratum."""
    split = np.empty(len(strata), np.int64)
    for stratum in np.unique(strata):
        rows = random.permutation(np.flatnonzero(strata == stratum))
        ends = np.round(np.cumsum(list(SPLITS.values())) * len(rows)).astype(int)
        for number, part in enumerate(np.split(rows, ends[:-1])):
            split[part] = number
    return split


def _matching(
    kinds: np.ndarray, bank_split: np.ndarray, wanted: np.ndarray, split: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """For each triple a random item of the bank that has the wanted kind and the triple's split."""
    chosen = np.empty(len(wanted), np.int64)
    for kind in np.unique(kinds):
        for number in range(len(SPLITS)):
            rows = (wanted == kind) & (split == number)
            chosen[rows] = random.choice(np.flatnonzero((kinds == kind) & (bank_split == number)), rows.sum())
    return chosen


def load(packages: dict[str, Path], triples: int = 60_000, seed: int = 0) -> Manifest:
    """The sample as a manifest: image, text, audio; label: the digit; the splits share no image, text or utterance."""
    made = build(packages[ENGINE.name] / "espeakng_loader", triples, seed)
    modalities = {
        "image": Modality("image", list(made["images"]), made["image"]),
        "text": Modality("text", made["texts"], made["text"]),
        "audio": Modality("audio", [(utterance, SAMPLE_RATE) for utterance in made["utterances"]], made["utterance"]),
    }
    columns = {
        "digit": made["digit"],
        "language": np.array(LANGUAGES)[made["language"]],
        "split": made["split"],
    }
    width = len(str(triples - 1))
    return Manifest([f"{i:0{width}d}" for i in range(triples)], modalities, columns, {"label": ("digit",)})


ENGINE = Package(
    name="espeakng-loader",
    version="0.2.4",
    files=("espeakng_loader/*",),
    sha256=(
        "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d",  # Linux, x86-64
        "d27cdca31112226e7299d8562e889d3e38a1e48055c9ee381b45d669072ee59f",  # macOS, arm64
        "41f1e08ac9deda2efd1ea9de0b81dab9f5ae3c4b24284f76533d0a7b1dd7abd7",  # Windows, x86-64
    ),
    licence="GPL-3.0-or-later (eSpeak NG, used as a separate program)",
)

SAMPLE = Sample(
    name="spoken-numbers",
    kind="manifest",
    about="a handwritten digit, number words in five languages, a spoken phrase: only all three make sense",
    licence="digits: UCI via scikit-learn (CC BY 4.0); speech: synthesised here by eSpeak NG (GPL-3.0 engine)",
    build=load,
    packages=(ENGINE,),
)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
