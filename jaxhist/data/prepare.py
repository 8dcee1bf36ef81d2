"""Download a TFDS data set and store it so that training can read it without TensorFlow.

pip install -e '.[prepare]'                 TensorFlow, for this command alone; not for multi30k
python -m jaxhist.data.prepare cifar10      into $TFDS_DATA_DIR or ~/tensorflow_datasets
"""

import importlib.util
import sys

import tensorflow_datasets as tfds

from jaxhist.data import multi30k

# Of our own, and prepared without TensorFlow. To import one is to make it known to TFDS.
OURS = (multi30k.Multi30k.name,)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    (name,) = arguments
    ours = name.split("/")[0].split(":")[0] in OURS
    if not ours and importlib.util.find_spec("tensorflow") is None:
        print(
            "error: preparing a data set needs TensorFlow, once: pip install -e '.[prepare]'",
            file=sys.stderr,
        )
        return 1
    try:
        builder = tfds.builder(name, file_format="array_record")
        builder.download_and_prepare(file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        print(f"error: TFDS knows no data set {name!r}", file=sys.stderr)
        return 1
    except AssertionError as error:  # TFDS's way to ask for files that only you can download
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except OSError as error:  # requests' errors are of this kind too
        print(f"error: {name!r} could not be prepared: {error}", file=sys.stderr)
        return 1
    print(f"{builder.info.full_name} is in {builder.data_path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
