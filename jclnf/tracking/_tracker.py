"""Faces followed over the frames of a video, one frame at a time: found, lost and found again.

The schedule is that of OpenFace: Baltrusaitis, Robinson, Morency, "OpenFace: an open source facial
behavior analysis toolkit" (WACV 2016), section 3.1. Several faces, and their numbers, are not.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jclnf.detect import Detector, check_min_face, find_faces, smallest_face
from jclnf.errors import BoxError, ImageError, ParamsError
from jclnf.fitting import FitResult, Model, check_inputs, cpu_options, prepared
from jclnf.geometry import Pose, tight_box
from jclnf.images import BUCKETS, check_box, check_grey, cut, region
from jclnf.params import on_host, to_device
from jclnf.runtime import check_process, kept
from jclnf.tracking._cuts import OTHER_SCENE, Scenes
from jclnf.tracking._overlap import SAME_FACE, assign, nearness, overlap, shows
from jclnf.tracking._track import TrackParams, TrackState, follow, found

MARGIN = 0.75
"""Margin of a crop on each side of a face's landmarks, in larger sides of the box around them:
the areas that are read, and how far landmarks may move in a frame."""
SIDES = tuple(sorted({*BUCKETS, *(3 * side // 2 for side in BUCKETS)}))
"""Sides of crops in pixels; more than for single images: each frame pays for what is too large."""

SMALL_EVERY = 4
"""Of so many searches one is for the smallest faces, which takes several times as long."""
QUICK = 1 / 11
"""Smallest face of the other searches, in longer sides of the frame."""


@dataclasses.dataclass(frozen=True)
class TrackedFace:
    """A face in one frame."""

    id: int
    """Its number, the same in all frames; numbers begin at 0, and none is given twice."""
    result: FitResult
    """Its fit, in NumPy arrays and pixels of the frame; without a trace."""
    success: bool
    """Whether the face was seen, see `FitResult.success`."""
    confidence: float | None
    """How far the fit is to be trusted, 0 to 1; None if the model does not say."""
    box: np.ndarray
    """`(4,)` x, y, w, h around the landmarks, pixels."""
    detected: bool
    """Whether the fit began from a detector's box rather than from the frame before."""


@dataclasses.dataclass
class _Track:
    """A face as it is kept from frame to frame."""

    id: int
    state: TrackState
    box: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Ended:
    """A face that is followed no more."""

    id: int
    box: np.ndarray
    frame: int


