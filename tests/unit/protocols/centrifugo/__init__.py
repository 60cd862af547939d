"""Tests of Centrifugo's protocol."""
