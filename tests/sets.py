"""Tiny data sets, written as TFDS writes them."""

import io

import tensorflow_datasets as tfds
from PIL import Image


def write(folder, name, features, shards=1, **splits):
    """Write a data set into a folder for TFDS_DATA_DIR.

    Args:
      folder: made if it is not there.
      name: such as "tiny".
      features: TFDS's, by name.
      shards: files of each split.
      splits: lists of examples, as dictionaries of features.
    """

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            found = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=found)

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(examples) for name, examples in splits.items()}

        def _generate_examples(self, examples):
            return enumerate(examples)

    Tiny.name = name
    builder = Tiny(data_dir=folder, file_format="array_record")
    options = tfds.download.DownloadConfig(num_shards=shards)
    builder.download_and_prepare(file_format="array_record", download_config=options)


def file(pixels, form="PNG", **options):
    """A picture, an array or one of Pillow's, as a file: an example's `image`."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(stream := io.BytesIO(), form, **options)
    stream.seek(0)
    return stream
