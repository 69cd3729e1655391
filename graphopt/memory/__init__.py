"""Dataflow, lifetimes, placement, plan and verifier: knows neither ONNX nor torch."""
