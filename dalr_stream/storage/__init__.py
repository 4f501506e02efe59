"""Records on disk: activations, moments, weights and solutions in one zarr v3 folder, and the manifest that rules it.

A store is a plain folder that any zarr reader opens:

    birds.zarr/
      manifest.json                       the truth: what made this store, which rows are committed, their digests
      activations/<domain>/<layer>        rows x features, one tile a chunk
      weights/<layer>/                    weight and bias, so that solving needs no network
      moments/<domain>/<layer>/<part>/    part is `training` or `heldout`, and `shard-0`, ... where shards are kept
      shards/<domain>/<shard>/<layer>/<part>/   where the domain was merged: the records it is the sum of
      solutions/<layer>/<method>/
"""
