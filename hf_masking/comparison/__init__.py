"""Compare masks: evaluate, fine-tune and time each of them, and report them side by side.

trial_settings    how long each mask is tried
trials            one mask under one seed, in a process of its own
folder            where finished trials are kept, so that a comparison can resume
small_model       the model that is compared on when none is named
speed             training, evaluation and decoding under all masks, interleaved
break_even        the length from which a mask is faster than dense attention
results           means and standard deviations over seeds
report            the tables and pictures
run               all of the above, in order
"""
