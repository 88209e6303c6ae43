"""The clips that `voices demo` enrols: espeak-ng speaks (training/demo_model/clips.py)."""
