"""Multi30k as a TFDS data set: captions of photographs, in English and German.

Desmond Elliott, Stella Frank, Khalil Sima'an, Lucia Specia, 2016. arXiv:1605.00459. Prepared by
`python -m jaxhist.data.prepare multi30k/de-en`, without TensorFlow. The test is that of 2016.
"""

import gzip
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

FILES = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"
SPLITS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
LANGUAGES = ("de", "en")


class Multi30k(tfds.core.GeneratorBasedBuilder):
    """29,000, 1,014 and 1,000 pairs."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: ClassVar[dict] = {}  # no checksums; TFDS would want another package to look for them
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="de-en", version=VERSION),)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict({language: text() for language in LANGUAGES}),
            homepage="https://github.com/multi30k/dataset",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        urls = {
            split: {language: f"{FILES}/{name}.{language}.gz" for language in LANGUAGES}
            for split, name in SPLITS.items()
        }
        paths = dl_manager.download(urls)
        return {split: self._generate_examples(paths[split]) for split in SPLITS}

    def _generate_examples(self, paths: dict[str, Path]):
        texts = {
            language: gzip.decompress(Path(path).read_bytes()).decode().strip("\n").split("\n")
            for language, path in paths.items()
        }
        for number, pair in enumerate(zip(*texts.values(), strict=True)):
            yield number, dict(zip(texts, (one.strip() for one in pair), strict=True))
