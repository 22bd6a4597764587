"""The face detector that ships: learned, and compared with others."""
