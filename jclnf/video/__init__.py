"""From a video to tables and pictures: reading, tracking, writing, and going on after a stop."""
