"""The service: names to voices."""

VERSION = "0.2.0"