class Tracker:
    """Follows all faces of a video, or one.

    >>> tracker = Tracker(model, detector=jclnf.detect.default())
    >>> for frame in frames:
    ...     for face in tracker.step(frame):
    ...         print(face.id, face.success, face.result.landmarks)

    A face that was seen in the last frame is fitted from where it was then, with the small windows
    of `TrackParams.tracking`; one that was not, with those of `TrackParams.detection`. While a face
    is lost, a detector is asked in every second frame whether it is near to where it was; a fit
    from its box is kept if it succeeds. A face that was lost for more than `give_up_after` frames
    is followed no more.

    New faces are looked for every `search_every` frames while no face is followed, and otherwise
    every `redetect_every` frames. The first search, and each fourth one, is for faces of all sizes,
    those in between are for faces of an eleventh of the frame's longer side and more, which takes
    much less time. A detection that shows half of a followed face's landmarks, or whose box
    overlaps theirs, is that face. If two faces come to lie on each other, the one that is trusted
    less ends. There is no limit on their number but `max_faces`.

    At a cut, where frame and face change at once, faces end: whoever is seen in the place of one
    from then on is a new face. `cut` says of the last frame whether it is the first after a cut.

    With `single=True` it does what OpenFace's program for single faces does: the detector's first
    box is the face, wherever it is; its first fit is kept even if it fails; it has always the
    number 0.

    Given boxes take the place of the detector in a frame. Time is that of the frames given: no
    frame may be left out where numbers of frames are to mean anything. A tracker belongs to one
    thread. It can be copied and pickled, and goes on from where it was.

    Args:
        model: from `load_model` or `load_openface`.
        params: settings; `TrackParams.of(model)` if not given.
        detector: finds faces, see `jclnf.detect`; without, only given boxes begin a face.
        min_face: side in pixels of the smallest face that is looked for; as the detector has it if
            not given, see `jclnf.detect.find_faces`.
        single: follow one face as OpenFace does.
        max_faces: most faces followed at a time; none if not given, one if `single`.
        redetect_every: frames between searches for further faces; 0 for none.
        search_every: frames between searches while no face is followed.
        retry_every: frames between searches for a face that is lost.
        give_up_after: frames after which a lost face is no longer followed.
        return_within: a face that appears within so many frames of the end of another, its box
            overlapping the last one of that face by half, gets its number again. It is not
            recognised by anything but its place. 0: never.
        cuts: notice cuts; not to be asked for if more than two frames are left out between those
            given, since a head may turn far in that time.

    Raises:
        ParamsError: numbers that are not positive, settings that do not fit the model.
    """

    def __init__(
        self,
        model: Model,
        params: TrackParams | None = None,
        *,
        detector: Detector | Callable[[np.ndarray], np.ndarray] | None = None,
        min_face: float | None = None,
        single: bool = False,
        max_faces: int | None = None,
        redetect_every: int = 30,
        search_every: int = 12,
        retry_every: int = 2,
        give_up_after: int = 100,
        return_within: int = 0,
        cuts: bool = True,
    ) -> None:
        given = {
            "max_faces": (max_faces, 1),
            "redetect_every": (redetect_every, 0),
            "search_every": (search_every, 1),
            "retry_every": (retry_every, 1),
            "give_up_after": (give_up_after, 0),
            "return_within": (return_within, 0),
        }
        for name, (number, least) in given.items():
            if number is not None and not (isinstance(number, int) and number >= least):
                raise ParamsError(f"{name} is {number!r}; it must be a whole number from {least}")
        if single and max_faces not in (None, 1):
            raise ParamsError(f"max_faces is {max_faces}: a single face is followed")
        self.model = model
        self.params = TrackParams.of(model) if params is None else params
        self.detector = detector
        self.min_face = check_min_face(min_face)
        self.single = single
        self.max_faces = 1 if single else max_faces
        self.redetect_every = 0 if single else redetect_every
        self.search_every = search_every
        self.retry_every = retry_every
        self.give_up_after = give_up_after
        self.return_within = return_within
        self.cuts = cuts
        self._fits = _Fits(model, self.params)
        self.reset()

    def reset(self) -> None:
        """Forget all faces, and begin numbers and frames anew."""
        self.cut = False
        self._scenes = Scenes(self.cuts)
        self._tracks: list[_Track] = []
        self._ended: list[_Ended] = []
        self._next_id = 0
        self._frame = 0
        self._idle = 0

    def step(self, frame: np.ndarray, boxes: Any = None) -> list[TrackedFace]:
        """Follow the faces into the next frame.

        Args:
            frame: `(h, w)` grey 0-255, or `(h, w, 3)` uint8 in OpenCV's order blue, green, red.
            boxes: `(k, 4)` or `(4,)` x, y, w, h of faces in this frame in pixels, the most
                important first, in place of the detector's; they need not be given in each frame.
                Empty: there are none.

        Returns:
            The faces that are followed, by their numbers; also those that were not seen in this
            frame.

        Raises:
            ImageError, BoxError: a frame or boxes that nothing can be done with. Nothing has
                changed then.
        """
        check_process()
        grey = grey_of(frame)
        given = None if boxes is None else _boxes(boxes, grey.shape)
        lost_before = [track for track in self._tracks if not track.state.seen]
        faces = self._follow(grey)
        self.cut = self._end_at_cut(grey, faces) or self._all_gone(lost_before)
        if given is None and self.detector is not None and self._wants_detection():
            image = frame if np.ndim(frame) == 3 else _bytes(grey)
            found_boxes = find_faces(self.detector, image, min_face=self._least(grey.shape))
            given = np.array([box for box in found_boxes if usable(box, grey.shape)])
        if given is not None and len(given):
            self._use(given.reshape(-1, 4), grey, faces)
            self.cut = self._end_at_cut(grey, faces) or self.cut
        self._end_duplicates(faces)
        self._idle = 0 if self._tracks else self._idle + 1
        self._give_up()
        self._scenes.keep({track.id for track in self._tracks})
        self._frame += 1
        return [faces[track.id] for track in self._tracks]

    def _follow(self, grey: np.ndarray) -> dict[int, TrackedFace]:
        """Look at the frame, and fit all faces from where they were."""
        # All are dispatched before the first one is waited for.
        fits = [self._fits.follow(grey, track.state, track.box) for track in self._tracks]
        self._scenes.look(grey)
        faces = {}
        for track, (state, result) in zip(self._tracks, on_host(fits), strict=True):
            track.state = state
            face = faces[track.id] = tracked_face(track.id, result, detected=False)
            if result.ok:
                track.box = face.box
        return faces

    def _end_at_cut(self, grey: np.ndarray, faces: dict[int, TrackedFace]) -> bool:
        """Give those new numbers who are seen where others were, and end the faces of before that
        are not seen; whether there are any."""
        others = [
            track
            for track in self._tracks
            if track.state.seen and self._scenes.is_other(track.id, grey, faces[track.id].box)
        ]
        if others and not self.single:
            self._tracks = [track for track in self._tracks if track.state.seen]
            self._ended = []
            for track in others:
                face = faces.pop(track.id)
                track.id, self._next_id = self._next_id, self._next_id + 1
                faces[track.id] = dataclasses.replace(face, id=track.id)
            self._tracks.sort(key=lambda track: track.id)
        for track in others:
            self._scenes.keep({other.id for other in self._tracks} - {track.id})
            self._scenes.is_other(track.id, grey, faces[track.id].box)
        return bool(others)

    def _all_gone(self, lost_before: list[_Track]) -> bool:
        """End all faces if all were lost in this frame, which is nothing like the one before."""
        new = self._scenes.judged and self._scenes.likeness < OTHER_SCENE
        if not new or not self._tracks or lost_before or any(t.state.seen for t in self._tracks):
            return False
        if not self.single:
            self._tracks, self._ended, self._idle = [], [], 0
        return True

    def _wants_detection(self) -> bool:
        """Whether the detector's turn has come."""
        if self.cut and not self.single:
            return True
        due = self._search_number() is not None
        if not self._tracks:
            return due
        if any(self._retries(track) for track in self._tracks):
            return True
        full = self.max_faces is not None and len(self._tracks) >= self.max_faces
        return not full and due

    def _search_number(self) -> int | None:
        """Which of the regular searches this frame's is, from 0 on; None if it has none."""
        count, every = (
            (self._frame, self.redetect_every) if self._tracks else (self._idle, self.search_every)
        )
        return count // every if every > 0 and count % every == 0 else None

    def _least(self, shape: tuple[int, ...]) -> float | None:
        """The smallest face to ask the detector for in this frame."""
        if not getattr(self.detector, "takes_min_face", False):
            return self.min_face
        number = self._search_number()
        if self.cut or (number is not None and number % SMALL_EVERY == 0):
            return self.min_face
        least = [] if number is None else [QUICK * max(shape)]
        least += [max(track.box[2:]) / 2 for track in self._tracks if self._retries(track)]
        return max(min(least), smallest_face(shape, self.min_face))

    def _retries(self, track: _Track) -> bool:
        """Whether a face was lost, and is now to be looked for."""
        failures = int(track.state.failures)
        return failures > 0 and (failures - 1) % self.retry_every == 0

    def _use(self, boxes: np.ndarray, grey: np.ndarray, faces: dict[int, TrackedFace]) -> None:
        """Find lost faces and new ones in boxes."""
        lost = [track for track in self._tracks if not track.state.seen]
        free = [box for box in boxes if not self._known(box, faces)]
        if self.single:
            near = [[1.0 if index == 0 else 0.0 for index in range(len(free))] for _ in lost]
        else:
            near = [[nearness(track.box, box) for box in free] for track in lost]
        taken = set()
        for row, column in assign(np.array(near).reshape(len(lost), len(free))):
            track = lost[row]
            taken.add(column)
            state, result = on_host(self._fits.find(grey, free[column]))
            if result.success:
                face = faces[track.id] = tracked_face(track.id, result, detected=True)
                track.state, track.box = state, face.box
        for column, box in enumerate(free):
            if column in taken:
                continue
            if self.max_faces is not None and len(self._tracks) >= self.max_faces:
                break
            state, result = on_host(self._fits.find(grey, box))
            around = box_of(result)
            if (result.success or (self.single and result.ok)) and not self._known(around, faces):
                track = _Track(self._new_id(around), state, around)
                faces[track.id] = tracked_face(track.id, result, detected=True)
                self._tracks = sorted([*self._tracks, track], key=lambda track: track.id)

    def _known(self, box: np.ndarray, faces: dict[int, TrackedFace]) -> bool:
        """Whether a box is a face that was seen in this frame."""
        seen = (face for face in faces.values() if face.success)
        return any(
            overlap(box, face.box) >= SAME_FACE or shows(box, np.asarray(face.result.landmarks))
            for face in seen
        )

    def _new_id(self, box: np.ndarray) -> int:
        """The number of a new face: the next one, or that of a face that was here before."""
        if self.single:
            return 0
        since = self._frame - self.return_within
        self._ended = [ended for ended in self._ended if ended.frame >= since]
        overlaps = [overlap(box, ended.box) for ended in self._ended]
        if overlaps and max(overlaps) >= SAME_FACE:
            return self._ended.pop(int(np.argmax(overlaps))).id
        self._next_id += 1
        return self._next_id - 1

    def _end(self, track: _Track) -> None:
        self._tracks = [other for other in self._tracks if other is not track]
        if self.return_within > 0 and not self.single:
            self._ended.append(_Ended(track.id, track.box, self._frame))

    def _end_duplicates(self, faces: dict[int, TrackedFace]) -> None:
        """Of faces that lie on each other keep the one that is trusted most, or the oldest."""

        def trust(track: _Track) -> tuple[bool, float, int]:
            face = faces[track.id]
            return face.success, face.confidence or 0.0, -track.id

        kept: list[_Track] = []
        for track in sorted(self._tracks, key=trust, reverse=True):
            box = faces[track.id].box
            if any(overlap(box, faces[other.id].box) >= SAME_FACE for other in kept):
                # Its number is not for whoever comes next: the face is still there.
                self._tracks = [other for other in self._tracks if other is not track]
            else:
                kept.append(track)

    def _give_up(self) -> None:
        for track in list(self._tracks):
            # The first frame in which a face was not seen does not count.
            if int(track.state.failures) - 1 > self.give_up_after:
                self._end(track)
                # The schedule of searches goes on with the count of failures, as OpenFace's does.
                self._idle = int(track.state.failures)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled functions cannot be pickled; a copy is to have tracks of its own.
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"settings": settings, "state": self.state()}

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        vars(self).update(pickled["settings"])
        self._fits = _Fits(self.model, self.params)
        self.reset()
        self.cut = pickled["settings"]["cut"]
        self.restore(pickled["state"])

    def state(self) -> dict[str, np.ndarray]:
        """All that the next frames depend on, in arrays of plain types, as for a file.

        Not the model and the settings: `restore` it into a tracker made with the same.
        """
        modes, precision = self.model.pdm.n_modes, self.model.pdm.mean.dtype
        states = [track.state for track in self._tracks]
        ended = self._ended
        return {
            "counters": np.array([self._frame, self._next_id, self._idle], np.int64),
            "ids": np.array([track.id for track in self._tracks], np.int64),
            "boxes": np.array([t.box for t in self._tracks], np.float64).reshape(-1, 4),
            "seen": np.array([s.seen for s in states], bool),
            "failures": np.array([s.failures for s in states], np.int32),
            "scale": np.array([s.pose.scale for s in states], precision),
            "matrix": np.array([s.pose.matrix for s in states], precision).reshape(-1, 3, 3),
            "translation": np.array([s.pose.translation for s in states], precision).reshape(-1, 2),
            "shape": np.array([s.shape for s in states], precision).reshape(-1, modes),
            "ended_ids": np.array([one.id for one in ended], np.int64),
            "ended_boxes": np.array([one.box for one in ended], np.float64).reshape(-1, 4),
            "ended_frames": np.array([one.frame for one in ended], np.int64),
            **self._scenes.state(),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` gave, exactly: with the same numbers, to the last bit.

        Raises:
            ParamsError: it is not that of a tracker of such a model.
        """
        expected = {name: array.shape[1:] for name, array in self.state().items()}
        arrays = {name: np.asarray(array) for name, array in state.items()}
        if {name: array.shape[1:] for name, array in arrays.items()} != expected:
            raise ParamsError("this is not the state of a tracker with this model")
        self._scenes.restore(arrays)
        self._frame, self._next_id, self._idle = (int(n) for n in arrays["counters"])
        self._tracks = [
            _Track(
                int(arrays["ids"][i]),
                TrackState(
                    Pose(*(to_device(arrays[n][i]) for n in ("scale", "matrix", "translation"))),
                    *(to_device(arrays[name][i]) for name in ("shape", "seen", "failures")),
                ),
                arrays["boxes"][i],
            )
            for i in range(len(arrays["ids"]))
        ]
        self._ended = [
            _Ended(int(one), box, int(frame))
            for one, box, frame in zip(
                *(arrays[f"ended_{name}"] for name in ("ids", "boxes", "frames")), strict=True
            )
        ]


class _Fits:
    """A model on the device, and its fits: each call hands over as little as it can."""

    def __init__(self, model: Model, params: TrackParams) -> None:
        blank = np.zeros((8, 8), np.uint8)
        for settings in (params.tracking, params.detection):
            check_inputs(model, blank, np.ones(4), settings)
        detection = prepared(model, params.detection)
        # Each call hands over only what it works with: every array costs the host some time.
        inputs = {
            "seen": (prepared(model, params.tracking), params.tracking),
            "lost": (detection, params.detection),
            "found": (detection, params),
        }
        self._calls = {}
        for name, tree in inputs.items():
            leaves, structure = jax.tree.flatten(tree)
            compiled = _compiled(name, structure, cpu_options(model))
            self._calls[name] = (compiled, jax.device_put(leaves))

    def follow(self, grey: np.ndarray, state: TrackState, box: np.ndarray) -> Any:
        """The next state and fit of a face; box: around its landmarks before."""
        image, offset = _cropped(grey, box, MARGIN * max(box[2:]))
        compiled, leaves = self._calls["seen" if state.seen else "lost"]
        return compiled(leaves, image, offset, state)

    def find(self, grey: np.ndarray, box: np.ndarray) -> Any:
        """The state and fit of a face that was just found in a box."""
        image, offset = _cropped(grey, box, max(box[2:]))
        compiled, leaves = self._calls["found"]
        return compiled(leaves, image, offset, box.astype(np.float32))

    def warm_up(self, grey: np.ndarray, box: np.ndarray) -> None:
        """Compile all of them for faces as large as this box."""
        state, _ = self.find(grey, box)
        for seen in (True, False):
            start = dataclasses.replace(state, seen=to_device(seen))
            # From the host, as in `step`: JAX compiles apart for what is bound to a device.
            jax.block_until_ready(self.follow(grey, on_host(start), box))


def _cropped(grey: np.ndarray, box: np.ndarray, beside: float) -> tuple[np.ndarray, np.ndarray]:
    """The crop around a box, and its offset in the frame."""
    x0, y0, side = region(box, grey.shape, beside, beside, SIDES)
    return cut(grey, x0, y0, side), np.array([x0, y0], np.float32)


@functools.lru_cache(maxsize=32)
def _compiled(name: str, structure: Any, options: Any) -> Any:
    """A compiled fit with models and settings of this structure; all trackers share it."""
    one = kept(_first_one if name == "found" else _next_one)
    return jax.jit(
        lambda leaves, *given: one(*jax.tree.unflatten(structure, leaves), *given),
        compiler_options=dict(options) or None,
    )


def _next_one(model: Model, params: Any, image: Any, offset: Any, state: TrackState) -> Any:
    image = jnp.asarray(image, state.shape.dtype)
    after, result = follow(model, image, _moved(state, -offset), params)
    return _moved(after, offset), result.shifted(offset)


def _first_one(model: Model, params: TrackParams, image: Any, offset: Any, box: Any) -> Any:
    image = jnp.asarray(image, box.dtype)
    shift = jnp.concatenate([offset, jnp.zeros_like(offset)])
    result = found(model, image, box - shift, params).shifted(offset)
    return TrackState.after(result), result


def _moved(state: TrackState, offset: Any) -> TrackState:
    translation = state.pose.translation
    moved = translation + jnp.asarray(offset, translation.dtype)
    return dataclasses.replace(state, pose=dataclasses.replace(state.pose, translation=moved))


def box_of(result: FitResult) -> np.ndarray:
    """The box around a fit's landmarks, `(4,)` float64."""
    return np.asarray(tight_box(np.asarray(result.landmarks)), np.float64)


def tracked_face(number: int, result: FitResult, *, detected: bool) -> TrackedFace:
    """A fit in NumPy arrays and pixels of its frame as the face of a number."""
    return TrackedFace(
        id=number,
        result=result,
        success=bool(result.success),
        confidence=None if result.confidence is None else float(result.confidence),
        box=box_of(result),
        detected=detected,
    )


def grey_of(frame: Any) -> np.ndarray:
    """The frame in grey levels."""
    if isinstance(frame, np.ndarray) and frame.ndim == 3 and frame.shape[2] == 3:
        if frame.dtype != np.uint8:
            raise ImageError(f"frame: a colour frame must be uint8, not {frame.dtype}: convert it")
        import cv2

        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY))
    grey = check_grey(frame)
    return grey if grey.dtype == np.uint8 else grey.astype(np.float32)


def _bytes(grey: np.ndarray) -> np.ndarray:
    return grey if grey.dtype == np.uint8 else np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _boxes(boxes: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Given boxes as `(k, 4)`, each checked."""
    array = np.asarray(boxes, np.float64)
    array = array[None] if array.ndim == 1 and array.size else array
    if array.size and (array.ndim != 2 or array.shape[1] != 4):
        raise BoxError(f"boxes are (k, 4), x, y, w, h of each face, not {np.shape(boxes)}")
    return np.array([check_box(box, shape) for box in array]).reshape(-1, 4)


def usable(box: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether a detector's box can be used: one too small, or beyond the border, is passed over."""
    try:
        check_box(box, shape)
    except BoxError:
        return False
    return True
