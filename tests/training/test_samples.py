"""The samples of a run in a file."""

import warnings

import numpy as np
import pytest

from alr_fast.data.datasets import Split, open_dataset
from alr_fast.data.images.sources import FeatureRows, FileImages
from alr_fast.data.index import PathTable, SampleIndex
from alr_fast.errors import UserError
from alr_fast.training.samples import load_samples, samples_file, save_samples

pytestmark = pytest.mark.filterwarnings("error")

PATHS = [b"a/1.png", "b/\u00e4 2.png".encode(), b"b/\xff.png", b"c"]


def split_of(paths=PATHS, clean=None, images=None):
    table = PathTable.of(paths)
    index = SampleIndex(
        sample_ids=np.array([0, 3, 4, 9])[: len(table)],
        paths=table,
        labels=np.array([0, 2, 1, 1])[: len(table)],
        clean_labels=clean,
        class_names=("a", "caf\udce9", "c"),
    )
    return Split(index, images or FileImages(None, table))


def same(found, wanted):
    assert found.sample_ids.tolist() == wanted.sample_ids.tolist()
    assert list(found.paths) == list(wanted.paths)
    assert found.labels.tolist() == wanted.labels.tolist()
    assert found.class_names == wanted.class_names
    assert (found.clean_labels is None) == (wanted.clean_labels is None)
    assert found.sample_fingerprint() == wanted.sample_fingerprint()


@pytest.mark.parametrize("clean", [None, np.array([0, 1, 1, 2])])
@pytest.mark.parametrize("rows", [slice(None), [0, 1], [1, 3], [2]])
def test_samples_are_read_as_they_were_written(tmp_path, clean, rows):
    split = split_of(clean=clean).take(np.arange(4)[rows])
    # As those of a cached data set, which are mapped and read-only.
    split.index.paths.blob.flags.writeable = False
    save_samples(tmp_path, split)
    fingerprint = split.index.sample_fingerprint()
    index, kind = load_samples(tmp_path, fingerprint)
    same(index, split.index)
    assert kind == "images"
    if clean is not None:
        assert index.clean_labels.tolist() == split.index.clean_labels.tolist()
    assert [path.name for path in tmp_path.iterdir()] == [f"samples-{fingerprint[:12]}.safetensors"]


def test_samples_of_features_have_no_images(tmp_path):
    split = split_of(images=FeatureRows(tmp_path / "f.npz", np.zeros((4, 2))))
    save_samples(tmp_path, split)
    assert load_samples(tmp_path, split.index.sample_fingerprint())[1] == "features"


def test_other_labels_replace_those_before(tmp_path):
    split = split_of()
    save_samples(tmp_path, split)
    other = split.index.with_noisy_labels(np.array([1, 1, 1, 1]))
    save_samples(tmp_path, Split(other, split.images))
    index, _ = load_samples(tmp_path, split.index.sample_fingerprint())
    assert index.labels.tolist() == [1, 1, 1, 1]


def test_a_run_without_the_file(tmp_path):
    assert load_samples(tmp_path, "0" * 64) is None


def test_a_file_with_other_samples_than_its_name_says(tmp_path):
    one, other = split_of(), split_of([b"a", b"b"])
    save_samples(tmp_path, one)
    names = [samples_file(tmp_path, s.index.sample_fingerprint()) for s in (one, other)]
    names[0].rename(names[1])
    with pytest.raises(UserError, match=r"as the samples of a run \(it lists other samples than"):
        load_samples(tmp_path, other.index.sample_fingerprint())


def test_the_index_of_a_data_set_is_written_without_a_warning(tmp_path):
    split = open_dataset("digits", None).split("train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_samples(tmp_path, split)
    same(load_samples(tmp_path, split.index.sample_fingerprint())[0], split.index)
