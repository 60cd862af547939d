"""The pure part: values in, values out. No loop, no Redis, no clock: time and chance are arguments."""
