"""The clip that `voices demo` enrols: LJ Speech LJ001-0005, public domain (see NOTICE)."""
