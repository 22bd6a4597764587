"""What the comparison with other programs does before it compares: boxes, and who is asked what."""

import io
import json

import numpy as np
import pytest

peer = pytest.importorskip("experiments.accuracy.peers.peer", reason="no experiments/")


def test_boxes_are_moved_to_where_a_detector_looks():
    rng = np.random.default_rng(0)
    boxes = rng.uniform([0, 0, 80, 80], [50, 50, 120, 120], (9, 4))
    wanted = (0.02, -0.1, 1.2)
    squares = [[peer.Square(-500.0, 0.0, 60.0), peer.beside(box, wanted)] for box in boxes]
    squares[0] = squares[1] = []  # two faces were not found
    squares[2] = squares[2][:1]  # and something else in place of a third
    found, count = peer.adjustment(squares, boxes)
    assert count == 6
    np.testing.assert_allclose(found, wanted, atol=1e-9)


class Corner:
    """Has all landmarks in the corner of the box, moved by what it learned."""

    moved = 0.0

    def read(self, path):
        return float(path)

    def learn(self, images, _boxes, points):
        self.moved = float(np.mean(images)) + points[0, 0, 0]
        return {"moved": self.moved}

    def find(self, image, box):
        return np.full((68, 2), image + box[0] + self.moved)


def test_faces_that_are_asked_for_are_answered(tmp_path, monkeypatch, capsys):
    cases = tmp_path / "faces.json"
    points = [None, None, np.full((68, 2), 0.5).tolist()]
    boxes = [[i, 0, 1, 1] for i in range(3)]
    cases.write_text(json.dumps({"images": list("468"), "boxes": boxes, "landmarks": points}))
    asked = [{"faces": [2], "learn": True}, {"faces": [1, 0]}]
    lines = "".join(json.dumps({"method": "corner", **line}) + "\n" for line in asked)
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    peer.serve({"corner": Corner()}, cases)
    names, learned, found = map(json.loads, capsys.readouterr().out.splitlines())
    assert names == ["corner"]
    assert learned == {"moved": 8.5}
    assert np.unique(found["landmarks"], axis=None).tolist() == [12.5, 15.5]
    assert np.shape(found["landmarks"]) == (2, 68, 2)
    assert found["landmarks"][0][0] == [15.5, 15.5]
    assert len(found["seconds"]) == 2
