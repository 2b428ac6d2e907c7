"""Window retrofit: every layer attends to sinks and a sliding window, with a memory behind it."""
