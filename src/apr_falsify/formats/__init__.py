"""Files of models and tensors: GGUF, .apr, safetensors, APRT, and the weights in them."""
