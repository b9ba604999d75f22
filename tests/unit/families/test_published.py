"""config.json files of published models: each is read as transformers reads it, or refused with the key that is why."""

import logging
import warnings

import pytest

from tests.unit.families.published import PUBLISHED
from tests.unit.families.test_against_transformers import assert_equal, read_both


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read_or_refused(tmp_path, name):
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    keys, words = PUBLISHED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of their keys is unknown
        warnings.filterwarnings("ignore", module="transformers")
        ours, said, theirs = read_both(tmp_path, keys)
    if words:
        assert ours is None and words in said, said
    else:
        assert ours is not None, said
        assert_equal(ours, theirs)
