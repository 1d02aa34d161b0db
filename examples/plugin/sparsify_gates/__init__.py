"""Gates for sparsify-fx: a trainable factor for each input of a linear, folded away later."""
