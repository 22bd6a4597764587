"""Action units over time, as a plot. Needs OpenFace's model files.

python examples/08_action_units.py [VIDEO] [OUT.png] [MODEL]

Install the files once with `jclnf models install openface --from FOLDER`.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window

import pandas as pd
import samples
from matplotlib import pyplot as plt

from jclnf.video import Settings, process_videos

video = sys.argv[1] if len(sys.argv) > 1 else samples.clip(Path("clip.mp4"), 30)
out = sys.argv[2] if len(sys.argv) > 2 else "action_units.png"
model = sys.argv[3] if len(sys.argv) > 3 else "clnf_general"

settings = Settings(model=model, one=True, aus=True, plot=False)
(done,) = process_videos(settings, [str(video)], Path("videos"))
print(done.summary, *done.problems, sep="\n")

table = pd.read_csv(Path("videos") / f"{Path(video).stem}.csv")
seen = table[table["success"] == 1]
figure, axes = plt.subplots(figsize=(9, 4))
for unit in ("AU01", "AU04", "AU06", "AU12", "AU25", "AU45"):
    axes.plot(seen["timestamp"], seen[f"{unit}_r"], label=unit)
axes.set(xlabel="seconds", ylabel="intensity, 0 to 5", ylim=(0, 5))
axes.legend(ncols=3)
figure.savefig(out)
print(f"drawn in {out}")
