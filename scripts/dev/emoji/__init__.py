"""Everything that makes the bundled text-to-emoji model, step by step, resumable, from packages of the registries.

``python -m guidestack.scripts.dev.emoji STEP``, in this order: ``harvest`` ``tokenizer`` ``autoencoder`` ``latents``
``denoiser`` ``export`` ``measure`` ``card`` ``samples`` ``references``. Each reads and writes the work folder, by
default ``~/.cache/guidestack/emoji``, and continues where it stopped. ``classifier`` and ``classified`` train and
measure the classifier of the objective ``emoji``, of the bundled pictures and a pipeline alone.

Training is planned in steps: ``--steps`` in all, the rate falling to 0 from ``--decay-from``. Both may change when a
stopped run goes on: when the clock is what ends it, stop, read the seconds a step in the log, and give fewer.
Two threads of two busy programs on two cores wait for each other: a step then takes five times as long, not twice.
"""
