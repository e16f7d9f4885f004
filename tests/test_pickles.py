"""Pickles of official data: plain values and sparse matrices are read, nothing else is called."""

import collections
import pickle

import numpy as np
import pytest
import scipy.sparse

from repertory.data.pickles import read_pickle
from repertory.errors import DataError


@pytest.fixture
def stored(tmp_path):
    def store(value, protocol=4):
        path = tmp_path / "value.pkl"
        path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
        return path

    return store


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_plain_values_come_back(stored, protocol):
    value = {"a": [1, 2.5, "x", None], "b": np.arange(6.0).reshape(2, 3), "c": collections.defaultdict(list, {1: [2]})}
    made = read_pickle(stored(value, protocol))
    np.testing.assert_array_equal(made.pop("b"), value.pop("b"))
    assert made == value


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", ["matrix", "array"])
@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
def test_sparse_matrices_come_back(stored, form, kind, protocol):
    value = getattr(scipy.sparse, f"{form}_{kind}")(scipy.sparse.random(7, 5, 0.4, random_state=0))
    np.testing.assert_array_equal(read_pickle(stored(value, protocol)).toarray(), value.toarray())


def test_what_python_2_wrote_comes_back(stored):
    """A CSR matrix as ``cPickle`` wrote it in the citation graphs."""
    state = {"_shape": (1, 3), "data": np.ones(2), "indices": np.array([0, 2], "i4"), "indptr": np.array([0, 2], "i4")}
    body = pickle.dumps(state, 2)[2:-1]  # without the protocol and the stop
    made = b"\x80\x02ccopy_reg\n_reconstructor\nq\xc8cscipy.sparse.csr\ncsr_matrix\nq\xc9c__builtin__\nobject\nq\xcaN"
    np.testing.assert_array_equal(read_pickle(stored(made + b"\x87R" + body + b"b.")).toarray(), [[1, 0, 1]])


class Evil:
    def __reduce__(self):
        return print, ("called",)


@pytest.mark.parametrize("value", [Evil(), collections.Counter(), [Evil()], np.array([Evil()], dtype=object)])
def test_nothing_else_is_made(stored, capsys, value):
    path = stored(value)
    with pytest.raises(DataError, match="which is not read"):
        read_pickle(path)
    assert capsys.readouterr().out == ""


def test_damage_is_told(stored, tmp_path):
    wrong = scipy.sparse.csr_matrix(np.eye(3))
    wrong.indices[0] = 9
    for value, message in ((wrong, "indices must be < 3"), (b"\x80\x04nonsense", "not a pickle")):
        with pytest.raises(DataError, match=message):
            read_pickle(stored(value))
    with pytest.raises(DataError, match="no such file"):
        read_pickle(tmp_path / "none.pkl")
