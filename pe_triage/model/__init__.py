"""Networks and bundles: slice encoder, sequence model, attention pooling, consistent labels.

`spec`, `card`, `decisions`, `consistency` and `bundle` import neither torch nor timm, so that a
light process can say which model a node serves without paying for them.
"""
