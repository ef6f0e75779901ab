"""The networks of the paper's experiments, at any size: what is run small here, and whole where there is the machine for it.

It may import nothing of `experiments`. In reading order:

* `convnet`: the convolutional network of Fig. 5 and 6.
* `residual`: small fully connected networks, residual and plain.
* `resnet`: ResNet-50 for images of 32 x 32 pixels, of Fig. 2a and 3.
* `transformer_xl`: Transformer-XL, of Fig. 2b and 4.
"""
