"""The guide names tags as TensorBoard shows them."""

from __future__ import annotations

from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

import ncp_callbacks as ncp
from ncp_callbacks.run_card import guide
from ncp_callbacks.runs.frames import Frames
from ncp_callbacks.runs.reader import event_files
from ncp_callbacks.writers import TensorBoardWriter


def test_the_guide_has_the_tags_of_the_log(tmp_path: Path) -> None:
    tags = ["attribution_share/heart rate (bpm)", "attribution/entropy", "/first/öl"]
    writer = TensorBoardWriter(tmp_path)
    writer.write(1, [ncp.Scalar(tag, 0.5, "what") for tag in tags])
    writer.close()
    (file,) = event_files(tmp_path)
    events = [Event.FromString(frame.data) for frame in Frames(file)]
    logged = [value.tag for event in events for value in event.summary.value]
    assert len(logged) == len(tags)
    text = guide(dict.fromkeys(tags, "what"))
    for tag in logged:
        assert f"| `{tag}` | what |" in text
    # Numbers that come without a description are accounted for.
    assert "`train/…`" in text
    assert "`xai_`" in text
