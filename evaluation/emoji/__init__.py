"""The bundled model's pictures: the words of its prompts, its training pictures, how to recognize them."""
