"""Window retrofit: layers attend to sinks and a sliding window, with a memory behind it."""
