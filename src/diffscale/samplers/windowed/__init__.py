"""A pipeline's own call, run over a window of its steps: any diffusers pipeline, without forking it.

Every diffusers pipeline denoises in a loop over its scheduler's timesteps. To run a part of a trajectory, its own
`__call__` is run as it stands, from the first line to the last, and every time; but what it finds under a few names on
its way is ours. All of that is set on a copy of the pipeline that shares the networks, never on the user's.

    pipe.__call__(prompt, num_inference_steps=5)           what it finds there

    |  encode_prompt(prompt)                         <---  `text.PromptEncodings`: what the prompt was encoded to once
    |  scheduler.set_timesteps(5)                    <---  `scheduler.WindowedScheduler`: the grid, and on it the
    |                                                      window's start and what a multistep solver remembers there
    |  latents = prepare_latents(...)                <---  `latents.InitialLatents`: the latents at the window's start
    |
    |  for i, t in enumerate(timesteps):             <---  `loop.windowed_call`: an `enumerate`, and a progress bar,
    |                                                      that visit the window's steps alone
    |      i =   0     1     2     3     4                 with their true numbers and timesteps
    |                  |-----------|
    |                start        stop
    |
    |      output = unet(latents, t, text)           <---  the network itself, whose rows are counted
    |      latents = scheduler.step(output, ...)     <---  the scheduler's own step with noise of the rows' keys; or
    |                                                      no step at all, if the output is what is wanted
    |  return latents, or vae.decode(latents)        <---  the pipeline's own decoding

So all moves of a sampler are calls of one function with a `scheduler.StepWindow`:

    encode a prompt, make initial latents     StepWindow(0, 0)                           the empty window at the start
    denoise from step i to step j             StepWindow(i, j)
    predict at step i                         StepWindow(i, i + 1, predict_only=True)    the step is left out
    solve between levels off the grid         StepWindow(0, 0, levels=[...])             by an ODE step of our own
    decode                                    StepWindow(n, n)                           the empty window at the end

A trajectory that is split anywhere is bit-equal to the whole one, since it is the same code over the same numbers.
`pipeline.WindowedPipeline` puts all of it together; its `probe` refuses pipelines of which this is not true.
"""
