"""What runs the towers of a served model: torch everywhere, OpenVINO and ONNX Runtime on the CPU where they give the same answers
sooner. Adding a backend is one file with a subclass of `Backend`, and one entry in `choice.BACKENDS`."""
