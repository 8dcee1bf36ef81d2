import json

import pytest
from conftest import needs

from jaxhist import UserError
from jaxhist.data import speed


@needs("imagenet_sample")
def test_the_pipeline_and_the_plain_loop_are_measured(tmp_path):
    path = tmp_path / "results" / "pipeline.json"
    speed.main("imagenet_sample", seconds=1, output=str(path))
    result = json.loads(path.read_text())
    assert result["data"] == "imagenet_sample" and result["cores"] >= 1
    for label in ("plain loop", "plain loop, per core", "pipeline", "pipeline, per core"):
        assert 0 < result[label]["lowest"] <= result[label]["median"] <= result[label]["highest"]
    ratio = result["ratio, per core"]
    assert ratio["lowest"] <= ratio["median"] <= ratio["highest"]


def test_no_time_to_measure():
    with pytest.raises(UserError, match="must be more than 0"):
        speed.main("imagenet_sample", seconds=0)
