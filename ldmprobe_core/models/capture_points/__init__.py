"""Places inside attention layers whose values can be captured and edited like a layer's output."""
