"""Interventions, which edit activations during denoising and score the resulting images.

An edit moves the prediction of a linear probe towards a target map.  If the image follows, the
model uses the direction that the probe found.
"""
