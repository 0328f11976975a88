"""Networks for tests, built as a trial builds them from its settings."""

from contextlib import nullcontext

from torch import nn

from raysweep import parts
from raysweep.config import Settings
from raysweep.methods.precision import autocast_for
from raysweep.models.building import build_encoder, seeded
from raysweep.models.conv6 import Conv6
from raysweep.models.decoders import Decoder


def make_encoder(name, channels, size, embedding_dim, seed=0, **settings):
    """Build a trial's encoder with its head."""
    chosen = {"encoder": name, "embedding_dim": embedding_dim, "seed": seed, **settings}
    return build_encoder(Settings(**chosen), channels, size)


def conv6_with_head(channels, size, embedding_dim, **options):
    """Build Conv6 with a linear head; PyTorch draws the weights from its current random state."""
    encoder = Conv6(channels, size, **options)
    encoder.head = nn.Linear(encoder.feature_dim, embedding_dim, bias=False)
    return encoder


def make_decoder(channels, size, embedding_dim, seed):
    """Build the decoder of a trial that trains end to end."""
    with seeded(seed, "decoder"):
        return Decoder(channels, size, embedding_dim)


def embed(encoder, images):
    """Return the embeddings of images."""
    return encoder.head(encoder(images))


def method_of(settings, encoder, decoder=None):
    """Return the module that a trial with these settings trains. A given decoder replaces the module's own."""
    part = parts.method[settings.usl_type]
    method = part.function(encoder, **part.arguments(settings))
    if decoder is not None:
        method.decoder = decoder
    return method


def losses_of(settings, encoder, decoder, views, clean):
    """Return the losses of one batch, computed in the settings' precision."""
    with autocast_for(settings, views) if settings.precision != "fp32" else nullcontext():
        return method_of(settings, encoder, decoder)(views, clean)
