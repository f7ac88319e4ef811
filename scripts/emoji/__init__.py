"""Everything that makes the bundled text-to-emoji model, step by step, resumable, from packages of the registries.

``python -m guidestack.scripts.emoji STEP``, in this order: ``harvest`` ``tokenizer`` ``autoencoder`` ``latents``
``denoiser`` ``export`` ``measure`` ``card`` ``samples``. Each reads and writes the work folder, by default
``~/.cache/guidestack/emoji``, and goes on where it stopped.
"""
