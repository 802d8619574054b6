"""Properties, labelers, architectures and kinds of probes from outside this package."""
