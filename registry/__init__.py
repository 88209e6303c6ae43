"""The service: it keeps voices under names and speaks with them."""

VERSION = "0.2.0"
