"""What the fuzz tests share: their rule, and values that nobody expects.

The rule: a right score, or an error that the package raises itself, with a message that says why.
"""

import copy
import linecache
import math
from enum import Enum

import numpy as np
from hypothesis import strategies as st

import flax_rerank
from flax_rerank import convert

PACKAGES = (flax_rerank.__path__[0], convert.__path__[0])
KNOWN = (ValueError, TypeError, OSError, NotImplementedError, ImportError, FloatingPointError, MemoryError)


class Outcome(Enum):
    """What became of an example."""

    RIGHT = 1
    REFUSED = 2


def attempt(call):
    """What a call returns, and None; or None, and the message of the known error that the package, or the system for
    a file, raised on purpose. Other errors are raised."""
    try:
        return call(), None
    except Exception as error:  # which one, is judged here
        last = error.__traceback__
        while last.tb_next is not None:
            last = last.tb_next
        file = last.tb_frame.f_code.co_filename
        raised = linecache.getline(file, last.tb_lineno).strip().startswith("raise")
        by_package = raised and file.startswith(PACKAGES)
        by_system = isinstance(error, OSError) and error.filename is not None
        if not isinstance(error, KNOWN) or not (by_package or by_system) or not str(error).strip():
            raise
        return None, str(error)


characters = st.characters(exclude_categories=())  # lone surrogates too
texts = st.one_of(
    st.text(characters, max_size=30),
    st.text("ab \n\t\0é中\u200b\ud800😀", max_size=200),
    st.sampled_from(["[SEP]", "[CLS] a [SEP] b", "<s>", "</s>", "<unk>", "{}", "{0.__class__}", "%s", "\\n", "Yes"]),
    st.integers(0, 300).map("word ".__mul__),
)
numbers = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**31 - 1, 2**31, 2**63, 10**30, -(10**30), 10**400]),
    st.floats(),
    st.sampled_from([0.5, 1.0, 64.0, 1e-300, 1e300, math.nan, math.inf]),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=6,
)
odd_values = st.one_of(
    json_values,
    st.binary(max_size=5),
    st.sets(st.integers(), max_size=3),
    st.tuples(texts, texts),
    st.sampled_from([np.float32(2), np.int64(3), np.bool_(True), np.array([1, 2]), np.array("a"), object, len, 1j]),
    st.builds(iter, st.lists(st.integers(), max_size=2)),
)


def places_in(value, within=()):
    """The keys and indices of every value in a JSON value, at every depth."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        yield (*within, name)
        yield from places_in(each, (*within, name))


def mutated(value, values=json_values):
    """A JSON value with one to three changes: a value replaced, removed, or put under another name."""
    places = list(places_in(value))
    shallow = [place for place in places if len(place) < 3]
    change = st.tuples(
        st.one_of(st.sampled_from(shallow), st.sampled_from(places)),
        st.sampled_from(["replace", "replace", "replace", "remove", "rename"]),
        values,
    )

    def change_all(changes):
        changed = copy.deepcopy(value)
        for place, action, new in changes:
            inner = changed
            try:
                for name in place[:-1]:
                    inner = inner[name]
                if action == "replace":
                    inner[place[-1]] = new
                elif action == "remove" or isinstance(inner, list):
                    del inner[place[-1]]
                else:
                    inner[str(new)[:20]] = inner.pop(place[-1])
            except (LookupError, TypeError, AttributeError):
                continue  # an earlier change removed it
        return changed

    return st.lists(change, min_size=1, max_size=3).map(change_all)


def damaged(data):
    """Bytes with one change: bits flipped, a part cut out or off, bytes put in, or something else in their place."""
    size = len(data)
    place = st.integers(0, max(size - 1, 0))
    flipped = st.tuples(place, st.integers(1, 255)).map(
        lambda at: data[: at[0]] + bytes([data[at[0]] ^ at[1]]) + data[at[0] + 1 :] if data else b"x"
    )
    cut = place.map(lambda at: data[:at])
    hole = st.tuples(place, st.integers(1, 64)).map(lambda at: data[: at[0]] + data[at[0] + at[1] :])
    more = st.tuples(place, st.binary(min_size=1, max_size=16)).map(lambda at: data[: at[0]] + at[1] + data[at[0] :])
    other = st.one_of(st.binary(max_size=40), st.just(b""), st.just(b"\xff\xfe[\0"), st.just(b"[" * 100_000))
    return st.one_of(flipped, flipped, cut, hole, more, other)
