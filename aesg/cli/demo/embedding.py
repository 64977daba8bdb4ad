"""Text to vectors: TF-IDF weights, reduced by a truncated singular value decomposition (latent semantic analysis).

Small, quick and the same on every run; no model to download. What it lacks in understanding the links make up for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from aesg.cli.demo.corpus import Passage
from aesg.errors import AESGError, InvalidInputError
from aesg.records import Vectors

DIM: Final = 256
"""Length of the vectors; less where there is little text."""

_HUMP = re.compile(r"([a-z0-9])([A-Z])")
_WORD = re.compile(r"[^\W\d_]{2,}")
_ENDINGS = ("ings", "ing", "edly", "ed", "ies", "es", "s", "e", "ly")


class Embedder:
    """Fitted to the passages of one corpus.

    Attributes:
        vectors: float32 [len(passages), dim], of length 1; zero for a passage without a word.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        """Learn the vocabulary and the directions.

        Raises:
            AESGError: scikit-learn is missing.
            InvalidInputError: Too little text.
        """
        try:
            from sklearn.decomposition import TruncatedSVD
            from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
        except ImportError as error:
            raise AESGError("the demo needs scikit-learn: pip install 'aesg[demo]'") from error
        self._stop_words = ENGLISH_STOP_WORDS
        self._tfidf = TfidfVectorizer(analyzer=self._terms, sublinear_tf=True, min_df=2 if len(passages) > 100 else 1)
        # The name counts twice: it is the passage's title.
        texts = [f"{p.name} {p.name} {p.text}" for p in passages]
        try:
            weights = self._tfidf.fit_transform(texts)
        except ValueError as error:
            raise InvalidInputError("the passages hold no words to tell them apart by") from error
        dim = min(DIM, *(n - 1 for n in weights.shape))
        if dim < 1:
            raise InvalidInputError(
                f"{len(passages)} passages are too few: at least two with different words are needed"
            )
        self._svd = TruncatedSVD(dim, random_state=0)
        self.vectors: Vectors = _unit(self._svd.fit_transform(weights))

    def __call__(self, text: str) -> Vectors:
        """A question's vector, float32 [dim], of length 1; zero when it shares no word with the corpus."""
        vector: Vectors = _unit(self._svd.transform(self._tfidf.transform([text])))[0]
        return vector

    def _terms(self, text: str) -> list[str]:
        """Lower-case word stems; `getOpcodes` and `get_opcodes` are two words each."""
        words = _WORD.findall(_HUMP.sub(r"\1 \2", text).lower())
        return [_stem(word) for word in words if word not in self._stop_words]


def _stem(word: str) -> str:
    """Crude, but enough for `deletes` to meet `deleting`."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
