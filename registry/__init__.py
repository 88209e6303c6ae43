"""The service: names to voices."""

VERSION = "0.1.0"
